"""Heads with scalar decay and their adjoint as products of matrices, on any device; all arguments trusted.

==============  ====================================  ======================================================
``u``           (batch, length, heads, size)          inputs
``delta``       (batch, length, heads)                steps
``A``, ``D``    (heads,)                              rates and feedthrough
``B``, ``C``    (batch, length, groups, n)            into and out of the states of a group of heads
``starts``      (batch, pieces + 1, heads, size, n)   states before each piece of PIECE steps, and after the last
``carry``       (batch, heads, size, n)               gradient of the last state; on return of the initial one
==============  ====================================  ======================================================

Within a piece, with ``s_t`` the sum of ``delta A`` up to step t, state and output are those of

    ``y_t = exp(s_t) h C_t + sum_{r <= t} exp(s_t - s_r) (C_t . B_r) delta_r u_r``

from the state h before it: products of matrices of PIECE rows. Sums of exponents are carried in double precision, as
their differences count. Pieces follow each other, and the adjoint computes what is within them again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Steps of a piece: more of them keep fewer states for the backward pass, and a kernel cannot hold their weights on each
# other in registers.
PIECE = 32

# Exponents below this are zero as factors, in double precision too: larger sums would drown the others.
LEAST_EXPONENT = -1000.0


class _Piece(NamedTuple):
    """One piece, axes (batch, heads, steps, ...): data, and decay between steps, from the start, to the end."""

    u: Tensor
    step: Tensor
    B: Tensor
    C: Tensor
    decay: Tensor
    grown: Tensor
    tail: Tensor
    kept: Tensor


def outputs(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, initial: Tensor, starts: Tensor
) -> Tensor:
    """Return the outputs and write the states around each piece."""
    y = u * D[:, None]
    starts[:, 0] = h = initial
    for k, first in enumerate(range(0, u.shape[1], PIECE)):
        x = _piece(u, delta, A, B, C, first)
        v = x.u * x.step[..., None]
        weight = _causal(x.C @ x.B.mT, x.decay)
        out = _forward(weight, v) + x.grown[..., None] * (x.C @ h.mT)
        y[:, first : first + PIECE] += out.movedim(1, 2)
        starts[:, k + 1] = h = x.kept * h + (v * x.tail[..., None]).mT @ x.B
    return y


def gradients(
    gy: Tensor, carry: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, starts: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients of u, delta, A, B, C and D, and write that of the initial state into the carry."""
    gu, g_delta, gA = gy * D[:, None], torch.empty_like(delta), torch.zeros_like(A, dtype=torch.float64)
    gB, gC, g = torch.empty_like(B), torch.empty_like(C), carry.clone()
    for k, first in reversed(list(enumerate(range(0, u.shape[1], PIECE)))):
        time = slice(first, first + PIECE)
        x, h, out = _piece(u, delta, A, B, C, first), starts[:, k], gy[:, time].movedim(2, 1)
        v, scores = x.u * x.step[..., None], x.C @ x.B.mT
        fed, seen, driven = x.B @ g.mT, out * x.grown[..., None], v * x.tail[..., None]
        weight, pull = _causal(scores, x.decay), _causal(out @ v.mT, x.decay)
        gv = _backward(weight.mT, out) + x.tail[..., None] * fed
        # the exponent of step r lies between all steps before it and itself and all steps after it
        through = (pull * scores).tril().flip(2).cumsum(2).flip(2) + (driven * fed).sum(-1)[..., None, :]
        ending = (seen * (x.C @ h.mT)).sum(-1).flip(-1).cumsum(-1).flip(-1)
        ending = ending + x.kept[..., 0] * (h * g).sum((-2, -1))[..., None]
        exponent = torch.where(_steps_before(x.step), through, 0).sum(-1) + ending
        g_delta[:, time] = (exponent * A[:, None] + (gv * x.u).sum(-1)).mT
        gA += (exponent * x.step).double().sum((0, 2))
        gu[:, time] += (gv * x.step[..., None]).movedim(1, 2)
        gC[:, time] = _groups(seen @ h + _forward(pull, x.B), C)
        gB[:, time] = _groups(driven @ g + _backward(pull.mT, x.C), B)
        g = x.kept * g + seen.mT @ x.C
    carry.copy_(g)
    return gu, g_delta, gA.to(A.dtype), gB, gC, (gy * u).sum((0, 1, 3), dtype=torch.float64).to(D.dtype)


def _piece(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, first: int) -> _Piece:
    time, heads = slice(first, first + PIECE), len(A)
    step = delta[:, time].mT
    exponent = (step * A[:, None]).double()
    exponent = torch.where(exponent < LEAST_EXPONENT, LEAST_EXPONENT, exponent)
    finite = exponent * 0 == 0
    s, lost = torch.where(finite, exponent, 0).cumsum(-1), (~finite).cumsum(-1)
    b, c = (x[:, time].repeat_interleave(heads // x.shape[2], 2).movedim(2, 1) for x in (B, C))
    # what is not finite counts between the steps before and after it alone
    between = torch.where(lost[..., :, None] == lost[..., None, :], s[..., :, None] - s[..., None, :], torch.nan)
    later = torch.ones_like(between, dtype=torch.bool).triu(1)
    decay = torch.where(later, 0, between.masked_fill(later, 0).to(u.dtype).exp())
    grown = torch.where(lost == 0, s, torch.nan).to(u.dtype).exp()
    return _Piece(u[:, time].movedim(2, 1), step, b, c, decay, grown, decay[..., -1, :], grown[..., -1:, None])


def _causal(products: Tensor, decay: Tensor) -> Tensor:
    """Return products (..., t, r) of steps with those not after them, times the decay in between."""
    return (products * decay).tril()


def _forward(weight: Tensor, x: Tensor) -> Tensor:
    """Return ``weight @ x``; what is not finite in x shows from its step on, where weights are not zero."""
    unknown = (x * 0).cumsum(-2)
    return weight @ torch.where(x * 0 == 0, x, 0) + unknown


def _backward(weight: Tensor, x: Tensor) -> Tensor:
    unknown = (x * 0).flip(-2).cumsum(-2).flip(-2)
    return weight @ torch.where(x * 0 == 0, x, 0) + unknown


def _steps_before(step: Tensor) -> Tensor:
    length = step.shape[-1]
    return torch.ones(length, length, dtype=torch.bool, device=step.device).tril(-1)


def _groups(x: Tensor, like: Tensor) -> Tensor:
    """Return the sum over the heads of each group, time first."""
    return x.movedim(1, 2).unflatten(2, (like.shape[2], -1)).sum(3)
