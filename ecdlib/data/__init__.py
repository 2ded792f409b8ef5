"""Bundled tables and the one list of properties."""
