"""Which poles are marginal: error bars of the eigenvalues of a Schur form.

A pole is *marginal* if rounding errors decide on which side of the stability boundary it lies. A Schur form is exact
for a matrix within ``e = c eps |A|`` of A, so the question is one about pseudospectra: a pole `lam` is marginal where
the set of all z with ``sigma_min(A - z I) <= e`` joins it to the nearest point b of the boundary. That one rule covers
what would otherwise be cases:

- A simple pole has ``sigma_min(A - b I) = |lam - b| s`` to first order, with s the cosine between its left and right
  eigenvectors: it is marginal within ``e / s`` of the boundary.
- A pole of multiplicity k scatters with radius ``e^(1/k)``, but ``sigma_min`` grows as the k-th power of the distance
  from the mean: a rigid body whose double pole was computed as a stable pair is marginal, ``1 / (s + 1)^14`` with
  poles scattered by 0.1 round -1 is not.
- A slow pole beside an integrator is joined to it by points where ``sigma_min`` is large, and is not marginal.

Stiff systems need a second look, because e is large next to their slow poles although the entries of A determine those
well. A simple pole in doubt is therefore refined by Rayleigh quotients of A itself, and judged by its componentwise
bar ``c eps |y|^T |A| |x| / |y^H x|``, which changes of units leave as it is.
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np
from scipy.linalg import lapack
from scipy.sparse.csgraph import connected_components

from ..checks import EPS, Array
from .triangular import flipped, solve_sylvester

# c above, in units of eps |A|_F for a Schur form and of the componentwise bar for a refined pole. Double poles of 654
# free mass chains in random units needed 0.4 at most, RC nets allow 300: both are in the middle, on a log scale.
BACKWARD = 30.0
COMPONENTWISE = 30.0
# The cheap screen: what counts as near zero for a pole, and for one that may belong to a cluster of which some poles
# are beyond the boundary (3e-8 was seen at most in 768 mass chains); and how far round these it is sought, in units of
# their margin.
DOUBT = 1e-11
JOINT = 1e-6
REACH = 3.0
# Beyond this margin no product of three distances, none less than the least margin, is in doubt.
CLEAR = float(np.cbrt(DOUBT))
# Two pairs of solves give a singular value to a few per cent; refining converges cubically.
INVERSE_ITERATIONS = 2
REFINEMENTS = 4
TINY = float(np.finfo(np.float64).tiny)


def error_bars(A: Array, T: Array, poles: Array, margin: Array, discrete: bool) -> tuple[Array, Array]:
    """Refine the poles in doubt, in place; return the bar of every pole, and which were refined."""
    size = float(np.linalg.norm(A))
    backward = BACKWARD * EPS * size
    error = np.full(len(poles), backward)
    refined = np.zeros(len(poles), bool)
    boundary = _nearest(poles, discrete)
    doubtful = np.flatnonzero(_doubtful(poles, margin, boundary, size))
    if A.dtype.kind == "f":
        doubtful = doubtful[poles[doubtful].imag >= 0]  # the others are conjugates, one place below
    if doubtful.size == 0:
        return error, refined
    least = cache(partial(_least_singular_value, np.ascontiguousarray(T), flipped(T)))
    found, bar = poles.copy(), error.copy()
    for i in doubtful:
        pole, end, distance = complex(poles[i]), complex(boundary[i]), abs(float(margin[i]))
        if distance < backward:  # go on, away from points that are poles to rounding
            end += (backward - distance) * (end if discrete else 1.0)
            distance = abs(end - pole)
        error[i] = distance * backward / max(least(end), TINY)
        if error[i] >= distance:  # the weaker link between pole and boundary tells
            error[i] = min(error[i], distance * backward / max(least((pole + end) / 2), TINY))
        if error[i] >= abs(margin[i]):
            found[i], bar[i] = _refine(A, pole)
            refined[i] = bar[i] < error[i] and abs(found[i] - pole) <= error[i]
        if A.dtype.kind == "f" and pole.imag > 0:
            found[i + 1], bar[i + 1] = found[i].conj(), bar[i]
            error[i + 1], refined[i + 1] = error[i], refined[i]
    # Poles that were refined to the same one tell that iterations strayed, and none of them counts, unless as many
    # parts of A have it that know nothing of each other: those of a difference of two models.
    same = (np.abs(found[:, None] - found) <= bar[:, None] + np.where(refined, bar, 0.0)) & refined[:, None]
    shared = np.flatnonzero(same.sum(axis=1) > 1)
    if shared.size:
        part = connected_components(A != 0, directed=False)[1]
        refined[shared] = [same[i].sum() <= _parts_with(A, part, found[i], bar[i]) for i in shared]
    poles[refined], error[refined] = found[refined], bar[refined]
    return error, refined


def _parts_with(A: Array, part: Array, pole: complex, bar: float) -> int:
    """Count the parts of a matrix that is block diagonal, whatever the order of its states, that have a pole.

    Those are asked alone in which a disc of Gershgorin holds it.
    """
    center, reach = A.diagonal(), np.abs(A).sum(axis=1) - np.abs(A.diagonal())
    candidates = np.unique(part[np.abs(center - pole) <= reach + bar])
    refined = (_refine(A[np.ix_(*[np.flatnonzero(part == k)] * 2)], pole) for k in candidates)
    return sum(abs(found - pole) <= bar + its for found, its in refined)


def none_in_doubt(poles: Array, margin: Array, size: float, discrete: bool, offset: float) -> bool:
    """Tell whether no pole is marginal, nor within `offset` of the boundary, from the poles alone; `size` is ``|A|_F``.

    Where they leave a doubt, it takes `error_bars` and so a Schur form to tell.
    """
    if margin.min() > max(CLEAR * size, offset):
        return True
    if not margin.min() > max(BACKWARD * EPS * size, offset):
        return False
    return not _doubtful(poles, margin, _nearest(poles, discrete), size).any()


def _nearest(poles: Array, discrete: bool) -> Array:
    """Return the points of the boundary next to poles."""
    if not discrete:
        return 1j * poles.imag
    size = np.abs(poles)
    return np.where(size > 0, poles, 1.0) / np.where(size > 0, size, 1.0)


def _doubtful(poles: Array, margin: Array, boundary: Array, size: float) -> Array:
    """Tell which poles rounding might carry across the boundary: a cheap screen that errs on the side of doubt.

    ``sigma_min(A - b I) / |A|`` is at least about the product of ``|lam_j - b| / |A|`` over the poles joined to b.
    Rounding that joins more than two to b puts some of them beyond the boundary, as the roots of a perturbation lie on
    a circle. So a pole counts with the two nearest to its b, and next to poles beyond the boundary with all that can
    belong to their cluster.
    """
    if size == 0:
        return np.ones(len(poles), bool)
    own, others = np.abs(margin) / size, np.abs(poles - boundary[:, None]) / size
    np.fill_diagonal(others, 1.0)
    nearest = np.partition(others, min(1, len(poles) - 1), axis=1)[:, :2]
    doubt = own * np.minimum(nearest, 1.0).prod(axis=1) <= DOUBT
    beyond = np.flatnonzero((margin < 0) | doubt)
    if beyond.size and not doubt.all():
        reach = REACH * own[beyond]
        radius = np.where(reach >= others[beyond].T, reach, 0.0).max(axis=1)
        doubt |= (radius > 0) & (own * np.where(others <= radius[:, None], others, 1.0).prod(axis=1) <= JOINT)
    return doubt


def _least_singular_value(T: Array, dual: Array, z: complex) -> float:
    """Estimate the least singular value of ``T - z I`` from above by inverse iteration."""

    def shift(z: complex) -> Array:  # the M of T X + X M^H = T X - X [[re, im], [-im, re]], where X = [Re x, Im x]
        if T.dtype.kind == "c":
            return np.array([[-z.conjugate()]])
        return np.array([[-z.real, z.imag], [-z.imag, -z.real]]) if z.imag else np.array([[-z.real]])

    factors = (T, shift(z)), (dual, shift(z.conjugate()))
    x = np.random.default_rng(0).standard_normal((len(T), len(factors[0][1]))).astype(T.dtype)
    with np.errstate(all="ignore"):
        for matrix, M in factors * INVERSE_ITERATIONS:
            x = np.ascontiguousarray(x[::-1]) / np.linalg.norm(x)  # rows of the dual run backwards
            solve_sylvester(matrix, M, x)
    growth = float(np.linalg.norm(x))
    return 1.0 / growth if np.isfinite(growth) else 0.0


def _refine(A: Array, pole: complex) -> tuple[complex, float]:
    """Iterate a pole and its eigenvectors with A itself; return it with its componentwise bar."""
    size = np.abs(A)
    tiny = EPS**2 * float(size.max())  # no pole is told from zero below this: stiff systems have it at 1e-16 |A|
    x, y = np.random.default_rng(0).standard_normal((2, len(A))).astype(np.complex128)
    with np.errstate(all="ignore"):
        for _ in range(REFINEMENTS):
            lu, pivots, _ = lapack.zgetrf(A - pole * np.eye(len(A)))
            np.fill_diagonal(lu, np.where(lu.diagonal() == 0, max(EPS * abs(pole), tiny), lu.diagonal()))
            for _ in range(2):
                x = lapack.zgetrs(lu, pivots, x)[0]
                y = lapack.zgetrs(lu, pivots, y, trans=2)[0]
                x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
            pole = complex(y.conj() @ (A @ x) / (y.conj() @ x))
        residual = np.abs(y) @ np.abs(A @ x - pole * x) + np.abs(y.conj() @ A - pole * y.conj()) @ np.abs(x)
        bar = COMPONENTWISE * float((EPS * (np.abs(y) @ size @ np.abs(x)) + residual) / np.abs(y.conj() @ x)) + tiny
    return pole, bar if np.isfinite(bar) else np.inf
