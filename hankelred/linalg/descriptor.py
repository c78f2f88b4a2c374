"""Pencils ``s E - A``: rank of E in units, and the ordinary state equations that a pencil of index 1 stands for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg as sla

from ..checks import EPS, Array, check_result
from ..errors import InputError

# Rounds of equilibration; each takes the root of what is left, so that 12 bring 1e300 to 1.2.
ROUNDS = 12
# What is below this times n eps is rounding: singular values of rotated and scaled singular pencils (2 to 7 states,
# 2,000 of them) come out at up to 14 n eps.
MARGIN = 32


class StandardForm(NamedTuple):
    """Ordinary system ``x_d' = A x_d + B u, y = C x_d + D u`` of a pencil, and ``x = T x_d + (...) u``.

    T is the identity where E is nonsingular; else it has fewer columns than rows, one for each dynamic state.
    """

    A: Array
    B: Array
    C: Array
    D: Array
    T: Array


def standard_form(A: Array, B: Array, C: Array, D: Array, E: Array) -> StandardForm:
    """Return the system without E that has the response ``C (s E - A)^-1 B + D``, in either time domain.

    Rows and columns of E are brought to one size by powers of two before its rank is judged, so that units decide
    nothing. Where E is singular and the index of the pencil is 1, the algebraic equations are solved for the states
    that are no dynamic ones and D takes up what they pass on.

    Parameters
    ----------
    A, B, C, D, E : (n, n), (n, m), (p, n), (p, m) and (n, n) ndarray
        Checked matrices in double precision.

    Returns
    -------
    StandardForm
        In the state units of the caller where E is nonsingular or singular only by rows and columns of zeros.

    Raises
    ------
    InputError
        If the pencil is singular, or its index is above 1.

    Examples
    --------
    >>> import numpy as np
    >>> from hankelred.linalg.descriptor import standard_form
    >>> A, E = np.array([[-1.0, 1.0], [1.0, -2.0]]), np.diag([1.0, 0.0])  # the second equation has no derivative
    >>> form = standard_form(A, np.eye(2)[:, 1:], np.eye(2)[:1], np.zeros((1, 1)), E)
    >>> print(form.A, form.T.shape)
    [[-0.5]] (2, 1)
    """
    n = len(A)
    if n == 0:
        return StandardForm(A, B, C, D, np.eye(0))
    rows, columns = equilibrated(E)
    with np.errstate(over="ignore", invalid="ignore"):
        A, E = (rows[:, None] * x * columns for x in (A, E))
        B, C = rows[:, None] * B, C * columns
    check_result("A, B and C in units in which the entries of E are near 1", A, B, C, hint="Scale E.")
    pencil, (left, right, rank, units, turn) = (A, E), _range_first(E, columns)
    rounding = abs(left[rank:]) @ abs(A) @ abs(right[:, rank:])  # of A22: of its entries, and by the turned bases
    A, E, B, C = left @ A @ right, left @ E @ right, left @ B, C @ right
    A11, A12, A21, A22 = A[:rank, :rank], A[:rank, rank:], A[rank:, :rank], A[rank:, rank:]
    rounding += (
        turn[0][:, None] * np.linalg.norm(A[:, rank:], axis=0) + np.linalg.norm(A[rank:], axis=1)[:, None] * turn[1]
    )
    r, c = equilibrated(A22)
    scaled = r[:, None] * A22 * c
    if rank < n:
        least, size = sla.svdvals(scaled, check_finite=False)[-1], sla.norm(r[:, None] * rounding * c, 2)
        if not least > MARGIN * n * EPS * size:
            raise _index_error(*pencil, rank, least / size if size else 0.0)
    # 0 = A21 x1 + A22 x2 + B2 u, solved for x2 = -K x1 - L u
    K, L = np.split(c[:, None] * sla.solve(scaled, r[:, None] * np.hstack([A21, B[rank:]])), [rank], axis=1)
    right_sides = np.hstack([A11 - A12 @ K, B[:rank] - A12 @ L])
    state, inputs = np.split(sla.solve(E[:rank, :rank], right_sides), [rank], axis=1)
    C1, C2 = C[:, :rank], C[:, rank:]
    T = columns[:, None] * (right[:, :rank] - right[:, rank:] @ K) / units
    return StandardForm(state * units[:, None] / units, inputs * units[:, None], (C1 - C2 @ K) / units, D - C2 @ L, T)


def equilibrated(E: Array) -> tuple[Array, Array]:
    """Return powers of two for rows and columns that bring the largest entry of each near 1; zeros stay."""
    rows, columns = np.zeros(E.shape[0]), np.zeros(E.shape[1])
    with np.errstate(divide="ignore"):
        sizes = np.log2(abs(E))
    for _ in range(ROUNDS):
        now = sizes + rows[:, None] + columns
        for scale, axis in ((rows, 1), (columns, 0)):
            largest = now.max(axis=axis, initial=-np.inf)
            scale -= np.where(np.isfinite(largest), largest, 0.0) / 2
    return np.exp2(np.round(rows)), np.exp2(np.round(columns))


def regular_factors(E: Array) -> tuple[Array, Array]:
    """Return the LU factors of an equilibrated E, or raise `InputError` where it is singular."""
    rank = _range_first(E, np.ones(len(E))).rank
    if rank < len(E):
        raise InputError(
            f"E must be nonsingular; got numerical rank {rank} of {len(E)} in units in which its rows and columns "
            f"are of one size. Solve the algebraic equations first."
        )
    return sla.lu_factor(E, check_finite=False)


class _Range(NamedTuple):
    """Bases L, R with ``L E R = diag(E11, 0)``, E11 (rank, rank).

    `units` are what one unit of each state of E11 is; `turn` are the angles, in units of
    rounding, by which the other rows of L and columns of R are uncertain.
    """

    left: Array
    right: Array
    rank: int
    units: Array
    turn: tuple[Array, Array]


def _range_first(E: Array, columns: Array) -> _Range:
    """Separate the range of E from its null spaces.

    Rows and columns of zeros need an order only, which keeps entries and units; an SVD of the rest is for the ranks
    that are not to be seen.
    """
    n = len(E)
    full_rows, full_columns = E.any(axis=1), E.any(axis=0)
    i, j = np.argsort(~full_rows, kind="stable"), np.argsort(~full_columns, kind="stable")
    k, l = int(full_rows.sum()), int(full_columns.sum())
    left, right = np.eye(n, dtype=E.dtype)[i], np.eye(n, dtype=E.dtype)[:, j]
    if k == 0:
        return _Range(left, right, 0, np.ones(0), (np.zeros(n), np.zeros(n)))
    U, sizes, Vh = sla.svd(E[np.ix_(i[:k], j[:l])], check_finite=False)
    rank = int(np.sum(sizes > MARGIN * n * EPS * sizes[0]))
    turn = np.zeros(n - rank), np.zeros(n - rank)
    if rank == k == l:
        return _Range(left, right, rank, columns[j[:k]], turn)
    left[:k], right[:, :l] = U.conj().T @ left[:k], right[:, :l] @ Vh.conj().T
    turn[0][: k - rank] = turn[1][: l - rank] = sizes[0] / sizes[rank - 1]
    return _Range(left, right, rank, np.ones(rank), turn)


def _index_error(A: Array, E: Array, rank: int, rcond: float) -> InputError:
    """Return the error that says whether the pencil is singular or of index 2 or more."""
    n, size = len(A), sla.norm(A, 1) / (sla.norm(E, 1) or 1.0)
    for s in [0.0, *(size * np.exp(0.7j) * np.logspace(-16, 0, 5))]:  # rates lie far apart in units made for E
        pencil = s * E - A
        r, c = equilibrated(pencil)
        sizes = sla.svdvals(r[:, None] * pencil * c, check_finite=False)
        if sizes[-1] > MARGIN * n * EPS * sizes[0]:
            return InputError(
                f"The pencil (A, E) must be of index 1 at most; got E of rank {rank} of {n} and algebraic equations "
                f"with reciprocal condition {rcond:.1g}, so its index is 2 or more. Differentiate the constraints "
                f"(loops of capacitors and voltage sources, cutsets of inductors and current sources) first."
            )
    return InputError(
        f"The pencil (A, E) must be regular; got det(s E - A) = 0 for every s, with E of rank {rank} of {n}. Remove "
        f"equations that repeat others, or states that no equation determines."
    )
