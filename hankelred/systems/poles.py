"""Poles of diagonal systems: their values, or their logarithms where these are the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..checks import Array, double


@dataclass(frozen=True, eq=False)
class Poles:
    """Poles of diagonal systems, (..., n), with their logarithms where these are the data.

    Attributes
    ----------
    lam : (..., n) ndarray
        The poles; ``exp(rates)`` where there are rates.
    rates : (..., n) ndarray or None
        Logarithms of discrete poles. Poles within 1e-13 of the unit circle keep all their digits this way.
    """

    lam: Array
    rates: Array | None = None

    @classmethod
    def of_rates(cls, rates: Array) -> Poles:
        """Return the poles ``exp(rates)``."""
        with np.errstate(over="ignore"):  # what overflows is refused where rates are checked
            return cls(_exponentials(rates).astype(rates.dtype), rates)

    @classmethod
    def of(cls, lam: Array | None = None, rates: Array | None = None) -> Poles:
        """Return the poles given by their values or by their logarithms."""
        return cls(np.asarray(lam)) if rates is None else cls.of_rates(rates)

    @property
    def data(self) -> dict[str, Array]:
        """What was given, by its name."""
        return {"lam": self.lam} if self.rates is None else {"rates": self.rates}

    def __len__(self) -> int:
        """Return the length of the first axis."""
        return len(self.lam)

    def map(self, function: Callable[[Array], Array]) -> Poles:
        """Return the poles with a function applied to what was given; it must commute with the exponential."""
        return self.rebuilt(function(self.lam if self.rates is None else self.rates))

    def values(self) -> Array:
        """Return the poles in double precision."""
        return double(self.lam) if self.rates is None else _exponentials(self.rates)

    def logarithms(self) -> Array | None:
        """Return the rates in double precision, or None."""
        return None if self.rates is None else double(self.rates)

    def excess(self, discrete: bool) -> Array:
        """How far each pole lies beyond the stability boundary; negative means stable."""
        if not discrete:
            return double(self.lam.real)
        return np.abs(double(self.lam)) - 1.0 if self.rates is None else np.expm1(double(self.rates.real))

    def less_shift(self) -> tuple[Array, float]:
        """Return the poles less a shift, and the shift: 1 for rates, whose slow poles keep their digits in expm1."""
        return (double(self.lam), 0.0) if self.rates is None else (np.expm1(double(self.rates)), 1.0)

    def like(self, poles: Array, shift: float) -> Poles:
        """Return new poles, given less the shift, in the form of these: values, or rates unless a pole is 0."""
        lam = poles + shift
        if self.rates is None or np.any(lam == 0):
            return Poles(lam)
        rates = _log1p(poles) if shift else np.log(lam.astype(complex))
        return Poles.of_rates(rates) if np.isfinite(rates).all() else Poles(lam)  # a pole may be 0 but for rounding

    def rebuilt(self, data: Array) -> Poles:
        """Return poles given by what these are given by, values or rates."""
        return Poles(data) if self.rates is None else Poles.of_rates(data)

    def data_like(self, other: Poles) -> Array:
        """Return these poles in double precision as others are given, values or rates."""
        return self.values() if other.rates is None else self._all_rates()

    def _all_rates(self) -> Array:
        return np.log(self.values().astype(complex)) if self.rates is None else double(self.rates)

    def rounding(self, discrete: bool) -> tuple[Array, Array]:
        """Return the distance from the stability boundary, and the size of what is rounded when poles are stored."""
        margin = -self.excess(discrete) if self.rates is None else -double(self.rates.real)
        return margin, np.abs(self.lam if self.rates is None else self.rates)

    def differences(self, discrete: bool) -> tuple[Array, Array]:
        """Return ``lam_j - lam_i``, (n, n), and the distance that counts as far: ``|1 - lam_i conj(lam_j)|``."""
        lam = self.lam.astype(complex)
        if not discrete:
            return lam - lam[:, None], np.abs(lam.conj() + lam[:, None])
        if self.rates is None:
            return lam - lam[:, None], np.abs(1 - lam.conj() * lam[:, None])
        rates = self.rates.astype(complex)
        gap = rates - rates[:, None]  # lam_j - lam_i = lam_i expm1(z_j - z_i) keeps the digits of slow poles
        return lam[:, None] * np.expm1(_turned(gap)), np.abs(np.expm1(rates.conj() + rates[:, None]))

    def drift(self, other: Poles) -> Array:
        """How far these poles lie from others, from rates where there are rates."""
        if self.rates is None or other.rates is None:
            return double(self.lam) - double(other.lam)
        return other.lam * np.expm1(self.rates - other.rates)

    def moved(self, by: Array) -> Poles:
        """Return the poles moved by so much."""
        if self.rates is None:
            return Poles(self.lam + by)
        ratio = by / self.lam
        growth = 0.5 * np.log1p(2 * ratio.real + np.abs(ratio) ** 2)  # log|1 + z| without the rounding of 1 + z
        return Poles.of_rates(self.rates + growth + 1j * np.arctan2(ratio.imag, 1 + ratio.real))

    def joined(self, other: Poles) -> Poles:
        """Return both sets of poles along the last axis, as rates if one has them and no pole is 0."""
        if (self.rates is None and other.rates is None) or np.any(self.lam == 0) or np.any(other.lam == 0):
            return Poles(np.concatenate([self.values(), other.values()], axis=-1))
        return Poles.of_rates(np.concatenate([self._all_rates(), other._all_rates()], axis=-1))

    def distance(self, omega: Array, discrete: bool) -> Array:
        """Return ``s - lam`` or ``z - lam``, (..., k, n), at the frequencies omega in rad per unit of time."""
        if not discrete:
            return 1j * np.where(np.isinf(omega), np.finfo(float).max, omega)[:, None] - double(self.lam)[..., None, :]
        z = np.exp(1j * omega)[:, None]
        if self.rates is None:
            return z - double(self.lam)[..., None, :]
        offset = double(self.rates)[..., None, :] - 1j * omega[:, None]
        return -z * np.expm1(_turned(offset))  # z - exp(rate) = -z expm1(rate - log z), exact next to the circle


def _exponentials(rates: Array) -> Array:
    """Return ``exp(rates)`` in double precision; half a turn is exactly a negative real pole."""
    lam = np.exp(double(rates))
    if rates.dtype.kind == "c":
        lam.imag[np.abs(rates.imag) == rates.imag.dtype.type(np.pi)] = 0.0
    return lam


def _turned(z: Array) -> Array:
    """Bring imaginary parts of logarithms into (-pi, pi], in place."""
    if z.dtype.kind == "c":
        z.imag = (z.imag + np.pi) % (2 * np.pi) - np.pi
    return z


def _log1p(x: Array) -> Array:
    """Return ``log(1 + x)`` for complex x with its real part right to the last digits (NumPy's is not)."""
    x = x.astype(complex)
    return 0.5 * np.log1p(2 * x.real + x.real**2 + x.imag**2) + 1j * np.arctan2(x.imag, 1 + x.real)
