"""Gramian factors of many small diagonal systems and their adjoint: Triton kernels for GPUs, all arguments trusted.

Arguments and results are those of `_factors_torch`, whose loops over states these kernels take into one program for
each system: rows of the generator, or of the adjoint, stay in registers from the first pivot to the last.
"""

# Triton reads the annotations of kernels: only constants have one.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hankelred.linalg.cauchy import SMALLEST_SHARE
from hankelred.linalg.cauchy_factor import REFLECTION_NOISE

from ._factors_torch import PoleTensors

# States and inputs up to which a system fits into the registers of one program, in double precision.
MOST_STATES = 64

# Warps for the states of a system, filled up to a power of two; not tuned on a GPU yet.
WARPS = {16: 1, 32: 4, 64: 8}

# Constants of kernels, which would be float32 as arguments.
SHARE = tl.constexpr(SMALLEST_SHARE)


@triton.jit
def load(array, at, inside, COMPLEX: tl.constexpr):
    """Real and imaginary parts of numbers, which are zero outside."""
    if COMPLEX:
        re = tl.load(array + 2 * at, mask=inside, other=0)
        return re, tl.load(array + 2 * at + 1, mask=inside, other=0)
    re = tl.load(array + at, mask=inside, other=0)
    return re, tl.full(re.shape, 0, re.dtype)


@triton.jit
def store(array, at, re, im, inside, COMPLEX: tl.constexpr):
    if COMPLEX:
        tl.store(array + 2 * at, re, mask=inside)
        tl.store(array + 2 * at + 1, im, mask=inside)
    else:
        tl.store(array + at, re, mask=inside)


@triton.jit
def times(a_re, a_im, b_re, b_im):
    return a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re


@triton.jit
def over(a_re, a_im, b_re, b_im):
    scale = 1.0 / (b_re * b_re + b_im * b_im)
    return (a_re * b_re + a_im * b_im) * scale, (a_im * b_re - a_re * b_im) * scale


@triton.jit
def picked(re, im, chosen, axis: tl.constexpr):
    """The one row or column of a tile that is chosen."""
    return tl.sum(tl.where(chosen, re, 0.0), axis), tl.sum(tl.where(chosen, im, 0.0), axis)


@triton.jit
def factor(gap, mirror, turn, difference, B, linked, columns, pivots, w, beta, n, m, NOISE: tl.constexpr,
           COMPLEX: tl.constexpr, STATES: tl.constexpr, INPUTS: tl.constexpr):  # fmt: skip
    """Write columns, pivots and reflections of one factor, as `_factors_torch.factor_torch` does."""
    system = tl.program_id(0).to(tl.int64)
    i, j = tl.arange(0, STATES), tl.arange(0, INPUTS)
    here, at = i < n, system * n + i
    inside = here[:, None] & (j < m)[None, :]
    gaps = tl.load(gap + at, mask=here, other=1)
    g_re, g_im = load(B, at[:, None] * m + j[None, :], inside, COMPLEX)
    size = tl.sum(g_re * g_re + g_im * g_im, 1) / gaps
    first = tl.load(linked + at, mask=here, other=1) != 0
    left = here
    parts = tl.max(tl.where(first, 0, 1), 0)  # 1 while other rows come first
    floor = SHARE * tl.sum(tl.where((parts == 0) | first, size, 0.0), 0)
    for step in range(0, n):
        spent = (parts == 1) & (tl.sum(tl.where(first, size, 0.0), 0) <= floor)  # rows that are done have size 0
        parts, floor = tl.where(spent, 0, parts), tl.where(spent, SHARE * tl.sum(size, 0), floor)
        eligible = tl.where((parts == 0) | first, size, 0.0)
        is_live = tl.sum(eligible, 0) > floor
        live, floor = tl.where(is_live, 1.0, 0.0), tl.where(is_live, floor, float("inf"))  # from then on nothing is
        k = tl.argmax(eligible, 0)
        chosen = i == k
        where = system * n + step
        q = 0
        if INPUTS > 1:
            row_re, row_im = picked(g_re, g_im, chosen[:, None], 0)
            modulus = tl.sqrt(row_re * row_re + row_im * row_im)
            q = tl.argmax(modulus, 0)
            length = tl.sqrt(tl.sum(modulus * modulus, 0))
            length = tl.where(length > 0, length, 1.0)
            w_re, w_im = live * row_re / length, -live * row_im / length
            at_q = tl.sum(tl.where(j == q, modulus, 0.0), 0) / length
            phase = live / tl.where(at_q > 0, at_q, 1.0)
            w_re, w_im = w_re + tl.where(j == q, w_re * phase, 0.0), w_im + tl.where(j == q, w_im * phase, 0.0)
            b = live / (1.0 + at_q)
            p_re, p_im = times(g_re, g_im, w_re[None, :], w_im[None, :])
            p_re, p_im = b * tl.sum(p_re, 1)[:, None], b * tl.sum(p_im, 1)[:, None]
            t_re, t_im = times(p_re, p_im, w_re[None, :], -w_im[None, :])
            g_re, g_im = g_re - t_re, g_im - t_im
        else:
            w_re, w_im, b = tl.full((INPUTS,), 0, tl.float64), tl.full((INPUTS,), 0, tl.float64), 0.0
        store(w, where * m + j, w_re, w_im, j < m, COMPLEX)
        tl.store(beta + where, b)
        tl.store(pivots + where, tl.where(is_live, k, -1).to(tl.int64))
        moved = (j == q)[None, :]
        entry_re, entry_im = picked(g_re, g_im, moved, 1)
        d_re, d_im = load(difference, at * n + k, here, COMPLEX)
        gap_k = tl.load(gap + system * n + k)
        mirror_re, mirror_im = load(mirror, system * n + k, k < n, COMPLEX)
        turn_re, turn_im = load(turn, system * n + k, k < n, COMPLEX)
        t_re, t_im = times(d_re, d_im, mirror_re, mirror_im)
        x_re, x_im = over(entry_re, entry_im, gap_k - t_re, -t_im)
        kept = tl.where(left, live * tl.sqrt(gap_k), 0.0)
        store(columns, where * n + i, kept * x_re, kept * x_im, here, COMPLEX)
        x_re, x_im = times(x_re, x_im, d_re, d_im)
        x_re, x_im = times(x_re, x_im, turn_re, turn_im)
        left = left & (i != tl.where(is_live, k, -1))
        new_re = tl.where(left[:, None], tl.where(moved, x_re[:, None], g_re), 0.0)
        new_im = tl.where(left[:, None], tl.where(moved, x_im[:, None], g_im), 0.0)
        new_size = tl.sum(new_re * new_re + new_im * new_im, 1) / gaps
        rounding = (d_re == 0) & (d_im == 0) & (new_size <= NOISE * size)
        g_re, g_im = tl.where(rounding[:, None], 0.0, new_re), tl.where(rounding[:, None], 0.0, new_im)
        size = tl.where(rounding, 0.0, new_size)


@triton.jit
def factor_adjoint(lam, gap, mirror, turn, denominator, columns, pivots, w, beta, F, g_poles, g_B, n, m,
                   COMPLEX: tl.constexpr, DISCRETE: tl.constexpr, STATES: tl.constexpr,
                   INPUTS: tl.constexpr):  # fmt: skip
    """Write the gradients of one factor, as `_factors_torch.factor_adjoint_torch` does.

    Rows of the tiles are columns of the factor: of H, states are its columns, and of Y, ``B = S Y``, inputs.
    """
    system = tl.program_id(0).to(tl.int64)
    i, l, j = tl.arange(0, STATES), tl.arange(0, STATES), tl.arange(0, INPUTS)
    here, at = i < n, system * n + i
    H_re, H_im = tl.full((STATES, STATES), 0, tl.float64), tl.full((STATES, STATES), 0, tl.float64)
    Y_re, Y_im = tl.full((STATES, INPUTS), 0, tl.float64), tl.full((STATES, INPUTS), 0, tl.float64)
    total_re, total_im = tl.full((STATES,), 0, tl.float64), tl.full((STATES,), 0, tl.float64)
    mirrors_re, mirrors_im = load(mirror, at, here, COMPLEX)
    for back in range(0, n):
        step = n - 1 - back
        where = system * n + step
        pivot = tl.load(pivots + where)
        live = tl.where(pivot >= 0, 1.0, 0.0)
        k = tl.maximum(pivot, 0)
        w_re, w_im = load(w, where * m + j, j < m, COMPLEX)
        b = tl.load(beta + where)
        moved = (j == tl.argmax(w_re * w_re + w_im * w_im, 0))[None, :]
        root = live * tl.sqrt(tl.load(gap + system * n + k))
        lam_re, lam_im = load(lam, system * n + k, k < n, COMPLEX)
        mirror_re, mirror_im = load(mirror, system * n + k, k < n, COMPLEX)
        phase_re, phase_im = load(turn, system * n + k, k < n, COMPLEX)
        phase_im = -phase_im
        y_re, y_im = picked(Y_re, Y_im, moved, 1)
        M_re, M_im = times(y_re, y_im, root * phase_re, root * phase_im)
        # rows of H up to this step are still zero
        past_re, past_im = times(H_re, H_im, M_re[:, None], M_im[:, None])
        past_re, past_im = tl.sum(past_re, 0), tl.sum(past_im, 0)
        t_re, t_im = times(past_re, past_im, mirrors_re, mirrors_im)
        f_re, f_im = load(F, where * n + i, here, COMPLEX)
        d_re, d_im = load(denominator, at * n + k, here, COMPLEX)
        h_re, h_im = over(live * (f_re + t_re), live * (f_im + t_im), tl.where(here, d_re, 1.0), -d_im)
        H_re, H_im = (
            tl.where((l == step)[:, None], h_re[None, :], H_re),
            tl.where((l == step)[:, None], h_im[None, :], H_im),
        )
        if DISCRETE:
            h_re, h_im = times(h_re, h_im, lam_re, lam_im)
            h_re, h_im = h_re + past_re, h_im + past_im
        c_re, c_im = load(columns, where * n + i, here, COMPLEX)
        t_re, t_im = times(h_re, h_im, c_re, -c_im)
        total_re, total_im = total_re + live * t_re, total_im + live * t_im
        t_re, t_im = times(mirror_re, mirror_im, phase_re, phase_im)
        t_re, t_im = times(y_re, y_im, live * (-t_re - 1.0), -live * t_im)
        Y_re, Y_im = Y_re + tl.where(moved, t_re[:, None], 0.0), Y_im + tl.where(moved, t_im[:, None], 0.0)
        Y_re = tl.where((l == step)[:, None], tl.where(moved, root, 0.0), Y_re)
        Y_im = tl.where((l == step)[:, None], 0.0, Y_im)
        p_re, p_im = times(Y_re, Y_im, w_re[None, :], w_im[None, :])
        p_re, p_im = b * tl.sum(p_re, 1)[:, None], b * tl.sum(p_im, 1)[:, None]
        t_re, t_im = times(p_re, p_im, w_re[None, :], -w_im[None, :])
        Y_re, Y_im = Y_re - t_re, Y_im - t_im
    store(g_poles, at, total_re, total_im, here, COMPLEX)
    for c in range(0, m):
        y_re, y_im = picked(Y_re, Y_im, (j == c)[None, :], 1)
        t_re, t_im = times(H_re, H_im, y_re[:, None], y_im[:, None])
        store(g_B, at * m + c, tl.sum(t_re, 0), tl.sum(t_im, 0), here, COMPLEX)


def fits(B: Tensor) -> bool:
    """Tell whether systems with input matrices (batch, n, m) are small enough."""
    return max(B.shape[1:]) <= MOST_STATES


def factor_triton(poles: PoleTensors, B: Tensor, linked: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return columns, pivots and reflections of the factors."""
    batch, n, m = B.shape
    columns, w = B.new_empty(batch, n, n), B.new_empty(batch, n, m)
    pivots, beta = B.new_empty(batch, n, dtype=torch.int64), poles.gap.new_empty(batch, n)
    read = (poles.gap, *(parts(x) for x in (poles.mirror, poles.turn, poles.difference, B)), linked.to(torch.uint8))
    found = parts(columns), pivots, parts(w), beta
    _launch(factor, B, *read, *found, n, m, NOISE=(m * REFLECTION_NOISE) ** 2)
    return columns, pivots, w, beta


def factor_adjoint_triton(
    poles: PoleTensors, columns: Tensor, pivots: Tensor, w: Tensor, beta: Tensor, F: Tensor, discrete: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients with respect to the poles and B."""
    g_poles, g_B = torch.empty_like(poles.lam, memory_format=torch.contiguous_format), w.new_empty(w.shape)
    tables = (poles.mirror, poles.turn, poles.denominator, columns)
    read = (parts(poles.lam), poles.gap, *(parts(x) for x in tables), pivots, parts(w), beta.contiguous(), parts(F))
    _launch(factor_adjoint, w, *read, parts(g_poles), parts(g_B), *w.shape[1:], DISCRETE=discrete)
    return g_poles, g_B


def parts(z: Tensor) -> Tensor:
    """Return a contiguous real array, of complex numbers with real and imaginary part side by side."""
    return torch.view_as_real(z.resolve_conj().contiguous()) if z.is_complex() else z.contiguous()


def filled(n: int, least: int = 16) -> int:
    """Return the least power of two that is not below n."""
    return max(least, 1 << (n - 1).bit_length())


def _launch(kernel: Any, B: Tensor, *arguments: Any, **constants: Any) -> None:
    batch, n, m = B.shape
    if 0 in B.shape:
        return
    states = filled(n)
    sizes = {"COMPLEX": B.is_complex(), "STATES": states, "INPUTS": filled(m, 1)}
    kernel[(batch,)](*arguments, **sizes, **constants, num_warps=WARPS[states])
