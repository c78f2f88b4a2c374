"""What Triton's scans over time are made of: how two parts of one are joined, and how one step is taken out.

A part of ``h_t = a_t h_{t-1} + w_t`` is the product p of its factors and what it makes of rest, x. Flags f say that a
part forgets what was before it, be it NaN. All may be joined in any order.

==========  ===========================================================================================================
`follow`    p and x of whole parts: the state after each step
`ahead`     p and x up to the last step, which has a and w: the state before each step; a step by itself is
            ``1, -0.0, a, w``, since ``x + -0.0`` is x
`back`      p and x of all but the first step's a, in reverse: ``g_t = w_t + a_{t+1} g_{t+1}``; a step by itself is
            ``1, w, a``
==========  ===========================================================================================================

Compilers leave out products with one; those of factors that nothing reads go with them where one lane has all steps.
"""

# Triton reads the annotations of kernels: only constants have one.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def follow(p, x, a, y):
    return p * a, a * x + y


@triton.jit
def follow_reset(p, x, f, a, y, g):
    return p * a, tl.where(g != 0, y, a * x + y), f | g


@triton.jit
def ahead(p, x, a, w, q, y, b, v):
    return p * a * q, (a * x + w) * q + y, b, v


@triton.jit
def ahead_reset(p, x, a, w, f, cut, q, y, b, v, g, cuts):
    entering = tl.where(f != 0, w, a * x + w)
    return p * a * q, tl.where(cuts != 0, y, entering * q + y), b, v, g, cut | f | cuts


@triton.jit
def back(p, x, a, q, y, b):
    return p * a * q, a * x * q + y, b


@triton.jit
def back_reset(p, x, a, f, cut, q, y, b, g, cuts):
    return p * a * q, tl.where((f | cuts) != 0, y, a * x * q + y), b, g, cut | f | cuts


@triton.jit
def add(x, y):
    return x + y


@triton.jit
def union(x, y):
    return x | y


@triton.jit
def row_of(tile, tau, chosen):
    """One row of a tile, by its bits: what compilers leave out of a sum of zeros is only that of whole numbers."""
    kind: tl.constexpr = tl.int64 if tile.dtype == tl.float64 else tl.int32
    bits = tl.where(tau == chosen, tile.to(kind, bitcast=True), 0)
    return tl.reduce(bits, 0, union).to(tile.dtype, bitcast=True)


@triton.jit
def follow_complex(p_re, p_im, x_re, x_im, a_re, a_im, y_re, y_im):
    re, im = a_re * x_re - a_im * x_im + y_re, a_re * x_im + a_im * x_re + y_im
    return p_re * a_re - p_im * a_im, p_re * a_im + p_im * a_re, re, im


@triton.jit
def ahead_complex(p_re, p_im, x_re, x_im, a_re, a_im, w_re, w_im, q_re, q_im, y_re, y_im, b_re, b_im, v_re, v_im):
    p_re, p_im, x_re, x_im = follow_complex(p_re, p_im, x_re, x_im, a_re, a_im, w_re, w_im)
    p_re, p_im, x_re, x_im = follow_complex(p_re, p_im, x_re, x_im, q_re, q_im, y_re, y_im)
    return p_re, p_im, x_re, x_im, b_re, b_im, v_re, v_im


@triton.jit
def ahead_complex_reset(p_re, p_im, x_re, x_im, a_re, a_im, w_re, w_im, f, cut, q_re, q_im, y_re, y_im, b_re, b_im,
                        v_re, v_im, g, cuts):  # fmt: skip
    p_re, p_im, x_re, x_im = follow_complex(p_re, p_im, x_re, x_im, a_re, a_im, w_re, w_im)
    x_re, x_im = tl.where(f != 0, w_re, x_re), tl.where(f != 0, w_im, x_im)
    p_re, p_im, x_re, x_im = follow_complex(p_re, p_im, x_re, x_im, q_re, q_im, y_re, y_im)
    x_re, x_im = tl.where(cuts != 0, y_re, x_re), tl.where(cuts != 0, y_im, x_im)
    return p_re, p_im, x_re, x_im, b_re, b_im, v_re, v_im, g, cut | f | cuts
