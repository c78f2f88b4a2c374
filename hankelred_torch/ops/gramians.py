"""Gramian factors, Hankel singular values and balanced truncation of batches of diagonal systems, differentiable.

The twins of the functions of the same names in `hankelred`: the same structured factors, which never form a Gramian,
for any number of systems at a time and on any device. Everything inside is in double precision. Derivatives use the
bounded formulas of `_factors`: they stay finite where Hankel singular values vanish or repeat, and differentiate no
eigenvalue and no Cholesky factor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from hankelred._checks import check_dt, is_discrete
from hankelred.diagonal import NEARLY_REAL
from hankelred.errors import InputError, OrderError

from ._factors import diagonal_factor, pair_factor, singular_triples, singular_values
from ._factors_torch import expm1

Output = Literal["complex", "real"]

REAL = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}


class Batch(NamedTuple):
    """Checked systems in double precision, one batch axis: poles or rates (batch, n), B (batch, n, m), C (batch, p, n).

    `shape` holds the batch axes as they were given, `dtype` the common one.
    """

    poles: Tensor
    B: Tensor
    C: Tensor
    discrete: bool
    by_rates: bool
    shape: torch.Size
    dtype: torch.dtype


def gramian_factors(
    lam: Tensor | None,
    B: Tensor,
    C: Tensor,
    *,
    dt: Any,
    output: Output = "complex",
    rates: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute factors of both Gramians of every system.

    In continuous time ``A P + P A^H + B B^H = 0`` and ``A^H Q + Q A + C^H C = 0``; in discrete time
    ``A P A^H - P + B B^H = 0`` and ``A^H Q A - Q + C^H C = 0``; A is the diagonal matrix of `lam`.

    Parameters
    ----------
    lam : (..., n) Tensor
        Poles of each system, strictly stable.
    B : (..., n, m) Tensor
        Input matrices.
    C : (..., p, n) Tensor
        Output matrices. The leading axes, which count the systems, are broadcast.
    dt : float or bool
        Sampling time in seconds; 0 is continuous, True is discrete without a stated time.
    output : {"complex", "real"}, default "complex"
        Whether the outputs are ``C x`` or their real parts.
    rates : (..., n) Tensor, optional
        Logarithms of discrete poles, ``lam = exp(rates)``. Where they are given they are the data, so that poles
        within 1e-13 of the unit circle keep their digits, and `lam` is not read; pass None for it.

    Returns
    -------
    S : (..., n, k) Tensor
        ``P = S S^H``. With real output, real and in the 2n real coordinates of
        ``hankelred.DiagonalSystem.to_state_space``.
    R : (..., k, n) Tensor
        ``Q = R^H R``.

    Raises
    ------
    InputError
        If shapes disagree, an argument is no floating point tensor, or an entry is not finite.
    StabilityError
        If a pole is not strictly stable.

    See Also
    --------
    hankelred.gramian_factors : One system, in NumPy.

    Notes
    -----
    A factor is determined up to a unitary matrix, and its derivative holds for functions that do not depend on that
    one: functions of P and of Q, or of ``R S`` through its singular values.

    Examples
    --------
    >>> import torch
    >>> from hankelred_torch import ops
    >>> lam = -torch.arange(1.0, 5.0, dtype=torch.float64)
    >>> B = torch.ones(4, 1, dtype=torch.float64)
    >>> S, R = ops.gramian_factors(lam, B, B.T, dt=0)
    >>> bool(torch.dist(S @ S.T, -1 / (lam[:, None] + lam)) < 1e-15)
    True
    """
    systems = _check(lam, B, C, dt, output, rates)
    S, R = _real_factors(systems) if output == "real" else _factors(systems)
    return _as_given(S, systems), _as_given(R, systems)


def hankel_singular_values(
    lam: Tensor | None,
    B: Tensor,
    C: Tensor,
    *,
    dt: Any,
    output: Output = "complex",
    rates: Tensor | None = None,
) -> Tensor:
    """Compute all Hankel singular values of every system.

    Parameters
    ----------
    lam, B, C, dt, output, rates
        As for `gramian_factors`.

    Returns
    -------
    (..., n) Tensor
        Decreasing along the last axis, in units of y per unit of u; 2n values for real output.

    Raises
    ------
    InputError, StabilityError
        As `gramian_factors` does.

    See Also
    --------
    hankelred.batched_hankel_singular_values : The same in NumPy, faster where no gradient is needed.

    Notes
    -----
    Every value is right to full relative accuracy, provided that the inputs of each system, and its outputs, are
    linearly independent over its states. Functions that treat equal values alike, such as sums of powers, have the
    gradient given also where values repeat; at zero it is one of the subgradients.

    Examples
    --------
    >>> import torch
    >>> from hankelred_torch import ops
    >>> lam = torch.tensor([[0.9], [0.5]], requires_grad=True)  # two systems with one state each
    >>> one = torch.ones(1, 1)
    >>> hsv = ops.hankel_singular_values(lam, one, one, dt=True)  # 1 / (1 - lam^2)
    >>> hsv.sum().backward()
    >>> [round(x, 3) for x in hsv.flatten().tolist()], [round(x, 2) for x in lam.grad.flatten().tolist()]
    ([5.263, 1.333], [49.86, 1.78])
    """
    systems = _check(lam, B, C, dt, output, rates)
    values = _real_values(systems) if output == "real" else singular_values(_product(*_factors(systems)))
    return _as_given(values, systems)


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
    lam, B, C, dt, output, rates
        As for `gramian_factors`.
    order : int
        Hankel singular values to keep, from 0 to the numerical rank of every system.

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
    systems = _check(lam, B, C, dt, output, rates)
    S, R = _real_factors(systems) if output == "real" else _factors(systems)
    n = systems.poles.shape[1] * (2 if output == "real" else 1)
    if isinstance(order, bool) or not isinstance(order, int) or not 0 <= order <= n:
        raise OrderError(f"order must be an integer from 0 to {n}, the order of the systems; got {order!r}.")
    U, values, Vh = singular_triples(R @ S, order)
    values = values[:, :n]
    root = values[:, None, :order].sqrt()
    T, Ti = S @ (Vh[:, :order].mH / root), (U[:, :, :order] / root).mH @ R
    times_A, B_full, C_full, shift = _matrices(systems, output)
    A = Ti @ times_A(T) + shift * torch.eye(order, dtype=T.dtype, device=T.device)
    reduced = (A, Ti @ B_full, C_full @ T, T, Ti, values, 2 * values[:, order:].sum(1))
    return BalancedTruncation(*(_as_given(x, systems) for x in reduced))


def _check(lam: Tensor | None, B: Tensor, C: Tensor, dt: Any, output: str, rates: Tensor | None) -> Batch:
    """Return the arguments in double precision and with one batch axis, the leading axes broadcast."""
    dt = check_dt(dt)
    name, poles = ("lam", lam) if rates is None else ("rates", rates)
    for argument, x, axes in ((name, poles, 1), ("B", B, 2), ("C", C, 2)):
        if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()) or x.ndim < axes:
            got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(
                f"{argument} must be a real or complex floating point tensor with {axes} or more axes; got {got}. "
                f"Shapes: {name} (..., n), B (..., n, m), C (..., p, n)."
            )
    assert poles is not None
    if output not in ("complex", "real"):
        raise InputError(f'output must be "complex" or "real"; got {output!r}.')
    if rates is not None and not is_discrete(dt):
        raise InputError("rates are for discrete systems, lam = exp(rates); got dt=0. Pass the poles as lam.")
    n = poles.shape[-1]
    try:
        shape = torch.broadcast_shapes(poles.shape[:-1], B.shape[:-2], C.shape[:-2])
    except RuntimeError:
        shape = None
    if shape is None or B.shape[-2] != n or C.shape[-1] != n:
        raise InputError(
            f"{name}, B, C must be (..., n), (..., n, m), (..., p, n) with leading axes that broadcast; got "
            f"{tuple(poles.shape)}, {tuple(B.shape)}, {tuple(C.shape)}."
        )
    dtype = torch.promote_types(torch.promote_types(poles.dtype, B.dtype), C.dtype)
    inner = torch.complex128 if dtype.is_complex else torch.float64
    poles, B, C = (x.to(inner) for x in (poles, B, C))
    poles = poles.expand(*shape, n).reshape(-1, n)
    B = B.expand(*shape, *B.shape[-2:]).reshape(-1, *B.shape[-2:])
    C = C.expand(*shape, *C.shape[-2:]).reshape(-1, *C.shape[-2:])
    return Batch(poles, B, C, is_discrete(dt), rates is not None, shape, dtype)


def _as_given(x: Tensor, systems: Batch) -> Tensor:
    """Return a result with the leading axes and the precision of the arguments."""
    dtype = systems.dtype
    if not x.is_complex() and dtype.is_complex:
        dtype = REAL[dtype]
    return x.to(dtype).reshape((*systems.shape, *x.shape[1:]))


def _doubled(systems: Batch) -> Batch:
    """Return the systems of ``[x, conj x]``, whose outputs are ``Re(C x)``."""
    poles = torch.cat([systems.poles, systems.poles.conj()], dim=1)
    B = torch.cat([systems.B, systems.B.conj()], dim=1)
    C = torch.cat([systems.C, systems.C.conj()], dim=2) / 2
    return systems._replace(poles=poles, B=B, C=C)


def _factors(systems: Batch) -> tuple[Tensor, Tensor]:
    """Return S and R (batch, n, n) of systems with complex output."""
    if _is_empty(systems):
        nothing = systems.B.sum() * 0 + systems.C.sum() * 0  # in the graph all the same
        S = nothing.expand(*systems.poles.shape, systems.poles.shape[1])
        return S, S
    weight, B, C, linked = _scaled(systems)
    kind = (linked, systems.discrete, systems.by_rates)
    S = diagonal_factor(systems.poles, _fewer_inputs(B), *kind)
    R = diagonal_factor(systems.poles.conj(), _fewer_inputs(C.mH), *kind)
    return S * weight[0], R.mH * weight[1]


def _pair_factors(systems: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return real S and R (batch, 2n, 2n) of systems with real output, and which of them have nearly real poles.

    Those have lost digits, and all others keep them.
    """
    weight, B, C, linked = _scaled(systems)
    kind = (linked, systems.discrete, systems.by_rates)
    S, distance = pair_factor(systems.poles, _fewer_real_inputs(B), *kind)
    R, other = pair_factor(systems.poles.conj(), _fewer_real_inputs(C.mH), *kind)
    S, R = 2**0.5 * S * weight[0], 0.5**0.5 * R.mH * weight[1]
    close = torch.minimum(distance, other) < NEARLY_REAL
    return torch.cat([S.real, S.imag], dim=1), torch.cat([R.real, -R.imag], dim=2), close


def _real_values(systems: Batch) -> Tensor:
    """Return the Hankel singular values (batch, 2n) of systems with real output."""
    if not systems.B.is_complex():  # the imaginary parts of all states are zero
        return pad(singular_values(_product(*_factors(systems))), (0, systems.poles.shape[1]))
    if not _pairs_serve(systems):
        return singular_values(_product(*_factors(_doubled(systems))))
    S, R, close = _pair_factors(systems)
    values = singular_values(_product(S, R))
    if not close.any():
        return values
    where = close.nonzero()[:, 0]
    few = systems._replace(poles=systems.poles[where], B=systems.B[where], C=systems.C[where])
    return values.index_copy(0, where, singular_values(_product(*_factors(_doubled(few)))))


def _real_factors(systems: Batch) -> tuple[Tensor, Tensor]:
    """Return real factors in the real coordinates ``sqrt(2) [Re x, Im x]`` of systems with real output."""
    n = systems.poles.shape[1]
    if not systems.B.is_complex():
        S, R = _factors(systems)
        return torch.cat([2**0.5 * S, 0 * S], dim=1), torch.cat([0.5**0.5 * R, 0 * R], dim=2)
    if _pairs_serve(systems):
        S, R, close = _pair_factors(systems)
        if not close.any():
            return S, R
    S, R = _factors(_doubled(systems))
    S = 0.5**0.5 * torch.cat([S[:, :n] + S[:, n:], -1j * (S[:, :n] - S[:, n:])], dim=1)
    R = 0.5**0.5 * torch.cat([R[:, :, :n] + R[:, :, n:], 1j * (R[:, :, :n] - R[:, :, n:])], dim=2)
    # S S^H is real, so it is also Re S (Re S)^T + Im S (Im S)^T: twice the columns, and no digit lost
    return torch.view_as_real(S.resolve_conj()).flatten(2), torch.view_as_real(R.mT.resolve_conj()).flatten(2).mT


def _pairs_serve(systems: Batch) -> bool:
    """Tell whether systems with real output can be taken in pairs of poles, which halves the size of everything."""
    transformed = torch._C._functorch.maybe_current_level() is not None
    return systems.B.is_cpu and not (_is_empty(systems) or transformed or torch.compiler.is_compiling())


def _scaled(systems: Batch) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor, Tensor]:
    """Return weights of the rows of S and the columns of R, B and C over those, and the states that link them.

    The states are scaled so that ``P_ii = Q_ii``, which puts the pivots of both factors into one order. States that
    link no input to an output have no scale of their own and come after all others, so that ``R S`` has zeros where
    they would disturb; their derivatives are as good as any.
    """
    with torch.no_grad():
        drive, sight = _row_norms(systems.B), _row_norms(systems.C.mT)
        linked = (drive > 0) & (sight > 0)
        ratio = torch.where(linked, drive, 1).log2() - torch.where(linked, sight, 1).log2()
        balance = torch.exp2(torch.round(0.5 * ratio))  # powers of two: scaling is exact
        drive, sight = drive / balance, sight * balance
        S_weight = balance * _power_of_two(drive.amax(1, keepdim=True))
        R_weight = _power_of_two(sight.amax(1, keepdim=True)) / balance
    weights = S_weight[:, :, None], R_weight[:, None, :]
    return weights, systems.B / weights[0], systems.C / weights[1], linked


def _is_empty(systems: Batch) -> bool:
    return 0 in systems.B.shape or 0 in systems.C.shape


def _product(S: Tensor, R: Tensor) -> Tensor:
    return R @ S


def _row_norms(B: Tensor) -> Tensor:
    """Return the length of each row (batch, n) without overflow or underflow of its square."""
    largest = B.abs().amax(dim=2)
    scale = torch.where(largest > 0, largest, 1)
    return largest * torch.linalg.vector_norm(B / scale[:, :, None], dim=2)


def _power_of_two(x: Tensor) -> Tensor:
    return torch.exp2(torch.round(torch.log2(torch.where(x > 0, x, 1))))


def _fewer_inputs(B: Tensor) -> Tensor:
    """Return ``B Q``, Q with orthonormal columns, with no more inputs than states: the same Gramian.

    Q spans the rows of B, so that its own derivative does not count.
    """
    if B.shape[2] <= B.shape[1]:
        return B
    return B @ torch.linalg.qr(B.detach().mH)[0]


def _fewer_real_inputs(B: Tensor) -> Tensor:
    """Do the same with a real Q, for the rows of B and their conjugates."""
    if B.shape[2] <= 2 * B.shape[1]:
        return B
    rows = torch.cat([B.detach().real, B.detach().imag], dim=1)
    return B @ torch.linalg.qr(rows.mT)[0].to(B.dtype)


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
