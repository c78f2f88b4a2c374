"""Inputs on which other tools fail, silently or obscurely: here the result is right or the error is clear.

Each test names what a peer does: python-control 0.10.2, Slycot 0.7.1, pyMOR 2026.1.1.
"""

from __future__ import annotations

import numpy as np
import pytest
import reference

import hankelred as hr
from hankelred.control import gram


def random_system(seed: int = 0, n: int = 6, dt: object = 0) -> hr.StateSpace:
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n, n))
    A = (
        A - (np.linalg.eigvals(A).real.max() + 0.5) * np.eye(n)
        if dt == 0
        else 0.8 * A / np.abs(np.linalg.eigvals(A)).max()
    )
    return hr.StateSpace(A, rng.standard_normal((n, 2)), rng.standard_normal((2, n)), dt=dt)


def test_unstable_poles_are_kept_where_pymor_truncates_them():
    system = hr.StateSpace(np.diag([1.0, -2.0, -3.0]), np.ones((3, 1)), np.ones((1, 3)))
    reduction = hr.balanced_truncation(system, 2)
    assert reduction.unstable == 1
    np.testing.assert_allclose(reduction.system.poles().real.max(), 1.0)
    assert reference.peak_gain_on_grid(system, reduction.system) <= reduction.error_bound


def test_hsv_of_an_unstable_system_are_refused_where_pymor_invents_them():
    with pytest.raises(hr.StabilityError, match=r"must be stable for dt=0.* got 1"):
        hr.hankel_singular_values(hr.StateSpace(np.diag([1.0, -2.0, -3.0]), np.ones((3, 1)), np.ones((1, 3))))


def test_poles_on_the_boundary_are_kept_where_pymor_returns_unstable_models():
    G = random_system()
    import scipy.linalg as sla

    system = hr.StateSpace(
        sla.block_diag(0.0, G.A), np.vstack([np.ones((1, 2)), G.B]), np.hstack([np.ones((2, 1)), G.C])
    )
    reduction = hr.balanced_truncation(system, 4)
    assert reduction.unstable == 1
    assert abs(reduction.system.poles().real.max()) < 1e-12
    assert reduction.hinf_error() <= reduction.error_bound


def test_unlinked_states_limit_the_rank_where_pymor_returns_an_unstable_model():
    A = np.diag([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0])
    B, C = np.zeros((6, 2)), np.zeros((2, 6))
    B[:3], C[:, 2:5] = 1.0, 1.0  # only the third state is driven and seen
    bal = hr.balance(hr.StateSpace(A, B, C))
    assert bal.rank == 1
    reduced = bal.reduce(rtol=1e-10).system
    assert reduced.n == 1
    np.testing.assert_allclose(reduced.poles(), [-3.0])
    with pytest.raises(hr.OrderError, match="at most 1, the numerical rank"):
        bal.reduce(3)


def test_zero_input_matrix_gives_a_static_model():
    G = random_system()
    reduction = hr.balanced_truncation(hr.StateSpace(G.A, 0 * G.B, G.C, np.eye(2)), rtol=1e-3)
    assert reduction.system.n == 0
    np.testing.assert_array_equal(reduction.system.D, np.eye(2))


@pytest.mark.parametrize("order", [0, 1])
def test_one_state_reduces_to_either_order_where_pymor_asserts(order):
    reduction = hr.balanced_truncation(hr.StateSpace([[-1.0]], [[1.0]], [[1.0]]), order)
    assert reduction.system.n == order


def test_no_state_reduces_to_none_where_slycot_raises_obscure_errors():
    gain = hr.StateSpace(np.zeros((0, 0)), np.zeros((0, 2)), np.zeros((3, 0)), np.ones((3, 2)))
    assert hr.balanced_truncation(gain, 0).system.n == 0
    assert hr.hankel_singular_values(gain).shape == (0,)


def test_nan_is_named_where_slycot_reports_a_failed_schur_form():
    A = np.diag([-1.0, np.nan])
    with pytest.raises(hr.InputError, match="A must be finite; got 1 NaN or infinite of 4 entries"):
        hr.balanced_truncation((A, np.ones((2, 1)), np.ones((1, 2)), np.zeros((1, 1))), 1)


@pytest.mark.parametrize("dt", [0, True])
def test_complex_systems_are_complex_where_every_python_peer_is_wrong(dt):
    rng = np.random.default_rng(4)
    A = rng.standard_normal((5, 5)) + 1j * rng.standard_normal((5, 5))
    A = (
        A - (np.linalg.eigvals(A).real.max() + 0.3) * np.eye(5)
        if dt == 0
        else 0.9 * A / abs(np.linalg.eigvals(A)).max()
    )
    system = hr.StateSpace(A, rng.standard_normal((5, 1)) + 1j, rng.standard_normal((1, 5)) - 1j, dt=dt)
    hsv = hr.hankel_singular_values(system)
    np.testing.assert_allclose(hsv, reference.hsv_by_eigenvalues(system), atol=1e-6 * hsv[0])
    reduction = hr.balanced_truncation(system, 3)
    assert reduction.system.A.dtype == np.complex128
    assert hsv[3] * (1 - 1e-9) <= reduction.hinf_error() <= reduction.error_bound


def test_strided_matrices_are_read_right():
    G = random_system()
    wide = np.zeros((12, 12))
    wide[::2, ::2] = G.A
    np.testing.assert_array_equal(
        hr.hankel_singular_values(hr.StateSpace(wide[::2, ::2], G.B[:, ::-1], G.C)),
        hr.hankel_singular_values(hr.StateSpace(G.A, G.B[:, ::-1].copy(), G.C)),
    )


@pytest.mark.parametrize("order", [0, 6])
def test_order_zero_and_full_order_work_where_pymor_asserts(order):
    system = random_system()
    reduction = hr.balanced_truncation(system, order)
    assert reduction.system.n == order
    evaluation = 1e-14 * hr.hinf_norm(system)  # at full order bound and measured error are rounding, of two kinds
    assert reduction.hinf_error() <= reduction.error_bound + evaluation


def test_orders_past_the_system_are_named():
    with pytest.raises(hr.OrderError, match="order must be from 0 to 6; got 7"):
        hr.balanced_truncation(random_system(), 7)


@pytest.mark.parametrize("dt", [0, True])
def test_defective_matrices_are_no_special_case(dt):
    A = (-1.0 if dt == 0 else 0.5) * np.eye(4) + np.eye(4, k=1)
    system = hr.StateSpace(A, np.eye(4)[:, -1:], np.eye(4)[:1], dt=dt)
    hsv = hr.hankel_singular_values(system)
    np.testing.assert_allclose(hsv, reference.hsv_by_eigenvalues(system), atol=1e-7 * hsv[0])
    reduction = hr.balanced_truncation(system, 2)
    assert reduction.hinf_error() <= reduction.error_bound


def test_defective_diagonal_reductions_have_a_clear_way_out():
    """A diagonal system whose reduced matrix is defective is refused, and its dense form reduced."""
    lam = np.array([0.5, 0.5, 0.5])
    system = hr.DiagonalSystem(lam, np.ones((3, 1)), np.ones((1, 3)), dt=True)  # one state, stored three times
    bal = hr.balance(system)
    assert bal.rank == 1
    reduced = bal.reduce(1).system
    np.testing.assert_allclose(reduced.lam, [0.5], rtol=1e-12)


def test_discrete_systems_stay_discrete_where_python_control_reduces_them_as_continuous():
    system = random_system(dt=0.1)
    reduction = hr.balanced_truncation(system, 3)
    assert reduction.system.dt == 0.1
    assert reduction.hsv[3] * (1 - 1e-9) <= reduction.hinf_error() <= reduction.error_bound


def test_hsv_are_real_numbers_where_python_control_returns_nan_or_complex():
    hilbert = hr.StateSpace(-np.diag(np.arange(12) + 0.5), np.ones((12, 1)), np.ones((1, 12)))
    hsv = hr.hankel_singular_values(hilbert)
    assert hsv.dtype == np.float64
    assert np.isfinite(hsv).all()


def test_wide_inputs_are_no_special_case_where_python_control_cannot_broadcast():
    rng = np.random.default_rng(0)
    system = hr.StateSpace(-np.eye(2), rng.standard_normal((2, 3)), rng.standard_normal((1, 2)))
    factor = gram(system, "cf")
    np.testing.assert_allclose(factor.T @ factor, system.B @ system.B.T / 2, atol=1e-14)


def test_static_part_survives_where_slycot_overran_its_memory():
    """Slycot issue 242: n = 67, B = C = 0, D = 42.24 must give no state and keep D."""
    system = hr.StateSpace(-np.eye(67), np.zeros((67, 1)), np.zeros((1, 67)), [[42.24]])
    reduction = hr.balanced_truncation(system, rtol=0.1, match_dc=True)
    assert reduction.system.n == 0
    assert reduction.system.D[0, 0] == 42.24


def test_unattainable_tolerances_are_refused_where_pymor_returns_order_one():
    with pytest.raises(hr.OrderError, match="cannot be met: even the full order 6 has the rounding floor"):
        hr.balanced_truncation(random_system(), max_error=1e-18)
