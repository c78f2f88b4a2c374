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
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _diagonal_kernels as kernels
from ._checks import Array, check_array, check_dt, double, is_discrete
from .errors import InputError, StabilityError
from .systems import DiagonalSystem

# All columns are computed up to this many states; beyond, until the trace of what remains is EPS**2 of the whole.
# A relative trace of delta**2 in states scaled to P_ii = Q_ii leaves errors of about delta in the hsv (`_factor_pair`).
FULL_STATES = 512
EPS = float(np.finfo(np.float64).eps)

# Below this share of the trace the squares of the factor's entries underflow, and so do those of LAPACK's dqds.
SMALLEST_SHARE = 1e-150


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


def diagonal_factor(
    lam: ArrayLike, B: ArrayLike, *, dt: Any, rtol: float | None = None, rates: ArrayLike | None = None
) -> Array:
    """Compute S with ``P = S S^H`` for diagonal A, in O(n k m) time and O(n k) memory.

    P solves ``A P + P A^H + B B^H = 0``, or ``A P A^H - P + B B^H = 0`` in discrete time, with ``A = diag(lam)``.
    It is never formed: each entry of S, also of the smallest columns, is right to a few units of its column's size.

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
        default 0 up to 512 states and eps squared, 5e-32, beyond. Singular values of P that are left out are below
        `rtol` times the trace; Hankel singular values below about ``sqrt(rtol)`` of the largest are not certain.
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
        If shapes disagree or an entry is not finite.
    StabilityError
        If a pole is not strictly stable.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> lam, B = -np.arange(1.0, 5.0), np.ones((4, 1))
    >>> S = hr.diagonal_factor(lam, B, dt=0)
    >>> P = 1 / np.add.outer(np.arange(1.0, 5.0), np.arange(1.0, 5.0))
    >>> bool(np.abs(S @ S.T - P).max() < 1e-15)
    True
    """
    dt, B = check_dt(dt), check_array(B, "B", 2, "Write B[:, None] for one input.")
    name, data = ("lam", lam) if rates is None else ("rates", rates)
    poles = check_array(data, name, 1)
    if len(poles) != len(B):
        raise InputError(f"B must have one row per pole; got {len(poles)} poles and B {B.shape}. B is (n, m).")
    if rates is not None and not is_discrete(dt):
        raise InputError(
            "rates must be left out for dt=0: the poles of a continuous system are rates. Pass them as lam."
        )
    if rtol is not None and not 0 <= rtol < 1:
        raise InputError(f"rtol must be at least 0 and below 1; got {rtol}.")
    dtype = np.result_type(poles, B)
    inner = np.complex128 if dtype.kind == "c" else np.float64
    z = None if rates is None else poles.astype(inner)
    states = pole_data(poles.astype(inner) if z is None else np.exp(z), z, dt)
    driven = np.flatnonzero(np.any(B != 0, axis=1))
    S, _ = _columns(states, B.astype(inner), driven, driven[:0], default_rtol(len(B)) if rtol is None else rtol)
    return S.astype(dtype, copy=False)


def default_rtol(n: int) -> float:
    """Return the share of the trace at which a factor of n states is complete."""
    return 0.0 if n <= FULL_STATES else EPS**2


def pole_data(lam: Array, z: Array | None, dt: Any) -> Poles:
    """Return what the kernels read about stable poles in double precision."""
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
        return _factor_pair(poles, B, C)
    if lam.dtype.kind == "f":  # the imaginary parts of all states are zero
        S, R = _factor_pair(poles, B, C)
        return np.vstack([np.sqrt(2.0) * S, np.zeros_like(S)]), np.hstack([np.sqrt(0.5) * R, np.zeros_like(R)])
    S, R = _factor_pair(poles, B, C, pairs=True)
    return np.sqrt(2.0) * np.vstack([S.real, S.imag]), np.sqrt(0.5) * np.hstack([R.real, -R.imag])


def _factor_pair(poles: Poles, B: Array, C: Array, pairs: bool = False) -> tuple[Array, Array]:
    """Return ``S, R``; with `pairs` the halves of ``[S; conj S], [R, conj R] / 2``, factors of the doubled system.

    The states are scaled so that ``P_ii = Q_ii``, which puts the pivots of both factors into one order and lets the
    trace t that is left at the stop bound the error: with ``P = S S^H + E``, ``trace E = t_P``, all
    ``|hsv - hsv(S, R)| <= |R| sqrt(t_P) + |S| sqrt(t_Q) + sqrt(t_P t_Q)``. States that the input does not drive, or the
    output does not see, have no scale of their own and are eliminated after all others.
    """
    drive, sight = _row_norms(B), _row_norms(C.T)
    both = (drive > 0) & (sight > 0)
    kept = np.flatnonzero(both)
    rtol = default_rtol(len(B))
    if B.shape[1] == len(C) == 1 and len(kept) == len(B):
        # One factor L of the Gramian with b_i = sqrt|b_i c_i| serves both: S = (b / that) L, R^T = (c / that) L.
        g = np.sqrt(drive) * np.sqrt(sight)
        L, _ = _columns(poles, g[:, None].astype(B.dtype), kept, kept[:0], rtol, pairs)
        return (B[:, 0] / g)[:, None] * L, ((C[0] / g)[:, None] * L).T
    weight = np.ones(len(B))
    weight[kept] = np.sqrt(sight[kept]) / np.sqrt(drive[kept])
    weight = np.exp2(np.round(np.log2(weight)))  # a power of two: scaling is exact
    driven, seen = np.flatnonzero((drive > 0) & ~both), np.flatnonzero((sight > 0) & ~both)
    S = _columns(poles, weight[:, None] * B, kept, driven, rtol, pairs)[0] / weight[:, None]
    R = _columns(poles.conj(), (C / weight).conj().T, kept, seen, rtol, pairs)[0] * weight[:, None]
    return S, R.conj().T


def _row_norms(B: Array) -> Array:
    """Return the length of each row without overflow or underflow of its square."""
    largest = np.abs(B).max(axis=1, initial=0.0)
    scale = np.where(largest > 0, largest, 1.0)
    return largest * np.sqrt((np.abs(B / scale[:, None]) ** 2).sum(axis=1)) if B.shape[1] > 1 else largest


def _columns(poles: Poles, B: Array, kept: Array, rest: Array, rtol: float, pairs: bool = False) -> tuple[Array, Array]:
    """Return a factor of the Gramian, rows outside `kept` and `rest` zero, and the states in the order of elimination.

    Pivots are taken among `kept` until their trace has fallen to `rtol`, then among `rest`.
    """
    n = len(B)
    states = np.concatenate([kept, rest])
    G = _independent_columns(B[states], pairs)
    if G.size == 0:
        return np.zeros((n, 0), dtype=B.dtype), states[:0]
    G, scale = _unit_scale(G)
    slots = np.append(states, states[0]) if pairs else states  # one spare row for the conjugate of a pivot
    p = poles.take(slots)
    generator = np.zeros((G.shape[1], len(slots)), dtype=G.dtype)
    generator[:, : len(states)] = G.T
    size = np.zeros(len(slots))
    kernels.row_sizes(generator, p.gap, size)
    rows = np.arange(len(slots))
    arrays = (p.lam, p.z, p.gap, p.mirror, p.turn, generator, size, rows)
    twist = np.eye(G.shape[1], dtype=G.dtype)
    limit = 2 * len(states) if pairs else len(states)
    out = np.empty((min(limit, FULL_STATES), len(slots)), dtype=G.dtype)
    pivots = done = 0
    for eligible in (len(kept), len(states)):
        floor = max(rtol, SMALLEST_SHARE) * float(size[pivots:eligible].sum())
        while True:
            if pairs:
                pivots, done = kernels.factor_pairs(*arrays, eligible, floor, pivots, done, twist, out)
            else:
                pivots = done = kernels.factor(*arrays, eligible, floor, done, out)
            if done + pairs < len(out) or len(out) == limit:
                break
            out = np.concatenate([out, np.empty((min(limit, 2 * len(out)) - len(out), out.shape[1]), out.dtype)])
    out = out[:done, : len(states)]
    kernels.restore_order(out, rows[: len(states)])
    out *= scale
    if len(states) == n:
        inverse = np.argsort(states)
        S = out.T if np.array_equal(states, np.arange(n)) else out.T[inverse]
        return S, states[rows[:pivots]]
    S = np.zeros((n, done), dtype=G.dtype)
    S[states] = out.T
    return S, states[rows[:pivots]]


def _independent_columns(G: Array, pairs: bool) -> Array:
    """Return ``G V``, V with orthonormal columns, with no more columns than the rows of G span.

    More inputs than states, or inputs that repeat each other, would leave rounding in directions that carry nothing.
    With `pairs` V is real, which keeps the generator of the conjugate poles conjugate to G.
    """
    lengths = _row_norms(G)
    if G.shape[1] <= 1 or not lengths.any():
        return G if lengths.any() else G[:, :0]
    unit = G / lengths[:, None]
    if pairs:
        unit = np.vstack([unit.real, unit.imag])
    _, s, Vh = np.linalg.svd(unit, full_matrices=False)
    rank = int(np.sum(s > max(unit.shape) * EPS * s[0]))
    return G if rank == G.shape[1] else G @ Vh[:rank].conj().T


def _unit_scale(G: Array) -> tuple[Array, float]:
    """Return G over a power of two that brings its largest entry near 1, and that power."""
    scale = float(np.exp2(np.round(np.log2(np.abs(G).max()))))
    return G / scale, scale
