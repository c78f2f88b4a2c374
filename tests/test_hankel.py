"""Gramian factors and Hankel singular values of either kind of system."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from hypothesis import given
from strategies import diagonal_systems, state_spaces, systems

import hankelred as hr
from hankelred.drift import drift_bound


def residual(A: np.ndarray, P: np.ndarray, W: np.ndarray, discrete: bool) -> float:
    """Return the residual of a Lyapunov or Stein equation, relative to its largest term."""
    terms = [A @ P @ A.conj().T, -P, W] if discrete else [A @ P, P @ A.conj().T, W]
    return float(np.linalg.norm(sum(terms)) / max(max(np.linalg.norm(term) for term in terms), 1e-300))


@given(systems())
def test_factors_solve_both_equations(system):
    S, R = hr.gramian_factors(system)
    G = reference.dense(system)
    P, Q = S @ S.conj().T, R.conj().T @ R
    assert residual(G.A, P, G.B @ G.B.conj().T, G.is_discrete) < 1e-12  # measured 1e-15 to 1e-13
    assert residual(G.A.conj().T, Q, G.C.conj().T @ G.C, G.is_discrete) < 1e-12


@given(systems(6))
def test_hsv_equal_the_definition(system):
    hsv, expected = hr.hankel_singular_values(system), reference.hsv_by_eigenvalues(system)
    np.testing.assert_allclose(hsv, expected, atol=1e-6 * hsv[0])  # eigenvalues of P Q keep half of the digits


@given(systems())
def test_hsv_decrease_and_count_the_states(system):
    hsv = hr.hankel_singular_values(system)
    assert len(hsv) == (system.order if isinstance(system, hr.DiagonalSystem) else system.n)
    assert np.all(np.diff(hsv) <= 0)
    assert np.all(hsv >= 0)


@given(state_spaces())
def test_hsv_are_invariant_under_similarity(system):
    rng = np.random.default_rng(0)
    V = np.linalg.qr(rng.standard_normal((system.n, system.n)))[0] * np.geomspace(1, 10, system.n)
    W = np.linalg.inv(V)
    moved = hr.StateSpace(W @ system.A @ V, W @ system.B, system.C @ V, system.D, system.dt)
    hsv = hr.hankel_singular_values(system)
    np.testing.assert_allclose(hr.hankel_singular_values(moved), hsv, atol=1e-10 * hsv[0])


@given(state_spaces())
def test_hsv_of_the_dual_system_are_the_same(system):
    dual = hr.StateSpace(*(x.conj().T for x in (system.A, system.C, system.B, system.D)), system.dt)
    hsv = hr.hankel_singular_values(system)
    np.testing.assert_allclose(hr.hankel_singular_values(dual), hsv, atol=1e-12 * hsv[0])


@given(diagonal_systems())
def test_diagonal_and_dense_route_agree(system):
    hsv = hr.hankel_singular_values(system)
    np.testing.assert_allclose(hr.hankel_singular_values(system.dense()), hsv, atol=1e-11 * hsv[0])


@given(diagonal_systems())
def test_permuting_the_states_changes_nothing(system):
    order = np.random.default_rng(1).permutation(system.n)
    hsv = hr.hankel_singular_values(system)
    np.testing.assert_allclose(hr.hankel_singular_values(system.take(order)), hsv, rtol=1e-9, atol=1e-14 * hsv[0])


@given(systems())
def test_arguments_are_unchanged(system):
    before = [x.copy() for x in (system.B, system.C, system.D)]
    hr.hankel_singular_values(system)
    for x, copy in zip((system.B, system.C, system.D), before, strict=True):
        np.testing.assert_array_equal(x, copy)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64, np.float64, np.complex128])
def test_dtype_family_is_kept(dtype):
    system = hr.StateSpace(np.diag([-1, -2]).astype(dtype), np.ones((2, 1), dtype), np.ones((1, 2), dtype))
    S, R = hr.gramian_factors(system)
    assert S.dtype == R.dtype == np.dtype(dtype)
    assert hr.hankel_singular_values(system).dtype == np.zeros(1, dtype).real.dtype


def test_real_systems_have_real_factors():
    system = hr.StateSpace([[0.0, 1.0], [-1.0, -0.2]], [[0.0], [1.0]], [[1.0, 0.0]])
    assert all(x.dtype == np.float64 for x in hr.gramian_factors(system))


@pytest.mark.parametrize(
    "system",
    [
        hr.StateSpace([[0.1]], [[1.0]], [[1.0]]),
        hr.StateSpace([[0.0]], [[1.0]], [[1.0]]),
        hr.StateSpace([[-1.0]], [[1.0]], [[1.0]], dt=0.1),
        hr.DiagonalSystem([1.0], [[1.0]], [[1.0]], dt=True),
        hr.DiagonalSystem([1e-9], [[1.0]], [[1.0]], dt=0, output="real"),
    ],
)
def test_unstable_and_marginal_systems_are_refused(system):
    with pytest.raises(hr.StabilityError, match="must be stable"):
        hr.hankel_singular_values(system)


def test_static_gain_has_no_hsv():
    assert len(hr.hankel_singular_values(hr.StateSpace(np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((1, 0)), 2.0))) == 0


def test_anything_as_system_accepts_will_do():
    hsv = hr.hankel_singular_values(([[-1.0]], [[1.0]], [[4.0]], [[0.0]]))
    np.testing.assert_allclose(hsv, [2.0])


@pytest.mark.parametrize("size", [5e-324, 1e-310])
def test_subnormal_inputs_without_an_output_have_no_hankel_singular_value(size):
    silent = hr.StateSpace([[0.8125]], [[size, 7 * size]], [[0.0]], dt=0.1)
    assert hr.hankel_singular_values(silent).tolist() == [0.0]
    assert drift_bound(silent, silent).bound == 0.0
