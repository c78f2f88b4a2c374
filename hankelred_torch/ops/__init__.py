"""Batched, differentiable operations on tensors: the recurrences that the layers run on."""

from .selective import selective_scan
from .state_space import diagonal_ssm

__all__ = ["diagonal_ssm", "selective_scan"]
