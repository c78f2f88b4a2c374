"""Riccati equations whose solutions come as factors, ``P = S S^H``.

With the weights ``Q, N, R`` both kinds are, in continuous and in discrete time,

    A P + P A^H + Q - (P C^H + N) R^-1 (P C^H + N)^H = 0,
    A P A^H - P + Q - (A P C^H + N) (R + C P C^H)^-1 (A P C^H + N)^H = 0.

The stabilising solution, for which ``A + K C`` is stable with the gain K below, comes from a deflating subspace, is
corrected by Newton's method, and satisfies a Lyapunov equation with a semidefinite right side: Hammarling's method
makes a factor of that, so that no root of a small number is taken and small values keep their digits.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg as sla

from ..checks import EPS, Array
from ..errors import NumericalError
from .equations import lyapunov_solution, of_one_kind
from .schur import ordered_schur
from .triangular import gramian_factor

# Newton steps at most; from the solution of an eigenproblem one or two reach the rounding of the residual.
STEPS = 6
# A solution whose residual is above this share of its terms is none.
UNSOLVED = 1e-7
# Entries beyond this have fourth powers that overflow, which norms of their squares take.
LARGEST = 1e75


def check_squares(*arrays: Array) -> None:
    """Raise `NumericalError` where the coefficients of a Riccati equation, squares of these arrays, would overflow.

    Parameters
    ----------
    *arrays : ndarray
        Matrices of a system.

    Examples
    --------
    >>> import numpy as np
    >>> check_squares(np.ones((2, 2)))
    """
    largest = max((float(np.abs(x).max(initial=0.0)) for x in arrays), default=0.0)
    if not largest < LARGEST:
        raise NumericalError(
            f"Entries of A, B, C and D, and gains, must be below {LARGEST:g} for a Riccati equation; got "
            f"{largest:.3g}. Scale inputs, outputs or time."
        )


class RiccatiFactor(NamedTuple):
    """A factor S of the solution, the gain K and the weight in its middle.

    `nearby` is the factor of data that differ in their last digits: what S does not share with it is rounding.
    """

    S: Array
    K: Array
    middle: Array
    nearby: Array


def filter_factor(A: Array, B: Array, C: Array, D: Array, discrete: bool) -> RiccatiFactor:
    """Solve for the error covariance of the Kalman filter with unit noise in states (through B, D) and in outputs.

    ``Q = B B^H``, ``N = B D^H``, ``R = I + D D^H``, any A without undetectable or marginal uncontrollable modes. The
    covariance is that of ``A + K C`` under the noise ``[B + K D, K]``.

    Parameters
    ----------
    A, B, C, D : (n, n), (n, m), (p, n) and (p, m) ndarray
        The system.
    discrete : bool
        Which equation.

    Returns
    -------
    RiccatiFactor
        With ``K = -(P C^H + N) R^-1``, or ``-(A P C^H + N) (R + C P C^H)^-1``, and that weight.

    Raises
    ------
    NumericalError
        If there is no stabilising solution.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.ones((1, 1))
    >>> found = filter_factor(one, one, one, 0 * one, discrete=False)  # 2 P + 1 - P^2 = 0
    >>> print(f"{found.S[0, 0] ** 2:.6f}")
    2.414214
    """
    A, B, C, D = of_one_kind(A, B, C, D)
    Q, N, R = B @ B.conj().T, B @ D.conj().T, np.eye(len(C)) + D @ D.conj().T
    P = _refined(_stabilising(A, C, Q, N, R, discrete), A, C, Q, N, R, discrete)
    K = _gain(P, A, C, N, R, discrete)[0]
    S, nearby = (  # Kleinman's step, in factors
        covariance_factor(a + K @ c, np.hstack([b + K @ d, K]), discrete)
        for a, b, c, d in ((A, B, C, D), in_last_digits(A, B, C, D))
    )
    K, middle = _gain(S @ S.conj().T, A, C, N, R, discrete)
    return RiccatiFactor(S, K, middle, nearby)


def coprime_factors(
    A: Array, B: Array, C: Array, D: Array, K: Array, middle: Array
) -> tuple[Array, Array, Array, Array]:
    """Return left coprime factors of a system, ``[N, M]`` with ``G = M^-1 N``; normalised in continuous time.

    Parameters
    ----------
    A, B, C, D : (n, n), (n, m), (p, n) and (p, m) ndarray
        The system.
    K, middle : (n, p) and (p, p) ndarray
        From `filter_factor`.

    Returns
    -------
    A, B, C, D : ndarray
        Of the factors, with m + p inputs.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.ones((1, 1))
    >>> print(coprime_factors(0 * one, one, one, 0 * one, -one, one))  # 1 / s = (s / (s + 1))^-1 (1 / (s + 1))
    (array([[-1.]]), array([[ 1., -1.]]), array([[1.]]), array([[0., 1.]]))
    """
    root = np.linalg.cholesky(middle)
    outputs = np.linalg.solve(root, C), np.linalg.solve(root, np.hstack([D, np.eye(len(D))]))
    return A + K @ C, np.hstack([B + K @ D, K]), *outputs


def passive_factor(A: Array, F: Array, C: Array, N: Array, R: Array, discrete: bool) -> RiccatiFactor:
    """Solve for the least storage of a system that takes more than it gives; A is stable and R positive definite.

    ``Q = F F^H`` and ``-R`` in the place of R: ``A P + P A^H + F F^H + (P C^H + N) R^-1 (P C^H + N)^H = 0``, and
    ``R - C P C^H`` in the middle in discrete time. P is the Gramian of ``(A, [F, K middle^1/2])``.

    Parameters
    ----------
    A, F, C, N, R : (n, n), (n, m), (p, n), (n, p) and (p, p) ndarray
        Coefficients.
    discrete : bool
        Which equation.

    Returns
    -------
    RiccatiFactor
        With ``K = (P C^H + N) R^-1``, or ``(A P C^H + N) (R - C P C^H)^-1``, and that weight.

    Raises
    ------
    NumericalError
        If there is no stabilising solution.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.ones((1, 1))
    >>> found = passive_factor(-one, one, one, 0 * one, 4 * one, discrete=False)  # P^2 / 4 - 2 P + 1 = 0
    >>> print(f"{found.S[0, 0] ** 2:.6f}")
    0.535898
    """
    A, F, C, N, R = of_one_kind(A, F, C, N, R)
    Q = F @ F.conj().T
    P = _refined(_stabilising(A, C, Q, N, -R, discrete), A, C, Q, N, -R, discrete)
    K, middle, S = _stored(P, A, F, C, N, R, discrete)
    a, f, c, n = in_last_digits(A, F, C, N)
    step = _newton(P, a, c, f @ f.conj().T, n, -R, discrete)[0]
    return RiccatiFactor(S, K, middle, _stored(P if step is None else P + step, a, f, c, n, R, discrete)[2])


def _stored(P: Array, A: Array, F: Array, C: Array, N: Array, R: Array, discrete: bool) -> tuple[Array, Array, Array]:
    """Return gain, middle and factor of the least storage."""
    K, middle = _gain(P, A, C, N, -R, discrete)
    try:
        root = sla.cholesky(-middle, lower=True) if len(C) else middle
    except sla.LinAlgError as error:
        raise NumericalError("R - C P C^H must be positive definite; got one that is not.") from error
    return K, -middle, covariance_factor(A, np.hstack([F, K @ root]), discrete)


def in_last_digits(*arrays: Array, unit: float = EPS) -> list[Array]:
    """Return arrays that differ from these in their last digits, the same ones each time.

    Parameters
    ----------
    *arrays : ndarray
        Data in double precision.
    unit : float, optional
        Relative size of a last digit; that of double precision by default.

    Returns
    -------
    list of ndarray
        Each entry larger or smaller by one rounding unit.

    Examples
    --------
    >>> import numpy as np
    >>> float(abs(in_last_digits(np.ones(3))[0] - 1.0).max()) < 3e-16
    True
    """
    rng = np.random.default_rng(0)
    return [x * (1.0 + unit * rng.choice([-1.0, 1.0], x.shape)) for x in arrays]


def _stabilising(A: Array, C: Array, Q: Array, N: Array, R: Array, discrete: bool) -> Array:
    """Return the stabilising solution to some digits, found in units of outputs and of P that make all terms alike."""
    if min(C.shape) == 0:
        return lyapunov_solution(A, Q, discrete)
    weight, seen, noise, cross = (float(np.abs(x).max(initial=0.0)) for x in (R, C, Q, N))  # norms may overflow
    output = np.sqrt(weight) or 1.0
    unit = (max(cross, output * np.sqrt(noise)) / seen if seen else 0.0) or 1.0
    C, N = C * (np.sqrt(unit) / output), N / (np.sqrt(unit) * output)
    return unit * _of_pencil(A, C, Q / unit, N, R / output**2, discrete)


def _of_pencil(A: Array, C: Array, Q: Array, N: Array, R: Array, discrete: bool) -> Array:
    """Return the stabilising solution from a deflating subspace."""
    n, p = len(A), len(C)
    Ah, Ch, Nh, zero = A.conj().T, C.conj().T, N.conj().T, np.zeros
    if discrete:  # rows of states, costates, outputs; the deflating subspace is that of [I; P]
        M = np.block([[Ah, zero((n, n)), Ch], [-Q, np.eye(n), -N], [Nh, zero((p, n)), R]])
        L = np.block([[np.eye(n), zero((n, n))], [zero((n, n)), A], [zero((p, n)), -C]])
    else:
        M = np.block([[Ah, zero((n, n)), Ch], [-Q, -A, -N], [Nh, C, R]])
        L = np.vstack([np.eye(2 * n), zero((p, 2 * n))])
    rest = sla.qr(M[:, 2 * n :])[0][:, p:].conj().T
    with np.errstate(all="ignore"):
        try:
            Z = _stable_subspace(rest @ M[:, : 2 * n], rest @ L, discrete)
            P = np.linalg.solve(Z[:n, :n].conj().T, Z[n:, :n].conj().T).conj().T
        except np.linalg.LinAlgError as error:
            raise NumericalError("The Riccati equation must have a finite solution; got an infinite one.") from error
        except ValueError as error:  # eigenvalues on both sides of the boundary are too near to be told apart
            raise NumericalError("The Riccati equation must have a stabilising solution; got none.") from error
    if not np.isfinite(P).all():
        raise NumericalError("The Riccati equation must have a finite solution; got an infinite one.")
    return np.asarray((P + P.conj().T) / 2)


def _stable_subspace(M: Array, L: Array, discrete: bool) -> Array:
    """Return the vectors of an ordered Schur form of a pencil, those of the stable eigenvalues first.

    Where rounding spoils the exchange of two eigenvalues it may not spoil that of their reciprocals.
    """
    ordqz: Any = sla.ordqz  # its types want the kind of output written out
    kind = "complex" if M.dtype.kind == "c" else "real"
    with suppress(ValueError):
        return np.asarray(ordqz(M, L, sort="iuc" if discrete else "lhp", output=kind)[-1])
    return np.asarray(ordqz(L, M, sort="ouc" if discrete else "lhp", output=kind)[-1])


def _gain(P: Array, A: Array, C: Array, N: Array, R: Array, discrete: bool) -> tuple[Array, Array]:
    """Return K and the weight in the middle."""
    cross = P @ C.conj().T
    middle = R + C @ cross if discrete else R
    cross = (A @ cross if discrete else cross) + N
    try:
        return -np.linalg.solve(middle, cross.conj().T).conj().T, (middle + middle.conj().T) / 2
    except np.linalg.LinAlgError as error:
        raise NumericalError("The weight in the middle must be regular; got a singular one.") from error


def _refined(P: Array, A: Array, C: Array, Q: Array, N: Array, R: Array, discrete: bool) -> Array:
    """Return the solution after Newton's steps, for as long as they lessen the residual."""
    best, error = P, np.inf
    for _ in range(STEPS):
        step, now = _newton(P, A, C, Q, N, R, discrete)
        if not now < error / 2:
            break
        best, error = P, now
        if step is None or error <= EPS:
            break
        P = P + step
    if not error <= UNSOLVED:
        raise NumericalError(f"The Riccati equation must have a stabilising solution; got a residual of {error:.1g}.")
    return best


def _newton(P: Array, A: Array, C: Array, Q: Array, N: Array, R: Array, discrete: bool) -> tuple[Array | None, float]:
    """Return Newton's step from P, none where the closed loop is on the boundary, and the relative residual of P."""
    K, middle = _gain(P, A, C, N, R, discrete)
    terms = [A @ P @ A.conj().T, -P] if discrete else [A @ P, P @ A.conj().T]
    terms += [Q, -K @ middle @ K.conj().T]
    residual, size = sum(terms), sum(float(np.linalg.norm(term)) for term in terms)
    try:
        step = lyapunov_solution(A + K @ C, (residual + residual.conj().T) / 2, discrete)
    except NumericalError:
        step = None
    return step, float(np.linalg.norm(residual)) / size if size else 0.0


def covariance_factor(A: Array, F: Array, discrete: bool) -> Array:
    """Compute a factor of the covariance of stable states under white noise through F.

    Parameters
    ----------
    A, F : (n, n) and (n, m) ndarray
        States and inputs.
    discrete : bool
        Whether the Lyapunov equation is that of discrete time.

    Returns
    -------
    (n, n) ndarray
        S with ``P = S S^H``.

    Raises
    ------
    NumericalError
        If A is not stable.

    Examples
    --------
    >>> import numpy as np
    >>> S = covariance_factor(np.array([[-2.0]]), np.array([[2.0]]), discrete=False)
    >>> print(f"{S[0, 0]:.1f}")
    1.0
    """
    form = ordered_schur(A, discrete, None)
    size = np.abs(form.poles) - 1.0 if discrete else form.poles.real
    if np.any(size >= 0):
        raise NumericalError(
            f"The Riccati equation must have a stabilising solution; got a pole at {form.poles[0]:.6g}."
        )
    T, Z, F = of_one_kind(form.T, form.Z, F)
    return np.asarray(Z @ gramian_factor(T, np.ascontiguousarray(Z.conj().T @ F), discrete))
