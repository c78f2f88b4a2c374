"""Claims about the configuration and about deciding what to cut."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info
from torch import nn

import hankelred as hr
import hankelred_torch as ht
from hankelred.errors import DiagonalisationError

from .adapter_models import Stack, assert_unchanged, lru, make_inert, snapshot


def planned(layer, **config):
    return ht.plan(layer, ht.CompressionConfig(**config)).layers[""]


@given(seed=st.integers(0, 1000), tau=st.floats(0.01, 0.5))
def test_energy_criterion_keeps_the_states_of_the_least_order_that_carries_enough(seed, tau):
    layer = lru(10, seed=seed)
    decision = planned(layer, tau=tau, min_cut=0.0)
    assert decision.kept_energy >= 1 - tau - 1e-12
    balancing = hr.balance(ht.read_system(layer))
    least = balancing.order(energy=1 - tau)
    assert decision.order >= least
    # an even order without real poles takes half as many states; a real pole takes one alone
    assert decision.states == balancing.reduce(order=least).system.n


def test_order_means_stored_states():
    decision = planned(lru(8), order=5)
    assert decision.states == 5
    assert 5 <= decision.order <= 10  # every stored state holds one Hankel singular value or two


def test_bound_is_that_of_the_reduction_to_this_size():
    layer = lru(8)
    decision = planned(layer, order=5)
    direct = hr.balance(ht.read_system(layer)).reduce(states=5)
    assert decision.error_bound == pytest.approx(direct.error_bound, rel=1e-12)
    assert decision.reduction.hinf_error() <= decision.error_bound


def test_order_by_layer_leaves_the_other_layers_alone():
    plan = ht.plan(Stack(), ht.CompressionConfig(order={"second": 3}))
    assert plan.sizes == {"second": 3}


def test_layers_have_at_least_min_order_states():
    assert planned(lru(8), tau=0.9).states < 4
    assert planned(lru(8), tau=0.9, min_order=4).states == 4


def test_sizes_are_rounded_up_to_a_multiple():
    assert planned(lru(20), order=9, round_to=4).states == 12


@pytest.mark.parametrize(("order", "cut"), [(17, True), (18, False), (20, False)])
def test_small_cuts_are_not_made(order, cut):
    # the gate is 18 of 20 states: fewer are needed
    decision = planned(lru(20), order=order, min_cut=0.1)
    assert decision.cut == cut
    assert decision.states == (order if cut else 20)
    assert decision.reason == ("" if cut else f"{order} of 20 states are needed; a cut keeps fewer than 18")


def test_layer_left_alone_loses_nothing():
    decision = planned(lru(8), order=8)
    assert (decision.kept_energy, decision.error_bound, decision.order) == (1.0, 0.0, 16)
    assert decision.reduction is None


def test_layer_that_links_nothing_is_left_alone_with_the_reason():
    decision = planned(make_inert(lru(8), live=0), order=4)
    assert not decision.cut
    assert decision.reason == "only 0 states link inputs to outputs, fewer than min_order=1"


def test_inert_states_cost_no_energy():
    decision = planned(make_inert(lru(8), live=5), tau=0.0)
    assert decision.states == 5
    assert decision.kept_energy == pytest.approx(1.0, abs=1e-12)


def test_planning_changes_nothing():
    model = Stack()
    before = snapshot(model)
    ht.plan(model, ht.CompressionConfig(order=3))
    assert_unchanged(before, model)


@pytest.mark.parametrize(
    ("target", "names"),
    [
        (None, ["0.first", "0.second"]),
        (["first"], ["0.first"]),
        (["0.second", "first"], ["0.first", "0.second"]),
        (r"0\.s.*", ["0.second"]),
    ],
)
def test_target_modules_are_names_endings_or_one_expression(target, names):
    plan = ht.plan(nn.Sequential(Stack()), ht.CompressionConfig(order=3, target_modules=target))
    assert list(plan.layers) == names


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"order": {"third": 2}}, r"order must name state space layers \(first, second\); got \['third'\]"),
        (
            {"target_modules": ["third"]},
            r"target_modules and exclude_modules must leave a layer of first, second; got \('third',\)",
        ),
        ({"target_modules": "irst"}, "target_modules and exclude_modules must leave a layer"),
    ],
)
def test_names_that_fit_no_layer_are_refused(config, message):
    with pytest.raises(hr.InputError, match=message):
        ht.plan(Stack(), ht.CompressionConfig(**config))


@pytest.mark.parametrize("ask", [lambda m: ht.plan(m, ht.CompressionConfig()), ht.hankel_singular_values])
def test_model_without_state_space_layers_is_refused_with_what_it_has(ask):
    model = nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2))
    with pytest.raises(hr.InputError, match=r"got 1 Sequential, 2 Linear, 1 GELU\. Name your layer class to"):
        ask(model)


@pytest.mark.parametrize(("config", "taken"), [({"tau": 0.3}, "above"), ({"order": 5}, "below")])
def test_order_that_cannot_be_diagonalised_gives_way_and_is_reported(monkeypatch, config, taken):
    # towards more states where a share of energy was promised, towards fewer where a size was
    layer = lru(10)
    asked = planned(layer, **config)
    reduce = hr.Balancing.reduce

    def without(self, order=None, *, states=None):
        order = self.order(states=states) if order is None else order
        if order == asked.order:
            raise DiagonalisationError("defective", [order - 1, order + 1])
        return reduce(self, order)

    monkeypatch.setattr(hr.Balancing, "reduce", without)
    decision = planned(layer, **config)
    instead = asked.order + (1 if taken == "above" else -1)
    assert decision.reason == f"order {asked.order} cannot be diagonalised, {instead} can"
    assert decision.order >= instead if taken == "above" else decision.order == instead


def test_layer_without_a_diagonal_reduction_is_left_alone(monkeypatch):
    def never(self, order=None, *, states=None):
        raise DiagonalisationError("The reduced state matrix is defective.")

    monkeypatch.setattr(hr.Balancing, "reduce", never)
    decision = planned(lru(8), order=4)
    assert not decision.cut
    assert decision.reason == "The reduced state matrix is defective."


def test_plan_prints_as_a_table():
    model = Stack()
    text = str(ht.plan(model, ht.CompressionConfig(order={"first": 4, "second": 8})))
    heading, first, second = text.splitlines()
    assert heading.split() == ["layer", "states", "kept", "hsv", "error", "bound"]
    assert first.startswith("first   12 -> 4")
    assert second.startswith("second  8        100.00%")
    assert second.endswith("8 of 8 states are needed; a cut keeps fewer than 7.6")


def test_plan_is_ready_for_json_and_loggers():
    plan = ht.plan(Stack(), ht.CompressionConfig(order=4))
    written = json.loads(json.dumps(plan.to_dict()))
    assert [layer["states"] for layer in written["layers"]] == [4, 4]
    assert len(written["layers"][0]["hsv"]) == 24
    scalars = plan.scalars("cut")
    assert set(scalars) == {
        f"cut/{x}/{y}" for x in ("first", "second") for y in ("states", "kept_energy", "error_bound")
    }
    assert all(isinstance(x, float) for x in scalars.values())


def test_hsv_are_those_of_the_core_in_double_precision():
    layer = lru(dtype=torch.float32)
    hsv = ht.hankel_singular_values(layer)[""]
    assert hsv.dtype == np.float64
    assert np.array_equal(hsv, hr.hankel_singular_values(ht.read_system(layer)))


def test_linear_algebra_runs_in_one_thread(monkeypatch):
    threads = []
    core = hr.hankel_singular_values

    def watched(system):
        threads.extend(x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas")
        return core(system)

    monkeypatch.setattr(hr, "hankel_singular_values", watched)
    ht.hankel_singular_values(lru(12))  # 24 values: smaller matrices use one thread anyway
    assert set(threads) == {1}


@pytest.mark.parametrize(
    "config",
    [
        {"tau": 1.0},
        {"tau": -0.1},
        {"tau": float("nan")},
        {"order": 0},
        {"order": 2.5},
        {"order": {"first": 0}},
        {"min_order": 0},
        {"min_cut": 1.0},
        {"round_to": 0},
        {"budget": "galactic"},
        {"method": "magic"},
        {"optimizer_state": "slice"},
        {"fraction": 1.0},
        {"max_error": -0.1},
    ],
)
def test_values_out_of_range_are_refused_by_name(config):
    with pytest.raises(hr.InputError, match=f"^{next(iter(config))} must be .*; got .*"):
        ht.CompressionConfig(**config)


@pytest.mark.parametrize(
    "schedule",
    [
        {"attempts": 0},
        {"attempts": True},
        {"start_step": -1},
        {"end_step": 0},
        {"end_step": 20, "total_steps": 10},
        {"total_steps": -5},
        {"total_steps": 1e4},
        {"max_tail": 1.5},
        {"force": "false"},
    ],
)
def test_times_out_of_range_are_refused_by_name(schedule):
    with pytest.raises(hr.InputError, match=f"^{next(iter(schedule))} must be .*; got .*"):
        ht.Schedule(**schedule)


@pytest.mark.parametrize(
    "config",
    [
        {"tau": "1e-2"},  # what YAML 1.1 makes of tau: 1e-2
        {"tau": None},
        {"tau": True},
        {"order": {}},
        {"order": {1: 3}},
        {"order": "4"},
        {"fraction": "half"},
        {"max_error": float("inf")},
        {"max_error": complex(1)},
        {"target_modules": "("},
        {"target_modules": [1]},
        {"target_modules": [None]},
        {"target_modules": b"a"},
        {"target_modules": []},
        {"exclude_modules": "*"},
        {"exclude_modules": 3},
        {"budget": ["global"]},
        {"weighting": "pink"},
        {"weighting": None},
        {"refit": "yes"},
    ],
)
def test_values_of_another_type_are_refused_by_name(config):
    with pytest.raises(hr.InputError, match=f"^{next(iter(config))} must be .*; got .*"):
        ht.CompressionConfig.from_dict(config)


def test_numbers_of_numpy_become_plain_ones():
    config = ht.CompressionConfig(order={"a": np.int64(4)}, tau=np.float32(0.25), round_to=np.uint8(2))
    schedule = ht.Schedule(np.int64(100), force=np.bool_(True), max_tail=np.float64(0.5))
    found = [*config.order.values(), config.tau, config.round_to, *schedule.to_dict().values()]
    assert {type(x) for x in found} == {int, float, bool, type(None)}
    assert ht.CompressionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert ht.Schedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule


def test_global_budget_with_a_given_size_is_refused():
    # it was ignored
    for given_size in ({"order": 3}, {"fraction": 0.5}):
        with pytest.raises(hr.InputError, match="budget must be 'per_layer' with a given"):
            ht.CompressionConfig(budget="global", **given_size)


@pytest.mark.parametrize(("exclude", "names"), [(["first"], ["0.second"]), (r".*second", ["0.first"])])
def test_excluded_modules_are_left_alone(exclude, names):
    plan = ht.plan(nn.Sequential(Stack()), ht.CompressionConfig(order=3, exclude_modules=exclude))
    assert list(plan.layers) == names


def test_excluding_every_layer_is_refused():
    with pytest.raises(hr.InputError, match="must leave a layer of first, second"):
        ht.plan(Stack(), ht.CompressionConfig(exclude_modules=".*"))


def test_configuration_survives_json():
    config = ht.CompressionConfig(order={"first": 4}, target_modules=["first"], tau=0.02)
    assert ht.CompressionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_fields_are_refused():
    with pytest.raises(hr.InputError, match=r"got \['taau'\]"):
        ht.CompressionConfig.from_dict({"taau": 0.1})


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        ({"total_steps": 1000}, (25, 50, 75, 100)),
        ({"total_steps": 1000, "attempts": 1}, (100,)),
        ({"end_step": 50, "start_step": 10, "attempts": 2}, (30, 50)),
        ({"end_step": 2, "total_steps": 1000}, (1, 2)),
        ({"total_steps": 5}, (1,)),
    ],
)
def test_attempts_divide_the_window_evenly_and_end_with_it(config, steps):
    assert ht.Schedule(**config).attempt_steps() == steps


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "One of end_step and total_steps must be given .* got neither"),
        ({"start_step": 10, "total_steps": 100}, "must end after it starts; got start_step=10 and an end at 10"),
    ],
)
def test_missing_or_empty_window_is_refused(config, message):
    with pytest.raises(hr.InputError, match=message):
        ht.Schedule(**config).attempt_steps()
