"""The book: parameters of notebooks, their runs, artifacts, pages."""
