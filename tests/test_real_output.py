"""Systems with outputs ``Re(C x)``: real factors in the 2n real coordinates, every one of the 2n hsv."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from hankelred import DiagonalSystem
from hankelred.linalg.hankel_svd import real_pair
from tests.reference_diagonal import exact_hsv
from tests.strategies import diagonal_systems
from tests.test_cauchy import EVERY_HSV, factor_pair, lru_like, normal, ones, s4d_like, structured_hsv


def real_output(lam, m, seed, dt=True, real_data=False):
    rng = np.random.default_rng(seed)
    n = len(lam)
    B, C = (x.real + 0j if real_data else x for x in (normal(rng, n, m), normal(rng, m, n)))
    return DiagonalSystem(lam, B, C, dt=dt, output="real")


@given(diagonal_systems(max_states=6, outputs=("real",)))
def test_factors_are_real_and_of_the_gramians_in_real_coordinates(system):
    S, R = factor_pair(system)
    G = system.dense()
    P, Q = S @ S.T, R.T @ R
    if system.is_discrete:
        left, right = G.A @ P @ G.A.T - P + G.B @ G.B.T, G.A.T @ Q @ G.A - Q + G.C.T @ G.C
    else:
        left, right = G.A @ P + P @ G.A.T + G.B @ G.B.T, G.A.T @ Q + Q @ G.A + G.C.T @ G.C
    scale = max(np.abs(G.A).max(), 1.0)
    assert S.dtype == R.dtype == np.float64
    assert np.abs(left).max() <= 1e-13 * scale * np.abs(P).max()  # a few n eps of the largest term
    assert np.abs(right).max() <= 1e-13 * scale * np.abs(Q).max()


mixed = np.array([0.9, 0.5, 0.3 + 0.4j, -0.2 + 0.7j])
EXACT_CASES = {
    "complex_poles": real_output(np.array([0.9 + 0.1j, 0.5j, -0.3 + 0.4j]), 1, seed=0),
    "complex_poles_two_inputs": real_output(np.array([0.9 + 0.1j, 0.5j, -0.3 + 0.4j]), 2, seed=1),
    "continuous": real_output(np.array([-1 + 1j, -2 - 1j, -0.1 + 5j]), 1, seed=2, dt=0),
    "real_poles_with_complex_rows": real_output(mixed, 2, seed=3),
    "real_poles_with_real_rows": real_output(mixed, 2, seed=4, real_data=True),
    "real_poles_with_complex_rows_one_input": real_output(mixed, 1, seed=5),
    "pole_and_conjugate_both_stored": real_output(np.array([0.3 + 0.4j, 0.3 - 0.4j, 0.5]), 1, seed=6),
    "repeated_poles": real_output(np.array([0.3 + 0.4j, 0.3 + 0.4j, 0.3 + 0.4j, 0.5]), 2, seed=7),
    "pole_at_zero": real_output(np.array([0.0, 0.5j, -0.3]), 2, seed=8),
    "next_to_the_circle": real_output((1 - np.array([1e-13, 3e-13, 1e-12])) * np.exp([0.3j, 0.3j, 2j]), 1, seed=9),
    "rates": DiagonalSystem.from_rates([-1e-14 + 3j, -1e-3 + 0.1j, -1.0 + 6j], *ones(3), dt=True, output="real"),
    "more_inputs_than_states": real_output(np.array([0.5j, -0.3 + 0.4j]), 9, seed=10),
    "proportional_inputs": DiagonalSystem(
        [0.5j, 0.9 + 0.05j, -0.3 + 0.4j],
        normal(np.random.default_rng(11), 3, 1) * [[1.0, 2.0]],
        normal(np.random.default_rng(12), 1, 3),
        dt=True,
        output="real",
    ),
    "lru_like_1": lru_like(12, 1, seed=1, output="real"),
    "lru_like_2": lru_like(12, 2, seed=1, output="real"),
    "s4d_like_1": s4d_like(12, 1, seed=1, output="real"),
    "s4d_like_4": s4d_like(8, 4, seed=1, output="real"),
}


@pytest.mark.parametrize("name", EXACT_CASES)
def test_every_hsv_has_full_relative_accuracy(name):
    np.testing.assert_allclose(structured_hsv(EXACT_CASES[name]), exact_hsv(EXACT_CASES[name]), rtol=EVERY_HSV)


@pytest.mark.parametrize("angle", [1e-1, 1e-3, 1e-6, 1e-12])
@pytest.mark.parametrize("near", [slice(0, None), slice(0, None, 2)])
def test_nearly_real_poles_cost_no_digits(angle, near):
    # conjugate pairs alone had 0.001 relative error at 1e-6 and none right at 1e-12
    rng = np.random.default_rng(1)
    phase = np.linspace(0.4, 2.8, 8)
    phase[near] = angle * rng.uniform(0.5, 1, 8)[near]
    system = DiagonalSystem(np.linspace(0.3, 0.95, 8) * np.exp(1j * phase), *ones(8), dt=True, output="real")
    np.testing.assert_allclose(structured_hsv(system), exact_hsv(system, digits=180), rtol=EVERY_HSV)


@pytest.mark.parametrize("real_side", ["B", "C", "both"])
def test_nearly_real_poles_leave_no_imaginary_part_in_the_gramians(real_side):
    # several inputs: the second row of a pair is known to eps / 1e-12 only, which must not enter the Gramians
    rng = np.random.default_rng(13)
    B, C = normal(rng, 6, 2), normal(rng, 2, 6)
    B, C = B if real_side == "C" else B.real, C if real_side == "B" else C.real
    lam = np.linspace(0.3, 0.95, 6) + 1e-12j
    lam[::2] *= np.exp(1j * rng.uniform(0.3, 3, 3))
    system = DiagonalSystem(lam, B, C, dt=True, output="real")
    S, R = factor_pair(system)
    G = system.dense()
    P, Q = S @ S.T, R.T @ R
    assert np.abs(G.A @ P @ G.A.T - P + G.B @ G.B.T).max() <= 1e-13 * np.abs(P).max()
    assert np.abs(G.A.T @ Q @ G.A - Q + G.C.T @ G.C).max() <= 1e-13 * np.abs(Q).max()


def test_repeated_hsv_of_nearly_real_poles_still_give_factors_of_the_gramians():
    # two equal decoupled subsystems: singular vectors of a repeated hsv are real only together
    lam = np.array([0.9 + 1e-6j, 0.5 + 1e-6j] * 2)
    B, C = np.zeros((4, 2), complex), np.zeros((2, 4), complex)
    B[:2, 0] = B[2:, 1] = C[0, :2] = C[1, 2:] = [1, 2j]
    turn = np.array([[0.6, 0.8], [-0.8, 0.6]])
    system = DiagonalSystem(lam, B @ turn, turn.T @ C, dt=True, output="real")
    S, _ = factor_pair(system)
    G = system.dense()
    P = S @ S.T
    assert np.abs(G.A @ P @ G.A.T - P + G.B @ G.B.T).max() <= 1e-13 * np.abs(P).max()
    hsv = exact_hsv(system)
    np.testing.assert_allclose(structured_hsv(system), hsv, rtol=EVERY_HSV, atol=1e-15 * hsv[0])


def test_nearly_real_poles_among_many_states_give_real_factors_of_the_gramians():
    lam = np.linspace(-0.9, 0.9, 520) * np.exp(1e-9j)  # past the number of states whose columns are all computed
    S, R = factor_pair(DiagonalSystem(lam, *ones(520), dt=True, output="real"))
    P = 1 / (1 - np.multiply.outer(lam, lam.conj())) + 1 / (1 - np.multiply.outer(lam, lam))
    np.testing.assert_allclose(S[:520] @ S[:520].T, P.real, atol=1e-13 * P.real.max())
    np.testing.assert_allclose(R[:, :520].T @ R[:, :520], P.real / 4, atol=1e-13 * P.real.max())


def test_columns_that_are_real_only_together_become_real_together():
    rng = np.random.default_rng(14)
    X, (U, _) = rng.standard_normal((6, 5)), np.linalg.qr(normal(rng, 3, 3))
    mixed = X * np.exp(1j * np.arange(5))
    mixed[:, 1:4] = X[:, 1:4] @ U
    S, _ = real_pair(mixed, np.zeros((0, 6), complex), divide_and_conquer=False)
    assert S.dtype == np.float64
    np.testing.assert_allclose(np.abs(S[:, [0, 4]]), np.abs(X[:, [0, 4]]), rtol=1e-14)
    np.testing.assert_allclose(S @ S.T, X @ X.T, atol=1e-14)


@given(diagonal_systems(max_states=5, outputs=("real",)))
def test_hsv_are_those_of_the_system_with_its_conjugate_poles_stored(system):
    lam, B, C = system.lam.astype(complex), system.B, system.C
    both = DiagonalSystem(
        np.append(lam, lam.conj()), np.vstack([B, B.conj()]), np.hstack([C, C.conj()]) / 2, dt=system.dt
    )
    plain = DiagonalSystem(lam, B, C, dt=system.dt, output="real")
    hsv = structured_hsv(both)
    # real poles: n of the doubled system's hsv are zero, and several inputs leave rounding there
    np.testing.assert_allclose(structured_hsv(plain), hsv, rtol=EVERY_HSV, atol=1e-15 * hsv[0])


def test_conjugate_symmetric_layers_are_read_with_twice_c():
    # y = C x + conj(C x) = Re(2 C x)
    lam, B, C = np.array([0.3 + 0.4j, -0.5 + 0.1j]), np.array([[1.0], [2j]]), np.array([[1.0, 1.0 + 1j]])
    layer = DiagonalSystem(lam, B, 2 * C, dt=True, output="real")
    written_out = DiagonalSystem(
        np.append(lam, lam.conj()), np.vstack([B, B.conj()]), np.hstack([C, C.conj()]), dt=True
    )
    np.testing.assert_allclose(structured_hsv(layer), exact_hsv(written_out), rtol=EVERY_HSV)


def test_real_data_have_as_many_zero_hsv_as_states():
    system = DiagonalSystem([0.5, 0.4], [[1.0], [2.0]], [[1.0, 1.0]], dt=True, output="real")
    complex_output = DiagonalSystem(system.lam, system.B, system.C, dt=True)
    np.testing.assert_allclose(
        structured_hsv(system), np.append(structured_hsv(complex_output), [0, 0]), rtol=EVERY_HSV
    )


def test_states_that_link_no_input_to_an_output_leave_the_other_hsv_alone():
    few = lru_like(8, 2, seed=3, output="real")
    rng = np.random.default_rng(4)
    B, C = normal(rng, 3, 2), normal(rng, 2, 3)
    B[0], C[:, 1] = 0, 0
    B[2], C[:, 2] = 0, 0
    lam = np.append(few.lam, [0.7j, 0.2 + 0.3j, 0.1])
    joined = DiagonalSystem(lam, np.vstack([few.B, B]), np.hstack([few.C, C]), dt=True, output="real")
    S, R = factor_pair(joined)
    G = joined.dense()
    P, Q = S @ S.T, R.T @ R
    np.testing.assert_allclose(structured_hsv(joined)[:16], structured_hsv(few), rtol=EVERY_HSV)
    assert np.abs(G.A @ P @ G.A.T - P + G.B @ G.B.T).max() <= 1e-13 * np.abs(P).max()
    assert np.abs(G.A.T @ Q @ G.A - Q + G.C.T @ G.C).max() <= 1e-13 * np.abs(Q).max()


def test_dense_route_gives_real_factors_of_the_same_gramians():
    system = lru_like(40, 60, radii=(0.9, 0.99), output="real")
    S, R = factor_pair(system)
    G = system.dense()
    P, Q = S @ S.T, R.T @ R
    assert np.abs(G.A @ P @ G.A.T - P + G.B @ G.B.T).max() <= 1e-13 * np.abs(P).max()
    assert np.abs(G.A.T @ Q @ G.A - Q + G.C.T @ G.C).max() <= 1e-13 * np.abs(Q).max()
