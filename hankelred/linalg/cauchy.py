"""Gramian factors of diagonal systems, which never form a Gramian and keep the digits of every singular value.

A Gramian of diagonal A is Cauchy-like. Cholesky with diagonal pivoting can be carried out on the generator of such a
matrix, by products only; each entry of the factor then has a small relative error, however small the factor's later
columns are, and so has every Hankel singular value [1]_. The columns are the Malmquist-Takenaka functions of the
poles, or low-rank ADI iterates whose shifts are the system's own poles.

References
----------
.. [1] J. Demmel, Accurate singular value decompositions of structured matrices, SIAM J. Matrix Anal. Appl. 21, 1999.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg as sla

from ..checks import EPS, Array
from ..errors import NumericalError, StabilityError
from .compiled import Kernels

kernels = Kernels("hankelred.linalg.cauchy_factor")

# Pairs of a pole and its conjugate lose about eps over the square of this distance (measured: 8e-13 at 0.03); below it
# the doubled system is factored without pairs.
NEARLY_REAL = 0.1

# All columns are computed up to this many states; beyond, until the trace of what remains is EPS**2 of the whole. In
# states scaled to P_ii = Q_ii a relative trace of delta**2 leaves errors of about delta in the hsv.
FULL_STATES = 512

# Below this share of the trace the squares of the factor's entries underflow, and so do those of LAPACK's dqds.
SMALLEST_SHARE = 1e-150
SMALLEST = float(np.finfo(np.float64).tiny)

# The dense route loses about EPS over the least eigenvalue of the Gramian scaled to a unit diagonal.
DENSE_EIGENVALUE = 0.01
DENSE_STATES = 4096  # four complex matrices of that size are 1 GiB


class PoleData(NamedTuple):
    """Poles, (n,) or (batch, n), and what the kernels need to know of each.

    Written with these, a denominator keeps its digits next to the stability boundary: gap_k and the difference are
    known to full relative accuracy, and neither term exceeds twice the modulus of their sum.

    Attributes
    ----------
    lam : (..., n) ndarray
        Poles.
    z : (..., n) or (..., 0) ndarray
        Their logarithms where these are the data; else empty.
    gap : (..., n) ndarray of float
        ``1 - |lam|^2``, or ``-2 Re lam``.
    mirror : (..., n) ndarray
        ``conj(lam)``, or 1: the denominator of rows i and k is ``gap_k - (lam_i - lam_k) mirror_k``.
    turn : (..., n) ndarray
        Unit factors; the Blaschke factor ``turn_k (lam_i - lam_k) / denominator`` is 1 at ``lam_i = 1``, in continuous
        time at infinity.
    """

    lam: Array
    z: Array
    gap: Array
    mirror: Array
    turn: Array

    def map(self, function: Callable[[Array], Array]) -> PoleData:
        """Return the poles with a function applied to each array that is not empty."""
        return PoleData(*(function(x) if x.shape == self.lam.shape else x for x in self))

    def take(self, states: Array | slice) -> PoleData:
        """Return a part of the poles as new arrays, which a kernel may reorder."""
        return self.map(lambda x: x[states].copy())

    def conj(self) -> PoleData:
        """Return the poles of the dual system."""
        return self.map(np.conj)

    def doubled(self) -> PoleData:
        """Return the poles and, along the last axis, after them their conjugates."""
        return self.map(lambda x: np.concatenate([x, x.conj()], axis=-1))


class Rows(NamedTuple):
    """The rows of a Schur complement, in the order of elimination.

    Attributes
    ----------
    poles : PoleData
        Their poles.
    G : (m, n) ndarray
        Its generator, a column for each row.
    size : (n,) ndarray
        Its diagonal, ``|G_i|^2 / gap_i``.
    states : (n,) ndarray of int
        The state that each row belongs to.
    """

    poles: PoleData
    G: Array
    size: Array
    states: Array


class FactorSteps(NamedTuple):
    """A factor and the steps that led to it, for a bank with the batch axis in front.

    Attributes
    ----------
    columns : (k, n) ndarray
        Columns of the factor.
    pivots : (k,) ndarray of int
        The state each came from; n + i for the conjugate of state i, -1 where nothing was left.
    w : (k, m) ndarray
        ``I - beta w w^H`` are the reflections of the generator's columns.
    beta : (k,) ndarray of float
        See w.
    """

    columns: Array
    pivots: Array
    w: Array
    beta: Array


class Pairs(NamedTuple):
    """What poles need that stand for themselves and their conjugates, for a bank with the batch axis in front.

    Attributes
    ----------
    twist : (m, m) ndarray
        ``conj(G) twist`` is the generator of the conjugates.
    mix : (k, 2) ndarray
        Columns of a pair are ``mix[i, 0]`` times the first plus ``mix[i, 1]`` times the second that were eliminated.
    distance : (1,) ndarray, (batch,) of a bank
        Least ratio of the second to the first diagonal entry of a pair, at most 1.
    """

    twist: Array
    mix: Array
    distance: Array


def new_steps(k: int, B: Array, pairs: bool) -> tuple[FactorSteps, Pairs | None]:
    """Return arrays for k columns of the factors of input matrices (..., n, m)."""
    *batch, n, m = B.shape
    shape = (*batch, k)
    steps = FactorSteps(
        np.empty((*shape, n), B.dtype), np.empty(shape, np.int64), np.empty((*shape, m), B.dtype), np.empty(shape)
    )
    if not pairs:
        return steps, None
    twist = np.empty((*batch, m, m), B.dtype)
    twist[...] = np.eye(m)
    return steps, Pairs(twist, np.empty((*shape, 2), B.dtype), np.ones(batch or 1))


def pole_data(lam: Array, z: Array | None, discrete: bool) -> PoleData:
    """Return what the kernels read about poles in double precision, all of which must be stable."""
    if not discrete:
        excess = lam.real
        gap, mirror, turn = -2 * lam.real, np.ones_like(lam), -np.ones_like(lam)
    else:
        if z is None:
            gap = np.empty(lam.shape)
            kernels.one_minus_square(lam.reshape(-1), gap.reshape(-1))
            excess, distance = np.abs(lam) - 1, 1 - lam
        else:
            gap, excess, distance = -np.expm1(2 * z.real), np.expm1(z.real), -np.expm1(z)
        mirror = lam.conj()
        with np.errstate(divide="ignore", invalid="ignore"):  # a pole at 1 is refused below
            turn = distance.conj() / distance
    if not np.all(gap > 0):
        worst = int(np.argmin(gap))
        limit, got = ("|lam| < 1", "|lam| - 1") if discrete else ("Re lam < 0", "Re lam")
        raise StabilityError(
            f"All poles must be stable ({limit}); got {got} = {excess.flat[worst]:.3g} for pole {worst}. "
            f"Reduce the stable part (balance splits it off), or pass the right dt."
        )
    z = np.empty((*lam.shape[:-1], 0), lam.dtype) if z is None else z
    return PoleData(*map(np.ascontiguousarray, (lam, z, gap, mirror, turn)))


def factor(
    poles: PoleData, B: Array, first: Array, rest: Array, rtol: float, pairs: bool = False
) -> tuple[Array, float]:
    """Return S with ``P = S S^H`` and the least distance of conjugate pairs from real poles, see `NEARLY_REAL`, else 1.

    Rows outside the given states are zero; pivots lie among `first` before `rest`. Elimination stops where less than
    the share `rtol` of the trace is left.
    """
    states = np.concatenate([first, rest])
    B_kept = B[states]
    if not np.any(B_kept):
        return np.zeros((len(B), 0), dtype=B.dtype), 1.0
    B_kept, scale = unit_scale(B_kept)
    kept, S, distance = poles.take(states), None, 1.0
    if rtol <= EPS and dense_is_faster(len(states), B.shape[1], B.dtype.kind == "c"):
        S = _dense_factor(kept, B_kept, len(first), pairs)
    if S is None:
        S, distance = _structured(kept, _independent_columns(B_kept, pairs), len(first), rtol, pairs)
    S *= scale
    if len(first) == len(B):
        return S, distance
    whole = np.zeros((len(B), S.shape[1]), dtype=S.dtype)
    whole[states] = S
    return whole, distance


def unit_scale(B: Array) -> tuple[Array, Array]:
    """Return matrices (..., n, m) over powers of two that bring their largest entries near 1, and those powers."""
    largest = np.abs(B).max(axis=(-2, -1), keepdims=True, initial=0.0)
    scale = power_of_two(np.where(largest > 0, largest, 1.0))
    return divided(B, scale), scale


def power_of_two(size: Any) -> Any:
    """Return the powers of two next to positive numbers, the largest of double precision at most."""
    return np.exp2(np.minimum(np.round(np.log2(size)), 1023))


def divided(x: Array, scale: Any) -> Array:
    """Return x over real numbers, parts apart: complex division overflows where these are subnormal."""
    if x.dtype.kind != "c":
        return x / scale
    quotient = np.empty_like(x)
    quotient.real, quotient.imag = x.real / scale, x.imag / scale
    return quotient


def _structured(p: PoleData, B: Array, first: int, rtol: float, pairs: bool) -> tuple[Array, float]:
    """Eliminate on the generator. Pivots lie among the first rows until their trace is spent, then among all."""
    n, m = B.shape
    if pairs:
        p = p.take(np.append(np.arange(n), 0))  # the spare row for the conjugate of a pivot
    last = len(p.lam)
    G = np.zeros((m, last), dtype=B.dtype)
    G[:, :n] = B.T
    size = np.zeros(last)
    kernels.row_sizes(G, p.gap, size)
    if not np.isfinite(size[:n].sum()):
        raise NumericalError(
            f"The Gramian overflows; the least stability margin is {p.gap.min():.3g}. Rescale time or the inputs."
        )
    rows, limit = Rows(p, G, size, np.arange(last)), 2 * n if pairs else n
    steps, record = new_steps(min(limit, FULL_STATES), B, pairs)
    k = done = 0
    for eligible in sorted({first, n}):
        floor = max(rtol, SMALLEST_SHARE) * float(size[k:eligible].sum())
        while True:
            k, done = kernels.eliminate(rows, steps, record, eligible, floor, k, done)
            length = len(steps.columns)
            if done + 2 < length or length == limit:
                break
            more = min(limit, 2 * length) - length
            steps = FactorSteps(*(np.concatenate([x, np.empty((more, *x.shape[1:]), x.dtype)]) for x in steps))
            if record:
                record = record._replace(mix=np.resize(record.mix, (length + more, 2)))
    return steps.columns[:done].T, float(record.distance[0]) if record else 1.0


def _independent_columns(B: Array, pairs: bool) -> Array:
    """Return ``B V``, V with orthonormal columns, with no more columns than the rows of B span.

    More inputs than states, or inputs that repeat each other, would leave rounding in directions that carry nothing.
    With `pairs` V is real, which keeps the generator of the conjugate poles conjugate to B.
    """
    rows = np.vstack([B.real, B.imag]) if pairs else B
    n, m = rows.shape
    if m > n:
        rows = sla.qr(rows.conj().T, mode="r")[0][:n].conj().T
        B = rows[: len(B)] + 1j * rows[len(B) :] if pairs else rows
    if rows.shape[1] == 1:
        return B
    lengths = row_norms(rows)
    triangle, order = sla.qr(rows[lengths > 0] / lengths[lengths > 0, None], mode="r", pivoting=True)
    size = np.abs(np.diagonal(triangle))
    rank = int(np.sum(size > max(n, m) * EPS * size[0]))
    if rank == rows.shape[1]:
        return B
    spanning = np.empty((rank, rows.shape[1]), dtype=triangle.dtype)
    spanning[:, order] = triangle[:rank]
    return B @ sla.qr(spanning.conj().T, mode="economic")[0]


def dense_is_faster(n: int, m: int, complex_data: bool) -> bool:
    """Tell whether forming and factoring the Gramian takes less than half of the time of the structured route.

    Nanoseconds measured on one core (numba 0.68, OpenBLAS 0.3): a structured step costs ``a + b m`` for each row left,
    the dense route ``c + d m + e n`` for each entry. Half, because the dense route may have to be given up.
    """
    a, b, c, d, e = (10, 8, 20, 0.1, 0.05) if complex_data else (5, 3, 8, 0.03, 0.015)
    return n <= DENSE_STATES and 4 * (c + d * m + e * n) < a + b * min(m, n)


def _dense_factor(p: PoleData, B: Array, first: int, pairs: bool) -> Array | None:
    """Form the Gramian and factor it; None where that would lose digits."""
    P = B.conj() @ B.T  # transposed: the kernel writes column by column
    kernels.divide_by_denominators(P, p, p)
    if pairs:
        P2 = B @ B.T
        kernels.divide_by_denominators(P2, p, p.conj())
        P, P2 = P.T, P2.T
        P = np.block([[(P + P2).real, (P2 - P).imag], [(P2 + P).imag, (P - P2).real]]) / 2
    else:
        P = P.T
    root = np.sqrt(P.diagonal().real)
    if not np.all(root > 0):
        return None
    late = np.arange(len(P)) % len(B) >= first
    order = np.lexsort((-root, late))
    unit = (P / root / root[:, None])[np.ix_(order, order)]
    try:
        L = sla.cholesky(unit, lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        return None
    x = np.cos(np.arange(len(P), dtype=np.float64))  # any start: three steps of inverse iteration
    for _ in range(3):
        x = sla.cho_solve((L, True), x / np.linalg.norm(x), check_finite=False)
    if np.linalg.norm(x) * DENSE_EIGENVALUE > 1:
        return None
    S = np.empty_like(L)
    S[order] = L * root[order, None]
    return S[: len(B)] + 1j * S[len(B) :] if pairs else S


def row_norms(B: Array) -> Array:
    """Return the length of each row without overflow or underflow of its square."""
    largest = np.abs(B).max(axis=1, initial=0.0)
    scale = np.where(largest > 0, largest, 1.0)[:, None]
    return largest * np.sqrt((np.abs(divided(B, scale)) ** 2).sum(axis=1)) if B.shape[1] > 1 else largest


def factor_pair(poles: PoleData, B: Array, C: Array, pairs: bool = False) -> tuple[Array, Array, float]:
    """Return ``S, R`` and the least distance of pairs; with `pairs` halves of ``[S; conj S]`` and ``[R, conj R] / 2``.

    The states are scaled so that ``P_ii = Q_ii``. That puts the pivots of both factors into one order, and lets the
    traces t_P and t_Q left at the stop bound the error: no hsv is off by more than
    ``|R| sqrt(t_P) + |S| sqrt(t_Q) + sqrt(t_P t_Q)``. States that the input does not drive or the output does not see
    have no scale of their own and come after all others, so that ``R S`` has zeros where they would disturb.
    """
    n, rtol = len(B), 0.0 if len(B) <= FULL_STATES else EPS**2
    drive, sight = row_norms(B), row_norms(C.T)
    energy = drive / drive.max(initial=SMALLEST) * (sight / sight.max(initial=SMALLEST)) / poles.gap
    faint = energy < n * SMALLEST_SHARE * energy.max(initial=0.0)
    if faint.any():  # in both traces they would be lost, though one Gramian may need them: each counts for that one
        seen_more = drive / drive.max(initial=SMALLEST) < sight / sight.max(initial=SMALLEST)
        B, C = np.where((faint & seen_more)[:, None], 0, B), np.where(faint & ~seen_more, 0, C)
        drive, sight = np.where(faint & seen_more, 0.0, drive), np.where(faint & ~seen_more, 0.0, sight)
    both = (drive > 0) & (sight > 0)
    kept = np.flatnonzero(both)
    if B.shape[1] == len(C) == 1 and len(kept) == n:
        # One factor L for b_i = sqrt|b_i c_i| serves both: S = (b / that) L, R^T = (c / that) L.
        g = np.sqrt(drive) * np.sqrt(sight)
        L, distance = factor(poles, g[:, None].astype(B.dtype), kept, kept[:0], rtol, pairs)
        R = (C[0] / g) * L.T
        return np.multiply((B[:, 0] / g)[:, None], L, out=L), R, distance  # in place: factors may be large
    weight = np.ones(n)
    weight[kept] = np.sqrt(sight[kept]) / np.sqrt(drive[kept])
    weight = power_of_two(weight)[:, None]  # scaling is exact
    driven, seen = np.flatnonzero((drive > 0) & ~both), np.flatnonzero((sight > 0) & ~both)
    S, distance = factor(poles, weight * B, kept, driven, rtol, pairs)
    R, other = factor(poles.conj(), divided(C.conj().T, weight), kept, seen, rtol, pairs)
    np.divide(S, weight, out=S)
    np.multiply(R, weight, out=R)
    return S, R.conj().T, min(distance, other)
