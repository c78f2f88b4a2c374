"""Models come from other libraries and go back without losing digits, `dt` or names."""

from __future__ import annotations

import operator
import warnings

import control
import numpy as np
import pytest
import scipy.signal
from hypothesis import given
from hypothesis import strategies as st

from hankelred import balanced_truncation
from hankelred.errors import InputError
from hankelred.systems import DiagonalSystem, StateSpace, as_container, as_system

CONVERSIONS = [operator.methodcaller("to_control"), operator.methodcaller("to_scipy")]
EVERY_DT = pytest.mark.parametrize("dt", [0, 0.1, True])
NAMES = {"name": "plant", "inputs": ("force", "heat"), "outputs": ("speed",), "states": ("x1", "x2", "x3")}


def random_system(seed, n=3, m=2, p=1, dt=0, dtype=float, E=False, **names):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        x = rng.standard_normal(shape)
        return (x + 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else x).astype(dtype)

    descriptor = np.eye(n, dtype=dtype) + 0.1 * draw(n, n) if E else None
    return StateSpace(draw(n, n), draw(n, m), draw(p, n), draw(p, m), dt, descriptor, **names)


def random_diagonal(seed, n=3, m=2, p=1, dt=True, output="real", rates=False, **names):
    rng = np.random.default_rng(seed)
    z, B, C = (rng.standard_normal(s) + 1j * rng.standard_normal(s) for s in ((n,), (n, m), (p, n)))
    build = DiagonalSystem.from_rates if rates else DiagonalSystem
    D = rng.standard_normal((p, m))
    return build(-np.abs(z.real) + 1j * z.imag, B, C, D, dt=dt, output=output, **names)


def points(dt):
    """Frequencies and where they lie in the plane of s or z."""
    omega = np.array([0.03, 0.4, 1.7, 2.9])
    if dt == 0 and dt is not True:
        return omega, 1j * omega
    return omega, np.exp(1j * omega * (1.0 if dt is True else dt))


def assert_same(G, H):
    """Two systems agree in every bit, in dtype, dt and names."""
    assert type(G) is type(H)
    names = ("A", "B", "C", "D", "E") if isinstance(G, StateSpace) else ("lam", "rates", "B", "C", "D")
    for name in names:
        a, b = getattr(G, name), getattr(H, name)
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    assert G.dt == H.dt
    assert type(G.dt) is type(H.dt)
    assert [getattr(G, key) for key in NAMES] == [getattr(H, key) for key in NAMES]
    assert getattr(G, "output", None) == getattr(H, "output", None)


# Systems and tuples


@pytest.mark.parametrize("system", [random_system(0), random_diagonal(0)])
def test_a_system_of_ours_is_returned_as_it_is(system):
    assert as_system(system) is system


def test_a_tuple_of_four_is_a_continuous_system():
    G = random_system(1)
    assert_same(as_system((G.A, G.B, G.C, G.D)), G)


@EVERY_DT
def test_a_tuple_of_five_ends_with_dt(dt):
    G = random_system(1, dt=dt)
    assert_same(as_system((G.A, G.B, G.C, G.D, dt)), G)


@pytest.mark.parametrize(("length", "hint"), [(1, "got 1 parts"), (2, "num, den"), (3, "z, p, k"), (6, "got 6")])
def test_a_tuple_of_another_length_is_refused_with_a_hint(length, hint):
    with pytest.raises(InputError, match=hint):
        as_system(([1.0],) * length)


@pytest.mark.parametrize("thing", [np.eye(2), "plant.mat", None, {"A": 1}])
def test_an_object_that_is_no_model_is_refused_by_its_class(thing):
    with pytest.raises(InputError, match=type(thing).__qualname__):
        as_system(thing)


# python-control


@EVERY_DT
def test_a_state_space_of_python_control_survives_the_way_there_and_back(dt):
    G = random_system(2, dt=dt, **NAMES)
    assert_same(as_system(G.to_control()), G)


@EVERY_DT
def test_a_transfer_function_of_python_control_keeps_its_response(dt):
    model = control.tf([2.0, 1.0, 3.0], [2.0, 1.0, 0.3, 0.7], dt)
    omega, x = points(dt)
    expected = np.polyval([2.0, 1.0, 3.0], x) / np.polyval([2.0, 1.0, 0.3, 0.7], x)
    # eps times the condition of a three-state companion form
    np.testing.assert_allclose(as_system(model).frequency_response(omega)[:, 0, 0], expected, rtol=1e-13)


@EVERY_DT
def test_a_transfer_function_keeps_dt_and_names(dt):
    G = as_system(control.tf([1.0], [1.0, 0.5], dt, name="lag", inputs=["u"], outputs=["y"]))
    assert (G.dt, G.name, G.inputs, G.outputs, G.states) == (dt, "lag", ("u",), ("y",), None)


@st.composite
def tables(draw):
    """A (p, m) table of proper ratios whose denominators have roots of modulus 1/2, some denominators shared."""
    p, m = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pool = [np.atleast_1d(np.poly(0.5 * rng.choice([-1.0, 1.0], k))) for k in rng.integers(0, 4, 2)]
    den = [[pool[rng.integers(2)] * rng.choice([1.0, 2.0]) for _ in range(m)] for _ in range(p)]
    num = [[rng.standard_normal(rng.integers(1, len(d) + 1)) for d in row] for row in den]
    return num, den


@given(tables())
def test_a_table_of_transfer_functions_keeps_every_response(table):
    num, den = table
    omega, x = points(True)
    expected = [
        [np.polyval(b, x) / np.polyval(a, x) for b, a in zip(*row, strict=True)] for row in zip(*table, strict=True)
    ]
    response = as_system(control.tf(num, den, True)).frequency_response(omega)
    # poles at distance 1/2 from the points, at most triple: gains up to 2^3 of the coefficients
    np.testing.assert_allclose(response, np.moveaxis(np.array(expected), 2, 0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("p", "m"), [(3, 1), (1, 3)])
def test_one_denominator_is_realised_once(p, m):
    model = control.tf([[[1.0 + i + j] for j in range(m)] for i in range(p)], [[[1.0, 3.0, 2.0]] * m] * p)
    assert as_system(model).n == 2


def test_a_transfer_function_at_a_kilohertz_keeps_its_poles():
    # unscaled, the companion form of this filter has entries from 1 to 1e38 and its Schur form only 8 digits
    z, poles, k = scipy.signal.butter(10, 2 * np.pi * 1000, analog=True, output="zpk")
    system = as_system(control.tf(k * np.poly(z), np.poly(poles)))
    triangle, _ = scipy.linalg.schur(system.A, output="complex")
    distance = np.abs(np.diag(triangle)[:, None] - poles).min(axis=1).max()
    assert distance < 1e-11 * np.abs(poles).max()  # the polynomial itself has no more digits than that


def test_an_interconnection_that_is_linear_is_a_state_space():
    lag = control.ss([[-2.0]], [[1.0]], [[3.0]], [[0.0]], name="lag", inputs="u", outputs="y", states=["level"])
    system = as_system(control.interconnect([lag], inputs="u", outputs="y"))
    np.testing.assert_array_equal(system.A, [[-2.0]])


@pytest.mark.parametrize(
    "model",
    [
        control.frd([1.0, 0.5], [1.0, 2.0]),
        control.nlsys(lambda t, x, u, params: -(x**3) + u, None, inputs=1, outputs=1, states=1),
    ],
)
def test_a_control_object_without_matrices_is_refused(model):
    with pytest.raises(InputError, match=type(model).__name__):
        as_system(model)


@pytest.mark.parametrize("model", [control.ss(-1.0, 1.0, 1.0, 0.0, None), control.tf([1.0], [1.0, 1.0], None)])
def test_states_without_a_stated_time_are_refused(model):
    with pytest.raises(InputError, match="dt=None"):
        as_system(model)


@pytest.mark.parametrize(
    "model", [control.ss([], [], [], [[2.0, 3.0]]), control.tf([[[2.0], [3.0]]], [[[1.0], [1.0]]])]
)
def test_a_static_gain_needs_no_stated_time(model):
    G = as_system(model)
    assert (G.n, G.dt, G.D.tolist()) == (0, 0, [[2.0, 3.0]])


def test_a_complex_system_is_refused_rather_than_cast_to_real():
    with pytest.raises(InputError, match="would drop"):
        random_system(3, dtype=complex).to_control()


def test_a_complex_dtype_without_imaginary_parts_loses_nothing_in_python_control():
    G = random_system(3)
    assert np.array_equal(StateSpace(G.A.astype(complex), G.B, G.C, G.D).to_control().A, G.A)


@pytest.mark.parametrize("convert", CONVERSIONS)
def test_the_response_of_a_diagonal_system_with_real_output_survives(convert):
    G = random_diagonal(4)
    omega, _ = points(True)
    # eps times the nearness of the poles to the circle, 0.1 here
    np.testing.assert_allclose(as_system(convert(G)).frequency_response(omega), G.frequency_response(omega), rtol=1e-12)


@pytest.mark.parametrize("convert", CONVERSIONS)
def test_E_is_absorbed(convert):
    G = random_system(5, E=True)
    omega, _ = points(0)
    # eps times the condition of E, which is below 10
    np.testing.assert_allclose(as_system(convert(G)).frequency_response(omega), G.frequency_response(omega), rtol=1e-12)


@pytest.mark.parametrize("convert", CONVERSIONS)
def test_a_converted_model_owns_its_matrices(convert):
    G = random_system(6)
    convert(G).A[0, 0] = 99.0
    assert G.A[0, 0] != 99.0


@pytest.mark.parametrize("convert", CONVERSIONS)
def test_a_system_without_states_converts(convert):
    G = StateSpace(np.empty((0, 0)), np.empty((0, 2)), np.empty((1, 0)), [[1.0, 2.0]])
    assert as_system(convert(G)).D.tolist() == [[1.0, 2.0]]


# scipy.signal


@pytest.mark.parametrize("dtype", [float, complex])
@EVERY_DT
def test_a_state_space_of_scipy_survives_the_way_there_and_back(dt, dtype):
    G = random_system(7, dt=dt, dtype=dtype)
    assert_same(as_system(G.to_scipy()), G)


@EVERY_DT
@pytest.mark.parametrize("form", ["ss", "tf", "zpk"])
def test_every_form_of_scipy_keeps_dt_and_response(form, dt):
    zeros, poles, gain = [0.3, -2.0], [-0.5, 0.1 + 0.6j, 0.1 - 0.6j], -1.5
    time = {"dt": dt} if dt else {}
    model = scipy.signal.ZerosPolesGain(zeros, poles, gain, **time)
    model = {"ss": model.to_ss, "tf": model.to_tf, "zpk": lambda: model}[form]()
    omega, x = points(dt)
    expected = [gain * np.prod(xk - zeros) / np.prod(xk - poles) for xk in x]
    G = as_system(model)
    assert G.dt == dt
    # eps times the nearness of the roots to the points, above 0.01
    np.testing.assert_allclose(G.frequency_response(omega)[:, 0, 0], expected, rtol=1e-12)


def test_one_input_and_two_outputs_of_scipy_share_their_states():
    system = as_system(scipy.signal.TransferFunction([[1.0, 2.0], [3.0, 4.0]], [1.0, 2.0, 3.0]))
    assert (system.n, system.m, system.p) == (2, 1, 2)


def test_a_discrete_model_of_scipy_with_no_dt_is_refused():
    with pytest.raises(InputError, match="dlti"):
        as_system(scipy.signal.dlti([1.0], [1.0, 0.5], dt=None))


@st.composite
def zeros_poles_gain(draw):
    """Real and complex roots with moduli within a decade, in conjugate pairs or not."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    real = draw(st.booleans())

    def roots(count):
        pairs = rng.integers(count // 2 + 1)
        x = -(10 ** rng.uniform(0, 1, pairs)) * np.exp(1j * rng.uniform(0.1, 1.4, pairs))
        x = np.concatenate([x, x.conj(), -(10 ** rng.uniform(0, 1, count - 2 * pairs))])
        return rng.permutation(x) if real else x * np.exp(0.05j * rng.standard_normal(count))

    n = draw(st.integers(0, 9))
    return roots(draw(st.integers(0, n))), roots(n), rng.standard_normal(), real


@given(zeros_poles_gain())
def test_a_cascade_of_poles_and_zeros_keeps_the_response(zpk):
    zeros, poles, gain, _ = zpk
    omega, x = points(0)
    expected = np.array([gain * np.prod(xk - zeros) / np.prod(xk - poles) for xk in x])
    response = as_system(scipy.signal.lti(zeros, poles, gain)).frequency_response(omega)[:, 0, 0]
    # nine sections; intermediate gains exceed the final one by some ten per section at worst
    np.testing.assert_allclose(response, expected, rtol=1e-10)


@given(zeros_poles_gain())
def test_roots_in_conjugate_pairs_give_real_matrices(zpk):
    zeros, poles, gain, real = zpk
    if real:
        assert as_system(scipy.signal.lti(zeros, poles, gain)).dtype == np.float64


@given(zeros_poles_gain())
def test_a_cascade_has_the_given_poles_on_its_diagonal(zpk):
    zeros, poles, gain, _ = zpk
    A = as_system(scipy.signal.lti(zeros, poles, gain)).A
    np.testing.assert_array_equal(np.sort(np.diag(A).real), np.sort(poles.real))


def test_a_filter_of_order_20_is_realised_to_full_accuracy():
    zeros, poles, gain = scipy.signal.butter(20, 0.02, output="zpk")
    omega = np.linspace(0.01, 0.05, 9)
    expected = np.array([gain * np.prod(z - zeros) / np.prod(z - poles) for z in np.exp(1j * omega)])
    response = as_system(scipy.signal.dlti(zeros, poles, gain)).frequency_response(omega)[:, 0, 0]
    # through polynomials the poles of this filter come out unstable: |z| up to 1.1 in place of 0.995
    np.testing.assert_allclose(response, expected, rtol=1e-11)


@pytest.mark.parametrize(
    ("zeros", "poles", "gain"),
    [
        scipy.signal.ellip(12, 0.1, 80, [0.2, 0.3], btype="bandpass", output="zpk"),
        ([0.5], [1 - 1e-10, np.exp(-1e-9 + 1j), np.exp(-1e-9 - 1j), -0.3], 1.0),
    ],
    ids=["bandpass", "next to the circle"],
)
def test_a_cascade_keeps_its_digits_in_orthogonal_coordinates(zeros, poles, gain):
    # every Schur form is such a change of coordinates; sections of unequal scale lose eight digits or all in it
    G = as_system(scipy.signal.dlti(zeros, poles, gain))
    Q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((G.n, G.n)))
    omega = np.angle(poles) + 1e-3
    expected = [gain * np.prod(z - zeros) / np.prod(z - poles) for z in np.exp(1j * omega)]
    response = StateSpace(Q.T @ G.A @ Q, Q.T @ G.B, G.C @ Q, G.D, True).frequency_response(omega)[:, 0, 0]
    # eps times a distance of 1e-3 to poles, times 24 sections
    np.testing.assert_allclose(response, expected, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize(("dt", "poles"), [(0, [0.0, -1.0]), (0, [1j, -1j]), (True, [1.0, 0.5]), (True, [-1.0, 0.0])])
def test_poles_on_the_boundary_are_realised(dt, poles):
    model = scipy.signal.dlti([], poles, 2.0) if dt else scipy.signal.lti([], poles, 2.0)
    omega, x = points(dt)
    expected = [2.0 / np.prod(xk - poles) for xk in x]
    np.testing.assert_allclose(as_system(model).frequency_response(omega)[:, 0, 0], expected, rtol=1e-13)


def test_a_gain_without_poles_is_a_static_system():
    assert as_system(scipy.signal.lti([], [], 3.0)).D.tolist() == [[3.0]]


@pytest.mark.parametrize(
    "model",
    [
        scipy.signal.lti([1.0, 2.0, 3.0], [1.0, 4.0]),
        scipy.signal.lti([-1.0, -2.0], [-3.0], 1.0),
        control.tf([1.0, 2.0, 3.0], [1.0, 4.0]),
    ],
)
def test_an_improper_model_is_refused(model):
    with pytest.raises(InputError, match="left out"):
        as_system(model)


# Back into the container


@pytest.mark.parametrize(
    ("like", "container"),
    [
        (control.ss(-1.0, 1.0, 1.0, 0.0), control.StateSpace),
        (control.tf([1.0], [1.0, 1.0]), control.StateSpace),
        (scipy.signal.lti([1.0], [1.0, 1.0]), scipy.signal.StateSpace),
        (scipy.signal.lti([], [-1.0], 1.0), scipy.signal.StateSpace),
        (scipy.signal.lti([[-1.0]], [[1.0]], [[1.0]], [[0.0]]), scipy.signal.StateSpace),
        (([[-1.0]], [[1.0]], [[1.0]], [[0.0]]), tuple),
        (random_system(0), StateSpace),
        (random_diagonal(0), StateSpace),  # what is ours is handed back as it is
    ],
)
def test_a_reduced_system_returns_to_its_container(like, container):
    assert isinstance(as_container(random_system(8), like), container)


@EVERY_DT
def test_a_reduced_model_of_scipy_keeps_dt(dt):
    G = random_system(8, dt=dt)
    assert as_system(as_container(G, G.to_scipy())).dt == dt


@pytest.mark.parametrize("length", [4, 5])
def test_a_tuple_is_as_long_as_the_one_that_came(length):
    G = random_system(9)
    parts = as_container(G, (G.A, G.B, G.C, G.D, G.dt)[:length])
    assert_same(as_system(parts), G)
    assert len(parts) == length


def test_names_survive_a_reduction_except_those_of_states():
    G = random_system(10, **NAMES)
    plant = G.with_(A=G.A - 5 * np.eye(3)).to_control()
    model = balanced_truncation(plant, 2).system
    assert (model.name, model.input_labels, model.output_labels) == ("plant", ["force", "heat"], ["speed"])
    assert model.state_labels == ["x[0]", "x[1]"]


def test_a_static_gain_of_python_control_stays_without_time():
    gain = control.ss([], [], [], [[2.0]])
    assert as_container(as_system(gain), gain).dt is None


def test_nothing_warns_on_the_way_through_every_container():
    G = random_system(19, dt=0.1, **NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in (G, G.to_control(), G.to_scipy(), (G.A, G.B, G.C, G.D, 0.1)):
            as_container(as_system(model), model)
