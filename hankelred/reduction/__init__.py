"""Model reduction: one file per step of the way from factors to a reduced system."""

from .balanced import Balancing, balance, balanced_truncation
from .bank import BankReduction, batched_balanced_truncation
from .result import Reduction

__all__ = [
    "Balancing",
    "BankReduction",
    "Reduction",
    "balance",
    "balanced_truncation",
    "batched_balanced_truncation",
]
