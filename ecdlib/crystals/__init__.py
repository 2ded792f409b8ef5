"""Crystals to screen: files, databases, hypothetical ones."""
