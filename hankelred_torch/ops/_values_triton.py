"""Singular values and vectors of many small graded matrices without an SVD: Triton kernels for GPUs.

One-sided Jacobi rotations keep the relative accuracy of small singular values, where a bidiagonalisation of floating
point matrices keeps that of the largest only [1]_. A program takes one matrix M. A QR factorisation with column
pivoting, ``M P = Q R``, takes the grading of its rows, which must come in order of falling size; rotations then make
the columns of ``R^H`` orthogonal, whose lengths are the values. They run in rounds of disjoint pairs of columns, side
by side, all pairs meeting once in a sweep; between rounds the columns go through memory, which stays in the cache.

References
----------
.. [1] Z. Drmac, K. Veselic, "New fast and accurate Jacobi SVD algorithm I", SIAM J. Matrix Anal. Appl. 29, 2008.
"""

# Triton reads the annotations of kernels: only constants have one.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._factors_triton import MOST_STATES, WARPS, filled, load, parts, picked, store, times

# Cosine of the angle of two columns that counts as a right angle: a few roundings, as of a sum of 64 products. Sweeps
# are seldom more than six, as convergence is quadratic; with the last of all, nothing more is done.
RIGHT_ANGLE = tl.constexpr(8 * 2.0**-52)
SWEEPS = tl.constexpr(30)


@triton.jit
def rotate(M, columns, values, n, COMPLEX: tl.constexpr, VECTORS: tl.constexpr, STATES: tl.constexpr):
    """Write the lengths of ``R^H V`` in no order, and in columns, each row of its own, ``R^H V`` and ``Q V``."""
    matrix = tl.program_id(0).to(tl.int64)
    r, c = tl.arange(0, STATES), tl.arange(0, STATES)
    square = (r < n)[:, None] & (c < n)[None, :]
    width = 2 * n if VECTORS else n
    start = matrix * n * width
    A_re, A_im = load(M, (matrix * n + r[:, None]) * n + c[None, :], square, COMPLEX)
    Q_re, Q_im = tl.where(r[:, None] == c[None, :], 1.0, 0.0).to(tl.float64), tl.full((STATES, STATES), 0, tl.float64)
    for k in range(0, n):  # Q^H M, the columns of which are pivots once each
        below = (r >= k)[:, None]
        square_re, square_im = tl.where(below, A_re, 0.0), tl.where(below, A_im, 0.0)
        lengths = tl.sum(square_re * square_re + square_im * square_im, 0)  # 0 of those that have been
        pivot = (c == tl.argmax(lengths, 0))[None, :]
        length = tl.sqrt(tl.max(lengths, 0))
        x_re, x_im = picked(square_re, square_im, pivot, 1)
        top_re, top_im = tl.sum(tl.where(r == k, x_re, 0.0), 0), tl.sum(tl.where(r == k, x_im, 0.0), 0)
        modulus = tl.sqrt(top_re * top_re + top_im * top_im)
        phase_re = tl.where(modulus > 0, top_re / tl.where(modulus > 0, modulus, 1.0), 1.0)
        phase_im = tl.where(modulus > 0, top_im / tl.where(modulus > 0, modulus, 1.0), 0.0)
        # I - beta v v^H with v of a length of order 1: squares of small columns would vanish
        scale = tl.where(length > 0, 1.0 / tl.where(length > 0, length, 1.0), 0.0)
        x_re = x_re * scale + tl.where(r == k, phase_re, 0.0)
        x_im = x_im * scale + tl.where(r == k, phase_im, 0.0)
        beta = tl.where(length > 0, 1.0 / (1.0 + modulus * scale), 0.0)
        t_re, t_im = times(A_re, A_im, x_re[:, None], -x_im[:, None])
        t_re, t_im = beta * tl.sum(t_re, 0)[None, :], beta * tl.sum(t_im, 0)[None, :]
        t_re, t_im = times(t_re, t_im, x_re[:, None], x_im[:, None])
        diagonal, under = pivot & (r == k)[:, None], pivot & (r > k)[:, None]
        A_re = tl.where(under, 0.0, tl.where(diagonal, -phase_re * length, A_re - t_re))
        A_im = tl.where(under, 0.0, tl.where(diagonal, -phase_im * length, A_im - t_im))
        row_re, row_im = picked(A_re, A_im, (r == k)[:, None], 0)
        store(columns, start + k * width + c, row_re, -row_im, c < n, COMPLEX)
        if VECTORS:
            t_re, t_im = times(Q_re, Q_im, x_re[:, None], -x_im[:, None])
            t_re, t_im = beta * tl.sum(t_re, 0)[None, :], beta * tl.sum(t_im, 0)[None, :]
            t_re, t_im = times(t_re, t_im, x_re[:, None], x_im[:, None])
            Q_re, Q_im = Q_re - t_re, Q_im - t_im
            row_re, row_im = picked(Q_re, Q_im, (r == k)[:, None], 0)
            store(columns, start + k * width + n + c, row_re, -row_im, c < n, COMPLEX)
    tl.debug_barrier()  # columns are read by other threads than wrote them
    pairs, last = tl.arange(0, STATES // 2), n - 1 + n % 2  # an odd column pauses
    most, sweep = tl.full((), 1, tl.float64), 0
    while (most > RIGHT_ANGLE) & (sweep < SWEEPS):
        most, sweep = tl.full((), 0, tl.float64), sweep + 1
        for turn in range(0, last):
            one = (turn + pairs) % last
            two = tl.where(pairs == 0, last, (turn + last - pairs) % last)
            p, q = tl.minimum(one, two), tl.maximum(one, two)
            meet = (2 * pairs <= last) & (q < n)
            inside = (r < n)[:, None] & meet[None, :]
            at_p, at_q = start + p[None, :] * width + r[:, None], start + q[None, :] * width + r[:, None]
            p_re, p_im = load(columns, at_p, inside, COMPLEX)
            q_re, q_im = load(columns, at_q, inside, COMPLEX)
            a = tl.sqrt(tl.sum(p_re * p_re + p_im * p_im, 0))
            b = tl.sqrt(tl.sum(q_re * q_re + q_im * q_im, 0))
            some = (a > 0) & (b > 0)
            a, b = tl.where(some, a, 1.0), tl.where(some, b, 1.0)
            t_re, t_im = times(p_re / a[None, :], -p_im / a[None, :], q_re / b[None, :], q_im / b[None, :])
            c_re, c_im = tl.sum(t_re, 0), tl.sum(t_im, 0)
            cosine = tl.where(some, tl.sqrt(c_re * c_re + c_im * c_im), 0.0)
            most = tl.maximum(most, tl.max(cosine, 0))
            turned = cosine > RIGHT_ANGLE
            safe = tl.where(turned, cosine, 1.0)
            # tangent of the rotation, |t| <= 1: t^2 + 2 zeta t - 1 = 0
            zeta = (b / a - a / b) / (2.0 * safe)
            size = tl.abs(zeta)
            t = 1.0 / (size + tl.where(size > 1e150, size, tl.sqrt(1.0 + size * size)))
            t = tl.where(turned, tl.where(zeta < 0, -t, t), 0.0)
            c1 = 1.0 / tl.sqrt(1.0 + t * t)
            s_re, s_im = (c1 * t * c_re / safe)[None, :], (c1 * t * c_im / safe)[None, :]
            c1, kept = c1[None, :], inside & turned[None, :]
            u_re, u_im = times(q_re, q_im, s_re, -s_im)
            v_re, v_im = times(p_re, p_im, s_re, s_im)
            store(columns, at_p, c1 * p_re - u_re, c1 * p_im - u_im, kept, COMPLEX)
            store(columns, at_q, c1 * q_re + v_re, c1 * q_im + v_im, kept, COMPLEX)
            if VECTORS:
                p_re, p_im = load(columns, at_p + n, kept, COMPLEX)
                q_re, q_im = load(columns, at_q + n, kept, COMPLEX)
                u_re, u_im = times(q_re, q_im, s_re, -s_im)
                v_re, v_im = times(p_re, p_im, s_re, s_im)
                store(columns, at_p + n, c1 * p_re - u_re, c1 * p_im - u_im, kept, COMPLEX)
                store(columns, at_q + n, c1 * q_re + v_re, c1 * q_im + v_im, kept, COMPLEX)
            tl.debug_barrier()
    A_re, A_im = load(columns, start + c[None, :] * width + r[:, None], square, COMPLEX)
    tl.store(values + matrix * n + c, tl.sqrt(tl.sum(A_re * A_re + A_im * A_im, 0)), mask=c < n)


def fits(M: Tensor) -> bool:
    """Tell whether matrices are square and small enough for one program each."""
    return M.ndim == 3 and M.shape[1] == M.shape[2] <= MOST_STATES


def singular_values_triton(M: Tensor) -> Tensor:
    """Return the singular values (batch, n), decreasing."""
    return _rotated(M, False)[0].sort(dim=1, descending=True)[0]


def singular_values_adjoint_triton(g: Tensor, M: Tensor) -> Tensor:
    """Return ``U diag(g) V^H`` for gradients of the decreasing singular values; zero ones have no vectors."""
    values, columns = _rotated(M, True)
    place = values.argsort(dim=1, descending=True)
    weight = torch.where(values > 0, torch.empty_like(g).scatter(1, place, g) / torch.where(values > 0, values, 1), 0)
    V, U = columns[:, :, : M.shape[1]], columns[:, :, M.shape[1] :]
    return U.mT @ (weight[:, :, None] * V.conj())


def _rotated(M: Tensor, vectors: bool) -> tuple[Tensor, Tensor]:
    batch, n, _ = M.shape
    columns, values = M.new_empty(batch, n, 2 * n if vectors else n), M.new_empty(batch, n, dtype=torch.float64)
    if batch and n:
        states = filled(n)
        kinds = {"COMPLEX": M.is_complex(), "VECTORS": vectors, "STATES": states}
        rotate[(batch,)](parts(M), parts(columns), values, n, **kinds, num_warps=WARPS[states])
    return values, columns
