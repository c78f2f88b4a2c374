"""Batched, differentiable operations on tensors: the recurrences that the layers run on."""

from .averaged import averaged_gramians
from .dense import dense_hankel_singular_values
from .gramians import gramian_factors, hankel_singular_values
from .linear import linear_recurrence
from .selective import selective_scan
from .state_space import diagonal_ssm
from .truncation import BalancedTruncation, balanced_truncation

__all__ = [
    "BalancedTruncation",
    "averaged_gramians",
    "balanced_truncation",
    "dense_hankel_singular_values",
    "diagonal_ssm",
    "gramian_factors",
    "hankel_singular_values",
    "linear_recurrence",
    "selective_scan",
]
