"""Optimal models: theorems of Hankel-norm approximation, and the optimality conditions in H2."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from classical import DOMAINS, drawn, grid, in_other_units
from large import chain
from sizes import sample

import hankelred as hr
from hankelred.optimal import h2_optimal, hankel_norm_approximation

SEEDS = sample(range(200))


@pytest.mark.parametrize("dt", DOMAINS)
def test_hankel_norm_of_the_error_is_the_next_value_and_the_bound_is_the_sum_of_the_tail(dt):
    for seed in SEEDS:
        rng, G = drawn(seed, dt)
        bal = hr.balance(G)
        order = int(rng.integers(0, G.n))
        best = hankel_norm_approximation(G, order)
        assert abs(best.hankel_error() - bal.hsv[order]) <= 1e-8 * bal.hsv[order] + 10 * bal.floor, seed
        assert best.hinf_error() <= best.error_bound * (1 + 1e-9), seed
        assert best.error_bound <= bal.hsv[order:].sum() * (1 + 1e-6) + 20 * G.n * bal.floor, seed
        assert best.system.is_stable()
        assert best.system.n == best.order == order
        assert best.system.dtype == G.dtype


@pytest.mark.parametrize("dt", DOMAINS)
def test_error_of_the_largest_order_is_all_pass(dt):
    for seed in (1, 2, 5):
        _, G = drawn(seed, dt, square=True, states=5)
        best = hankel_norm_approximation(G, G.n - 1)
        error = (G - best.system).frequency_response(grid(dt))
        gains = np.linalg.norm(error, 2, axis=(1, 2))
        np.testing.assert_allclose(gains, best.hsv[-1], rtol=1e-7)


def test_models_in_other_units_are_the_same():
    for dt in DOMAINS:
        _, G = drawn(3, dt)
        one, other = (
            hankel_norm_approximation(x, 1).system.frequency_response(grid(dt)) for x in (G, in_other_units(G))
        )
        np.testing.assert_allclose(other, one, atol=1e-10 * np.abs(one).max())


@pytest.mark.parametrize("dt", DOMAINS)
def test_repeated_values_are_taken_together(dt):
    A, B, C = np.diag([-1.0, -8.0]), np.ones((2, 1)), np.ones((1, 2))
    if dt:
        A = np.diag([0.9, -0.3])
    twice = hr.StateSpace(np.kron(np.eye(2), A), np.kron(np.eye(2), B), np.kron(np.eye(2), C), dt=dt)
    hsv = hr.hankel_singular_values(twice)
    best = hankel_norm_approximation(twice, 2)
    np.testing.assert_allclose(best.hankel_error(), hsv[2], rtol=1e-9)
    with pytest.warns(hr.RepeatedHsvWarning, match="has 2 states"):
        assert hankel_norm_approximation(twice, 3).order == 2
    with pytest.warns(hr.RepeatedHsvWarning, match="has 0 states"):
        static = hankel_norm_approximation(twice, 1)
    np.testing.assert_allclose(static.hankel_error(), hsv[0], rtol=1e-9)


@pytest.mark.parametrize("dt", DOMAINS)
def test_unstable_poles_names_and_containers_are_kept(dt):
    _, G = drawn(10, dt, states=5)
    n, kept = G.n, 1
    A = np.block([[G.A, np.zeros((n, 1))], [np.zeros((1, n)), np.array([[1.5]])]])
    G = G.with_(A=A, B=np.vstack([G.B, np.ones((1, G.m))]), C=np.hstack([G.C, np.ones((G.p, 1))]))
    best = hankel_norm_approximation(G.with_(name="plant"), kept + 1)
    assert best.unstable == kept
    assert best.system.name == "plant"
    np.testing.assert_allclose(best.hankel_error(), best.hsv[kept + 1], rtol=1e-8)
    assert best.hinf_error() <= best.error_bound
    with pytest.raises(hr.OrderError, match="at least"):
        hankel_norm_approximation(G, 0)
    assert hankel_norm_approximation(G, G.n).hinf_error() < 1e-9
    assert best.T is None
    assert '"bounded": "H-infinity error"' in best.to_json()


def test_single_precision_and_tuples_come_back_as_they_were_given():
    _, G = drawn(2, 0, states=4)
    model = hankel_norm_approximation((G.A, G.B, G.C, G.D), 1).system
    assert isinstance(model, tuple)
    half = hr.StateSpace(*(x.astype(np.float32) for x in (G.A, G.B, G.C, G.D)))
    best = hankel_norm_approximation(half, 1)
    assert best.system.dtype == np.float32
    assert best.hinf_error() <= best.error_bound


@pytest.mark.parametrize("dt", DOMAINS)
@pytest.mark.filterwarnings("ignore::hankelred.AccuracyWarning")
def test_h2_optimal_models_are_stable_stationary_and_never_worse_than_the_balanced_ones(dt):
    stationary = 0
    for seed in SEEDS:
        rng, G = drawn(seed, dt)
        order = int(rng.integers(1, G.n))
        G = G if dt else G.with_(D=0 * G.D)
        best, balanced = h2_optimal(G, order), hr.balanced_truncation(G, order=order)
        error = best.h2_error()
        assert best.system.is_stable()
        assert best.system.dtype == G.dtype
        assert error <= balanced.h2_error() * (1 + 1e-9) + 1e-13, seed
        np.testing.assert_allclose(best.Ti @ best.T, np.eye(order), atol=1e-6)
        stationary += best.residual <= 1e-6
    assert stationary >= 0.9 * len(SEEDS)


@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize("dt", DOMAINS)
def test_no_small_change_of_an_h2_optimal_model_lessens_the_error(dt, seed):
    rng, G = drawn(seed, dt)
    G = G if dt else G.with_(D=0 * G.D)
    best = h2_optimal(G, 2, rtol=1e-9)
    error, model = best.h2_error(), best.system
    for size in (1e-2, 1e-3):
        for _ in range(10):
            A, B, C = (x + size * np.abs(x).max() * rng.standard_normal(x.shape) for x in (model.A, model.B, model.C))
            assert hr.h2_norm(G - model.with_(A=A, B=B, C=C)) >= error * (1 - 1e-9)


def test_h2_iterations_report_and_can_be_ended():
    _, G = drawn(4, True)
    seen = []
    with pytest.warns(hr.AccuracyWarning, match="after 2 steps"):
        best = h2_optimal(G, 1, rtol=1e-12, progress=lambda *step: seen.append(step) or len(seen) == 2)
    assert [step[0] for step in seen] == [1, 2]
    assert best.iterations == 2
    assert best.h2_error() <= hr.balanced_truncation(G, order=1).h2_error()
    assert h2_optimal(G, 0).order == 0
    assert h2_optimal(G, G.n).h2_error() < 1e-9
    with pytest.raises(hr.StabilityError, match="stable"):
        h2_optimal(hr.StateSpace([[1.0]], [[1.0]], [[1.0]]), 1)
    with pytest.raises(hr.InputError, match="rtol"):
        h2_optimal(G, 1, rtol=0)
    with pytest.raises(hr.InputError, match="progress must be a function"):
        h2_optimal(G, 2, progress=3)


@pytest.mark.parametrize("dt", DOMAINS)
def test_hankel_norm_models_may_match_the_system_at_zero_frequency(dt):
    """D is free in the Hankel norm; what the choice costs is within the bound, which says so."""
    for seed in SEEDS:
        rng, G = drawn(seed, dt)
        order = int(rng.integers(0, G.n))
        plain, best = (hankel_norm_approximation(G, order, match_dc=match_dc) for match_dc in (False, True))
        given, found = (x.frequency_response([0.0]) for x in (G, best.system))
        np.testing.assert_allclose(found, given, atol=1e-10 * np.abs(given).max())
        np.testing.assert_allclose(best.hankel_error(), plain.hankel_error(), rtol=1e-9)
        assert best.hinf_error() <= best.error_bound * (1 + 1e-9), seed
        assert best.error_bound == 2 * plain.error_bound


def test_h2_optimal_models_match_dc_in_discrete_time_at_a_stated_cost():
    _, G = drawn(5, True)
    plain, best = (h2_optimal(G, 1, match_dc=match_dc) for match_dc in (False, True))
    given, found = (x.frequency_response([0.0]) for x in (G, best.system))
    np.testing.assert_allclose(found, given, rtol=1e-12)
    cost = np.linalg.norm(best.system.D - plain.system.D)
    np.testing.assert_allclose(best.h2_error(), np.hypot(plain.h2_error(), cost), rtol=1e-10)
    with pytest.raises(hr.InputError, match="match_dc needs discrete time"):
        h2_optimal(hr.StateSpace(-np.eye(2), np.ones((2, 1)), np.ones((1, 2))), 1, match_dc=True)


def convection(n: int, dt: Any = 0, mass: bool = False) -> hr.StateSpace:
    """Return a rod with a flow along it, heated at two places and measured at one; E of finite elements."""
    main, side = np.full(n, -2.0), np.ones(n - 1)
    A = sp.diags([side, main, side], [-1, 0, 1]) * n**2 / 100 + sp.diags([-side, side], [-1, 1]) * n / 10
    E = sp.diags([side / 6, np.full(n, 2 / 3), side / 6], [-1, 0, 1], format="csc") if mass else None
    B, C = np.zeros((n, 2)), np.zeros((1, n))
    B[n // 5, 0] = B[n // 2, 1] = C[0, 3 * n // 5] = np.sqrt(n)
    if dt:  # implicit Euler steps of a tenth
        E = sp.eye(n, format="csc") - A / 10 if E is None else E - A / 10
        A, B = sp.eye(n, format="csc") if not mass else E + A / 10, B / 10
    return hr.StateSpace(sp.csc_array(A), B, C, dt=dt, E=None if E is None else sp.csc_array(E))


@pytest.mark.parametrize("mass", [False, True])
@pytest.mark.parametrize("dt", DOMAINS)
def test_sparse_systems_have_the_h2_optimal_models_of_their_dense_form(dt, mass):
    G = convection(300, dt, mass)
    found, dense = h2_optimal(G, 4), h2_optimal(G.dense(), 4)
    assert found.residual <= 1e-6
    assert found.original is G
    np.testing.assert_allclose(found.Ti @ found.T, np.eye(4), atol=1e-8)
    error = dense.h2_error()
    np.testing.assert_allclose(found.h2_error(), error, rtol=1e-6)
    assert found.h2_error() <= hr.balanced_truncation(G, order=4).h2_error() * (1 + 1e-9)
    np.testing.assert_allclose(hr.h2_norm(found.system - dense.system), 0, atol=1e-4 * error)


def test_large_sparse_systems_report_and_can_be_ended():
    seen = []
    G = convection(10_000)
    found = h2_optimal(G, 3, rtol=1e-9, progress=lambda *step: seen.append(step))
    assert found.residual <= 1e-9
    assert found.system.is_stable()
    assert len(seen) == found.iterations > 1
    np.testing.assert_allclose(seen[-1][1], found.h2_error(), rtol=1e-6)  # the estimate by the product of both
    assert found.h2_error() < hr.balanced_truncation(G, order=3).h2_error()
    with pytest.warns(hr.AccuracyWarning, match="after 1 steps"):
        h2_optimal(G, 3, rtol=1e-12, progress=lambda *_: True)


def test_second_order_systems_are_solved_by_their_own_pencil():
    G = chain(200)
    found = h2_optimal(G, 6)
    assert found.residual <= 1e-6
    assert found.h2_error() <= hr.balanced_truncation(G, order=6).h2_error() * (1 + 1e-9)
