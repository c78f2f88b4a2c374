"""Minimal models of systems with unstable and marginal poles: what was hidden goes, what is linked stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg as sla
from classical import DOMAINS
from sizes import sample

import hankelred as hr
from hankelred.control import minreal

SEEDS = sample(range(400))
KINDS = ("chain", "oscillator", "unstable", "stable")


def block(rng: np.random.Generator, kind: str, dt: Any) -> np.ndarray:
    """Return a chain of integrators, an undamped oscillator, an unstable or a stable pole."""
    if kind == "chain":
        k = int(rng.integers(1, 4))
        return (rng.choice([1.0, -1.0]) if dt else 0.0) * np.eye(k) + np.eye(k, k=1)
    if kind == "oscillator":
        w = rng.uniform(0.1, 3) if dt else 10 ** rng.uniform(-1, 1)
        turn = np.array([[0.0, w], [-w, 0.0]])
        return sla.expm(turn) if dt else turn
    if kind == "unstable":
        return np.array([[rng.uniform(1.1, 2) if dt else rng.uniform(0.1, 3)]])
    return np.array([[rng.uniform(-0.9, 0.9) if dt else -rng.uniform(0.1, 3)]])


def apart(blocks: list[np.ndarray]) -> list[np.ndarray]:
    """Return the blocks that share no pole with one before them: with generic B and C they are a minimal system."""
    chosen, seen = [], np.zeros(0)
    for one in blocks:
        poles = np.linalg.eigvals(one)
        if np.abs(poles[:, None] - seen).min(initial=1.0) > 1e-3:
            chosen, seen = [*chosen, one], np.concatenate([seen, poles])
    return chosen


def hidden(seed: int, dt: Any, kinds: tuple[str, ...] = KINDS) -> tuple[hr.StateSpace, hr.StateSpace, int]:
    """Return a system of blocks, copies and idle ones; it rotated, in other units; how many states link."""
    rng = np.random.default_rng([7, seed])

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if seed % 2 else 0.0)

    linked = apart([block(rng, kind, dt) for kind in rng.choice(kinds, 3)])
    n, m, p = sum(map(len, linked)), *rng.integers(1, 3, 2)
    A, B, C = sla.block_diag(*linked), draw(n, m), draw(p, n)
    parts = [(A, B, C)]
    for how in rng.choice(["copy", "not reached", "not seen"], rng.integers(1, 4)):
        if how == "copy":
            j = int(rng.integers(len(linked)))
            k = np.arange(len(linked[j])) + sum(map(len, linked[:j]))
            parts.append((linked[j], rng.uniform(0.5, 2) * B[k], rng.uniform(0.5, 2) * C[:, k]))
        else:
            idle = block(rng, rng.choice(kinds), dt)
            b, c = draw(len(idle), m), draw(p, len(idle))
            parts.append((idle, 0 * b, c) if how == "not reached" else (idle, b, 0 * c))
    A, B, C = sla.block_diag(*[x[0] for x in parts]), np.vstack([x[1] for x in parts]), np.hstack([x[2] for x in parts])
    V = sla.qr(draw(len(A), len(A)))[0] * rng.uniform(0.3, 3, len(A)) @ sla.qr(draw(len(A), len(A)))[0]
    units = 2.0 ** rng.integers(-12, 13, len(A)) if seed % 4 > 1 else np.ones(len(A))
    V = V / units[:, None]
    truth = hr.StateSpace(A, B, C, dt=dt)
    return truth, hr.StateSpace(np.linalg.solve(V.T, (V @ A).T).T, V @ B, np.linalg.solve(V.T, C.T).T, dt=dt), n


def response(G: hr.StateSpace) -> np.ndarray:
    """Return the values of a transfer function off the boundary, where no pole lies."""
    points = 1.5 * np.exp(1j * np.linspace(0.05, 3.1, 9)) if G.dt else 0.3 + 1j * np.geomspace(0.013, 70, 9)
    return np.array([G.C @ np.linalg.solve(s * np.eye(G.n) - G.A, G.B) + G.D for s in points])


@pytest.mark.filterwarnings("ignore::hankelred.AccuracyWarning")
@pytest.mark.parametrize("dt", [*DOMAINS, 0.1])
def test_minimal_models_have_the_states_that_link_and_the_response_of_the_whole(dt):
    for seed in SEEDS:
        truth, G, order = hidden(seed, dt)
        before = G.A.copy()
        found = hr.minimal(G)
        assert found.system.n == found.order == order, seed
        expected = response(truth)
        np.testing.assert_allclose(response(found.system), expected, atol=1e-7 * np.abs(expected).max())
        np.testing.assert_allclose(found.Ti @ found.T, np.eye(order), atol=1e-6)
        assert found.system.dtype == G.dtype
        assert len(found.hsv) == G.n
        assert found.unstable == np.isinf(found.hsv).sum()
        np.testing.assert_array_equal(G.A, before)


@pytest.mark.parametrize("dt", DOMAINS)
def test_near_oscillators_of_very_different_speed_are_all_kept(dt):
    """Moved by the largest of them, the slow ones would all look alike."""
    speeds = [1e-3, 1.001e-3, 1.0, 1.0 + 1e-6]
    blocks = [sla.expm([[0, w], [-w, 0]]) if dt else np.array([[0, w], [-w, 0]]) for w in speeds]
    rng = np.random.default_rng(3)
    G = hr.StateSpace(sla.block_diag(*blocks), rng.standard_normal((8, 1)), rng.standard_normal((1, 8)), dt=dt)
    assert hr.minimal(G).system is G
    twice = G.with_(A=sla.block_diag(G.A, G.A), B=np.vstack([G.B, G.B]), C=np.hstack([G.C, 2 * G.C]))
    assert hr.minimal(twice).order == 8


def test_a_system_may_be_minimal_without_any_state():
    G = hr.StateSpace(np.diag([0.0, 1.0]), np.zeros((2, 1)), np.ones((1, 2)), [[3.0]])
    found = hr.minimal(G)
    assert (found.order, found.unstable, found.system.D[0, 0], found.error_bound) == (0, 0, 3.0, 0.0)
    assert minreal(G, verbose=False).n == 0


@pytest.mark.filterwarnings("ignore::hankelred.AccuracyWarning")
@pytest.mark.parametrize("dt", DOMAINS)
def test_states_that_only_rounding_to_single_precision_links_are_left_out(dt):
    """In the numbers as they are stored a hidden state is linked by 1e-7, and its value is far above their rounding."""
    linked = 0
    for seed in SEEDS[:20]:
        _, G, order = hidden(seed, dt, ("stable",))
        stored = G.with_(**{x: getattr(G, x).astype(np.complex64 if seed % 2 else np.float32) for x in "ABCD"})
        found, double = hr.minimal(stored), stored.with_(**{x: getattr(stored, x) * np.float64(1.0) for x in "ABCD"})
        assert found.order == order, seed
        assert found.system.dtype == stored.dtype
        assert found.hinf_error() <= found.error_bound * (1 + 1e-9), seed
        assert found.error_bound < 1e-5 * found.hsv[0], seed
        linked += hr.minimal(double).order > order
    assert linked > len(SEEDS[:20]) / 2


def test_single_precision_and_names_come_back():
    A, B, C = np.diag([0.0, 0.0, -1.0]), np.ones((3, 1)), np.ones((1, 3))
    G = hr.StateSpace(*(x.astype(np.float32) for x in (A, B, C)), name="plant")
    found = hr.minimal(G)
    assert (found.order, found.system.dtype, found.system.name) == (2, np.float32, "plant")
    np.testing.assert_allclose(np.sort(found.system.poles().real), [-1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("output", ["complex", "real"])
@pytest.mark.parametrize("dt", DOMAINS)
def test_diagonal_systems_lose_idle_marginal_states_and_join_equal_ones(dt, output):
    lam = np.array([1j, 1j, 2j, 3j, -0.5, 0.3])
    lam = np.exp(lam) if dt else lam
    B, C = np.array([[1.0], [2.0], [0.0], [1.0], [1.0], [1.0]]), np.array([[1.0, 1.0j, 1.0, 1.0, 1.0, 2.0]])
    G = hr.DiagonalSystem(lam, B, C, dt=dt, output=output)
    found = hr.minimal(G)
    assert isinstance(found.system, hr.DiagonalSystem)
    assert found.system.n == 4
    assert found.order == len(found.T[0]) == (7 if output == "real" else 4)  # of the stable real pole its real part
    omega = np.array([0.3, 0.9, 2.5])
    np.testing.assert_allclose(found.system.frequency_response(omega), G.frequency_response(omega), rtol=1e-12)
    np.testing.assert_allclose(found.Ti @ found.T, np.eye(found.order), atol=1e-13)


def test_a_tolerance_drops_what_is_nearly_idle_in_its_group():
    G = hr.StateSpace(np.zeros((2, 2)), np.array([[1.0, 0.0], [0.0, 1e-3]]), np.eye(2))
    assert hr.minimal(G).order == 2
    assert hr.minimal(G, rtol=0.01).order == 1
