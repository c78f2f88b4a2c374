"""Checks of batches of diagonal systems, and their Gramian factors: what the public functions here share."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hankelred.checks import check_choice, check_dt, is_discrete
from hankelred.errors import InputError
from hankelred.linalg.cauchy import NEARLY_REAL

from ._backends import compiled_loops
from ._factors import diagonal_factor, pair_factor
from ._operator import check_tensors

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


def check(lam: Tensor | None, B: Tensor, C: Tensor, dt: Any, output: str, rates: Tensor | None) -> Batch:
    """Return the arguments in double precision and with one batch axis, the leading axes broadcast."""
    dt = check_dt(dt)
    name, poles = ("lam", lam) if rates is None else ("rates", rates)
    if poles is None:
        raise InputError("lam must hold the poles, or rates their logarithms; got neither.")
    check_tensors(**{name: poles, "B": B, "C": C})
    for argument, x, axes in ((name, poles, 1), ("B", B, 2), ("C", C, 2)):
        if x.ndim < axes:
            raise InputError(
                f"{argument} must have {axes} or more axes; got shape {tuple(x.shape)}. "
                f"Shapes: {name} (..., n), B (..., n, m), C (..., p, n)."
            )
    check_choice(output, "output", ("complex", "real"))
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
    count = math.prod(shape)
    poles = poles.expand(*shape, n).reshape(count, n)
    B = B.expand(*shape, *B.shape[-2:]).reshape(count, *B.shape[-2:])
    C = C.expand(*shape, *C.shape[-2:]).reshape(count, *C.shape[-2:])
    return Batch(poles, B, C, is_discrete(dt), rates is not None, shape, dtype)


def as_given(x: Tensor, systems: Batch) -> Tensor:
    """Return a result with the leading axes and the precision of the arguments."""
    dtype = systems.dtype
    if not x.is_complex() and dtype.is_complex:
        dtype = REAL[dtype]
    return x.to(dtype).reshape((*systems.shape, *x.shape[1:]))


def doubled(systems: Batch) -> Batch:
    """Return the systems of ``[x, conj x]``, whose outputs are ``Re(C x)``."""
    poles = torch.cat([systems.poles, systems.poles.conj()], dim=1)
    B = torch.cat([systems.B, systems.B.conj()], dim=1)
    C = torch.cat([systems.C, systems.C.conj()], dim=2) / 2
    return systems._replace(poles=poles, B=B, C=C)


def factors(systems: Batch) -> tuple[Tensor, Tensor]:
    """Return S and R (batch, n, n) of systems with complex output."""
    if _is_empty(systems):
        poles, B, C = systems[:3]
        nothing = (poles.sum() + B.sum() + C.sum()) * 0  # in the graph all the same
        S = nothing.expand(*systems.poles.shape, systems.poles.shape[1])
        return S, S
    weight, B, C, linked = _scaled(systems)
    kind = (linked, systems.discrete, systems.by_rates)
    poles, B, C = systems.poles, _fewer_inputs(B), _fewer_inputs(C.mH)
    if B.shape == C.shape and not compiled_loops(B):  # half as many operations, which take longer to start than to run
        joined = torch.cat([poles, poles.conj()]), torch.cat([B, C]), torch.cat([linked, linked])
        S, R = diagonal_factor(*joined, *kind[1:]).chunk(2)
    else:
        S, R = diagonal_factor(poles, B, *kind), diagonal_factor(poles.conj(), C, *kind)
    return S * weight[0], R.mH * weight[1]


def pair_factors(systems: Batch) -> tuple[Tensor, Tensor, Tensor]:
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


def real_factors(systems: Batch) -> tuple[Tensor, Tensor]:
    """Return real factors in the real coordinates ``sqrt(2) [Re x, Im x]`` of systems with real output."""
    n = systems.poles.shape[1]
    if not systems.B.is_complex():
        S, R = factors(systems)
        return torch.cat([2**0.5 * S, 0 * S], dim=1), torch.cat([0.5**0.5 * R, 0 * R], dim=2)
    if pairs_serve(systems):
        S, R, close = pair_factors(systems)
        if not close.any():
            return S, R
    S, R = factors(doubled(systems))
    S = 0.5**0.5 * torch.cat([S[:, :n] + S[:, n:], -1j * (S[:, :n] - S[:, n:])], dim=1)
    R = 0.5**0.5 * torch.cat([R[:, :, :n] + R[:, :, n:], 1j * (R[:, :, :n] - R[:, :, n:])], dim=2)
    # S S^H is real, so it is also Re S (Re S)^T + Im S (Im S)^T: twice the columns, and no digit lost
    return torch.view_as_real(S.resolve_conj()).flatten(2), torch.view_as_real(R.mT.resolve_conj()).flatten(2).mT


def pairs_serve(systems: Batch) -> bool:
    """Tell whether systems with real output can be taken in pairs of poles, which halves the size of everything."""
    transformed = torch._C._functorch.maybe_current_level() is not None
    return compiled_loops(systems.B) and not (_is_empty(systems) or transformed or torch.compiler.is_compiling())


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
