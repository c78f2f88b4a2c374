"""Reduction of heads with one decay each, as Mamba-2's, by balancing the covariances of what is written and read."""

from __future__ import annotations

import numpy as np

from ..checks import check_result, check_type
from ..errors import OrderError
from ..linalg.hankel_svd import HankelSVD, padded
from ..linalg.semidefinite import covariance_factors
from ..order import rounding_floor
from .result import SelectiveReduction, check_kept_states, predicted_error
from .statistics import SCALE, SelectiveStatistics


def project(statistics: SelectiveStatistics, order: int) -> SelectiveReduction:
    """Reduce a layer whose heads have one decay each, as Mamba-2, by balancing covariances.

    Any basis commutes with such dynamics, so that the output error at every step is ``c_t^T (I - T Ti) h_t``. The
    square-root method on ``P = E[h h^H]`` and ``Q = E[conj(c) c^T]`` has the mean squared error
    ``sum of hsv_i², i > order``, per channel, if c and h are independent, and no projection has less then. Where a
    nonlinearity stands between the weights and B and C, as in Mamba-2, the bases cannot be folded into weights: the
    layer needs a small matrix after it, or a selection.

    Parameters
    ----------
    statistics : SelectiveStatistics
        Of the layer, on sample data. Each group of heads gets bases of its own.
    order : int
        States to keep, from 1 to the rank of the covariances.

    Returns
    -------
    SelectiveReduction
        With bases and predicted error; `heads_error` measures the true one.

    Raises
    ------
    InputError, OrderError, NumericalError
        If the statistics have seen nothing, `order` is outside its range, or products of covariances overflow.

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
    order = check_kept_states(order, statistics.n)
    found = []
    for P, Q in zip(*statistics.gramians(), strict=True):
        S, R = covariance_factors(P, Q)
        largest = np.abs(S).max(initial=0.0) * np.abs(R).max(initial=0.0) * len(S)
        check_result("Products of covariances", largest, hint=SCALE)
        product = HankelSVD(S, R)
        rank = int(np.sum(product.values > rounding_floor(product.values)))
        if order > rank:
            raise OrderError(
                f"order must be at most {rank}, the rank of the covariances; got {order}. States past it link no "
                f"input to any output."
            )
        found.append((*product.bases(slice(0, order), order), padded(product.values, statistics.n)))
    T, Ti, hsv = map(np.stack, zip(*found, strict=True))
    return SelectiveReduction("projection", order, T, Ti, None, None, hsv, predicted_error(statistics, T, Ti))
