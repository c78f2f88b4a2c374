"""Gramian factors by doubling, without eigenvalues: for few inputs and Gramians of low numerical rank.

The Gramian of a discrete system is ``P = sum_k A^k F F^H (A^H)^k``. A factor of the first 2^j terms and the power
``A^(2^j)`` give those of twice as many: ``S <- [S, A^(2^j) S]`` (squared Smith iteration). A pivoted QR keeps as many
columns as the numerical rank asks for. A continuous system is mapped to a discrete one with the same Gramian first.

The work is in products and in those QR decompositions. It is less than that of a Schur form only where n is large,
the decay fast and the rank a small part of n, and twice as much where rates are spread over decades (measured: 0.9
of the time for 400 random states with two inputs, 1.4 for 200, 2.6 for 400 with rates over three decades). The rank
is not known in advance, hence no automatic choice ends here; what it is good for is its thin factor and that it shares
nothing with the solver on the Schur form.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg as sla

from ._checks import EPS, Array
from .errors import NumericalError

# After so many doublings a pole within 1e-9 of the unit circle has died away.
MOST_DOUBLINGS = 36
# Columns below this share of the largest are rounding.
NEGLIGIBLE = EPS / 16


def doubled_factor(A: Array, F: Array, discrete: bool) -> Array:
    """Return S, (n, rank), with ``P = S S^H``; A and F are in double precision and of one kind, F is not zero.

    Raises
    ------
    NumericalError
        If A is unstable or too close to it, or the result does not satisfy its equation to working precision.
    """
    power, S = (A, F) if discrete else _cayley(A, F)
    S = _compressed(S)
    for _ in range(MOST_DOUBLINGS):
        with np.errstate(over="ignore", invalid="ignore"):  # of powers of an unstable A
            step = power @ S
            size, left = sla.norm(power, check_finite=False), sla.norm(step, check_finite=False)
        if not (np.isfinite(size) and np.isfinite(left)):
            break
        if size < 1 and left <= NEGLIGIBLE * sla.norm(S):  # size < 1: every eigenvalue of A is stable
            _check_residual(A, S, F, discrete)
            return S
        S = np.hstack([S, step])
        if S.shape[1] > len(A) // 8:
            S = _compressed(S)
        with np.errstate(over="ignore", invalid="ignore"):
            power = power @ power
    raise NumericalError(
        f"Doubling must converge in {MOST_DOUBLINGS} steps; got a power of A of norm {size:.3g}: A is unstable or "
        f'close to it. Use method="schur".'
    )


def _cayley(A: Array, F: Array) -> tuple[Array, Array]:
    """Return the discrete pair ``(s - A)^-1 (s + A)``, ``sqrt(2 s) (s - A)^-1 F`` with the Gramian of (A, F).

    The point s > 0 is the geometric mean of the size of A and of its inverse, amid the eigenvalues.
    """
    s = np.sqrt(sla.norm(A, 1) / sla.norm(np.linalg.inv(A), 1))
    mapped = np.linalg.solve(s * np.eye(len(A)) - A, np.hstack([s * np.eye(len(A)) + A, np.sqrt(2 * s) * F]))
    return mapped[:, : len(A)], mapped[:, len(A) :]


def _compressed(S: Array) -> Array:
    """Return a factor of the same Gramian with as many columns as its numerical rank, of falling size."""
    triangle, pivots = sla.qr(S.conj().T, mode="r", pivoting=True, check_finite=False)
    triangle = triangle[: min(S.shape)]
    sizes = np.abs(np.diag(triangle))
    rank = int(np.sum(sizes > NEGLIGIBLE * sizes[0]))
    compressed = np.empty((len(S), rank), dtype=S.dtype)
    compressed[pivots] = triangle[:rank].conj().T
    return compressed


def _check_residual(A: Array, S: Array, F: Array, discrete: bool) -> None:
    """Raise `NumericalError` if ``P = S S^H`` misses its equation, tried on a few directions."""
    n = len(A)
    x = np.random.default_rng(0).standard_normal((n, 4))

    def P(y: Array) -> Array:
        return S @ (S.conj().T @ y)

    forced = F @ (F.conj().T @ x)
    largest, size = sla.norm(S, 2) ** 2 * sla.norm(x), sla.norm(A, 2)
    if discrete:
        residual, scale = A @ P(A.conj().T @ x) - P(x) + forced, largest * max(1.0, size**2)
    else:
        residual, scale = A @ P(x) + P(A.conj().T @ x) + forced, 2 * largest * size
    relative = sla.norm(residual) / scale
    if not relative <= 10 * n * EPS:
        raise NumericalError(
            f"The factor must satisfy its equation to {10 * n * EPS:.1g}; got a relative residual of {relative:.3g}: "
            f'the powers of A grow before they fall. Use method="schur".'
        )
