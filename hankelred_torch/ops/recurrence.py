"""Diagonal state space models step by step: a product into the states, a scan over time, a product out of them.

Everything is planar: real arrays that hold the real parts of all n states before their imaginary parts.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ._backends import compiled_loops, triton_kernels
from ._operator import differentiable, once, operator
from ._scan import scan, scan_adjoint
from ._segmented_scan import planar_scan, planar_scan_adjoint
from .convolution import without_autocast

# The figures below were measured with torch 2.13 (MKL, AVX-512) on one core.

# Columns below which a product is faster as the transpose of its transpose: (3200, 16) @ (16, 8) 58 against 17 us.
NARROW = 12

# Columns of states below which filling up with zeros makes products and loops faster.
LEAST_STATES = 8

# Bytes of states per block, which passes through the products and the scan while it is in the cache: 0.5 to 4 MiB
# differ little, without blocks length 784 and n = 256 take twice as long.
BLOCK = 1 << 21

# Inputs up to which the backward pass computes states again, block by block, sooner than it fetches them from memory;
# it also keeps the memory free of them. Those of a single block are kept.
WIDE = 64


def planar_recurrence(rates: Tensor, B: Tensor, C: Tensor, u: Tensor, D: Tensor | None) -> Tensor:
    """Return the output sequences; arguments as for `planar_ssm`."""
    keep = torch.is_grad_enabled() and _keeps_states(u, rates.shape[1])
    y: Tensor = _recurrence(rates, B, C, u, D, keep)[0]
    return y


def _matrices(rates: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return lam (2, n) and the matrices (2n, m) into and (p, 2n) out of the states, with at least LEAST_STATES."""
    fill = LEAST_STATES - rates.shape[1]
    if fill > 0:
        rates, B, C = pad(rates, (0, fill)), pad(B, (0, 0, 0, fill)), pad(C, (0, fill))
    lam = torch.exp(rates[0]) * torch.stack([torch.cos(rates[1]), torch.sin(rates[1])])
    return lam, B.flatten(0, 1), C.flatten(1, 2)


def _forward(
    lam: Tensor, B: Tensor, C: Tensor, u: Tensor, D: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, the states before each block in double precision, and all states if they are to be kept."""
    batch, length, _ = u.shape
    outputs, width = C.shape
    blocks, shape = _blocks(u, width)
    y = u.new_empty(batch, length, outputs)
    x = u.new_empty((batch, length, width) if keep else shape)
    starts = lam.new_zeros(_pieces(u, width) + 1, batch, width)
    for rows, time, piece in blocks:
        v = x[rows, time] if keep else x[_extent(rows), _extent(time)]
        u_rows, y_rows = u[rows, time].flatten(0, 1), y[rows, time].flatten(0, 1)
        carry = starts[piece + 1, rows].copy_(starts[piece, rows])
        _states(lam, carry, B, u_rows, v)
        _product(v.flatten(0, 1), C.T, y_rows)
        if D is not None:
            y_rows.addcmul_(u_rows, D)
    return y, starts, x if keep else u.new_empty(0)


def _backward(
    gy: Tensor,
    lam: Tensor,
    B: Tensor,
    C: Tensor,
    u: Tensor,
    D: Tensor | None,
    starts: Tensor,
    x: Tensor,
    states: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of rates, B, C, u and D, the first three without the states that only fill up."""
    width = C.shape[1]
    blocks, shape = _blocks(u, width)
    kept = x.ndim == 3
    gu, g_block, x_block = torch.empty_like(u), u.new_empty(shape), u.new_empty(0 if kept else shape)
    g_lam, gB, gC = torch.zeros_like(lam), torch.zeros_like(B), torch.zeros_like(C)
    carry = lam.new_zeros(len(u), width)
    for rows, time, piece in reversed(blocks):
        inside = _extent(rows), _extent(time)
        u_rows, gy_rows = u[rows, time].flatten(0, 1), gy[rows, time].flatten(0, 1)
        v, g = x[rows, time] if kept else x_block[inside], g_block[inside]
        v_rows, g_rows = v.flatten(0, 1), g.flatten(0, 1)
        if not kept:
            _states(lam, starts[piece, rows].clone(), B, u_rows, v)
        _product(gy_rows, C, g_rows)
        gC += _product(gy_rows.T, v_rows)
        if compiled_loops(u):
            before = starts[piece, rows].to(u.dtype)
            scan_adjoint(lam.numpy(), carry[rows].numpy(), v.numpy(), before.numpy(), g.numpy(), g_lam.numpy())
        elif triton_kernels(u):
            from . import _linear_triton

            _linear_triton.planar_states_adjoint(lam, v, g, g_lam)
        else:
            g.copy_(planar_scan_adjoint(lam, v, g, g_lam))
        gB += _product(g_rows.T, u_rows)
        _product(g_rows, B, gu[rows, time].flatten(0, 1))
    gD = None
    if D is not None:
        gu.addcmul_(gy, D)
        gD = (gy * u).sum((0, 1))
    # lam = exp(rates): conj(lam) g_lam
    g_rates = torch.stack([lam[0] * g_lam[0] + lam[1] * g_lam[1], lam[0] * g_lam[1] - lam[1] * g_lam[0]])
    gB, gC = gB.unflatten(0, (2, -1)), gC.unflatten(1, (2, -1))
    return g_rates[:, :states], gB[:, :states], gC[..., :states], gu, gD


def _states(lam: Tensor, carry: Tensor, B: Tensor, u_rows: Tensor, v: Tensor) -> None:
    """Fill v with the states of a block."""
    _product(u_rows, B.T, v.flatten(0, 1))
    if compiled_loops(v):
        scan(lam.numpy(), carry.numpy(), v.numpy())
    elif triton_kernels(v):
        from . import _linear_triton

        _linear_triton.planar_states(lam, v)
    else:
        v.copy_(planar_scan(lam, v))


def _product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return ``a @ b``."""
    if b.shape[1] < NARROW <= a.shape[0] and a.is_cpu:
        product = (b.T @ a.T).T
        return product if out is None else out.copy_(product)
    return torch.mm(a, b, out=out)


def _keeps_states(u: Tensor, states: int) -> bool:
    """Tell whether the backward pass finds the states in memory, rather than computing them again."""
    batch, length, inputs = u.shape
    if not compiled_loops(u) or inputs > WIDE:
        return True
    if torch.compiler.is_compiling():  # one graph for short and long sequences
        return False
    return batch * length <= _block_steps(u, 2 * max(LEAST_STATES, states))


def _blocks(u: Tensor, width: int) -> tuple[list[tuple[slice, slice, int]], tuple[int, int, int]]:
    """Return the blocks as (rows, time, number in time), in the order of time, and the shape of the largest.

    Blocks hold whole rows, or, where a row of states is larger than a block, parts of one row.
    """
    batch, length, _ = u.shape
    limit = _block_steps(u, width)
    steps = max(1, min(length, limit))
    rows = 1 if length > limit else math.ceil(batch / max(1, math.ceil(batch * length / limit)))
    blocks = [
        (slice(b, min(b + rows, batch)), slice(t, min(t + steps, length)), t // steps)
        for b in range(0, batch, max(1, rows))
        for t in range(0, length, steps)
    ]
    return blocks, (rows, steps, width)


def _pieces(u: Tensor, width: int) -> int:
    """Return the number of blocks that a row is cut into."""
    return -(-u.shape[1] // _block_steps(u, width))


def _block_steps(u: Tensor, width: int) -> int:
    """Return how many steps, of one or several rows, a block holds: all, where no compiled loops carry states on."""
    everything = max(1, u.shape[0] * u.shape[1])
    return max(1, BLOCK // (width * u.element_size())) if compiled_loops(u) else everything


def _extent(part: slice) -> slice:
    """Return where a part of rows or steps lies in the memory of its block."""
    return slice(part.stop - part.start)


def _empty(rates: Tensor, B: Tensor, C: Tensor, u: Tensor, D: Tensor | None, keep: bool) -> tuple[Tensor, ...]:
    batch, length, _ = u.shape
    width = 2 * max(LEAST_STATES, rates.shape[1])
    x = u.new_empty(batch, length, width) if keep else u.new_empty(0)
    return u.new_empty(batch, length, C.shape[0]), rates.new_empty(_pieces(u, width) + 1, batch, width), x


@operator(
    "planar_recurrence(Tensor rates, Tensor B, Tensor C, Tensor u, Tensor? D, bool keep) -> (Tensor, Tensor, Tensor)",
    _empty,
)
def _outputs(
    rates: Tensor, B: Tensor, C: Tensor, u: Tensor, D: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(*_matrices(rates, B, C), u.contiguous(), D, keep)


def _empty_gradients(gy: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    rates, B, C, u, D, *_ = inputs
    return *(z.new_empty(z.shape) for z in (rates, B, C, u)), u.new_empty(0 if D is None else D.shape[0])


@operator(
    "planar_recurrence_backward(Tensor gy, Tensor rates, Tensor B, Tensor C, Tensor u, Tensor? D, Tensor starts, "
    "Tensor x) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _empty_gradients,
)
def _gradients(
    gy: Tensor, rates: Tensor, B: Tensor, C: Tensor, u: Tensor, D: Tensor | None, starts: Tensor, x: Tensor
) -> tuple[Tensor, ...]:
    matrices = _matrices(rates, B, C)
    with without_autocast(gy):
        *found, gD = _backward(gy.contiguous(), *matrices, u.contiguous(), D, starts, x, rates.shape[1])
    # an operator returns fresh tensors, and always as many
    return *(g.contiguous() for g in found), u.new_empty(0) if gD is None else gD


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)  # no zeros of the size of all states
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs[:5], *output[1:])


def _differentiate(ctx: Any, gy: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if gy is None:
        return (None,) * 6
    saved = ctx.saved_tensors  # once: activation checkpointing unpacks no tensor a second time
    *found, gD = once(_gradients, gy, *saved)
    return *found, gD if saved[4] is not None else None, None


_recurrence = differentiable(_outputs, _save, _differentiate)
