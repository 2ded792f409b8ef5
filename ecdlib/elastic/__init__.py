"""Elasticity: moduli and what follows from them, and elastic constants from strained cells."""
