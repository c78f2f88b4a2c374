"""The recurrence ``x_t = a_t x_{t-1} + b_t`` and its adjoint on any device: scans out of large torch operations.

Names and shapes are those of `_linear_kernels`, and of `_scan` for planar arrays. All arguments are trusted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad


def segmented_scan(a: Tensor, b: Tensor, before: Tensor | None = None, reset: Tensor | None = None) -> Tensor:
    """Return the states, on any device, by some ``2 sqrt(steps)`` operations on large tensors.

    The time axis is cut into segments of about sqrt(steps) steps. All segments run side by side from rest; then one
    after the other adds what the end of its predecessor contributes, by products of factors in the precision of a.
    """
    rows, steps, n = b.shape
    length = max(1, math.isqrt(steps))
    segments = -(-steps // length)
    missing = segments * length - steps
    x = pad(b, (0, 0, 0, missing)).view(rows, segments, length, n)
    x = x.clone() if missing == 0 else x  # padding by nothing copies nothing
    if a.shape[1] == 1:
        factors = a[:, :, None]
        products = factors ** torch.arange(1, length + 1, device=a.device)[:, None]
    else:
        factors = pad(a, (0, 0, 0, missing)).view(len(a), segments, length, n)
        products = factors.cumprod(2)
    factors = factors.to(x.dtype).expand(-1, segments, length, -1)
    products = products.to(x.dtype).expand(-1, segments, -1, -1)
    forgets = forgotten = None
    if reset is not None:
        forgets = pad(reset, (0, missing)).view(rows, segments, length, 1)
        forgotten = forgets.cumsum(2) > 0
    for t in range(1, length):
        _add(x[:, :, t], factors[:, :, t], x[:, :, t - 1], None if forgets is None else forgets[:, :, t])
    for s in range(segments):
        end = x[:, s - 1, -1:] if s else None if before is None else before[:, None].to(x.dtype)
        if end is not None:
            _add(x[:, s], products[:, s], end, None if forgotten is None else forgotten[:, s])
    return x.view(rows, segments * length, n)[:, :steps]


def _add(x: Tensor, factor: Tensor, before: Tensor, forget: Tensor | None) -> None:
    """Add ``factor before`` to x, but for what is forgotten, be it infinite or NaN."""
    if forget is None:
        x.addcmul_(factor, before)
    else:
        x.add_((factor * before).masked_fill_(forget, 0))


def segmented_scan_adjoint(
    a: Tensor, x: Tensor, before: Tensor, gx: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a, b and the state before, on any device, time running forwards."""
    conj_a = a.conj_physical()  # not conj: lazy conjugation gives wrong numbers in an operator under torch.compile
    factors = conj_a if a.shape[1] == 1 else conj_a.flip(1).roll(1, 1)  # in reversed time, those of the step before
    forgets = None if reset is None else reset.flip(1).roll(1, 1)
    gb = segmented_scan(factors, gx.flip(1), None, forgets).flip(1)
    seen = gb if reset is None else gb.masked_fill(reset[..., None], 0)
    past = torch.cat([before[:, None].to(x.dtype), x[:, :-1]], 1)
    ga = (past.conj_physical() * seen).sum_to_size(len(a), a.shape[1], a.shape[2])
    return ga, gb, (conj_a[:, :1].to(x.dtype) * seen[:, :1]).sum(1)  # a sum of one step, or of none


def planar_scan(lam: Tensor, v: Tensor) -> Tensor:
    """Return the states from rest that `_scan.scan` makes of planar inputs."""
    n = lam.shape[1]
    x = segmented_scan(torch.complex(lam[0], lam[1])[None, None], torch.complex(v[..., :n], v[..., n:]))
    return torch.cat([x.real, x.imag], dim=-1)


def planar_scan_adjoint(lam: Tensor, x: Tensor, g: Tensor, total: Tensor) -> Tensor:
    """Return what `_scan.scan_adjoint` makes of `g`, for whole sequences from rest, and add to the total."""
    n = lam.shape[1]
    g = planar_scan(torch.stack([lam[0], -lam[1]]), g.flip(1)).flip(1)
    past_re, past_im, g_re, g_im = x[:, :-1, :n], x[:, :-1, n:], g[:, 1:, :n], g[:, 1:, n:]
    total[0] += (past_re * g_re + past_im * g_im).sum((0, 1))
    total[1] += (past_re * g_im - past_im * g_re).sum((0, 1))
    return g
