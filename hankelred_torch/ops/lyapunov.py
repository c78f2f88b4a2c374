"""Lyapunov equations of batches of matrices, differentiable."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hankelred as hr
from hankelred.checks import check_dt, is_discrete
from hankelred.errors import InputError

from ._backends import compiled_loops
from ._doubling import doubled
from ._operator import check_tensors, differentiable, operator
from ._systems import REAL


def solve_lyapunov(A: Tensor, Q: Tensor, *, dt: Any = 0) -> Tensor:
    """Solve ``A X + X A^H + Q = 0`` or, in discrete time, ``A X A^H - X + Q = 0`` for every matrix of a batch.

    On the CPU one equation after the other goes through `hankelred.solve_lyapunov`. On other devices, and under
    ``use_backend("torch")``, stable matrices are done side by side by doubling, in matrix products, with residuals of
    the size of rounding; those for which that does not come out go through the CPU. All in double precision.

    Parameters
    ----------
    A : (..., n, n) Tensor
        Matrices whose equation has one solution, such as stable ones.
    Q : (..., n, n) Tensor
        Right-hand sides; the leading axes are broadcast.
    dt : float or bool, default 0
        Sampling time in seconds; 0 is continuous, True is discrete without a stated time.

    Returns
    -------
    (..., n, n) Tensor
        Solutions, in the widest dtype of the arguments; differentiable, as often as needed, by the adjoint equation.

    Raises
    ------
    InputError
        If an argument is no floating point tensor, is not finite, or devices or shapes disagree.
    NumericalError
        If an equation is singular.

    See Also
    --------
    hankelred.solve_lyapunov : One equation, in NumPy.

    Examples
    --------
    >>> import torch
    >>> from hankelred_torch import ops
    >>> A = torch.tensor([[[-1.0]], [[-2.0]]], requires_grad=True)
    >>> X = ops.solve_lyapunov(A, torch.ones(1, 1))  # 1 / (2 a)
    >>> X.sum().backward()
    >>> X.flatten().tolist(), A.grad.flatten().tolist()
    ([0.5, 0.25], [0.5, 0.125])
    """
    discrete = is_discrete(check_dt(dt))
    check_tensors(A=A, Q=Q)
    n = A.shape[-1] if A.ndim else 0
    try:
        shape = torch.broadcast_shapes(A.shape[:-2], Q.shape[:-2])
    except RuntimeError:
        shape = None
    if shape is None or A.shape[-2:] != (n, n) or Q.shape[-2:] != (n, n):
        raise InputError(
            f"A and Q must be (..., n, n) with leading axes that broadcast; got {tuple(A.shape)} and {tuple(Q.shape)}."
        )
    dtype = torch.promote_types(A.dtype, Q.dtype)
    inner = torch.complex128 if dtype.is_complex else torch.float64
    A, Q = (x.to(inner).expand(*shape, n, n).reshape(math.prod(shape), n, n) for x in (A, Q))
    X: Tensor = _solve(A, Q, discrete)
    return X.to(dtype if X.is_complex() else REAL.get(dtype, dtype)).reshape(*shape, n, n)


@operator(
    "solve_lyapunov(Tensor A, Tensor Q, bool discrete) -> Tensor", lambda A, Q, _: Q.new_empty(Q.shape), constants=1
)
def _solutions(A: Tensor, Q: Tensor, discrete: bool) -> Tensor:
    A, Q = (x.detach().resolve_conj().resolve_neg() for x in (A, Q))
    if compiled_loops(A) or not A.numel():
        return _by_schur(A, Q, discrete)
    X, good = doubled(A, Q, discrete)
    if not bool(good.all()):
        X[~good] = _by_schur(A[~good], Q[~good], discrete)
    return X


def _by_schur(A: Tensor, Q: Tensor, discrete: bool) -> Tensor:
    pairs = zip(A.cpu().numpy(), Q.cpu().numpy(), strict=True)
    found = [hr.solve_lyapunov(a, q, dt=True if discrete else 0) for a, q in pairs]
    return torch.from_numpy(np.array(found)).to(Q).reshape(Q.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    A, _, ctx.discrete = inputs
    ctx.save_for_backward(A, output)


def _differentiate(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
    """Y solves the adjoint equation, with A^H in place of A; it is dQ, and dA is a product of X and Y."""
    A, X = ctx.saved_tensors
    Y = _solve(A.mH.contiguous(), g, ctx.discrete)
    g_A = Y @ A @ X.mH + Y.mH @ A @ X if ctx.discrete else Y @ X.mH + Y.mH @ X
    return g_A, Y, None


_solve = differentiable(_solutions, _save, _differentiate)
