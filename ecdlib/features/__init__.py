"""Numbers that describe a crystal, one kind a file."""
