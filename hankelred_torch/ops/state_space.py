"""Sequences through a diagonal state space model, ``x_t = lam x_{t-1} + B u_t``, ``y_t = Re(C x_t) + D u_t``.

Two ways lead to the same output, and `predicted_seconds` says which is cheaper on a CPU:

- ``"recurrence"`` computes the states, a matrix product before and behind it. Its time goes with batch, length,
  states and the sum of inputs and outputs: it gains in full from fewer states.
- ``"convolution"`` computes the impulse response and convolves with it by FFT. Only the response, of length times
  inputs times outputs, knows the states: best for few channels and many states.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from hankelred.checks import check_choice
from hankelred.errors import InputError

from ._operator import check_tensors
from .convolution import causal_convolution, fast_length, impulse_response, without_autocast
from .recurrence import BLOCK, LEAST_STATES, WIDE, planar_recurrence

Method = Literal["auto", "recurrence", "convolution"]


def diagonal_ssm(
    rates: Tensor, B: Tensor, C: Tensor, u: Tensor, D: Tensor | None = None, *, method: Method = "auto"
) -> Tensor:
    """Apply a time-invariant diagonal state space model with real input and output to sequences.

    ``x_t = exp(rates) x_{t-1} + B u_t``, ``y_t = Re(C x_t) + D u_t`` from rest, ``x_0 = B u_0``. Differentiable once
    in all tensors.

    Parameters
    ----------
    rates : (states,) complex Tensor
        Logarithms of the poles, per step; real parts negative if stable. They and not the poles are the data,
        because a pole near the unit circle that is rounded to float32 has lost its decay: pass them in complex128
        and they are used so whatever the other dtypes.
    B : (states, inputs) complex Tensor
        Input matrix.
    C : (outputs, states) complex Tensor
        Output matrix.
    u : (batch, length, inputs) Tensor
        Real input sequences.
    D : (channels,) Tensor, optional
        Real feedthrough of each channel to itself, for as many outputs as inputs; none by default.
    method : {"auto", "recurrence", "convolution"}
        How to compute it; the default takes the one that `predicted_seconds` expects to be faster.

    Returns
    -------
    (batch, length, outputs) Tensor
        Output sequences, in the widest dtype of `u`, `B`, `C` and float32, under autocast too.

    Raises
    ------
    InputError
        If shapes disagree, `u` is complex or `rates`, `B` or `C` are real, or the method is unknown.

    Examples
    --------
    One pole at 0.5: the impulse response is 1, 0.5, 0.25.

    >>> import math, torch
    >>> from hankelred_torch.ops import diagonal_ssm
    >>> rates = torch.tensor([math.log(0.5) + 0j], dtype=torch.complex128)
    >>> one = torch.ones(1, 1, dtype=torch.complex64)
    >>> impulse = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1)
    >>> diagonal_ssm(rates, one, one, impulse).flatten().tolist()
    [1.0, 0.5, 0.25]
    """
    _check(rates, B, C, u, D)
    check_choice(method, "method", ("auto", "recurrence", "convolution"))
    rates, B, C = (torch.view_as_real(z.resolve_conj()) for z in (rates, B, C))
    dtype = torch.promote_types(torch.promote_types(B.dtype, C.dtype), torch.promote_types(u.dtype, torch.float32))
    sign = torch.tensor([[1.0], [-1.0]], dtype=dtype, device=C.device)
    rates, B, C = rates.T.double(), B.movedim(2, 0).to(dtype), C.mT.to(dtype) * sign
    return planar_ssm(rates, B, C, u.to(dtype), None if D is None else D.to(dtype), method=method)


def planar_ssm(
    rates: Tensor, B: Tensor, C: Tensor, u: Tensor, D: Tensor | None = None, *, method: Method = "auto"
) -> Tensor:
    """Do what `diagonal_ssm` does with real arrays, unchecked: ``y_t = C[:, 0] Re x_t + C[:, 1] Im x_t + D u_t``.

    Parameters
    ----------
    rates : (2, n) float64 Tensor
        Logarithms of the moduli of the poles, and their phases.
    B : (2, n, m) Tensor
        Real and imaginary part of the input matrix.
    C : (p, 2, n) Tensor
        Real part and *negative* imaginary part of the output matrix.
    u, D, method
        As for `diagonal_ssm`; `B`, `C`, `u` and `D` of one dtype, float32 or float64.

    Returns
    -------
    (batch, length, p) Tensor
        Output sequences.
    """
    batch, length, inputs = u.shape
    if not batch or method == "auto" and torch.compiler.is_compiling():  # no FFT of nothing; a graph for every length
        method = "recurrence"
    elif method == "auto":
        method = choose_method(batch, length, inputs, len(C), rates.shape[1], u.device.type)
    with without_autocast(u):
        if method == "recurrence":
            return planar_recurrence(rates, B, C, u, D)
        y = causal_convolution(u, impulse_response(rates, B, C, length))
        return y if D is None else torch.addcmul(y, u, D)


def choose_method(batch: int, length: int, inputs: int, outputs: int, states: int, device: str) -> Method:
    """Return the faster method, as measured on a CPU, or elsewhere the one that needs less memory."""
    sizes = (batch, length, inputs, outputs, states)
    if device == "cpu":
        faster = predicted_seconds("convolution", *sizes) < predicted_seconds("recurrence", *sizes)
        return "convolution" if faster else "recurrence"
    # Not measured on a GPU yet: compare the kernel and its transform with the states that the recurrence stores.
    return "convolution" if 2 * inputs * outputs <= batch * states else "recurrence"


# Seconds per unit of work of one forward and backward pass, in the order of `work`: fitted to the measurements in
# benchmarks/results/recurrence_cpu.json by benchmarks/speed/recurrence.py, which prints them for this place.
SECONDS: dict[str, tuple[float, ...]] = {
    "recurrence": (0.000522, 2.04e-10, 2.9e-09, 1.5e-09, 3.61e-08, 1.36e-09),
    "convolution": (0.000996, 7.88e-10, 1.49e-10, 9.8e-10, 1.45e-10, 1.11e-08, 1.33e-08),
}


def work(method: str, batch: int, length: int, inputs: int, outputs: int, states: int) -> tuple[float, ...]:
    """Return the amounts of work of a method, of which its time is a linear function."""
    if method == "recurrence":
        steps = batch * length
        states = max(states, LEAST_STATES)
        again = inputs <= WIDE and 8 * steps * states > BLOCK  # the backward pass computes the states again
        return (
            1.0,
            steps * states * (inputs + outputs),
            steps * states,
            steps * (inputs + outputs),
            steps,
            steps * states * again,
        )
    padded = fast_length(2 * length - 1)
    transform = padded * math.log2(padded)
    matrix = inputs * outputs
    return (
        1.0,
        transform * batch * (inputs + outputs),
        padded * batch * matrix,
        transform * matrix,
        length * states * matrix,
        length * states,
        states * matrix,
    )


def predicted_seconds(method: str, batch: int, length: int, inputs: int, outputs: int, states: int) -> float:
    """Return the time that one forward and backward pass is expected to take on one core of a CPU."""
    amounts = work(method, batch, length, inputs, outputs, states)
    return sum(seconds * amount for seconds, amount in zip(SECONDS[method], amounts, strict=True))


def _check(rates: Tensor, B: Tensor, C: Tensor, u: Tensor, D: Tensor | None) -> None:
    """Raise `InputError` unless shapes and kinds of numbers fit together."""
    check_tensors({"D": D}, rates=rates, B=B, C=C, u=u)
    for name, x, axes, is_complex in (
        ("rates", rates, 1, True),
        ("B", B, 2, True),
        ("C", C, 2, True),
        ("u", u, 3, False),
    ):
        if x.ndim != axes or x.is_complex() != is_complex:
            raise InputError(
                f"{name} must be {'complex' if is_complex else 'real'} with {axes} axes; got {x.dtype} of shape "
                f"{tuple(x.shape)}. Shapes: rates (n,), B (n, m), C (p, n), u (batch, length, m)."
            )
    n, m, p = len(rates), u.shape[2], len(C)
    if B.shape != (n, m) or C.shape[1] != n:
        raise InputError(
            f"B must be ({n}, {m}) and C (outputs, {n}) for {n} rates and u with {m} inputs; got B {tuple(B.shape)} "
            f"and C {tuple(C.shape)}. Is one of them transposed?"
        )
    if D is not None and (D.is_complex() or not D.shape == (m,) == (p,)):
        raise InputError(
            f"D must be real with shape ({m},), one gain per channel of as many inputs as outputs; got {D.dtype} of "
            f"shape {tuple(D.shape)} with {m} inputs and {p} outputs. Add a full matrix outside, y + u @ D.T."
        )
