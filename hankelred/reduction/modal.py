"""Modal truncation: keep the poles that matter, and leave the others out with the terms they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .. import order as orders
from ..checks import EPS, Array, check_array, check_choice, check_flag, exactly_one
from ..errors import InputError, OrderError
from ..hankel import factored
from ..linalg.hankel_svd import HankelSVD
from ..linalg.linked import pole_groups
from ..linalg.routines import call_lapack
from ..linalg.schur import separated
from ..linalg.threads import one_blas_thread
from ..linalg.triangular import schur_factors, schur_form
from ..systems import one_system, real_output
from .balanced import OFFSET, Balancing, _balance
from .bases import matching_feedthrough
from .result import Reduction
from .split import joined, with_fixed_states

MEASURES = ("dominance", "slowest")
# Poles nearer to each other than so many of their error bars stay together.
BARS = 100.0
TINY = float(np.finfo(np.float64).tiny)  # below it there are no relative errors


class _Terms(NamedTuple):
    """The stable poles: what the term of each adds at most, its distance from the boundary, and who stays together."""

    poles: Array
    sizes: Array
    margins: Array
    groups: Array


def modal_truncation(
    sys: Any,
    order: int | None = None,
    *,
    keep: Callable[[Array], Any] | None = None,
    by: str = "dominance",
    match_dc: bool = False,
    offset: float = OFFSET,
) -> Reduction:
    """Reduce a system to some of its poles, which stay where they are.

    In modal coordinates ``G(s) = D + sum c_i b_i^H / (s - lam_i)``. Each term left out adds at most
    ``|c_i| |b_i| / |Re lam_i|`` to the error, ``|c_i| |b_i| / (1 - |lam_i|)`` in discrete time; balanced truncation is
    nearly always more accurate, but moves the poles [1]_.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        Continuous or discrete, real or complex. A diagonal system stays one; a sparse one is made dense.
    order : int, optional
        Poles to keep, the unstable and marginal ones included, which always are.
    keep : callable, optional
        Instead of an order: what tells, of an array of stable poles, which to keep.
    by : {"dominance", "slowest"}, default "dominance"
        Which poles an order keeps: those with the largest terms, or those nearest to the stability boundary.
    match_dc : bool, default False
        Match the system exactly at s = 0 or z = 1, by the feedthrough D.
    offset : float, default 1e-8
        Distance from the stability boundary within which poles are kept.

    Returns
    -------
    Reduction
        With the Hankel singular values of the system, and in `error_bound` the sum of what the terms left out add, or
        twice the sum of their Hankel singular values where that is less, as it is for nearly defective poles.

    Raises
    ------
    InputError
        If `keep` does not return a truth value for each pole.
    OrderError
        If not exactly one of `order` and `keep` is given, or the choice separates conjugate poles of a real system, or
        poles that are equal to rounding.

    References
    ----------
    .. [1] E. J. Davison, "A method for simplifying linear dynamic systems", IEEE Trans. Automatic Control 11, 1966,
       pp. 93-101.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> plant = hr.StateSpace(np.diag([-1.0, -2.0, -30.0]), np.ones((3, 1)), np.ones((1, 3)))
    >>> reduction = hr.modal_truncation(plant, order=2)
    >>> print(reduction.system.poles().real, f"{reduction.error_bound:.4f}")
    [-1. -2.] 0.0333
    >>> hr.modal_truncation(plant, keep=lambda poles: np.abs(poles) < 1.5).order
    1
    """
    name, value = exactly_one(order=order, keep=keep)
    check_choice(by, "by", MEASURES)
    check_flag(match_dc, "match_dc")
    system = one_system(sys)
    system = system.dense() if system.is_sparse else system
    bal = _balance(system, sys, offset)
    if not system.is_diagonal and not hasattr(bal._found.parts, "T"):  # factors of low rank know no poles
        bal = Balancing(system, bal.hsv, 0, bal.rank, bal.floor, sys, factored(system, offset), offset)
    with one_blas_thread(len(bal.hsv)):
        terms = _diagonal_terms(bal) if system.is_diagonal else _dense_terms(bal)
        kept = _by_order(terms, value, by, bal) if name == "order" else _by_choice(terms, value)
        return (_diagonal if system.is_diagonal else _dense)(bal, terms, kept, match_dc)


def _dense_terms(bal: Balancing) -> _Terms:
    """Return the terms of a Schur form: right and left eigenvectors make those of B and C."""
    parts = bal._found.parts
    T, Z = schur_form(parts.T, np.complex128)
    B, C = Z.conj().T @ parts.B, parts.C @ Z
    poles = np.diagonal(T)
    left, right = _eigenvectors(T)
    scale = np.linalg.norm(left, axis=0) * np.linalg.norm(right, axis=0)
    cosines = np.abs((left.conj() * right).sum(axis=0)) / np.where(scale > 0, scale, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes = np.linalg.norm(C @ right, axis=0) * np.linalg.norm(left.conj().T @ B, axis=1) / scale / cosines
        bars = BARS * EPS * np.linalg.norm(T) / cosines
    margins = 1 - np.abs(poles) if parts.discrete else -poles.real
    groups = pole_groups(poles, bars, conjugates=parts.T.dtype.kind == "f")
    return _Terms(poles, np.nan_to_num(sizes, nan=np.inf), margins, groups)


def _eigenvectors(T: Array) -> tuple[Array, Array]:
    """Return left and right eigenvectors of a complex Schur form as columns."""
    n = len(T)
    left, right = (np.zeros((n, n), complex, order="F") for _ in range(2))
    if n:
        form, count = np.asfortranarray(T, dtype=complex), np.zeros(1, np.int64)
        work, real = np.empty(2 * n, complex), np.empty(n)
        call_lapack("ztrevc", "B", "A", count, n, form, n, left, n, right, n, n, count, work, real)
    return left, right


def _diagonal_terms(bal: Balancing) -> _Terms:
    """Return the terms of a diagonal system, those of conjugates that are not stored after the others."""
    stable = bal._found.parts.stable
    B, C, _ = stable.double_matrices()
    lam, margins, groups = stable.spectrum.values(), -stable.spectrum.excess(stable.is_discrete), np.arange(stable.n)
    if stable.has_real_output:
        B, C = real_output.doubled(B, C)
        lam, margins, groups = real_output.with_conjugates(lam), np.tile(margins, 2), np.tile(groups, 2)
    return _Terms(lam, np.linalg.norm(C, axis=0) * np.linalg.norm(B, axis=1), margins, groups)


def _by_order(terms: _Terms, order: Any, by: str, bal: Balancing) -> Array:
    """Return which stable poles are kept, the groups with the largest members first."""
    order = orders.check_count(order, len(bal.hsv))
    measure = terms.sizes / terms.margins if by == "dominance" else -terms.margins
    numbers = np.unique(terms.groups)
    ranked = sorted(numbers, key=lambda number: -float(measure[terms.groups == number].max()))
    counts = bal.unstable + np.cumsum([0, *(int((terms.groups == number).sum()) for number in ranked)])
    if order not in counts:
        near = [int(x) for x in (*counts[counts < order][-1:], *counts[counts > order][:1])]
        raise OrderError(
            f"order must keep conjugate poles, poles equal to rounding, and unstable and marginal ones together; got "
            f"{order}. Choose {' or '.join(map(str, near))}."
        )
    return np.isin(terms.groups, ranked[: int(np.flatnonzero(counts == order)[0])])


def _by_choice(terms: _Terms, keep: Any) -> Array:
    """Return which stable poles are kept, as a function says."""
    if not callable(keep):
        raise InputError(f"keep must be a function of an array of poles; got {keep!r}. Or pass order.")
    kept = check_array(np.asarray(keep(terms.poles.copy())), "What keep returns", 1)
    if kept.shape != terms.poles.shape or not np.isin(kept, (0, 1)).all():
        raise InputError(
            f"keep must return a truth value for each of {len(terms.poles)} poles; got shape {kept.shape}."
        )
    kept = kept.astype(bool)
    split = np.isin(terms.groups, terms.groups[kept]) & ~kept
    if split.any():
        raise OrderError(
            f"keep must not separate conjugate poles, or poles that are equal to rounding; got such a choice at "
            f"{terms.poles[split][0]:.6g}. Choose both or none of them."
        )
    return kept


def _added(terms: _Terms, left: Array, discrete: bool, match_dc: bool, hsv: Array) -> float:
    """Return what the terms left out add at most: one by one, or by their Hankel singular values."""
    sizes, margins = terms.sizes[left], terms.margins[left]
    if discrete and match_dc:  # the response of a term is a circle with the diameter 2 / (1 - |lam|^2)
        sizes = 2 * sizes / (2 - margins)
    return min(float((sizes / margins).sum()), 2 * float(hsv.sum())) + len(sizes) * TINY


def _dense(bal: Balancing, terms: _Terms, kept: Array, match_dc: bool) -> Reduction:
    """Return the model of a dense system, its Schur form reordered and decoupled."""
    found, parts, order = bal._found, bal._found.parts, int(kept.sum())
    T, Q, Y = separated(parts.T, kept)
    X, rest = Q[:, :order], Q[:, order:]
    B, C = rest.conj().T @ parts.B, parts.C @ (rest + X @ Y)
    left = HankelSVD(*schur_factors(T[order:, order:], B, C, parts.discrete))
    bound = _added(terms, ~kept, parts.discrete, match_dc, left.values) + 2 * found.floor
    X, Xi, small = parts.projected(X, X.conj().T - Y @ rest.conj().T)
    if match_dc:
        zero = np.zeros(1)
        D = matching_feedthrough(small.D, parts.stable_response(zero), small.response(zero, parts.discrete))
        small = small._replace(D=D)
    return bal._dense_result(bal.unstable + order, X, Xi, small, "modal truncation", bound)


def _diagonal(bal: Balancing, terms: _Terms, kept: Array, match_dc: bool) -> Reduction:
    """Return the model of a diagonal system: some of its states."""
    parts = bal._found.parts
    stable, n = parts.stable, parts.stable.n
    small, left = stable.take(kept[:n]), factored(stable.take(~kept[:n]))
    bound = _added(terms, ~kept, stable.is_discrete, match_dc, left.hsv) + 2 * bal.floor
    if match_dc:
        zero = np.zeros(1)
        small = small.with_(D=matching_feedthrough(small.D, stable._response(zero), small._response(zero)))
    T = np.eye(len(kept))[:, kept]
    T, Ti = with_fixed_states(T, T.T, parts, small)
    pair = (stable, small) if len(parts.fixed) else None
    order = bal.unstable + int(kept.sum())
    return bal._result(joined(parts.fixed_system, small), order, T, Ti, "modal truncation", pair, bound)
