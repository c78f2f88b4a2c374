"""Gramian factors and Hankel singular values of many diagonal systems of one size, without a Python loop over them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..checks import Array
from .cauchy import NEARLY_REAL, SMALLEST_SHARE, PoleData, divided, pole_data, power_of_two
from .compiled import Kernels

kernels = Kernels("hankelred.linalg.cauchy_factor")

# Systems are handled in pieces of about this many matrix entries, so that factors and products stay in the cache.
PIECE = 2**15


@dataclass(frozen=True, eq=False)
class Bank:
    """Stable diagonal systems of one size, in double precision, each in units that bring its entries near 1.

    Attributes
    ----------
    poles : PoleData
        Of shape (batch, n).
    B, C : (batch, n, m) and (batch, p, n) ndarray
        Divided by powers of two.
    unit : (batch, 1) ndarray
        The product of the two divisors: the unit of the Hankel singular values.
    divisor : (batch, 1) ndarray
        The divisor of B.
    order : int
        Number of Hankel singular values of each system.
    pairs : bool
        Whether every stored state stands for itself and its conjugate.
    """

    poles: PoleData
    B: Array
    C: Array
    unit: Array
    divisor: Array
    order: int
    pairs: bool

    @property
    def is_silent(self) -> bool:
        """Whether there is nothing to compute."""
        return min(len(self.B), self.order, self.B.shape[2], self.C.shape[1]) == 0

    def pieces(self) -> list[slice]:
        """Return slices that fit into the cache."""
        step = max(1, PIECE // self.order**2)
        return [slice(start, start + step) for start in range(0, len(self.B), step)]

    def take(self, systems: slice | Array) -> Bank:
        """Return some of the systems."""
        poles = self.poles.take(systems)
        B, C, unit, divisor = (x[systems] for x in (self.B, self.C, self.unit, self.divisor))
        return replace(self, poles=poles, B=B, C=C, unit=unit, divisor=divisor)

    def hankel_singular_values(self) -> Array:
        """Return all Hankel singular values, (batch, order)."""
        hsv = np.zeros((len(self.B), self.order))
        if not self.is_silent:
            for piece in self.pieces():
                part = self.take(piece)
                found = _pair_hsv(part) if part.pairs else _hsv(part)
                hsv[piece, : found.shape[1]] = part.unit * found
        return hsv


def make_bank(lam: Array, z: Array | None, B: Array, C: Array, discrete: bool, order: int, pairs: bool) -> Bank:
    """Return a bank of poles (batch, n), or of their logarithms z where these are given."""
    flat = pole_data(lam.reshape(-1), None if z is None else z.reshape(-1), discrete)
    (B, drive), (C, sight) = _unit_scale(B), _unit_scale(C)
    return Bank(flat.map(lambda x: x.reshape(lam.shape)), B, C, drive * sight, drive, order, pairs)


def factors(bank: Bank) -> tuple[Array, Array, Array, Array]:
    """Return factors of both Gramians of every system, in scaled states, with the scales and how near pairs are real.

    Returns
    -------
    S, R : (batch, n, k) and (batch, k, n) ndarray
        ``P = S S^H`` and ``Q = R^H R`` of the system with input matrix ``B w`` and output matrix ``C / w``; where
        `pairs`, the upper halves of factors of the doubled system, k = 2n, whose Hankel singular values are those of
        ``Re(R S)``.
    w : (batch, n) ndarray
        Scales, 0 for states that link no input to any output.
    distance : (batch,) ndarray
        `cauchy.Factor.distance`, 1 where there are no pairs.
    """
    compute = _pair_factors if bank.pairs else _factors
    if bank.B.shape[2] == bank.C.shape[1] == 1:  # one factor serves both
        G, w, phase = _one_generator(bank.B, bank.C)
        L, distance = compute(bank.poles, G)
        return L.swapaxes(1, 2), L * phase, w, distance
    w = _state_scales(bank.B, bank.C)
    back = np.divide(1.0, w, out=np.zeros_like(w), where=w > 0)
    S, distance = compute(bank.poles, (w[:, :, None] * bank.B).swapaxes(1, 2))
    R, other = compute(bank.poles.conj(), (back[:, None, :] * bank.C).conj())
    return S.swapaxes(1, 2), R.conj(), w, np.minimum(distance, other)


def _hsv(bank: Bank) -> Array:
    """Return the Hankel singular values of a piece of a bank, (batch, n)."""
    S, R, _, _ = factors(bank)
    return _singular_values(R @ S)


def _pair_hsv(bank: Bank) -> Array:
    """Return those of the real system with outputs ``Re(C x)``, (batch, 2n)."""
    S, R, _, distance = factors(bank)
    hsv = _singular_values((R @ S).real)
    close = np.flatnonzero(distance < NEARLY_REAL)  # pairs lose digits there: the doubled system does not
    if len(close):
        part = bank.take(close)
        B = np.concatenate([part.B, part.B.conj()], axis=1)
        C = np.concatenate([part.C, part.C.conj()], axis=2) / 2
        hsv[close] = _hsv(replace(part, poles=part.poles.doubled(), B=B, C=C, pairs=False))
    return hsv


def _unit_scale(B: Array) -> tuple[Array, Array]:
    """Return the matrices over powers of two that bring their largest entries near 1, and those powers, (batch, 1)."""
    largest = np.abs(B).max(axis=(1, 2), initial=0.0)
    scale = power_of_two(np.where(largest > 0, largest, 1.0))[:, None]
    return divided(B, scale[:, :, None]), scale


def _one_generator(B: Array, C: Array) -> tuple[Array, Array, Array]:
    """Return the one generator of both Gramians ``|b_i c_i|^½``, (batch, 1, n), the scales and the phases of b c.

    With the states scaled by ``w_i = |b_i c_i|^½ / b_i``, both Gramians have that generator up to the phases.
    """
    b, c = B.swapaxes(1, 2), C
    G = np.sqrt(np.abs(b)) * np.sqrt(np.abs(c))
    divisor = np.where(G > 0, G, 1.0)
    w = np.divide(G, b, out=np.zeros_like(b), where=G > 0)[:, 0]
    return G.astype(b.dtype), w, (b / divisor) * (c / divisor)


def _state_scales(B: Array, C: Array) -> Array:
    """Return the powers of two that make ``|b_i| = |c_i|`` nearly, 0 for states that link no input to any output."""
    drive, sight = np.linalg.norm(B, axis=2), np.linalg.norm(C, axis=1)
    both = (drive > 0) & (sight > 0)
    ratio = np.divide(sight, drive, out=np.ones_like(drive), where=both)
    return np.where(both, np.exp2(np.round(0.5 * np.log2(ratio))), 0.0)


def _factors(poles: PoleData, G: Array) -> tuple[Array, Array]:
    """Return transposed factors, (batch, n, n), of the Gramians with generators G, (batch, m, n), and ones."""
    p = poles.map(np.copy)
    out = np.empty((len(G), G.shape[2], G.shape[2]), dtype=G.dtype)
    kernels.factor_bank(p.lam, p.logarithms, p.gap, p.mirror, p.turn, G.copy(order="C"), SMALLEST_SHARE, out)
    return out, np.ones(len(G))


def _pair_factors(poles: PoleData, G: Array) -> tuple[Array, Array]:
    """Return transposed upper halves of factors of the doubled systems, (batch, 2n, n), and how near pairs are real."""
    n = G.shape[2]
    spare = np.append(np.arange(n), 0)
    p = poles.map(lambda x: np.ascontiguousarray(x[:, spare]))
    out, distance = np.empty((len(G), 2 * n, n), dtype=G.dtype), np.empty(len(G))
    G = np.ascontiguousarray(G[:, :, spare])
    kernels.factor_pairs_bank(p.lam, p.logarithms, p.gap, p.mirror, p.turn, G, SMALLEST_SHARE, out, distance)
    return out, distance


def _singular_values(M: Array) -> Array:
    return np.linalg.svd(M, compute_uv=False)  # without vectors LAPACK keeps the digits of graded matrices
