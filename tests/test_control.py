"""python-control's names: the same answers where python-control is right, right answers where it is not."""

from __future__ import annotations

import inspect
import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given
from strategies import seeds

import hankelred as hr
import hankelred.control as ours
from hankelred.order import error_bound

control = pytest.importorskip("control", reason="compares with python-control")

A, B, C = np.array([[1.0, -2.0], [3.0, -4.0]]), np.array([[5.0, 6.0], [7.0, 8.0]]), np.array([[4.0, 5.0], [6.0, 7.0]])


def plant(dt: object = 0) -> control.StateSpace:
    """A named four-state model with two inputs and two outputs."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((4, 4))
    matrix = matrix - 4 * np.eye(4) if dt == 0 else 0.9 * matrix / np.max(np.abs(np.linalg.eigvals(matrix)))
    names = {"inputs": ["force", "torque"], "outputs": ["position", "angle"], "name": "arm"}
    return control.ss(matrix, rng.standard_normal((4, 2)), rng.standard_normal((2, 4)), 0, dt, **names)


NAMES = (
    "balred balanced_reduction hsvd hankel_singular_values gram lyap dlyap minreal minimal_realization modred "
    "model_reduction"
).split()


@pytest.mark.parametrize("name", NAMES)
def test_arguments_have_the_names_order_and_defaults_of_python_control(name):
    found, theirs = (inspect.signature(getattr(module, name)).parameters for module in (ours, control))
    assert [(p.name, p.default) for p in found.values()] == [(p.name, p.default) for p in theirs.values()]


@pytest.mark.parametrize("type", ["c", "o", "cf", "of"])
@pytest.mark.parametrize("dt", [0, 0.2])
def test_gram_agrees(type, dt):
    pytest.importorskip("slycot", reason="python-control computes Gramians with Slycot")
    np.testing.assert_allclose(ours.gram(plant(dt), type), control.gram(plant(dt), type), atol=1e-12)


def test_gram_has_the_values_in_the_tests_of_python_control():
    factor = ours.gram((A, B, C, np.zeros((2, 2))), "cf")
    np.testing.assert_allclose(factor, [[4.30116263, 5.6961343], [0.0, 0.23249528]], atol=1e-8)


def test_gram_of_a_complex_system_is_hermitian_with_a_triangular_factor():
    system = hr.StateSpace([[-1 + 1j, 0.3], [0.1j, -2 - 1j]], [[1.0], [1j]], [[1.0, 1.0]])
    factor = ours.gram(system, "of")
    np.testing.assert_allclose(np.tril(factor, -1), 0, atol=1e-15)
    np.testing.assert_allclose(factor.conj().T @ factor, ours.gram(system, "o"), atol=1e-14)


@pytest.mark.parametrize("method", ["truncate", "matchdc"])
def test_balred_agrees_in_continuous_time(method):
    pytest.importorskip("slycot", reason="python-control reduces with Slycot")
    found, theirs = ours.balred(plant(), 2, method), control.balred(plant(), 2, method)
    omega = np.geomspace(0.1, 100, 20)
    np.testing.assert_allclose(found(1j * omega), theirs(1j * omega), atol=1e-9)


@pytest.mark.parametrize("dt", [0, 0.2, True])
def test_balred_keeps_class_dt_and_names(dt):
    reduced = ours.balred(plant(dt), 2)
    assert isinstance(reduced, control.StateSpace)
    assert reduced.dt is plant(dt).dt or reduced.dt == plant(dt).dt
    assert reduced.input_labels == ["force", "torque"]
    assert reduced.output_labels == ["position", "angle"]


def test_one_order_gives_a_system_and_several_give_a_list():
    assert ours.balred(plant(), [2]).nstates == 2
    assert [reduced.nstates for reduced in ours.balred(plant(), [1, 3])] == [1, 3]


def test_matlab_example_with_a_slow_pole_keeps_it():
    """MATLAB's balred page: offset 0.001, order 2 of zpk([-.5 -1.1 -2.9], [-1e-6 -2 -1 -3], 1)."""
    import scipy.signal

    system = scipy.signal.ZerosPolesGain([-0.5, -1.1, -2.9], [-1e-6, -2.0, -1.0, -3.0], 1.0)
    reduced = hr.as_system(ours.balred(system, 2, alpha=-1e-3))
    num, den = scipy.signal.ss2tf(reduced.A, reduced.B, reduced.C, reduced.D)
    np.testing.assert_allclose(np.sort(np.roots(den).real), [-1.952, -1e-6], atol=5e-4)
    np.testing.assert_allclose(np.roots(num[0][1:]), [-0.5235], atol=5e-5)


def test_orders_past_the_rank_are_lowered_with_a_warning():
    system = hr.StateSpace(np.diag([-1.0, -2.0, -3.0]), [[1.0], [0.0], [0.0]], np.ones((1, 3)))
    with pytest.warns(hr.NonMinimalWarning, match="numerical rank of the system is 1, less than the order 2"):
        assert ours.balred(system, 2).n == 1


@pytest.mark.parametrize("dtype", [float, complex, "float32"])
@pytest.mark.parametrize("shift", [0.0, 3.0])  # stable, and with unstable poles
@pytest.mark.parametrize("match_dc", [False, True])
def test_balred_returns_the_model_of_the_reduction(dtype, shift, match_dc):
    rng = np.random.default_rng(0)
    A = (rng.standard_normal((6, 6)) - (4 - shift) * np.eye(6)).astype(dtype)
    system = hr.StateSpace(A, np.ones((6, 1), A.dtype), np.eye(6)[:2].astype(A.dtype), inputs=["u"])
    for order in (4, 6):
        model = ours.balred(system, order, "matchdc" if match_dc else "truncate")
        expected = hr.balanced_truncation(system, order=order, match_dc=match_dc).system
        assert (model.inputs, model.dtype) == (("u",), A.dtype)
        for name in "ABCD":
            np.testing.assert_array_equal(getattr(model, name), getattr(expected, name))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((2, "residue"), "method must be"), ((2, "truncate", 0.5), "alpha must be at most 0"), ((9,), "order must be")],
)
def test_bad_arguments_of_balred_are_refused(arguments, message):
    with pytest.raises(hr.InputError, match=message):
        ours.balred(plant(), *arguments)


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_alpha_of_a_discrete_system_is_a_modulus(alpha):
    with pytest.raises(hr.InputError, match="alpha must be at least 0 and at most 1"):
        ours.balred(plant(0.1), 2, alpha=alpha)


def test_unknown_gramian_types_are_refused():
    with pytest.raises(hr.InputError, match="type must be one of 'c'"):
        ours.gram(plant(), "x")


def test_hsvd_of_a_discrete_system_is_what_python_control_cannot_compute():
    with pytest.raises(NotImplementedError):
        control.hsvd(plant(0.2))
    np.testing.assert_allclose(ours.hsvd(plant(0.2)), hr.hankel_singular_values(plant(0.2)))


def random(seed: int, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    return x + 1j * rng.standard_normal(shape) if seed % 2 else x


@given(seeds)
def test_sylvester_equations_have_small_residuals(seed):
    A, Q, C = random(seed, 5, 5) - 6 * np.eye(5), random(seed, 3, 3) - 6 * np.eye(3), random(seed, 5, 3)
    X = ours.lyap(A, Q, C)
    assert np.linalg.norm(A @ X + X @ Q + C) < 1e-13 * np.linalg.norm(A) * np.linalg.norm(X)
    X = ours.dlyap(A / 9, Q / 9, C)
    assert np.linalg.norm(A @ X @ Q.conj().T / 81 - X + C) < 1e-13 * np.linalg.norm(X) * np.linalg.norm(A)


@given(seeds)
def test_generalised_lyapunov_equations_have_small_residuals(seed):
    A, Q, E = random(seed, 4, 4) - 6 * np.eye(4), random(seed + 2, 4, 4), random(seed + 4, 4, 4) + 6 * np.eye(4)
    X = ours.lyap(A, Q, None, E)
    scale = np.linalg.norm(A) * np.linalg.norm(E) * np.linalg.norm(X)
    assert np.linalg.norm(A @ X @ E.conj().T + E @ X @ A.conj().T + Q) < 1e-12 * scale
    X = ours.dlyap(A / 9, Q, None, E)
    assert np.linalg.norm(A @ X @ A.conj().T / 81 - E @ X @ E.conj().T + Q) < 1e-12 * scale


def test_lyap_agrees_with_python_control():
    Q = np.array([[2.0, 0.5], [0.5, 1.0]])
    np.testing.assert_allclose(ours.lyap(A, Q), control.lyap(A, Q), atol=1e-12)
    np.testing.assert_allclose(ours.dlyap(A / 9, Q), control.dlyap(A / 9, Q), atol=1e-12)


def test_right_sides_need_not_be_symmetric_to_the_last_bit():
    """python-control refuses an asymmetry of 1e-12; the equation has a solution all the same."""
    Q = np.array([[1.0, 1e-12], [0.0, 1.0]])
    X = ours.lyap(A, Q)
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
        ours.lyap(*arguments)


def test_singular_sylvester_equations_are_refused():
    with pytest.raises(hr.NumericalError, match="lam_i \\+ mu_j = 0"):
        ours.lyap(np.diag([1.0, 2.0]), np.diag([-1.0, 5.0]), np.ones((2, 2)))


NO_ORDERS = [None, 10**30, 1e30, 2.5, np.nan, True, "2", b"2", {1, 2}, [[1, 2]], [1, None], (k for k in (1, 2)), 1j, -1]


@pytest.mark.parametrize("orders", NO_ORDERS, ids=lambda x: type(x).__name__)
def test_what_is_no_order_is_an_order_error(orders):
    with pytest.raises(hr.OrderError, match="order must be"):
        ours.balred(plant(), orders)


@pytest.mark.parametrize(
    "orders", [2, 2.0, np.int8(2), np.float32(2), np.array(2), [2], (2.0,), np.array([2]), range(2, 3)]
)
def test_one_whole_number_of_any_kind_is_an_order(orders):
    assert ours.balred(plant(), orders).nstates == 2


def test_no_orders_give_an_empty_list():
    assert ours.balred(plant(), []) == []


def random_model(seed: int, n: int = 6) -> control.StateSpace:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((n, n))
    matrix -= (np.linalg.eigvals(matrix).real.max() + 0.3) * np.eye(n)
    return control.ss(matrix, rng.standard_normal((n, 2)), rng.standard_normal((3, n)), rng.standard_normal((3, 2)))


@pytest.mark.parametrize("method", ["truncate", "matchdc"])
@given(seed=seeds)
def test_balred_of_stable_real_models_agrees(method, seed):
    pytest.importorskip("slycot", reason="python-control reduces with Slycot")
    model = random_model(seed)
    gap = ours.hsvd(model)
    order = int(np.argmax(gap[1:-1] / gap[2:])) + 2  # where the reduced model depends least on rounding
    omega = np.geomspace(0.01, 100, 12)
    found, theirs = ours.balred(model, order, method)(1j * omega), control.balred(model, order, method)(1j * omega)
    np.testing.assert_allclose(found, theirs, atol=1e-9 * np.abs(theirs).max())


@given(seeds)
def test_hsvd_of_stable_real_models_agrees(seed):
    """To half of the digits: python-control forms the product of the Gramians."""
    pytest.importorskip("slycot", reason="python-control computes Gramians with Slycot")
    model = random_model(seed)
    np.testing.assert_allclose(ours.hsvd(model), control.hsvd(model), atol=1e-7 * ours.hsvd(model)[0])


@pytest.mark.parametrize("solve", ["lyap", "dlyap"])
@pytest.mark.parametrize("method", [None, "scipy", "slycot"])
def test_numbers_and_vectors_are_matrices(solve, method):
    for arguments in ((-0.5, 2.0), (np.float32(-0.5), [3.0], 8.0), ([-0.5], [1.0], [[4.0]]), (-0.5, [0.25], [5.0])):
        if method == "scipy" and solve == "dlyap" and len(arguments) == 3 or method != "scipy":
            pytest.importorskip("slycot")
        mine = getattr(ours, solve)(*arguments, method=method)
        theirs = getattr(control, solve)(*arguments, method="slycot" if solve == "dlyap" else method)
        assert np.atleast_2d(mine).shape == theirs.shape  # numbers alone give a number, and (1, 1) there
        np.testing.assert_allclose(np.atleast_2d(mine), theirs, rtol=1e-6)  # one of the numbers is in single precision


def test_a_row_is_a_right_side_for_one_equation():
    np.testing.assert_allclose(ours.lyap(-1.0, -np.eye(3), [1.0, 2.0, 4.0]), [[0.5, 1.0, 2.0]])


ERRORS = [
    (lambda f: f(A, A, A, A), control.exception.ControlArgument),
    (lambda f: f(A, A, method="fortran"), control.exception.ControlArgument),
    (lambda f: f(np.ones((2, 3)), A), control.exception.ControlDimension),
    (lambda f: f(A, np.eye(3)), control.exception.ControlDimension),
    (lambda f: f(A, A, np.eye(3)), control.exception.ControlDimension),
    (lambda f: f(A, np.eye(2), None, np.eye(3)), control.exception.ControlDimension),
]


@pytest.mark.parametrize(("call", "theirs"), ERRORS)
@pytest.mark.parametrize("solve", ["lyap", "dlyap"])
def test_errors_are_caught_as_those_of_python_control(solve, call, theirs):
    with pytest.raises(theirs):
        call(getattr(control, solve))
    with pytest.raises(hr.InputError) as caught:
        call(getattr(ours, solve))
    assert isinstance(caught.value, theirs)


def test_errors_of_two_families_survive_pickling():
    with pytest.raises(hr.InputError) as caught:
        ours.lyap(A, A, A, A)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is type(caught.value)
    assert str(copy) == str(caught.value)


CALLS = [
    (lambda module: module.balred(plant(), 2, "residue"), ValueError),
    (lambda module: module.gram(plant(), "x"), ValueError),
    (lambda module: module.gram(control.ss(1, 1, 1, 0), "c"), ValueError),
    (lambda module: module.modred(np.eye(2), [0]), TypeError),
    (lambda module: module.modred(plant(), [9]), IndexError),
    (lambda module: module.modred(plant(), ["no such state"]), ValueError),
    (lambda module: module.modred(plant(), [1], keep_states=[0]), ValueError),
    (lambda module: module.modred(plant(), [1], "residue"), ValueError),
    (lambda module: module.modred(control.ss([[-1, 0], [0, 0]], [[1], [1]], [[1, 1]], 0), [1]), ValueError),
]


@pytest.mark.filterwarnings("ignore:.*unstable", "ignore:.*not stable")
@pytest.mark.parametrize(("call", "builtin"), CALLS)
def test_bad_calls_raise_the_builtin_errors_of_python_control(call, builtin):
    pytest.importorskip("slycot", reason="balred and gram of python-control look for it first")
    with pytest.raises(builtin):
        call(control)
    with pytest.raises(builtin) as caught:
        call(ours)
    assert isinstance(caught.value, hr.HankelredError)


@pytest.mark.parametrize(
    "arguments",
    [
        {"elim_states": [1, 3]},
        {"elim_states": [3, 1], "method": "truncate"},
        {"elim_states": "x[2]"},
        {"elim_states": ["x[0]", 2]},
        {"elim_states": slice(0, 2)},
        {"keep_states": [0, "x[3]"], "keep_inputs": "torque", "elim_outputs": 0},
        {"keep_states": slice(None, None, 2), "elim_inputs": ["force"], "method": "truncate"},
        {"elim_states": range(4)},
        {"elim_states": []},
        {},
    ],
    ids=repr,
)
def test_modred_agrees_in_continuous_time(arguments):
    found, theirs = ours.modred(plant(), **arguments), control.modred(plant(), **arguments)
    for key in "ABCD":
        np.testing.assert_allclose(getattr(found, key), getattr(theirs, key), atol=1e-13)


def test_modred_keeps_dt_and_the_names_of_what_is_left():
    reduced = ours.modred(plant(0.2), ["x[1]"], elim_inputs="force")
    assert (reduced.dt, reduced.state_labels, reduced.input_labels) == (0.2, ["x[0]", "x[2]", "x[3]"], ["torque"])
    assert reduced.output_labels == ["position", "angle"]


@given(seeds)
def test_modred_with_matchdc_keeps_the_gain_at_one_of_discrete_systems(seed):
    model = random(seed, 5, 5) / 9
    system = hr.StateSpace(model, random(seed + 2, 5, 2), random(seed + 4, 2, 5), dt=0.1)
    reduced = ours.modred(system, [0, -1])
    assert reduced.n == 3
    np.testing.assert_allclose(reduced.frequency_response([0.0]), system.frequency_response([0.0]), atol=1e-12)


def test_modred_warns_of_unstable_systems_as_python_control_does():
    model = control.ss([[1.0, 0.0], [0.0, -1.0]], [[1.0], [1.0]], [[1.0, 1.0]], 0)
    with pytest.warns(hr.HankelredWarning, match="not stable"):
        ours.modred(model, [1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ours.modred(model, [1], warn_unstable=False).nstates == 1


def non_minimal(seed: int, dt: object = 0, unstable: bool = False) -> tuple[control.StateSpace, control.StateSpace]:
    """Return a minimal model, and the same with an uncontrollable and an unobservable state, rotated."""
    rng = np.random.default_rng(seed)
    n = 4
    poles = np.array([-1.0, -2.0, -0.5, -3.0]) if dt == 0 else np.array([0.9, -0.5, 0.3, 0.7])
    extra = [0.7, 0.4] if unstable == (dt == 0) else [1.5, 1.2] if unstable else [-0.7, -0.4]
    poles[0] = {(True, True): 0.6, (True, False): 1.3}.get((unstable, dt == 0), poles[0])
    B, C = rng.standard_normal((n, 2)), rng.standard_normal((2, n))
    large_A = np.zeros((n + 2, n + 2))
    large_A[:n, :n] = np.diag(poles)
    large_A[n, n], large_A[n + 1, n + 1] = extra
    large_A[:n, n] = rng.standard_normal(n)  # the uncontrollable state drives the others
    large_A[n + 1, :n] = rng.standard_normal(n)  # the others drive the unobservable one
    Q, _ = np.linalg.qr(rng.standard_normal((n + 2, n + 2)))
    large_B, large_C = (
        np.vstack([B, np.zeros((1, 2)), rng.standard_normal((1, 2))]),
        np.hstack([C, rng.standard_normal((2, 1)), np.zeros((2, 1))]),
    )
    large = control.ss(Q @ large_A @ Q.T, Q @ large_B, large_C @ Q.T, 0, dt)
    return control.ss(np.diag(poles), B, C, 0, dt), large


@pytest.mark.parametrize("unstable", [False, True])
@pytest.mark.parametrize("dt", [0, 0.1])
@given(seed=seeds)
def test_minreal_leaves_out_what_links_nothing_be_it_unstable_or_not(dt, unstable, seed):
    small, large = non_minimal(seed, dt, unstable)
    found = ours.minreal(large, verbose=False)
    assert (type(found), found.nstates, found.dt) == (control.StateSpace, 4, dt)
    points = np.exp(1j * np.linspace(0.1, 3, 9)) if dt else 1j * np.geomspace(0.01, 100, 9)
    expected = small(points)
    np.testing.assert_allclose(found(points), expected, atol=1e-10 * np.abs(expected).max())  # rotations of 1e-15


@pytest.mark.parametrize("unstable", [False, True])
def test_minreal_says_and_does_what_python_control_does(unstable, capsys):
    pytest.importorskip("slycot", reason="python-control takes tb01pd")
    _, large = non_minimal(3, 0, unstable)
    theirs = control.minreal(large)
    said = capsys.readouterr().out
    assert ours.minreal(large).nstates == theirs.nstates
    assert capsys.readouterr().out == said


def test_minreal_of_a_transfer_function_is_one():
    model = control.tf([1.0, 3.0, 2.0], [1.0, 6.0, 11.0, 6.0])  # (s + 1) (s + 2) over that and (s + 3)
    found = ours.minreal(model, verbose=False)
    assert isinstance(found, control.TransferFunction)
    np.testing.assert_allclose(found.poles(), [-3.0], atol=1e-12)
    np.testing.assert_allclose(found(1j), 1 / (3 + 1j), atol=1e-12)


def test_minreal_returns_a_minimal_model_as_it_is():
    assert ours.minreal(plant(), verbose=False) is not None
    np.testing.assert_array_equal(ours.minreal(plant(), verbose=False).A, plant().A)


def test_equations_that_overflow_and_lists_that_are_ragged_are_refused():
    one = np.eye(2)
    with pytest.raises(hr.NumericalError, match="Scale E"):
        ours.lyap(-one, one, None, 1e-310 * one)
    motor = hr.StateSpace(-one, one, one)
    for choice in ({"elim_states": [[0], [0, 1.5]]}, {"elim_states": ["a", "b"]}):
        with pytest.raises(hr.InputError, match="elim_states"):
            ours.modred(motor, **choice)
    with pytest.raises(hr.OrderError, match="order"):
        ours.balred(motor, [[1], [1, 2]])
    with pytest.raises(hr.NumericalError, match="Scale time"):
        ours.minreal(hr.StateSpace([[1e308]], [[1.0]], [[1.0]]))
    with pytest.raises(hr.InputError, match="sys must be one system"):
        ours.minreal(hr.DiagonalBank([[-1.0]], [[[1.0]]], [[[1.0]]], dt=0))


def test_bounds_that_overflow_are_infinite():
    assert error_bound(np.array([1e308, 0.9e308, 0.8e308]), 0) == np.inf
