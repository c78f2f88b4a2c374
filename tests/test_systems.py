"""Systems: shapes, dtypes, frozen arrays, frequency responses and differences."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import reference
from hypothesis import given
from strategies import diagonal_systems, systems

from hankelred import DiagonalSystem, InputError, StateSpace

A, B, C = np.diag([-1.0, -2.0]), np.ones((2, 1)), np.ones((1, 2))


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
        ((A, B, C, None, -1), "dt must be at least 0; got -1"),
        ((A, B, C, None, np.nan), "dt must be at least 0; got nan"),
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


def test_real_output_keeps_both_of_a_pair_and_real_poles_once():
    system = DiagonalSystem([0.5j, 0.3], np.ones((2, 1)), np.ones((1, 2)), dt=True, output="real")
    assert sorted(system.poles(), key=lambda z: z.imag) == [-0.5j, 0.3, 0.5j]


def test_empty_systems_exist():
    gain = StateSpace(np.zeros((0, 0)), np.zeros((0, 2)), np.zeros((1, 0)), [[1.0, 2.0]])
    assert gain.n == 0
    assert gain.is_stable()
    np.testing.assert_array_equal(gain.frequency_response([1.0])[0], [[1.0, 2.0]])
