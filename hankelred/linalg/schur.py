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

from typing import NamedTuple

import numpy as np
import scipy.linalg as sla
from scipy.linalg import lapack

from ..checks import EPS, Array
from ..errors import NumericalError

# c above: rounding of a Schur form in units of eps |A|_F, and of a refined pole in units of its componentwise bar.
BACKWARD = 30.0
COMPONENTWISE = 30.0
# States are sorted where the sizes of their rows and columns differ by more than this factor.
GRADED = 1e3
# The cheap screen: how near to zero it is a doubt, and how far round a pole beyond the boundary its cluster is sought.
DOUBT = 1e3 * BACKWARD * EPS
REACH = 3.0
INVERSE_ITERATIONS = 4


class Units(NamedTuple):
    """Units: ``x = W x_b`` with ``W = diag(w)[:, order]``, ``u = gain u_b``, ``y = gain y_b``."""

    w: Array
    order: Array
    gain: float


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
        For `apply`.

    Examples
    --------
    >>> import numpy as np
    >>> A = np.array([[-1.0, 2.0**40], [-(2.0**-40), -1.0]])
    >>> units = balanced_units(A, np.ones((2, 1)), np.ones((1, 2)))
    >>> apply(units, A, np.ones((2, 1)), np.ones((1, 2)))[0]
    array([[-1.,  1.],
           [-1., -1.]])
    """
    n = len(A)
    if n == 0:
        return Units(np.ones(0), np.arange(0), 1.0)
    gebal = lapack.zgebal if A.dtype.kind == "c" else lapack.dgebal
    balanced, _, _, w, _ = gebal(A, scale=1, permute=0)
    size = np.abs(balanced)
    size = size.sum(axis=0) + size.sum(axis=1)
    graded = size.max() > GRADED * size.min()
    order = np.argsort(-size, kind="stable") if graded else np.arange(n)
    size_B, size_C = float(np.linalg.norm(B / w[:, None])), float(np.linalg.norm(C * w))
    gain = 2.0 ** round(np.log2(size_C / size_B) / 2) if size_B * size_C > 0 else 1.0
    return Units(w, order, gain)


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
    w, order, gain = units
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
        T, Z = sla.schur(A, output="complex" if A.dtype.kind == "c" else "real")
    except np.linalg.LinAlgError as failure:
        raise NumericalError(f"The Schur form of A ({n}, {n}) must converge; got {failure} Rescale A.") from failure
    poles = schur_eigenvalues(T)
    error, refined = _bars(A, T, poles, discrete)
    margin = _margin(poles, discrete)
    keep = margin <= np.maximum(offset, error)
    kept = int(keep.sum())
    if not keep[:kept].all():
        trsen = lapack.ztrsen if T.dtype.kind == "c" else lapack.dtrsen
        T, Z, *_, failed = trsen(keep, T, Z, job="N")
        order = np.argsort(~keep, kind="stable")
        poles, error, refined = poles[order], error[order], refined[order]
    else:
        failed = 0
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
        ``|X|_2`` of the solution with right side ``-I`` or ``I``; inf if it overflows.

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
    X = np.eye(n, dtype=T.dtype)
    with np.errstate(all="ignore"):
        if discrete:
            solve_hermitian_stein(T, X)
        else:
            X *= -1
            solve_hermitian_sylvester(T, X)
        if not np.isfinite(X).all():
            return np.inf
        return float(sla.eigvalsh(X, subset_by_index=[n - 1, n - 1])[0])


def _margin(poles: Array, discrete: bool) -> Array:
    """Return the distances of poles from the boundary, negative outside."""
    return 1.0 - np.abs(poles) if discrete else -poles.real


def _outwards(pole: complex, discrete: bool) -> complex:
    """Return the outward normal of the boundary next to a pole."""
    return 1.0 + 0j if not discrete or pole == 0 else pole / abs(pole)


def _outwards(pole: complex, discrete: bool) -> complex:
    """Return the outward normal of the boundary next to a pole."""
    return pole / abs(pole) if discrete and pole != 0 else 1.0 + 0j


def _bars(A: Array, T: Array, poles: Array, discrete: bool) -> tuple[Array, Array]:
    """Refine the poles in doubt, in place; return the bar of every pole, and which were refined."""
    from .triangular import flipped

    size = float(np.linalg.norm(A))
    backward = BACKWARD * EPS * size
    error = np.full(len(poles), backward)
    refined = np.zeros(len(poles), bool)
    doubtful = np.flatnonzero(_doubtful(poles, discrete, size))
    if A.dtype.kind == "f":
        doubtful = doubtful[poles[doubtful].imag >= 0]  # the others are conjugates, one place below
    if doubtful.size == 0:
        return error, refined
    T, dual = np.ascontiguousarray(T), flipped(T)
    found, bar = poles.copy(), error.copy()
    for i in doubtful:
        margin = float(_margin(poles[i : i + 1], discrete)[0])
        distance = max(abs(margin), backward)
        step = np.copysign(distance, margin) * _outwards(poles[i], discrete)
        # sigma_min at the weaker link between the pole and the boundary, as the bar of a pole with that condition
        link = max(_smallest_singular_value(T, dual, poles[i] + share * step) for share in (0.5, 1.0))
        error[i] = bar[i] = backward * distance / link if link else np.inf
        if error[i] >= distance:
            found[i], bar[i] = _refine(A, poles[i])
            refined[i] = bar[i] < error[i] and abs(found[i] - poles[i]) <= error[i]
        if A.dtype.kind == "f" and poles[i].imag > 0:
            found[i + 1], bar[i + 1] = found[i].conj(), bar[i]
            error[i + 1], refined[i + 1] = error[i], refined[i]
    # Two poles that were refined to the same one tell that iterations strayed: neither counts.
    near = np.abs(found[:, None] - found) <= bar[:, None] + np.where(refined, bar, 0.0)
    refined &= ~(near & ~np.eye(len(poles), dtype=bool)).any(axis=1)
    poles[refined], error[refined] = found[refined], bar[refined]
    return error, refined


def _doubtful(poles: Array, discrete: bool, size: float) -> Array:
    """Tell which poles rounding might carry across the boundary: a cheap screen that errs on the side of doubt.

    ``sigma_min(A - b I) / |A|`` is at least about the product of ``|lam_j - b| / |A|`` over the poles near b. Rounding
    that joins more than two poles to the boundary puts some of them on the far side, as roots of a perturbation do.
    So three poles are enough for a product, but next to poles beyond the boundary all count that they can be joined to.
    """
    margin = _margin(poles, discrete)
    outwards = np.array([_outwards(pole, discrete) for pole in poles])
    boundary = poles + margin * outwards
    ratio = np.abs(poles - boundary[:, None]) / size if size else np.zeros((len(poles), len(poles)))
    nearest = np.sort(np.partition(ratio, min(2, len(poles) - 1), axis=1)[:, :3], axis=1)
    doubt = np.cumprod(nearest, axis=1).min(axis=1) <= DOUBT
    beyond = np.flatnonzero((margin < 0) | doubt)
    if beyond.size and not doubt.all():
        reach = REACH * np.abs(margin[beyond]) / size
        radius = np.max(np.where(reach >= ratio[beyond].T, reach, 0.0), axis=1)
        doubt |= (radius > 0) & (np.prod(np.where(ratio <= radius[:, None], ratio, 1.0), axis=1) <= DOUBT)
    return doubt


def _smallest_singular_value(T: Array, dual: Array, z: complex) -> float:
    """Estimate the least singular value of ``T - z I`` from above by inverse iteration."""
    from .triangular import solve_sylvester

    def shifted(z: complex) -> Array:  # the M of T X + X M^H = T X - X [[re, im], [-im, re]]: X holds Re x and Im x
        if T.dtype.kind == "c":
            return np.array([[-np.conj(z)]])
        return -np.array([[z.real, -z.imag], [z.imag, z.real]]) if z.imag else np.array([[-z.real]])

    direct, adjoint = shifted(z), shifted(np.conj(z))
    x = np.random.default_rng(0).standard_normal((len(T), len(direct))).astype(T.dtype)
    growth = np.inf
    with np.errstate(all="ignore"):
        for _ in range(INVERSE_ITERATIONS):
            for matrix, shift in ((T, direct), (dual, adjoint)):
                x = np.ascontiguousarray(x[::-1]) / np.linalg.norm(x)  # rows of the dual run backwards
                solve_sylvester(matrix, shift, x)
                growth = float(np.linalg.norm(x))
                if not np.isfinite(growth):
                    return 0.0
    return 1.0 / growth


def _refine(A: Array, pole: complex) -> tuple[complex, float]:
    """Iterate a pole and its eigenvectors with A itself; return it with its componentwise bar."""
    size = np.abs(A)
    tiny = EPS**2 * float(size.max())  # no pole is told from zero below this: stiff systems have it at 1e-16 |A|
    x, y = np.random.default_rng(0).standard_normal((2, len(A))).astype(np.complex128)
    with np.errstate(all="ignore"):
        for _ in range(INVERSE_ITERATIONS):
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
