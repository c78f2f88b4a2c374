"""The low-rank recursion against its own equation, and against a dense slow twin."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg as sla

from hankelred.linalg import adi
from hankelred.linalg.adi import LowRankGramians, Outcome
from hankelred.linalg.pencils import Cayley, Dense


def pencil(n: int, seed: int, dtype: type, with_E: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return A and E with poles left of -0.3, some of them weakly damped, and B, C with two and one ports."""
    draw = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        x = draw.normal(size=shape)
        return x + 1j * draw.normal(size=shape) if dtype is complex else x

    A = normal(n, n) / np.sqrt(n)
    A -= (sla.eigvals(A).real.max() + 0.3) * np.eye(n)
    E = np.eye(n) + 0.1 * normal(n, n) / np.sqrt(n) if with_E else np.eye(n)
    return E @ A, E, normal(n, 2), normal(1, n)


def run(recursion: LowRankGramians, steps: int = 10**6) -> LowRankGramians:
    """Take some steps, or all there are."""
    for _, _ in zip(range(steps), recursion, strict=False):
        pass
    return recursion


def hsv(recursion: LowRankGramians, E: np.ndarray) -> np.ndarray:
    return sla.svdvals(recursion.R @ E @ recursion.S)


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("steps", [1, 5, 14])
@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("with_E", [False, True])
def test_residual_stated_is_that_of_the_equation_after_any_step(dtype, with_E, steps, repeats):
    A, E, B, C = pencil(60, 1, dtype, with_E)
    found = run(LowRankGramians(Dense(A, E), B, C, 1e-14, 60, repeats=repeats), steps)
    S, R = found.S, found.R
    left = A @ S @ S.conj().T @ E.conj().T
    right = A.conj().T @ R.conj().T @ R @ E
    residuals = [
        np.linalg.norm(x + x.conj().T + F @ F.conj().T, 2) / np.linalg.norm(F, 2) ** 2
        for x, F in ((left, B), (right, C.conj().T))
    ]
    np.testing.assert_allclose(found.residuals, residuals, rtol=1e-6, atol=1e-11)  # atol: rounding of |A| |S|^2


@pytest.mark.parametrize("repeats", [1, 4])
@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("with_E", [False, True])
def test_values_of_converged_factors_are_those_of_dense_gramians(dtype, with_E, repeats):
    A, E, B, C = pencil(80, 2, dtype, with_E)
    found = run(LowRankGramians(Dense(A, E), B, C, 1e-14, 80, repeats=repeats))
    F, H = np.linalg.solve(E, A), np.linalg.solve(E, B)
    P = sla.solve_continuous_lyapunov(F, -H @ H.conj().T)
    Q = sla.solve_continuous_lyapunov(F.conj().T, -C.conj().T @ C)
    expected = np.sort(np.sqrt(np.abs(sla.eigvals(P @ Q))))[::-1]
    assert found.outcome is Outcome.CONVERGED
    np.testing.assert_allclose(hsv(found, E)[:12], expected[:12], atol=1e-7 * expected[0])  # sqrt(eps) of the product


@pytest.mark.parametrize("dtype", [float, complex])
def test_cayley_pencil_has_the_gramians_of_discrete_time(dtype):
    A, E, B, C = pencil(50, 3, dtype, True)
    A = E @ sla.expm(np.linalg.solve(E, A))
    found = run(LowRankGramians(Cayley(Dense(A, E)), np.sqrt(2) * B, np.sqrt(2) * C, 1e-14, 100))
    P, Q = found.S @ found.S.conj().T, found.R.conj().T @ found.R
    for X, M, N, F in ((P, A, E, B), (Q, A.conj().T, E.conj().T, C.conj().T)):
        residual = M @ X @ M.conj().T - N @ X @ N.conj().T + F @ F.conj().T
        assert np.linalg.norm(residual) < 1e-6 * np.linalg.norm(F) ** 2  # both fall below 1e-13 as a product


def test_a_nilpotent_system_is_finished_by_steps_of_smith():
    n = 8
    A = np.eye(n, k=1)
    B, C = np.eye(n)[:, -1:], np.eye(n)[:1]
    found = run(LowRankGramians(Cayley(Dense(A)), np.sqrt(2) * B, np.sqrt(2) * C, 1e-14, 50))
    np.testing.assert_allclose(hsv(found, np.eye(n))[:n], np.ones(n), rtol=1e-12)  # a delay of n samples


def test_the_shift_of_smith_is_a_solve_with_E():
    A, E, B, _ = pencil(10, 3, float, True)
    solver = Cayley(Dense(A, E)).factor(-1.0)
    np.testing.assert_allclose(solver.solve(B), np.linalg.solve(-2 * E, B), rtol=1e-12)
    np.testing.assert_allclose(solver.solve_adjoint(B), np.linalg.solve(-2 * E.T, B), rtol=1e-12)


def test_one_factor_serves_a_symmetric_pencil():
    A, _, B, _ = pencil(50, 4, float, False)
    A = A + A.T - 3 * np.eye(50)
    both = run(LowRankGramians(Dense(A), B, B.T, 1e-14, 50))
    one = run(LowRankGramians(Dense(A), B, B.T, 1e-14, 50, symmetric=True))
    np.testing.assert_allclose(hsv(one, np.eye(50))[:10], hsv(both, np.eye(50))[:10], rtol=1e-8, atol=1e-14)


def test_compressed_factors_have_the_same_values(monkeypatch):
    A, E, B, C = pencil(100, 5, float, True)
    plain = hsv(run(LowRankGramians(Dense(A, E), B, C, 1e-14, 100)), E)
    monkeypatch.setattr(adi, "COMPRESS_FROM", 8)
    pressed = run(LowRankGramians(Dense(A, E), B, C, 1e-14, 100))
    np.testing.assert_allclose(hsv(pressed, E)[:20], plain[:20], atol=1e-13 * plain[0])


def test_change_tells_what_all_later_steps_do():
    A, E, B, C = pencil(80, 6, float, False)
    final = hsv(run(LowRankGramians(Dense(A, E), B, C, 1e-16, 160)), E)
    recursion = LowRankGramians(Dense(A, E), B, C, 1e-16, 160)
    last = np.inf
    for _ in recursion:
        if recursion.change < last:  # a cycle has ended, and one step more was taken
            last = recursion.change
            now = hsv(recursion, E)
            moved = np.abs(np.pad(now, (0, len(final)))[: len(final)] - final).max()
            assert moved <= 100 * last + 1e-14 * final[0]
    assert recursion.outcome is Outcome.CONVERGED


@pytest.mark.parametrize("zero", ["B", "C"])
def test_without_input_or_output_there_is_nothing_to_do(zero):
    A, _, B, C = pencil(10, 7, float, False)
    found = run(LowRankGramians(Dense(A), B * (zero != "B"), C * (zero != "C"), 1e-14, 10))
    assert found.outcome is Outcome.CONVERGED
    assert found.S.shape == (10, 0)


def test_a_pole_that_is_not_stable_makes_residuals_grow():
    A, _, B, C = pencil(40, 8, float, False)
    found = run(LowRankGramians(Dense(A + 0.4 * np.eye(40)), B, C, 1e-14, 10**4))
    assert found.outcome is Outcome.UNSTABLE


def test_a_rank_that_is_too_large_ends_it():
    A, _, B, C = pencil(40, 9, float, False)
    found = run(LowRankGramians(Dense(A), B, C, 1e-14, 12))
    assert found.outcome is Outcome.RANK
    assert found.S.shape[1] < 40


def test_shifts_have_few_bits():
    values = np.array([-1 / 3, -2e7 / 3, -0.1 + 5j / 7, -0.1 - 5j / 7])
    for shift in adi.spread(values, real=True):
        for part in (shift.real, shift.imag):
            assert float(np.float32(part)) == part
