"""Reduction of heads with one decay each, as Mamba-2's, by balancing the covariances of what is written and read."""

from __future__ import annotations

import numpy as np

from ..checks import check_result, check_type
from ..errors import OrderError
from ..linalg.hankel_svd import HankelSVD, padded
from ..order import rounding_floor
from .factors import covariance_factors
from .result import SelectiveReduction, check_kept_states, predicted_error
from .statistics import SCALE, SelectiveStatistics


def project(statistics: SelectiveStatistics, order: int) -> SelectiveReduction:
    """Reduce a layer whose heads have one decay each, as Mamba-2, by balancing covariances.

    Any basis commutes with such dynamics, so that the output error at every step is ``c_t^T (I - T Ti) h_t``. The
    square-root method on ``P = E[h h^H]`` and ``Q = E[conj(c) c^T]`` has the mean squared error
    ``sum of hsv_i², i > order``, per channel, if c and h are independent, and no projection has less then.

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
    OrderError
        If `order` is outside its range.
    InputError
        If the statistics have seen nothing.
    NumericalError
        If products of covariances overflow.

    Notes
    -----
    Where a nonlinearity stands between the weights and B and C, as in Mamba-2, the bases cannot be folded into
    weights: the layer needs a small matrix after it, or a selection.

    Examples
    --------
    >>> import numpy as np
    >>> from hankelred.selective import project, SelectiveStatistics
    >>> rng = np.random.default_rng(0)
    >>> decay = rng.uniform(0.8, 1, (2, 300, 4))  # of 4 heads
    >>> B, C = rng.standard_normal((2, 2, 300, 1, 8)) * 0.5 ** np.arange(8)
    >>> data = decay, B, C, rng.standard_normal((2, 300, 4, 16))
    >>> statistics = SelectiveStatistics(8)
    >>> statistics.update_heads(*data)
    >>> reduction = project(statistics, 4)
    >>> bool(abs(reduction.heads_error(*data) / reduction.predicted_error - 1) < 0.1)
    True
    """
    check_type(statistics, "statistics", SelectiveStatistics)
    order = check_kept_states(order, statistics.n)
    P, Q = statistics.gramians()
    T, Ti, hsv = [], [], []
    for p, q in zip(P, Q, strict=True):
        S, R = covariance_factors(p, q)
        check_result(
            "Products of covariances", np.abs(S).max(initial=0.0) * np.abs(R).max(initial=0.0) * len(S), hint=SCALE
        )
        product = HankelSVD(S, R)
        rank = int(np.sum(product.values > rounding_floor(product.values)))
        if order > rank:
            raise OrderError(
                f"order must be at most {rank}, the rank of the covariances; got {order}. States past it link no "
                f"input to any output."
            )
        left, right = product.bases(slice(0, order), order)
        T.append(left)
        Ti.append(right)
        hsv.append(padded(product.values, statistics.n))
    bases = np.stack(T), np.stack(Ti)
    error = predicted_error(statistics, *bases)
    return SelectiveReduction("projection", order, *bases, None, None, np.stack(hsv), error)
