"""Reduction of heads with one decay each, as Mamba-2's, by the covariances of what is written and read."""

from __future__ import annotations

import numpy as np

from ..checks import Array, check_flag, check_result, check_type
from ..errors import InputError, OrderError
from ..linalg.hankel_svd import HankelSVD, padded
from ..linalg.semidefinite import covariance_factors
from ..linalg.threads import one_blas_thread
from ..order import rounding_floor
from .data import SCALE
from .orthogonal import Pair, bases_read_apart, orthonormal_basis
from .result import SelectiveReduction, check_kept_states, predicted_error
from .statistics import SelectiveStatistics


def project(statistics: SelectiveStatistics, order: int, orthogonal: bool = False) -> SelectiveReduction:
    """Reduce a layer whose heads have one decay each, as Mamba-2 and gated delta rules, by balancing covariances.

    Any basis commutes with such dynamics, so that the output error at every step is ``c_t^T (I - T Ti) h_t``. The
    square-root method on ``P = E[h h^H]`` and ``Q = E[conj(c) c^T]`` has the mean squared error
    ``sum of hsv_i², i > order``, per channel, if c and h are independent, and no projection has less then. Where a
    nonlinearity stands between the weights and B and C, as in Mamba-2, the bases cannot be folded into weights: the
    layer needs a small matrix after it, or a selection.

    A delta rule reads its states with the keys that write them, and goes on as it is for keys in an orthonormal basis
    only, ``Ti = V^T``. Queries only read: ``T = V + (I - V V^T) P V (V^T P V)^-1`` tells them of the states left out
    what the others know. With keys and queries in one basis, ``T = V``, it is the V of least ``tr(Q E P E)``,
    ``E = I - V V^T``, that a search from several bases finds. For statistics of such a rule ``tr(Q N) tr(K F R F)``,
    ``F = I - V V^T``, is added, which is what keys read less (`feedback`).

    Parameters
    ----------
    statistics : SelectiveStatistics
        Of the layer, on sample data. Each group of heads gets bases of its own.
    order : int
        States to keep, from 1 to the rank of the covariances; to n for a delta rule and in orthonormal bases.
    orthogonal : bool, default False
        Whether both bases must be one orthonormal basis.

    Returns
    -------
    SelectiveReduction
        With bases and predicted error; `heads_error` and `delta_error` measure the true one.

    Raises
    ------
    InputError, OrderError, NumericalError
        If the statistics have seen nothing or are complex where bases are orthonormal, `order` is outside its range, or
        products of covariances overflow.

    Examples
    --------
    >>> import numpy as np
    >>> from hankelred.selective import project, SelectiveStatistics
    >>> rng = np.random.default_rng(0)
    >>> B, C = rng.standard_normal((2, 2, 300, 1, 8)) * 0.5 ** np.arange(8)
    >>> data = rng.uniform(0.8, 1, (2, 300, 4)), B, C, rng.standard_normal((2, 300, 4, 16))  # of 4 heads
    >>> statistics = SelectiveStatistics(8)
    >>> statistics.update_heads(*data)
    >>> reduction = project(statistics, 4)
    >>> bool(abs(reduction.heads_error(*data) / reduction.predicted_error - 1) < 0.1)
    True
    """
    check_type(statistics, "statistics", SelectiveStatistics)
    order, orthogonal = check_kept_states(order, statistics.n), check_flag(orthogonal, "orthogonal")
    pairs = [[pair] for pair in zip(*statistics.gramians(), strict=True)]
    if statistics.delta:
        for pair, K, R, N in zip(pairs, *statistics.feedback(), strict=True):
            with np.errstate(over="ignore", invalid="ignore"):
                pair.append((R, float(np.vdot(pair[0][1], N)) * K))
            check_result("Products of covariances", pair[1][1], hint=SCALE)
    with one_blas_thread(statistics.n):
        if statistics.delta or orthogonal:
            found = [_orthonormal(pair, order, apart=not orthogonal) for pair in pairs]
        else:
            found = [_oblique(*pair[0], order) for pair in pairs]
    T, Ti, hsv = map(np.stack, zip(*found, strict=True))
    return SelectiveReduction("projection", order, T, Ti, None, None, hsv, predicted_error(statistics, T, Ti))


def _oblique(P: Array, Q: Array, order: int) -> tuple[Array, Array, Array]:
    product = _hankel(P, Q)
    rank = int(np.sum(product.values > rounding_floor(product.values)))
    if order > rank:
        raise OrderError(
            f"order must be at most {rank}, the rank of the covariances; got {order}. States past it link no "
            f"input to any output."
        )
    return (*product.bases(slice(0, order), order), padded(product.values, len(P)))


def _orthonormal(pairs: list[Pair], order: int, apart: bool) -> tuple[Array, Array, Array]:
    P, Q = pairs[0]
    if P.dtype.kind == "c" or Q.dtype.kind == "c":
        raise InputError("Orthonormal bases are for real states; got statistics of complex steps.")
    hsv = padded(_hankel(P, Q).values, len(P))
    T, V = bases_read_apart(pairs, order) if apart else [orthonormal_basis(pairs, order)] * 2
    return T, V.T, hsv


def _hankel(P: Array, Q: Array) -> HankelSVD:
    S, R = covariance_factors(P, Q)
    largest = np.abs(S).max(initial=0.0) * np.abs(R).max(initial=0.0) * len(S)
    check_result("Products of covariances", largest, hint=SCALE)
    return HankelSVD(S, R)
