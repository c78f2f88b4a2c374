"""Reduction of fixed systems: one file per step of the way from factors to a reduced system."""

from .balanced import Balancing, balance, balanced_truncation
from .bank import BankReduction
from .modal import modal_truncation
from .realisation import balanced_realization, minimal
from .result import Reduction

__all__ = [
    "Balancing",
    "BankReduction",
    "Reduction",
    "balance",
    "balanced_realization",
    "balanced_truncation",
    "minimal",
    "modal_truncation",
]
