"""Slow twins: the same mathematics done in the most direct way, for small systems."""

from __future__ import annotations

import numpy as np

from hankelred import DiagonalSystem, StateSpace


def dense(system: StateSpace | DiagonalSystem) -> StateSpace:
    """Return a system in standard dense form."""
    return system.dense()


def gramian_by_kronecker(A: np.ndarray, W: np.ndarray, dt: object) -> np.ndarray:
    """Solve ``A P + P A^H + W = 0`` or ``A P A^H - P + W = 0`` as one linear system in n^2 unknowns."""
    n, identity = len(A), np.eye(len(A))
    continuous = dt == 0 and dt is not True
    if continuous:
        operator = np.kron(A, identity) + np.kron(identity, A.conj())
    else:
        operator = np.kron(A, A.conj()) - np.eye(n * n)
    return np.linalg.solve(operator, -W.reshape(-1)).reshape(n, n)


def hsv_by_eigenvalues(system: StateSpace | DiagonalSystem) -> np.ndarray:
    """Return the square roots of the eigenvalues of P Q: the definition, with half of the digits."""
    G = dense(system)
    P = gramian_by_kronecker(G.A, G.B @ G.B.conj().T, G.dt)
    Q = gramian_by_kronecker(G.A.conj().T, G.C.conj().T @ G.C, G.dt)
    return np.sort(np.sqrt(np.maximum(np.linalg.eigvals(P @ Q).real, 0)))[::-1]


def transfer(system: StateSpace | DiagonalSystem, points: np.ndarray) -> np.ndarray:
    """Evaluate ``C (s I - A)^-1 B + D`` point by point."""
    G = dense(system)
    return np.array([G.C @ np.linalg.solve(s * np.eye(G.n) - G.A, G.B) + G.D for s in points])


def grid(system: StateSpace | DiagonalSystem, points: int = 200) -> np.ndarray:
    """Return frequencies that cover what a system does, of both signs, the poles' own included."""
    poles = system.poles()
    if system.is_discrete:
        step = 1.0 if system.dt is True else system.dt
        omega = np.concatenate([np.linspace(-np.pi, np.pi, points), np.angle(poles)])
        return omega / step
    omega = np.concatenate([np.geomspace(1e-3, 1e3, points), abs(poles.imag), [0.0]])
    return np.concatenate([-omega, omega])


def peak_gain_on_grid(G: StateSpace | DiagonalSystem, H: StateSpace | DiagonalSystem, points: int = 200) -> float:
    """Return the largest gain of ``G - H`` over a grid: a lower bound of the H-infinity error."""
    omega = grid(G, points)
    error = G.frequency_response(omega) - H.frequency_response(omega)
    return float(np.linalg.norm(error, ord=2, axis=(1, 2)).max())


def balanced_canonical_form(hsv: np.ndarray, signs: np.ndarray, gains: np.ndarray) -> StateSpace:
    """Build a continuous single-input system with prescribed distinct Hankel singular values.

    ``A_ij = -g_i g_j / (s_i s_j hsv_i + hsv_j)`` has both Gramians equal to ``diag(hsv)``.
    """
    A = -np.outer(gains, gains) / (np.outer(signs, signs) * hsv[:, None] + hsv[None, :])
    return StateSpace(A, gains[:, None], (signs * gains)[None, :])


def tustin(system: StateSpace, dt: float = 2.0) -> StateSpace:
    """Return the bilinear image of a continuous system: same Hankel singular values, same H-infinity norm."""
    identity = np.eye(system.n)
    half = system.A * dt / 2
    inverse = np.linalg.inv(identity - half)
    root = np.sqrt(dt)
    return StateSpace(
        inverse @ (identity + half),
        inverse @ system.B * root,
        system.C @ inverse * root,
        system.D + system.C @ inverse @ system.B * dt / 2,
        dt,
    )
