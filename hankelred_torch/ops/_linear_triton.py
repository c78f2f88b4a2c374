"""The recurrence ``x_t = a_t x_{t-1} + b_t`` and its adjoint, real or complex: Triton kernels for GPUs.

Names and shapes are those of `_linear_kernels`, and of `_scan` for planar arrays. All arguments are trusted.

A program takes one row and some states through time, tile after tile: a tile of TIME steps is scanned from rest, and
the state before it comes in by products of factors. Time-invariant factors have these products formed once, in their
own precision, so that a pole next to the unit circle keeps its decay in a float32 layer. What varies is scanned in the
wider precision of factors and inputs. Sums over time are carried in double precision, sums over rows are torch's: the
same numbers on every run. Reads and writes are those of the arrays, each once, but for factors and states in the
adjoint.
"""

# Triton reads the annotations of kernels: only constants have one.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Steps of a tile, bytes of states in a step of it, warps, and tiles under way: those of complex128 just fit into the
# shared memory of every GPU. Products of TIME factors must not overflow. Nothing has been
# tuned on a GPU yet: `python -m benchmarks.speed.gpu --tune` prints other choices with their times.
TIME = 32
WIDTH = 128
LAUNCH = {"STAGES": 3, "num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def _real(a, x, b, y):
    return a * b, b * x + y


@triton.jit
def _real_reset(a, x, f, b, y, g):
    return a * b, tl.where(g != 0, y, b * x + y), f | g


@triton.jit
def _complex(a_re, a_im, x_re, x_im, b_re, b_im, y_re, y_im):
    re, im = b_re * x_re - b_im * x_im + y_re, b_re * x_im + b_im * x_re + y_im
    return a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re, re, im


@triton.jit
def _complex_reset(a_re, a_im, x_re, x_im, f, b_re, b_im, y_re, y_im, g):
    re, im = b_re * x_re - b_im * x_im + y_re, b_re * x_im + b_im * x_re + y_im
    factor_re, factor_im = a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re
    return factor_re, factor_im, tl.where(g != 0, y_re, re), tl.where(g != 0, y_im, im), f | g


@triton.jit
def _add(x, y):
    return x + y


@triton.jit
def _load(array, at, inside, im, COMPLEX: tl.constexpr, WORK: tl.constexpr):
    """Real and imaginary part; the real part twice if there is no other."""
    re = tl.load(array + at, mask=inside, other=0).to(WORK)
    if COMPLEX:
        return re, tl.load(array + at + im, mask=inside, other=0).to(WORK)
    return re, re


@triton.jit
def _tile(
    a_re,
    a_im,
    b_re,
    b_im,
    f,
    p_re,
    p_im,
    x_re,
    x_im,
    COMPLEX: tl.constexpr,
    RESET: tl.constexpr,
    CONSTANT: tl.constexpr,
):
    """States of a tile, given the state before it; p are the products of time-invariant factors."""
    if COMPLEX:
        if RESET:
            q_re, q_im, s_re, s_im, f = tl.associative_scan((a_re, a_im, b_re, b_im, f), 0, _complex_reset)
        else:
            q_re, q_im, s_re, s_im = tl.associative_scan((a_re, a_im, b_re, b_im), 0, _complex)
        if CONSTANT:
            q_re, q_im = p_re, p_im
        re, im = s_re + q_re * x_re - q_im * x_im, s_im + q_re * x_im + q_im * x_re
        if RESET:
            re, im = tl.where(f != 0, s_re, re), tl.where(f != 0, s_im, im)
        return re, im
    if RESET:
        q, s, f = tl.associative_scan((a_re, b_re, f), 0, _real_reset)
    else:
        q, s = tl.associative_scan((a_re, b_re), 0, _real)
    if CONSTANT:
        q = p_re
    x = s + q * x_re
    if RESET:
        x = tl.where(f != 0, s, x)
    return x, x


@triton.jit
def _last(tile, tau, TIME: tl.constexpr):
    """Last row of a tile."""
    return tl.reduce(tl.where((tau == TIME - 1)[:, None], tile, 0), 0, _add)[None, :]


@triton.jit
def scan(a, products, before, b, reset, x, steps, n, a_row, a_step, im, REVERSE: tl.constexpr, RESET: tl.constexpr,
         COMPLEX: tl.constexpr, SPACING: tl.constexpr, CONSTANT: tl.constexpr, WORK: tl.constexpr, TIME: tl.constexpr,
         STATES: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """Write the states. Of state k the real part is at ``k SPACING``, the imaginary part ``im`` behind it."""
    row, k = tl.program_id(0).to(tl.int64), tl.program_id(1) * STATES + tl.arange(0, STATES)
    live, column, width = (k < n)[None, :], (k * SPACING)[None, :], n * (2 if COMPLEX else 1)
    tau = tl.arange(0, TIME)
    x_re, x_im = _load(before + row * width, column, live, im, COMPLEX, WORK)
    p_re, p_im = x_re, x_im
    if CONSTANT:
        at = row * (0 if a_row == 0 else TIME * width) + tau[:, None] * width + column
        p_re, p_im = _load(products, at, live, im, COMPLEX, WORK)
    for first in tl.range(0, steps, TIME, num_stages=STAGES):
        s = first + tau
        t = steps - 1 - s if REVERSE else s
        within = s < steps
        inside = within[:, None] & live
        at = (row * steps + t)[:, None] * width + column
        b_re, b_im = _load(b, at, inside, im, COMPLEX, WORK)
        a_re, a_im = _load(a, row * a_row + t[:, None] * a_step + column, inside, im, COMPLEX, WORK)
        f = tl.full((TIME, STATES), 0, tl.int32)
        if RESET:
            f |= tl.load(reset + row * steps + t, mask=within, other=0)[:, None]
        x_re, x_im = _tile(a_re, a_im, b_re, b_im, f, p_re, p_im, x_re, x_im, COMPLEX, RESET, CONSTANT)
        tl.store(x + at, x_re, mask=inside)
        if COMPLEX:
            tl.store(x + at + im, x_im, mask=inside)
        x_re, x_im = _last(x_re, tau, TIME), _last(x_im, tau, TIME)


@triton.jit
def scan_adjoint(a, products, before, x, gx, reset, gb, ga, steps, n, a_row, a_step, im, REVERSE: tl.constexpr,
                 RESET: tl.constexpr, COMPLEX: tl.constexpr, SPACING: tl.constexpr, CONSTANT: tl.constexpr,
                 WORK: tl.constexpr, TIME: tl.constexpr, STATES: tl.constexpr,
                 STAGES: tl.constexpr):  # fmt: skip
    """Write ``g_t = gx_t + conj(a_{t+1}) g_{t+1}`` and ``conj(x_{t-1}) g_t``, or the sum of the latter over time."""
    row, k = tl.program_id(0).to(tl.int64), tl.program_id(1) * STATES + tl.arange(0, STATES)
    live, column, width = (k < n)[None, :], (k * SPACING)[None, :], n * (2 if COMPLEX else 1)
    tau = tl.arange(0, TIME)
    start_re, start_im = _load(before + row * width, column, live, im, COMPLEX, WORK)
    g_re, g_im = tl.full((1, STATES), 0, WORK), tl.full((1, STATES), 0, WORK)
    sum_re, sum_im = tl.full((1, STATES), 0, tl.float64), tl.full((1, STATES), 0, tl.float64)
    p_re, p_im = g_re, g_im
    if CONSTANT:
        at = row * (0 if a_row == 0 else TIME * width) + tau[:, None] * width + column
        p_re, p_im = _load(products, at, live, im, COMPLEX, WORK)
        p_im = -p_im
    for first in tl.range(0, steps, TIME, num_stages=STAGES):
        s = first + tau  # from the end of time
        t = s if REVERSE else steps - 1 - s
        step = 1 if REVERSE else -1  # to the step before, in time
        within, past, later = s < steps, s < steps - 1, (s > 0) & (s < steps)
        inside = within[:, None] & live
        at = (row * steps + t)[:, None] * width + column
        b_re, b_im = _load(gx, at, inside, im, COMPLEX, WORK)
        at_a = row * a_row + (t - step)[:, None] * a_step + column
        a_re, a_im = _load(a, at_a, later[:, None] & live, im, COMPLEX, WORK)
        f = tl.full((TIME, STATES), 0, tl.int32)
        if RESET:
            f |= tl.load(reset + row * steps + t - step, mask=later, other=0)[:, None]
        g_re, g_im = _tile(a_re, -a_im, b_re, b_im, f, p_re, p_im, g_re, g_im, COMPLEX, RESET, CONSTANT)
        tl.store(gb + at, g_re, mask=inside)
        x_re, x_im = _load(x, at + step * width, past[:, None] & live, im, COMPLEX, WORK)
        x_re = tl.where(past[:, None], x_re, start_re)
        kept = inside
        if RESET:
            kept = kept & (tl.load(reset + row * steps + t, mask=within, other=1) == 0)[:, None]
        if COMPLEX:
            tl.store(gb + at + im, g_im, mask=inside)
            x_im = tl.where(past[:, None], x_im, start_im)
            a_im = tl.where(kept, x_re * g_im - x_im * g_re, 0)
            a_re = tl.where(kept, x_re * g_re + x_im * g_im, 0)
        else:
            a_re = tl.where(kept, x_re * g_re, 0)
        if CONSTANT:
            sum_re += tl.reduce(a_re, 0, _add)[None, :]
            if COMPLEX:
                sum_im += tl.reduce(a_im, 0, _add)[None, :]
        else:
            tl.store(ga + at, a_re, mask=inside)
            if COMPLEX:
                tl.store(ga + at + im, a_im, mask=inside)
        g_re, g_im = _last(g_re, tau, TIME), _last(g_im, tau, TIME)
    if CONSTANT:
        tl.store(ga + row * width + column, sum_re, mask=live)
        if COMPLEX:
            tl.store(ga + row * width + column + im, sum_im, mask=live)


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
    states = max(1, WIDTH // arguments[0].element_size() // (2 if is_complex else 1))
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
        TIME=TIME,
        STATES=states,
        **LAUNCH,
    )


WORK = {torch.float32: tl.float32, torch.float64: tl.float64}


def _factors(a: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the factors in the precision to work in, and products of TIME of them where they stay the same."""
    if a.shape[1] > 1:
        a = a.to(torch.promote_types(torch.promote_types(a.dtype, dtype), torch.float32))
        return _flat(a), _flat(a)
    work = torch.promote_types(dtype, torch.float32)
    return _flat(a.to(work)), _flat(a.expand(-1, TIME, -1).cumprod(1).to(work))


def _planar_factors(lam: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    products = torch.complex(lam[0], lam[1]).expand(TIME, -1).cumprod(0)
    return lam.to(dtype), torch.cat([products.real, products.imag], -1).to(dtype)


def _flat(z: Tensor) -> Tensor:
    """Return a real array of the entries in the order of memory, (..., 2n) for complex ones."""
    return torch.view_as_real(z.resolve_conj()).flatten(-2).contiguous() if z.is_complex() else z.contiguous()


def _double(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64
