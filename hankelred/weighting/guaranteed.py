"""The guaranteed form of a weighted pair: a pair near by that keeps models stable and bounds their error.

The right side ``X = -(A P + P A^H)`` of a weighted equation may be indefinite, and then truncation need not be stable.
With ``|X| = Bs Bs^H`` in its place, and the same on the other side, the pair is that of the Gramians of
``(A, Bs, Cs)``: every truncation of it is stable, and with ``B = Bs K``, ``C = L Cs`` its error is at most
``2 |L| |K|`` times the sum of the values left out [1]_.

References
----------
.. [1] G. Wang, V. Sreeram, W. Q. Liu, "A new frequency-weighted balanced truncation method and an error bound", IEEE
   Trans. Automatic Control 44, 1999, pp. 1734-1737.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg as sla

from ..checks import EPS, Array, check_result
from ..errors import StabilityError
from ..linalg.hankel_svd import norm_estimate
from ..linalg.schur import apply_units, balanced_units, ordered_schur
from ..linalg.triangular import schur_factors
from .base import Pair

# Eigenvalues of X below this share of the largest are rounding.
NOISE = 1e-12

# Inputs leave the range of X where this share of them lies outside: 1e-13 was seen where they do not.
OUTSIDE = 1e-10


def guaranteed_pair(white: Any, pair: Pair, parts: Any) -> Pair:
    """Return the guaranteed pair in the coordinates of the part, with the factor of its bound.

    It is formed in the balanced coordinates of the system itself, so that no unit of a state changes it; states that
    link no input to an output have none and take no part.
    """
    if white.kept and not parts.kept:
        raise StabilityError(
            "guaranteed=True needs a stable system: the horizon covers unstable poles too. Leave guaranteed out."
        )
    rank = white.rank - white.kept
    small = white.reduced(rank)[2]
    Y, X = white.svd.bases(slice(0, rank), rank)
    A, discrete = small.A + small.shift * np.eye(rank), white.system.is_discrete
    P, Q = X @ pair.S, pair.R @ Y
    B, K = _range_of(A, P @ P.conj().T, small.B, discrete)
    C, L = _range_of(A.conj().T, Q.conj().T @ Q, small.C.conj().T, discrete)
    units = balanced_units(A, B, C.conj().T)
    a, b, c = apply_units(units, A, B, C.conj().T)
    form = ordered_schur(a.astype(np.result_type(a, b, c)), discrete)
    if form.kept:
        raise StabilityError(
            f"guaranteed=True needs a system that is stable in balanced coordinates too; got a pole at "
            f"{form.poles[0]:.6g}, within rounding of the boundary. Raise offset, which keeps such poles."
        )
    S, R = schur_factors(form.T, form.Z.conj().T @ b, c @ form.Z, discrete)
    w = np.empty((rank, rank), dtype=form.Z.dtype)
    w[units.order] = form.Z
    S, R = (units.w[:, None] * w) @ S / units.gain, R @ (w.conj().T / units.w) * units.gain
    gain, floor = K * L, EPS * rank * norm_estimate(S) * norm_estimate(R)
    return Pair(Y @ S, R @ X, max(floor, white.floor / gain if gain else 0.0), gain)


def _range_of(A: Array, P: Array, B: Array, discrete: bool) -> tuple[Array, float]:
    """Return Bs with ``|X| = Bs Bs^H``, and ``|K|`` for ``B = Bs K``; infinite where B leaves the range of X."""
    X = P - A @ P @ A.conj().T if discrete else -(A @ P + P @ A.conj().T)
    check_result("Weighted Gramians in balanced coordinates", X, hint="Scale the weights.")
    values, vectors = sla.eigh((X + X.conj().T) / 2)
    size = np.abs(values)
    kept = size > NOISE * size.max(initial=0.0)
    found = vectors[:, kept] * np.sqrt(size[kept])
    K = (vectors[:, kept] / np.sqrt(size[kept])).conj().T @ B
    outside = np.linalg.norm(B - found @ K) > OUTSIDE * np.linalg.norm(B)
    return found, np.inf if outside else float(np.linalg.norm(K, 2)) if K.size else 0.0
