"""Claims about how many states layers keep, each by itself or out of one budget."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hankelred as hr
import hankelred_torch as ht

from .adapter_models import Stack, lru


def spread(seed=0, sizes=(10, 10, 6)):
    """Return layers of which the first can lose much and the second little, and a bank."""
    torch.manual_seed(seed)
    model = nn.Sequential(lru(sizes[0], seed=seed), lru(sizes[1], seed=seed + 1, r_min=0.8), ht.layers.S4D(3, sizes[2]))
    with torch.no_grad():
        model[0].C_re.mul_(torch.logspace(0, -4, sizes[0]))
        model[0].C_im.mul_(torch.logspace(0, -4, sizes[0]))
    return model


def planned(model, **config):
    return ht.plan(model, ht.CompressionConfig(min_cut=0.0, **config)).layers


@given(seed=st.integers(0, 50), tau=st.floats(0.01, 0.3))
@settings(max_examples=20)
def test_shared_share_is_lost_on_average(seed, tau):
    layers = planned(spread(seed), tau=tau, budget="global")
    assert np.mean([1 - layer.kept_energy for layer in layers.values()]) <= tau * (1 + 1e-9)


@given(seed=st.integers(0, 50))
@settings(max_examples=20)
def test_shared_error_is_the_sum_of_the_bounds(seed):
    model = spread(seed)
    budget = 0.2 * sum(float(hsv.max()) for hsv in ht.hankel_singular_values(model).values())
    layers = planned(model, max_error=budget, budget="global")
    assert sum(layer.error_bound for layer in layers.values()) <= budget * (1 + 1e-9)


def test_shared_budget_keeps_no_more_states_than_any_other_choice_that_meets_it():
    model, tau = spread(sizes=(6, 6, 4)), 0.15
    sizes = [layer.states for layer in planned(model, tau=tau, budget="global").values()]
    analyses = [x.analyse(x.values()) for x in ht.find_ssm_layers(model).values()]
    for choice in itertools.product(*(range(1, x.n + 1) for x in analyses)):
        if sum(choice) < sum(sizes):
            assert np.mean([x.tail(states) for x, states in zip(analyses, choice, strict=True)]) > tau, choice


def test_shared_budget_cuts_where_states_carry_little():
    alone, shared = (planned(spread(), tau=0.1, budget=x) for x in ("per_layer", "global"))
    assert shared["0"].states <= alone["0"].states
    assert sum(x.states for x in shared.values()) < sum(x.states for x in alone.values())


def test_shared_budget_of_one_layer_is_its_own():
    for tau in (0.02, 0.1, 0.3):
        alone, shared = (planned(lru(12), tau=tau, budget=x)[""] for x in ("per_layer", "global"))
        assert abs(shared.states - alone.states) <= 1  # a real pole among the reduced ones costs one of them a state
        assert shared.kept_energy >= 1 - tau


def test_shared_budget_leaves_every_layer_min_order_states():
    layers = planned(spread(), tau=0.9, budget="global", min_order=3)
    assert all(layer.states >= 3 for layer in layers.values())


def test_shared_budget_of_nothing_drops_only_what_links_nothing():
    model = Stack((8, 6))
    with torch.no_grad():
        for part in (model.first.C_re, model.first.C_im):
            part[:, 5:] = 0
    layers = planned(model, tau=0.0, budget="global")
    assert {name: layer.states for name, layer in layers.items()} == {"first": 5, "second": 6}


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.9])
def test_fraction_of_the_states_is_kept_rounded_up(fraction):
    for layer in planned(Stack((10, 7)), fraction=fraction).values():
        assert layer.states == math.ceil(fraction * layer.n)


def test_error_budget_of_a_layer_keeps_the_least_order_within_it():
    layer = lru(10)
    balancing = hr.balance(ht.read_system(layer))
    budget = 0.3 * balancing.hsv[0]
    found = planned(layer, max_error=budget)[""]
    assert found.error_bound <= budget
    least = balancing.order(max_error=budget)
    assert found.states == balancing.reduce(order=least).system.n


def test_error_budget_of_a_bank_holds_for_every_channel():
    torch.manual_seed(0)
    bank = ht.layers.S4D(3, 8)
    budget = 2.0 * float(ht.hankel_singular_values(bank)[""].max())
    found = planned(bank, max_error=budget)[""]
    assert found.cut
    assert all(x.error_bound <= budget for x in found.reduction)


def test_error_budget_that_rounding_exceeds_leaves_the_layer_alone_with_the_reason():
    found = planned(lru(8), max_error=0.0)[""]
    assert not found.cut
    assert found.reason.startswith("max_error=0 cannot be met")
