"""What a reduction returns: the reduced system with a stated bound, and ways to measure the true error."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import norms
from ..checks import EPS, Array
from ..linalg.gain import largest_gain
from ..markup import html_table
from ..rounding import sample_frequencies
from ..systems import LinearSystem
from ..weighting.base import HINF

# A difference of two gains is not known better than to this many roundings of either.
RESOLUTION = 4 * EPS


@dataclass(frozen=True, eq=False, repr=False)
class Reduction:
    """A reduced system, its Hankel singular values, its error bound and ways to measure the true error.

    Every error is that of the model in `system` against the system that was given.

    Attributes
    ----------
    system : same class as the system reduced
        The reduced model, with the dt, input and output names of the original. Transfer functions come back as
        state space models of their library.
    original : StateSpace or DiagonalSystem
        The system that was given, as `as_system` reads it.
    order : int
        Hankel singular values kept, those of unstable poles included.
    hsv : (n,) ndarray
        All Hankel singular values, decreasing, in units of y per unit of u; infinite for poles that were split
        off and kept.
    error_bound : float
        Bound on the error that `bounded` names, with what rounding adds; infinite where no bound holds.
    T, Ti : (n, order) and (order, n) ndarray
        Bases with ``Ti T = I``: ``x ≈ T x_r`` and ``x_r = Ti x``; the truncated model is
        ``(Ti A T, Ti B, C T, D)``. For diagonal systems the eigenvectors that restore the diagonal form are
        included. With real output the full coordinates are ``[x; conj(x)]``, 2n of them, and the reduced ones
        are the complex poles, their conjugates and the real poles, in this order. None where the model is no
        projection.
    unstable : int
        Poles split off as unstable or marginal, and kept.
    method : str
        How the model was made; with "singular perturbation" T and Ti are the bases of the states kept.
    bounded : str
        Which error `error_bound` is on: the "H-infinity error", or what a weighting bounds in its place.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> plant = hr.StateSpace(np.diag([-1.0, -2.0, -30.0]), np.ones((3, 1)), np.ones((1, 3)))
    >>> reduction = hr.balanced_truncation(plant, order=2)
    >>> reduction.system, reduction.T.shape, reduction.hinf_error() <= reduction.error_bound
    (StateSpace(real, n=2, m=1, p=1, dt=0), (3, 2), True)
    """

    system: Any
    original: Any
    order: int
    hsv: Array
    error_bound: float
    T: Any
    Ti: Any
    unstable: int = 0
    method: str = "balanced truncation"
    bounded: str = HINF
    _reduced: Any = field(default=None, repr=False)
    _stable: tuple[LinearSystem, LinearSystem] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        """Return orders and bound, not the matrices."""
        return f"Reduction(order {self.original.order} -> {self.order}, error_bound={self.error_bound:.4g})"

    def _repr_html_(self) -> str:
        """Return the summary for notebooks."""
        return html_table([[line] for line in self.summary().splitlines()])

    def hinf_error(self) -> float:
        """Measure the H-infinity norm of the error, by `hinf_norm`.

        Returns
        -------
        float
            In units of y per unit of u; never less than the rounding of the two gains whose difference it is, or than
            the bound where that is smaller. Kept unstable poles cancel in the error. Of a sparse system it is the
            largest error at some fifty frequencies, and so a lower figure.

        Examples
        --------
        >>> import numpy as np, hankelred as hr
        >>> plant = hr.StateSpace(np.diag([-1.0, -2.0, -30.0]), np.ones((3, 1)), np.ones((1, 3)))
        >>> reduction = hr.balanced_truncation(plant, order=2)
        >>> hr.hinf_norm(plant - reduction.system) == reduction.hinf_error()
        True
        """
        if self._reduced is self.original:
            return 0.0
        if self.original.is_sparse:
            return norms.sampled_error(self.original, self._reduced)
        if self._stable is None:
            error = float(norms.hinf_norm(self.original - self._reduced))
        else:
            error = norms.stable_error(self.original, self._reduced, *self._stable)
        poles, both = self._reduced.poles()[self.unstable :], self.original.dtype.kind == "c"
        omega = sample_frequencies(poles, self.original.is_discrete, both)
        full = self.original if self._stable is None else self._stable[0]
        return max(error, min(RESOLUTION * largest_gain(full._response(omega)), self.error_bound))

    def h2_error(self) -> float:
        """Measure the H2 norm of the error, by `h2_norm`.

        Returns
        -------
        float
            Infinite in continuous time if the feedthrough differs, as it does with `match_dc`.
        """
        return 0.0 if self._reduced is self.original else float(norms.h2_norm(self._error_system()))

    def hankel_error(self) -> float:
        """Measure the Hankel norm of the error, by `hankel_norm`; at least ``hsv[order]``.

        Returns
        -------
        float
            In units of y per unit of u.
        """
        return 0.0 if self._reduced is self.original else float(norms.hankel_norm(self._error_system()))

    def summary(self) -> str:
        """Return one paragraph for people: orders, bound, what decided.

        Returns
        -------
        str
            A few lines of text.
        """
        lines = [
            f"{self.method}: order {self.original.order} -> {self.order}",
            f"{self.bounded} bound {self.error_bound:.4g}",
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

    def to_json(self) -> str:
        """Return figures and versions as JSON, without the matrices.

        Returns
        -------
        str
            An object with method, orders, hsv (null for infinite ones), bound, sizes, dt and the versions used.
        """
        import scipy

        from .. import __version__

        finite = [float(value) if np.isfinite(value) else None for value in self.hsv]
        record = {
            "method": self.method,
            "order": self.order,
            "full_order": self.original.order,
            "unstable": self.unstable,
            "hsv": finite,
            "bounded": self.bounded,
            "error_bound": float(self.error_bound) if np.isfinite(self.error_bound) else None,
            "dt": self.original.dt,
            "sizes": {"n": self.original.n, "m": self.original.m, "p": self.original.p},
            "versions": {"hankelred": __version__, "numpy": np.__version__, "scipy": scipy.__version__},
        }
        return json.dumps(record)

    def _error_system(self) -> Any:
        full, reduced = self._stable or (self.original, self._reduced)
        return full - reduced
