"""Frequency-limited balancing: the energy of states and outputs within bands of frequencies."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import Array, check_array, check_items
from ..errors import InputError
from ..parts import DenseParts, DiagonalParts
from .base import Pair, Weighting, pair_of_matrices
from .coordinates import coordinates_of


class FrequencyLimited(Weighting):
    """Balance what happens within bands of frequencies [1]_.

    ``P = 1/(2 pi) int (i w - A)^-1 B B^H (i w - A)^-H dw`` over the bands and their mirror images, Q likewise; in
    discrete time on the unit circle.

    Parameters
    ----------
    *bands : pair of float
        Each a ``(low, high)`` with ``0 <= low < high``, in rad per unit of time as for `frequency_response` (rad per
        sample for ``dt=True``), without overlap. High is infinity in continuous time, the Nyquist frequency in discrete
        time, or less.
    guaranteed : bool, optional
        See `Weighting`.

    References
    ----------
    .. [1] W. Gawronski, J.-N. Juang, "Model reduction in limited time and frequency intervals", Int. J. Systems
       Science 21, 1990, pp. 349-376.

    Notes
    -----
    ``A P + P A^H + F B B^H + B B^H F^H = 0`` with F the integral of the resolvent, a logarithm of A. Hankel singular
    values below some 1e-8 of the largest are lost in rounding: the Gramian is known, its factor is not.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> from hankelred.weighting import FrequencyLimited
    >>> lag = hr.StateSpace([[-2.0]], [[1.0]], [[1.0]])
    >>> P, Q = hr.gramians(lag, FrequencyLimited((0.0, 2.0)))
    >>> print(f"{P[0, 0]:.6f} {np.arctan(1.0) / (2 * np.pi):.6f}")  # 1/pi int_0^2 dw / (w^2 + 4)
    0.125000 0.125000
    """

    name = "frequency-limited"
    bands: Array

    def __init__(self, *bands: tuple[float, float], guaranteed: bool | None = None) -> None:
        if not bands:
            raise InputError("bands must be pairs (low, high) of frequencies; got none.")
        found = [check_array(check_items(band, "Each band"), "Each band", 1, finite=False) for band in bands]
        if any(band.shape != (2,) or band.dtype.kind == "c" or not 0 <= band[0] < band[1] for band in found):
            raise InputError(f"Each band must be (low, high) with 0 <= low < high; got {', '.join(map(repr, bands))}.")
        ordered = np.array(sorted(map(tuple, found)), dtype=float)
        if (ordered[1:, 0] < ordered[:-1, 1]).any():
            raise InputError(f"Bands must not overlap; got {', '.join(map(repr, bands))}. Join those that do.")
        self._set(guaranteed, bands=ordered)

    def pair(self, parts: DenseParts | DiagonalParts) -> Pair:
        """Return factors of both Gramians over the bands."""
        coordinates, bands = coordinates_of(parts), self._angles(parts.system.dt)
        inner = coordinates.inner
        dual = inner.dual()
        P, Q = _on_bands(inner, bands), dual.native(dual.native(_on_bands(dual, bands)).conj().T)
        return pair_of_matrices(coordinates, coordinates.matrix(P), coordinates.matrix(Q))

    def _angles(self, dt: Any) -> Array:
        """Return the bands in rad per sample of a discrete system."""
        if dt is not True and dt == 0:
            return self.bands
        angles = self.bands * (1.0 if dt is True else dt)
        if angles.max() > np.pi * (1 + 1e-12):
            raise InputError(
                f"Bands must end at the Nyquist frequency, {np.pi / (1.0 if dt is True else dt):.6g} rad per unit of "
                f"time for dt={dt}, or below; got {self.bands.max():g}."
            )
        return np.minimum(angles, np.pi)


def _on_bands(part: Any, bands: Array) -> Array:
    """Return the controllability Gramian over the bands."""
    half = part.on_bands(bands) @ part.B.conj().T
    P: Array = part.lyapunov(half + half.conj().T)
    return P
