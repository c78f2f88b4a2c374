"""Lyapunov equations of many matrices by doubling, in matrix products only: what a GPU has in the place of Schur forms.

``A X A^H - X + Q = 0`` has the solution ``sum A^k Q A^kH``, and twice as many terms of it by every step
``X <- X + M X M^H``, ``M <- M M``. In continuous time Cayley's transform makes it such an equation,
``(p - A)^-1 (p + A)`` for A, with a shift p of its own for every matrix. Rounding is worked off by solving for the
residual again; a matrix for which that does not lead to one of rounding's size, such as an unstable one, is left to
another solver.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Doublings: poles at a distance of 2^-50 from the boundary are none to double precision.
MOST = 52
REFINEMENTS = 3

# Residuals, in eps times n times the size of the terms: where refinement ends, and what is accepted behind it. Those of
# a Schur form are between them.
ENOUGH, ACCEPTED = 0.1, 10.0


def doubled(A: Tensor, Q: Tensor, discrete: bool) -> tuple[Tensor, Tensor]:
    """Return solutions (batch, n, n) and whether their residuals are of the size of rounding, (batch)."""
    sizes = torch.linalg.matrix_norm(A), torch.linalg.matrix_norm(Q)
    powers, into = (_powers(A), None) if discrete else _transformed(A)
    X, residual = torch.zeros_like(Q), Q
    tiny = torch.finfo(A.dtype).tiny
    unit = A.shape[-1] * torch.finfo(A.dtype).eps
    share = torch.full_like(sizes[0], torch.inf)
    for _ in range(1 + REFINEMENTS):
        terms = residual if into is None else into @ residual @ into.mH
        for M in powers:
            terms = terms + M @ terms @ M.mH
        better = X + terms
        left = A @ better @ A.mH - better + Q if discrete else A @ better + better @ A.mH + Q
        size = torch.linalg.matrix_norm(better)
        scale = sizes[1] + size * (sizes[0].square() + 1 if discrete else 2 * sizes[0])
        smaller = torch.linalg.matrix_norm(left) <= torch.linalg.matrix_norm(residual)
        X, residual = (torch.where(smaller[:, None, None], new, old) for new, old in ((better, X), (left, residual)))
        share = torch.where(smaller, torch.linalg.matrix_norm(left) / scale.clamp_min(tiny), share)
        if bool((share <= ENOUGH * unit).all()):
            break
    return X, share <= ACCEPTED * unit


def _transformed(A: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the powers of Cayley's transform, and what takes right-hand sides to those of discrete time."""
    shift, eye = _shift(A), torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    inverse = torch.linalg.inv_ex(shift * eye - A).inverse
    return _powers(inverse @ (shift * eye + A)), (2 * shift).sqrt() * inverse


def _powers(M: Tensor) -> list[Tensor]:
    """Return A, A^2, A^4, ... until they vanish; fewer where they grow, which shows in the residual."""
    found = [M]
    for _ in range(MOST):
        M = M @ M
        size = torch.linalg.matrix_norm(M).nan_to_num(torch.inf, torch.inf)
        if bool(((size < torch.finfo(M.dtype).eps ** 2) | (size > 1 / torch.finfo(M.dtype).eps)).all()):
            break
        found.append(M)
    return found


def _shift(A: Tensor) -> Tensor:
    """Return (batch, 1, 1) shifts between the fastest and the slowest pole: the mean of both in logarithms."""
    inverse = torch.linalg.inv_ex(A).inverse
    sizes = [
        torch.linalg.matrix_norm(x).nan_to_num(1.0, 1.0).clamp_min(torch.finfo(A.dtype).tiny) for x in (A, inverse)
    ]
    return (sizes[0] / sizes[1]).sqrt()[:, None, None]
