"""Slow twins and oracles of the Lyapunov solvers: the residual, and Gramians in mpmath."""

from __future__ import annotations

import mpmath
import numpy as np


def lyapunov_residual(A: np.ndarray, X: np.ndarray, Q: np.ndarray, discrete: bool) -> float:
    """Return the norm of ``A X + X A^H + Q``, or ``A X A^H - X + Q``, over that of its largest term."""
    if discrete:
        left = A @ X @ A.conj().T - X + Q
        size = np.linalg.norm(X) * max(1.0, np.linalg.norm(A) ** 2)
    else:
        left = A @ X + X @ A.conj().T + Q
        size = 2 * np.linalg.norm(X) * np.linalg.norm(A)
    size = max(size, np.linalg.norm(Q))
    return float(np.linalg.norm(left) / size) if size else 0.0


def gramian_by_doubling(A: np.ndarray, F: np.ndarray, discrete: bool) -> np.ndarray:
    """Sum ``A^k F F^H (A^H)^k`` by doubling (squared Smith iteration), a continuous pair after its bilinear map."""
    if not discrete:
        n, s = len(A), np.sqrt(np.linalg.norm(A, 1) / np.linalg.norm(np.linalg.inv(A), 1))  # amid the eigenvalues
        mapped = np.linalg.solve(s * np.eye(n) - A, np.hstack([s * np.eye(n) + A, np.sqrt(2 * s) * F]))
        A, F = mapped[:, :n], mapped[:, n:]
    P = F @ F.conj().T
    while np.linalg.norm(A) > 1e-20:
        P, A = P + A @ P @ A.conj().T, A @ A
    return P


def exact_gramian(A: np.ndarray, F: np.ndarray, discrete: bool, digits: int = 60) -> mpmath.matrix:
    """Solve the Lyapunov equation with ``Q = F F^H`` as one linear system in `digits` decimal digits."""
    n = len(A)
    with mpmath.workdps(digits):
        a, f = mpmath.matrix(A.tolist()), mpmath.matrix(F.tolist())
        q = f * f.H
        rows, right = mpmath.zeros(n * n), mpmath.zeros(n * n, 1)
        for i in range(n):
            for j in range(n):
                right[i * n + j] = -q[i, j]
                for k in range(n):
                    if not discrete:
                        rows[i * n + j, k * n + j] += a[i, k]
                        rows[i * n + j, i * n + k] += mpmath.conj(a[j, k])
                        continue
                    for l in range(n):
                        rows[i * n + j, k * n + l] = a[i, k] * mpmath.conj(a[j, l])
                if discrete:
                    rows[i * n + j, i * n + j] -= 1
        x = mpmath.lu_solve(rows, right)
        return mpmath.matrix([[x[i * n + j] for j in range(n)] for i in range(n)])


def exact_factor_singular_values(A: np.ndarray, F: np.ndarray, discrete: bool, digits: int = 60) -> np.ndarray:
    """Return the singular values of any factor of the Gramian of a real pair: the roots of its eigenvalues."""
    with mpmath.workdps(digits):
        values = mpmath.eigsy(exact_gramian(A, F, discrete, digits), eigvals_only=True)
        return np.array(sorted((float(mpmath.sqrt(v)) for v in values), reverse=True))
