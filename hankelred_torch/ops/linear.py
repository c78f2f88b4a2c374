"""The linear recurrence ``x_t = a_t x_{t-1} + b_t`` along sequences, which diagonal state space layers run on."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hankelred.checks import check_flag
from hankelred.errors import InputError

from ._backends import compiled_loops, triton_kernels
from ._linear_kernels import scan, scan_adjoint
from ._operator import check_reset, check_tensors, differentiable, once, operator, reset_mask
from ._segmented_scan import segmented_scan, segmented_scan_adjoint


def linear_recurrence(
    a: Tensor, b: Tensor, *, initial: Tensor | None = None, reset: Tensor | None = None, reverse: bool = False
) -> Tensor:
    """Compute all states of ``x_t = a_t x_{t-1} + b_t``, elementwise in what follows batch and time.

    On a CPU by compiled loops that carry the state in double precision, on CUDA by Triton kernels where Triton is
    installed, elsewhere by a scan of about ``2 sqrt(length)`` operations.
    Differentiable once in `a`, `b` and `initial`, by the adjoint recurrence.

    Parameters
    ----------
    a : Tensor
        Factors, real or complex, of a shape that broadcasts to that of `b`: (n...) for a time-invariant recurrence,
        (batch, length, n...) for one that varies. They may be wider than `b` and are used as they are: a factor
        next to 1 that is rounded to float32 has lost its decay.
    b : (batch, length, n...) Tensor
        Inputs, real or complex.
    initial : (batch, n...) Tensor, optional
        State before the first step; zero by default.
    reset : (batch, length) bool Tensor, optional
        True at t forgets the state before t: ``x_t = b_t``, as where one sequence ends and the next begins.
    reverse : bool, default False
        Let time run from the last step to the first, ``x_t = a_t x_{t+1} + b_t``; `initial` is then the state after
        the last step, and `reset` forgets the state after t.

    Returns
    -------
    (batch, length, n...) Tensor
        States, in the precision of `b` and at least float32; complex if an argument is.

    Raises
    ------
    InputError
        If an argument is no floating point tensor, devices or shapes do not fit together, or `reset` is not boolean.

    See Also
    --------
    diagonal_ssm : With input and output matrices around it, often cheaper than all states.
    selective_scan : The recurrence of Mamba, without a tensor of all its factors.

    Notes
    -----
    Generation needs one step at a time, and that is the formula itself, ``state = a * state + b``.

    Examples
    --------
    >>> import torch
    >>> from hankelred_torch.ops import linear_recurrence
    >>> a, b = torch.tensor([0.5]), torch.ones(1, 4, 1)
    >>> linear_recurrence(a, b).flatten().tolist()
    [1.0, 1.5, 1.75, 1.875]
    >>> linear_recurrence(a, b, reset=torch.tensor([[False, False, True, False]])).flatten().tolist()
    [1.0, 1.5, 1.0, 1.5]

    Continue where a sequence stopped, step by step or in one go:

    >>> state = linear_recurrence(a, b)[:, -1]
    >>> bool(linear_recurrence(a, b, initial=state)[:, 0] == a * state + b[:, 0])
    True
    """
    _check(a, b, initial, reset)
    reverse = check_flag(reverse, "reverse")
    batch, length, *states = b.shape
    is_complex = any(z is not None and z.is_complex() for z in (a, b, initial))
    initial = b.new_zeros(batch, *states) if initial is None else initial
    a, b, initial = (_wide(z, is_complex) for z in (a, b, initial))
    a = a[(None,) * (b.ndim - a.ndim)]
    n = math.prod(states)
    a = a.expand(*a.shape[:2], *states).reshape(*a.shape[:2], n)
    x = _recurrence(a, b.reshape(batch, length, n), initial.reshape(batch, n), reset, reverse)
    return x.reshape(batch, length, *states)


def _wide(z: Tensor, is_complex: bool) -> Tensor:
    """Return z in single precision at least, complex if the recurrence is."""
    return z.to(torch.promote_types(z.dtype, torch.complex64 if is_complex else torch.float32))


# Pending conjugations and signs are carried out on the way into the operators.


@operator(
    "linear_recurrence(Tensor a, Tensor b, Tensor initial, Tensor? reset, bool reverse) -> Tensor",
    lambda a, b, initial, reset, reverse: b.new_empty(b.shape),
)
def _states(a: Tensor, b: Tensor, initial: Tensor, reset: Tensor | None, reverse: bool) -> Tensor:
    if compiled_loops(b):
        a, b, initial = (z.contiguous() for z in (a, b, initial))
        x, carry = torch.empty_like(b), _double(initial)
        scan(a.numpy(), carry.numpy(), b.numpy(), reset_mask(reset, b), reverse, x.numpy())
        return x
    if triton_kernels(b):
        from . import _linear_triton

        return _linear_triton.states(a, b, initial, reset, reverse)
    a, b, reset = (_in_time(z, reverse) for z in (a, b, reset))
    x = segmented_scan(a, b, initial, reset)
    return x.flip(1) if reverse else x.contiguous()


@operator(
    "linear_recurrence_backward(Tensor gx, Tensor a, Tensor x, Tensor initial, Tensor? reset, bool reverse) "
    "-> (Tensor, Tensor, Tensor)",
    lambda gx, a, x, initial, reset, reverse: tuple(z.new_empty(z.shape) for z in (a, x, initial)),
)
def _gradients(
    gx: Tensor, a: Tensor, x: Tensor, initial: Tensor, reset: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if compiled_loops(x):
        gx, a, x, initial = (z.contiguous() for z in (gx, a, x, initial))
        gb, carry = torch.empty_like(x), torch.zeros_like(_double(initial))
        # sums over many steps or sequences in double precision
        ga = torch.zeros_like(a) if a.shape == x.shape else torch.zeros_like(_double(a))
        arrays = (z.numpy() for z in (a, carry, x, initial, gx))
        scan_adjoint(*arrays, reset_mask(reset, x), reverse, gb.numpy(), ga.numpy())
        return ga.to(a.dtype), gb, carry.to(initial.dtype)
    if triton_kernels(x):
        from . import _linear_triton

        ga, gb = _linear_triton.states_adjoint(a, x, initial, gx, reset, reverse)
        return ga, gb, _initial_gradient(a, gb, reset, reverse).to(initial.dtype)
    a_, x, gx, reset = (_in_time(z, reverse) for z in (a, x, gx, reset))
    ga, gb, g_initial = segmented_scan_adjoint(a_, x, initial, gx, reset)
    ga, gb = (z.flip(1).contiguous() if reverse else z.contiguous() for z in (ga, gb))
    return ga.to(a.dtype), gb, g_initial.to(initial.dtype)


def _initial_gradient(a: Tensor, gb: Tensor, reset: Tensor | None, reverse: bool) -> Tensor:
    """Return the gradient of the state before the first step."""
    first = slice(-1, None) if reverse else slice(1)
    seen = gb[:, first] if reset is None else gb[:, first].masked_fill(reset[:, first, None], 0)
    return (a[:, first].conj_physical().to(gb.dtype) * seen).sum(1)  # a sum of one step, or of none


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, _, initial, reset, ctx.reverse = inputs
    ctx.save_for_backward(a, output, initial, reset)


def _differentiate(ctx: Any, gx: Tensor) -> tuple[Tensor | None, ...]:
    return *once(_gradients, gx, *ctx.saved_tensors, ctx.reverse), None, None


_recurrence = differentiable(_states, _save, _differentiate)


def _double(z: Tensor) -> Tensor:
    """Return a copy in double precision."""
    return z.to(torch.complex128 if z.is_complex() else torch.float64, copy=True)


def _in_time(z: Tensor | None, reverse: bool) -> Any:
    """Return z with its axis of time in the direction in which the recurrence runs."""
    return z.flip(1) if reverse and z is not None else z


def _check(a: Tensor, b: Tensor, initial: Tensor | None, reset: Tensor | None) -> None:
    """Raise `InputError` unless shapes fit together."""
    check_tensors({"initial": initial}, a=a, b=b)
    if b.ndim < 2:
        raise InputError(
            f"b must have at least the axes (batch, length); got shape {tuple(b.shape)}. Add them with b[None] or "
            f"b[:, None]."
        )
    if a.ndim > b.ndim or any(s not in (1, e) for s, e in zip(a.shape[::-1], b.shape[::-1], strict=False)):
        raise InputError(
            f"a must broadcast to the shape of b: {tuple(b.shape[2:])} if it is time-invariant, {tuple(b.shape)} if "
            f"it varies; got a {tuple(a.shape)} and b {tuple(b.shape)}."
        )
    state = (b.shape[0], *b.shape[2:])
    if initial is not None and initial.shape != state:
        raise InputError(
            f"initial must be {state}, one state per sequence of b {tuple(b.shape)}; got {tuple(initial.shape)}."
        )
    check_reset(reset, "b", b)
