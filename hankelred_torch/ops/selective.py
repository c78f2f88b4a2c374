"""The selective scan of Mamba, a diagonal recurrence whose steps, inputs and outputs depend on the input."""

from __future__ import annotations

from functools import reduce
from typing import Any, Literal, overload

import torch
from torch import Tensor

from hankelred.checks import check_flag
from hankelred.errors import InputError

from ._backends import compiled_loops, foreign_kernels, triton_kernels
from ._operator import check_reset, check_tensors, differentiable, once, operator, reset_mask
from ._selective_kernels import SEGMENT, scan, scan_adjoint
from .convolution import without_autocast


@overload
def selective_scan(
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
def selective_scan(
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


def selective_scan(
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
    """Apply a selective state space model, as in Mamba [1]_, to sequences.

    ``h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t`` and ``y_t = C_t . h_t + D u_t`` for every channel; its states
    meet no other channel. On a CPU the time is that of compiled loops, proportional to n for any n, and the memory
    for the backward pass is a sixteenth of all states. On CUDA Triton kernels do the same where Triton is installed;
    elsewhere it runs as a loop of torch operations. float64 takes five times as long as float32 on a CPU.
    Differentiable once in all tensors.

    Parameters
    ----------
    u : (batch, length, channels) Tensor
        Real input sequences.
    delta : (batch, length, channels) Tensor
        Steps, in the layer's own unit of time; positive, if they come out of a softplus.
    A : (channels, n) Tensor
        Rates per unit of time; negative if stable.
    B, C : (batch, length, n) Tensor
        What leads into and out of the states, the same for all channels.
    D : (channels,) Tensor, optional
        Feedthrough of each channel; none by default.
    initial : (batch, channels, n) Tensor, optional
        State before the first step; rest by default.
    reset : (batch, length) bool Tensor, optional
        True at t forgets the state before t, be it infinite or NaN: ``h_t = delta_t u_t B_t``, as where one document
        ends and the next begins.
    return_state : bool, default False
        Whether to return the last state, too.

    Returns
    -------
    y : (batch, length, channels) Tensor
        Outputs, in the widest dtype of the arguments and float32, under autocast too.
    state : (batch, channels, n) Tensor
        State after the last step, only if `return_state`: the `initial` of what follows.

    Raises
    ------
    InputError
        If an argument is no real floating point tensor, devices or shapes disagree, or `reset` is not boolean.

    Notes
    -----
    Generation needs one step at a time, a call with length 1 or the formula itself::

        h = torch.exp(delta[..., None] * A) * h + (delta * u)[..., None] * B[:, None]
        y = (h * C[:, None]).sum(-1) + D * u

    References
    ----------
    .. [1] Gu, Dao, "Mamba: linear-time sequence modeling with selective state spaces", arXiv:2312.00752, 2023.

    Examples
    --------
    A step of log 2 halves a state of rate -1, and lets log 2 of the input in.

    >>> import math, torch
    >>> from hankelred_torch.ops import selective_scan
    >>> u, delta = torch.tensor([[[1.0], [0.0], [0.0]]]), torch.full((1, 3, 1), math.log(2))
    >>> one = torch.ones(1, 3, 1)
    >>> y = selective_scan(u, delta, -torch.ones(1, 1), one, one)
    >>> (y / math.log(2)).flatten().tolist()
    [1.0, 0.5, 0.25]

    Another document begins at the last step:

    >>> y = selective_scan(u, delta, -torch.ones(1, 1), one, one, reset=torch.tensor([[False, False, True]]))
    >>> (y / math.log(2)).flatten().tolist()
    [1.0, 0.5, 0.0]
    """
    _check(u, delta, A, B, C, D, initial)
    check_reset(reset, "u", u)
    return_state = check_flag(return_state, "return_state")
    batch, _, channels = u.shape
    D = u.new_zeros(channels) if D is None else D
    from_rest = initial is None
    initial = u.new_zeros(batch, *A.shape) if initial is None else initial
    given = (u, delta, A, B, C, D, initial)
    dtype = reduce(torch.promote_types, (x.dtype for x in given), torch.float32)
    arguments = [x.to(dtype) for x in given]
    fits = from_rest and reset is None and not return_state and dtype == torch.float32 and A.shape[1] <= 256
    if fits and foreign_kernels("mamba_ssm", u):
        return _foreign_scan(*arguments[:6])
    if compiled_loops(u) or triton_kernels(u):
        y, starts = _scan(*arguments, reset)
        state = starts[:, -1].mT
    else:
        y, state = selective_scan_loop(*arguments, reset=reset)
    return (y, state) if return_state else y


def selective_scan_loop(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial: Tensor,
    *,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Do what `selective_scan` does on any device and as often differentiable as torch, step by step, unchecked."""
    h, outputs = initial, []
    with without_autocast(u):
        for t, (u_t, delta_t, B_t, C_t) in enumerate(zip(*(x.unbind(1) for x in (u, delta, B, C)), strict=True)):
            if reset is not None:
                h = h.masked_fill(reset[:, t, None, None], 0)
            h = torch.exp(delta_t[..., None] * A) * h + (delta_t * u_t)[..., None] * B_t[:, None]
            outputs.append((h * C_t[:, None]).sum(-1))
        y = torch.stack(outputs, 1) if outputs else torch.zeros_like(u)
        return torch.addcmul(y, u, D), h


def _foreign_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Return the outputs from rest by the kernel of mamba_ssm, whose time axis comes last."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    y: Tensor = selective_scan_fn(u.mT, delta.mT, A, B.mT, C.mT, D)
    return y.mT


def _new_starts(u: Tensor, A: Tensor) -> Tensor:
    """Return an empty tensor for the states before each piece of steps and after the last."""
    return u.new_empty(u.shape[0], -(-u.shape[1] // SEGMENT) + 1, A.shape[1], A.shape[0])


@operator(
    "selective_scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor initial, Tensor? reset) "
    "-> (Tensor, Tensor)",
    lambda u, delta, A, *_: (u.new_empty(u.shape), _new_starts(u, A)),
)
def _outputs(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, initial: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    if triton_kernels(u):
        from . import _selective_triton

        starts = _new_starts(u, A)
        return _selective_triton.outputs(u, delta, A, B, C, D, initial, reset, starts), starts
    u, delta, A, B, C, D = (x.contiguous() for x in (u, delta, A, B, C, D))
    starts, y = _new_starts(u, A), torch.empty_like(u)
    starts[:, 0] = initial.mT
    scan(*(x.numpy() for x in (u, delta, A, B, C, D)), reset_mask(reset, u), starts.numpy(), y.numpy())
    return y, starts


def _empty_gradients(gy: Tensor, g_state: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    u, delta, A, B, C, D, *_ = inputs
    return *(x.new_empty(x.shape) for x in (u, delta, A, B, C, D)), u.new_empty(u.shape[0], *A.shape)


@operator(
    "selective_scan_backward(Tensor gy, Tensor g_state, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, "
    "Tensor D, Tensor? reset, Tensor starts) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _empty_gradients,
)
def _gradients(gy: Tensor, g_state: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    *tensors, reset, starts = inputs
    gy, u, delta, A, B, C, D, starts = (x.contiguous() for x in (gy, *tensors, starts))
    carry = g_state.clone(memory_format=torch.contiguous_format)
    if triton_kernels(u):
        from . import _selective_triton

        found = _selective_triton.gradients(gy, carry, u, delta, A, B, C, D, reset, starts)
        return *found, carry.mT.contiguous()
    gu, g_delta, gB, gC = torch.empty_like(u), torch.empty_like(u), torch.zeros_like(B), torch.zeros_like(C)
    gA, gD = (torch.zeros_like(x, dtype=torch.float64) for x in (A, D))
    arrays, found = (gy, carry, u, delta, A, B, C, D), (starts, gu, g_delta, gA, gB, gC, gD)
    scan_adjoint(*(x.numpy() for x in arrays), reset_mask(reset, u), *(x.numpy() for x in found))
    return gu, g_delta, gA.to(A.dtype), gB, gC, gD.to(D.dtype), carry.mT.contiguous()


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


_scan = differentiable(_outputs, _save, _differentiate)


def _check(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, initial: Tensor | None) -> None:
    """Raise `InputError` unless shapes and kinds of numbers fit together."""
    check_tensors({"D": D, "initial": initial}, u=u, delta=delta, A=A, B=B, C=C)
    if u.ndim != 3 or A.ndim != 2:
        raise InputError(
            f"u must be (batch, length, channels) and A (channels, n); got u {tuple(u.shape)} and A {tuple(A.shape)}."
        )
    batch, length, channels = u.shape
    n = A.shape[1]
    for name, x, shape, words in (
        ("u", u, (batch, length, channels), "(batch, length, channels)"),
        ("delta", delta, (batch, length, channels), "(batch, length, channels)"),
        ("A", A, (channels, n), "(channels, n)"),
        ("B", B, (batch, length, n), "(batch, length, n)"),
        ("C", C, (batch, length, n), "(batch, length, n)"),
        ("D", D, (channels,), "(channels,)"),
        ("initial", initial, (batch, channels, n), "(batch, channels, n)"),
    ):
        if x is not None and (x.shape != shape or x.is_complex()):
            raise InputError(
                f"{name} must be real with shape {words}, here {shape} for u {tuple(u.shape)} and A {tuple(A.shape)}; "
                f"got {x.dtype} of shape {tuple(x.shape)}. Time is axis 1, channels come last."
            )
