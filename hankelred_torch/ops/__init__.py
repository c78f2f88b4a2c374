"""Batched, differentiable operations on tensors: the recurrences that the layers run on."""

from ._backends import backends, use_backend
from .gramians import gramian_factors, hankel_singular_values
from .heads import selective_heads
from .linear import linear_recurrence
from .lyapunov import solve_lyapunov
from .selective import selective_scan
from .state_space import diagonal_ssm
from .truncation import BalancedTruncation, balanced_truncation

__all__ = [
    "BalancedTruncation",
    "backends",
    "balanced_truncation",
    "diagonal_ssm",
    "gramian_factors",
    "hankel_singular_values",
    "linear_recurrence",
    "selective_heads",
    "selective_scan",
    "solve_lyapunov",
    "use_backend",
]
