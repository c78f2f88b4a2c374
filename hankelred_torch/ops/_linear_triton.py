"""The recurrence ``x_t = a_t x_{t-1} + b_t`` and its adjoint, real or complex: Triton kernels for GPUs.

Names and shapes are those of `_linear_kernels`, and of `_scan` for planar arrays. All arguments are trusted.

A program takes one row and some states through time, tile after tile. A tile is CHUNKS chunks of STEPS steps; a lane
takes a chunk of one state, step after step, twice: from rest, to learn what comes out of it, and, once a scan over
lanes has joined the chunks, from the state that comes in. Of time-invariant factors the products over chunks and tiles
are formed once, in their own precision, so that a pole next to the unit circle keeps its decay in a float32 layer. What
varies is scanned in the wider precision of factors and inputs. Sums over time are carried in double precision, sums
over rows are torch's: the same numbers on every run. Reads and writes are those of the arrays, each once, but for
factors and states in the adjoint; inputs are read the second time from the cache.
"""

# Triton reads the annotations of kernels: only constants have one.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._scans_triton import add, ahead, ahead_complex, ahead_complex_reset, ahead_reset, row_of

# Steps of a chunk, bytes of states in a step, lanes of a warp, and warps: all lanes are states times chunks. Products
# of the factors of a chunk must not overflow. Nothing has been tuned on a GPU yet: other choices with their times are
# printed by `python -m benchmarks.speed.gpu --tune`. Arrays are taken to be unaligned (do_not_specialize), since a lane
# has one state then.
STEPS = 16
WIDTH = 128
LANES = 32
LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def _load(array, at, inside, apart, COMPLEX: tl.constexpr, SPACING: tl.constexpr, WORK: tl.constexpr):
    """Real and imaginary part; the real part twice if there is no other."""
    if SPACING == 2:  # side by side, and read together
        pairs = at[:, :, None] + tl.arange(0, 2)[None, None, :]
        both = tl.load(array + pairs, mask=tl.broadcast_to(inside, at.shape)[:, :, None], other=0).to(WORK)
        re, im = tl.split(both)
    else:
        re = tl.load(array + at, mask=inside, other=0).to(WORK)
        im = tl.load(array + at + apart, mask=inside, other=0).to(WORK) if COMPLEX else re
    return re, im


@triton.jit
def _store(array, at, re, im, inside, apart, COMPLEX: tl.constexpr, SPACING: tl.constexpr):
    if SPACING == 2:
        pairs = at[:, :, None] + tl.arange(0, 2)[None, None, :]
        tl.store(array + pairs, tl.join(re, im), mask=tl.broadcast_to(inside, at.shape)[:, :, None])
    else:
        tl.store(array + at, re, mask=inside)
        if COMPLEX:
            tl.store(array + at + apart, im, mask=inside)


@triton.jit
def _step(a_re, a_im, x_re, x_im, b_re, b_im, forgets, COMPLEX: tl.constexpr, RESET: tl.constexpr):
    """The state after a step."""
    if COMPLEX:
        re, im = a_re * x_re - a_im * x_im + b_re, a_re * x_im + a_im * x_re + b_im
        if RESET:
            re, im = tl.where(forgets, b_re, re), tl.where(forgets, b_im, im)
        return re, im
    re = a_re * x_re + b_re
    if RESET:
        re = tl.where(forgets, b_re, re)
    return re, re


@triton.jit
def _joined(a_re, a_im, w_re, w_im, f, e_re, e_im, whole_re, whole_im, x_re, x_im, chunk, COMPLEX: tl.constexpr,
            RESET: tl.constexpr, CONSTANT: tl.constexpr):  # fmt: skip
    """What comes in at each chunk, and out of the last one where factors are time-invariant, given the state before.

    Chunks have the product a of their factors, and make w of rest; e are the products before each chunk. The state
    before goes through chunk after chunk where it cannot go by products of a tile: they vary, or have left the range
    of numbers.
    """
    shape: tl.constexpr = w_re.shape
    last: tl.constexpr = shape[0] - 1
    one, none, zero = tl.full(shape, 1, w_re.dtype), tl.full(shape, -0.0, w_re.dtype), tl.full(shape, 0, w_re.dtype)
    nowhere, by_chunks = tl.full(shape, 0, tl.int32), chunk == chunk
    if CONSTANT:
        size = tl.abs(whole_re) + tl.abs(whole_im)
        by_chunks = tl.broadcast_to((size == 0) | (size - size != 0), shape)
    y_re = tl.where((chunk == 0) & by_chunks, tl.broadcast_to(x_re, shape), none)
    y_im = tl.where((chunk == 0) & by_chunks, tl.broadcast_to(x_im, shape), none)
    cut = nowhere
    if COMPLEX:
        if RESET:
            _, _, y_re, y_im, _, _, _, _, _, cut = tl.associative_scan(
                (one, zero, y_re, y_im, a_re, a_im, w_re, w_im, f, nowhere), 0, ahead_complex_reset
            )
        else:
            _, _, y_re, y_im, _, _, _, _ = tl.associative_scan(
                (one, zero, y_re, y_im, a_re, a_im, w_re, w_im), 0, ahead_complex
            )
    else:
        if RESET:
            _, y_re, _, _, _, cut = tl.associative_scan((one, y_re, a_re, w_re, f, nowhere), 0, ahead_reset)
        else:
            _, y_re, _, _ = tl.associative_scan((one, y_re, a_re, w_re), 0, ahead)
        y_im = y_re
    if CONSTANT:
        end_re, end_im = _step(a_re, a_im, y_re, y_im, w_re, w_im, f != 0, COMPLEX, RESET)
        end_re, end_im = row_of(end_re, chunk, last)[None, :], row_of(end_im, chunk, last)[None, :]
        there = row_of((((cut | f) != 0) | by_chunks).to(tl.int32), chunk, last)[None, :] != 0
        go_re, go_im = _step(whole_re, whole_im, x_re, x_im, end_re, end_im, there, COMPLEX, True)
        y_re, y_im = _step(e_re, e_im, x_re, x_im, y_re, y_im, (cut != 0) | by_chunks, COMPLEX, True)
        return y_re, y_im, go_re, go_im
    return y_re, y_im, x_re, x_im


@triton.jit
def _constants(a, products, row, column, live, a_row, width, im, x_re, x_im, CONSTANT: tl.constexpr, BACK: tl.constexpr,
               COMPLEX: tl.constexpr, SPACING: tl.constexpr, WORK: tl.constexpr, CHUNKS: tl.constexpr):  # fmt: skip
    """Time-invariant factors, and their products over a chunk, before each, and over a tile; conjugates going back.

    What nothing reads, of the shape of x, where factors vary.
    """
    if CONSTANT:
        table = products + row * (0 if a_row == 0 else (CHUNKS + 2) * width)
        before = column + (1 + tl.arange(0, CHUNKS))[:, None] * width
        c_re, c_im = _load(a + row * a_row, column, live, im, COMPLEX, SPACING, WORK)
        p_re, p_im = _load(table, column, live, im, COMPLEX, SPACING, WORK)
        e_re, e_im = _load(table, before, live, im, COMPLEX, SPACING, WORK)
        whole_re, whole_im = _load(table, column + (CHUNKS + 1) * width, live, im, COMPLEX, SPACING, WORK)
        if BACK:
            c_im, p_im, e_im, whole_im = -c_im, -p_im, -e_im, -whole_im
    else:
        c_re, c_im, p_re, p_im, e_re, e_im, whole_re, whole_im = x_re, x_im, x_re, x_im, x_re, x_im, x_re, x_im
    return c_re, c_im, p_re, p_im, e_re, e_im, whole_re, whole_im


@triton.jit
def _entering(s, a, c_re, c_im, b, reset, row, column, live, steps, width, a_row, a_step, im, BACK: tl.constexpr,
              REVERSE: tl.constexpr, RESET: tl.constexpr, COMPLEX: tl.constexpr, SPACING: tl.constexpr,
              CONSTANT: tl.constexpr, WORK: tl.constexpr):  # fmt: skip
    """Time, place, factor and input of steps s, and whether they forget; going back, what leads to the step after."""
    t = steps - 1 - s if REVERSE != BACK else s
    source, there = t, s < steps
    b_re, b_im = _load(b, (row * steps + t) * width + column, there & live, im, COMPLEX, SPACING, WORK)
    if BACK:
        source, there = t - 1 if REVERSE else t + 1, there & (s > 0)
    if CONSTANT:
        a_re, a_im = c_re, c_im
    else:
        at = row * a_row + source.to(tl.int64) * a_step + column
        a_re, a_im = _load(a, at, there & live, im, COMPLEX, SPACING, WORK)
        a_im = -a_im if BACK else a_im
    forgets = tl.load(reset + row * steps + source, mask=there, other=0) != 0 if RESET else there
    return t, (row * steps + t) * width + column, a_re, a_im, b_re, b_im, forgets


@triton.jit
def _entrances(first, a, c_re, c_im, p_re, p_im, e_re, e_im, whole_re, whole_im, x_re, x_im, b, reset, row, column,
               live, steps, width, a_row, a_step, im, BACK: tl.constexpr, REVERSE: tl.constexpr, RESET: tl.constexpr,
               COMPLEX: tl.constexpr, SPACING: tl.constexpr, CONSTANT: tl.constexpr, WORK: tl.constexpr,
               STEPS: tl.constexpr, CHUNKS: tl.constexpr, STATES: tl.constexpr):  # fmt: skip
    """What comes in at each chunk of a tile, and out of it where factors are time-invariant."""
    chunk, rest = tl.arange(0, CHUNKS)[:, None], tl.full((CHUNKS, STATES), 0, WORK)
    w_re, w_im, f = rest, rest, tl.full((CHUNKS, STATES), 0, tl.int32)
    q_re, q_im = tl.full((CHUNKS, STATES), 1, WORK), rest
    for j in tl.static_range(0, STEPS):
        _, _, a_re, a_im, b_re, b_im, forgets = _entering(
            first + chunk * STEPS + j, a, c_re, c_im, b, reset, row, column, live, steps, width, a_row, a_step, im,
            BACK, REVERSE, RESET, COMPLEX, SPACING, CONSTANT, WORK
        )  # fmt: skip
        w_re, w_im = _step(a_re, a_im, w_re, w_im, b_re, b_im, forgets, COMPLEX, RESET)
        if not CONSTANT:
            q_re, q_im = _step(a_re, a_im, q_re, q_im, rest, rest, forgets, COMPLEX, False)
        if RESET:
            f |= forgets.to(tl.int32)
    if CONSTANT:
        q_re, q_im = tl.broadcast_to(p_re, rest.shape), tl.broadcast_to(p_im, rest.shape)
    return _joined(
        q_re, q_im, w_re, w_im, f, e_re, e_im, whole_re, whole_im, x_re, x_im, chunk, COMPLEX, RESET, CONSTANT
    )


@triton.jit(do_not_specialize=["n"])
def scan(a, products, before, b, reset, x, steps, n, a_row, a_step, im, REVERSE: tl.constexpr, RESET: tl.constexpr,
         COMPLEX: tl.constexpr, SPACING: tl.constexpr, CONSTANT: tl.constexpr, WORK: tl.constexpr, STEPS: tl.constexpr,
         CHUNKS: tl.constexpr, STATES: tl.constexpr):  # fmt: skip
    """Write the states. Of state k the real part is at ``k SPACING``, the imaginary part ``im`` behind it."""
    row, k = tl.program_id(0).to(tl.int64), tl.program_id(1) * STATES + tl.arange(0, STATES)
    live, column, width = (k < n)[None, :], (k * SPACING)[None, :], n * (2 if COMPLEX else 1)
    chunk = tl.arange(0, CHUNKS)[:, None]
    x_re, x_im = _load(before + row * width, column, live, im, COMPLEX, SPACING, WORK)
    c_re, c_im, p_re, p_im, e_re, e_im, whole_re, whole_im = _constants(
        a, products, row, column, live, a_row, width, im, x_re, x_im, CONSTANT, False, COMPLEX, SPACING, WORK, CHUNKS
    )
    for first in range(0, steps, STEPS * CHUNKS):
        y_re, y_im, x_re, x_im = _entrances(
            first, a, c_re, c_im, p_re, p_im, e_re, e_im, whole_re, whole_im, x_re, x_im, b, reset, row, column, live,
            steps, width, a_row, a_step, im, False, REVERSE, RESET, COMPLEX, SPACING, CONSTANT, WORK, STEPS, CHUNKS,
            STATES
        )  # fmt: skip
        for j in tl.static_range(0, STEPS):
            s = first + chunk * STEPS + j
            _, at, a_re, a_im, b_re, b_im, forgets = _entering(
                s, a, c_re, c_im, b, reset, row, column, live, steps, width, a_row, a_step, im, False, REVERSE, RESET,
                COMPLEX, SPACING, CONSTANT, WORK
            )  # fmt: skip
            y_re, y_im = _step(a_re, a_im, y_re, y_im, b_re, b_im, forgets, COMPLEX, RESET)
            _store(x, at, y_re, y_im, (s < steps) & live, im, COMPLEX, SPACING)
        if not CONSTANT:
            x_re, x_im = row_of(y_re, chunk, CHUNKS - 1)[None, :], row_of(y_im, chunk, CHUNKS - 1)[None, :]


@triton.jit(do_not_specialize=["n"])
def scan_adjoint(a, products, before, x, gx, reset, gb, ga, steps, n, a_row, a_step, im, REVERSE: tl.constexpr,
                 RESET: tl.constexpr, COMPLEX: tl.constexpr, SPACING: tl.constexpr, CONSTANT: tl.constexpr,
                 WORK: tl.constexpr, STEPS: tl.constexpr, CHUNKS: tl.constexpr, STATES: tl.constexpr):  # fmt: skip
    """Write ``g_t = gx_t + conj(a_{t+1}) g_{t+1}`` and ``conj(x_{t-1}) g_t``, or the sum of the latter over time."""
    row, k = tl.program_id(0).to(tl.int64), tl.program_id(1) * STATES + tl.arange(0, STATES)
    live, column, width = (k < n)[None, :], (k * SPACING)[None, :], n * (2 if COMPLEX else 1)
    chunk, step = tl.arange(0, CHUNKS)[:, None], 1 if REVERSE else -1  # to the step before, in time
    start_re, start_im = _load(before + row * width, column, live, im, COMPLEX, SPACING, WORK)
    g_re, g_im = tl.full((1, STATES), 0, WORK), tl.full((1, STATES), 0, WORK)
    sum_re, sum_im = tl.full((CHUNKS, STATES), 0, tl.float64), tl.full((CHUNKS, STATES), 0, tl.float64)
    c_re, c_im, p_re, p_im, e_re, e_im, whole_re, whole_im = _constants(
        a, products, row, column, live, a_row, width, im, g_re, g_im, CONSTANT, True, COMPLEX, SPACING, WORK, CHUNKS
    )
    for first in range(0, steps, STEPS * CHUNKS):
        y_re, y_im, g_re, g_im = _entrances(
            first, a, c_re, c_im, p_re, p_im, e_re, e_im, whole_re, whole_im, g_re, g_im, gx, reset, row, column, live,
            steps, width, a_row, a_step, im, True, REVERSE, RESET, COMPLEX, SPACING, CONSTANT, WORK, STEPS, CHUNKS,
            STATES
        )  # fmt: skip
        for j in tl.static_range(0, STEPS):
            s = first + chunk * STEPS + j  # from the end of time
            t, at, a_re, a_im, b_re, b_im, forgets = _entering(
                s, a, c_re, c_im, gx, reset, row, column, live, steps, width, a_row, a_step, im, True, REVERSE, RESET,
                COMPLEX, SPACING, CONSTANT, WORK
            )  # fmt: skip
            y_re, y_im = _step(a_re, a_im, y_re, y_im, b_re, b_im, forgets, COMPLEX, RESET)
            within, past = (s < steps) & live, s < steps - 1
            _store(gb, at, y_re, y_im, within, im, COMPLEX, SPACING)
            x_re, x_im = _load(x, at + step * width, past & live, im, COMPLEX, SPACING, WORK)
            x_re, x_im = tl.where(past, x_re, start_re), tl.where(past, x_im, start_im)
            kept = within
            if RESET:
                kept = kept & (tl.load(reset + row * steps + t, mask=s < steps, other=1) == 0)
            if COMPLEX:
                h_re, h_im = x_re * y_re + x_im * y_im, x_re * y_im - x_im * y_re
            else:
                h_re, h_im = x_re * y_re, x_re
            h_re, h_im = tl.where(kept, h_re, 0), tl.where(kept, h_im, 0)
            if CONSTANT:
                sum_re += h_re.to(tl.float64)
                if COMPLEX:
                    sum_im += h_im.to(tl.float64)
            else:
                _store(ga, at, h_re, h_im, within, im, COMPLEX, SPACING)
        if not CONSTANT:
            g_re, g_im = row_of(y_re, chunk, CHUNKS - 1)[None, :], row_of(y_im, chunk, CHUNKS - 1)[None, :]
    if CONSTANT:
        sum_re, sum_im = tl.reduce(sum_re, 0, add)[None, :], tl.reduce(sum_im, 0, add)[None, :]
        _store(ga + row * width, column, sum_re, sum_im, live, im, COMPLEX, SPACING)


def states(a: Tensor, b: Tensor, before: Tensor, reset: Tensor | None, reverse: bool) -> Tensor:
    """Return the states, of the shape and dtype of b."""
    x, n = torch.empty_like(b, memory_format=torch.contiguous_format), b.shape[2]
    arguments = (*_factors(a, b.dtype), *(_flat(z) for z in (before, b)))
    _launch(scan, arguments, (_flat(x),), a, b, reset, reverse, n)
    return x


def states_adjoint(
    a: Tensor, x: Tensor, before: Tensor, gx: Tensor, reset: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of a and b."""
    rows, steps, n = x.shape
    gb, varies = torch.empty_like(x, memory_format=torch.contiguous_format), a.shape[1] > 1
    ga = torch.zeros((rows, steps if varies else 1, n), dtype=a.dtype if varies else _double(a.dtype), device=a.device)
    arguments = (*_factors(a, x.dtype), *(_flat(z) for z in (before, x, gx)))
    _launch(scan_adjoint, arguments, (_flat(gb), _flat(ga)), a, x, reset, reverse, n)
    return ga.sum_to_size(len(a), a.shape[1], n).to(a.dtype), gb


def planar_states(lam: Tensor, v: Tensor) -> None:
    """Turn planar inputs into states from rest, in place."""
    rest, n = v.new_zeros(len(v), v.shape[2]), lam.shape[1]
    _launch(scan, (*_planar_factors(lam, v.dtype), rest, v), (v,), lam[None, :1], v, None, False, n, planar=True)


def planar_states_adjoint(lam: Tensor, x: Tensor, g: Tensor, total: Tensor) -> None:
    """Turn gradients of planar states through the output into those in total, in place, and add to that of lam."""
    rest, n = x.new_zeros(len(x), x.shape[2]), lam.shape[1]
    ga = total.new_zeros(len(x), 2 * n)
    arguments = (*_planar_factors(lam, x.dtype), rest, x, g)
    _launch(scan_adjoint, arguments, (g, ga), lam[None, :1], x, None, False, n, planar=True)
    total += ga.sum(0).view(2, n)


def _launch(
    kernel: Any,
    arguments: tuple[Tensor, ...],
    found: tuple[Tensor, ...],
    a: Tensor,
    b: Tensor,
    reset: Tensor | None,
    reverse: bool,
    n: int,
    planar: bool = False,
) -> None:
    """Run a kernel on flat real arrays; a and b are the factors and inputs that tell shapes and kinds."""
    rows, steps, _ = b.shape
    if 0 in b.shape:
        return
    is_complex, varies = planar or b.is_complex(), a.shape[1] > 1
    width = 2 * n if is_complex else n
    flags = arguments[0] if reset is None else reset.contiguous().view(torch.uint8)
    strides = a.shape[1] * width if len(a) > 1 else 0, width if varies else 0
    constants = {
        "REVERSE": reverse,
        "RESET": reset is not None,
        "COMPLEX": is_complex,
        "SPACING": 2 if is_complex and not planar else 1,
        "CONSTANT": not varies,
        "WORK": WORK[arguments[0].dtype],
    }
    states, chunks = _shape(arguments[0].element_size() * (2 if is_complex else 1))
    grid = rows, -(-n // states)
    kernel[grid](
        *arguments,
        flags,
        *found,
        steps,
        n,
        *strides,
        n if planar else 1,
        **constants,
        STEPS=STEPS,
        CHUNKS=chunks,
        STATES=states,
        **LAUNCH,
    )


WORK = {torch.float32: tl.float32, torch.float64: tl.float64}


def _shape(size: int) -> tuple[int, int]:
    """Return how many states of so many bytes a program takes, and chunks of a tile, a place for every lane."""
    states = min(LANES, max(1, WIDTH // size))
    return states, max(1, LANES * LAUNCH["num_warps"] // states)


def _factors(a: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the factors in the precision to work in, and the products of them in a tile where they stay the same."""
    if a.shape[1] > 1:
        a = a.to(torch.promote_types(torch.promote_types(a.dtype, dtype), torch.float32))
        return _flat(a), _flat(a)
    work = torch.promote_types(dtype, torch.float32)
    return _flat(a.to(work)), _flat(_powers(a, torch.empty((), dtype=work).element_size()).to(work))


def _planar_factors(lam: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    powers = _powers(torch.complex(lam[0], lam[1])[None, None], 2 * torch.empty((), dtype=dtype).element_size())[0]
    return lam.to(dtype), torch.cat([powers.real, powers.imag], -1).to(dtype)


def _powers(a: Tensor, size: int) -> Tensor:
    """Return products of factors (rows or 1, 1, n) over a chunk, over all chunks before each one, and over a tile."""
    chunk = a.expand(-1, STEPS, -1).prod(1, keepdim=True)
    before = chunk.expand(-1, _shape(size)[1], -1).cumprod(1)
    return torch.cat([chunk, torch.ones_like(chunk), before], 1)


def _flat(z: Tensor) -> Tensor:
    """Return a real array of the entries in the order of memory, (..., 2n) for complex ones."""
    return torch.view_as_real(z.resolve_conj()).flatten(-2).contiguous() if z.is_complex() else z.contiguous()


def _double(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64
