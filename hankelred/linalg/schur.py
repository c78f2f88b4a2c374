"""Units of the states, the ordered Schur form, and its decoupling: arrays in, arrays out.

The unstable and marginal poles of a form come first; `marginality` says which poles are marginal.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg as sla
from scipy.linalg import lapack

from ..checks import EPS, Array, check_result
from ..errors import NumericalError
from .hankel_svd import kernels, norm_estimate
from .hessenberg import HessenbergForm
from .marginality import BACKWARD, CLEAR, error_bars
from .triangular import (
    LEAF,
    flipped,
    leaves,
    schur_eigenvalues,
    solve_hermitian_stein,
    solve_hermitian_sylvester,
    solve_sylvester,
)

# Added to the diagonal of a Laplacian, which is singular, one constant for each part that hangs together.
RIDGE = 1e-6
# States are sorted where the sizes of their rows and columns differ by more than this factor. Sorting leaves a tenth of
# the error in poles of RC ladders, and a thousandth where rates of a full matrix spread over 12 decades.
GRADED = 1e3
# Up to this size all eigenvalues cost less than power steps.
TINY = 12
# Columns that LAPACK's Hessenberg reduction takes at once.
BLOCK = 32


class Units(NamedTuple):
    """Units: ``x = W x_b`` with ``W = diag(w)[:, order]``, ``u = gain u_b``, ``y = gain y_b``; `given`: ``W = I``."""

    w: Array
    order: Array
    gain: float
    given: bool


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
        return Units(np.ones(0), np.arange(0), 1.0, True)
    gebal = lapack.zgebal if A.dtype.kind == "c" else lapack.dgebal
    start = _symmetric_units(A) if n > 2 and 2 * np.count_nonzero(A) <= n * (n + 1) else None
    balanced, _, _, w, _ = gebal(A if start is None else A * start / start[:, None], scale=1, permute=0)
    w = w if start is None else w * start
    size, spread, same, size_B, size_C = kernels.unit_sizes(balanced, w, *map(np.ascontiguousarray, (B, C)))
    check_result("The sizes of B and C", size_B, size_C, hint="Scale inputs and outputs.")
    graded = spread > GRADED
    order = np.argsort(-size, kind="stable") if graded else np.arange(n)
    gain = 2.0 ** round((math.log2(size_C) - math.log2(size_B)) / 2) if min(size_B, size_C) > 0 else 1.0
    return Units(w, order, gain, same and not graded)


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
    w, order, gain, given = units
    if not given:
        A, B, C = (A * w / w[:, None])[np.ix_(order, order)], (B / w[:, None])[order], (C * w)[:, order]
    return (A, B, C) if gain == 1.0 else (A, B * gain, C / gain)


def ordered_schur(
    A: Array, discrete: bool, offset: float | None = 0.0, begun: HessenbergForm | None = None
) -> SchurForm:
    """Compute a Schur form with the unstable and marginal poles first.

    Parameters
    ----------
    A : (n, n) ndarray
        State matrix in balanced units, float64 or complex128.
    discrete : bool
        Whether the boundary is the unit circle instead of the imaginary axis.
    offset : float or None
        Poles within this distance of the boundary are kept as well; with None no pole is kept, and none has an error.
    begun : HessenbergForm, optional
        That of A, where there is one already.

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
    n = len(A)
    if n == 0:
        return SchurForm(A, A, np.zeros(0, np.complex128), np.zeros(0), 0)
    T, Z, poles = _schur(A) if begun is None else begun.schur()
    if offset is None:
        return SchurForm(T, Z, poles, np.zeros(n), 0)
    lange: Any = lapack.zlange if A.dtype.kind == "c" else lapack.dlange
    margin, size = margins(poles, discrete), float(lange("F", A if A.flags.f_contiguous else A.T))  # A.T costs no copy
    if margin[margin.argmin()] > max(CLEAR * size, offset):
        return SchurForm(T, Z, poles, np.full(n, BACKWARD * EPS * size), 0)
    error, refined = error_bars(A, T, poles, margin, discrete)
    margin = margins(poles, discrete)
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
    if failed or (margins(poles[kept:], discrete) <= offset).any():
        raise NumericalError(
            f"The {kept} unstable and marginal poles must be apart from the other {n - kept}; got poles that move "
            f"across the boundary when they are reordered. Choose an offset that does not cut through a cluster."
        )
    return SchurForm(T, Z, poles, error, kept)


def margins(poles: Array, discrete: bool) -> Array:
    """Return the distances of poles from the boundary, negative beyond it."""
    return 1.0 - np.abs(poles) if discrete else -poles.real


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


def separated(T: Array, chosen: Array) -> tuple[Array, Array, Array]:
    """Reorder a Schur form and decouple some of its poles from the others.

    Parameters
    ----------
    T : (n, n) ndarray
        Upper (quasi-)triangular.
    chosen : (n,) bool ndarray
        Which poles come first; both or none of a conjugate pair of a real form.

    Returns
    -------
    T, Q : (n, n) ndarray
        The reordered form and ``given = Q T Q^H``.
    Y : (k, n - k) ndarray
        From `decouple`: ``Q1`` and ``Q1^H - Y Q2^H`` are bases of the poles chosen, ``Q2 + Q1 Y`` and ``Q2^H`` of the
        others.

    Raises
    ------
    NumericalError
        If both cannot be separated.

    Examples
    --------
    >>> import numpy as np
    >>> T, Q, Y = separated(np.array([[-1.0, 1.0], [0.0, -2.0]]), np.array([False, True]))
    >>> [f"{pole:.1f}" for pole in np.diagonal(T)]
    ['-2.0', '-1.0']
    """
    k, Q = int(np.count_nonzero(chosen)), np.eye(len(T), dtype=T.dtype)
    failed = 0
    if not chosen[:k].all():
        trsen = lapack.ztrsen if T.dtype.kind == "c" else lapack.dtrsen
        T, Q, *_, failed = trsen(chosen, T, Q, job="N")
    if failed:
        raise NumericalError(f"The {k} poles chosen must be apart from the others; got some that are too near.")
    return T, Q, decouple(T, k)


def rounding_norms(whole: Array, T: Array, S: Array, R: Array, discrete: bool) -> tuple[float, float, float]:
    """Return ``|S| |R|``, the norm of a whole Schur form, and `inverse_norm` of its stable part T."""
    if len(whole) <= LEAF and min(S.size, R.size) > 0:
        arrays = (np.ascontiguousarray(x) for x in (whole, T, S, R.T))
        return leaves.norms_leaf(*arrays, discrete, len(T) <= TINY)
    return norm_estimate(S) * norm_estimate(R), norm_estimate(whole), inverse_norm(T, discrete)


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
    n = len(T)
    if n == 0:
        return 0.0
    if n <= LEAF:
        return float(leaves.inverse_norm_leaf(np.ascontiguousarray(T), discrete, n <= TINY))
    X = np.zeros((n, n), dtype=T.dtype)
    X.flat[:: n + 1] = 1.0 if discrete else -1.0
    (solve_hermitian_stein if discrete else solve_hermitian_sylvester)(T, X)
    return norm_estimate(X)


def _schur(A: Array) -> tuple[Array, Array, Array]:
    """Return T, Z and eigenvalues straight from LAPACK: SciPy's checks take longer than the work on a few states."""
    gees = lapack.zgees if A.dtype.kind == "c" else lapack.dgees
    T, _, *poles, Z, _, info = gees(lambda *_: None, A, lwork=(BLOCK + 1) * len(A))
    if info:
        raise NumericalError(f"The Schur form of A {A.shape} must converge; got info={info} of LAPACK. Rescale A.")
    return T, Z, poles[0] if len(poles) == 1 else poles[0] + 1j * poles[1]


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
