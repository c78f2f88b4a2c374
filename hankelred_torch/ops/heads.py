"""Selective models of heads with scalar decay, as Mamba-2: every state of a head decays alike."""

from __future__ import annotations

from functools import reduce
from typing import Any, Literal, overload

import torch
from torch import Tensor

from hankelred.checks import check_flag
from hankelred.errors import InputError

from . import _heads_torch
from ._backends import compiled_loops, foreign_kernels, triton_kernels
from ._operator import check_reset, check_tensors, differentiable, once, operator
from .convolution import without_autocast

# Half precision, in which the kernels of mamba_ssm round no more than the data are; float32 they round to TF32.
HALF = (torch.float16, torch.bfloat16)


@overload
def selective_heads(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    initial: Tensor | None = None,
    reset: Tensor | None = None,
    return_state: Literal[False] = False,
) -> Tensor: ...


@overload
def selective_heads(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    initial: Tensor | None = None,
    reset: Tensor | None = None,
    return_state: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def selective_heads(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    initial: Tensor | None = None,
    reset: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Apply selective state space models in heads, as in Mamba-2 [1]_, to sequences.

    ``H_t = exp(delta_t A) H_{t-1} + delta_t u_t B_t^T`` and ``y_t = H_t C_t + D u_t`` in every head, whose states are a
    matrix; the heads of a group share B and C. Sequences are taken in pieces of 32 steps, in matrix products, and the
    state between pieces is carried on. On CUDA Triton kernels do it where Triton is installed, elsewhere torch's
    products. Differentiable once in all tensors; the backward pass computes again what is within pieces.

    Parameters
    ----------
    u : (batch, length, heads, size) Tensor
        Real input sequences.
    delta : (batch, length, heads) Tensor
        Steps, in the layer's own unit of time; positive, if they come out of a softplus.
    A : (heads,) Tensor
        Rates per unit of time; negative if stable.
    B, C : (batch, length, groups, n) Tensor
        What leads into and out of the states. Heads are split evenly among the groups, in order.
    D : (heads,) Tensor, optional
        Feedthrough of each head; none by default.
    initial : (batch, heads, size, n) Tensor, optional
        State before the first step; rest by default.
    reset : (batch, length) bool Tensor, optional
        True at t forgets the state before t, be it infinite or NaN: ``H_t = delta_t u_t B_t^T``, as where one document
        ends and the next begins.
    return_state : bool, default False
        Whether to return the last state, too.

    Returns
    -------
    y : (batch, length, heads, size) Tensor
        Outputs, in the widest dtype of the arguments and float32, under autocast too.
    state : (batch, heads, size, n) Tensor
        State after the last step, only if `return_state`: the `initial` of what follows.

    Raises
    ------
    InputError
        If an argument is no real floating point tensor, devices or shapes disagree, or `reset` is not boolean.

    See Also
    --------
    selective_scan : Every channel with decays of its own, as in Mamba.

    References
    ----------
    .. [1] T. Dao, A. Gu, "Transformers are SSMs: generalized models and efficient algorithms through structured state
       space duality", arXiv:2405.21060, 2024.

    Examples
    --------
    A step of log 2 halves a state of rate -1, and lets log 2 of the input in.

    >>> import math, torch
    >>> from hankelred_torch.ops import selective_heads
    >>> u, delta = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1), torch.full((1, 3, 1), math.log(2))
    >>> one = torch.ones(1, 3, 1, 1)
    >>> y = selective_heads(u, delta, -torch.ones(1), one, one)
    >>> [round(x, 6) for x in (y / math.log(2)).flatten().tolist()]
    [1.0, 0.5, 0.25]

    Another document begins at the last step:

    >>> y = selective_heads(u, delta, -torch.ones(1), one, one, reset=torch.tensor([[False, False, True]]))
    >>> [round(x, 6) for x in (y / math.log(2)).flatten().tolist()]
    [1.0, 0.5, 0.0]
    """
    _check(u, delta, A, B, C, D, initial)
    check_reset(reset, "u", u)
    return_state = check_flag(return_state, "return_state")
    batch, _, heads, size = u.shape
    from_rest = initial is None
    D = u.new_zeros(heads) if D is None else D
    initial = u.new_zeros(batch, heads, size, B.shape[3]) if initial is None else initial
    given = (u, delta, A, B, C, D, initial)
    dtype = reduce(torch.promote_types, (x.dtype for x in given), torch.float32)
    # their seq_idx multiplies by zero what a reset forgets: NaN would pass
    fits = from_rest and reset is None and not return_state and u.dtype == B.dtype == C.dtype and u.dtype in HALF
    if fits and foreign_kernels("mamba_ssm", u):
        return _foreign_heads(u, delta, A, B, C, D).to(dtype)
    y, starts = _heads(*(x.to(dtype) for x in given), reset)
    return (y, starts[:, -1]) if return_state else y


def _foreign_heads(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Return the outputs from rest by the kernels of mamba_ssm."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    y: Tensor = mamba_chunk_scan_combined(u, delta.float(), A.float(), B, C, 256, D=D.float())
    return y


def _new_starts(u: Tensor, B: Tensor) -> Tensor:
    """Return an empty tensor for the states before each piece of steps and after the last."""
    batch, length, heads, size = u.shape
    return u.new_empty(batch, -(-length // _heads_torch.PIECE) + 1, heads, size, B.shape[3])


@operator(
    "selective_heads(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor initial, Tensor? reset) "
    "-> (Tensor, Tensor)",
    lambda u, delta, A, B, *_: (u.new_empty(u.shape), _new_starts(u, B)),
)
def _outputs(u: Tensor, *inputs: Any) -> tuple[Tensor, Tensor]:
    starts = _new_starts(u, inputs[2])
    with without_autocast(u):
        return _kernels(u).outputs(u, *inputs, starts), starts


@operator(
    "selective_heads_backward(Tensor gy, Tensor g_state, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, "
    "Tensor D, Tensor? reset, Tensor starts) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    lambda gy, g_state, *inputs: (*(x.new_empty(x.shape) for x in inputs[:6]), g_state.new_empty(g_state.shape)),
)
def _gradients(gy: Tensor, g_state: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    carry = g_state.clone(memory_format=torch.contiguous_format)
    with without_autocast(gy):
        return *_kernels(gy).gradients(gy, carry, *inputs), carry


def _kernels(u: Tensor) -> Any:
    """Return the module that computes."""
    if not compiled_loops(u) and triton_kernels(u):
        from . import _heads_triton

        return _heads_triton
    return _heads_torch


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, _, reset = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, reset, output[1])


def _differentiate(ctx: Any, gy: Tensor | None, g_starts: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: activation checkpointing unpacks no tensor a second time
    gy = torch.zeros_like(saved[0]) if gy is None else gy
    # of all kept states only the last is handed out
    g_state = torch.zeros_like(saved[-1][:, -1]) if g_starts is None else g_starts[:, -1]
    return *once(_gradients, gy, g_state, *saved), None


_heads = differentiable(_outputs, _save, _differentiate)


def _check(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, initial: Tensor | None) -> None:
    """Raise `InputError` unless shapes and kinds of numbers fit together."""
    check_tensors({"D": D, "initial": initial}, u=u, delta=delta, A=A, B=B, C=C)
    if u.ndim != 4 or B.ndim != 4:
        raise InputError(
            f"u must be (batch, length, heads, size) and B (batch, length, groups, n); got u {tuple(u.shape)} and "
            f"B {tuple(B.shape)}."
        )
    batch, length, heads, size = u.shape
    groups, n = B.shape[2:]
    if not groups or heads % groups:
        raise InputError(
            f"The heads of u must be split evenly among the groups of B; got {heads} heads, u {tuple(u.shape)}, and "
            f"{groups} groups, B {tuple(B.shape)}."
        )
    for name, x, shape, words in (
        ("u", u, (batch, length, heads, size), "(batch, length, heads, size)"),
        ("delta", delta, (batch, length, heads), "(batch, length, heads)"),
        ("A", A, (heads,), "(heads,)"),
        ("B", B, (batch, length, groups, n), "(batch, length, groups, n)"),
        ("C", C, (batch, length, groups, n), "(batch, length, groups, n)"),
        ("D", D, (heads,), "(heads,)"),
        ("initial", initial, (batch, heads, size, n), "(batch, heads, size, n)"),
    ):
        if x is not None and (x.shape != shape or x.is_complex()):
            raise InputError(
                f"{name} must be real with shape {words}, here {shape} for u {tuple(u.shape)} and B {tuple(B.shape)}; "
                f"got {x.dtype} of shape {tuple(x.shape)}. Time is axis 1."
            )
