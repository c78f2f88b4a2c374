"""The gated delta rule, whose states are matrices, as a layer of heads whose inputs are what a step really writes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..checks import Array, check_real_array, check_result
from ..errors import InputError, StabilityError
from ..linalg.compiled import Kernels
from .data import SCALE, Sequences, head_sequences
from .states import outputs, pieces

kernels = Kernels("hankelred.selective._kernels")

# Largest beta |k|² that counts as at most 2: keys are normalised in half precision, too.
LARGEST = 2.0 * (1 + 2**-7)


def delta_inputs(decay: ArrayLike, beta: ArrayLike, B: ArrayLike, x: ArrayLike) -> Array:
    """Compute what each step of a gated delta rule writes: ``u_t = beta_t (x_t - (a_t S_{t-1})^T k_t)``.

    ``S_t = (I - beta_t k_t k_t^T) a_t S_{t-1} + beta_t k_t x_t^T`` is the same as ``S_t = a_t S_{t-1} + k_t u_t^T``: a
    layer of heads with inputs u. All sequences start at rest; one state at a time is held.

    Parameters
    ----------
    decay : (batch, length, heads) or (batch, length, heads, n) array_like
        One decay a per head, or one per head and key channel, which multiplies the rows of S before they are read.
    beta : (batch, length, heads) array_like
        Rates of writing, with ``0 <= beta |k|² <= 2``.
    B : (batch, length, groups, n) array_like
        Keys k as the rule takes them, normalised; shared by ``heads / groups`` heads side by side.
    x : (batch, length, heads, head_dim) array_like
        Values.

    Returns
    -------
    (batch, length, heads, head_dim) ndarray
        In single precision if all arguments are.

    Raises
    ------
    InputError, StabilityError, NumericalError
        If shapes disagree or an entry is not a finite number; if a decay exceeds 1 in modulus or beta its range; if a
        number overflows.

    Examples
    --------
    >>> import numpy as np
    >>> from hankelred.selective import delta_inputs
    >>> one = np.ones((1, 3, 1))
    >>> delta_inputs(one, one, [[[[1.0]], [[1.0]], [[1.0]]]], [[[[5.0]], [[5.0]], [[7.0]]]]).ravel()  # a key, stored
    array([5., 0., 2.])
    """
    data, _ = delta_sequences(decay, beta, B, B, x, None)
    return data.v.reshape(np.shape(x))


def delta_outputs(decay: ArrayLike, beta: ArrayLike, B: ArrayLike, C: ArrayLike, x: ArrayLike) -> Array:
    """Run a gated delta rule: ``S_t = (I - beta_t k_t k_t^T) a_t S_{t-1} + beta_t k_t x_t^T``, ``y_t = S_t^T q_t``.

    Parameters
    ----------
    decay, beta, B
        As for `delta_inputs`, which also says what is refused.
    C : (batch, length, groups, n) array_like
        Queries q as the rule takes them, normalised and scaled.
    x : (batch, length, heads, head_dim) array_like
        Values.

    Returns
    -------
    (batch, length, heads, head_dim) ndarray
        Outputs y.

    Examples
    --------
    >>> import numpy as np
    >>> from hankelred.selective import delta_outputs
    >>> keys, values = np.eye(2)[None, [0, 1, 0], None], np.arange(1.0, 4.0)[None, :, None, None]
    >>> one = np.ones((1, 3, 1))
    >>> delta_outputs(one, one, keys, np.ones((1, 3, 1, 2)), values).ravel()  # the third replaces the first
    array([1., 3., 5.])
    """
    data, _ = delta_sequences(decay, beta, B, C, x, None)
    with np.errstate(over="ignore", invalid="ignore"):
        y = outputs(data)
    check_result("Outputs of the delta rule", y, hint=SCALE)
    return y.reshape(np.shape(x))


def delta_sequences(
    decay: ArrayLike, beta: ArrayLike, B: ArrayLike, C: ArrayLike, x: ArrayLike, gate: ArrayLike | None
) -> tuple[Sequences, Array]:
    """Check the data of a gated delta rule, and return the layer of heads that has its states, and beta."""
    data = head_sequences(decay, B, C, x, gate)
    rates = check_real_array(beta, "beta", None, copy=False)
    if rates.shape != np.shape(x)[:3]:
        raise InputError(f"beta must be (batch, length, heads) = {np.shape(x)[:3]}; got {rates.shape}.")
    rates = rates.astype(data.v.dtype, copy=False)
    return written(data, rates), rates


def written(data: Sequences, beta: Array) -> Sequences:
    """Return heads that write what a delta rule writes of the values that these do."""
    heads, n = beta.shape[2], data.B.shape[3]
    size, per_group = data.v.shape[2] // heads, heads // data.B.shape[2]
    _check_rates(beta, data.B)
    u = np.empty_like(data.v)
    for row, head in np.ndindex(len(u), heads):
        S, channels = np.zeros((n, size), u.dtype), slice(head * size, (head + 1) * size)
        for steps in pieces(u.shape[1]):
            decay, k = data.decay(row, steps, channels)[:, :, 0], data.B[row, steps, head // per_group]
            given = (np.ascontiguousarray(y) for y in (decay, beta[row, steps, head], k, data.v[row, steps, channels]))
            out = np.empty((steps.stop - steps.start, size), u.dtype)
            kernels.write_by_delta_rule(*given, S, out)
            u[row, steps, channels] = out
    check_result("What the delta rule writes", u, hint=SCALE)
    return data._replace(v=u)


def _check_rates(beta: Array, B: Array) -> None:
    """Refuse rates of writing with which states grow."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.repeat(np.sum(B * B, axis=3), beta.shape[2] // B.shape[2], axis=2)
        sizes = beta * squares
    if not (np.all(beta >= 0) and np.all(sizes <= LARGEST)):
        raise StabilityError(
            f"beta |k|² must be from 0 to 2, or states grow; got beta from {beta.min():.6g} and up to "
            f"{sizes.max():.6g}. Pass keys as the rule takes them, after their norm."
        )
