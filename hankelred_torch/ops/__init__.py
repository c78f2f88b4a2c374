"""Batched, differentiable operations on tensors: the recurrences that the layers run on."""

from .gramians import (
    BalancedTruncation,
    balanced_truncation,
    gramian_factors,
    hankel_singular_values,
)
from .linear import linear_recurrence
from .selective import selective_scan
from .state_space import diagonal_ssm

__all__ = [
    "BalancedTruncation",
    "balanced_truncation",
    "diagonal_ssm",
    "gramian_factors",
    "hankel_singular_values",
    "linear_recurrence",
    "selective_scan",
]
