"""The nu-gap against its formula at each frequency, reduced controllers in their loops, gains of unstable systems."""

from __future__ import annotations

import numpy as np
import pytest
from classical import DOMAINS, chordal_distance, drawn, grid, in_other_units
from sizes import sample

import hankelred as hr
from hankelred.feedback import nu_gap, reduce_controller
from hankelred.feedback.controllers import closed_loop
from hankelred.weighting import Coprime

SEEDS = sample(range(200))


def lag(gain, *poles):
    """Return ``gain / prod (s - pole)`` as a chain."""
    n = len(poles)
    A = np.diag(poles) + np.eye(n, k=-1)
    return hr.StateSpace(A, np.eye(n)[:, :1], gain * np.eye(n)[-1:])


def test_known_gaps():
    """Figures of Vinnicombe's examples, as ``gapmetric`` of MATLAB documents them, and a closed form."""
    assert round(nu_gap(lag(50.0, -0.5), lag(50.0, 0.5)), 4) == 0.0200
    assert round(nu_gap(lag(50.0, -0.5), lag(100.0, -1.0, -1.0)), 4) == 0.8988
    assert round(nu_gap(lag(1.0, 0.001), lag(1.0, -0.001)), 4) == 0.0020
    one, other = (hr.StateSpace(np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((1, 0)), [[d]]) for d in (2.0, 3.0))
    np.testing.assert_allclose(nu_gap(one, other), 1 / np.sqrt(5 * 10), rtol=1e-12)
    assert nu_gap(one, one.with_(D=[[-0.5]])) == 1.0  # 1 + H^H G = 0
    assert nu_gap(lag(1.0, -1.0), lag(1.0, 3.0)) == 1.0  # the winding number is not 0


@pytest.mark.parametrize("dt", DOMAINS)
def test_nu_gap_is_the_chordal_distance_or_one_symmetric_and_the_same_in_other_units(dt):
    for seed in SEEDS[:10]:
        rng, G = drawn(seed, dt, unstable=seed % 3 == 0, states=5)
        near = G.with_(
            A=G.A * (1 + 0.05 * rng.standard_normal(G.A.shape)), C=G.C * (1 + 0.1 * rng.standard_normal(G.C.shape))
        )
        for H in (near, G.with_(C=-G.C)):
            gap = nu_gap(G, H)
            assert gap == 1.0 or gap >= chordal_distance(G, H) * (1 - 1e-9), seed
            assert gap == 1.0 or gap <= chordal_distance(G, H) * 1.2 + 1e-9, seed
            np.testing.assert_allclose(nu_gap(H, G), gap, rtol=1e-7)
            np.testing.assert_allclose(nu_gap(in_other_units(G), H), gap, atol=1e-10)
        assert nu_gap(G, G) < 1e-10


@pytest.mark.parametrize("dt", DOMAINS)
def test_coprime_models_are_within_their_bound_in_the_nu_gap(dt):
    for seed in SEEDS[:10]:
        _, G = drawn(seed, dt, unstable=True, states=5)
        bal = hr.balance(G, weighting=Coprime())
        for order in range(bal.rank):
            assert nu_gap(G, bal.reduce(order).system) <= bal.error_bound(order) * (1 + 1e-9), (seed, order)


def loop_with(seed, dt, states=5):
    """Return a plant and the LQG controller of it, from the house's own Riccati equations."""
    from hankelred.linalg.riccati import filter_factor

    _, G = drawn(seed, dt, unstable=True, states=states)
    L = filter_factor(G.A, G.B, G.C, 0 * G.D, bool(dt)).K
    F = filter_factor(G.A.conj().T, G.C.conj().T, G.B.conj().T, 0 * G.D.conj().T, bool(dt)).K.conj().T
    K = hr.StateSpace(G.A + G.B @ F + L @ (G.C + G.D @ F), -L, -F, dt=dt)
    return G, K


@pytest.mark.parametrize("dt", DOMAINS)
def test_reduced_controllers_stabilise_and_their_figures_are_those_of_the_loop(dt):
    made = 0
    for seed in SEEDS[:10]:
        G, K = loop_with(seed, dt)
        for method in ("stability", "performance", "coprime"):
            try:
                reduction = reduce_controller(G, K, G.n - 1, method)
            except hr.HankelredError:
                continue
            made += 1
            Kr = reduction.system
            assert closed_loop(G, Kr).is_stable()
            omega = grid(dt)
            g, k, kr = (x.frequency_response(omega) for x in (G, K, Kr))
            one = np.eye(G.p)
            T, Tr = (np.linalg.solve(one + g @ x, np.concatenate([g, -g @ x], axis=2)) for x in (k, kr))
            change = np.linalg.norm(np.concatenate([T - Tr, k @ T[..., :] * 0], axis=1), 2, axis=(1, 2)).max()
            assert reduction.loop_change >= change * (1 - 1e-9)
            assert 0 < reduction.margin <= 1
            assert np.linalg.norm(T, 2, axis=(1, 2)).max() <= (1 + 1e-9) / reduction.margin
            np.testing.assert_allclose(reduction.nu_gap, nu_gap(K, Kr), rtol=1e-12)
            assert "margin" in reduction.summary()
    assert made >= 20


def test_loops_that_are_not_stable_are_refused_with_the_pole():
    G, K = loop_with(4, 0)
    with pytest.raises(hr.StabilityError, match="opposite sign"):
        reduce_controller(G, K.with_(C=-K.C), 1)
    with pytest.raises(hr.InputError, match="as many inputs"):
        reduce_controller(G, lag(1.0, -1.0) if G.p > 1 else hr.StateSpace([[-1.0]], [[1.0, 1.0]], [[1.0]]), 1)
    with pytest.raises(hr.InputError, match="dt"):
        reduce_controller(G, K.with_(dt=0.1), 1)
    unstable = hr.StateSpace([[1.0]], [[1.0]], [[1.0]])
    with pytest.raises(hr.StabilityError, match="Choose a higher order"):
        reduce_controller(unstable, lag(5.0, -3.0), 0, "coprime")


def test_largest_gain_of_unstable_systems():
    unstable = hr.StateSpace([[1.0]], [[1.0]], [[1.0]])
    assert hr.hinf_norm(unstable) == np.inf
    assert abs(hr.hinf_norm(unstable, stable=False) - 1) < 1e-12
    np.testing.assert_allclose(hr.hinf_norm(hr.StateSpace([[2.0]], [[1.0]], [[1.0]], dt=True), stable=False), 1.0)
    assert hr.hinf_norm(hr.StateSpace([[0.0]], [[1.0]], [[1.0]]), stable=False) == np.inf
    assert hr.hinf_norm(hr.DiagonalSystem([1.0, 1j], np.ones((2, 1)), np.ones((1, 2)), dt=0), stable=False) == np.inf
    pair = hr.DiagonalSystem([0.5, -2.0], np.ones((2, 1)), np.ones((1, 2)), dt=0)
    np.testing.assert_allclose(hr.hinf_norm(pair, stable=False), hr.hinf_norm(pair.dense(), stable=False), rtol=1e-9)


@pytest.mark.parametrize("dt", DOMAINS)
def test_largest_gain_of_unstable_systems_is_that_of_their_response(dt):
    for seed in SEEDS[:6]:
        _, G = drawn(seed, dt, unstable=True)
        norm, peak = hr.hinf_norm(G, stable=False, return_peak=True)
        gains = np.linalg.norm(G.frequency_response(np.append(grid(dt), peak)), 2, axis=(1, 2))
        np.testing.assert_allclose(gains[-1], norm, rtol=1e-9)
        assert gains.max() <= norm * (1 + 1e-8)
        stable = drawn(seed, dt)[1]
        assert hr.hinf_norm(stable, stable=False) == hr.hinf_norm(stable)


def test_real_diagonal_controllers_of_complex_plants_have_the_models_of_their_dense_form():
    """Their weighted models are complex; nothing of them may be cast to real."""
    plant = hr.StateSpace([[-1 + 1j, 0.3], [0.1, -2]], [[1], [1j]], [[0.1, 0.2]])
    controller = hr.DiagonalSystem([-1.0, -2.0, -30.0], [[1.0], [0.5], [2.0]], [[0.5, -1.0, 1.0]], dt=0)
    for order in (1, 2):
        found = reduce_controller(plant, controller, order)
        dense = reduce_controller(plant, controller.dense(), order)
        omega = [-3.0, 0.0, 0.5]
        responses = (x.system.frequency_response(omega) for x in (found, dense))
        np.testing.assert_allclose(*responses, rtol=1e-9)
        assert found.system.dtype.kind == "c"
