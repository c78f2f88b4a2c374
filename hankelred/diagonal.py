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

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.linalg as sla
from numpy.typing import ArrayLike

from . import _diagonal_kernels as kernels
from ._checks import Array, check_array, check_dt, double, is_discrete
from .errors import InputError, StabilityError
from .systems import DiagonalSystem

EPS = float(np.finfo(np.float64).eps)

# All columns are computed up to this many states; beyond, until the trace of what remains is EPS**2 of the whole. In
# states scaled to P_ii = Q_ii a relative trace of delta**2 leaves errors of about delta in the hsv (`_factor_pair`).
FULL_STATES = 512

# Below this share of the trace the squares of the factor's entries underflow, and so do those of LAPACK's dqds.
SMALLEST_SHARE = 1e-150

# Pairs of a pole and its conjugate lose about EPS over the square of this distance (measured: 8e-13 at 0.03).
NEARLY_REAL = 0.1

# The dense route loses about EPS over the least eigenvalue of the Gramian scaled to a unit diagonal.
DENSE_EIGENVALUE = 0.01
DENSE_STATES = 4096  # four complex matrices of that size are 1 GiB


@dataclass(frozen=True)
class Poles:
    """Poles and what the kernels need to know of each: see the table in `_diagonal_kernels`."""

    lam: Array
    z: Array | None
    gap: Array
    mirror: Array
    turn: Array

    def take(self, states: Array) -> Poles:
        """Return the given poles as new arrays, which a kernel may reorder."""
        z = None if self.z is None else self.z[states]
        return Poles(self.lam[states], z, self.gap[states], self.mirror[states], self.turn[states])

    def conj(self) -> Poles:
        """Return the poles of the dual system."""
        z = None if self.z is None else self.z.conj()
        return Poles(self.lam.conj(), z, self.gap, self.mirror.conj(), self.turn.conj())

    def doubled(self) -> Poles:
        """Return the poles and after them their conjugates."""
        n = np.arange(len(self.lam))
        both, dual = self.take(np.append(n, n)), self.conj()
        for name in ("lam", "z", "mirror", "turn"):
            if getattr(both, name) is not None:
                getattr(both, name)[len(n) :] = getattr(dual, name)
        return both


@dataclass(frozen=True)
class Factor:
    """A factor of a Gramian and how it was found.

    Attributes
    ----------
    S : (n, k) ndarray
        ``P = S S^H``.
    route : {"structured", "dense"}
        Whether the Gramian was avoided, or formed and factored: many inputs, well conditioned.
    remainder : float
        Trace of ``P - S S^H`` over the trace of P.
    distance : float
        For conjugate pairs, their least distance from real poles as `NEARLY_REAL` counts it; else 1.
    """

    S: Array
    route: Literal["structured", "dense"]
    remainder: float
    distance: float = 1.0


def diagonal_factor(
    lam: ArrayLike, B: ArrayLike, *, dt: Any, rtol: float | None = None, rates: ArrayLike | None = None
) -> Array:
    """Compute S with ``P = S S^H`` for diagonal A, in O(n k m) time and O(n k) memory.

    P solves ``A P + P A^H + B B^H = 0``, or ``A P A^H - P + B B^H = 0`` in discrete time, with ``A = diag(lam)``.
    It is not formed: each entry of S is right to a few units in the last place of the largest in its column, also in
    columns far below the rounding errors of P.

    Parameters
    ----------
    lam : (n,) array_like
        Poles, strictly stable.
    B : (n, m) array_like
        Input matrix. For the other Gramian pass ``lam.conj()`` and ``C.conj().T``: then ``R = S.conj().T``.
    dt : float or bool
        Sampling time in seconds; 0 is continuous, True is discrete without a stated time.
    rtol : float, optional
        Stop when the trace of what is left of P is at most this share of its trace; 0 asks for all columns. By
        default 0 up to 512 states and eps squared, 5e-32, beyond. Hankel singular values below about ``sqrt(rtol)``
        of the largest are then not certain.
    rates : (n,) array_like, optional
        Logarithms of discrete poles, ``lam = exp(rates)``. Where they are given they are the data, so that poles
        within 1e-13 of the unit circle keep their digits, and `lam` is not read.

    Returns
    -------
    (n, k) ndarray
        Factor with columns of falling size, real where `lam` and `B` are; k is at most n.

    Raises
    ------
    InputError
        If shapes disagree, an entry is not finite, or `rtol` is outside [0, 1).
    StabilityError
        If a pole is not strictly stable.

    See Also
    --------
    diagonal_factor_report : The same with the route taken and the trace left over.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> rates = np.arange(1.0, 5.0)
    >>> S = hr.diagonal_factor(-rates, np.ones((4, 1)), dt=0)
    >>> P = 1 / np.add.outer(rates, rates)
    >>> bool(np.linalg.norm(S @ S.T - P) < 1e-15 * np.linalg.norm(P))
    True
    """
    return diagonal_factor_report(lam, B, dt=dt, rtol=rtol, rates=rates).S


def diagonal_factor_report(
    lam: ArrayLike, B: ArrayLike, *, dt: Any, rtol: float | None = None, rates: ArrayLike | None = None
) -> Factor:
    """Compute what `diagonal_factor` does and say how.

    Parameters
    ----------
    lam, B, dt, rtol, rates
        As for `diagonal_factor`.

    Returns
    -------
    Factor
        With ``.S``, ``.route`` ("structured" or "dense") and ``.remainder``, the share of the trace left over.

    Raises
    ------
    InputError, StabilityError
        As `diagonal_factor` does.

    Notes
    -----
    Structured elimination costs O(n k m); with many inputs, forming and factoring the Gramian is faster by a measured
    cost model (`dense_is_faster`). That route is kept only where the Gramian, scaled to a unit diagonal, is so well
    conditioned that it loses no more than two digits.

    Examples
    --------
    >>> import numpy as np
    >>> from hankelred.diagonal import diagonal_factor_report
    >>> report = diagonal_factor_report(np.linspace(-0.9, 0.9, 50), np.ones((50, 1)), dt=True, rtol=1e-8)
    >>> report.route, report.S.shape[1] < 20, report.remainder <= 1e-8
    ('structured', True, True)
    """
    dt, B = check_dt(dt), check_array(B, "B", 2, "Write B[:, None] for one input.")
    name, data = ("lam", lam) if rates is None else ("rates", rates)
    values = check_array(data, name, 1)
    if len(values) != len(B):
        raise InputError(f"B must have one row per pole; got {len(values)} poles and B {B.shape}. B is (n, m).")
    if rates is not None and not is_discrete(dt):
        raise InputError("rates are for discrete systems, lam = exp(rates); got dt=0. Pass the poles as lam.")
    if rtol is not None and not 0 <= rtol < 1:
        raise InputError(f"rtol must be at least 0 and below 1; got {rtol}. Pass None for the default.")
    dtype = np.result_type(values, B)
    inner = np.complex128 if dtype.kind == "c" else np.float64
    values, B = values.astype(inner), B.astype(inner)
    poles = pole_data(values, None, dt) if rates is None else pole_data(np.exp(values), values, dt)
    driven = np.flatnonzero(np.any(B != 0, axis=1))
    found = _factor(poles, B, driven, driven[:0], default_rtol(len(B)) if rtol is None else rtol)
    return Factor(found.S.astype(dtype, copy=False), found.route, found.remainder)


def default_rtol(n: int) -> float:
    """Return the share of the trace at which a factor of n states is complete."""
    return 0.0 if n <= FULL_STATES else EPS**2


def pole_data(lam: Array, z: Array | None, dt: Any) -> Poles:
    """Return what the kernels read about poles in double precision, all of which must be stable."""
    if not is_discrete(dt):
        excess = lam.real
        gap, mirror, turn = -2 * lam.real, np.ones_like(lam), -np.ones_like(lam)
    else:
        if z is None:
            gap = np.empty(len(lam))
            kernels.one_minus_square(lam, gap)
            excess, distance = np.abs(lam) - 1, 1 - lam
        else:
            gap, excess, distance = -np.expm1(2 * z.real), np.expm1(z.real), -np.expm1(z)
        mirror = lam.conj()
        with np.errstate(divide="ignore", invalid="ignore"):  # a pole at 1 is refused below
            turn = distance.conj() / distance
    if not np.all(gap > 0):
        worst = int(np.argmin(gap))
        limit, got = ("|lam| < 1", "|lam| - 1") if is_discrete(dt) else ("Re lam < 0", "Re lam")
        raise StabilityError(
            f"All poles must be stable for dt={dt} ({limit}); got {got} = {excess[worst]:.3g} for pole {worst}. "
            f"Reduce the stable part (balance splits it off), or pass the right dt."
        )
    return Poles(lam, z, gap, np.ascontiguousarray(mirror), np.ascontiguousarray(turn))


def factor_pair(system: DiagonalSystem) -> tuple[Array, Array]:
    """Return ``S, R`` of a stable diagonal system in double precision, large columns and rows first.

    With real output the factors are real and in the coordinates of ``system.to_state_space()``.
    """
    lam, B, C = double(system.lam), double(system.B), double(system.C)
    z = None if system.rates is None else double(system.rates)
    poles = pole_data(lam if z is None else np.exp(z), z, system.dt)
    if system.output == "complex":
        S, R = _factor_pair(poles, B, C)
        return S.S, R.S.conj().T
    if lam.dtype.kind == "f":  # the imaginary parts of all states are zero
        S, R = _factor_pair(poles, B, C)
        return np.vstack([np.sqrt(2.0) * S.S, 0 * S.S]), np.vstack([np.sqrt(0.5) * R.S, 0 * R.S]).T
    S, R = _factor_pair(poles, B, C, pairs=True)
    if min(S.distance, R.distance) >= NEARLY_REAL:
        return np.sqrt(2.0) * _stacked(S.S), np.sqrt(0.5) * _stacked(R.S).T
    S, R = _factor_pair(poles.doubled(), np.vstack([B, B.conj()]), np.hstack([C, C.conj()]) / 2)
    return _real_pair(S.S, R.S.conj().T)


def _stacked(S: Array) -> Array:
    """Return real above imaginary parts."""
    return np.vstack([S.real, S.imag])


def _factor_pair(poles: Poles, B: Array, C: Array, pairs: bool = False) -> tuple[Factor, Factor]:
    """Return factors S of P and R^H of Q; with `pairs` upper halves of ``[S; conj S]``, those of the doubled system.

    The states are scaled so that ``P_ii = Q_ii``. That puts the pivots of both factors into one order, and lets the
    traces t_P and t_Q left at the stop bound the error: no hsv is off by more than
    ``|R| sqrt(t_P) + |S| sqrt(t_Q) + sqrt(t_P t_Q)``. States that the input does not drive or the output does not see
    have no scale of their own and come after all others, so that ``R S`` has zeros where they would disturb.
    """
    n, rtol = len(B), default_rtol(len(B))
    drive, sight = _row_norms(B), _row_norms(C.T)
    both = (drive > 0) & (sight > 0)
    kept = np.flatnonzero(both)
    if B.shape[1] == len(C) == 1 and len(kept) == n:
        # One factor L for b_i = sqrt|b_i c_i| serves both: S = (b / that) L, R^H = conj(c / that) conj(L).
        g = np.sqrt(drive) * np.sqrt(sight)
        L = _factor(poles, g[:, None].astype(B.dtype), kept, kept[:0], rtol, pairs)
        return _rescaled(L, (B[:, 0] / g)[:, None]), _rescaled(L, (C[0] / g)[:, None], conj=True)
    weight = np.ones(n)
    weight[kept] = np.sqrt(sight[kept]) / np.sqrt(drive[kept])
    weight = np.exp2(np.round(np.log2(weight)))[:, None]  # powers of two: scaling is exact
    driven, seen = np.flatnonzero((drive > 0) & ~both), np.flatnonzero((sight > 0) & ~both)
    S = _factor(poles, weight * B, kept, driven, rtol, pairs)
    R = _factor(poles.conj(), C.conj().T / weight, kept, seen, rtol, pairs)
    return _rescaled(S, 1 / weight), _rescaled(R, weight)


def _rescaled(factor: Factor, weight: Array, conj: bool = False) -> Factor:
    """Return a factor with weighted rows."""
    S = weight * factor.S
    return Factor(S.conj() if conj else S, factor.route, factor.remainder, factor.distance)


def _row_norms(B: Array) -> Array:
    """Return the length of each row without overflow or underflow of its square."""
    largest = np.abs(B).max(axis=1, initial=0.0)
    scale = np.where(largest > 0, largest, 1.0)[:, None]
    return largest * np.sqrt((np.abs(B / scale) ** 2).sum(axis=1)) if B.shape[1] > 1 else largest


def _factor(poles: Poles, B: Array, first: Array, rest: Array, rtol: float, pairs: bool = False) -> Factor:
    """Return a factor whose rows outside the given states are zero, pivoting among `first` before `rest`."""
    states = np.concatenate([first, rest])
    B_kept = B[states]
    if not np.any(B_kept):
        return Factor(np.zeros((len(B), 0), dtype=B.dtype), "structured", 0.0)
    B_kept, scale = _unit_scale(B_kept)
    kept, found = poles.take(states), None
    if rtol <= EPS and dense_is_faster(len(states), B.shape[1], B.dtype.kind == "c"):
        found = _dense(kept, B_kept, len(first), pairs)
    if found is None:
        found = _structured(kept, _independent_columns(B_kept, pairs), len(first), rtol, pairs)
    S = found.S
    S *= scale
    if len(first) < len(B):
        S = np.zeros((len(B), found.S.shape[1]), dtype=found.S.dtype)
        S[states] = found.S
    return Factor(S, found.route, found.remainder, found.distance)


def _unit_scale(B: Array) -> tuple[Array, float]:
    """Return B over a power of two that brings its largest entry near 1, and that power."""
    scale = float(np.exp2(np.round(np.log2(np.abs(B).max()))))
    return B / scale, scale


def _structured(p: Poles, B: Array, first: int, rtol: float, pairs: bool) -> Factor:
    """Eliminate on the generator. Pivots lie among the first rows until their trace is spent, then among all."""
    n, m = B.shape
    if pairs:
        p = p.take(np.append(np.arange(n), 0))  # the spare entry for the conjugate of a pivot
    G = np.zeros((m, len(p.lam)), dtype=B.dtype)
    G[:, :n] = B.T
    size = np.zeros(len(p.lam))
    kernels.row_sizes(G, p.gap, size)
    whole = size[:n].sum()
    arrays = (p.lam, p.z, p.gap, p.mirror, p.turn, G, size, np.arange(len(p.lam)))
    twist, limit = np.eye(m, dtype=B.dtype), 2 * n if pairs else n
    out = np.empty((min(limit, FULL_STATES), n), dtype=B.dtype)
    pivots = done = 0
    distance = 1.0
    for eligible in sorted({first, n}):
        floor = max(rtol, SMALLEST_SHARE) * float(size[pivots:eligible].sum())
        while True:
            if pairs:
                pivots, done, least = kernels.factor_pairs(*arrays, eligible, floor, pivots, done, twist, out)
                distance = min(distance, least)
            else:
                pivots = done = kernels.factor(*arrays, eligible, floor, done, out)
            if done + 2 < len(out) or len(out) == limit:
                break
            out = np.concatenate([out, np.empty((min(limit, 2 * len(out)) - len(out), n), out.dtype)])
    return Factor(out[:done].T, "structured", float(size[pivots:n].sum() / whole), distance)


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
    lengths = _row_norms(rows)
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


def _dense(p: Poles, B: Array, first: int, pairs: bool) -> Factor | None:
    """Form the Gramian and factor it; None where that would lose digits."""
    P = B.conj() @ B.T  # transposed: the kernel writes column by column
    kernels.divide_by_denominators(P, p.lam, p.z, p.lam, p.z, p.gap, p.mirror)
    if pairs:
        dual = p.conj()
        P2 = B @ B.T
        kernels.divide_by_denominators(P2, p.lam, p.z, dual.lam, dual.z, p.gap, dual.mirror)
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
    if pairs:
        S = S[: len(B)] + 1j * S[len(B) :]
    return Factor(S, "dense", 0.0)


def _real_pair(S: Array, R: Array) -> tuple[Array, Array]:
    """Return real factors in real coordinates for complex ones of the doubled system ``[x, conj x]``.

    A pole next to its conjugate makes a pair of columns nearly dependent, while the unpaired elimination of both is as
    accurate as ever; only its factors are not real. But a singular vector of a simple hsv is real up to its phase: so
    balance first, ``R S = U hsv V^H``, and turn the phases of ``S V`` and ``U^H R``.
    """
    n = len(S) // 2
    S = np.sqrt(0.5) * np.vstack([S[:n] + S[n:], -1j * (S[:n] - S[n:])])
    R = np.sqrt(0.5) * np.hstack([R[:, :n] + R[:, n:], 1j * (R[:, :n] - R[:, n:])])
    if min(S.shape[1], len(R)) > 0:
        U, _, Vh = sla.svd(R @ S, lapack_driver="gesvd")
        S, R = S @ Vh.conj().T, U.conj().T @ R
    return _real_columns(S), _real_columns(R.T).T


def _real_columns(S: Array) -> Array:
    """Return a real factor of the real matrix ``S S^H``, column by column where each is real up to a phase.

    Neighbours that are not, which belong to equal singular values, are replaced together by as many real ones.
    """
    phase = np.sqrt((S * S).sum(axis=0))
    modulus = np.abs(phase)
    S = S * np.where(modulus > 0, modulus, 1.0) / np.where(modulus > 0, phase, 1.0)
    mixed = np.linalg.norm(S.imag, axis=0) > 1e-7 * np.linalg.norm(S, axis=0)  # its square is dropped with Im S
    out = S.real.copy()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mixed, [False]])))
    for start, stop in edges.reshape(-1, 2):
        group = np.hstack([S[:, start:stop].real, S[:, start:stop].imag])
        left, s, _ = sla.svd(group, full_matrices=False, lapack_driver="gesvd")
        out[:, start:stop] = (left * s)[:, : stop - start]
    return out
