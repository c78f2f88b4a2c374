"""Units of the states, the ordered Schur form, and which poles are marginal: arrays in, arrays out.

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

import math
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import scipy.linalg as sla
from scipy.linalg import lapack

from ..checks import EPS, Array, is_finite
from ..errors import NumericalError
from .hankel_svd import norm_estimate

# Added to the diagonal of a Laplacian, which is singular, one constant for each part that hangs together.
RIDGE = 1e-6

# c above, in units of eps |A|_F for a Schur form and of the componentwise bar for a refined pole. Double poles of 654
# free mass chains in random units needed 0.4 at most, RC nets allow 300: both are in the middle, on a log scale.
BACKWARD = 30.0
COMPONENTWISE = 30.0
# States are sorted where the sizes of their rows and columns differ by more than this factor. Sorting leaves a tenth of
# the error in poles of RC ladders, and a thousandth where rates of a full matrix spread over 12 decades.
GRADED = 1e3
# The cheap screen: what counts as near zero for a pole, and for one that may belong to a cluster of which some poles
# are beyond the boundary (3e-8 was seen at most in 768 mass chains); and how far round these it is sought, in units of
# their margin.
DOUBT = 1e-11
CLEAR = DOUBT ** (
    1 / 3
)  # beyond this margin no product of three distances, none less than the least margin, is in doubt
JOINT = 1e-6
REACH = 3.0
# Two pairs of solves give a singular value to a few per cent; refining converges cubically.
INVERSE_ITERATIONS = 2
REFINEMENTS = 4
# Up to this size LAPACK is called directly.
SMALL = 40
TINY = float(np.finfo(np.float64).tiny)


class Units(NamedTuple):
    """Units: ``x = W x_b`` with ``W = diag(w)[:, order]``, ``u = gain u_b``, ``y = gain y_b``; `given`: no change."""

    w: Array
    order: Array
    gain: float
    given: bool = False


class SchurForm(NamedTuple):
    """Ordered Schur form ``A = Z T Z^H``, the `kept` unstable and marginal poles first.

    `poles` are the eigenvalues of T in the order of its diagonal. `error` is the bar of each: how far rounding can
    have moved it. For poles far from the boundary it is the backward error of the form, the bar of a pole with
    orthogonal eigenvectors, because their condition is not computed.
    """

    T: Array
    Z: Array
    poles: Array
    error: Array
    kept: int


def balanced_units(A: Array, B: Array, C: Array) -> Units:
    """Choose units in which rounding errors are small next to every entry.

    The units are powers of two, so that changing them is exact. LAPACK's ``gebal`` chooses those of the states from A
    alone; inputs and outputs exchange one factor that makes B and C equally large. Where rows and columns differ much,
    states are sorted, large ones first: the QR algorithm then keeps the small eigenvalues of graded matrices.

    Parameters
    ----------
    A, B, C : (n, n), (n, m) and (p, n) ndarray
        Matrices of the system, float64 or complex128.

    Returns
    -------
    Units
        For `apply_units`.

    Examples
    --------
    >>> import numpy as np
    >>> A = np.array([[-1.0, 2.0**40], [-(2.0**-40), -1.0]])
    >>> units = balanced_units(A, np.ones((2, 1)), np.ones((1, 2)))
    >>> float(abs(apply_units(units, A, np.ones((2, 1)), np.ones((1, 2)))[0]).max())
    2.0
    """
    n = len(A)
    if n == 0:
        return Units(np.ones(0), np.arange(0), 1.0)
    gebal = lapack.zgebal if A.dtype.kind == "c" else lapack.dgebal
    start = _symmetric_units(A) if n > 2 and 2 * np.count_nonzero(A) <= n * n + n else None
    balanced, _, _, w, _ = gebal(A if start is None else A * start / start[:, None], scale=1, permute=0)
    w = w if start is None else w * start
    size = np.abs(balanced)
    size = size.sum(axis=0) + size.sum(axis=1)
    graded = size.max() > GRADED * size.min()
    order = np.argsort(-size, kind="stable") if graded else np.arange(n)
    same = bool((w == 1.0).all())
    size_B = float(np.abs(B if same else B / w[:, None]).max()) if B.size else 0.0
    size_C = float(np.abs(C if same else C * w).max()) if C.size else 0.0
    gain = 2.0 ** round((math.log2(size_C) - math.log2(size_B)) / 2) if min(size_B, size_C) > 0 else 1.0
    return Units(w, order, gain, same and not graded and gain == 1.0)


def _symmetric_units(A: Array) -> Array | None:
    """Return powers of two that bring ``|a_ij|`` and ``|a_ji|`` together, or None where they are.

    Along a chain whose units drift, every row and column may have one norm already, at which ``gebal`` stops. Least
    squares on ``log|a_ij| - log|a_ji|`` sees the drift.
    """
    i, j = np.nonzero(np.triu(A, 1) * np.triu(A.T, 1) != 0)
    half = (np.log2(np.abs(A[i, j])) - np.log2(np.abs(A[j, i]))) / 2
    if len(i) == 0 or np.abs(half).max() < 1.0:
        return None
    n = len(A)
    L, b = RIDGE * np.eye(n), np.zeros(n)
    L[i, j] = L[j, i] = -1.0
    L[np.arange(n), np.arange(n)] += np.bincount(np.concatenate([i, j]), minlength=n)
    np.add.at(b, i, half)
    np.subtract.at(b, j, half)
    x = np.round(sla.solve(L, b, assume_a="pos", check_finite=False))
    x -= np.round((x.max() + x.min()) / 2)
    return np.exp2(x) if np.ptp(x) > 2 and np.abs(x).max() < 500 else None


def apply_units(units: Units, A: Array, B: Array, C: Array) -> tuple[Array, Array, Array]:
    """Write a system in other units, exactly.

    Parameters
    ----------
    units : Units
        From `balanced_units`.
    A, B, C : (n, n), (n, m) and (p, n) ndarray
        Matrices of the system.

    Returns
    -------
    A, B, C : ndarray
        ``W^-1 A W``, ``W^-1 B gain`` and ``C W / gain`` with ``W = diag(w)[:, order]``: the same transfer function.
    """
    w, order, gain, _ = units
    if units.given:
        return A, B, C
    return (A * w / w[:, None])[np.ix_(order, order)], (B / w[:, None] * gain)[order], (C * w / gain)[:, order]


def ordered_schur(A: Array, discrete: bool, offset: float = 0.0) -> SchurForm:
    """Compute a Schur form with the unstable and marginal poles first.

    Parameters
    ----------
    A : (n, n) ndarray
        State matrix in balanced units, float64 or complex128.
    discrete : bool
        Whether the boundary is the unit circle instead of the imaginary axis.
    offset : float
        Poles within this distance of the boundary are kept as well.

    Returns
    -------
    SchurForm
        A real A gives a quasi-triangular T that separates no conjugate pair.

    Raises
    ------
    NumericalError
        If the Schur form fails, or kept and other poles cannot be separated.

    Notes
    -----
    A pole that was refined is written on the diagonal of T. It lies within the backward error of the form, so that
    ``Z T Z^H`` is as near to A as before.

    Examples
    --------
    >>> import numpy as np
    >>> form = ordered_schur(np.array([[-1.0, 1.0], [0.0, 2.0]]), discrete=False)
    >>> form.kept, form.poles.real
    (1, array([ 2., -1.]))
    """
    from .triangular import schur_eigenvalues

    n = len(A)
    if n == 0:
        return SchurForm(A, A, np.zeros(0, np.complex128), np.zeros(0), 0)
    try:
        T, Z, poles = _schur(A)
    except np.linalg.LinAlgError as failure:
        raise NumericalError(f"The Schur form of A ({n}, {n}) must converge; got {failure} Rescale A.") from failure
    margin, size = _margin(poles, discrete), float(np.linalg.norm(A))
    if margin.min() > max(CLEAR * size, offset):
        return SchurForm(T, Z, poles, np.full(n, BACKWARD * EPS * size), 0)
    error, refined = _bars(A, T, poles, margin, size, discrete)
    margin = _margin(poles, discrete)
    keep = margin <= np.maximum(offset, error)
    kept = int(keep.sum())
    failed = 0
    if not keep[:kept].all():
        trsen = lapack.ztrsen if T.dtype.kind == "c" else lapack.dtrsen
        T, Z, *_, failed = trsen(keep, T, Z, job="N")
        order = np.argsort(~keep, kind="stable")
        poles, error, refined = poles[order], error[order], refined[order]
    if kept or refined.any():
        _write_poles(T, poles, refined)
        poles = schur_eigenvalues(T)
    if failed or (_margin(poles[kept:], discrete) <= offset).any():
        raise NumericalError(
            f"The {kept} unstable and marginal poles must be apart from the other {n - kept}; got poles that move "
            f"across the boundary when they are reordered. Choose an offset that does not cut through a cluster."
        )
    return SchurForm(T, Z, poles, error, kept)


def decouple(T: Array, k: int) -> Array:
    """Solve ``T11 Y - Y T22 = -T12`` for the basis ``[[I, Y], [0, I]]`` that decouples a Schur form.

    Parameters
    ----------
    T : (n, n) ndarray
        Upper (quasi-)triangular; row k begins a diagonal block.
    k : int
        Size of T11, from 0 to n.

    Returns
    -------
    Y : (k, n - k) ndarray
        Solution.

    Raises
    ------
    NumericalError
        If the equation is singular to working precision.

    Examples
    --------
    >>> import numpy as np
    >>> decouple(np.array([[2.0, 6.0], [0.0, -1.0]]), 1)
    array([[-2.]])
    """
    from .triangular import flipped, solve_sylvester

    Y = np.ascontiguousarray(-T[:k, k:][:, ::-1])
    if Y.size == 0:
        return Y
    right, size = float(np.linalg.norm(Y)), float(np.linalg.norm(T))
    with np.errstate(all="ignore"):
        solve_sylvester(T[:k, :k], -flipped(T[k:, k:]), Y)
        gain = float(np.linalg.norm(Y))
    if not gain * EPS * size <= right:
        raise NumericalError(
            f"The {k} poles that are kept must be apart from the other {len(T) - k}; got a Sylvester equation that is "
            f"singular to working precision. Choose an offset that does not cut through a cluster of poles."
        )
    return np.ascontiguousarray(Y[:, ::-1])


def inverse_norm(T: Array, discrete: bool) -> float:
    """Compute the norm of the inverse of a stable Lyapunov or Stein operator, ``X -> T X + X T^H`` or ``X - T X T^H``.

    The inverse of either is positive up to sign, so that its spectral norm is attained at the identity.

    Parameters
    ----------
    T : (n, n) ndarray
        Upper (quasi-)triangular with stable eigenvalues.
    discrete : bool
        Whether the operator is Stein's.

    Returns
    -------
    float
        ``|X|_2`` of the solution with right side ``-I`` or ``I``, of large ones by a few power steps from below; inf
        if it overflows.

    Examples
    --------
    >>> import numpy as np
    >>> inverse_norm(np.array([[-0.25]]), discrete=False)
    2.0
    """
    from .triangular import solve_hermitian_stein, solve_hermitian_sylvester

    n = len(T)
    if n == 0:
        return 0.0
    X = np.zeros((n, n), dtype=T.dtype)
    X.flat[:: n + 1] = 1.0 if discrete else -1.0
    with np.errstate(all="ignore"):
        (solve_hermitian_stein if discrete else solve_hermitian_sylvester)(T, X)
    if not is_finite(X):
        return np.inf
    if n > SMALL:
        return norm_estimate(X)
    return float((lapack.zheevd if X.dtype.kind == "c" else lapack.dsyevd)(X, compute_v=0)[0][-1])


def _schur(A: Array) -> tuple[Array, Array, Array]:
    """Return T, Z and eigenvalues; of small matrices straight from LAPACK, where checks take longer than the work."""
    from .triangular import schur_eigenvalues

    if len(A) > SMALL:
        T, Z = sla.schur(A, output="complex" if A.dtype.kind == "c" else "real")
        return T, Z, schur_eigenvalues(T)
    gees = lapack.zgees if A.dtype.kind == "c" else lapack.dgees
    T, _, *poles, Z, _, info = gees(lambda *_: None, A, lwork=8 * len(A))
    if info:
        raise np.linalg.LinAlgError(f"LAPACK's gees must converge; got info={info}.")
    return T, Z, poles[0] if len(poles) == 1 else poles[0] + 1j * poles[1]


def _margin(poles: Array, discrete: bool) -> Array:
    """Return the distances of poles from the boundary, negative beyond it."""
    return 1.0 - np.abs(poles) if discrete else -poles.real


def _nearest(poles: Array, discrete: bool) -> Array:
    """Return the points of the boundary next to poles."""
    if not discrete:
        return 1j * poles.imag
    size = np.abs(poles)
    return np.where(size > 0, poles, 1.0) / np.where(size > 0, size, 1.0)


def _bars(A: Array, T: Array, poles: Array, margin: Array, size: float, discrete: bool) -> tuple[Array, Array]:
    """Refine the poles in doubt, in place; return the bar of every pole, and which were refined."""
    from .triangular import flipped

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
    # Two poles that were refined to the same one tell that iterations strayed: neither counts.
    near = np.abs(found[:, None] - found) <= bar[:, None] + np.where(refined, bar, 0.0)
    refined &= ~(near & ~np.eye(len(poles), dtype=bool)).any(axis=1)
    poles[refined], error[refined] = found[refined], bar[refined]
    return error, refined


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
    from .triangular import solve_sylvester

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
    return (pole, bar) if np.isfinite(bar) else (pole, np.inf)


def _write_poles(T: Array, poles: Array, chosen: Array) -> None:
    """Write the chosen poles on the diagonal of a Schur form, in place."""
    for i in np.flatnonzero(chosen):
        if T.dtype.kind == "c":
            T[i, i] = poles[i]
        elif poles[i].imag == 0 or i + 1 == len(T) or T[i + 1, i] == 0:
            T[i, i] = poles[i].real
        elif poles[i].imag > 0:
            ratio = poles[i].imag / np.sqrt(-T[i, i + 1] * T[i + 1, i])
            T[i, i] = T[i + 1, i + 1] = poles[i].real
            T[i, i + 1] *= ratio
            T[i + 1, i] *= ratio
