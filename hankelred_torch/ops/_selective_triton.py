"""The selective scan and its adjoint: Triton kernels for GPUs, all arguments trusted.

Names and shapes are those of `_selective_kernels` but for these:

==============  ===================================  ==========================================================
``A``           (n, channels)                        rates; ``B``, ``C`` (batch, n, length): time is contiguous
``starts``      (batch, pieces + 1, n, channels)     states before each piece of SEGMENT steps, and after the
                                                     last
``carry``       (batch, n, channels)                 gradient of the last state; on return of the initial one
``gB``, ``gC``  (blocks, batch, n, length)           gradients, from each block of channels
``gA``, ``gD``  (batch, n, channels), (batch,        gradients, from each row, float64
                channels)
==============  ===================================  ==========================================================

A program takes one row and some channels through time, piece after piece, and for each piece one state after the
other: the work is proportional to their number, whatever it is. What a state is at the edge of a piece goes through
the memory that keeps it for the backward pass, which computes the states again from there. Arrays may be of different
dtypes; the work is in float32, or in float64 if an array is. Sums over rows and blocks are torch's: the same numbers on
every run.
"""

# Triton reads the annotations of kernels: only constants have one.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._selective_kernels import SEGMENT

# Channels of a program, and its warps. With one channel in each lane, which takes steps without alignment (hence
# do_not_specialize), a lane holds all steps of a piece, and the scans need no other lane: 8 instructions a state and
# step in compiled code, and with 16 channels and 4 warps 40. Not tuned on a GPU yet: `benchmarks/speed/gpu.py --tune`.
LAUNCH = {"CHANNELS": 32, "num_warps": 1, "enable_fp_fusion": True}

LOG2_E = tl.constexpr(1 / math.log(2))


@triton.jit
def _follow(a, x, b, y):
    return a * b, b * x + y


@triton.jit
def _follow_reset(a, x, f, b, y, g):
    return a * b, tl.where(g != 0, y, b * x + y), f | g


@triton.jit
def _states(factors, inputs, forgets, edge, RESET: tl.constexpr, REVERSE: tl.constexpr):
    """Scan a tile, given the state at its edge, which nothing passes a reset from, be it NaN."""
    if RESET:
        f = tl.broadcast_to(forgets[:, None], inputs.shape)
        p, h, f = tl.associative_scan((factors, inputs, f), 0, _follow_reset, reverse=REVERSE)
        return tl.where(f != 0, h, h + p * edge)
    p, h = tl.associative_scan((factors, inputs), 0, _follow, reverse=REVERSE)
    return h + p * edge


@triton.jit
def _resets(reset, at, there, RESET: tl.constexpr, TIME: tl.constexpr):
    """Steps that forget, as whole numbers; none of those that are not there."""
    if RESET:
        return tl.load(reset + at, mask=there, other=0).to(tl.int32)
    return tl.full((TIME,), 0, tl.int32)


@triton.jit
def _add(x, y):
    return x + y


@triton.jit
def _row(tile, tau, chosen):
    """One row of a tile."""
    return tl.reduce(tl.where((tau == chosen)[:, None], tile, 0), 0, _add)


@triton.jit(do_not_specialize=["channels"])
def scan(u, delta, A, B, C, D, reset, starts, y, length, channels, n, RESET: tl.constexpr, WORK: tl.constexpr,
         TIME: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    """Write the outputs and the states around each piece."""
    row, k = tl.program_id(0).to(tl.int64), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    live, tau = k < channels, tl.arange(0, TIME)
    feed = tl.load(D + k, mask=live, other=0).to(WORK)[None, :]
    start = starts + row * ((length + TIME - 1) // TIME + 1) * n * channels + k
    for first in range(0, length, TIME):
        t = first + tau
        within = t < length
        inside = within[:, None] & live[None, :]
        at = (row * length + t)[:, None] * channels + k[None, :]
        step = tl.load(delta + at, mask=inside, other=0).to(WORK)
        v = tl.load(u + at, mask=inside, other=0).to(WORK)
        out = feed * v
        v = v * step
        forgets = _resets(reset, row * length + t, within, RESET, TIME)
        for i in range(0, n):
            rate = tl.load(A + i * channels + k, mask=live, other=0).to(WORK)[None, :] * LOG2_E
            b = tl.load(B + (row * n + i) * length + t, mask=within, other=0).to(WORK)[:, None]
            c = tl.load(C + (row * n + i) * length + t, mask=within, other=0).to(WORK)[:, None]
            before = tl.load(start + i * channels, mask=live, other=0).to(WORK)[None, :]
            h = _states(tl.exp2(step * rate), v * b, forgets, before, RESET, False)
            out += c * h
            # steps past the end change nothing
            tl.store(start + (n + i) * channels, _row(h, tau, TIME - 1), mask=live)
        tl.store(y + at, out, mask=inside)
        start += n * channels
        tl.debug_barrier()  # the next piece reads what other threads have written


@triton.jit(do_not_specialize=["channels"])
def scan_adjoint(gy, carry, u, delta, A, B, C, D, reset, starts, gu, g_delta, gA, gB, gC, gD, length, channels, n,
                 RESET: tl.constexpr, WORK: tl.constexpr, TIME: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    """Write the gradients, going back through the pieces."""
    row, k = tl.program_id(0).to(tl.int64), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    block, rows = tl.program_id(1).to(tl.int64), tl.num_programs(0)
    live, tau = k < channels, tl.arange(0, TIME)
    feed = tl.load(D + k, mask=live, other=0).to(WORK)[None, :]
    g_feed = tl.full((CHANNELS,), 0, tl.float64)
    pieces = (length + TIME - 1) // TIME
    start = starts + (row * (pieces + 1) + pieces) * n * channels + k
    for back in range(0, pieces):
        start -= n * channels
        first = (pieces - 1 - back) * TIME
        t = first + tau
        within = t < length
        inside = within[:, None] & live[None, :]
        past, coming = within & (tau > 0), within & (tau < TIME - 1) & (t < length - 1)
        earlier, later = past[:, None] & live[None, :], coming[:, None] & live[None, :]
        at = (row * length + t)[:, None] * channels + k[None, :]
        step = tl.load(delta + at, mask=inside, other=0).to(WORK)
        u_t = tl.load(u + at, mask=inside, other=0).to(WORK)
        out = tl.load(gy + at, mask=inside, other=0).to(WORK)
        # a step of zero leaves the state and lets nothing in: at the edges, what is known is carried through them
        step_before = tl.load(delta + at - channels, mask=earlier, other=0).to(WORK)
        v_before = tl.load(u + at - channels, mask=earlier, other=0).to(WORK) * step_before
        step_after = tl.load(delta + at + channels, mask=later, other=0).to(WORK)
        v = u_t * step
        knows = (_resets(reset, row * length + t, within, RESET, TIME) == 0)[:, None]
        forgot = _resets(reset, row * length + t - 1, past, RESET, TIME)
        will_forget = _resets(reset, row * length + t + 1, coming, RESET, TIME)
        gv, g_exponent = tl.full((TIME, CHANNELS), 0, WORK), tl.full((TIME, CHANNELS), 0, WORK)
        for i in range(0, n):
            a = tl.load(A + i * channels + k, mask=live, other=0).to(WORK)[None, :]
            line = (row * n + i) * length + t
            b = tl.load(B + line, mask=within, other=0).to(WORK)[:, None]
            b_before = tl.load(B + line - 1, mask=past, other=0).to(WORK)[:, None]
            c = tl.load(C + line, mask=within, other=0).to(WORK)[:, None]
            edge = (row * n + i) * channels + k
            before = tl.load(start + i * channels, mask=live, other=0).to(WORK)[None, :]
            after = tl.load(carry + edge, mask=live, other=0).to(WORK)[None, :]
            rate = a * LOG2_E
            # the state before each step
            h = _states(tl.exp2(step_before * rate), v_before * b_before, forgot, before, RESET, False)
            g = _states(tl.exp2(step_after * rate), out * c, will_forget, after, RESET, True)
            decay = tl.exp2(step * rate)
            g_before = g * decay
            g_before, h = tl.where(knows, g_before, 0.0), tl.where(knows, h, 0.0)
            g_exponent_i = g_before * h
            gv += g * b
            g_exponent += g_exponent_i * a
            partial = ((block * rows + row) * n + i) * length + t
            tl.store(gC + partial, tl.reduce(tl.where(inside, out * (decay * h + v * b), 0), 1, _add), mask=within)
            tl.store(gB + partial, tl.reduce(tl.where(inside, g * v, 0), 1, _add), mask=within)
            total = tl.load(gA + edge, mask=live, other=0) + tl.reduce(g_exponent_i * step, 0, _add).to(tl.float64)
            tl.store(gA + edge, total, mask=live)
            tl.store(carry + edge, _row(g_before, tau, 0), mask=live)
        tl.store(gu + at, gv * step + out * feed, mask=inside)
        tl.store(g_delta + at, gv * u_t + g_exponent, mask=inside)
        g_feed += tl.reduce(out * u_t, 0, _add).to(tl.float64)
        tl.debug_barrier()  # the next piece reads what other threads have written
    tl.store(gD + row * channels + k, g_feed, mask=live)


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
    starts[:, 0] = initial.mT
    _launch(scan, (u, delta, A.T, B.mT, C.mT, D), reset, (starts, y), A.shape[1])
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
    batch, length, channels = u.shape
    n, blocks = A.shape[1], -(-channels // LAUNCH["CHANNELS"])
    work = starts.dtype
    gu, g_delta = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (u, delta))
    gA, gD = (torch.zeros(s, dtype=torch.float64, device=u.device) for s in ((batch, n, channels), (batch, channels)))
    gB, gC = (torch.zeros((blocks, batch, n, length), dtype=work, device=u.device) for _ in range(2))
    found = starts.contiguous(), gu, g_delta, gA, gB, gC, gD
    _launch(scan_adjoint, (gy, carry, u, delta, A.T, B.mT, C.mT, D), reset, found, n)
    gB, gC = (g.sum(0).mT.contiguous().to(x.dtype) for g, x in ((gB, B), (gC, C)))
    return gu, g_delta, gA.sum(0).T.contiguous().to(A.dtype), gB, gC, gD.sum(0).to(D.dtype)


def _launch(
    kernel: Any, arguments: tuple[Tensor, ...], reset: Tensor | None, found: tuple[Tensor, ...], n: int
) -> None:
    batch, length, channels = found[1].shape
    if batch == 0 or channels == 0:
        return
    given = [x.contiguous() for x in arguments]
    flags = given[0] if reset is None else reset.contiguous().view(torch.uint8)
    dtype = reduce(torch.promote_types, (x.dtype for x in (*given, found[0])), torch.float32)
    constants = {"RESET": reset is not None, "WORK": tl.float64 if dtype == torch.float64 else tl.float32}
    grid = batch, -(-channels // LAUNCH["CHANNELS"])
    kernel[grid](*given, flags, *found, length, channels, n, **constants, TIME=SEGMENT, **LAUNCH)
