"""Gramian factors and Hankel singular values of many diagonal systems of one size, without a Python loop over them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..checks import Array
from .cauchy import NEARLY_REAL, SMALLEST_SHARE, FactorSteps, Pairs, PoleData, new_steps, pole_data, unit_scale
from .compiled import Kernels
from .hankel_svd import batched_products

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
                found = _bank_hsv(part)
                hsv[piece, : found.shape[1]] = part.unit * found
        return hsv


def make_bank(lam: Array, z: Array | None, B: Array, C: Array, discrete: bool, order: int, pairs: bool) -> Bank:
    """Return a bank of poles (batch, n), or of their logarithms z where these are given."""
    (B, drive), (C, sight) = unit_scale(B), unit_scale(C)
    return Bank(pole_data(lam, z, discrete), B, C, (drive * sight)[:, 0], drive[:, 0], order, pairs)


def factor_steps(
    poles: PoleData, B: Array, order: Array, first: Array, pairs: bool
) -> tuple[FactorSteps, Pairs | None]:
    """Factor the Gramians of input matrices (batch, n, m), the first of the states in `order` before all others."""
    steps, record = new_steps(B.shape[1] * (2 if pairs else 1), B, pairs)
    kernels.eliminate_bank(poles, np.ascontiguousarray(B), order, first, SMALLEST_SHARE, steps, record)
    return steps, record


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
        As `cauchy.factor` returns it, 1 where there are no pairs.
    """
    if bank.B.shape[2] == bank.C.shape[1] == 1:  # one factor serves both
        G, w, phase = _one_generator(bank.B, bank.C)
        L, distance = _columns(bank.poles, G, bank.pairs)
        return L.swapaxes(1, 2), L * phase, w, distance
    w = _state_scales(bank.B, bank.C)
    back = np.divide(1.0, w, out=np.zeros_like(w), where=w > 0)
    S, distance = _columns(bank.poles, w[:, :, None] * bank.B, bank.pairs)
    R, other = _columns(bank.poles.conj(), (back[:, None, :] * bank.C).conj().swapaxes(1, 2), bank.pairs)
    return S.swapaxes(1, 2), R.conj(), w, np.minimum(distance, other)


def _bank_hsv(bank: Bank) -> Array:
    """Return the Hankel singular values of a piece of a bank, (batch, n), with pairs those of ``Re(C x)``, 2n."""
    S, R, _, distance = factors(bank)
    if not bank.pairs:
        return _singular_values(batched_products(S, R, False))
    hsv = _singular_values(batched_products(S, R, True))
    close = np.flatnonzero(distance < NEARLY_REAL)  # pairs lose digits there: the doubled system does not
    if len(close):
        part = bank.take(close)
        B = np.concatenate([part.B, part.B.conj()], axis=1)
        C = np.concatenate([part.C, part.C.conj()], axis=2) / 2
        hsv[close] = _bank_hsv(replace(part, poles=part.poles.doubled(), B=B, C=C, pairs=False))
    return hsv


def _one_generator(B: Array, C: Array) -> tuple[Array, Array, Array]:
    """Return the generator ``|b_i c_i|^½``, (batch, n, 1), of both Gramians, the scales and the phases of b c.

    With the states scaled by ``w_i = |b_i c_i|^½ / b_i``, both Gramians have that generator up to the phases.
    """
    b, c = B.swapaxes(1, 2), C
    G = np.sqrt(np.abs(b)) * np.sqrt(np.abs(c))
    divisor = np.where(G > 0, G, 1.0)
    w = np.divide(G, b, out=np.zeros_like(b), where=G > 0)[:, 0]
    return G.astype(b.dtype).swapaxes(1, 2), w, (b / divisor) * (c / divisor)


def _state_scales(B: Array, C: Array) -> Array:
    """Return the powers of two that make ``|b_i| = |c_i|`` nearly, 0 for states that link no input to any output."""
    drive, sight = np.linalg.norm(B, axis=2), np.linalg.norm(C, axis=1)
    both = (drive > 0) & (sight > 0)
    ratio = np.divide(sight, drive, out=np.ones_like(drive), where=both)
    return np.where(both, np.exp2(np.round(0.5 * np.log2(ratio))), 0.0)


def _columns(poles: PoleData, B: Array, pairs: bool) -> tuple[Array, Array]:
    """Return transposed factors, with pairs of twice as many columns, and the distance of each system's pairs."""
    batch, n, _ = B.shape
    steps, record = factor_steps(poles, B, np.tile(np.arange(n), (batch, 1)), np.full(batch, n), pairs)
    return steps.columns, record.distance if record else np.ones(batch)


def _singular_values(M: Array) -> Array:
    return np.linalg.svd(M, compute_uv=False)  # without vectors LAPACK keeps the digits of graded matrices
