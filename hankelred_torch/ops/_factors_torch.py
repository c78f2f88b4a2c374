"""The kernels of `hankelred.linalg.cauchy_adjoint` as operations on tensors, for devices that numba does not reach.

The systems of a batch advance together, one pivot each at a time; tables over all pairs of poles take the place of the
kernels' scalars. Arguments and results are those of `_factors`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hankelred.errors import StabilityError
from hankelred.linalg.cauchy import SMALLEST_SHARE
from hankelred.linalg.cauchy_factor import REFLECTION_NOISE


class PoleTensors(NamedTuple):
    """What the elimination reads about poles, (batch, n), and about pairs of rows i and pivots k, (batch, n, n)."""

    lam: Tensor
    gap: Tensor
    mirror: Tensor
    turn: Tensor
    difference: Tensor
    denominator: Tensor


def pole_tensors(poles: Tensor, discrete: bool, by_rates: bool) -> PoleTensors:
    """Return the tables of poles, all of which must be stable; as `hankelred.linalg.cauchy.pole_data`."""
    poles = poles.resolve_conj()
    lam = torch.exp(poles) if by_rates else poles
    difference = _differences_of_exponentials(lam, poles) if by_rates else lam[:, :, None] - lam[:, None, :]
    if discrete:
        gap = -torch.expm1(2 * poles.real) if by_rates else _one_minus_square(lam)
        distance = -expm1(poles) if by_rates else 1 - lam
        mirror = lam.conj().resolve_conj()
        turn = (distance.conj() / distance).resolve_conj()
    else:
        gap, mirror, turn = -2 * lam.real, torch.ones_like(lam), -torch.ones_like(lam)
    if not (gap > 0).all():
        limit = "|lam| < 1" if discrete else "Re lam < 0"
        raise StabilityError(
            f"All poles must be stable ({limit}); got a stability margin of {gap.min().item():.3g}. "
            f"Reduce the stable part, or pass the right dt."
        )
    return PoleTensors(lam, gap, mirror, turn, difference, gap[:, None, :] - difference * mirror[:, None, :])


def factor_torch(poles: PoleTensors, B: Tensor, linked: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return columns, pivots and reflections of the factors."""
    batch, n, m = B.shape
    G, size = B.clone(), _squares(B) / poles.gap
    left = torch.ones_like(linked)
    first_part = ~linked.all(dim=1)  # systems that still have other rows to begin with
    floor = SMALLEST_SHARE * torch.where(first_part[:, None], size * linked, size).sum(1)
    root, noise = torch.sqrt(poles.gap), (m * REFLECTION_NOISE) ** 2
    columns, pivots, w, beta = [], [], [], []
    for _ in range(n):
        spent = first_part & ~((size * (linked & left)).sum(1) > floor)
        floor = torch.where(spent, SMALLEST_SHARE * size.sum(1), floor)
        first_part = first_part & ~spent
        eligible = torch.where(first_part[:, None], size * linked, size)
        live = eligible.sum(1) > floor
        k = eligible.argmax(dim=1, keepdim=True)
        row = torch.gather(G, 1, k[:, :, None].expand(batch, 1, m))[:, 0]
        w_k, beta_k, q = _reflectors(row, live)
        G = G - beta_k[:, None, None] * (G @ w_k[:, :, None]) * w_k.conj()[:, None, :]
        g = torch.gather(G, 2, q[:, None, None].expand(batch, n, 1))[:, :, 0]
        difference, denominator = (_column(x, k) for x in (poles.difference, poles.denominator))
        quotient = g / denominator
        column = torch.gather(root, 1, k) * quotient * (left & live[:, None])
        reduced = torch.gather(poles.turn, 1, k) * difference * quotient
        G_new = G.scatter(2, q[:, None, None].expand(batch, n, 1), reduced[:, :, None])
        left = left.scatter(1, k, left.gather(1, k) & ~live[:, None])
        G_new = torch.where(left[:, :, None], G_new, 0)
        size_new = _squares(G_new) / poles.gap
        rounding = (difference == 0) & (size_new <= noise * size)
        G = torch.where(live[:, None, None], torch.where(rounding[:, :, None], 0, G_new), G)
        size = torch.where(live[:, None], torch.where(rounding, 0, size_new), size)
        columns.append(column)
        pivots.append(torch.where(live, k[:, 0], -1))
        w.append(w_k)
        beta.append(beta_k)
    return tuple(torch.stack(x, dim=1).resolve_conj() for x in (columns, pivots, w, beta))  # type: ignore[return-value]


def factor_adjoint_torch(
    poles: PoleTensors,
    columns: Tensor,
    pivots: Tensor,
    w: Tensor,
    beta: Tensor,
    F: Tensor,
    discrete: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients with respect to the poles and B."""
    live, k = pivots >= 0, pivots.clamp(min=0)
    M, Y = _isometric_pair(poles, live, k, w, beta)
    n = k.shape[1]
    denominator = torch.gather(poles.denominator, 2, k[:, None, :].expand(-1, n, -1)).conj().mT
    H = torch.zeros_like(F)  # rows are the columns of H
    past = torch.zeros_like(F)
    for j in range(n - 1, -1, -1):
        past[:, j] = (M[:, j + 1 :, j, None] * H[:, j + 1 :]).sum(1)
        H[:, j] = (F[:, j] + poles.mirror * past[:, j]) / denominator[:, j]
    H = torch.where(live[:, :, None], H, 0)
    ahead = past + H * torch.gather(poles.lam, 1, k)[:, :, None] if discrete else H
    g_poles = (ahead * columns.conj() * live[:, :, None]).sum(1)
    return g_poles.resolve_conj(), (H.mT @ Y).contiguous()


def _isometric_pair(poles: PoleTensors, live: Tensor, k: Tensor, w: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Return M (batch, n, n), below its diagonal, and Y (batch, n, m): ``Lam S = S M`` and ``B = S Y``."""
    batch, n, m = w.shape
    root, phase, mirror = (torch.gather(x, 1, k) for x in (poles.gap.sqrt(), poles.turn.conj(), poles.mirror))
    M, Y = w.new_zeros(batch, n, n), w.new_zeros(batch, n, m)
    moved = torch.nn.functional.one_hot(w.abs().argmax(dim=2), m).to(w.dtype)  # where the reflection moved the row
    root = root * live
    for j in range(n - 1, -1, -1):
        chosen = (Y * moved[:, j, None]).sum(2)
        M[:, :, j] = (root[:, j] * phase[:, j])[:, None] * chosen
        Y = Y + ((-mirror[:, j] * phase[:, j] - 1)[:, None] * chosen * live[:, j, None])[:, :, None] * moved[:, j, None]
        Y[:, j] = root[:, j, None] * moved[:, j]
        Y = Y - beta[:, j, None, None] * (Y @ w[:, j, :, None]) * w[:, j, None].conj()
    return M, Y


def _reflectors(row: Tensor, live: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return w, beta, q with ``x (I - beta w w^H)`` zero but for entry q, the largest; beta is 0 for one input."""
    modulus = row.abs()
    q = modulus.argmax(dim=1)
    if row.shape[1] == 1:
        return torch.zeros_like(row), modulus[:, 0] * 0, q
    largest = modulus.amax(1, keepdim=True)
    unit = row.conj() / torch.where(largest > 0, largest, 1)
    unit = unit / torch.where(largest > 0, torch.linalg.vector_norm(unit, dim=1, keepdim=True), 1)
    at_q = torch.gather(unit, 1, q[:, None])
    size = at_q.abs()
    phase = at_q / torch.where(size > 0, size, 1)
    w = torch.where(live[:, None], unit.scatter(1, q[:, None], at_q + phase), 0)
    return w, torch.where(live, 1 / (1 + size[:, 0]), 0), q


def _column(table: Tensor, k: Tensor) -> Tensor:
    """Return column k, another one in each system, of a table (batch, n, n)."""
    return torch.gather(table, 2, k[:, :, None].expand(-1, table.shape[1], 1))[:, :, 0]


def _squares(G: Tensor) -> Tensor:
    return (G.real.square() + G.imag.square() if G.is_complex() else G.square()).sum(-1)


def _one_minus_square(lam: Tensor) -> Tensor:
    """Return ``1 - |lam|^2``, squares and sum carried in twice the precision."""
    total, rest = torch.ones_like(lam.real), torch.zeros_like(lam.real)
    for part in (lam.real, lam.imag) if lam.is_complex() else (lam,):
        split = part * 134217729.0  # 2^27 + 1: two halves with exact products (Dekker)
        high = split - (split - part)
        low = part - high
        square = part * part
        rest = rest - (((high * high - square) + 2.0 * high * low) + low * low)
        new = total - square
        rest = rest + torch.where(total >= square, (total - new) - square, total - (new + square))
        total = new
    return total + rest


def expm1(z: Tensor) -> Tensor:
    """Return ``exp(z) - 1`` with the digits of both parts next to z = 0."""
    if not z.is_complex():
        return torch.expm1(z)
    decay, sine, cosine = torch.expm1(z.real), torch.sin(z.imag / 2), torch.cos(z.imag / 2)
    return torch.complex(decay - 2 * (decay + 1) * sine * sine, 2 * (decay + 1) * sine * cosine)


def _differences_of_exponentials(lam: Tensor, z: Tensor) -> Tensor:
    """Return ``exp(z_i) - exp(z_k)`` to full relative accuracy; lam are the exponentials."""
    a, b = z[:, :, None], z[:, None, :]
    larger = a.real > b.real  # the larger pole stays outside of expm1, which then cannot overflow
    if not z.is_complex():
        return torch.where(larger, -lam[:, :, None] * torch.expm1(b - a), lam[:, None, :] * torch.expm1(a - b))
    y = a.imag - b.imag
    part = y - a.imag
    lost = (a.imag - (y - part)) - (b.imag + part)  # rounding of y, which matters where y is near 2 pi
    sine, cosine = torch.sin(0.5 * y), torch.cos(0.5 * y)
    sine, cosine = sine + 0.5 * lost * cosine, cosine - 0.5 * lost * sine
    decay = torch.expm1(-(a.real - b.real).abs())
    real, imag = decay - 2.0 * (decay + 1.0) * sine * sine, 2.0 * (decay + 1.0) * sine * cosine
    ahead, behind = -lam[:, :, None] * torch.complex(real, -imag), lam[:, None, :] * torch.complex(real, imag)
    return torch.where(larger, ahead, behind)
