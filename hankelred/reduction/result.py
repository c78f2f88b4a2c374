"""What a reduction returns: the reduced system together with the proof of what was lost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import norms
from .._checks import Array
from ..systems import DiagonalSystem, StateSpace


@dataclass(frozen=True, eq=False, repr=False)
class Reduction:
    """A reduced system, its Hankel singular values, its error bound and ways to measure the true error.

    Attributes
    ----------
    system : same class as the system reduced
        The reduced model, with the dt, input and output names of the original.
    order : int
        Hankel singular values kept, those of unstable poles included.
    hsv : (n,) ndarray
        All Hankel singular values, decreasing, in units of y per unit of u; infinite for poles that were split
        off and kept.
    error_bound : float
        Bound on the H-infinity norm of the error, with its rounding floor.
    T, Ti : (n, order) and (order, n) ndarray
        Bases with ``Ti T = I``: ``x ≈ T x_r`` and ``x_r = Ti x``; the truncated model is
        ``(Ti A T, Ti B, C T, D)``. For diagonal systems the eigenvectors that restore the diagonal form are
        included. With real output the full coordinates are ``[x; conj(x)]``, 2n of them, and the reduced ones
        are the complex poles, their conjugates and the real poles, in this order.
    unstable : int
        Poles split off as unstable or marginal, and kept.
    match_dc : bool
        Whether the model was matched at s = 0 or z = 1 instead of truncated; T and Ti are then the bases of the
        states kept.
    """

    system: Any
    order: int
    hsv: Array
    error_bound: float
    T: Array
    Ti: Array
    unstable: int = 0
    match_dc: bool = False
    _stable: tuple[StateSpace | DiagonalSystem, StateSpace | DiagonalSystem] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        """Return orders and bound, not the matrices."""
        return f"Reduction(order {len(self.hsv)} -> {self.order}, error_bound={self.error_bound:.4g})"

    def hinf_error(self) -> float:
        """Measure the H-infinity norm of the error, by `hinf_norm`.

        Returns
        -------
        float
            In units of y per unit of u. Kept unstable poles cancel in the error.
        """
        return float(norms.hinf_norm(self._error_system())) if self._stable else 0.0

    def h2_error(self) -> float:
        """Measure the H2 norm of the error, by `h2_norm`.

        Returns
        -------
        float
            Infinite in continuous time if the feedthrough differs, as it does with `match_dc`.
        """
        return norms.h2_norm(self._error_system()) if self._stable else 0.0

    def hankel_error(self) -> float:
        """Measure the Hankel norm of the error, by `hankel_norm`; at least ``hsv[order]``.

        Returns
        -------
        float
            In units of y per unit of u.
        """
        return norms.hankel_norm(self._error_system()) if self._stable else 0.0

    def summary(self) -> str:
        """Return one paragraph for people: orders, bound, what decided.

        Returns
        -------
        str
            A few lines of text.
        """
        method = "singular perturbation (match_dc)" if self.match_dc else "balanced truncation"
        lines = [
            f"{method}: order {len(self.hsv)} -> {self.order}",
            f"H-infinity error bound {self.error_bound:.4g}",
        ]
        if self.unstable:
            lines.append(f"{self.unstable} unstable or marginal poles split off and kept")
        finite = self.hsv[np.isfinite(self.hsv)]
        kept = self.order - self.unstable
        if kept > 0:
            lines.append(f"hsv kept {finite[0]:.4g} to {finite[kept - 1]:.4g}")
        if kept < len(finite):
            lines.append(f"first hsv dropped {finite[kept]:.4g}")
        return "\n".join(lines)

    def _error_system(self) -> StateSpace | DiagonalSystem:
        assert self._stable is not None
        full, reduced = self._stable
        return full - reduced
