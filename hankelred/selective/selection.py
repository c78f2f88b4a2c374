"""Which states of a selective layer to keep where no change of basis is allowed, and what the others leave behind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla
from numpy.typing import ArrayLike

from ..checks import (
    EPS,
    Array,
    check_array,
    check_flag,
    check_integer,
    check_number,
    check_result,
    check_square,
    check_type,
    double,
)
from ..errors import InputError, OrderError
from ..linalg.semidefinite import psd_factor
from .result import SelectiveReduction, check_kept_states, predicted_error, root_share
from .statistics import SelectiveStatistics

# States up to which all subsets are tried: 65,536 of them.
EXHAUSTIVE = 16

# Least-squares folds resolve directions of the kept states down to this share of the largest, states scaled to equal
# size. Covariances of data in single precision are right to 1e-7, their factors to the root of that.
RCOND = 1e-3


@dataclass(frozen=True, eq=False)
class SelectionReport:
    """A selection of states, its error, and how far it may be from the best there is.

    Attributes
    ----------
    kept : (order,) int ndarray
        Indices of the states kept, increasing.
    error : float
        ``1_D^T M 1_D`` of the states dropped, in units of M.
    relative_error : float
        Root of its share of ``1^T M 1``.
    exhaustive : bool
        Whether all selections were tried, as for up to 16 states, so that no other has less error.
    gap : float or None
        Where all were tried: by how much the error of the search that serves larger forms exceeds the least, relative
        to that; infinite where only the least is zero.

    Examples
    --------
    >>> import numpy as np
    >>> from hankelred.selective import selection_report
    >>> report = selection_report(np.diag([4.0, 0.125, 1.0]), order=2)
    >>> report.kept, report.error, report.exhaustive
    (array([0, 2]), 0.125, True)
    """

    kept: Array
    error: float
    relative_error: float
    exhaustive: bool
    gap: float | None


def select_states(M: ArrayLike, order: int) -> Array:
    """Choose the states to keep so that leaving out the others changes the output least.

    Minimises ``1_D^T M 1_D`` over the sets D of n - order states to drop. Up to 16 states all sets are tried. Beyond,
    states are dropped one after the other, each the one that adds least; then a dropped is exchanged for a kept state,
    the best pair each time, until none helps. That is done from n starts, each of which drops another state first.
    `selection_report` measures on small forms by how much that misses the best selection.

    Parameters
    ----------
    M : (n, n) array_like
        Output-error form, ``M_ij = E[conj(c_i h_i) c_j h_j]``, Hermitian; `SelectiveStatistics.output_form` gives it.
    order : int
        States to keep, from 0 to n.

    Returns
    -------
    (order,) int ndarray
        Indices of the states to keep, increasing. What one state contributes alone, ``M_ii``, is a poor guide: states
        of a trained layer add coherently.

    Raises
    ------
    InputError, OrderError
        If M is not finite, square and Hermitian, or `order` outside its range.
    NumericalError
        If the sum of the entries of M overflows.

    Examples
    --------
    >>> from hankelred.selective import select_states
    >>> M = [[4.0, -3.9, 0.0], [-3.9, 4.0, 0.0], [0.0, 0.0, 1.0]]  # the first two nearly cancel
    >>> print(select_states(M, 1))
    [2]
    """
    form, order = _checked_form(M, order)
    if len(form) > EXHAUSTIVE:
        return _searched(form, order)
    sets = np.arange(2 ** len(form))[:, None] >> np.arange(len(form)) & 1
    return _kept_by_the_best(form, sets[sets.sum(axis=1) == len(form) - order])


def selection_report(M: ArrayLike, order: int) -> SelectionReport:
    """Choose states as `select_states` does, with their error and what the search for large forms would miss.

    Parameters
    ----------
    M : (n, n) array_like
        Output-error form as for `select_states`.
    order : int
        States to keep, from 0 to n.

    Returns
    -------
    SelectionReport
        The selection, its error, and for up to 16 states the gap of the search to the best.

    Raises
    ------
    InputError, OrderError, NumericalError
        As for `select_states`.

    Examples
    --------
    >>> import numpy as np
    >>> from hankelred.selective import selection_report
    >>> X = np.random.default_rng(0).standard_normal((40, 8))
    >>> report = selection_report(X.T @ X, 5)
    >>> len(report.kept), report.exhaustive, report.gap >= 0
    (5, True, True)
    """
    form, order = _checked_form(M, order)
    kept = select_states(form, order)
    error, gap = _form_of_dropped(form, kept), None
    if len(form) <= EXHAUSTIVE:
        missed = _form_of_dropped(form, _searched(form, order)) - error
        gap = missed / error if error > 0 else 0.0 if missed <= 0 else np.inf
    return SelectionReport(kept, error, root_share(error, float(form.sum())), gap is not None, gap)


def select(
    statistics: SelectiveStatistics,
    order: int,
    *,
    fold: bool = True,
    kept: ArrayLike | None = None,
    rcond: float = RCOND,
) -> SelectiveReduction:
    """Reduce a selective layer to some of its states.

    Every layer can represent a selection; `rotate` errs far less where a change of basis can be absorbed. Where C is
    linear in what it is made from, the kept states can in part stand in for the dropped ones: with ``P = E[h h^H]``,
    ``h ≈ V h_K`` for ``V = P_:K P_KK^-1``, which is folded into C as ``C_r = V^T C``. A bare selection keeps the
    states of `select_states`; for a fold they are chosen so that ``tr(Q (P - P_:K P_KK^-1 P_K:))``,
    ``Q = E[conj(c) c^T]``, is small: the better of a greedy choice and that one.

    Parameters
    ----------
    statistics : SelectiveStatistics
        Of the layer, on sample data. Each group of channels gets states of its own.
    order : int
        States to keep, from 1 to n.
    fold : bool, default True
        Whether to fold. Pass False where a nonlinearity stands between the weights and C, as in Mamba-2.
    kept : (order,) or (groups, order) array_like of int, optional
        States to keep, chosen by other means.
    rcond : float, default 1e-3
        From 0 to below 1. Directions of the kept states below this share of the largest, states scaled to equal
        size, take no part in the fold, a least-squares solution with pivoting.

    Returns
    -------
    SelectiveReduction
        With `kept`, bases and predicted error.

    Raises
    ------
    InputError, OrderError
        If the statistics have seen nothing, or `order`, `kept` or `rcond` are not what is said above.
    NumericalError
        If squares of covariances overflow.

    Examples
    --------
    >>> import numpy as np
    >>> from hankelred.selective import select, SelectiveStatistics
    >>> rng = np.random.default_rng(0)
    >>> statistics = SelectiveStatistics(3)
    >>> statistics.update(*rng.standard_normal((3, 2, 99, 3)) * [0.3, 0.2, 0.01])  # a, b, c; a weak third state
    >>> select(statistics, 2).kept
    array([[0, 1]])
    """
    check_type(statistics, "statistics", SelectiveStatistics)
    fold, rcond = check_flag(fold, "fold"), check_number(rcond, "rcond", least=0.0, below=1.0)
    order = check_kept_states(order, statistics.n)
    forms, hsv = statistics.error_form(), statistics.hankel_singular_values()
    P, Q = statistics.gramians()
    if kept is not None:
        chosen = _check_kept(kept, order, *forms.shape[:2])
    elif fold:
        chosen = np.stack([_selected_for_fold(*x, order, rcond) for x in zip(P, Q, forms, strict=True)])
    else:
        chosen = np.stack([select_states(M, order) for M in forms])
    Ti = np.zeros((len(forms), order, statistics.n))
    np.put_along_axis(Ti, chosen[:, :, None], 1.0, axis=2)
    if not fold:
        left = sum(_form_of_dropped(M.real, K) for M, K in zip(forms, chosen, strict=True))
        error = root_share(left, statistics.output_form().sum().real)
        return SelectiveReduction("selection", order, Ti.transpose(0, 2, 1).copy(), Ti, chosen, None, hsv, error)
    T, ranks = map(np.array, zip(*(_fold(P, K, rcond) for P, K in zip(P, chosen, strict=True)), strict=True))
    error = predicted_error(statistics, T, Ti)
    return SelectiveReduction("folded selection", order, T, Ti, chosen, None, hsv, error, fold_ranks=ranks)


def _selected_for_fold(P: Array, Q: Array, M: Array, order: int, rcond: float) -> Array:
    """Return the states that leave least of ``tr(Q P)`` unexplained, of two candidates."""
    P, Q = (x / (np.abs(x).max() or 1.0) for x in (P, Q))  # the choice does not depend on their sizes

    def left(kept: Array) -> float:
        E = np.eye(len(P)) - _fold(P, kept, rcond)[0] @ np.eye(len(P))[kept]
        return float(np.trace(Q @ E @ P @ E.conj().T).real)

    return min(_greedy_for_fold(P, Q, order), select_states(M, order), key=left)


def _greedy_for_fold(P: Array, Q: Array, order: int) -> Array:
    """Return states one by one, each the one that explains most of what is left: elimination with weighted pivots.

    State k takes ``P_:k^H Q P_:k / P_kk`` from the trace of Q times the Schur complement P.
    """
    rest, start = P.copy(), np.diagonal(P).real
    kept: list[int] = []
    for _ in range(order):
        sizes = np.diagonal(rest).real
        resolved = sizes > len(P) * EPS * start
        explained = np.sum((rest.conj() * (Q @ rest)).real, axis=0) / np.where(resolved, sizes, 1.0)
        explained[~resolved] = -1.0
        explained[kept] = -2.0
        k = int(np.argmax(explained))
        kept.append(k)
        if resolved[k]:
            rest = rest - np.outer(rest[:, k], rest[k]) / sizes[k]
    return np.sort(kept)


def _check_kept(kept: ArrayLike, order: int, groups: int, n: int) -> Array:
    """Return the states of every group, increasing."""
    check_array(kept, "kept", None)
    indices = np.asarray(kept)
    if indices.dtype.kind in "iu" and indices.shape in {(order,), (groups, order)}:
        chosen = np.sort(np.broadcast_to(indices, (groups, order)), axis=1).astype(np.int64)
        if chosen.min() >= 0 and chosen.max() < n and np.all(np.diff(chosen, axis=1) > 0):
            return chosen
    raise InputError(
        f"kept must hold {order} distinct states from 0 to {n - 1}, once or for each of {groups} groups; got {kept!r}."
    )


def _fold(P: Array, kept: Array, rcond: float) -> tuple[Array, int]:
    """Return ``V = P_:K P_KK^-1`` by least squares on a factor, ``S ≈ V S_K``, and the rank it found.

    Kept states are reproduced as they are; states that stay at zero take no part.
    """
    sizes = np.sqrt(np.maximum(np.diagonal(P).real, 0.0))
    unit = np.where(sizes > 0, sizes, 1.0)
    S = psd_factor(P / np.outer(unit, unit))  # states of equal size
    live = sizes[kept] > 0
    V = np.zeros((len(P), len(kept)), S.dtype)
    rank = 0
    if live.any():
        solution, _, rank, _ = sla.lstsq(S[kept[live]].T, S.T, cond=rcond, lapack_driver="gelsy")
        V[:, live] = unit[:, None] * solution.T / sizes[kept[live]]
    V[kept] = np.eye(len(kept))
    return V, int(rank)


def _checked_form(M: ArrayLike, order: int) -> tuple[Array, int]:
    """Return the real part of M, which is all that sets of states see, and the order."""
    form = double(check_square(M, "M"))
    with np.errstate(over="ignore"):
        check_result("The sum of the entries of M", 4 * np.abs(form).sum(), hint="Scale M.")  # 4: costs of exchanges
    difference = float(np.abs(form - form.conj().T).max(initial=0.0))
    if difference > 1e-6 * np.abs(form).max(initial=0.0):
        raise InputError(
            f"M must be Hermitian; got a difference of {difference:.3g} from its conjugate transpose. "
            f"M_ij = E[conj(c_i h_i) c_j h_j]."
        )
    order = check_integer(order, "order", 0, len(form), "M has as many states.", OrderError)
    return np.ascontiguousarray((form.real + form.real.T) / 2), order


def _searched(M: Array, order: int) -> Array:
    """Return the states that greedy starts and exchanges keep."""
    if order == len(M):
        return np.arange(order)
    starts = dropped_greedily(M, len(M) - order)
    sets = starts[np.sort(np.unique(starts, axis=0, return_index=True)[1])]
    tolerance = len(M) * EPS * float(np.abs(M).sum())
    for dropped in sets:
        exchange(M, dropped, tolerance)
    return _kept_by_the_best(M, sets)


def _kept_by_the_best(M: Array, sets: Array) -> Array:
    """Return the states outside of the set D, a row of `sets`, with the least ``1_D^T M 1_D``."""
    return np.flatnonzero(sets[np.argmin(np.sum((sets @ M) * sets, axis=1))] == 0)


def dropped_greedily(M: Array, count: int) -> Array:
    """Mark `count` states to drop, in row i state i and then the states that add least to ``1_D^T M 1_D``."""
    rows = np.arange(len(M))
    dropped = np.eye(len(M), dtype=bool)
    cost = np.where(dropped, np.inf, np.diagonal(M) + 2 * M)
    for _ in range(count - 1):
        best = np.argmin(cost, axis=1)
        dropped[rows, best] = True
        cost += 2 * M[best]
        cost[rows, best] = np.inf
    return dropped


def exchange(M: Array, dropped: Array, tolerance: float) -> None:
    """Exchange a kept for a dropped state, the best pair each time, until none helps by more than the tolerance."""
    while not dropped.all():
        toward = 2 * M[dropped].sum(axis=0)  # formed anew, so that rounding does not pile up
        back, away = np.flatnonzero(dropped), np.flatnonzero(~dropped)
        saved, added = (np.diagonal(M) - toward)[back], (np.diagonal(M) + toward)[away]
        change = saved[:, None] + added - 2 * M[back][:, away]
        d, k = np.unravel_index(np.argmin(change), change.shape)
        if change[d, k] >= -tolerance:
            return
        dropped[back[d]], dropped[away[k]] = False, True


def _form_of_dropped(M: Array, kept: Array) -> float:
    dropped = np.setdiff1d(np.arange(len(M)), kept)
    return float(M[np.ix_(dropped, dropped)].sum())
