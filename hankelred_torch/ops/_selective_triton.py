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

from ._factors_triton import filled
from ._scans_triton import add, ahead, ahead_reset, back, back_reset, follow, follow_reset, row_of
from ._selective_kernels import SEGMENT

# A program takes as many channels as a warp has lanes, one in each, which takes steps without alignment (hence
# do_not_specialize): a lane holds all steps of a piece, and scans need no other lane. Sums over channels halve a tile
# and the lanes that share it, round after round, as many as there are bits in a step.
CHANNELS = 2 * SEGMENT

# States side by side, one for each warp. Not tuned on a GPU yet: `benchmarks/speed/gpu.py --tune`.
LAUNCH: dict[str, Any] = {"STATES": 4, "maxnreg": None, "enable_fp_fusion": True}

LOG2_E = tl.constexpr(1 / math.log(2))


@triton.jit
def _states(decay, w, forgets, edge, tau, RESET: tl.constexpr):
    """The state after each step, ``h = decay h + w``; nothing passes a reset, be it NaN."""
    entering = tl.where(forgets != 0, w, w + decay * edge) if RESET else w + decay * edge
    w = tl.where(tau == 0, entering, w)
    if RESET:
        return tl.associative_scan((decay, w, tl.broadcast_to(forgets, w.shape)), 0, follow_reset)[1]
    return tl.associative_scan((decay, w), 0, follow)[1]


@triton.jit
def _states_before(decay, w, forgets, edge, tau, RESET: tl.constexpr):
    """The state before each step: part of a scan are factor and input of its last step. ``x + -0.0`` is x."""
    one, none = tl.full(w.shape, 1.0, w.dtype), tl.full(w.shape, -0.0, w.dtype)
    first = tl.where(tau == 0, tl.broadcast_to(edge, w.shape), none)
    if RESET:
        f = tl.broadcast_to(forgets, w.shape)
        return tl.associative_scan((one, first, decay, w, f, tl.full(w.shape, 0, tl.int32)), 0, ahead_reset)[1]
    return tl.associative_scan((one, first, decay, w), 0, ahead)[1]


@triton.jit
def _swapped(tile, BIT: tl.constexpr):
    """Steps with and without a bit change places, which lanes that hold all of them do by other names."""
    blocks: tl.constexpr = tile.shape[0] // (2 * BIT)
    pairs = tl.reshape(tile, (blocks, 2, BIT, tile.shape[1], tile.shape[2]))
    early, late = tl.split(tl.permute(pairs, (0, 2, 3, 4, 1)))
    return tl.reshape(tl.permute(tl.join(late, early), (0, 4, 1, 2, 3)), tile.shape)


@triton.jit
def _reversed(tile):
    """The steps in reverse: scans in reverse exchange all they have between lanes."""
    return _swapped(_swapped(_swapped(_swapped(tile, 8), 4), 2), 1)


@triton.jit
def _gradients(decay, w, forgets, edge, tau, RESET: tl.constexpr):
    """The gradient of each state, ``g_t = w_t + decay_{t+1} g_{t+1}``, given the last term of the last step."""
    decay, w = _reversed(decay), _reversed(w)
    w, one = tl.where(tau == 0, w + edge, w), tl.full(w.shape, 1.0, w.dtype)
    if RESET:
        f, none = _reversed(tl.broadcast_to(forgets, w.shape)), tl.full(w.shape, 0, tl.int32)
        return _reversed(tl.associative_scan((one, w, decay, f, none), 0, back_reset)[1])
    return _reversed(tl.associative_scan((one, w, decay), 0, back)[1])


@triton.jit
def _resets(reset, at, there, RESET: tl.constexpr, TIME: tl.constexpr):
    """Steps that forget, as whole numbers; none of those that are not there."""
    if RESET:
        return tl.load(reset + at, mask=there, other=0).to(tl.int32)[:, None, None]
    return tl.full((TIME, 1, 1), 0, tl.int32)


@triton.jit
def _halved(tile, k, BIT: tl.constexpr):
    """Half of the steps for channels with the bit, the other half for those without, each with both channels' share."""
    steps: tl.constexpr = tile.shape[0] // 2
    halves = tl.permute(tl.reshape(tile, (2, steps, tile.shape[1], tile.shape[2])), (1, 2, 3, 0))
    early, late = tl.split(halves)
    has = tl.broadcast_to(((k & BIT) != 0)[None, None, :], early.shape)
    other = tl.broadcast_to((k ^ BIT)[None, None, :], early.shape)
    return tl.where(has, late, early) + tl.gather(tl.where(has, early, late), other, 2)


@triton.jit
def _over_channels(tile, k, TIME: tl.constexpr):
    """Sum over channels; that of step t is at channels 2 t and 2 t + 1 of the one row that is left."""
    tl.static_assert(TIME == 16 and tile.shape[2] == 32)
    tile = _halved(_halved(_halved(_halved(tile, k, 16), k, 8), k, 4), k, 2)
    return tile + tl.gather(tile, tl.broadcast_to((k ^ 1)[None, None, :], tile.shape), 2)


@triton.jit(do_not_specialize=["channels"])
def scan(u, delta, A, B, C, D, reset, starts, y, length, channels, n, RESET: tl.constexpr, EVEN: tl.constexpr,
         WORK: tl.constexpr, TIME: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr):  # fmt: skip
    """Write the outputs and the states around each piece; EVEN if programs have all of their channels and states."""
    row, k = tl.program_id(0).to(tl.int64), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    steps, s = tl.arange(0, TIME), tl.arange(0, STATES)
    live, tau = k < channels, steps[:, None, None]
    feed = tl.load(D + k, mask=live, other=0).to(WORK)[None, :]
    start = starts + row * ((length + TIME - 1) // TIME + 1) * n * channels + k[None, :]
    for first in range(0, length, TIME):
        t = first + steps
        within = t < length
        inside = within[:, None] & live[None, :]
        at = (row * length + t)[:, None] * channels + k[None, :]
        step = tl.load(delta + at, mask=inside, other=0).to(WORK)
        x = tl.load(u + at, mask=inside, other=0).to(WORK)
        v, steady = (x * step)[:, None, :], step[:, None, :]
        forgets = _resets(reset, row * length + t, within, RESET, TIME)
        out = tl.full((TIME, STATES, CHANNELS), 0, WORK)
        for i in range(0, n, STATES):
            state = i + s
            there, some = within[:, None] & (state < n)[None, :], (state < n)[:, None] & live[None, :]
            edge, line = state[:, None] * channels, ((row * n + state) * length)[None, :] + t[:, None]
            rate = tl.load(A + edge + k[None, :], mask=some, other=-1).to(WORK) * LOG2_E
            b = tl.load(B + line, mask=there, other=0).to(WORK)[:, :, None]
            c = tl.load(C + line, mask=there, other=0).to(WORK)[:, :, None]
            before = tl.load(start + edge, mask=some, other=0).to(WORK)
            w = v * b if EVEN else tl.where(some[None], v * b, 0.0)
            h = _states(tl.exp2(steady * rate[None]), w, forgets, before[None], tau, RESET)
            out += c * h
            # steps past the end change nothing
            tl.store(start + n * channels + edge, row_of(h, tau, TIME - 1), mask=some)
        tl.store(y + at, tl.reduce(out, 1, add) + feed * x, mask=inside)
        start += n * channels
        tl.debug_barrier()  # the next piece reads what other threads have written


@triton.jit(do_not_specialize=["channels"])
def scan_adjoint(gy, carry, u, delta, A, B, C, D, reset, starts, gu, g_delta, gA, gB, gC, gD, length, channels, n,
                 RESET: tl.constexpr, EVEN: tl.constexpr, WORK: tl.constexpr, TIME: tl.constexpr,
                 CHANNELS: tl.constexpr, STATES: tl.constexpr):  # fmt: skip
    """Write the gradients, going back through the pieces."""
    lane = tl.arange(0, CHANNELS)
    row, k = tl.program_id(0).to(tl.int64), tl.program_id(1) * CHANNELS + lane
    block, rows = tl.program_id(1).to(tl.int64), tl.num_programs(0)
    steps, s = tl.arange(0, TIME), tl.arange(0, STATES)
    live, tau = k < channels, steps[:, None, None]
    feed = tl.load(D + k, mask=live, other=0).to(WORK)[None, :]
    g_feed = tl.full((CHANNELS,), 0, tl.float64)
    pieces = (length + TIME - 1) // TIME
    start = starts + (row * (pieces + 1) + pieces) * n * channels + k[None, :]
    for done in range(0, pieces):
        start -= n * channels
        first = (pieces - 1 - done) * TIME
        t = first + steps
        within = t < length
        inside = within[:, None] & live[None, :]
        at = (row * length + t)[:, None] * channels + k[None, :]
        # past the end a step of zero leaves the state and lets nothing in
        step = tl.load(delta + at, mask=inside, other=0).to(WORK)
        u_t = tl.load(u + at, mask=inside, other=0).to(WORK)
        gy_t = tl.load(gy + at, mask=inside, other=0).to(WORK)
        v, steady, out = (u_t * step)[:, None, :], step[:, None, :], gy_t[:, None, :]
        forgets = _resets(reset, row * length + t, within, RESET, TIME)
        gv = tl.full((TIME, STATES, CHANNELS), 0, WORK)
        g_exponent = tl.full((TIME, STATES, CHANNELS), 0, WORK)
        summed = first + lane // 2  # steps as sums over channels leave them
        for i in range(0, n, STATES):
            state = i + s
            there, some = within[:, None] & (state < n)[None, :], (state < n)[:, None] & live[None, :]
            edge, line = state[:, None] * channels, ((row * n + state) * length)[None, :] + t[:, None]
            held = row * n * channels + edge + k[None, :]
            a = tl.load(A + edge + k[None, :], mask=some, other=-1).to(WORK)[None]
            b = tl.load(B + line, mask=there, other=0).to(WORK)[:, :, None]
            c = tl.load(C + line, mask=there, other=0).to(WORK)[:, :, None]
            before = tl.load(start + edge, mask=some, other=0).to(WORK)[None]
            after = tl.load(carry + held, mask=some, other=0).to(WORK)[None]
            decay = tl.exp2(steady * (a * LOG2_E))
            w = v * b if EVEN else tl.where(some[None], v * b, 0.0)
            z = out * c if EVEN else tl.where(some[None], out * c, 0.0)
            kept = decay * _states_before(decay, w, forgets, before, tau, RESET)
            g = _gradients(decay, z, forgets, after, tau, RESET)
            passed = decay * g
            if RESET:
                kept, passed = tl.where(forgets != 0, 0.0, kept), tl.where(forgets != 0, 0.0, passed)
            through = g * kept
            gv += g * b
            g_exponent += through * a
            to = (((block * rows + row) * n + state) * length)[:, None] + summed[None, :]
            known = (state < n)[:, None] & ((lane % 2 == 0) & (summed < length))[None, :]
            tl.store(gC + to, tl.reshape(_over_channels(out * (kept + w), lane, TIME), known.shape), mask=known)
            tl.store(gB + to, tl.reshape(_over_channels(g * v, lane, TIME), known.shape), mask=known)
            total = tl.load(gA + held, mask=some, other=0) + tl.reduce(through * steady, 0, add).to(tl.float64)
            tl.store(gA + held, total, mask=some)
            tl.store(carry + held, row_of(passed, tau, 0), mask=some)
        of_input = tl.reduce(gv, 1, add)
        tl.store(gu + at, of_input * step + gy_t * feed, mask=inside)
        tl.store(g_delta + at, of_input * u_t + tl.reduce(g_exponent, 1, add), mask=inside)
        g_feed += tl.reduce(gy_t * u_t, 0, add).to(tl.float64)
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
    n, blocks = A.shape[1], -(-channels // CHANNELS)
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
    states = min(LAUNCH["STATES"], filled(max(1, n), 1))
    constants = {"RESET": reset is not None, "WORK": tl.float64 if dtype == torch.float64 else tl.float32}
    constants |= {"TIME": SEGMENT, "CHANNELS": CHANNELS, "STATES": states}
    constants["EVEN"] = channels % CHANNELS == 0 and n % states == 0
    grid = batch, -(-channels // CHANNELS)
    launch = LAUNCH | constants
    kernel[grid](*given, flags, *found, length, channels, n, **launch, num_warps=states)
