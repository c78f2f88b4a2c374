"""Hankel singular values of batches of small dense systems, differentiable."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.linalg as sla
import torch
from torch import Tensor

from hankelred import StateSpace, gramian_factors, hankel_singular_values, solve_lyapunov
from hankelred.checks import EPS, Array, check_dt, is_discrete
from hankelred.errors import InputError

from ._factors import once, operation, register_vmap
from ._systems import REAL

# The derivative of a value is a product of matrices over that value: half of the digits are left here.
SMALLEST = EPS**0.5


def dense_hankel_singular_values(A: Tensor, B: Tensor, C: Tensor, *, dt: Any) -> Tensor:
    """Compute all Hankel singular values of every system of a batch with full matrices A.

    One system after the other goes through the solver of `hankelred.hankel_singular_values`, on the CPU: for a few
    dozen systems of a few dozen states. Systems with diagonal A have `hankel_singular_values`.

    Parameters
    ----------
    A : (..., n, n) Tensor
        State matrices, strictly stable.
    B : (..., n, m) Tensor
        Input matrices.
    C : (..., p, n) Tensor
        Output matrices. The leading axes, which count the systems, are broadcast.
    dt : float or bool
        Sampling time in seconds; 0 is continuous, True is discrete without a stated time.

    Returns
    -------
    (..., n) Tensor
        Decreasing along the last axis, in units of y per unit of u.

    Raises
    ------
    InputError
        If shapes disagree, an argument is no floating point tensor, or an entry is not finite.
    StabilityError
        If a pole lies on or beyond the stability boundary.

    Notes
    -----
    Values are right to about ``n eps`` of the largest. The gradient is finite at repeated values and at zero; values
    below 1.5e-8 of the largest are given the derivative 0, because theirs has lost too many digits.

    Examples
    --------
    >>> import torch
    >>> from hankelred_torch import ops
    >>> A = torch.tensor([[[-1.0, 0.5], [0.0, -3.0]]], requires_grad=True)
    >>> hsv = ops.dense_hankel_singular_values(A, torch.ones(2, 1), torch.tensor([[1.0, 0.0]]), dt=0)
    >>> hsv.sum().backward()
    >>> hsv.shape, bool(torch.isfinite(A.grad).all())
    (torch.Size([1, 2]), True)
    """
    discrete = is_discrete(check_dt(dt))
    for name, x in (("A", A), ("B", B), ("C", C)):
        if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()) or x.ndim < 2:
            got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"{name} must be a floating point tensor with two or more axes; got {got}.")
    n, m, p = A.shape[-1], B.shape[-1], C.shape[-2]
    try:
        shape = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2], C.shape[:-2])
    except RuntimeError:
        shape = None
    if shape is None or A.shape[-2] != n or B.shape[-2] != n or C.shape[-1] != n:
        raise InputError(
            f"A, B, C must be (..., n, n), (..., n, m), (..., p, n) with leading axes that broadcast; got "
            f"{tuple(A.shape)}, {tuple(B.shape)}, {tuple(C.shape)}."
        )
    dtype = torch.promote_types(torch.promote_types(A.dtype, B.dtype), C.dtype)
    inner = torch.complex128 if dtype.is_complex else torch.float64
    count, sizes = math.prod(shape), ((n, n), (n, m), (p, n))
    A, B, C = (x.to(inner).expand(*shape, *s).reshape(count, *s) for x, s in zip((A, B, C), sizes, strict=True))
    hsv: Tensor = operation(_DenseValues, _dense_values)(A, B, C, discrete)
    return hsv.to(REAL.get(dtype, dtype)).reshape(*shape, n)


@torch.library.custom_op(
    "hankelred::dense_values", mutates_args=(), schema="(Tensor A, Tensor B, Tensor C, bool discrete) -> Tensor"
)
def _dense_values(A: Tensor, B: Tensor, C: Tensor, discrete: bool) -> Tensor:
    n = A.shape[1]
    found = [hankel_singular_values(G) for G in _systems(A, B, C, discrete)]
    return torch.from_numpy(np.array(found).reshape(len(A), n)).to(A.device)


@_dense_values.register_fake
def _(A: Tensor, B: Tensor, C: Tensor, discrete: bool) -> Tensor:
    return A.new_empty(*A.shape[:2], dtype=torch.float64)


@torch.library.custom_op(
    "hankelred::dense_values_backward",
    mutates_args=(),
    schema="(Tensor g, Tensor A, Tensor B, Tensor C, bool discrete) -> (Tensor, Tensor, Tensor)",
)
def _dense_backward(g: Tensor, A: Tensor, B: Tensor, C: Tensor, discrete: bool) -> tuple[Tensor, Tensor, Tensor]:
    systems = zip(g.cpu().numpy(), _systems(A, B, C, discrete), strict=True)
    gradients = [torch.from_numpy(np.array(x)) for x in zip(*(_gradient(*x) for x in systems), strict=True)]
    if not gradients:
        gradients = [x.new_empty(x.shape) for x in (A, B, C)]
    return gradients[0].to(A), gradients[1].to(B), gradients[2].to(C)


@_dense_backward.register_fake
def _(g: Tensor, A: Tensor, B: Tensor, C: Tensor, discrete: bool) -> tuple[Tensor, Tensor, Tensor]:
    return A.new_empty(A.shape), B.new_empty(B.shape), C.new_empty(C.shape)


class _DenseValues(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor, B: Tensor, C: Tensor, discrete: bool) -> Tensor:
        found: Tensor = _dense_values(A, B, C, discrete)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *matrices, ctx.discrete = inputs
        ctx.save_for_backward(*matrices)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return *once(_dense_backward, g, *ctx.saved_tensors, ctx.discrete), None


_dense_values.register_autograd(_DenseValues.backward, setup_context=_DenseValues.setup_context)


register_vmap(_dense_values, 1)
register_vmap(_dense_backward, 1)


def _systems(A: Tensor, B: Tensor, C: Tensor, discrete: bool) -> list[StateSpace]:
    """Return the systems of a batch; the sampling time does not count for Hankel singular values."""
    arrays = (x.detach().resolve_conj().cpu().numpy() for x in (A, B, C))
    return [StateSpace(a, b, c, dt=True if discrete else 0) for a, b, c in zip(*arrays, strict=True)]


def _gradient(g: Array, G: StateSpace) -> tuple[Array, Array, Array]:
    """Return the gradients of ``sum(g hsv)`` with respect to A, B and C.

    With ``R S = U diag(hsv) V^H`` those with respect to the Gramians are ``R^H U diag(g / (2 hsv)) U^H R`` and
    ``S V diag(g / (2 hsv)) V^H S^H``; the solutions X and Y of the adjoint Lyapunov equations carry them on.
    """
    A, B, C, dt = G.A, G.B, G.C, G.dt
    S, R = gramian_factors(G)
    U, hsv, Vh = sla.svd(R @ S, full_matrices=False)
    kept = hsv > SMALLEST * hsv.max(initial=0.0)
    weight = 0.5 * g[: len(hsv)][kept] / hsv[kept]
    left, right = R.conj().T @ U[:, kept], S @ Vh[kept].conj().T
    X = solve_lyapunov(A.conj().T, (left * weight) @ left.conj().T, dt=dt)
    Y = solve_lyapunov(A, (right * weight) @ right.conj().T, dt=dt)
    P, Q = S @ S.conj().T, R.conj().T @ R
    g_A = X @ A @ P + Q @ A @ Y if dt else X @ P + Q @ Y
    return 2 * g_A, 2 * X @ B, 2 * C @ Y
