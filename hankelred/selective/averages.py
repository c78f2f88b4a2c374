"""Averaged Gramians of models whose decays, inputs and outputs change at every step.

``h_t = a_t h_{t-1} + b_t`` and ``y_t = c_t . h_t`` with diagonal decays, along sequences of data. What such a model has
in place of one pair of Gramians are averages over steps and sequences: of the recursions themselves, from second
moments of the steps, or from mean steps.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..checks import Array, check_choice, check_result, double
from ..errors import StabilityError
from ..linalg.compiled import Kernels
from .data import Steps, check_steps
from .states import pieces

kernels = Kernels("hankelred.selective._kernels")

METHODS = ("exact", "second_moment", "mean")


class GramianSums(NamedTuple):
    """Lower triangles of the recursions X of P_t and W of the steps that see an output, and of the sums P and Q."""

    X: Array
    W: Array
    P: Array
    Q: Array


class StepMoments(NamedTuple):
    """Averages over steps: ``E[a]``, ``E[b]``, ``E[a a^H]``, ... ``E[conj(c) c^T]``; ``acac`` has a c in place of c."""

    a: Array
    b: Array
    aa: Array
    bb: Array
    ab: Array
    cc: Array
    acac: Array


def averaged_gramians(
    a: ArrayLike, b: ArrayLike, c: ArrayLike, method: Literal["exact", "second_moment", "mean"] = "exact"
) -> tuple[Array, Array]:
    """Compute averaged Gramians of one channel of a selective model from its steps.

    The model is ``h_t = a_t h_{t-1} + b_t``, ``y_t = sum_i c_ti h_ti``, every sequence from rest. `SelectiveStatistics`
    does the same for data that come in batches, and for layers of many channels.

    Parameters
    ----------
    a : (..., batch, length, n) array_like
        Decays, real or complex.
    b : (..., batch, length, n) array_like
        Whole increments of the states, the input included. For the published form of ``"mean"`` leave the input out.
    c : (..., batch, length, n) array_like
        Output rows.
    method : {"exact", "second_moment", "mean"}
        ``"exact"`` averages ``P_t = A_t P_{t-1} A_t^H + b_t b_t^H`` and ``Q_t = A_{t+1}^H Q_{t+1} A_{t+1} + c_t^H c_t``
        over steps and sequences. ``"second_moment"`` assumes steps independent in time and solves for the stationary
        covariance of the states, mean terms included. ``"mean"`` takes the Gramians of the mean step. For constant
        steps and long sequences all three become the Gramians of a fixed system.

    Returns
    -------
    P, Q : (..., n, n) ndarray
        Hermitian, in double precision; leading axes as given.

    Raises
    ------
    InputError, NumericalError
        If shapes disagree, an entry is not a finite number or the method is unknown; if a Gramian overflows.
    StabilityError
        If the moments have no stationary Gramians: ``E|a|^2`` (``|E a|`` for ``"mean"``) reaches 1. The exact
        averages exist always.

    Examples
    --------
    >>> import numpy as np
    >>> from hankelred.selective import averaged_gramians
    >>> rng = np.random.default_rng(0)
    >>> a, b, c = rng.uniform(0.5, 0.9, (3, 8, 500, 4))  # (batch, length, n) each
    >>> b -= 0.7  # independent steps, zero mean: both methods estimate the same matrices
    >>> P, Q = averaged_gramians(a, b, c)
    >>> P2, Q2 = averaged_gramians(a, b, c, "second_moment")
    >>> bool(np.allclose(P, P2, rtol=0.3, atol=0.02) and np.allclose(Q, Q2, rtol=0.05))
    True
    """
    check_choice(method, "method", METHODS)
    steps = check_steps(a, b, c)
    (*lead, _, _, n), dtype = steps.a.shape, np.result_type(np.float64, *steps)
    channels = zip(*(x.reshape(-1, *x.shape[-3:]) for x in steps), strict=True)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        found = [_of_channel(Steps(*channel), method) for channel in channels]
    P, Q = (np.array(X, dtype).reshape(*lead, n, n) for X in zip(*found, strict=True))
    check_result("Averaged Gramians", P, Q, hint="Scale b and c.")
    return P, Q


def _of_channel(steps: Steps, method: str) -> tuple[Array, Array]:
    count = steps.a.shape[0] * steps.a.shape[1]
    if method == "exact":
        P, Q = gramian_sums(steps)
        return P / count, Q / count
    if method == "mean":
        return mean_gramians(*(double(x).mean(axis=(0, 1)) for x in steps))
    return second_moment_gramians(StepMoments(*(x / count for x in moment_sums(steps))))


def gramian_sums(steps: Steps) -> tuple[Array, Array]:
    """Return the sums of P_t and Q_t over the steps of sequences (batch, length, n)."""
    batch, length, n = steps.a.shape
    dtype = np.result_type(np.float64, *steps)
    sums = GramianSums(*np.zeros((4, n, n), dtype))
    for row in range(batch):
        sums.X[:] = sums.W[:] = 0.0
        for piece in pieces(length):
            kernels.add_gramians(Steps(*(x[row, piece].astype(dtype) for x in steps)), sums)
    P, Q = (np.tril(x) + np.tril(x, -1).conj().T for x in (sums.P, sums.Q))
    return P, Q


def moment_sums(steps: Steps) -> StepMoments:
    """Return the sums behind `StepMoments` over the steps of sequences (batch, length, n)."""
    n = steps.a.shape[-1]
    dtype = np.result_type(np.float64, *steps)
    total = StepMoments(*np.zeros((2, n), dtype), *np.zeros((5, n, n), dtype))
    for piece in pieces(steps.a.shape[1]):
        A, B, C = (double(x[:, piece]).reshape(-1, n) for x in steps)
        AC = A * C
        parts = (A.sum(0), B.sum(0), A.T @ A.conj(), B.T @ B.conj(), A.T @ B.conj(), C.conj().T @ C, AC.conj().T @ AC)
        for sum_, part in zip(total, parts, strict=True):
            sum_ += part
    return total


def mean_gramians(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Return the Gramians of fixed systems (diag(a), b, c^T), (..., n, n)."""
    _check_decaying("The mean of the decays a must be below 1 in modulus", a)
    gap = 1 - _outer(a)
    return _outer(b) / gap, (_outer(c) / gap).conj()


def second_moment_gramians(moments: StepMoments) -> tuple[Array, Array]:
    """Return the stationary Gramians for steps that are independent in time, from their moments, (..., n, n).

    ``P_ij (1 - E[a_i conj a_j]) = E[b_i conj b_j] + E[a_i conj b_j] mu_i + conj(E[a_j conj b_i] mu_j)`` with the
    stationary mean ``mu = E[b] / (1 - E[a])``, and
    ``Q_ij = E[conj c_i c_j] + E[conj(a_i c_i) a_j c_j] / (1 - E[conj a_i a_j])``.
    """
    a, b, aa, bb, ab, cc, acac = moments
    _check_decaying("The decays a must have mean squares below 1", aa)  # the largest entry is on the diagonal
    drift = ab * (b / (1 - a))[..., :, None]
    gap = 1 - aa
    return (bb + drift + drift.conj().swapaxes(-1, -2)) / gap, cc + acac / gap.conj()


def _outer(x: Array) -> Array:
    """Return ``x x^H`` of vectors (..., n)."""
    square: Array = x[..., :, None] * x.conj()[..., None, :]
    return square


def _check_decaying(claim: str, decays: Array) -> None:
    largest = np.abs(decays).max()
    if not largest < 1:
        raise StabilityError(
            f'{claim}; got {largest:.6g}. Without decay there is no stationary Gramian: use method="exact".'
        )
