"""A fuzz of every public callable of the core: right arguments, one or two of them made wrong."""
