"""State space layers that hankelred can reduce: ``(batch, length, channels)`` in, the same out."""

from .lru import LRU

__all__ = ["LRU"]
