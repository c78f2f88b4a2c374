"""Lyapunov equations with a dense matrix, in continuous and in discrete time.

``A X + X A^H + Q = 0`` for ``dt=0`` and ``A X A^H - X + Q = 0`` for every other `dt`. The solution itself comes
from `solve_lyapunov`; a factor S of it, ``P = S S^H``, which keeps twice as many digits of small quantities, from
`lyapunov_factor`. Both go through one Schur form of A in balanced units.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .checks import Array, check_array, check_dt, check_square, double, is_discrete
from .errors import InputError
from .hankel import unstable_error
from .linalg.equations import lyapunov_solution, of_one_kind
from .linalg.threads import one_blas_thread
from .parts import DenseParts
from .systems import StateSpace


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
        If the equation is singular to working precision, ``lam_i + conj(lam_j) = 0``, or ``lam_i conj(lam_j) = 1``
        in discrete time, for two eigenvalues of A; or the solution overflows.

    Notes
    -----
    Units of the states do not matter, and rates may lie twenty decades apart if the entries of A tell them: the
    residual is small next to ``|A| |X| + |X| |A|^H + |Q|`` in every entry (in those that are not small by the square
    of the working precision). An equation counts as singular where rounding A once changes the solution by a
    hundredth or more, and as solvable else, whatever its eigenvalues are.

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
        return lyapunov_solution(double(matrix), double(right), discrete).astype(dtype)


def lyapunov_factor(A: ArrayLike, F: ArrayLike, dt: Any = 0) -> Array:
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

    Returns
    -------
    (n, k) ndarray
        S, k at most n; float32 if `A` and `F` are, computed in double precision.

    Raises
    ------
    InputError
        If shapes disagree, an entry is not finite, or `dt` is None or negative.
    StabilityError
        If A is not stable.
    NumericalError
        If the Gramian overflows.

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
    dt = check_dt(dt)
    if len(factor) != len(matrix):
        raise InputError(f"F must have as many rows as A; got A {matrix.shape} and F {factor.shape}.")
    dtype = np.result_type(matrix, factor)
    A, F, C, D = of_one_kind(matrix, factor, np.zeros((0, len(matrix))), np.zeros((0, factor.shape[1])))
    with one_blas_thread(len(A)):
        parts = DenseParts(StateSpace.trusted(A, F, C, D, dt), 0.0)
        if parts.kept:
            raise unstable_error(parts.poles[: parts.kept], dt, "A")
        return parts.lift(*parts.factors)[0].astype(dtype)
