"""Lyapunov equations with dense matrices: public functions, both time domains, errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.linalg import norm

from hankelred import (
    InputError,
    NumericalError,
    StabilityError,
    StateSpace,
    gramian_factors,
    lyapunov_factor,
    solve_lyapunov,
)
from hankelred.linalg._schur_kernels import continuous_leaf
from tests.reference import gramian_by_kronecker
from tests.reference_lyapunov import exact_gramian, gramian_by_doubling, lyapunov_residual
from tests.strategies import random_stable, seeds, time_steps

time_domains = pytest.mark.parametrize("dt", [0, 0.1, True])
kinds = pytest.mark.parametrize("complex_data", [False, True])


def factor_pair(A, B, C, dt):
    return gramian_factors(StateSpace(A, B, C, dt=dt))


def is_discrete(dt):
    return dt is True or dt > 0


def random(rng, shape, complex_data):
    x = rng.standard_normal(shape)
    return x + 1j * rng.standard_normal(shape) if complex_data else x


def stable(rng, n, dt, complex_data):
    return random_stable(rng, n, dt, complex_data)


@st.composite
def equations(draw, max_states=8):
    """Draw a stable A, a time domain, and whether the data are complex."""
    rng, dt, complex_data = np.random.default_rng(draw(seeds)), draw(time_steps), draw(st.booleans())
    return rng, stable(rng, draw(st.integers(1, max_states)), dt, complex_data), dt, complex_data


@given(equations())
def test_solution_is_that_of_the_full_linear_system(equation):
    rng, A, dt, complex_data = equation
    Q = random(rng, A.shape, complex_data)
    X = solve_lyapunov(A, Q, dt)
    expected = gramian_by_kronecker(A, Q, dt)
    assert norm(X - expected) <= 1e-10 * norm(expected)  # both lose the condition of the equation, 1e4 at most


@time_domains
@kinds
@pytest.mark.parametrize("n", [1, 2, 60, 130])
@pytest.mark.parametrize("hermitian", [False, True])
def test_solution_leaves_no_residual(n, dt, complex_data, hermitian):
    rng = np.random.default_rng(n)
    A, Q = stable(rng, n, dt, complex_data), random(rng, (n, n), complex_data)
    if hermitian:
        Q = Q + Q.conj().T
    X = solve_lyapunov(A, Q, dt)
    assert lyapunov_residual(A, X, Q, is_discrete(dt)) <= 1e-14  # backward errors of Schur form and substitution


@given(equations())
def test_solution_of_a_hermitian_equation_is_exactly_hermitian(equation):
    rng, A, dt, complex_data = equation
    Q = random(rng, A.shape, complex_data)
    X = solve_lyapunov(A, Q + Q.conj().T, dt)
    np.testing.assert_array_equal(X, X.conj().T)


@kinds
@pytest.mark.parametrize("dt", [0, 1])
def test_unstable_matrices_have_solutions_too(dt, complex_data):
    rng = np.random.default_rng(4)
    A, Q = random(rng, (9, 9), complex_data), random(rng, (9, 9), complex_data)
    assert lyapunov_residual(A, solve_lyapunov(A, Q, dt), Q, bool(dt)) <= 1e-14


@pytest.mark.parametrize("dt", [0, 1])
def test_real_matrix_and_complex_right_side_are_solved_together(dt):
    rng = np.random.default_rng(6)
    A, Q = stable(rng, 12, dt, False), random(rng, (12, 12), True)
    X = solve_lyapunov(A, Q, dt)
    assert lyapunov_residual(A, X, Q, bool(dt)) <= 1e-14


@pytest.mark.parametrize(
    ("A", "dt", "pair"),
    [
        (np.diag([-1.0, 1.0, -3.0]), 0, "got (-?1)\\S+ and (-?1)"),
        (np.diag([2.0, 0.5, 0.1]), 1, "got \\S+ and \\S+\\."),
        (np.array([[0.0, 1.0], [-1.0, 0.0]]), 0, "1j"),
        (np.eye(2), True, "got 1"),
        (np.zeros((1, 1)), 0, "got 0"),
    ],
)
def test_singular_equation_is_refused_with_the_eigenvalues_that_make_it_so(A, dt, pair):
    with pytest.raises(NumericalError, match=pair):
        solve_lyapunov(A, np.ones_like(A), dt)


@given(equations())
def test_factor_gives_the_gramian(equation):
    rng, A, dt, complex_data = equation
    F = random(rng, (len(A), rng.integers(1, 2 * len(A) + 1)), complex_data)
    S = lyapunov_factor(A, F, dt)
    expected = gramian_by_kronecker(A, F @ F.conj().T, dt)
    assert norm(S @ S.conj().T - expected) <= 1e-10 * norm(expected)


@time_domains
@kinds
@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 5), (60, 1), (130, 3)])
def test_factor_leaves_no_residual(n, m, dt, complex_data):
    rng = np.random.default_rng(n)
    A, F = stable(rng, n, dt, complex_data), random(rng, (n, m), complex_data)
    S = lyapunov_factor(A, F, dt)
    assert lyapunov_residual(A, S @ S.conj().T, F @ F.conj().T, is_discrete(dt)) <= 1e-14


@time_domains
@kinds
@pytest.mark.parametrize("n", [1, 3, 70])
def test_pair_holds_the_factors_of_the_system_and_of_its_dual(n, dt, complex_data):
    rng = np.random.default_rng(n)
    A = stable(rng, n, dt, complex_data)
    B, C = random(rng, (n, 2), complex_data), random(rng, (3, n), complex_data)
    S, R = factor_pair(A, B, C, dt)
    assert lyapunov_residual(A, S @ S.conj().T, B @ B.conj().T, is_discrete(dt)) <= 1e-14
    assert lyapunov_residual(A.conj().T, R.conj().T @ R, C.conj().T @ C, is_discrete(dt)) <= 1e-14
    assert np.iscomplexobj(S) == np.iscomplexobj(R) == complex_data


def test_pair_of_real_and_complex_matrices_is_complex():
    rng = np.random.default_rng(3)
    A, B, C = stable(rng, 6, 0, False), rng.standard_normal((6, 2)), random(rng, (2, 6), True)
    S, R = factor_pair(A, B, C, 0)
    assert lyapunov_residual(A, S @ S.conj().T, B @ B.T, False) <= 1e-14
    assert lyapunov_residual(A.T, R.conj().T @ R, C.conj().T @ C, False) <= 1e-14


def test_frozen_matrices_compile_no_kernel_of_their_own():
    A, B = -np.eye(3), np.ones((3, 1))
    factor_pair(A, B, B.T, 0)
    compiled = len(continuous_leaf.signatures)
    for x in (A, B):
        x.flags.writeable = False
    factor_pair(A, B, B.T, 0)
    assert len(continuous_leaf.signatures) == compiled


@time_domains
def test_systems_without_states_or_inputs_have_zero_factors(dt):
    A = -0.5 * np.eye(3)
    assert lyapunov_factor(np.zeros((0, 0)), np.zeros((0, 2)), dt).shape == (0, 0)
    assert solve_lyapunov(np.zeros((0, 0)), np.zeros((0, 0)), dt).shape == (0, 0)
    assert not lyapunov_factor(A, np.zeros((3, 0)), dt).any()
    S, R = factor_pair(A, np.zeros((3, 0)), np.zeros((0, 3)), dt)
    assert len(S) == R.shape[1] == 3
    assert not S.any()
    assert not R.any()


@pytest.mark.parametrize(
    ("A", "dt"),
    [
        (np.diag([-1.0, 0.1]), 0),
        (np.diag([-1.0, 0.0]), 0),
        (np.array([[0.0, 1.0], [-1.0, 0.0]]), 0),
        (np.diag([0.5, 1.0]), 1),
        (np.diag([0.5, -1.2]), True),
        (np.diag([0.5j, 1.2j]), 0.1),
    ],
)
def test_factor_of_an_unstable_matrix_is_refused(A, dt):
    with pytest.raises(StabilityError, match="stable"):
        lyapunov_factor(A, np.ones((2, 1)), dt)
    with pytest.raises(StabilityError, match="stable"):
        factor_pair(A, np.ones((2, 1)), np.ones((1, 2)), dt)


def test_factor_that_overflows_is_an_error():
    A = np.array([[-1e-300, 1e300], [0.0, -1e-300]])
    # in units in which the upper entry is no larger, a pole underflows: then it is no stable one
    with np.errstate(all="ignore"), pytest.raises((NumericalError, StabilityError), match=r"overflow|must be stable"):
        lyapunov_factor(A, np.ones((2, 1)))


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@time_domains
def test_single_precision_results_are_rounded_double_precision_ones(dtype, dt):
    rng = np.random.default_rng(7)
    complex_data = dtype is np.complex64
    A, F = stable(rng, 6, dt, complex_data).astype(dtype), random(rng, (6, 2), complex_data).astype(dtype)
    wide = np.complex128 if complex_data else np.float64
    for solve, right in [(solve_lyapunov, F @ F.conj().T), (lyapunov_factor, F)]:
        X = solve(A, right, dt)
        assert X.dtype == dtype
        np.testing.assert_array_equal(X, solve(A.astype(wide), right.astype(wide), dt).astype(dtype))


def test_arguments_are_left_unchanged():
    rng = np.random.default_rng(9)
    for A in (stable(rng, 5, 0, False), np.triu(stable(rng, 5, 0, False)) - 3 * np.eye(5)):
        Q, F = rng.standard_normal((5, 5)), rng.standard_normal((5, 7))
        copies = A.copy(), Q.copy(), F.copy()
        solve_lyapunov(A, Q)
        lyapunov_factor(A, F)
        factor_pair(A, F, Q, 0)
        for array, copy in zip((A, Q, F), copies, strict=True):
            np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.eye(2), np.eye(3)), "shape of A"),
        ((np.ones((2, 3)), np.eye(2)), "square"),
        ((np.eye(2) * np.nan, np.eye(2)), "finite"),
        ((-np.eye(2), np.array([[1.0, np.inf], [0, 1]])), "finite"),
        ((-np.eye(2), np.eye(2), None), "dt"),
        ((-np.eye(2), np.eye(2), -1), "dt"),
    ],
)
def test_wrong_arguments_of_the_solver_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        solve_lyapunov(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-np.eye(2), np.ones((3, 1))), "rows as A"),
        ((-np.eye(2), np.ones(2)), "axes"),
        ((-np.eye(2), np.ones((2, 1)), None), "dt"),
        ((-np.eye(2), np.full((2, 1), np.nan)), "finite"),
    ],
)
def test_wrong_arguments_of_the_factor_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        lyapunov_factor(*arguments)


@time_domains
@kinds
@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 5), (20, 2), (60, 1)])
def test_factor_agrees_with_the_doubled_sum(n, m, dt, complex_data):
    rng = np.random.default_rng(n)
    A, F = stable(rng, n, dt, complex_data), random(rng, (n, m), complex_data)
    P = gramian_by_doubling(A, F, is_discrete(dt))
    S = lyapunov_factor(A, F, dt)
    assert norm(S @ S.conj().T - P) <= 1e-12 * norm(P)  # both lose the condition, about 100


@pytest.mark.parametrize("dt", [0, 1])
@pytest.mark.parametrize("m", [1, 3, 40])
def test_slycot_is_of_the_same_opinion(m, dt):
    slycot = pytest.importorskip("slycot")
    rng = np.random.default_rng(10)
    A, F = stable(rng, 40, dt, False), rng.standard_normal((40, m))
    padded = np.hstack([F, np.zeros((40, 40 - m))])  # the factor is returned in its place
    U, scale, _ = slycot.sb03od(40, m, A.copy(), np.zeros((40, 40)), padded, "D" if dt else "C", trans="T")
    S, other = lyapunov_factor(A, F, dt), U / scale
    assert norm(S @ S.T - other @ other.T) <= 1e-12 * norm(S @ S.T)  # both lose the condition, about 100


@pytest.mark.parametrize("dt", [0, 1])
@kinds
def test_units_of_the_states_change_no_factor(dt, complex_data):
    rng = np.random.default_rng(12)
    for _ in range(20):
        n = int(rng.integers(2, 8))
        A, F = stable(rng, n, dt, complex_data), random(rng, (n, 2), complex_data)
        units = 10.0 ** rng.uniform(-10, 10, n)
        S = lyapunov_factor(A * units[:, None] / units, F * units[:, None], dt) / units[:, None]
        P, other = lyapunov_factor(A, F, dt), S @ S.conj().T
        P = P @ P.conj().T
        assert norm(P - other) <= 1e-11 * norm(P)  # rounding of the new entries times the condition, 1e4 at most


def test_factor_of_two_capacitors_keeps_both_rates():
    A, F = np.array([[-0.02, 0.01], [1e6, -1.00001e11]]), np.array([[0.01], [0.0]])
    S = lyapunov_factor(A, F)
    exact = exact_gramian(A, F, False)
    P = np.array([[float(exact[i, j]) for j in range(2)] for i in range(2)])
    np.testing.assert_allclose(S @ S.T, P, rtol=1e-13)  # every entry, 1e-25 of the largest or not
