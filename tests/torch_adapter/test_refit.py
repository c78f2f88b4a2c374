"""Claims about outputs of time-invariant layers that are fitted again after a cut."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from sampled_layers import LAYERS, relative, slow_inputs

import hankelred as hr
import hankelred_torch as ht


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("weighting", ["white", "sampled"])
def test_outputs_fitted_again_come_closer_on_what_they_were_not_fitted_to(name, weighting):
    torch.manual_seed(0)
    layer, u, fresh = LAYERS[name](), slow_inputs(batch=16, length=200), slow_inputs(seed=9, length=200)
    before, errors = layer(fresh).detach(), {}
    for refit in (False, True):
        torch.manual_seed(0)
        copy = LAYERS[name]()
        config = ht.CompressionConfig(order=3, weighting=weighting, refit=refit)
        plan = ht.compress_(copy, config, batches=[u]).layers[""]
        errors[refit] = float((copy(fresh).detach() - before).norm() / before.norm())
    if weighting == "white":
        assert plan.method.endswith("outputs fitted again")
        assert errors[True] < 0.9 * errors[False]
    elif "again" in plan.method:  # little is left to gain, and it is not always found
        assert errors[True] < errors[False]
    else:
        assert errors[True] == errors[False]


def with_fast_states(layer):
    """Half of the states forget at once, so that what they put out is nearly a multiple of the input."""
    system = ht.read_system(layer)
    fast = np.arange(system.n) % 2 == 0
    lam = np.where(fast, 0.05 * system.lam, system.lam)
    ht.write_system(layer, hr.DiagonalSystem(lam, system.B, system.C, system.D, dt=True, output="real"))
    return layer


def test_what_goes_at_once_becomes_feedthrough_in_layer_optimizer_and_averages():
    torch.manual_seed(0)
    layer, u = with_fast_states(ht.layers.LRU(4, 16)), torch.randn(32, 60, 4)
    average = copy.deepcopy(layer)
    with torch.no_grad():
        average.D += 0.5
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-4)
    layer(u).square().mean().backward()
    optimizer.step()
    D, before, whole = layer.D, layer.D.detach().clone(), copy.deepcopy(layer)
    slots = {key: x.clone() for key, x in optimizer.state[D].items()}
    drift = average.D.detach() - before
    snapshot = copy.deepcopy(whole.state_dict())
    config = ht.CompressionConfig(order=8, weighting="white", refit=True)
    plan = ht.compress_(layer, config, optimizer, ema=average, batches=[u])
    assert layer.D is D  # known to its optimizer as before
    assert all(torch.equal(optimizer.state[D][key], x) for key, x in slots.items())
    assert float((D.detach() - before).abs().max()) > 0.01
    np.testing.assert_allclose(np.diag(plan.layers[""].reduction.system.D), D.detach(), rtol=1e-6)
    torch.testing.assert_close(average.D.detach() - D.detach(), drift, rtol=1e-4, atol=1e-6)
    fresh = torch.randn(8, 60, 4)
    plain, undone = copy.deepcopy(whole), copy.deepcopy(layer)
    ht.compress_(plain, dataclasses.replace(config, refit=False))
    with torch.no_grad():
        undone.D.copy_(before)
        outputs = [x(fresh).numpy() for x in (whole, layer, undone, plain)]
    fitted, without, least = (float(relative(x, outputs[0])) for x in outputs[1:])
    assert fitted < 0.9 * min(without, least)
    assert all(torch.equal(x, snapshot[name]) for name, x in whole.state_dict().items())


@pytest.mark.parametrize("weighting", ["white", "sampled"])
@pytest.mark.parametrize("channels", [1, 2])
def test_states_that_only_make_up_for_the_feedthrough_are_not_kept(weighting, channels):
    # a layer whose D is not that of the system it has learned: fast states put that right, and are not needed for it
    rng = np.random.default_rng(channels)
    lam = np.array([0.99, 0.9, 0.8]) * np.exp(1j * np.array([0.3, 1.0, 2.0]))
    B = rng.standard_normal((3, channels)) + 1j * rng.standard_normal((3, channels))
    B *= np.sqrt((1 - np.abs(lam) ** 2) / np.square(np.abs(B)).sum(axis=1))[:, None]
    D = 4.0 * np.eye(channels)
    fast, off = 0.02 * np.ones(channels), np.eye(channels)
    torch.manual_seed(0)
    layer, u = ht.layers.LRU(channels, 3 + channels), torch.randn(32, 200, channels)
    slow = hr.DiagonalSystem(lam, B, B.T, dt=True, output="real")
    both = hr.DiagonalSystem(np.r_[lam, fast], np.r_[B, off], np.hstack([B.T, -D]), D, dt=True, output="real")
    ht.write_system(layer, both)
    before = layer(u).detach()
    plain = copy.deepcopy(layer)
    config = ht.CompressionConfig(order=3, weighting=weighting, refit=True)
    plan = ht.compress_(layer, config, batches=[u])
    ht.compress_(plain, dataclasses.replace(config, refit=False), batches=[u])
    assert "from the next step on" in plan.layers[""].method
    assert relative(layer(u).detach(), before) < 0.12 < 0.3 < relative(plain(u).detach(), before)
    np.testing.assert_allclose(np.sort(np.abs(ht.read_system(layer).lam)), np.sort(np.abs(slow.lam)), rtol=0.06)


def test_an_averaged_copy_that_is_the_model_gets_the_fit_that_the_model_gets():
    torch.manual_seed(0)
    layer, u = ht.layers.LRU(4, 16), slow_inputs(batch=16)
    average = copy.deepcopy(layer)
    plan = ht.compress_(layer, ht.CompressionConfig(order=4, weighting="white", refit=True), ema=average, batches=[u])
    assert "fitted again" in plan.layers[""].method
    for x, y in zip(layer.parameters(), average.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)


def test_outputs_are_not_fitted_where_the_other_half_says_no():
    torch.manual_seed(0)
    layer = ht.layers.LRU(4, 16)
    u = torch.cat([torch.zeros(4, 60, 4), slow_inputs(batch=4, length=60)])  # nothing to learn from in the first half
    plan = ht.plan(layer, ht.CompressionConfig(order=4, refit=True), [u]).layers[""]
    assert plan.method == "sampled balanced truncation"


def test_moments_follow_a_cut_whose_outputs_were_fitted_again():
    torch.manual_seed(0)
    layer, u = ht.layers.LRU(4, 16), slow_inputs()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        layer(u).square().mean().backward()
        optimizer.step()
    ht.compress_(layer, ht.CompressionConfig(order=5, refit=True), optimizer, batches=[u])
    for p in layer.parameters():
        state = optimizer.state[p]
        assert state["exp_avg"].shape == p.shape
        assert bool((state["exp_avg"] ** 2 <= 1e3 * state["exp_avg_sq"] + 1e-12).all())
    optimizer.zero_grad()
    layer(u).square().mean().backward()
    optimizer.step()
    assert all(bool(p.isfinite().all()) for p in layer.parameters())


def test_the_smallest_model_within_a_tolerance_is_smaller_when_outputs_may_be_fitted_again():
    torch.manual_seed(0)
    u, fresh = slow_inputs(batch=16, length=120), slow_inputs(seed=5, length=120)
    sizes = {}
    for refit in (False, "auto"):
        torch.manual_seed(0)
        layer = ht.layers.LRU(4, 24)
        before = layer(fresh).detach()
        metric = lambda model, before=before: float((model(fresh) - before).detach().norm() / before.norm())  # noqa: E731
        config = ht.CompressionConfig(refit=refit)
        plan = ht.compress_(layer, config, batches=[u], metric=metric, tolerance=0.1, mode="min")
        assert metric(layer) == pytest.approx(plan.metric["after"])
        assert metric(layer) <= 0.1
        assert (
            plan.states if hasattr(plan, "states") else sum(plan.sizes.values()),
            plan.metric["after"],
        ) in plan.trials
        sizes[refit] = sum(plan.sizes.values())
    assert sizes["auto"] <= sizes[False] < 24


@pytest.mark.parametrize("seed", range(5))
def test_a_cut_that_leaves_to_the_feedthrough_what_is_answered_at_once_has_the_bound_of_its_own_values(seed):
    rng = np.random.default_rng(seed)
    lam = rng.uniform(0.05, 0.95, 8) * np.exp(1j * rng.uniform(0, np.pi, 8))
    B, C = (rng.standard_normal(x) + 1j * rng.standard_normal(x) for x in ((8, 2), (2, 8)))
    later = hr.DiagonalSystem(lam, B, C * lam, dt=True)
    assert (hr.hankel_singular_values(later) <= (1 + 1e-12) * hr.hankel_singular_values(later.with_(C=C))).all()
    reduction = hr.balanced_truncation(later, order=4)
    small = reduction.system
    C_small = small.C / small.lam
    z = np.exp(1j * np.linspace(-np.pi, np.pi, 2001))[:, None, None]

    def response(lam, B, C, D):  # of a layer: states answer in the step of the input
        return D + (C * z / (z - lam)) @ B

    difference = response(lam, B, C, 0.0) - response(small.lam, small.B, C_small, C @ B - C_small @ small.B)
    assert np.linalg.norm(difference, 2, axis=(1, 2)).max() <= reduction.error_bound * (1 + 1e-9)
