"""Model reduction: one file per step of the way from factors to a reduced system."""

from .balanced import Balancing, balance, balanced_truncation
from .result import Reduction

__all__ = ["Balancing", "Reduction", "balance", "balanced_truncation"]
