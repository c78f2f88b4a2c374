"""Models whose layers were cut, written down, read back and handed over."""
