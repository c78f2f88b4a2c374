"""Random systems for property tests: conditioning is bounded, so that a failure means a bug."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from hankelred import DiagonalSystem, StateSpace, hankel_norm, testing

time_steps = st.sampled_from([0, 0.1, True])
seeds = st.integers(0, 2**32 - 1)


def random_stable(rng: np.random.Generator, n: int, dt: object, complex_data: bool) -> np.ndarray:
    """Draw a dense stable matrix: eigenvalues by choice, eigenvectors at most mildly ill conditioned."""
    A = _normal(rng, (n, n), complex_data) / np.sqrt(max(n, 1))
    poles = np.linalg.eigvals(A) if n else np.zeros(0)
    if dt == 0 and dt is not True:
        return A - (max(poles.real.max(initial=-1.0), -1.0) + 0.05 + rng.random()) * np.eye(n)
    return A * (0.5 + 0.45 * rng.random()) / max(abs(poles).max(initial=0.0), 1e-3)


@st.composite
def state_spaces(draw: st.DrawFn, max_states: int = 8, min_states: int = 1) -> StateSpace:
    """Draw a stable dense system, real or complex, in either time domain."""
    rng, dt, complex_data = np.random.default_rng(draw(seeds)), draw(time_steps), draw(st.booleans())
    n, m, p = draw(st.integers(min_states, max_states)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    A = random_stable(rng, n, dt, complex_data)
    B, C, D = (_normal(rng, shape, complex_data) for shape in [(n, m), (p, n), (p, m)])
    return StateSpace(A, B, C, D, dt)


@st.composite
def diagonal_systems(
    draw: st.DrawFn, max_states: int = 8, outputs: tuple[str, ...] = ("complex", "real")
) -> DiagonalSystem:
    """Draw a stable diagonal system: values or rates, real or complex, both outputs."""
    rng, dt = np.random.default_rng(draw(seeds)), draw(time_steps)
    output, complex_data = draw(st.sampled_from(outputs)), draw(st.booleans())
    n, m, p = draw(st.integers(1, max_states)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    decay = 10 ** rng.uniform(-2, 0.5, n)
    rates = -decay + 1j * rng.uniform(-np.pi, np.pi, n) if complex_data else -decay
    B, C = _normal(rng, (n, m), complex_data), _normal(rng, (p, n), complex_data)
    D = _normal(rng, (p, m), complex_data and output == "complex")
    if dt == 0 and dt is not True:
        return DiagonalSystem(rates, B, C, D, dt=dt, output=output)
    if draw(st.booleans()):
        return DiagonalSystem.from_rates(rates, B, C, D, dt=dt, output=output)
    return DiagonalSystem(np.exp(rates), B, C, D, dt=dt, output=output)


def systems(max_states: int = 8) -> st.SearchStrategy:
    """Draw either kind of stable system: generic numbers, or small whole ones, among which special cases are.

    Systems that pass nothing on, and those without feedthrough, are left to tests of their own.
    """
    simple = st.one_of(testing.stable_systems(max_states=max_states), testing.diagonal_systems(max_states=max_states))
    return st.one_of(
        state_spaces(max_states),
        diagonal_systems(max_states),
        simple.filter(lambda system: system.D.any() and hankel_norm(system) > 0),
    )


def _normal(rng: np.random.Generator, shape: tuple[int, ...], complex_data: bool) -> np.ndarray:
    x = rng.standard_normal(shape)
    return x + 1j * rng.standard_normal(shape) if complex_data else x
