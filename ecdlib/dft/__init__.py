"""Densities from density functional theory."""
