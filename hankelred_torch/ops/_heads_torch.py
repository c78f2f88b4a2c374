"""Heads with scalar decay and their adjoint as products of matrices, on any device; all arguments trusted.

==============  ====================================  ======================================================
``u``           (batch, length, heads, size)          inputs
``delta``       (batch, length, heads)                steps
``A``, ``D``    (heads,)                              rates and feedthrough
``B``, ``C``    (batch, length, groups, n)            into and out of the states of a group of heads
``reset``       (batch, length) bool, or None         steps that know nothing of what was before them
``starts``      (batch, pieces + 1, heads, size, n)   states before each piece of PIECE steps, and after the last
``carry``       (batch, heads, size, n)               gradient of the last state; on return of the initial one
==============  ====================================  ======================================================

Within a piece, with ``s_t`` the sum of ``delta A`` up to step t, state and output are those of

    ``y_t = exp(s_t) h C_t + sum_{r <= t} exp(s_t - s_r) (C_t . B_r) delta_r u_r``

from the state h before it: products of matrices of PIECE rows. Sums of exponents are carried in double precision, as
their differences count. Pieces follow each other, and the adjoint computes what is within them again. Across a reset
every factor is zero, and what it would multiply is left out: it may be infinite or NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Steps of a piece: more of them keep fewer states for the backward pass, and a kernel cannot hold their weights on each
# other in registers.
PIECE = 32

# Exponents below this are zero as factors, in double precision too, and above its opposite infinite: larger sums would
# drown the others.
LEAST_EXPONENT = -1000.0


class _Piece(NamedTuple):
    """One piece, axes (batch, heads, steps, ...): data, and decay between steps, from the start, to the end, over all.

    Then which steps have no reset between them, or between the start, or the end, and themselves, and whether the piece
    has none; None of them all where there are no resets.
    """

    u: Tensor
    step: Tensor
    B: Tensor
    C: Tensor
    decay: Tensor
    grown: Tensor
    tail: Tensor
    kept: Tensor
    joined: Tensor
    begins: Tensor | None
    ends: Tensor | None
    whole: Tensor | None


def outputs(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial: Tensor,
    reset: Tensor | None,
    starts: Tensor,
) -> Tensor:
    """Return the outputs and write the states around each piece."""
    y = u * D[:, None]
    starts[:, 0] = h = initial
    for k, first in enumerate(range(0, u.shape[1], PIECE)):
        x = _piece(u, delta, A, B, C, reset, first)
        v = x.u * x.step[..., None]
        weight = torch.where(x.joined, x.decay * (x.C @ x.B.mT), 0)
        out = _product(weight, x.joined, v) + _only(x.begins, x.grown[..., None] * (x.C @ h.mT))
        y[:, first : first + PIECE] += out.movedim(1, 2)
        driven = _only(x.ends, v * x.tail[..., None])
        starts[:, k + 1] = h = _only(x.whole, x.kept * h) + driven.mT @ _only(x.ends, x.B)
    return y


def gradients(
    gy: Tensor,
    carry: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    reset: Tensor | None,
    starts: Tensor,
) -> tuple[Tensor, ...]:
    """Return the gradients of u, delta, A, B, C and D, and write that of the initial state into the carry."""
    gu, g_delta, gA = gy * D[:, None], torch.empty_like(delta), torch.zeros_like(A, dtype=torch.float64)
    gB, gC, g = torch.empty_like(B), torch.empty_like(C), carry.clone()
    for k, first in reversed(list(enumerate(range(0, u.shape[1], PIECE)))):
        time = slice(first, first + PIECE)
        x, h, out = _piece(u, delta, A, B, C, reset, first), starts[:, k], gy[:, time].movedim(2, 1)
        v, scores = x.u * x.step[..., None], x.C @ x.B.mT
        fed, seen = x.B @ g.mT, _only(x.begins, out * x.grown[..., None])
        driven = _only(x.ends, v * x.tail[..., None])
        weight, pull = (torch.where(x.joined, x.decay * z, 0) for z in (scores, out @ v.mT))
        gv = _product(weight.mT, x.joined.mT, out) + _only(x.ends, x.tail[..., None] * fed)
        # the exponent of step r lies between all steps before it and itself and all steps after it
        through = torch.where(x.joined, pull * scores, 0).flip(2).cumsum(2).flip(2)
        through = through + _only(x.ends, driven * fed).sum(-1)[..., None, :]
        ending = _only(x.begins, seen * (x.C @ h.mT)).sum(-1).flip(-1).cumsum(-1).flip(-1)
        ending = ending + _only(x.whole, x.kept * (h * g).sum((-2, -1), keepdim=True))[..., 0]
        exponent = torch.where(_causal(x.step).tril(-1), through, 0).sum(-1) + ending
        g_delta[:, time] = (exponent * A[:, None] + (gv * x.u).sum(-1)).mT
        gA += (exponent * x.step).double().sum((0, 2))
        gu[:, time] += (gv * x.step[..., None]).movedim(1, 2)
        gC[:, time] = _groups(_only(x.begins, seen @ h) + _product(pull, x.joined, x.B), C)
        gB[:, time] = _groups(_only(x.ends, driven @ g) + _product(pull.mT, x.joined.mT, x.C), B)
        g = _only(x.whole, x.kept * g) + seen.mT @ _only(x.begins, x.C)
    carry.copy_(g)
    return gu, g_delta, gA.to(A.dtype), gB, gC, (gy * u).sum((0, 1, 3), dtype=torch.float64).to(D.dtype)


def _piece(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, reset: Tensor | None, first: int) -> _Piece:
    time, heads = slice(first, first + PIECE), len(A)
    step = delta[:, time].mT
    exponent = (step * A[:, None]).double()
    exponent = torch.where(exponent < LEAST_EXPONENT, LEAST_EXPONENT, exponent)
    joined, begins, ends, whole = _causal(step), None, None, None
    if reset is not None:
        age = reset[:, None, time].cumsum(-1)
        joined = joined & (age[..., :, None] == age[..., None, :])
        begins, ends, whole = (x[..., None] for x in (age == 0, age == age[..., -1:], age[..., -1:] == 0))
    finite = exponent <= -LEAST_EXPONENT
    s, lost = torch.where(finite, exponent, 0).cumsum(-1), (~finite).cumsum(-1)
    b, c = (x[:, time].repeat_interleave(heads // x.shape[2], 2).movedim(2, 1) for x in (B, C))
    # what is not finite counts between the steps before and after it alone
    between = torch.where(lost[..., :, None] == lost[..., None, :], s[..., :, None] - s[..., None, :], torch.nan)
    decay = torch.where(joined, between.masked_fill(~joined, 0).to(u.dtype).exp(), 0)
    grown = torch.where(lost == 0, s, torch.nan).to(u.dtype).exp()
    factors = decay, grown, decay[..., -1, :], grown[..., -1:, None]
    return _Piece(u[:, time].movedim(2, 1), step, b, c, *factors, joined, begins, ends, whole)


def _causal(step: Tensor) -> Tensor:
    """Return the mask (t, r) of steps with those not after them."""
    length = step.shape[-1]
    return torch.ones(length, length, dtype=torch.bool, device=step.device).tril()


def _only(places: Tensor | None, x: Tensor) -> Tensor:
    """Return x, zero elsewhere, whatever x is there."""
    return x if places is None else torch.where(places, x, 0)


def _product(weight: Tensor, joined: Tensor, x: Tensor) -> Tensor:
    """Return ``weight @ x``; what is not finite in x shows at all steps that it is joined to, and there alone."""
    finite = x * 0 == 0
    unknown = joined.to(x.dtype) @ (~finite).to(x.dtype)
    return torch.where(unknown > 0, torch.nan, weight @ torch.where(finite, x, 0))


def _groups(x: Tensor, like: Tensor) -> Tensor:
    """Return the sum over the heads of each group, time first."""
    return x.movedim(1, 2).unflatten(2, (like.shape[2], -1)).sum(3)
