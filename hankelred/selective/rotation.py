"""Reduction of Mamba layers by a rotation of scaled states, which folds into the weights of B and C."""

from __future__ import annotations

import numpy as np
import scipy.linalg as sla
from numpy.typing import ArrayLike

from ..checks import Array, check_number, check_real_array, check_result, check_type, double
from ..errors import InputError
from ..linalg.semidefinite import psd_factor, state_scale
from .data import check_rates
from .result import SelectiveReduction, check_kept_states, predicted_error
from .statistics import Method, SelectiveStatistics


def rotate(
    statistics: SelectiveStatistics,
    A: ArrayLike,
    order: int,
    *,
    method: Method = "covariance",
    max_spread: float | None = None,
) -> SelectiveReduction:
    """Reduce a Mamba layer by one rotation of scaled states, shared by all channels.

    With ``P, Q`` scaled by ``d_i = (P_ii / Q_ii)^¼`` to one diagonal, V holds the leading eigenvectors of
    ``P/tr + Q/tr + 2 (P^½ Q P^½)^½/tr``, each matrix over its own trace, and X the eigenvectors of
    ``V^T diag(mean A) V``. Then ``T = diag(d) V X``, ``Ti = (V X)^T diag(1/d)``, and channel k has the rates
    ``sum_j (V X)_ji² A_kj``: convex combinations of its rates, real and inside their range, whatever V is.

    Parameters
    ----------
    statistics : SelectiveStatistics
        Of the layer, on sample data, with one group; see `SelectiveStatistics.pooled`.
    A : (channels, n) array_like
        Rates, ``-exp(A_log)``.
    order : int
        States to keep, from 1 to n.
    method : {"covariance", "exact", "second_moment", "mean"}
        Which P and Q, as for `SelectiveStatistics.gramians`.
    max_spread : float, optional
        Refuse a layer whose rates differ from channel to channel by more than this, as `spread` of the result.

    Returns
    -------
    SelectiveReduction
        With bases, rates and predicted error; `mamba_error` measures the true one.

    Raises
    ------
    InputError, OrderError
        If shapes do not fit, `order` is outside its range, or the spread exceeds `max_spread`.
    StabilityError
        If a rate is positive, and as `SelectiveStatistics.gramians` does.
    NumericalError
        If squares of covariances or of rates overflow.

    Notes
    -----
    What is neglected are the entries off the diagonals of ``(V X)^T diag(A_k) V X``; they vanish where channels have
    the same rates up to a factor. The choice of V is a heuristic. Balanced truncation proper would project obliquely,
    and its rates may be complex.

    Examples
    --------
    >>> import numpy as np
    >>> from hankelred.selective import rotate, SelectiveStatistics
    >>> rng = np.random.default_rng(0)
    >>> data = rng.uniform(0.01, 0.1, (2, 99, 8)), -np.ones((8, 1)) * np.arange(1, 17)  # delta, A
    >>> data += (*rng.standard_normal((2, 2, 99, 16)), rng.standard_normal((2, 99, 8)))  # B, C, u
    >>> statistics = SelectiveStatistics(16)
    >>> statistics.update_mamba(*data)
    >>> reduction = rotate(statistics, data[1], 12)
    >>> reduction.rates.shape, bool(np.all(reduction.rates <= -1) and np.all(reduction.rates >= -16))
    ((8, 12), True)
    """
    check_type(statistics, "statistics", SelectiveStatistics)
    A = double(check_rates(check_real_array(A, "A", 2)))
    if statistics.groups > 1:
        raise InputError(
            f"One rotation serves all channels; got statistics of {statistics.groups} groups. Pass their pooled()."
        )
    if A.shape[1] != statistics.n or len(A) == 0:
        raise InputError(f"A must be (channels, {statistics.n}); got {A.shape}.")
    order = check_kept_states(order, statistics.n)
    if max_spread is not None:
        max_spread = check_number(max_spread, "max_spread", least=0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = A.mean(axis=0)
        spread = float(np.linalg.norm(A - mean) / (np.sqrt(len(A)) * np.linalg.norm(mean))) if mean.any() else 0.0
    check_result("The spread of the rates A", spread, hint="Scale time.")
    if max_spread is not None and not spread <= max_spread:
        raise InputError(
            f"Rates must differ little from channel to channel for a common rotation; got a spread of {spread:.3g} and "
            f"max_spread={max_spread:.3g}. Select states instead (select)."
        )
    P, Q = (x[0] for x in statistics.gramians(method))
    if P.dtype.kind == "c":
        raise InputError("The states of a Mamba layer must be real; got statistics of complex steps.")
    d = state_scale(P, Q)
    with np.errstate(over="ignore", invalid="ignore"):
        W = _leading_directions(P / np.outer(d, d), Q * np.outer(d, d), order)
    W = W @ sla.eigh(W.T * mean @ W)[1][:, ::-1]  # slow states first
    rates = A @ W**2
    T, Ti = (d[:, None] * W)[None], (W.T / d)[None]
    hsv, error = statistics.hankel_singular_values(method), predicted_error(statistics, T, Ti)
    return SelectiveReduction("rotation", order, T, Ti, None, rates, hsv, error, spread, _neglected(A, W, rates))


def _leading_directions(P: Array, Q: Array, order: int) -> Array:
    """Return orthonormal directions that carry most of P, of Q and of their geometric mean, dead states last."""
    dead = np.minimum(np.diagonal(P), np.diagonal(Q)) <= 0
    P, Q = (np.where(dead | dead[:, None], 0.0, X) for X in (P, Q))
    root = _root(P)
    G = np.zeros_like(P)
    for weight, X in ((1.0, P), (1.0, Q), (2.0, _root(root @ Q @ root))):
        trace = np.trace(X)
        G += weight * X / trace if trace > 0 else 0.0  # zero where nothing links input and output
    return sla.eigh(G)[1][:, ::-1][:, :order]


def _root(P: Array) -> Array:
    S = psd_factor((P + P.T) / 2)
    S = S / np.sqrt(np.linalg.norm(S, axis=0))
    return S @ S.T


def _neglected(A: Array, W: Array, rates: Array) -> float:
    """Return ``‖offdiag(W^T diag(A_k) W)‖ / ‖W^T diag(A_k) W‖`` over all channels k."""
    total = float(np.sum(A @ (W @ W.T) ** 2 * A))  # ‖W^T diag(a) W‖² = a^T (W W^T ∘ W W^T) a
    return float(np.sqrt(max(1 - float(np.sum(rates**2)) / total, 0.0))) if total > 0 else 0.0
