"""The charge density: the object, its files, its cell, its valence convention."""
