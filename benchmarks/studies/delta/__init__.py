"""Cutting the keys of gated delta nets: which channels or directions, and when."""
