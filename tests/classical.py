"""Random systems of the tests of classical reductions, and errors on a grid of frequencies, computed plainly."""

from __future__ import annotations

from typing import Any

import numpy as np

import hankelred as hr

KINDS = ("real", "complex")
DOMAINS = (0, True)


def drawn(
    seed: int, dt: Any, unstable: bool = False, square: bool = False, states: int = 8
) -> tuple[Any, hr.StateSpace]:
    """Return a generator and a system of 2 to `states` states with feedthrough, complex for every second seed."""
    rng = np.random.default_rng([20, seed])
    n, m, p = (int(rng.integers(low, high)) for low, high in ((2, states + 1), (1, 4), (1, 4)))
    p = m if square else p

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if seed % 2 else 0.0)

    A = draw(n, n)
    poles = np.linalg.eigvals(A)
    if dt:
        A = A / np.abs(poles).max() * (1.2 if unstable else rng.uniform(0.5, 0.99))
    else:
        A = A - (poles.real.max() - (0.5 if unstable else -rng.uniform(0.02, 1.0))) * np.eye(n)
    return rng, hr.StateSpace(A, draw(n, m), draw(p, n), draw(p, m) * rng.uniform(0.1, 1.0), dt=dt)


def at_gain(G: hr.StateSpace, gain: float) -> hr.StateSpace:
    """Return a multiple of a system, its inputs and outputs in other units by the same factor."""
    return G.with_(B=G.B * np.sqrt(gain), C=G.C * np.sqrt(gain), D=G.D * gain)


def in_other_units(G: hr.StateSpace, seed: int = 0) -> hr.StateSpace:
    """Return the same system with its states in units from 1e-4 to 1e4, in another order."""
    rng = np.random.default_rng(seed)
    d, order = 10.0 ** rng.uniform(-4, 4, G.n), rng.permutation(G.n)
    A, B, C = G.A * d / d[:, None], G.B / d[:, None], G.C * d
    return hr.StateSpace(A[np.ix_(order, order)], B[order], C[:, order], G.D, dt=G.dt)


def grid(dt: Any, points: int = 200) -> np.ndarray:
    """Return frequencies of both signs."""
    if dt:
        return np.linspace(-np.pi, np.pi, 2 * points + 1)
    positive = np.geomspace(1e-3, 1e3, points)
    return np.concatenate([-positive[::-1], [0.0], positive])


def adjoint(x: np.ndarray) -> np.ndarray:
    return x.conj().swapaxes(-1, -2)


def relative_error(G: Any, H: Any, beta: float = 0.0) -> float:
    """Return the largest ``|(G G^H + beta^2)^-1/2 (G - H)|``, from the other side where there are more outputs."""
    g, h = (x.frequency_response(grid(G.dt)) for x in (G, H))
    if beta == 0 and G.p > G.m:
        g, h = adjoint(g), adjoint(h)
    U, gains, _ = np.linalg.svd(g)
    gains = np.pad(gains, ((0, 0), (0, g.shape[1] - gains.shape[1])))
    return float(np.linalg.norm(adjoint(U) @ (g - h) / np.hypot(gains, beta)[:, :, None], 2, axis=(1, 2)).max())


def chordal_distance(G: Any, H: Any) -> float:
    """Return the largest ``|(1 + H H^H)^-1/2 (G - H) (1 + G^H G)^-1/2|``, which is no more than the gap."""
    g, h = (x.frequency_response(grid(G.dt)) for x in (G, H))
    left, right = (np.linalg.svd(x) for x in (h, g))  # a Cholesky factor of 1 + G^H G has lost the 1 beside large gains
    half = adjoint(left[0]) @ (g - h) @ adjoint(right[2])
    count = min(G.p, G.m)
    half[:, :count] /= np.hypot(1.0, left[1])[:, :, None]
    half[:, :, :count] /= np.hypot(1.0, right[1])[:, None]
    return float(np.linalg.norm(half, 2, axis=(1, 2)).max())


def least_resistance(G: Any) -> float:
    """Return the least eigenvalue of ``G + G^H`` on the grid."""
    g = G.frequency_response(grid(G.dt))
    return float(np.linalg.eigvalsh(g + adjoint(g)).min())


def passive(seed: int, dt: Any) -> hr.StateSpace:
    """Return a passive system: a damped network in continuous time, and a random one with enough resistance."""
    rng, G = drawn(seed, dt, square=True)
    if dt or seed % 4 < 2:
        return G.with_(D=G.D * 0 + 1.001 * hr.hinf_norm(G.with_(D=0 * G.D)) * np.eye(G.m))
    losses = np.diag(rng.uniform(0.01, 1.0, G.n))
    return G.with_(A=G.A - G.A.conj().T - losses, C=G.B.conj().T, D=rng.uniform(0.1, 1.0) * np.eye(G.m))
