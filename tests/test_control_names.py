"""python-control's names: the same answers where python-control is right, right answers where it is not."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import given
from strategies import seeds

import hankelred as hr
from hankelred import control_names

control = pytest.importorskip("control", reason="compares with python-control")

A, B, C = np.array([[1.0, -2.0], [3.0, -4.0]]), np.array([[5.0, 6.0], [7.0, 8.0]]), np.array([[4.0, 5.0], [6.0, 7.0]])


def plant(dt: object = 0) -> control.StateSpace:
    """A named four-state model with two inputs and two outputs."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((4, 4))
    matrix = matrix - 4 * np.eye(4) if dt == 0 else 0.9 * matrix / np.max(np.abs(np.linalg.eigvals(matrix)))
    names = {"inputs": ["force", "torque"], "outputs": ["position", "angle"], "name": "arm"}
    return control.ss(matrix, rng.standard_normal((4, 2)), rng.standard_normal((2, 4)), 0, dt, **names)


@pytest.mark.parametrize("name", ["balred", "hsvd", "gram", "lyap", "dlyap"])
def test_arguments_have_the_names_and_order_of_python_control(name):
    theirs = [p for p in inspect.signature(getattr(control, name)).parameters if p != "method" or name == "balred"]
    assert list(inspect.signature(getattr(control_names, name)).parameters) == theirs


@pytest.mark.parametrize("type", ["c", "o", "cf", "of"])
@pytest.mark.parametrize("dt", [0, 0.2])
def test_gram_agrees(type, dt):
    pytest.importorskip("slycot", reason="python-control computes Gramians with Slycot")
    np.testing.assert_allclose(control_names.gram(plant(dt), type), control.gram(plant(dt), type), atol=1e-12)


def test_gram_has_the_values_in_the_tests_of_python_control():
    factor = control_names.gram((A, B, C, np.zeros((2, 2))), "cf")
    np.testing.assert_allclose(factor, [[4.30116263, 5.6961343], [0.0, 0.23249528]], atol=1e-8)


def test_gram_of_a_complex_system_is_hermitian_with_a_triangular_factor():
    system = hr.StateSpace([[-1 + 1j, 0.3], [0.1j, -2 - 1j]], [[1.0], [1j]], [[1.0, 1.0]])
    factor = control_names.gram(system, "of")
    np.testing.assert_allclose(np.tril(factor, -1), 0, atol=1e-15)
    np.testing.assert_allclose(factor.conj().T @ factor, control_names.gram(system, "o"), atol=1e-14)


@pytest.mark.parametrize("method", ["truncate", "matchdc"])
def test_balred_agrees_in_continuous_time(method):
    pytest.importorskip("slycot", reason="python-control reduces with Slycot")
    ours, theirs = control_names.balred(plant(), 2, method), control.balred(plant(), 2, method)
    omega = np.geomspace(0.1, 100, 20)
    np.testing.assert_allclose(ours(1j * omega), theirs(1j * omega), atol=1e-9)


@pytest.mark.parametrize("dt", [0, 0.2, True])
def test_balred_keeps_class_dt_and_names(dt):
    reduced = control_names.balred(plant(dt), 2)
    assert isinstance(reduced, control.StateSpace)
    assert reduced.dt is plant(dt).dt or reduced.dt == plant(dt).dt
    assert reduced.input_labels == ["force", "torque"]
    assert reduced.output_labels == ["position", "angle"]


def test_one_order_gives_a_system_and_several_give_a_list():
    assert control_names.balred(plant(), [2]).nstates == 2
    assert [reduced.nstates for reduced in control_names.balred(plant(), [1, 3])] == [1, 3]


def test_matlab_example_with_a_slow_pole_keeps_it():
    """MATLAB's balred page: offset 0.001, order 2 of zpk([-.5 -1.1 -2.9], [-1e-6 -2 -1 -3], 1)."""
    import scipy.signal

    system = scipy.signal.ZerosPolesGain([-0.5, -1.1, -2.9], [-1e-6, -2.0, -1.0, -3.0], 1.0)
    reduced = hr.as_system(control_names.balred(system, 2, alpha=-1e-3))
    num, den = scipy.signal.ss2tf(reduced.A, reduced.B, reduced.C, reduced.D)
    np.testing.assert_allclose(np.sort(np.roots(den).real), [-1.952, -1e-6], atol=5e-4)
    np.testing.assert_allclose(np.roots(num[0][1:]), [-0.5235], atol=5e-5)


def test_orders_past_the_rank_are_lowered_with_a_warning():
    system = hr.StateSpace(np.diag([-1.0, -2.0, -3.0]), [[1.0], [0.0], [0.0]], np.ones((1, 3)))
    with pytest.warns(hr.NonMinimalWarning, match="numerical rank of the system is 1, less than the order 2"):
        assert control_names.balred(system, 2).n == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((2, "residue"), "method must be"), ((2, "truncate", 0.5), "alpha must be at most 0"), ((9,), "order must be")],
)
def test_bad_arguments_of_balred_are_refused(arguments, message):
    with pytest.raises(hr.InputError, match=message):
        control_names.balred(plant(), *arguments)


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_alpha_of_a_discrete_system_is_a_modulus(alpha):
    with pytest.raises(hr.InputError, match="from 0 to 1, a modulus"):
        control_names.balred(plant(0.1), 2, alpha=alpha)


def test_unknown_gramian_types_are_refused():
    with pytest.raises(hr.InputError, match='type must be "c"'):
        control_names.gram(plant(), "x")


def test_hsvd_of_a_discrete_system_is_what_python_control_cannot_compute():
    with pytest.raises(NotImplementedError):
        control.hsvd(plant(0.2))
    np.testing.assert_allclose(control_names.hsvd(plant(0.2)), hr.hankel_singular_values(plant(0.2)))


def random(seed: int, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    return x + 1j * rng.standard_normal(shape) if seed % 2 else x


@given(seeds)
def test_sylvester_equations_have_small_residuals(seed):
    A, Q, C = random(seed, 5, 5) - 6 * np.eye(5), random(seed, 3, 3) - 6 * np.eye(3), random(seed, 5, 3)
    X = control_names.lyap(A, Q, C)
    assert np.linalg.norm(A @ X + X @ Q + C) < 1e-13 * np.linalg.norm(A) * np.linalg.norm(X)
    X = control_names.dlyap(A / 9, Q / 9, C)
    assert np.linalg.norm(A @ X @ Q.conj().T / 81 - X + C) < 1e-13 * np.linalg.norm(X) * np.linalg.norm(A)


@given(seeds)
def test_generalised_lyapunov_equations_have_small_residuals(seed):
    A, Q, E = random(seed, 4, 4) - 6 * np.eye(4), random(seed + 2, 4, 4), random(seed + 4, 4, 4) + 6 * np.eye(4)
    X = control_names.lyap(A, Q, None, E)
    scale = np.linalg.norm(A) * np.linalg.norm(E) * np.linalg.norm(X)
    assert np.linalg.norm(A @ X @ E.conj().T + E @ X @ A.conj().T + Q) < 1e-12 * scale
    X = control_names.dlyap(A / 9, Q, None, E)
    assert np.linalg.norm(A @ X @ A.conj().T / 81 - E @ X @ E.conj().T + Q) < 1e-12 * scale


def test_lyap_agrees_with_python_control():
    Q = np.array([[2.0, 0.5], [0.5, 1.0]])
    np.testing.assert_allclose(control_names.lyap(A, Q), control.lyap(A, Q), atol=1e-12)
    np.testing.assert_allclose(control_names.dlyap(A / 9, Q), control.dlyap(A / 9, Q), atol=1e-12)


def test_right_sides_need_not_be_symmetric_to_the_last_bit():
    """python-control refuses an asymmetry of 1e-12; the equation has a solution all the same."""
    Q = np.array([[1.0, 1e-12], [0.0, 1.0]])
    X = control_names.lyap(A, Q)
    np.testing.assert_allclose(A @ X + X @ A.T + Q, 0, atol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((A, A, np.ones((2, 3))), r"C must be \(n, k\)"),
        ((A, A, A, A), "C and E must not be given together"),
        ((A, A, None, np.eye(3)), "E must have the shape of A"),
        ((A, A, None, np.zeros((2, 2))), "E must be nonsingular"),
    ],
)
def test_bad_equations_are_refused(arguments, message):
    with pytest.raises(hr.InputError, match=message):
        control_names.lyap(*arguments)


def test_singular_sylvester_equations_are_refused():
    with pytest.raises(hr.NumericalError, match="lam_i \\+ mu_j = 0"):
        control_names.lyap(np.diag([1.0, 2.0]), np.diag([-1.0, 5.0]), np.ones((2, 2)))
