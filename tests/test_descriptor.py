"""Pencils in any units: rank of E, states that are algebraic, responses that stay."""

from __future__ import annotations

import os
from pathlib import Path

import mpmath
import numpy as np
import pytest
import scipy.io
import scipy.linalg as sla

from hankelred.errors import InputError, NumericalError
from hankelred.linalg.descriptor import equilibrated, standard_form
from hankelred.systems import StateSpace

MNA_1 = Path(os.environ.get("HANKELRED_DATA", Path(__file__).parents[2] / "shared" / "data")) / "mor" / "MNA_1.mat"
# On the axis of continuous systems, on the circle of discrete ones, and off both.
POINTS = (0.3j, 40j, np.exp(0.7j), 1 + 2j)


def response(A, B, C, D, E, s):
    """Evaluate ``C (s E - A)^-1 B + D`` in 60 digits."""
    with mpmath.workdps(60):
        a, b, c, d, e = (mpmath.matrix(x.tolist()) for x in (A, B, C, D, E))
        value = c * (mpmath.inverse(mpmath.mpc(s) * e - a) * b) + d
        return np.array([[complex(value[i, j]) for j in range(value.cols)] for i in range(value.rows)])


def response_error(pencil, points=POINTS):
    """Return the largest relative error of the response of the standard form, itself evaluated in 60 digits."""
    form = standard_form(*pencil)
    k, worst = len(form.A), 0.0
    for s in points:
        exact = response(*pencil, s)
        got = response(form.A, form.B, form.C, form.D, np.eye(k), s) if k else form.D
        worst = max(worst, abs(got - exact).max() / abs(exact).max())
    return worst


def random_pencil(rng, n, rank, rotated, complex_data, decades=9):
    """Return a pencil of index 1 with a well conditioned core, rows and columns in units over many decades."""

    def normal(*shape):
        x = rng.standard_normal(shape)
        return x + 1j * rng.standard_normal(shape) if complex_data else x

    E = np.zeros((n, n), complex if complex_data else float)
    E[:rank, :rank] = np.linalg.qr(normal(rank, rank))[0]
    A, B, C, D = normal(n, n), normal(n, 2), normal(3, n), normal(3, 2)
    if rotated:
        left, right = np.linalg.qr(normal(n, n))[0], np.linalg.qr(normal(n, n))[0]
        E, A = left @ E @ right, left @ A @ right
    u, v = 10.0 ** rng.uniform(-decades, decades, (2, n))
    return A * u[:, None] * v, B * u[:, None], C * v, D, E * u[:, None] * v


def circuit(conductances, capacitors, inputs, output, n):
    """Return the nodal equations of a net: branches (node, node or None for ground, value)."""
    A, E = np.zeros((n, n)), np.zeros((n, n))
    for matrix, sign, branches in ((A, -1.0, conductances), (E, 1.0, capacitors)):
        for i, j, value in branches:
            matrix[i, i] += sign * value
            if j is not None:
                matrix[j, j] += sign * value
                matrix[i, j] -= sign * value
                matrix[j, i] -= sign * value
    return A, np.eye(n)[:, inputs], np.eye(n)[[output]], np.zeros((1, len(inputs))), E


@pytest.mark.parametrize("complex_data", [False, True])
@pytest.mark.parametrize("rotated", [False, True])
def test_regular_pencils_keep_their_states_and_responses(rotated, complex_data):
    rng = np.random.default_rng(1)
    for _ in range(12):
        n = int(rng.integers(1, 6))
        pencil = random_pencil(rng, n, n, rotated, complex_data)
        np.testing.assert_array_equal(standard_form(*pencil).T, np.eye(n))
        assert response_error(pencil) <= 1e-10  # conditions of A and E of random matrices, 1e4 at most


@pytest.mark.parametrize("complex_data", [False, True])
@pytest.mark.parametrize("rotated", [False, True])
def test_algebraic_states_are_eliminated_in_any_units(rotated, complex_data):
    rng = np.random.default_rng(2)
    for _ in range(12):
        n = int(rng.integers(2, 6))
        rank = int(rng.integers(0, n))
        pencil = random_pencil(rng, n, rank, rotated, complex_data)
        assert standard_form(*pencil).A.shape == (rank, rank)
        assert response_error(pencil) <= 1e-10  # as above, times the condition of the algebraic part


def test_poles_are_the_finite_ones_of_the_pencil():
    rng = np.random.default_rng(3)
    A, B, C, D, E = random_pencil(rng, 8, 5, True, False, decades=0)
    finite = sla.eigvals(A, E)
    finite = finite[abs(finite) < 1e8]
    poles = np.linalg.eigvals(standard_form(A, B, C, D, E).A)
    assert len(poles) == len(finite) == 5
    assert abs(poles[:, None] - finite).min(axis=0).max() <= 1e-10 * abs(finite).max()  # conditions of 5 poles


def test_states_of_the_pencil_follow_from_the_dynamic_ones():
    rng = np.random.default_rng(4)
    for rotated in (False, True):
        A, B, C, D, E = random_pencil(rng, 6, 3, rotated, False, decades=3)
        form = standard_form(A, B, C, D, E)
        x_d = rng.standard_normal(3)
        left, right = E @ form.T @ (form.A @ x_d), A @ form.T @ x_d  # E x' = A x without input
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-9 * abs(A).max() * abs(form.T).max())


def test_dynamic_states_keep_their_units_where_algebraic_ones_are_told_by_zeros():
    A = np.array([[-1.0, 1e5], [1e-3, -200.0]])
    form = standard_form(A, np.eye(2), np.eye(2), np.zeros((2, 2)), np.diag([1e-7, 0.0]))
    assert form.T[0, 0] == 1
    np.testing.assert_allclose(form.A, [[(-1 + 1e5 * 1e-3 / 200) / 1e-7]], rtol=1e-14)


def test_units_make_no_pencil_singular():
    A, E = np.diag([-1e6, -1e-12]), np.diag([1e6, 1e-12])
    form = standard_form(A, np.ones((2, 1)), np.ones((1, 2)), np.zeros((1, 1)), E)
    np.testing.assert_allclose(form.A, -np.eye(2))
    np.testing.assert_allclose(form.B, [[1e-6], [1e12]])


def test_nets_with_resistive_nodes_become_systems_with_fewer_states():
    rng = np.random.default_rng(5)
    for _ in range(20):
        n = int(rng.integers(3, 8))
        nodes = [(i, i + 1, 10.0 ** rng.uniform(-3, 1)) for i in range(n - 1)]
        grounded = [(0, None, 10.0 ** rng.uniform(-3, 1)), (n - 1, None, 10.0 ** rng.uniform(-3, 1))]
        dynamic = rng.permutation(n)[: int(rng.integers(1, n))]
        capacitors = [(int(i), None, 10.0 ** rng.uniform(-12, -3)) for i in dynamic]
        pencil = circuit(nodes + grounded, capacitors, [0], n - 1, n)
        assert len(standard_form(*pencil).A) == len(dynamic)
        assert response_error(pencil, (1e-3j, 1j, 1e3j, 1e9j)) <= 1e-10  # conditions of nets, 1e5 at most


def test_floating_capacitor_is_one_dynamic_state():
    pencil = circuit([(0, None, 1e-3), (1, None, 1e-6), (0, 1, 1e-5)], [(0, 1, 1e-9)], [0], 1, 2)
    assert len(standard_form(*pencil).A) == 1
    assert response_error(pencil, (1j, 1e5j, 1e9j)) <= 1e-10


def test_dynamic_free_pencil_is_a_gain():
    form = standard_form(np.diag([-2.0, -4.0]), np.ones((2, 1)), np.ones((1, 2)), np.zeros((1, 1)), np.zeros((2, 2)))
    assert form.A.shape == (0, 0)
    assert form.B.shape == (0, 1)
    np.testing.assert_allclose(form.D, [[0.75]])


def test_pencil_without_states_passes():
    form = standard_form(*(np.zeros(s) for s in [(0, 0), (0, 2), (3, 0), (3, 2), (0, 0)]))
    assert form.D.shape == (3, 2)


@pytest.mark.parametrize("rotated", [False, True])
def test_index_two_is_refused_in_any_units(rotated):
    """A voltage source across a capacitor: the current is the derivative of the voltage."""
    rng = np.random.default_rng(6)
    for _ in range(20):
        A, E = np.array([[-1e-3, 1.0], [1.0, 0.0]]), np.diag([1e-6, 0.0])
        if rotated:
            left, right = np.linalg.qr(rng.standard_normal((2, 2, 2)))[0]
            A, E = np.diag([1e3, 1]) @ A, np.diag([1e6, 1]) @ E
            A, E = left @ A @ right, left @ E @ right
        u, v = 10.0 ** rng.uniform(-9, 9, (2, 2))
        A, E = A * u[:, None] * v, E * u[:, None] * v
        with pytest.raises(InputError, match=r"rank 1 of 2 .* index is 2 or more"):
            standard_form(A, np.ones((2, 1)), np.ones((1, 2)), np.zeros((1, 1)), E)


def test_cutset_of_an_inductor_and_a_current_source_is_refused():
    A, E = np.array([[-1.0, -1.0], [1.0, 0.0]]), np.diag([1e-3, 0.0])  # L i' = -R i - v, 0 = i + u
    with pytest.raises(InputError, match="index is 2 or more"):
        standard_form(A, np.array([[0.0], [1.0]]), np.ones((1, 2)), np.zeros((1, 1)), E)


def test_singular_pencils_are_named_as_such():
    rng = np.random.default_rng(7)
    for _ in range(20):
        n = int(rng.integers(2, 7))
        E, A = rng.standard_normal((2, n, n))
        E[-1], A[-1] = E[0], A[0]  # one equation twice
        left = np.linalg.qr(rng.standard_normal((n, n)))[0]
        v = 10.0 ** rng.uniform(-9, 9, n)
        with pytest.raises(InputError, match=r"det\(s E - A\) = 0 for every s"):
            standard_form(left @ A * v, np.ones((n, 1)), np.ones((1, n)), np.zeros((1, 1)), left @ E * v)


def test_equilibration_is_by_powers_of_two_and_leaves_no_size():
    rng = np.random.default_rng(8)
    E = rng.standard_normal((6, 6)) * 10.0 ** rng.uniform(-200, 50, (6, 1)) * 10.0 ** rng.uniform(-50, 50, 6)
    E[2] = 0
    rows, columns = equilibrated(E)
    assert np.all(np.frexp(rows)[0] == 0.5)
    assert np.all(np.frexp(columns)[0] == 0.5)
    largest = abs(E * rows[:, None] * columns)
    assert np.all(largest.max(axis=0) <= 4)
    assert np.all(np.delete(largest.max(axis=1), 2) >= 0.25)


@pytest.mark.skipif(not MNA_1.is_file(), reason=f"the benchmark model is not at {MNA_1}")
def test_circuit_of_the_benchmark_is_of_higher_index():
    entries = scipy.io.loadmat(MNA_1)
    A, B, E = (entries[key].toarray().astype(float) for key in "ABE")
    with pytest.raises(InputError, match=r"rank 305 of 578 .* index is 2 or more"):
        standard_form(A, B, B.T, np.zeros((9, 9)), E)


def test_an_e_too_small_for_double_precision_is_refused():
    with pytest.raises(NumericalError, match="Scale E"):
        StateSpace(-np.eye(2), np.ones((2, 1)), np.ones((1, 2)), E=1e-310 * np.eye(2))
