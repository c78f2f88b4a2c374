"""What rounding has done to a dense system on its way to balanced coordinates, measured against the system given.

Estimates take the worst case of a norm, which stiff systems stay far below. Where an estimate is large, the system in
all its balanced states is therefore compared with the one given, at the frequencies of its poles.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .checks import EPS, Array
from .linalg.gain import largest_gain
from .linalg.hankel_svd import HankelSVD, padded
from .linalg.response import boundary_points, dense_response
from .linalg.schur import apply_units, balanced_units, ordered_schur
from .linalg.triangular import schur_factors

# Frequencies at which a difference is measured, and how much more than the largest one seen there is granted.
SAMPLES, SAFETY = 40, 4.0

# The gain of an unstable pole this many error bars beyond the boundary is certain to 1e-9; nearer ones are as marginal.
CERTAIN = 1e9

# A response this near to a marginal pole, relative to the frequency, says nothing.
NEAR = 1e-3


class Matrices(NamedTuple):
    """A projected system ``(A, B, C, D)``; A lacks `shift` times the identity, see `Poles.less_shift`.

    `terms` holds ``|Ti| |A| |T|`` of a diagonal system: the sizes of what was added up to A.
    """

    A: Array
    B: Array
    C: Array
    D: Array
    shift: float = 0.0
    terms: Array | None = None

    def response(self, omega: Array, discrete: bool) -> Array:
        """Return the response at frequencies in rad per unit of time."""
        points = boundary_points(omega, discrete)
        return dense_response(self.A, self.B, self.C, self.D, points - self.shift)


def measured(parts: Any, svd: HankelSVD, floor: float) -> tuple[float, bool]:
    """Measure the rounding error of balanced coordinates, and tell whether the Schur form is the better model in them.

    A multiple of the largest difference between the response of the system and that of its balanced realisation; how
    far the Hankel singular values of the latter lie from those found, and how far the response moves if every entry of
    A is rounded once, count too. Both ways to project are tried: in oblique bases of rotated stiff systems, products
    of the given A with entries of every size cancel.
    """
    rank = int(np.sum(svd.values > floor))
    omega = _telling_frequencies(parts)
    changes, models = _in_balanced_states(parts, svd, rank, omega, _difference)
    on_schur_form = changes[1] < changes[0]
    if not np.isfinite(min(changes)):
        return np.inf, on_schur_form
    again = _hsv_of_balanced(models[on_schur_form], parts.discrete)
    moved = float(np.abs(again - svd.values[:rank]).max(initial=0.0))
    return max(SAFETY * max(min(changes), moved), _rounded_response(parts.system, omega)), on_schur_form


def of_projection(parts: Any, svd: HankelSVD, pair: Any) -> list[float]:
    """Measure what rounding adds to the error that the values of a weighted pair bound, as `measured` does.

    A multiple of that error of the system in all its balanced states, seen at the frequencies of its poles or of those
    that the pair names, with that of a response rounded once; for a dense system also that of its Schur form in them.
    """
    if parts.system.order == 0:
        return [0.0]
    both_signs = parts.system.dtype.kind == "c"
    named = None if pair.poles is None else sample_frequencies(pair.poles, parts.system.is_discrete, both_signs)
    omega = _telling_frequencies(parts) if named is None else named

    def error(given: Array, model: Array) -> float:
        seen = _difference if pair.seen is None else partial(pair.seen, hsv=svd.values)
        return seen(given, model) + EPS * seen(given, np.zeros(given.shape))

    rank = int(np.count_nonzero(svd.values > pair.floor))
    changes, _ = _in_balanced_states(parts, svd, rank, omega, error)
    return [SAFETY * change for change in changes]


def _in_balanced_states(
    parts: Any, svd: HankelSVD, rank: int, omega: Array, error: Callable[[Array, Array], float]
) -> tuple[list[float], list[Matrices]]:
    """Return the error of a system in all its balanced states, and these models; the Schur form makes the second one.

    Of a diagonal system, whose states put aside stay as they are, the stable part alone makes the only one.
    """
    diagonal, discrete = parts.system.is_diagonal, parts.system.is_discrete
    given = parts.stable_response(omega) if diagonal else parts.system._response(omega)
    bases = svd.bases(slice(0, rank), rank)
    changes, models = [], []
    for project in [parts.projected] if diagonal else [parts.projected, parts.projected_schur_form]:
        with np.errstate(all="ignore"):
            models.append(project(*bases)[2])
            whole = models[-1] if diagonal else parts.whole(models[-1])
            finite = all(np.isfinite(x).all() for x in whole[:4])
            changes.append(error(given, whole.response(omega, discrete)) if finite else np.inf)
    return changes, models


def _difference(given: Array, model: Array) -> float:
    return float(largest_gain(given - model))


def _telling_frequencies(parts: Any) -> Array:
    """Return frequencies of the poles, away from the marginal ones, which drown every response next to them."""
    kept, clear = parts.poles[: parts.kept], parts.clearly_unstable(CERTAIN)
    poles, marginal = np.concatenate([kept[clear], parts.poles[parts.kept :]]), kept[~clear]
    omega = sample_frequencies(poles, parts.system.is_discrete, parts.system.dtype.kind == "c")
    if len(marginal) == 0:
        return omega
    points = boundary_points(omega, parts.system.is_discrete)[:, None]
    least = np.abs(omega[omega != 0]).min(initial=np.inf)
    size = np.maximum(np.abs(points), least if np.isfinite(least) else 0.0)
    omega = omega[np.all(np.abs(points - marginal) > NEAR * size, axis=1)]
    return np.concatenate([omega, [0.1 * least, 0.3 * least] if np.isfinite(least) else []])


def _hsv_of_balanced(model: Any, discrete: bool) -> Array:
    """Return the Hankel singular values of a model in balanced coordinates, where rounding does other things."""
    units = balanced_units(model.A, model.B, model.C)
    A, B, C = apply_units(units, model.A, model.B, model.C)
    form = ordered_schur(A, discrete)
    if form.kept:
        return np.full(len(A), np.inf)
    S, R = schur_factors(form.T, form.Z.conj().T @ B, C @ form.Z, discrete)
    return padded(HankelSVD(S, R).values, len(A))


def _rounded_response(G: Any, omega: Array) -> float:
    """How far a response moves if every entry of A is rounded once: ``eps |C R| (|A| + |s|) |R B|``."""
    points = boundary_points(omega, G.is_discrete)
    left = np.abs(dense_response(G.A.T, G.C.T, np.eye(G.n), np.zeros((G.n, G.p)), points)).swapaxes(1, 2)
    right = np.abs(dense_response(G.A, G.B, np.eye(G.n), np.zeros((G.n, G.m)), points))
    weight = np.abs(G.A)[None] + np.abs(points)[:, None, None] * np.eye(G.n)
    with np.errstate(all="ignore"):
        return EPS * largest_gain(left @ weight @ right)


def sample_frequencies(poles: Array, discrete: bool, both_signs: bool) -> Array:
    """Return frequencies in rad per unit of time at which a system shows what it does: those of its poles."""
    if len(poles) == 0:
        return np.zeros(1)
    if discrete:
        poles = np.log(np.where(poles == 0, 1e-300, poles).astype(complex))
    size, imag = np.abs(poles), np.abs(poles.imag)
    imag = imag[imag > NEAR * size]  # others show at zero what they show there, and may be rounding
    omega = np.concatenate([imag, *([np.minimum(size, np.pi), [np.pi]] if discrete else [size])])
    omega = np.unique(omega[omega > 0])
    if len(omega) > SAMPLES:
        omega = omega[np.round(np.linspace(0, len(omega) - 1, SAMPLES)).astype(int)]
    omega = np.concatenate([[0.0], omega])
    return np.concatenate([-omega[:0:-1], omega]) if both_signs else omega
