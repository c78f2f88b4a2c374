"""Lyapunov equations with a dense matrix, in continuous and in discrete time.

``A X + X A^H + Q = 0`` for ``dt=0`` and ``A X A^H - X + Q = 0`` for every other `dt`. The solution itself comes
from `solve_lyapunov`; a factor S of it, ``P = S S^H``, which keeps twice as many digits of small quantities, from
`lyapunov_factor`. All go through one Schur form.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg as sla
from numpy.typing import ArrayLike

from ._checks import Array, check_array, check_dt, check_square, check_stable, double, is_discrete
from ._hammarling import gramian_factor
from ._smith import doubled_factor
from ._threads import one_blas_thread
from ._triangular import (
    flipped,
    is_schur_form,
    schur_eigenvalues,
    solve_hermitian_stein,
    solve_hermitian_sylvester,
    solve_stein,
    solve_sylvester,
)
from .errors import InputError, NumericalError

METHODS = ("auto", "schur", "smith", "slycot")


def solve_lyapunov(A: ArrayLike, Q: ArrayLike, dt: Any = 0) -> Array:
    """Solve ``A X + X A^H + Q = 0``, or ``A X A^H - X + Q = 0`` in discrete time.

    Parameters
    ----------
    A : (n, n) array_like
        Real or complex; it need not be stable.
    Q : (n, n) array_like
        Right side; it need not be Hermitian.
    dt : float or bool, default 0
        0 for the continuous equation, a sampling time in seconds or True for the discrete one.

    Returns
    -------
    (n, n) ndarray
        X; exactly Hermitian if Q is. float32 if `A` and `Q` are, computed in double precision.

    Raises
    ------
    InputError
        If shapes disagree, an entry is not finite, or `dt` is None or negative.
    NumericalError
        If the equation is singular to working precision: ``lam_i + conj(lam_j) = 0``, or
        ``lam_i conj(lam_j) = 1`` in discrete time, for two eigenvalues of A.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> A = np.array([[-1.0, 2.0], [0.0, -3.0]])
    >>> X = hr.solve_lyapunov(A, np.eye(2))
    >>> residual = A @ X + X @ A.T + np.eye(2)
    >>> bool(np.linalg.norm(residual) < 1e-15 * np.linalg.norm(A) * np.linalg.norm(X))
    True
    """
    matrix, right = check_square(A), check_square(Q, "Q")
    discrete = is_discrete(check_dt(dt))
    if matrix.shape != right.shape:
        raise InputError(f"Q must have the shape of A; got A {matrix.shape} and Q {right.shape}.")
    dtype = np.result_type(matrix, right)
    with one_blas_thread(len(matrix)):
        return _solve(_double(matrix, dtype), _double(right, dtype), discrete).astype(dtype)


def lyapunov_factor(A: ArrayLike, F: ArrayLike, dt: Any = 0, method: str = "auto") -> Array:
    """Compute S with ``P = S S^H``, ``A P + P A^H + F F^H = 0`` or ``A P A^H - P + F F^H = 0``.

    P is never formed: small singular values of S keep the accuracy they have in the data, where a factor computed
    from P loses all below the square root of the working precision.

    Parameters
    ----------
    A : (n, n) array_like
        Stable, real or complex.
    F : (n, m) array_like
        Factor of the right side, of any width.
    dt : float or bool, default 0
        0 for the continuous equation, a sampling time in seconds or True for the discrete one.
    method : {"auto", "schur", "smith", "slycot"}, default "auto"
        "schur", which "auto" stands for, is the recursive blocked factor solver on a Schur form. "smith" sums by
        doubling and gives as many columns as the numerical rank: for many states, few inputs and fast decay.
        "slycot" asks SLICOT's routine SB03OD for a second opinion on real data.

    Returns
    -------
    (n, k) ndarray
        S, with k = n except for "smith"; float32 if `A` and `F` are, computed in double precision.

    Raises
    ------
    InputError
        If shapes disagree, an entry is not finite, or `dt` is None or negative.
    StabilityError
        If A is not stable.
    NumericalError
        If the Gramian overflows, or "smith" does not converge to working precision.

    References
    ----------
    .. [1] S. J. Hammarling, "Numerical solution of the stable, non-negative definite Lyapunov equation",
       IMA J. Numer. Anal. 2, 1982, pp. 303-323.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> A, F = np.array([[-1.0, 2.0], [0.0, -3.0]]), np.array([[1.0], [1.0]])
    >>> S = hr.lyapunov_factor(A, F)
    >>> P = S @ S.T
    >>> residual = A @ P + P @ A.T + F @ F.T
    >>> bool(np.linalg.norm(residual) < 1e-14 * np.linalg.norm(A) * np.linalg.norm(P))
    True
    """
    matrix, factor = check_square(A), check_array(F, "F", 2, "Write F[:, None] for one column.")
    check_dt(dt)
    if len(factor) != len(matrix):
        raise InputError(f"F must have as many rows as A; got A {matrix.shape} and F {factor.shape}.")
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    dtype = np.result_type(matrix, factor)
    wide = _double(matrix, dtype), _double(factor, dtype)
    with one_blas_thread(len(matrix)):
        if method == "smith":
            return _factor_by_doubling(*wide, dt).astype(dtype)
        if method == "slycot":
            return _factor_by_slycot(*wide, dt).astype(dtype)
        T, Z = _stable_schur(wide[0], dt)
        return _factor(T, Z, wide[1], is_discrete(dt)).astype(dtype)


def factor_pair(A: Array, B: Array, C: Array, dt: Any) -> tuple[Array, Array]:
    """Return the factors S and R of both Gramians, ``P = S S^H`` and ``Q = R^H R``, from one Schur form.

    Parameters
    ----------
    A, B, C : (n, n), (n, m) and (p, n) ndarray
        Checked matrices in double precision.
    dt : float or bool
        Checked sampling time.

    Returns
    -------
    S, R : (n, n) ndarray
        In the coordinates of A; real if all three matrices are.

    Raises
    ------
    StabilityError
        If A is not stable.
    """
    dtype = np.result_type(A, B, C)
    A, B, C = (_double(x, dtype) for x in (A, B, C))
    discrete = is_discrete(dt)
    with one_blas_thread(len(A)):
        T, Z = _stable_schur(A, dt)
        S = _factor(T, Z, B, discrete)
        # The dual system A^H, C^H has the Schur form J T^H J in the basis Z J, J the exchange matrix.
        J = slice(None, None, -1)
        if Z is None:
            R = _factor(flipped(T), None, C.conj().T[J], discrete)[J]
        else:
            R = _factor(flipped(T), Z[:, J], C.conj().T, discrete)
    return S, R.conj().T


def _solve(A: Array, Q: Array, discrete: bool) -> Array:
    """Return the solution of checked equations in double precision."""
    hermitian = np.array_equal(Q, Q.conj().T)
    T, Z = _schur(A)
    _check_regular(T, discrete)
    X = Q if Z is None else Z.conj().T @ Q @ Z
    if hermitian:
        X = (X + X.conj().T) / 2
    if discrete and hermitian:
        solve_hermitian_stein(T, X)
    elif discrete:
        solve_stein(T, T, X, np.zeros_like(X))
    elif hermitian:
        solve_hermitian_sylvester(T, X)
    else:
        solve_sylvester(T, T, X)
    if not discrete:
        X = -X
    if Z is not None:
        X = Z @ X @ Z.conj().T
    return (X + X.conj().T) / 2 if hermitian else X


def _double(x: Array, dtype: np.dtype[Any]) -> Array:
    """Return `x` in double precision, complex if `dtype` is."""
    return double(x).astype(np.complex128 if dtype.kind == "c" else np.float64, copy=False)


def _schur(A: Array) -> tuple[Array, Array | None]:
    """Return the Schur form ``A = Z T Z^H``, real if A is; Z is None, the identity, where A is one already."""
    if is_schur_form(A):
        return A.copy(), None  # a frozen A would make numba compile its kernels once more, for read-only arrays
    T, Z = sla.schur(A, output="complex" if A.dtype.kind == "c" else "real", check_finite=False)
    return T, Z


def _stable_schur(A: Array, dt: Any) -> tuple[Array, Array | None]:
    T, Z = _schur(A)
    check_stable(schur_eigenvalues(T), dt)
    return T, Z


def _factor(T: Array, Z: Array | None, F: Array, discrete: bool) -> Array:
    """Return the factor of the Gramian of ``Z T Z^H`` and F."""
    U = gramian_factor(T, F if Z is None else Z.conj().T @ F, discrete)
    if not np.isfinite(U).all():
        lam = schur_eigenvalues(T)
        margin = np.min(1 - np.abs(lam) if discrete else -lam.real)
        raise NumericalError(
            f"The Gramian must be finite in double precision; got overflow, with a pole {margin:.3g} from the "
            f"stability boundary. Split that pole off, or scale the states of A."
        )
    if Z is None:
        return U
    (trmm,) = sla.get_blas_funcs(("trmm",), (Z, U))
    S: Array = trmm(1.0, U.T, Z, side=1, lower=1, trans_a=1)  # Z U with U triangular; BLAS wants columns: U.T
    return S


def _factor_by_doubling(A: Array, F: Array, dt: Any) -> Array:
    if not F.any():
        check_stable(sla.eigvals(A), dt)
        return np.zeros((len(A), 0), dtype=A.dtype)
    try:
        return doubled_factor(A, F, is_discrete(dt))
    except np.linalg.LinAlgError:
        check_stable(sla.eigvals(A), dt)  # the likely reason
        raise


def _factor_by_slycot(A: Array, F: Array, dt: Any) -> Array:
    try:
        import slycot
    except ImportError as error:
        raise InputError(
            f'method="slycot" needs the package slycot; got {error}. Install hankelred[slycot], or use method="schur".'
        ) from error
    if A.dtype.kind == "c":
        raise InputError('method="slycot" takes real data; got complex data. Use method="schur".')
    check_stable(sla.eigvals(A), dt)  # SB03OD only warns, and returns F
    n = len(A)
    if F.size == 0:
        return np.zeros((n, n))
    if F.shape[1] > n:
        F = sla.qr(F.T, mode="r", check_finite=False)[0][:n].T
    padded = np.hstack([F, np.zeros((n, n - F.shape[1]))])  # the factor is returned in its place
    domain = "D" if is_discrete(dt) else "C"
    U, scale, _ = slycot.sb03od(n, F.shape[1], A.copy(), np.zeros((n, n)), padded, domain, trans="T")
    S: Array = U / scale
    return S


def _check_regular(T: Array, discrete: bool) -> None:
    """Raise `NumericalError` if two eigenvalues make the equation singular to working precision."""
    if len(T) == 0:
        return
    lam = schur_eigenvalues(T)
    eps = np.finfo(np.float64).eps
    if discrete:
        gap = np.abs(1 - lam[:, None] * lam.conj())
        floor = eps * max(1.0, np.abs(lam).max()) * max(1.0, np.linalg.norm(T, 1))
    else:
        gap = np.abs(lam[:, None] + lam.conj())
        floor = eps * np.linalg.norm(T, 1)
    i, j = np.unravel_index(np.argmin(gap), gap.shape)
    if gap[i, j] > floor:
        return
    law = "lam_i * conj(lam_j) = 1" if discrete else "lam_i + conj(lam_j) = 0"
    raise NumericalError(
        f"The Lyapunov equation must have no eigenvalues with {law}; got {lam[i]:.6g} and {lam[j]:.6g}. "
        f"Remove that part of A, or move it off the boundary."
    )
