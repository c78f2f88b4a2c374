"""Heads with scalar decay and their adjoint: Triton kernels for GPUs, all arguments trusted.

Names, shapes and formulas are those of `_heads_torch`. A program takes one row and one head through time, or a block
of SIZE of its channels, piece after piece, and for each piece STATES states after the other: the work goes with their
number, in steps of STATES. The state at the edge of a piece goes through the memory that keeps it for the adjoint. A
program of the adjoint takes some heads of a group one after the other and adds up what they give to B and C, so that
this is no more memory than the inputs are. Sums over rows, blocks and programs are torch's: the same numbers on every
run.
"""

# Triton reads the annotations of kernels: only constants have one.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _heads_torch
from ._factors_triton import filled

# States and channels of a head at a time, and warps; not tuned on a GPU yet: `benchmarks/speed/gpu.py --tune`. Products
# are made of three in TF32, which keeps the digits of float32.
LAUNCH = {"STATES": 16, "num_warps": 8, "num_stages": 1}
WIDEST = 64
PRECISION = tl.constexpr("tf32x3")

LEAST = tl.constexpr(_heads_torch.LEAST_EXPONENT)


@triton.jit
def _dot(x, y, WORK: tl.constexpr):
    return tl.dot(x, y, input_precision=PRECISION, out_dtype=WORK)


@triton.jit
def _joined_dot(weight, joined, x, WORK: tl.constexpr):
    """The product; what is not finite in x shows at all steps that it is joined to, and there alone."""
    finite = x - x == 0
    found = _dot(weight, tl.where(finite, x, 0.0), WORK)
    if tl.min(tl.min(finite.to(tl.int32), 1), 0) == 0:
        unknown = _dot(joined.to(WORK), tl.where(finite, 0.0, 1.0).to(WORK), WORK)
        found = tl.where(unknown > 0, float("nan"), found)
    return found


@triton.jit
def _ages(reset, at, within, RESET: tl.constexpr, TIME: tl.constexpr):
    """How many resets there are in the piece up to each step, and in all."""
    if RESET:
        forgets = tl.load(reset + at, mask=within, other=0).to(tl.int32)
        return tl.cumsum(forgets, 0), tl.sum(forgets, 0)
    return tl.full((TIME,), 0, tl.int32), tl.full((), 0, tl.int32)


@triton.jit
def _factors(step, rate, joined, WORK: tl.constexpr):
    """Decay between steps that are joined, from the start of the piece, to its end, and over all of it."""
    exponent = step.to(tl.float64) * rate
    exponent = tl.where(exponent < LEAST, LEAST, exponent)
    finite = exponent <= -LEAST
    exponent, unknown = tl.where(finite, exponent, 0.0), tl.where(finite, 0, 1)
    s, end, lost = tl.cumsum(exponent, 0), tl.sum(exponent, 0), tl.cumsum(unknown, 0)
    all_lost = tl.sum(unknown, 0)
    # what is not finite counts between the steps before and after it alone
    between = tl.where(lost[:, None] == lost[None, :], s[:, None] - s[None, :], float("nan"))
    decay = tl.where(joined, tl.exp(tl.where(joined, between, 0.0).to(WORK)), 0.0)
    grown = tl.exp(tl.where(lost == 0, s, float("nan")).to(WORK))
    tail = tl.exp(tl.where(lost == all_lost, end - s, float("nan")).to(WORK))
    return decay, grown, tail, tl.exp(tl.where(all_lost == 0, end, float("nan")).to(WORK))


@triton.jit
def scan(u, delta, A, B, C, D, reset, starts, y, length, heads, size, share, n, RESET: tl.constexpr,
         WORK: tl.constexpr, TIME: tl.constexpr, SIZE: tl.constexpr, STATES: tl.constexpr):  # fmt: skip
    """Write the outputs and the states around each piece; `share` heads have one group."""
    row, blocks = tl.program_id(0).to(tl.int64), (size + SIZE - 1) // SIZE
    head = tl.program_id(1) // blocks
    p = tl.program_id(1) % blocks * SIZE + tl.arange(0, SIZE)
    live, tau, k = p < size, tl.arange(0, TIME), tl.arange(0, STATES)
    causal = tau[:, None] >= tau[None, :]
    rate, feed = tl.load(A + head).to(tl.float64), tl.load(D + head).to(WORK)
    start = starts + (row * ((length + TIME - 1) // TIME + 1) * heads + head) * size * n
    for first in range(0, length, TIME):
        t = first + tau
        within = t < length
        inside = within[:, None] & live[None, :]
        at = (row * length + t) * heads + head
        step = tl.load(delta + at, mask=within, other=0).to(WORK)
        x = tl.load(u + at[:, None] * size + p[None, :], mask=inside, other=0).to(WORK)
        age, resets = _ages(reset, row * length + t, within, RESET, TIME)
        joined, begins, ends = causal & (age[:, None] == age[None, :]), (age == 0)[:, None], (age == resets)[:, None]
        decay, grown, tail, kept = _factors(step, rate, joined, WORK)
        v = x * step[:, None]
        driven = tl.trans(tl.where(ends, v * tail[:, None], 0.0))
        scores, out = tl.full((TIME, TIME), 0, WORK), tl.full((TIME, SIZE), 0, WORK)
        for i in range(0, n, STATES):
            some = i + k < n
            line = ((row * length + t) * (heads // share) + head // share)[:, None] * n + (i + k)[None, :]
            there = within[:, None] & some[None, :]
            b, c = tl.load(B + line, mask=there, other=0).to(WORK), tl.load(C + line, mask=there, other=0).to(WORK)
            edge, states = start + p[:, None] * n + (i + k)[None, :], live[:, None] & some[None, :]
            h = tl.load(edge, mask=states, other=0).to(WORK)
            scores += _dot(c, tl.trans(b), WORK)
            out += _dot(c, tl.trans(h), WORK)
            h = tl.where(resets == 0, kept * h, 0.0) + _dot(driven, tl.where(ends, b, 0.0), WORK)
            tl.store(edge + heads * size * n, h, mask=states)
        weight = tl.where(joined, decay * scores, 0.0)
        out = tl.where(begins, grown[:, None] * out, 0.0) + _joined_dot(weight, joined, v, WORK) + feed * x
        tl.store(y + at[:, None] * size + p[None, :], out, mask=inside)
        start += heads * size * n
        tl.debug_barrier()  # the next piece reads what other threads have written


@triton.jit
def scan_adjoint(gy, carry, u, delta, A, B, C, D, reset, starts, gu, g_delta, gA, gB, gC, gD, length, heads, size,
                 share, n, together, RESET: tl.constexpr, WORK: tl.constexpr, TIME: tl.constexpr, SIZE: tl.constexpr,
                 STATES: tl.constexpr):  # fmt: skip
    """Write the gradients, going back through the pieces, of `together` heads of a group."""
    row, rows, blocks = tl.program_id(0).to(tl.int64), tl.num_programs(0), (size + SIZE - 1) // SIZE
    block, split, splits = tl.program_id(1) % blocks, tl.program_id(1) // blocks, heads // together
    p = block * SIZE + tl.arange(0, SIZE)
    live, tau, k = p < size, tl.arange(0, TIME), tl.arange(0, STATES)
    causal = tau[:, None] >= tau[None, :]
    pieces, part = (length + TIME - 1) // TIME, block * rows + row
    for j in range(0, together):
        head = split * together + j
        rate, feed = tl.load(A + head).to(tl.float64), tl.load(D + head).to(WORK)
        g_rate, g_feed = tl.full((), 0, tl.float64), tl.full((), 0, tl.float64)
        start = starts + ((row * (pieces + 1) + pieces) * heads + head) * size * n
        for back in range(0, pieces):
            start -= heads * size * n
            t = (pieces - 1 - back) * TIME + tau
            within = t < length
            inside = within[:, None] & live[None, :]
            at = (row * length + t) * heads + head
            step = tl.load(delta + at, mask=within, other=0).to(WORK)
            x = tl.load(u + at[:, None] * size + p[None, :], mask=inside, other=0).to(WORK)
            out = tl.load(gy + at[:, None] * size + p[None, :], mask=inside, other=0).to(WORK)
            age, resets = _ages(reset, row * length + t, within, RESET, TIME)
            joined, begins = causal & (age[:, None] == age[None, :]), (age == 0)[:, None]
            ends = (age == resets)[:, None]
            decay, grown, tail, kept = _factors(step, rate, joined, WORK)
            v, seen = x * step[:, None], tl.where(begins, out * grown[:, None], 0.0)
            driven = tl.where(ends, v * tail[:, None], 0.0)
            scores, overlap = tl.full((TIME, TIME), 0, WORK), tl.full((SIZE, STATES), 0, WORK)
            read, fed = tl.full((TIME, SIZE), 0, WORK), tl.full((TIME, SIZE), 0, WORK)
            line = ((row * length + t) * (heads // share) + head // share)[:, None] * n
            for i in range(0, n, STATES):
                some = i + k < n
                there, states = within[:, None] & some[None, :], live[:, None] & some[None, :]
                b = tl.load(B + line + (i + k)[None, :], mask=there, other=0).to(WORK)
                c = tl.load(C + line + (i + k)[None, :], mask=there, other=0).to(WORK)
                edge = p[:, None] * n + (i + k)[None, :]
                h = tl.load(start + edge, mask=states, other=0).to(WORK)
                g = tl.load(carry + (row * heads + head) * size * n + edge, mask=states, other=0).to(WORK)
                scores += _dot(c, tl.trans(b), WORK)
                read += _dot(c, tl.trans(h), WORK)
                fed += _dot(b, tl.trans(g), WORK)
                overlap += h * g
            weight = tl.where(joined, decay * scores, 0.0)
            pull = tl.where(joined, decay * _dot(out, tl.trans(v), WORK), 0.0)
            gv = _joined_dot(tl.trans(weight), tl.trans(joined), out, WORK) + tl.where(ends, tail[:, None] * fed, 0.0)
            # the exponent of step r lies between all steps before it and itself and all steps after it
            through = tl.cumsum(tl.where(joined, pull * scores, 0.0), 0, reverse=True)
            through += tl.sum(tl.where(ends, driven * fed, 0.0), 1)[None, :]
            exponent = tl.sum(tl.where(tau[:, None] > tau[None, :], through, 0.0), 1)
            exponent += tl.cumsum(tl.sum(tl.where(begins, seen * read, 0.0), 1), 0, reverse=True)
            exponent += tl.where(resets == 0, kept * tl.sum(tl.sum(overlap, 1), 0), 0.0)
            found = exponent * rate.to(WORK) + tl.sum(gv * x, 1)
            tl.store(g_delta + part * length * heads + t * heads + head, found, mask=within)
            tl.store(gu + at[:, None] * size + p[None, :], gv * step[:, None] + out * feed, mask=inside)
            g_rate += tl.sum((exponent * step).to(tl.float64), 0)
            g_feed += tl.sum(tl.sum(out * x, 1).to(tl.float64), 0)
            for i in range(0, n, STATES):
                some = i + k < n
                there, states = within[:, None] & some[None, :], live[:, None] & some[None, :]
                b = tl.load(B + line + (i + k)[None, :], mask=there, other=0).to(WORK)
                c = tl.load(C + line + (i + k)[None, :], mask=there, other=0).to(WORK)
                edge = p[:, None] * n + (i + k)[None, :]
                h = tl.load(start + edge, mask=states, other=0).to(WORK)
                held = carry + (row * heads + head) * size * n + edge
                g = tl.load(held, mask=states, other=0).to(WORK)
                of_C = tl.where(begins, _dot(seen, h, WORK), 0.0) + _joined_dot(pull, joined, b, WORK)
                of_B = tl.where(ends, _dot(driven, g, WORK), 0.0)
                of_B += _joined_dot(tl.trans(pull), tl.trans(joined), c, WORK)
                to = ((part * length + t) * splits + split)[:, None] * n + (i + k)[None, :]
                if j > 0:
                    of_C += tl.load(gC + to, mask=there, other=0)
                    of_B += tl.load(gB + to, mask=there, other=0)
                tl.store(gC + to, of_C, mask=there)
                tl.store(gB + to, of_B, mask=there)
                g = tl.where(resets == 0, kept * g, 0.0) + _dot(tl.trans(seen), tl.where(begins, c, 0.0), WORK)
                tl.store(held, g, mask=states)
            tl.debug_barrier()  # the next piece reads what other threads have written
        tl.store(gA + part * heads + head, g_rate)
        tl.store(gD + part * heads + head, g_feed)


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
    y = torch.empty(u.shape, dtype=starts.dtype, device=u.device)
    starts[:, 0] = initial
    _launch(scan, (u, delta, A, B, C, D), reset, (starts, y), u, B)
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
    batch, length, heads, size = u.shape
    groups, n = B.shape[2:]
    blocks, together = max(1, -(-size // _width(size))), heads_at_once(heads // max(1, groups), size, n)
    gu, splits = torch.empty(u.shape, dtype=starts.dtype, device=u.device), heads // together
    g_delta = starts.new_zeros(blocks, batch, length, heads)
    gB, gC = (starts.new_zeros(blocks, batch, length, splits, n) for _ in range(2))
    gA, gD = (starts.new_zeros(blocks, batch, heads, dtype=torch.float64) for _ in range(2))
    found = gu, g_delta, gA, gB, gC, gD
    _launch(scan_adjoint, (gy, carry, u, delta, A, B, C, D), reset, (starts.contiguous(), *found), u, B, together)
    gB, gC = (x.unflatten(3, (groups, splits // max(1, groups))).sum((0, 4)) for x in (gB, gC))
    return gu, g_delta.sum(0), gA.sum((0, 1)).to(A.dtype), gB, gC, gD.sum((0, 1)).to(D.dtype)


def heads_at_once(share: int, size: int, n: int) -> int:
    """Return how many of the heads of a group a program takes, for what they give to B and C to be no more than u."""
    return next((k for k in range(1, share) if share % k == 0 and k * size >= 2 * n), max(1, share))


def _width(size: int) -> int:
    """Return the channels of a head that one program takes."""
    return min(WIDEST, filled(max(1, size)))


def _launch(
    kernel: Any,
    arguments: tuple[Tensor, ...],
    reset: Tensor | None,
    found: tuple[Tensor, ...],
    u: Tensor,
    B: Tensor,
    together: int = 0,
) -> None:
    batch, length, heads, size = u.shape
    if 0 in (batch, heads, size):
        return
    given = [x.contiguous() for x in arguments]
    flags = given[0] if reset is None else reset.contiguous().view(torch.uint8)
    groups, n = B.shape[2:]
    width = _width(size)
    grid = batch, heads // max(1, together) * -(-size // width)
    sizes = (length, heads, size, heads // groups, n, *((together,) if together else ()))
    constants = {"RESET": reset is not None, "WORK": tl.float64 if u.dtype == torch.float64 else tl.float32}
    constants |= {"TIME": _heads_torch.PIECE, "SIZE": width}
    kernel[grid](*given, flags, *found, *sizes, **constants, **LAUNCH)
