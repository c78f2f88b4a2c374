"""Balanced truncation of batches of diagonal systems to one order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from hankelred.errors import OrderError

from ._factors import singular_triples
from ._factors_torch import expm1
from ._systems import Batch, Output, as_given, check, factors, real_factors


class BalancedTruncation(NamedTuple):
    """Reduced systems of one order, leading axes as of the systems they were made from.

    Attributes
    ----------
    A : (..., order, order) Tensor
        Reduced state matrices, full.
    B : (..., order, m) Tensor
        Reduced input matrices.
    C : (..., p, order) Tensor
        Reduced output matrices. The feedthrough is that of the full system.
    T, Ti : (..., n, order) and (..., order, n) Tensor
        Bases with ``Ti T = I``, in the coordinates of `gramian_factors`.
    hsv : (..., n) Tensor
        All Hankel singular values of the full systems; 2n values for real output.
    error_bound : (...) Tensor
        Bound on the H-infinity norm of the error: twice the sum of the values after the first `order`.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> lam = -torch.arange(1.0, 5.0, dtype=torch.double)
    >>> small = ht.ops.balanced_truncation(lam, torch.ones(4, 1), torch.ones(1, 4), dt=0, order=2)
    >>> small.A.shape, small.hsv.shape
    (torch.Size([2, 2]), torch.Size([4]))
    """

    A: Tensor
    B: Tensor
    C: Tensor
    T: Tensor
    Ti: Tensor
    hsv: Tensor
    error_bound: Tensor


def balanced_truncation(
    lam: Tensor | None,
    B: Tensor,
    C: Tensor,
    *,
    dt: Any,
    order: int,
    output: Output = "complex",
    rates: Tensor | None = None,
) -> BalancedTruncation:
    """Reduce every system to one order by balanced truncation.

    The reduced state matrices are full. `hankelred.balanced_truncation` reduces one system, keeps it diagonal, and
    knows other criteria than the order.

    Parameters
    ----------
    lam, B, C, dt
        As for `gramian_factors`.
    order : int
        Hankel singular values to keep, from 0 to the numerical rank of every system.
    output, rates
        As for `gramian_factors`.

    Returns
    -------
    BalancedTruncation
        Named tuple ``(A, B, C, T, Ti, hsv, error_bound)`` with ``A = Ti diag(lam) T``, and so on [1]_; for real output,
        all real.

    Raises
    ------
    OrderError
        If `order` is out of range for one of the systems.
    InputError, StabilityError
        As `gramian_factors` does.

    See Also
    --------
    hankelred.balanced_truncation : One system, which stays diagonal.

    Notes
    -----
    What does not depend on the signs or phases of the balanced states has a derivative where the Hankel singular
    values up to the cut differ from each other and from the first that is dropped.

    References
    ----------
    .. [1] M. S. Tombs, I. Postlethwaite, "Truncated balanced realization of a stable non-minimal state-space
       system", Int. J. Control 46, 1987, pp. 1319-1330.

    Examples
    --------
    >>> import torch
    >>> from hankelred_torch import ops
    >>> rates = torch.rand(100, 8, dtype=torch.float64) + 0.1
    >>> B = torch.ones(8, 1, dtype=torch.float64)
    >>> reduced = ops.balanced_truncation(-rates, B, B.T, dt=0, order=2)
    >>> reduced.A.shape, bool((reduced.error_bound < 0.05 * reduced.hsv[:, 0]).all())
    (torch.Size([100, 2, 2]), True)
    """
    systems = check(lam, B, C, dt, output, rates)
    S, R = real_factors(systems) if output == "real" else factors(systems)
    n = systems.poles.shape[1] * (2 if output == "real" else 1)
    if isinstance(order, bool) or not isinstance(order, int) or not 0 <= order <= n:
        raise OrderError(f"order must be an integer from 0 to {n}, the order of the systems; got {order!r}.")
    U, values, Vh = singular_triples(R @ S, order)
    values = pad(values, (0, n - values.shape[1]))  # a negative number drops zeros
    root = values[:, None, :order].sqrt()
    T, Ti = S @ (Vh[:, :order].mH / root), (U[:, :, :order] / root).mH @ R
    times_A, B_full, C_full, shift = _matrices(systems, output)
    A = Ti @ times_A(T) + shift * torch.eye(order, dtype=T.dtype, device=T.device)
    reduced = (A, Ti @ B_full, C_full @ T, T, Ti, values, 2 * values[:, order:].sum(1))
    return BalancedTruncation(*(as_given(x, systems) for x in reduced))


def _matrices(systems: Batch, output: Output) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor, float]:
    """Return A as a product, B, C in the coordinates of the factors, and the multiple of I that A lacks.

    With rates that is 1: slow poles keep their digits in ``A - I`` only.
    """
    poles, B, C = systems.poles, systems.B, systems.C
    poles = (expm1(poles) if systems.by_rates else poles)[:, :, None]
    shift = 1.0 if systems.by_rates else 0.0
    if output == "complex":
        return lambda X: poles * X, B, C, shift
    if not poles.is_complex():
        zeros_B, zeros_C = 0 * B, 0 * C
        B, C = 2**0.5 * torch.cat([B, zeros_B], dim=1), 0.5**0.5 * torch.cat([C, zeros_C], dim=2)
        return lambda X: torch.cat([poles, poles], dim=1) * X, B, C, shift
    re, im = poles.real, poles.imag

    def rotate(X: Tensor) -> Tensor:
        upper, lower = X.chunk(2, dim=1)
        return torch.cat([re * upper - im * lower, im * upper + re * lower], dim=1)

    B, C = 2**0.5 * torch.cat([B.real, B.imag], dim=1), 0.5**0.5 * torch.cat([C.real, -C.imag], dim=2)
    return rotate, B, C, shift
