"""Optimal models: theorems of Hankel-norm approximation, and the optimality conditions in H2."""

from __future__ import annotations

import numpy as np
import pytest
from classical import DOMAINS, drawn, grid, in_other_units
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
