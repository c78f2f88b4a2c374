"""State space layers that hankelred can reduce: ``(batch, length, channels)`` in, the same out."""

from .lru import LRU
from .mamba import Mamba
from .s4d import S4D
from .s5 import S5

__all__ = ["LRU", "S4D", "S5", "Mamba"]
