"""Balanced truncation of dense and diagonal systems: theorems, bases, edges and errors."""

from __future__ import annotations

import html
import json
import warnings

import families
import numpy as np
import pytest
import reference
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import diagonal_systems, state_spaces, systems
from truth import dense

import hankelred as hr

warnings.simplefilter("error", hr.HankelredWarning)


def three_poles(dt: object = 0) -> hr.StateSpace:
    """A plant with well separated hsv: 0.73, 0.024, 0.0087 in continuous time."""
    A = np.diag([-1.0, -2.0, -30.0]) if dt == 0 else np.diag([0.9, 0.5, -0.3])
    return hr.StateSpace(A, np.ones((3, 1)), np.ones((1, 3)), dt=dt)


def coordinates(system: hr.StateSpace | hr.DiagonalSystem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return A, B, C in the coordinates that T and Ti refer to."""
    if isinstance(system, hr.StateSpace):
        return system.dense().A, system.dense().B, system.C
    lam, B, C = np.array(system.lam), system.B, system.C
    if system.has_real_output:
        lam, B, C = np.r_[lam, lam.conj()], np.r_[B, B.conj()], np.c_[C, C.conj()] / 2
    return np.diag(lam), B, C


@given(systems(7), st.data())
def test_error_is_within_the_bound_for_every_order(system, data):
    bal = hr.balance(system, offset=0)
    order = data.draw(st.integers(0, bal.rank))
    try:
        reduction = bal.reduce(order)
    except hr.DiagonalisationError:
        assume(False)  # refused loudly: no model to measure
    error = reference.peak_gain_on_grid(system, reduction.system)
    assert error <= reduction.error_bound + 1e-10 * bal.hsv[0]  # grid evaluation next to poles 0.01 from the axis


@given(systems(6), st.data())
def test_error_is_at_least_the_first_dropped_value(system, data):
    bal = hr.balance(system, offset=0)
    order = data.draw(st.integers(0, bal.rank))
    try:
        reduction = bal.reduce(order)
    except hr.DiagonalisationError:
        assume(False)
    dropped = bal.hsv[order] if order < len(bal.hsv) else 0.0
    error = reduction.hinf_error()
    assert dropped - 1e-9 * bal.hsv[0] <= error <= reduction.error_bound + 1e-9 * bal.hsv[0]
    assert dropped - 1e-9 * bal.hsv[0] <= reduction.hankel_error() <= error + 1e-9 * bal.hsv[0]


@given(systems(7), st.data())
def test_bases_are_biorthogonal_and_make_the_reduced_system(system, data):
    bal = hr.balance(system, offset=0)
    significant = int(np.sum(bal.hsv > 1e-8 * bal.hsv[0]))
    order = data.draw(st.integers(1, significant))
    try:
        reduction = bal.reduce(order)
    except hr.DiagonalisationError:
        assume(False)
    T, Ti, reduced = reduction.T, reduction.Ti, reduction.system
    A, B, C = coordinates(system)
    A_r, B_r, C_r = coordinates(reduced)
    if isinstance(reduced, hr.DiagonalSystem) and reduced.has_real_output:
        pairs = order - reduced.n  # a real pole is stored once and needs no conjugate
        keep = np.r_[np.arange(pairs), reduced.n + np.arange(pairs), np.arange(pairs, reduced.n)]
        A_r, B_r = A_r[np.ix_(keep, keep)], B_r[keep]
        C_r = np.c_[C_r[:, keep[: 2 * pairs]], 2 * C_r[:, keep[2 * pairs :]]]
    scale = np.linalg.cond(T)
    np.testing.assert_allclose(Ti @ T, np.eye(order), atol=1e-9 * scale)
    np.testing.assert_allclose(Ti @ A @ T, A_r, atol=1e-8 * scale * max(np.abs(A).max(), 1))
    np.testing.assert_allclose(Ti @ B, B_r, atol=1e-8 * scale * np.abs(B_r).max())
    np.testing.assert_allclose(C @ T, C_r, atol=1e-8 * scale * np.abs(C_r).max())


@given(systems(6), st.data())
def test_match_dc_matches_dc(system, data):
    bal = hr.balance(system, offset=0)
    order = data.draw(st.integers(0, bal.rank))
    try:
        reduced = bal.reduce(order, match_dc=True).system
    except hr.DiagonalisationError:
        assume(False)
    G0, H0 = system.frequency_response([0.0]), reduced.frequency_response([0.0])
    np.testing.assert_allclose(H0, G0, atol=1e-9 * bal.hsv[0] * len(bal.hsv))


@given(state_spaces(6), st.data())
def test_match_dc_obeys_the_same_bound_and_keeps_the_hsv(system, data):
    bal = hr.balance(system, offset=0)
    order = data.draw(st.integers(1, bal.rank))
    reduction = bal.reduce(order, match_dc=True)
    assert reference.peak_gain_on_grid(system, reduction.system) <= reduction.error_bound + 1e-9 * bal.hsv[0]
    kept = hr.hankel_singular_values(reduction.system)
    np.testing.assert_allclose(kept, bal.hsv[:order], atol=1e-7 * bal.hsv[0])


@given(state_spaces(6), st.data())
def test_continuous_truncations_are_balanced(system, data):
    assume(not system.is_discrete)
    bal = hr.balance(system, offset=0)
    reduced = bal.reduce(data.draw(st.integers(1, bal.rank))).system
    P, Q = hr.gramians(reduced)
    np.testing.assert_allclose(P, np.diag(bal.hsv[: reduced.n]), atol=1e-7 * bal.hsv[0])
    np.testing.assert_allclose(Q, np.diag(bal.hsv[: reduced.n]), atol=1e-7 * bal.hsv[0])


@given(diagonal_systems(8, outputs=("real",)), st.data())
def test_states_fits_pairs_and_real_poles_into_what_was_asked(system, data):
    bal = hr.balance(system, offset=0)
    states = data.draw(st.integers(0, system.n))
    try:
        reduction = bal.reduce(states=states)
    except hr.DiagonalisationError:
        assume(False)
    assert reduction.system.n <= states
    assert reduction.order <= 2 * states


@given(diagonal_systems(8, outputs=("real",)), st.data())
def test_real_output_reductions_never_split_a_pair(system, data):
    bal = hr.balance(system, offset=0)
    order = data.draw(st.integers(0, bal.rank))
    assume(order < len(bal.hsv))
    try:
        reduced = bal.reduce(order).system
    except hr.DiagonalisationError:
        assume(False)
    real = reduced.lam.imag == 0
    assert 2 * int(np.sum(~real)) + int(np.sum(real)) == order
    assert np.all(np.abs(reduced.B[real].imag) == 0)
    assert np.all(np.abs(reduced.C[:, real].imag) == 0)


@given(systems(5), st.integers(0, 10))
def test_dt_and_class_survive(system, order):
    bal = hr.balance(system, offset=0)
    assume(order <= bal.rank)
    try:
        reduced = bal.reduce(order).system
    except hr.DiagonalisationError:
        assume(False)
    assert type(reduced) is type(system)
    assert reduced.dt is system.dt or reduced.dt == system.dt
    assert reduced.is_stable()


def test_input_and_output_names_survive():
    names = {"name": "plant", "inputs": ["force"], "outputs": ["position"], "states": ["a", "b", "c"]}
    reduced = hr.balanced_truncation(three_poles().with_(**names), 2).system
    assert (reduced.name, reduced.inputs, reduced.outputs, reduced.states) == ("plant", ("force",), ("position",), None)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64, np.float64, np.complex128])
@pytest.mark.parametrize("output", ["complex", "real"])
def test_dtype_of_a_diagonal_system_survives(dtype, output):
    rng = np.random.default_rng(0)
    lam = np.array([0.9, 0.5, -0.3], dtype)
    system = hr.DiagonalSystem(
        lam, rng.normal(size=(3, 1)).astype(dtype), np.ones((1, 3), dtype), dt=True, output=output
    )
    reduction = hr.balanced_truncation(system, 2)
    kinds = {
        np.float32: (np.float32, np.complex64),
        np.complex64: (np.complex64,),
        np.float64: (np.float64, np.complex128),
        np.complex128: (np.complex128,),
    }
    assert reduction.system.dtype in kinds[dtype]
    assert reduction.system.D.dtype in kinds[dtype] or output == "real"


def test_dtype_of_a_dense_system_survives():
    plant = three_poles()
    single = hr.StateSpace(*(x.astype(np.float32) for x in (plant.A, plant.B, plant.C)))
    reduction = hr.balanced_truncation(single, 2)
    assert {x.dtype for x in (reduction.system.A, reduction.T, reduction.Ti)} == {np.dtype(np.float32)}


def test_order_zero_is_the_feedthrough():
    plant = three_poles()
    reduction = hr.balanced_truncation(hr.StateSpace(plant.A, plant.B, plant.C, 5.0), 0)
    assert reduction.system.n == 0
    assert reduction.system.D[0, 0] == 5.0
    assert reduction.hinf_error() <= reduction.error_bound


@pytest.mark.parametrize("dt", [0, True])
def test_full_order_is_the_system_itself_up_to_similarity(dt):
    plant = three_poles(dt)
    reduction = hr.balanced_truncation(plant, 3)
    assert reduction.hinf_error() < 1e-13
    P, Q = hr.gramians(reduction.system)
    np.testing.assert_allclose(P, np.diag(reduction.hsv), atol=1e-13)
    np.testing.assert_allclose(Q, np.diag(reduction.hsv), atol=1e-13)


def test_full_order_of_a_non_minimal_system_is_the_system():
    system = hr.StateSpace(np.diag([-1.0, -2.0]), [[1.0], [0.0]], [[1.0, 1.0]])
    reduction = hr.balanced_truncation(system, 2)
    np.testing.assert_array_equal(reduction.system.A, system.A)
    np.testing.assert_array_equal(reduction.T, np.eye(2))


def test_orders_past_the_rank_are_refused_with_the_rank():
    system = hr.StateSpace(np.diag([-1.0, -2.0, -3.0]), [[1.0], [0.0], [0.0]], [[1.0, 1.0, 1.0]])
    assert hr.balance(system).rank == 1
    with pytest.raises(hr.OrderError, match="at most 1, the numerical rank"):
        hr.balanced_truncation(system, 2)


def test_static_gain_reduces_to_itself():
    gain = hr.StateSpace(np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((1, 0)), [[2.0]])
    reduction = hr.balanced_truncation(gain, rtol=0.1)
    assert reduction.order == 0
    assert reduction.system.D[0, 0] == 2.0
    assert reduction.error_bound == 0.0


def test_zero_input_needs_no_state():
    reduction = hr.balanced_truncation(
        hr.StateSpace(np.diag([-1.0, -2.0]), np.zeros((2, 1)), np.ones((1, 2))), rtol=0.1
    )
    assert reduction.system.n == 0
    assert reduction.hinf_error() == 0.0


@pytest.mark.parametrize("dt", [0, 0.5])
@pytest.mark.parametrize("complex_data", [False, True])
def test_unstable_poles_are_split_off_kept_and_counted(dt, complex_data):
    rng = np.random.default_rng(3)
    V = rng.standard_normal((5, 5)) + 1j * complex_data * rng.standard_normal((5, 5))
    poles = np.array([0.3, -1.0, -2.0, -3.0, -9.0]) if dt == 0 else np.array([1.2, 0.9, 0.5, -0.3, 0.1])
    A = V @ np.diag(poles) @ np.linalg.inv(V)
    system = hr.StateSpace(A, rng.standard_normal((5, 2)), rng.standard_normal((2, 5)), dt=dt)
    bal = hr.balance(system)
    assert np.isinf(bal.hsv[0])
    assert np.all(np.isfinite(bal.hsv[1:]))
    assert bal.unstable == 1
    reduction = bal.reduce(3)
    assert reduction.system.n == 3
    assert reduction.unstable == 1
    np.testing.assert_allclose(np.max(reduction.system.poles().real), poles[0], rtol=1e-10)
    assert reference.peak_gain_on_grid(system, reduction.system) <= reduction.error_bound + 1e-9 * bal.hsv[1]
    np.testing.assert_allclose(reduction.Ti @ reduction.T, np.eye(3), atol=1e-11)
    np.testing.assert_allclose(reduction.Ti @ system.A @ reduction.T, reduction.system.A, atol=1e-9)
    assert reduction.hinf_error() <= reduction.error_bound


@pytest.mark.parametrize("output", ["complex", "real"])
def test_unstable_states_of_a_diagonal_system_are_kept_as_they_are(output):
    rng = np.random.default_rng(5)
    lam = np.array([0.5 + 0.1j, 1.1j, 0.4, -0.2 + 0.3j, 0.1j])
    B, C = rng.standard_normal((5, 1)) + 1j, rng.standard_normal((2, 5)) + 1j
    system = hr.DiagonalSystem(lam, B, C, dt=True, output=output)
    copies = 2 if output == "real" else 1
    reduction = hr.balanced_truncation(system, 2 + 2 * copies)
    assert reduction.unstable == copies
    assert 1.1j in reduction.system.lam
    error = reference.peak_gain_on_grid(system, reduction.system)
    assert error <= reduction.error_bound + 1e-12
    lam_a, B_a, _ = coordinates(system)
    np.testing.assert_allclose(reduction.Ti @ reduction.T, np.eye(reduction.order), atol=1e-12)
    moved = reduction.Ti @ lam_a @ reduction.T
    np.testing.assert_allclose(moved, np.diag(np.diag(moved)), atol=1e-12)
    np.testing.assert_allclose((reduction.Ti @ B_a)[0], B[1], atol=1e-12)


def test_integrator_counts_as_unstable_within_the_offset():
    system = hr.StateSpace(np.diag([-1e-9, -1.0, -2.0]), np.ones((3, 1)), np.ones((1, 3)))
    assert hr.balance(system).unstable == 1
    assert hr.balance(system, offset=0).unstable == 0


@pytest.mark.parametrize("offset", [-1e-3, np.inf, np.nan, "small"])
def test_bad_offsets_are_refused(offset):
    with pytest.raises(hr.InputError, match="offset must be"):
        hr.balance(three_poles(), offset=offset)


def test_one_factorisation_answers_every_order_like_a_fresh_one():
    plant = three_poles(True)
    bal = hr.balance(plant)
    for order in range(4):
        fresh = hr.balanced_truncation(plant, order)
        np.testing.assert_allclose(bal.reduce(order).system.A, fresh.system.A)


@pytest.mark.parametrize("criteria", [{}, {"order": 1, "rtol": 0.1}, {"rtol": 0.1, "energy": 0.9}])
def test_exactly_one_criterion_must_be_given(criteria):
    with pytest.raises(hr.OrderError, match="Exactly one of order, states, rtol, energy, max_error"):
        hr.balanced_truncation(three_poles(), **criteria)


@pytest.mark.parametrize("order", [-1, 4, 1.5, True])
def test_orders_out_of_range_are_refused(order):
    with pytest.raises(hr.OrderError, match="got"):
        hr.balanced_truncation(three_poles(), order)


@pytest.mark.parametrize("states", [-1, 4, 1.5])
def test_states_out_of_range_are_refused(states):
    with pytest.raises(hr.OrderError, match=r"states must be (an integer|from 0 to 3)"):
        hr.balanced_truncation(three_poles(), states=states)


def test_unattainable_tolerance_names_the_best():
    with pytest.raises(hr.OrderError, match="max_error=1e-30 cannot be met"):
        hr.balanced_truncation(three_poles(), max_error=1e-30)


def test_splitting_equal_hsv_warns():
    allpass_like = hr.StateSpace(-np.eye(2), np.eye(2), np.eye(2))
    with pytest.warns(hr.RepeatedHsvWarning, match="order 1 splits a repeated"):
        hr.balanced_truncation(allpass_like, 1)


def test_defective_reductions_are_refused_with_the_orders_that_work(monkeypatch):
    from hankelred.reduction import rediagonalise

    rng = np.random.default_rng(0)
    lam = np.exp(-0.1 - 0.2 * np.arange(6))
    system = hr.DiagonalSystem(lam, rng.normal(size=(6, 1)), rng.normal(size=(1, 6)), dt=True)
    bal = hr.balance(system)
    conditions = {order: np.linalg.cond(np.linalg.eig(np.diag(bal.reduce(order).system.lam))[1]) for order in (1, 2)}
    assert set(conditions) == {1, 2}
    monkeypatch.setattr(rediagonalise, "CONDITION_LIMIT", 1.0 + 1e-9)  # only a single state passes
    with pytest.raises(
        hr.DiagonalisationError, match=r"too close to a defective one.*Nearest orders that work: 1\."
    ) as error:
        bal.reduce(3)
    assert error.value.orders == [1]


def test_summary_names_orders_bound_and_the_first_value_dropped():
    text = hr.balanced_truncation(three_poles(), 2).summary()
    assert "order 3 -> 2" in text
    assert "error bound" in text
    assert "first hsv dropped" in text


@given(systems(5))
def test_the_system_is_unchanged_by_a_reduction(system):
    before = [x.copy() for x in (system.B, system.C, system.D)]
    hr.balance(system, offset=0)
    for x, copy in zip((system.B, system.C, system.D), before, strict=True):
        np.testing.assert_array_equal(x, copy)


def badly_scaled(decades: float) -> tuple[hr.StateSpace, hr.StateSpace]:
    """A model in good units, and the same one with its states in units up to that many decades off."""
    rng = np.random.default_rng(2)
    A = rng.standard_normal((6, 6)) - 5 * np.eye(6)
    B, C = rng.standard_normal((6, 1)), rng.standard_normal((1, 6))
    units = 10.0 ** (decades * np.array([0, 1, -1, 0.5, -0.5, 0.25]))
    return hr.StateSpace(A, B, C), hr.StateSpace(A * units / units[:, None], B / units[:, None], C * units)


def same_model(one: hr.Reduction, other: hr.Reduction) -> None:
    """Two reductions agree in every bit."""
    fields = ("A", "B", "C", "D") if isinstance(one.system, hr.StateSpace) else ("lam", "B", "C", "D")
    for key in fields:
        np.testing.assert_array_equal(getattr(one.system, key), getattr(other.system, key))
    np.testing.assert_array_equal(one.T, other.T)
    assert one.error_bound == other.error_bound


@pytest.mark.parametrize("match_dc", [False, True])
@pytest.mark.parametrize("kind", ["dense", "diagonal", "real output"])
@pytest.mark.parametrize("n", [12, 60])
def test_the_same_question_has_the_same_answer_whatever_was_asked_before(kind, match_dc, n):
    # singular vectors once came from another routine, with other signs, after a larger order had been asked for
    rng = np.random.default_rng(n)
    lam = np.exp(-(10 ** rng.uniform(-2, 0, n)) + 1j * rng.uniform(0, 3, n))
    B, C = rng.standard_normal((n, 2)), rng.standard_normal((2, n))
    system = hr.DiagonalSystem(lam, B, C, dt=True, output="real" if kind == "real output" else "complex")
    bal = hr.balance(system.dense() if kind == "dense" else system)
    before = bal.reduce(3, match_dc=match_dc)
    bal.reduce(11, match_dc=match_dc)
    bal.reduce(bal.rank - 1, match_dc=not match_dc)
    same_model(before, bal.reduce(3, match_dc=match_dc))


@pytest.mark.parametrize("complex_data", [False, True])
def test_bases_of_a_small_order_are_the_first_of_those_of_a_large_one(complex_data):
    # 3, 30 and 45 of 60 values come from three routines of LAPACK, each of which has signs of its own
    rng = np.random.default_rng(1)
    hsv = np.geomspace(1, 1e-6, 60)
    plant = reference.balanced_canonical_form(hsv, rng.choice([-1, 1], 60), np.ones(60))
    V = np.linalg.qr(rng.standard_normal((60, 60)) + 1j * complex_data * rng.standard_normal((60, 60)))[0]
    bal = hr.balance(plant.with_(A=V.conj().T @ plant.A @ V, B=V.conj().T @ plant.B, C=plant.C @ V))
    small, large, graded = (bal.reduce(order).T for order in (3, 30, 45))
    np.testing.assert_allclose(large[:, :3], small, atol=1e-8)  # columns of length 1, values 21 % apart
    np.testing.assert_allclose(graded[:, :3], small, atol=1e-8)


@given(systems(6), st.data())
def test_reductions_hold_the_system_that_was_given(system, data):
    bal = hr.balance(system, offset=0)
    try:
        reduction = bal.reduce(data.draw(st.integers(0, bal.rank)))
    except hr.DiagonalisationError:
        assume(False)
    assert reduction.original is system
    expected = hr.hinf_norm(system - reduction.system)
    assert reduction.hinf_error() == pytest.approx(expected, rel=1e-7, abs=1e-13 * bal.hsv[0])


@pytest.mark.parametrize("E", [np.diag([1.0, 2.0, 0.0, 5.0]), np.diag([1.0, 1e-9, 1e9, 5.0])], ids=["index 1", "units"])
def test_errors_of_descriptor_systems_are_measured_against_their_pencil(E):
    rng = np.random.default_rng(4)
    A = np.diag(np.where(np.diag(E) > 0, np.diag(E), 1.0)) @ (0.3 * rng.standard_normal((4, 4)) - 3 * np.eye(4))
    plant = hr.StateSpace(A, rng.standard_normal((4, 1)) * np.diag(E)[:, None], rng.standard_normal((1, 4)), E=E)
    reduction = hr.balanced_truncation(plant, 1)
    omega = np.geomspace(1e-2, 1e2, 60)
    pencil = np.array([plant.C @ np.linalg.solve(1j * w * E - A, plant.B) + plant.D for w in omega])
    error = np.abs(pencil - reduction.system.frequency_response(omega)).max()
    assert reduction.original is plant
    assert len(reduction.hsv) == plant.order == np.linalg.matrix_rank(E, tol=0)
    assert error <= reduction.hinf_error() * (1 + 1e-8) <= reduction.error_bound * (1 + 1e-8)


@pytest.mark.parametrize("kind", ["real", "complex", "diagonal", "diagonal real output", "unstable"])
@pytest.mark.parametrize("match_dc", [False, True])
@pytest.mark.parametrize("order", [2, 5, 8])
def test_bounds_of_single_precision_systems_contain_the_rounding_of_the_result(kind, match_dc, order):
    rng = np.random.default_rng(order)
    rates = -(10 ** rng.uniform(-1, 1, 8)) + 1j * rng.uniform(0, 5, 8) * (kind != "real")
    B, C = rng.standard_normal((8, 2)).astype(np.float32), rng.standard_normal((2, 8)).astype(np.float32)
    rates[0] += 20 * (kind == "unstable")
    if kind.startswith("diagonal"):
        output = "real" if kind.endswith("output") else "complex"
        system = hr.DiagonalSystem(rates.astype(np.complex64), B, C, dt=0, output=output)
    else:
        V = np.linalg.qr(rng.standard_normal((8, 8)))[0]
        A = V @ np.diag(rates.real if kind == "real" else rates) @ V.T
        system = hr.StateSpace(A.astype(np.float32 if kind == "real" else np.complex64), B, C)
    reduction = hr.balanced_truncation(system, order, match_dc=match_dc)
    assert reduction.system.dtype == system.dtype
    assert reduction.T.dtype.char in "fF"
    assert reduction.hinf_error() <= reduction.error_bound
    if kind != "unstable":
        assert hr.hinf_norm(system - reduction.system) <= reduction.error_bound


def test_full_order_of_a_non_minimal_system_says_that_nothing_was_done():
    system = hr.StateSpace(np.diag([-1.0, -2.0]), [[1.0], [0.0]], [[1.0, 1.0]])
    reduction = hr.balanced_truncation(system, 2)
    assert reduction.system is system
    assert "keeps the system as it is" in reduction.method
    assert reduction.hinf_error() == reduction.h2_error() == reduction.hankel_error() == 0.0


@pytest.mark.parametrize("match_dc", [False, True])
def test_json_tells_what_was_done_with_versions(match_dc):
    plant = hr.StateSpace(np.diag([0.5, -1.0, -2.0, -30.0]), np.ones((4, 1)), np.ones((1, 4)))
    reduction = hr.balanced_truncation(plant, 2, match_dc=match_dc)
    found = json.loads(reduction.to_json())
    assert found["method"] == ("singular perturbation" if match_dc else "balanced truncation")
    assert (found["order"], found["full_order"], found["unstable"], found["dt"]) == (2, 4, 1, 0)
    assert found["sizes"] == {"n": 4, "m": 1, "p": 1}
    assert found["hsv"] == [None, *reduction.hsv[1:]]
    assert found["error_bound"] == reduction.error_bound
    assert found["versions"]["hankelred"] == hr.__version__


def test_json_of_a_system_without_a_stated_time_says_true():
    assert json.loads(hr.balanced_truncation(three_poles(True), 1).to_json())["dt"] is True


def test_notebooks_show_the_summary():
    reduction = hr.balanced_truncation(three_poles(), 2)
    text = reduction._repr_html_()
    assert all(html.escape(line) in text for line in reduction.summary().splitlines())
    assert text.count("<tr>") == len(reduction.summary().splitlines())


@pytest.mark.parametrize("complex_data", [False, True])
@pytest.mark.parametrize("dt", [0, 0.5, True])
def test_minimal_systems_have_the_response_of_the_ones_with_idle_states(dt, complex_data):
    rng = np.random.default_rng(7)
    poles = np.array([-0.3, -1.0, -2.0, -3.0, -4.0, -5.0]) if dt == 0 else np.array([0.9, 0.5, -0.3, 0.2, 0.7, -0.8])
    V = np.linalg.qr(rng.standard_normal((6, 6)) + 1j * complex_data * rng.standard_normal((6, 6)))[0]
    B, C = rng.standard_normal((6, 2)), rng.standard_normal((2, 6))
    B[3:5], C[:, 5] = 0.0, 0.0  # two that no input drives, one that no output sees
    G = hr.StateSpace(V @ np.diag(poles) @ V.conj().T, V @ B, C @ V.conj().T, np.eye(2), dt)
    reduction = hr.minimal(G)
    assert (reduction.order, reduction.system.n, reduction.original) == (3, 3, G)
    evaluation = 1e-14 * hr.hinf_norm(G)  # bound and measured error are rounding, of two kinds
    assert reduction.hinf_error() <= reduction.error_bound + evaluation < 1e-10
    np.testing.assert_allclose(np.sort_complex(reduction.system.poles()), np.sort_complex(poles[:3] + 0j), rtol=1e-11)


@pytest.mark.parametrize("output", ["complex", "real"])
def test_minimal_diagonal_systems_lose_their_idle_states(output):
    lam, B, C = [0.9j, 0.5, -0.3 + 0.2j], np.ones((3, 1)), np.array([[1.0, 1.0, 0.0]])
    reduction = hr.minimal(hr.DiagonalSystem(lam, B, C, dt=True, output=output))
    assert isinstance(reduction.system, hr.DiagonalSystem)
    np.testing.assert_allclose(np.sort_complex(reduction.system.lam), [0.9j, 0.5], atol=1e-14)


def test_a_minimal_system_is_its_own():
    plant = three_poles()
    assert hr.minimal(plant).system is plant


def test_minimal_keeps_unstable_and_marginal_poles():
    plant = hr.StateSpace(np.diag([1.0, 0.0, -1.0, -2.0]), np.ones((4, 1)), [[1.0, 1.0, 1.0, 0.0]])
    reduction = hr.minimal(plant)
    assert (reduction.order, reduction.unstable) == (3, 2)
    np.testing.assert_allclose(np.sort(reduction.system.poles().real), [-1.0, 0.0, 1.0], atol=1e-14)


def test_minimal_drops_what_a_tolerance_calls_idle():
    assert hr.minimal(three_poles(), rtol=0.02).order == hr.balance(three_poles()).order(rtol=0.02) == 2


@given(systems(6))
def test_balanced_realizations_have_both_gramians_equal_to_the_hsv(system):
    balanced, hsv, T, Ti = hr.balanced_realization(system)
    rank = balanced.n
    expected = np.diag(hsv[:rank])
    for gramian in hr.gramians(balanced):
        np.testing.assert_allclose(
            gramian, expected, atol=1e-7 * hsv[0]
        )  # small hsv amplify rounding by hsv[0] / hsv[k]
    G = system.dense()
    assert isinstance(balanced, hr.StateSpace)
    np.testing.assert_array_equal(hsv, hr.balance(G, offset=0).hsv)
    scale = np.linalg.cond(T)
    np.testing.assert_allclose(Ti @ T, np.eye(rank), atol=1e-9 * scale)
    np.testing.assert_allclose(Ti @ G.A @ T, balanced.A, atol=1e-9 * scale * max(np.abs(G.A).max(), 1))
    omega = reference.grid(system, 20)
    response = system.frequency_response(omega)
    np.testing.assert_allclose(balanced.frequency_response(omega), response, atol=1e-9 * np.abs(response).max())


def test_balanced_realizations_come_in_the_container_of_the_model():
    control = pytest.importorskip("control")
    balanced, hsv, _, _ = hr.balanced_realization(control.ss([[-1.0, 0.5], [0.0, -3.0]], np.eye(2), np.eye(2), 0, 0))
    assert isinstance(balanced, control.StateSpace)
    assert (balanced.nstates, len(hsv)) == (2, 2)


@pytest.mark.parametrize("pole", [0.0, 0.3])
def test_systems_that_cannot_be_balanced_are_refused(pole):
    with pytest.raises(hr.StabilityError, match="must be stable for dt=0"):
        hr.balanced_realization(hr.StateSpace(np.diag([pole, -1.0]), np.ones((2, 1)), np.ones((1, 2))))


@given(systems(6), st.data())
def test_units_of_states_and_inputs_change_no_hsv(system, data):
    units = 2.0 ** np.array(data.draw(st.lists(st.integers(-40, 40), min_size=system.n, max_size=system.n)))
    changes = {"B": 2.0**20 * system.B * units[:, None], "C": system.C / units, "D": 2.0**20 * system.D}
    if isinstance(system, hr.StateSpace):
        changes["A"] = system.A * units[:, None] / units
    moved = system.with_(**changes)
    one, other = hr.balance(system, offset=0), hr.balance(moved, offset=0)
    np.testing.assert_allclose(other.hsv / 2.0**20, one.hsv, atol=1e-12 * one.hsv[0])


@pytest.mark.parametrize("seed", [1, 3])
def test_matching_over_a_cut_of_nearly_equal_hsv_is_no_business_of_lapack(seed):
    """Modes of damping 1e-7 leave an A22 with entries from 1e-13 to 1e3: SciPy warned of that."""
    G = dense(families.modal(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", hr.HankelredWarning)
        reduction = hr.balance(G).reduce(1, match_dc=True)
        assert reduction.hinf_error() <= reduction.error_bound


def test_matching_without_states_keeps_the_digits_of_the_gain_at_one():
    """Poles 1e-4 from 1 lose four digits of 1 - A; the D of no states is the gain itself."""
    lam, B, C = np.array([1 - 1e-4, 1 - 1e-3]), np.array([[1e-2], [3e-2]]), np.array([[-0.3, -0.5]])
    G = hr.DiagonalSystem(lam, B, C, dt=True)
    D = hr.balance(G).reduce(0, match_dc=True).system.D
    np.testing.assert_allclose(D[0, 0], (C.ravel() * B.ravel() / (1 - lam)).sum(), rtol=1e-14)


def test_errors_beside_a_very_fast_pole_are_measured():
    """Its pole at -7e15 drowned the vibrations of the system in one Schur form of both: the error was infinite."""
    with pytest.warns(hr.RepeatedHsvWarning):
        reduction = hr.balance(dense(families.modal(1))).reduce(5, match_dc=True)
    assert reduction.system.poles().real.min() < -1e15
    assert (reduction.original - reduction.system).is_stable()
    assert 0.09 < reduction.hinf_error() < reduction.error_bound < 0.1  # 0.0904437 in exact arithmetic
