"""Systems: shapes, dtypes, frozen arrays, frequency responses and differences."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import reference
from hypothesis import given
from strategies import diagonal_systems, systems

from hankelred import DiagonalBank, DiagonalSystem, InputError, StateSpace

A, B, C = np.diag([-1.0, -2.0]), np.ones((2, 1)), np.ones((1, 2))
NAMES = {"name": "plant", "inputs": ("u",), "outputs": ("y",), "states": ("x1", "x2")}
LAM = np.array([0.5 + 0.1j, -0.3])
KINDS = {
    "dense": StateSpace(A, B, C, 2.0, 0, np.diag([1.0, 2.0]), **NAMES),
    "index 1": StateSpace(A, B, C, 2.0, 0, np.diag([1.0, 0.0]), **NAMES),
    "diagonal": DiagonalSystem(LAM, B, C, dt=0.5, output="real", **NAMES),
    "rates": DiagonalSystem.from_rates(np.log(LAM), B, C, dt=True, **NAMES),
    "bank": DiagonalBank(np.stack([LAM, LAM / 2]), np.stack([B, B]), np.stack([C, C]), dt=True, **NAMES),
}
EVERY_KIND = pytest.mark.parametrize("system", KINDS.values(), ids=KINDS)


def fields(system):
    """Return everything that a system was made of."""
    return {
        key: getattr(system, key, None) for key in "A B C D E lam rates dt output name inputs outputs states".split()
    }


def test_sizes_are_read_from_the_matrices():
    system = StateSpace(np.diag([-1.0, -2.0, -3.0]), np.ones((3, 2)), np.ones((1, 3)))
    assert (system.n, system.m, system.p) == (3, 2, 1)


def test_matrices_are_copies_that_cannot_be_written():
    source = A.copy()
    system = StateSpace(source, B, C)
    source[0, 0] = 5.0
    assert system.A[0, 0] == -1.0
    with pytest.raises(ValueError, match="read-only"):
        system.A[0, 0] = 5.0


def test_systems_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        StateSpace(A, B, C).dt = 1.0


@EVERY_KIND
@pytest.mark.parametrize(
    "remade",
    [copy.copy, copy.deepcopy, lambda system: pickle.loads(pickle.dumps(system))],
    ids="copy deepcopy pickle".split(),
)
def test_copies_are_equal_and_as_frozen_as_the_original(system, remade):
    other = remade(system)
    before, after = fields(system), fields(other)
    for key, value in before.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(after[key], value)
            assert after[key].dtype == value.dtype
            assert not after[key].flags.writeable
        else:
            assert after[key] == value
    with pytest.raises(dataclasses.FrozenInstanceError):
        other.dt = 1.0
    np.testing.assert_array_equal(other.frequency_response([0.3]), system.frequency_response([0.3]))


@EVERY_KIND
def test_nothing_can_be_set_or_deleted(system):
    for name in ("B", "dt", "name", "anything"):
        with pytest.raises(dataclasses.FrozenInstanceError, match="must not be changed"):
            setattr(system, name, None)
    with pytest.raises(dataclasses.FrozenInstanceError, match="a deletion of B"):
        del system.B


@EVERY_KIND
def test_with_changes_what_is_named_and_nothing_else(system):
    changed = system.with_(B=2 * system.B, name="other")
    expected = {**fields(system), "B": 2 * system.B, "name": "other"}
    assert type(changed) is type(system)
    for key, value in fields(changed).items():
        np.testing.assert_array_equal(value, expected[key], err_msg=key)


@EVERY_KIND
def test_with_checks_as_the_constructor_does(system):
    with pytest.raises(InputError, match="B must be finite"):
        system.with_(B=np.nan * system.B)
    with pytest.raises(InputError, match=r"with_ takes .*got .*color"):
        system.with_(color="red")


def test_poles_are_replaced_as_values_or_as_rates():
    system = KINDS["rates"]
    assert system.with_(lam=[0.5, 0.1]).rates is None
    # exp of complex numbers is that of real ones but for a rounding in NumPy 1.26
    np.testing.assert_allclose(system.with_(rates=[-1.0, -2.0]).lam, np.exp([-1.0, -2.0]), rtol=1e-15)
    with pytest.raises(InputError, match="with_ takes lam or rates"):
        system.with_(lam=[0.5, 0.1], rates=[-1.0, -2.0])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"name": 3}, "name must be a string; got 3"),
        ({"inputs": ["u", "v"]}, "inputs must be a sequence of 1 names; got 2"),
        ({"outputs": "y"}, r"outputs must be a sequence of 1 names; got 'y'. Write outputs=\[...\]"),
        ({"states": ["x1", 2]}, "states must be a sequence of 2 names"),
        ({"states": 2}, "states must be a sequence of 2 names; got 2"),
    ],
)
@EVERY_KIND
def test_names_that_do_not_fit_are_refused(system, names, message):
    with pytest.raises(InputError, match=message):
        system.with_(**names)


@EVERY_KIND
def test_names_are_kept_by_dense_systems(system):
    dense = system.dense()
    for one in dense if isinstance(dense, list) else [dense]:
        assert (one.name, one.inputs, one.outputs) == ("plant", ("u",), ("y",))


@pytest.mark.parametrize(
    ("dtypes", "common"),
    [
        ((np.float32, np.float32), np.float32),
        ((np.float32, np.complex64), np.complex64),
        ((np.int64, np.int64), np.float64),
        ((np.float32, np.float64), np.float64),
        ((np.complex64, np.float64), np.complex128),
    ],
)
def test_matrices_share_one_dtype(dtypes, common):
    system = StateSpace(A.astype(dtypes[0]), B.astype(dtypes[1]), C.astype(dtypes[0]))
    assert {system.A.dtype, system.B.dtype, system.C.dtype, system.D.dtype} == {np.dtype(common)}


@pytest.mark.parametrize("dt", [0, 0.1, 1, True])
def test_dt_is_kept_as_given(dt):
    assert StateSpace(0.1 * A, B, C, dt=dt).dt is dt or StateSpace(0.1 * A, B, C, dt=dt).dt == dt


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((A, B.T, C), r"B must have as many rows as A; got A \(2, 2\) and B \(1, 2\). Did you pass B transposed"),
        ((A, B, C.T), r"C must have as many columns as A.*transposed"),
        ((A[:1], B, C), r"A must be square; got shape \(1, 2\)"),
        ((A, np.ones(2), C), r"B must have 2 axes; got shape \(2,\). B is \(n, m\): write B\[:, None\]"),
        ((A * np.nan, B, C), "A must be finite; got 4 NaN or infinite of 4"),
        ((A, B, C, np.ones((2, 2))), r"D must be \(1, 1\)"),
        ((A, B, C, None, None), "dt must be given; got None"),
        ((A, B, C, None, -1), "dt must not be negative; got -1"),
        ((A, B, C, None, np.nan), "dt must be finite; got nan"),
        ((A, B, C, None, False), "dt must be 0"),
        ((A, B, C, None, "0.1"), "dt must be 0, a positive number of seconds, or True; got '0.1'"),
        ((A, B, C, None, 0, np.eye(3)), "E must have the shape of A"),
        (("text", B, C), "A must hold real or complex numbers; got dtype"),
        (([[1.0], [1.0, 2.0]], B, C), "A must be an array of numbers"),
    ],
)
def test_bad_arguments_get_a_sentence(arguments, message):
    with pytest.raises(InputError, match=message):
        StateSpace(*arguments)


def test_diagonal_system_has_no_default_dt():
    with pytest.raises(TypeError, match="dt"):
        DiagonalSystem([0.5], [[1.0]], [[1.0]])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"output": "imaginary"}, "output must be one of 'complex', 'real'"),
        ({"output": "real", "D": [[1j]]}, "D must be real"),
    ],
)
def test_bad_outputs_get_a_sentence(keywords, message):
    with pytest.raises(InputError, match=message):
        DiagonalSystem([0.5], [[1.0]], [[1.0]], dt=True, **keywords)


def test_rates_are_for_discrete_systems():
    with pytest.raises(InputError, match="from_rates is for discrete systems"):
        DiagonalSystem.from_rates([-0.1], [[1.0]], [[1.0]], dt=0)


def test_rates_tell_stability_where_values_round_to_the_circle():
    z, one = [-1e-18], [[1.0]]
    assert DiagonalSystem.from_rates(z, one, one, dt=True).is_stable()
    assert not DiagonalSystem(np.exp(z), one, one, dt=True).is_stable()


@given(diagonal_systems())
def test_diagonal_response_equals_the_dense_one(system):
    omega = reference.grid(system, 20)
    expected = system.dense().frequency_response(omega)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(system.frequency_response(omega), expected, atol=1e-10 * scale)  # poles at 1e-2


@given(systems(5))
def test_response_equals_the_definition(system):
    omega = reference.grid(system, 20)
    step = 1.0 if system.dt is True else system.dt
    points = np.exp(1j * omega * step) if system.is_discrete else 1j * omega
    expected = reference.transfer(system, points)
    np.testing.assert_allclose(system.frequency_response(omega), expected, atol=1e-10 * np.abs(expected).max())


def test_response_by_rates_keeps_its_digits_next_to_the_circle():
    z = -1e-15
    system = DiagonalSystem.from_rates([z], [[1.0]], [[1.0]], dt=True)
    np.testing.assert_allclose(system.frequency_response([0.0])[0, 0, 0], -1 / np.expm1(z), rtol=1e-14)


def test_response_at_infinity_is_the_feedthrough():
    assert StateSpace(A, B, C, 3.0).frequency_response([np.inf])[0, 0, 0] == 3.0


def test_response_of_every_kind_at_infinity_is_the_feedthrough():
    one = np.ones((1, 1))
    diagonal = DiagonalSystem(-one[0], one, one, [[3.0]], dt=0)
    bank = DiagonalBank(-one, one[None], one[None], [[[3.0]]], dt=0)
    for system in (diagonal, diagonal.with_(output="real"), bank):
        np.testing.assert_array_equal(system.frequency_response([np.inf, -np.inf]).ravel(), [3.0, 3.0])


@pytest.mark.parametrize("dt", [0, 0.5, True])
def test_response_at_a_pole_is_infinite(dt):
    pole, one = (0.0 if dt == 0 else 1.0), np.ones((1, 1))
    dense, diagonal = StateSpace(pole * one, one, one, dt=dt), DiagonalSystem([pole], one, one, dt=dt)
    for system in (dense, diagonal, diagonal.with_(output="real"), DiagonalBank([[pole]], one[None], one[None], dt=dt)):
        assert np.isinf(system.frequency_response([0.0])).all()
        assert np.isfinite(system.frequency_response([0.1])).all()


@pytest.mark.parametrize("omega", [[np.nan], [[1.0]], [1j], ["1"]])
@EVERY_KIND
def test_what_is_no_frequency_is_refused(system, omega):
    with pytest.raises(InputError, match="omega must"):
        system.frequency_response(omega)


@pytest.mark.parametrize("kind", ["diagonal", "rates", "bank"])
def test_discrete_systems_have_no_response_at_infinity(kind):
    with pytest.raises(InputError, match="omega must be finite for a discrete system"):
        KINDS[kind].frequency_response([np.inf])


@given(systems(5))
def test_difference_with_itself_has_no_response(system):
    error = system - system
    omega = reference.grid(system, 10)
    scale = np.abs(system.frequency_response(omega)).max()
    np.testing.assert_allclose(error.frequency_response(omega), 0, atol=1e-12 * scale)


def test_difference_of_two_kinds_is_dense():
    diagonal = DiagonalSystem([-1.0], [[1.0]], [[1.0]], dt=0)
    error = StateSpace(A, B, C) - diagonal
    assert isinstance(error, StateSpace)
    assert error.n == 3
    np.testing.assert_allclose(error.frequency_response([0.0])[0, 0, 0], 0.5)


@pytest.mark.parametrize(("dts", "common"), [((0, 0), 0), ((True, 0.5), 0.5), ((0.5, True), 0.5), ((True, True), True)])
def test_difference_keeps_the_common_dt(dts, common):
    G, H = (StateSpace(0.1 * A, B, C, dt=dt) for dt in dts)
    assert (G - H).dt is common or (G - H).dt == common


@pytest.mark.parametrize("dts", [(0, 0.5), (0.5, 0.1), (True, 0)])
def test_difference_of_unlike_times_is_refused(dts):
    G, H = (StateSpace(0.1 * A, B, C, dt=dt) for dt in dts)
    with pytest.raises(InputError, match="same dt"):
        G - H


def test_difference_of_unlike_shapes_is_refused():
    with pytest.raises(InputError, match="same inputs and outputs"):
        StateSpace(A, B, C) - StateSpace(A, np.ones((2, 2)), C)


def test_descriptor_matrix_is_absorbed():
    E = np.array([[2.0, 1.0], [0.0, 1.0]])
    system = StateSpace(E @ A, E @ B, C, E=E)
    np.testing.assert_allclose(system.dense().A, A, atol=1e-15)
    np.testing.assert_allclose(np.sort(system.poles().real), [-2.0, -1.0])


def circuit(seed):
    """A random pencil of index 1 in random units: five states, two of them algebraic."""
    rng = np.random.default_rng(seed)
    left, right = (10.0 ** rng.uniform(-6, 6, 5) for _ in range(2))
    E = np.zeros((5, 5))
    E[:3, :3] = np.eye(3) + 0.1 * rng.standard_normal((3, 3))
    A, rows = rng.standard_normal((5, 5)) - 4 * np.eye(5), rng.permutation(5)
    A, E = (left[:, None] * x[rows] * right for x in (A, E))
    return A, left[:, None] * rng.standard_normal((5, 2)), rng.standard_normal((2, 5)) * right, np.ones((2, 2)), E


@pytest.mark.parametrize("seed", range(20))
def test_systems_of_index_one_have_the_response_of_their_pencil(seed):
    A, B, C, D, E = circuit(seed)
    system = StateSpace(A, B, C, D, E=E)
    omega = np.array([0.0, 0.3, 2.0, 40.0])
    unit = 1 / np.abs(A).max(axis=1)  # equations of one size: a plain solve does not know about units
    expected = np.array([C @ np.linalg.solve(unit[:, None] * (1j * w * E - A), unit[:, None] * B) + D for w in omega])
    assert (system.n, system.order, system.dense().n, len(system.poles())) == (5, 3, 3, 3)
    np.testing.assert_allclose(system.frequency_response(omega), expected, rtol=1e-9)  # condition below 1e4 by seed


def test_an_algebraic_equation_passes_its_input_on_to_the_output():
    # 0 = -x2 + u: x2 is u, so that y = x1 + x2 has the feedthrough 1
    system = StateSpace(-np.eye(2), [[1.0], [1.0]], [[1.0, 1.0]], E=np.diag([1.0, 0.0]))
    np.testing.assert_allclose(system.frequency_response([np.inf])[0, 0, 0], 1.0)
    np.testing.assert_allclose(system.dense().D, [[1.0]])


def test_pencils_of_index_two_and_singular_ones_are_refused_with_the_reason():
    nilpotent = np.array([[0.0, 1.0], [0.0, 0.0]])
    with pytest.raises(InputError, match="its index is 2 or more"):
        StateSpace(np.eye(2), B, C, E=nilpotent)
    with pytest.raises(InputError, match="must be regular"):
        StateSpace(np.diag([1.0, 0.0]), B, C, E=np.diag([1.0, 0.0]))


def test_real_output_keeps_both_of_a_pair_and_real_poles_once():
    system = DiagonalSystem([0.5j, 0.3], np.ones((2, 1)), np.ones((1, 2)), dt=True, output="real")
    assert sorted(system.poles(), key=lambda z: z.imag) == [-0.5j, 0.3, 0.5j]


def test_empty_systems_exist():
    gain = StateSpace(np.zeros((0, 0)), np.zeros((0, 2)), np.zeros((1, 0)), [[1.0, 2.0]])
    assert gain.n == 0
    assert gain.is_stable()
    np.testing.assert_array_equal(gain.frequency_response([1.0])[0], [[1.0, 2.0]])
