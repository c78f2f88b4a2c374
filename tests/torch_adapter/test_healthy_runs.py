"""Claims about runs that a compressor must not end or mislead: what goes wrong is told, and training goes on."""

from __future__ import annotations

import functools
import gc
import importlib
import itertools
import json
import threading
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from sizes import is_long
from torch import nn

import hankelred as hr
import hankelred_torch as ht
from hankelred.linalg import threads as blas

from .adapter_models import Stack, lru, make_inert, train
from .continuous_layers import CHANNELS, FAMILIES, ssm_kernel_with_shared_poles


def compressor_of(model, optimizer=None, *, guard=None, order=None, end_step=1, attempts=1, **options):
    config = ht.CompressionConfig(**({} if order is None else {"order": order}), **options.pop("config", {}))
    schedule = ht.Schedule(end_step=end_step, attempts=attempts, force=True)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=1e-3)
    return ht.InTrainingCompressor(model, optimizer, config, schedule, guard, **options)


def always_worse():
    return ht.Guard(lambda: float("nan"), tolerance=0.1, mode="max")


# A guard that fails comes to an end: half of a cut that comes out as the same cut is not tried.


def dead(family):
    torch.manual_seed(0)
    layer = family(4, 32)
    with torch.no_grad():
        if isinstance(layer, ht.layers.LRU):
            return make_inert(layer, live=10)
        layer.C[:, 10:] = 0  # of S4D (channels, n, 2), of S5 (channels, n)
    return layer


def real_cluster():
    torch.manual_seed(88)
    n = int(torch.randint(4, 24, (1,)))
    return ht.layers.LRU(2, n, r_min=0.0, r_max=0.9, max_phase=0.05)


@pytest.mark.parametrize("made", [lambda: dead(ht.layers.LRU), lambda: dead(ht.layers.S4D), real_cluster])
def test_failing_guard_tries_no_cut_twice(made):
    layer = made()
    compressor = compressor_of(layer, guard=always_worse(), config={"tau": 0.01, "min_cut": 0.0})
    n = ht.state_sizes(layer)[""]
    assert compressor.step() is None
    tried = [x.states for x in compressor.history if x.rolled_back]
    assert tried == sorted(set(tried))
    assert ht.state_sizes(layer) == {"": n}


def test_run_with_a_failing_guard_that_settles_goes_on():
    layer = dead(ht.layers.LRU)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
    guard = ht.Guard(lambda: float("nan"), tolerance=0.1, mode="min", settle_steps=3)
    compressor = compressor_of(layer, optimizer, guard=guard, end_step=5, config={"tau": 0.01})
    seen = set()
    for _ in range(40):
        layer(torch.ones(4, 16, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        compressor.step()
        seen.add(round(layer.D.square().sum().item(), 9))
    assert len(seen) > 25
    assert "no more attempts" in repr(compressor)


# Schedulers are seen however they are wrapped.


@pytest.mark.parametrize("given", ["nothing", "wrapped", "inner"])
def test_accelerated_schedulers_are_those_of_the_optimizer_inside(given):
    accelerate = pytest.importorskip("accelerate")
    layer = ht.layers.LRU(4, 16)
    inner = torch.optim.AdamW(layer.parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(inner, 0.9)
    layer, optimizer, wrapped = accelerate.Accelerator(cpu=True).prepare(layer, inner, scheduler)
    restore = {"nothing": [], "wrapped": [wrapped], "inner": [scheduler]}[given]
    for each in (optimizer, inner):
        guard = ht.Guard(lambda: 1.0, tolerance=0.1, mode="max")
        compressor = compressor_of(layer, each, guard=guard, order=12, end_step=9, restore=restore)
        if given == "nothing":
            with pytest.raises(hr.InputError, match="restore must hold the learning-rate schedulers"):
                compressor.step()
        else:
            compressor.step()


# Bounds hold for the layer as it is stored.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", [ht.layers.LRU, ht.layers.S5, ht.layers.S4D])
@pytest.mark.parametrize("states", [30, 12])
def test_bound_holds_for_the_layer_as_it_is_stored(dtype, family, states):
    torch.manual_seed(0)
    layer = (family(2, 32, r_min=0.5, r_max=0.9) if family is ht.layers.LRU else family(2, 32)).to(dtype)
    before = ht.read_system(layer)
    report = ht.compress_(layer, ht.CompressionConfig(order=states)).layers[""]
    after = ht.read_system(layer)
    assert np.max(hr.hinf_norm(before - after)) <= report.error_bound * (1 + 1e-9)
    assert 0 < report.rounding < report.error_bound


@pytest.mark.parametrize("budget", ["per_layer", "global"])
def test_error_budget_that_rounding_alone_exceeds_cuts_nothing(budget):
    torch.manual_seed(0)
    layer = ht.layers.LRU(2, 48, r_min=0.5, r_max=0.9).to(torch.bfloat16)
    plan = ht.plan(layer, ht.CompressionConfig(max_error=1e-3, budget=budget))
    assert not plan.is_cut
    assert "is rounding to the dtype it is stored in; above max_error" in plan.layers[""].reason
    wide = ht.plan(layer.float(), ht.CompressionConfig(max_error=1e-3, budget=budget)).layers[""]
    assert wide.cut
    assert wide.error_bound <= 1e-3


# Two compressors on one optimizer know of one another.


@pytest.mark.parametrize("later", [3, 5])
def test_rollback_of_one_compressor_is_in_the_history_of_the_other(later):
    torch.manual_seed(0)
    model = nn.Sequential(ht.layers.LRU(4, 16), ht.layers.LRU(4, 16))
    optimizer, values = torch.optim.AdamW(model.parameters()), iter([1.0] + [0.0] * 9)
    guard = ht.Guard(lambda: next(values), tolerance=0.1, mode="max", settle_steps=4, on_fail="stop")
    first = compressor_of(model, optimizer, guard=guard, order=6, config={"target_modules": "0"})
    second = compressor_of(model, optimizer, order=6, end_step=later, config={"target_modules": "1"})
    for _ in range(8):
        model(torch.randn(2, 8, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        first.step()
        second.step()
    (record,) = second.history
    found = ht.state_sizes(model)
    assert found == {"0": 16, "1": record.states_now}
    assert record.rolled_back == (later == 3)
    assert (found["1"] == 6) == (later == 5)


def test_compressor_that_is_gone_is_not_told():
    model = lru(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    compressor_of(model, optimizer, order=6)
    gc.collect()
    assert not model._forward_pre_hooks
    values = iter([1.0, 0.0])
    guard = ht.Guard(lambda: next(values), tolerance=0.1, mode="max", on_fail="stop")
    compressor_of(model, optimizer, guard=guard, order=4).step()
    gc.collect()
    assert model.states == 8
    assert len(optimizer._optimizer_step_post_hooks) == 0


# A metric gets the model only if it needs one argument.


def evaluate(model, loader, verbose=False):
    assert isinstance(verbose, bool)
    return float(len(loader))


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        (functools.partial(evaluate, None, [1, 2]), 2.0),
        (lambda batches=(1, 2, 3): len(batches), 3.0),
        (lambda *, steps=4: steps, 4.0),
        (lambda model: model.states, 8.0),
        (lambda *all: all[0].states, 8.0),
        (lambda model, scale=2: scale * model.states, 16.0),
        (lambda: 1, 1.0),
    ],
)
def test_optional_arguments_of_a_metric_are_the_users(metric, value):
    assert ht.Guard(metric, tolerance=0.1, mode="max").measure(lru(8)) == value


@pytest.mark.parametrize("metric", [evaluate, lambda model, *, loader: 0.0, max])
def test_metric_that_needs_more_than_the_model_is_refused(metric):
    if metric is max:
        metric = type("Both", (), {"__call__": lambda self, model, loader: 0.0})()
    with pytest.raises(hr.InputError, match="metric must be callable with the model or with nothing"):
        ht.Guard(metric, tolerance=0.1, mode="max")


def test_direction_of_a_loss_is_known_and_that_of_others_asked_for():
    # the default was "max": a cut that made a loss 330 times worse was accepted
    loss = ht.validation_loss([(torch.ones(2, 3), torch.ones(2, 3))], nn.functional.mse_loss)
    guard = ht.Guard(loss, tolerance=0.1)
    assert guard.mode == "min"
    assert not guard.holds(0.1, 30.0)
    assert ht.Guard(loss, tolerance=0.1, mode="max").mode == "max"
    for metric in (lambda: 0.9, functools.partial(loss, None), evaluate):
        with pytest.raises(hr.InputError, match='mode must be "max" or "min"'):
            ht.Guard(metric, tolerance=0.1)


# A layer that cannot be reduced now is left alone; the others are cut.


def unstable(family, real=0.01):
    torch.manual_seed(0)
    layer = family(4, 8)
    with torch.no_grad():
        if family is ht.layers.LRU:
            layer.nu_log[0] = -800.0  # the rate is 0
        else:
            layer.Lambda_re[0] = real
    return layer


@pytest.mark.parametrize(("family", "real"), [(ht.layers.S5, 0.01), (ht.layers.S5, 0.0), (ht.layers.LRU, None)])
def test_layer_that_cannot_be_reduced_now_is_left_alone_and_the_others_are_cut(family, real):
    model = nn.Sequential(unstable(family, real), ht.layers.LRU(4, 8))
    compressor = compressor_of(model, order=4, end_step=4, attempts=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ht.RefusedCutWarning)
        for _ in range(4):
            compressor.step()
    assert ht.state_sizes(model) == {"0": 8, "1": 4}
    reasons = {x.reason for x in compressor.history if x.layer == "0"}
    assert all("cannot be reduced now" in reason for reason in reasons)
    assert len([x for x in caught if issubclass(x.category, ht.RefusedCutWarning)]) == 1
    assert "cannot be reduced now" in repr(compressor)


class FirstOnly(nn.Module):
    """Two layers, of which the forward pass calls the first."""

    def __init__(self, first):
        super().__init__()
        self.first, self.second = first, ht.layers.LRU(4, 8)

    def forward(self, u):
        return self.first(u)


def with_defect(family, tensor, value, everywhere):
    """Return what two attempts make of a model after a tensor of a layer has got a value: sizes, records, warnings."""
    torch.manual_seed(0)
    model = FirstOnly(family())
    adapter = ht.adapters.adapter_of(model.first)
    batches = [torch.randn(2, 12, CHANNELS)] if adapter.kind == "selective" else None
    compressor = compressor_of(model, order=4, end_step=2, attempts=2, batches=batches)
    tracker = ht.Tracker(model, every=1)
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        (adapter.tensor(tensor) if everywhere else adapter.tensor(tensor).view(-1)[:1]).fill_(value)
        warnings.simplefilter("always", hr.HankelredWarning)  # equal channels have repeated values
        for _ in range(2):
            compressor.step()
            tracker.step()
    count = sum(issubclass(x.category, ht.RefusedCutWarning) for x in caught)
    return ht.state_sizes(model), {x.reason for x in compressor.history if x.layer == "first"}, count


DEFECTIVE = [lambda: ht.layers.LRU(3, 8), lambda: ht.layers.Mamba(3, 8), *FAMILIES, ssm_kernel_with_shared_poles]


VALUES = [float("nan"), 0.0, -1e30, *([float("inf"), 800.0, -800.0, 1e30] if is_long() else [])]


@pytest.mark.parametrize("family", DEFECTIVE)
@pytest.mark.parametrize("value", VALUES)
def test_no_value_of_any_tensor_ends_a_run(family, value):
    # history: a NaN in any tensor, B or C of zeros in S5 and in SSMKernelDiag, and rates of 0 in Mamba ended runs
    adapter = ht.adapters.adapter_of(family())
    for name in (*adapter.state_axes, *adapter.constants) if is_long() else [*adapter.state_axes][:2]:
        for everywhere in (True, False)[: 1 + is_long()]:
            sizes, reasons, count = with_defect(family, name, value, everywhere)
            assert sizes["second"] == 4
            assert sizes["first"] <= 8 if np.isfinite(value) else sizes["first"] == 8, name
            now = any("cannot be reduced now" in reason for reason in reasons)
            assert count == now, f"{name}: {count} warnings for {reasons}"
            assert now or np.isfinite(value), f"{name}: {reasons}"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("where", ["before", "inside"])
def test_statistics_name_the_layer_that_is_not_finite(where, value):
    model = nn.Sequential(nn.Linear(3, 3), ht.layers.Mamba(3, 8))
    with torch.no_grad():
        (model[0].bias if where == "before" else model[1].x_proj.weight).fill_(value)
    with pytest.raises(hr.NumericalError, match=r"Layer 1: .* must be finite"):
        ht.adapters.collect_statistics(model, [torch.randn(2, 12, 3)])


def test_layer_that_has_become_stable_again_is_cut():
    layer = unstable(ht.layers.S5)
    compressor = compressor_of(layer, order=4, end_step=2, attempts=2)
    with pytest.warns(ht.RefusedCutWarning, match="was left alone"):
        compressor.step()
    with torch.no_grad():
        layer.Lambda_re[0] = -0.1
    assert compressor.step().is_cut


def test_tracker_goes_on_past_an_unstable_layer():
    layer = ht.layers.S5(4, 8)
    tracker = ht.Tracker(nn.Sequential(layer, ht.layers.LRU(4, 8)), every=1)
    for pole in (0.1, -0.1, -0.11):
        with torch.no_grad():
            layer.Lambda_re[0] = pole
        tracker.step()
    found = [(x.step, bool(x.reason), x.moved is not None) for x in tracker.history if x.layer == "0"]
    assert found == [(0, False, False), (1, True, False), (2, False, False), (3, False, True)]
    json.loads(tracker.history.to_json())
    twin = ht.Tracker(nn.Sequential(layer, ht.layers.LRU(4, 8)), every=1)
    twin.load_state_dict(tracker.state_dict())
    assert twin.history == tracker.history


@pytest.mark.parametrize("method", ["rotation", "selection", "selection_without_fold"])
def test_method_of_selective_layers_is_refused_without_one(method):
    # it was ignored
    with pytest.raises(hr.InputError, match="method chooses how selective layers lose states; got"):
        ht.plan(lru(8), ht.CompressionConfig(order=4, method=method))


def test_bare_model_in_a_distributed_run_is_warned_of(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.warns(ht.RefusedCutWarning, match="not in a DistributedDataParallel: each of them will cut by itself"):
        compressor_of(lru(8), order=4)


def test_plan_still_says_at_once_what_is_unstable():
    with pytest.raises(hr.StabilityError):
        ht.plan(unstable(ht.layers.S5), ht.CompressionConfig(order=4))


# Steps are those of the optimizer.


@pytest.mark.parametrize("zero_first", [False, True])
def test_calls_for_micro_batches_are_not_counted(zero_first):
    model = Stack()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    compressor = compressor_of(model, optimizer, order=4, end_step=3)
    cut_at = []
    for k in range(12):
        if zero_first and k % 3 == 0:
            optimizer.zero_grad()
        model(torch.ones(2, 6, 3).double()).square().mean().backward()
        if k % 3 == 2:
            optimizer.step()
            if not zero_first:
                optimizer.zero_grad()
        if compressor.step() is not None:
            cut_at.append(k)
    assert compressor.steps == 4
    assert cut_at == [8]


def test_steps_that_a_scaler_skips_are_not_counted():
    model = lru(8, dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    compressor = compressor_of(model, optimizer, order=4, end_step=9, restore=[scaler])
    for k in range(5):
        scaler.scale(model(torch.ones(2, 6, 3)).sum() * (float("inf") if k in (2, 3) else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        compressor.step()
    assert compressor.steps == 3


def test_optimizers_that_take_turns_make_a_step_each():
    model = Stack()
    optimizers = [torch.optim.SGD(x.parameters(), lr=1e-3) for x in (model.first, model.second)]
    compressor = compressor_of(model, optimizers, order=4, end_step=9, config={"target_modules": ["first", "second"]})
    for k in range(4):
        train(model, [optimizers[k % 2]], 1, seed=k)
        compressor.step()
    assert compressor.steps == 4


# Sample batches are tried at once, or the training is heard.


def mamba(n=16):
    torch.manual_seed(0)
    return ht.layers.Mamba(8, n)


def loader(*extra):
    data = torch.utils.data.TensorDataset(torch.randn(8, 24, 8), *extra)
    return torch.utils.data.DataLoader(data, batch_size=2)


@pytest.mark.parametrize(
    "batches", [loader(torch.zeros(8)), loader(torch.zeros(8), torch.ones(8)), [(torch.randn(2, 9, 8), {"label": 1})]]
)
def test_loader_of_inputs_and_targets_serves_as_batches(batches):
    layer = mamba()
    assert compressor_of(layer, order=8, batches=batches).step().sizes == {"": 8}


@pytest.mark.parametrize("batches", [[torch.randn(2, 24, 5)], [{"x": torch.randn(2, 24, 8)}], [["text"]], []])
def test_batches_that_do_not_fit_are_refused_before_training(batches):
    with pytest.raises(hr.InputError, match=r"batches|u must be real with shape \(batch, length, channels\)"):
        compressor_of(mamba(), order=8, batches=batches)


def test_statistics_serve_one_attempt_only():
    layer = mamba()
    statistics = ht.adapters.collect_statistics(layer, [torch.randn(4, 24, 8)])
    with pytest.raises(hr.InputError, match="batches must serve 3 attempts; got statistics"):
        compressor_of(layer, order=8, end_step=6, attempts=3, batches=statistics)
    assert compressor_of(layer, order=8, batches=statistics).step().is_cut


@pytest.mark.parametrize("end_step", [1, 3])
def test_two_lines_are_enough_for_layers_that_depend_on_their_input(end_step):
    layer = mamba()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    compressor = compressor_of(layer, optimizer, order=8, end_step=end_step)
    plans = []
    for _ in range(4):
        layer(torch.randn(2, 24, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        plans.append(compressor.step())
    assert [x is not None for x in plans] == [k + 1 == end_step for k in range(4)]
    plan = plans[end_step - 1]
    assert plan.layers[""].output_error > 0
    assert min(plan.forward_seconds) > 0
    assert not layer._forward_pre_hooks
    assert not layer._forward_hooks


def test_layer_that_was_not_heard_is_left_alone_with_the_reason():
    model = nn.ModuleList([mamba(), mamba()])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    compressor = compressor_of(model, optimizer, order=8)
    model[0](torch.randn(2, 24, 8)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    compressor.step()
    assert ht.state_sizes(model) == {"0": 8, "1": 16}
    assert "watched" in compressor.history[1].reason


# What is printed and written can be read.


def boundless():
    layer = ht.layers.LRU(2, 8)
    torch.nn.init.constant_(layer.nu_log[:1], -20.0)
    return layer


@pytest.mark.parametrize("made", [boundless, mamba, lambda: lru(8)])
def test_plans_and_histories_are_strict_json(made, tmp_path):
    layer = made()
    batches = [torch.randn(2, 12, 8)] if isinstance(layer, ht.layers.Mamba) else None
    guard = ht.Guard(lambda: float("nan"), tolerance=0.1, mode="max", on_fail="stop")
    compressor = compressor_of(layer, guard=guard, config={"tau": 0.1}, batches=batches)
    compressor.step()

    def strict(text):
        return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    records = strict(compressor.history.to_json(tmp_path / "history.json"))
    assert strict((tmp_path / "history.json").read_text()) == records
    assert ht.History.from_list(records) == compressor.history
    plan = strict(ht.plan(layer, ht.CompressionConfig(tau=0.1), batches).to_json(tmp_path / "plan.json"))
    assert plan["versions"]["torch"] == torch.__version__
    assert plan["config"]["tau"] == 0.1


def test_history_of_a_layer_that_cannot_be_measured_is_strict_json():
    layer = ht.layers.S5(2, 4)
    tracker = ht.Tracker(layer, every=1)
    torch.nn.init.constant_(layer.Lambda_re, 0.1)
    tracker.step()
    text = tracker.history.to_json()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))[1]["hsv"] == []
    assert ht.History.from_list(json.loads(text)) == tracker.history


def test_compressor_plan_and_history_print_what_a_person_wants():
    model = Stack()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    compressor = compressor_of(model, optimizer, order={"first": 4, "second": 8}, end_step=4, attempts=1)
    assert "next attempt at step 4, 1 left" in repr(compressor)
    assert "optimizers: Adam" in repr(compressor)
    for k in range(4):
        train(model, optimizer, 1, seed=k)
        plan = compressor.step() or None if k < 3 else compressor.step()
    told = repr(compressor)
    assert "no more attempts" in told
    assert "first: 4 states, 12 at the start" in told
    assert "not cut at step 4: 'second', 8 of 8 states are needed" in told
    assert "parameters" in str(plan)
    assert "bytes per sequence" in str(plan)
    assert "forward pass" in str(plan)
    history = repr(compressor.history)
    assert "first: 12 -> 4 states at step 4" in history
    assert len(history) < 400
    assert len(told) < 800


@pytest.mark.parametrize("order", [0, -1, 99, 2.5, float("nan"), True])
def test_orders_that_were_not_measured_are_not_drawn(order):
    history = ht.Tracker(lru(4), every=1).history
    for ask in (lambda: history.plot_hsv(order=order), lambda: history[0].keeps(order)):
        with pytest.raises(hr.OrderError, match="order must be an integer from 1 to 8"):
            ask()


@pytest.mark.parametrize("config", [ht.CompressionConfig, {"tau": 0.1}, None])
def test_settings_of_another_type_are_refused(config):
    model = lru(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for ask in (
        lambda: ht.plan(model, config),
        lambda: ht.compress_(model, config),
        lambda: ht.InTrainingCompressor(model, optimizer, config, ht.Schedule(10)),
        lambda: ht.InTrainingCompressor(model, optimizer, ht.CompressionConfig(), config),
    ):
        with pytest.raises(hr.InputError, match="must be a"):
            ask()


# Hooks at cuts.


class Noting:
    def __init__(self):
        self.told = []

    def before(self, plan, compressor):
        self.told.append(("before", plan.sizes, ht.state_sizes(compressor.model)))

    def after(self, plan, compressor):
        self.told.append(("after", plan.sizes, ht.state_sizes(compressor.model)))

    def undone(self, plan, compressor):
        self.told.append(("undone", plan.sizes, ht.state_sizes(compressor.model)))


def test_hooks_are_called_before_and_after_a_cut():
    layer, noting, plans = lru(8), Noting(), []
    compressor = compressor_of(layer, order=4, on_cut=[noting, lambda plan, compressor: plans.append(plan)])
    plan = compressor.step()
    assert noting.told == [("before", {"": 4}, {"": 8}), ("after", {"": 4}, {"": 4})]
    assert plans == [plan]


def test_hooks_after_are_not_called_for_a_cut_that_does_not_hold():
    noting = Noting()
    compressor_of(lru(8), guard=always_worse(), order=6, config={"min_cut": 0.2}, on_cut=noting).step()
    assert [x[0] for x in noting.told] == ["before", "undone"]
    assert noting.told[1][1:] == ({"": 8}, {"": 8})


def test_hooks_are_told_of_a_cut_that_is_undone_after_its_time_to_settle_or_on_request():
    noting, plans = Noting(), []
    hooks = [noting, lambda plan, compressor: plans.append(plan)]
    guard = ht.Guard(lambda: float("nan"), tolerance=0.1, mode="max", settle_steps=1, on_fail="stop")
    compressor = compressor_of(lru(8), guard=guard, order=6, on_cut=hooks)
    assert compressor.step().is_cut
    assert compressor.step() is None
    assert [x[0] for x in noting.told] == ["before", "after", "undone"]
    compressor = compressor_of(lru(8), order=6, on_cut=noting)
    compressor.step()
    compressor.rollback()
    assert [x[0] for x in noting.told[3:]] == ["before", "after", "undone"]
    assert len(plans) == 1  # a plain function is told of what goes on only


@pytest.mark.parametrize("hook", [3, "print", [None], Noting, object()])
def test_hooks_that_cannot_be_called_are_refused(hook):
    with pytest.raises(hr.InputError, match="on_cut must be"):
        compressor_of(lru(8), order=4, on_cut=hook)


# After training: the smallest model whose metric holds.


@pytest.mark.parametrize("least", [3, 5, 7])
def test_smallest_model_that_holds_is_found(least):
    layer = lru(8)
    before = {name: p.clone() for name, p in layer.state_dict().items()}
    config = ht.CompressionConfig(min_cut=0.0)
    plan = ht.compress_(layer, config, metric=lambda model: float(model.states >= least), tolerance=0.5, mode="max")
    assert plan.metric == {"before": 1.0, "after": 1.0}
    assert layer.states == plan.sizes[""]
    assert least <= layer.states <= least + 1  # not every size exists
    twin = lru(8)
    ht.compress_(twin, ht.CompressionConfig(order=layer.states, min_cut=0.0))
    assert all(torch.equal(x, y) for x, y in zip(layer.parameters(), twin.parameters(), strict=True))
    assert before["nu_log"].shape == (8,)


def test_model_whose_metric_allows_nothing_is_as_before():
    layer = lru(8)
    before = {name: p.clone() for name, p in layer.state_dict().items()}
    plan = ht.compress_(
        layer, ht.CompressionConfig(), metric=lambda model: float(model.states == 8), tolerance=0.5, mode="max"
    )
    assert not plan.is_cut
    assert all(torch.equal(p, before[name]) for name, p in layer.state_dict().items())


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ({"order": 4}, {"metric": lambda: 1.0, "tolerance": 0.1, "mode": "max"}, "order must not be given"),
        ({}, {"metric": lambda: 1.0, "tolerance": 0.1}, "mode must be"),
        ({}, {"metric": lambda: 1.0, "mode": "max"}, "tolerance must be"),
        ({}, {"tolerance": 0.1, "mode": "max"}, "metric must be"),
    ],
)
def test_half_a_search_is_refused(config, arguments, message):
    with pytest.raises(hr.InputError, match=message):
        ht.compress_(lru(8), ht.CompressionConfig(**config), **arguments)


class Library:
    """A process-wide number of threads, as in OpenBLAS."""

    def __init__(self):
        self.settings = []

    def get_num_threads(self):
        return [2, *self.settings][-1]

    def set_num_threads(self, number):
        self.settings.append(number)


@pytest.mark.parametrize("threads", [2, 4])
def test_threads_of_the_linear_algebra_are_those_of_before(threads, monkeypatch):
    # history: the adapter's own copy of the switch had no lock, and left one thread for good
    layers, library = [lru(20) for _ in range(threads)], Library()
    monkeypatch.setattr(blas, "_libraries", lambda: [library])
    page = importlib.import_module("hankelred_torch.planning.plan")
    inside, turns, switch = threading.Barrier(threads), itertools.count(), page.one_blas_thread
    closing = [threading.Event() for _ in range(threads + 1)]
    closing[0].set()

    @contextmanager
    def met(size):  # all blocks are open at once, and are closed in the order they were opened in
        with switch(size):
            turn = next(turns)
            inside.wait(60)
            yield
            closing[turn].wait(60)
        closing[turn + 1].set()

    monkeypatch.setattr(page, "one_blas_thread", met)
    plans = [threading.Thread(target=ht.plan, args=(x, ht.CompressionConfig(order=6))) for x in layers]
    for thread in plans:
        thread.start()
    for thread in plans:
        thread.join()
    assert library.settings[0] == 1
    assert library.settings[-1] == 2


@pytest.mark.parametrize("job", ["tracker", "step", "hsv"])
def test_jobs_that_fail_give_the_threads_of_the_linear_algebra_back(job, monkeypatch):
    layer = lru(20)
    tracker, compressor = ht.Tracker(layer, every=1), compressor_of(layer, order=6)
    with torch.no_grad():
        layer.B_re[0] = float("nan")
    library = Library()
    monkeypatch.setattr(blas, "_libraries", lambda: [library])
    jobs = {"tracker": tracker.step, "step": compressor.step, "hsv": lambda: ht.hankel_singular_values(layer)}
    fails = pytest.raises(hr.InputError, match="must be finite") if job == "hsv" else warnings.catch_warnings()
    with fails:
        if job != "hsv":
            warnings.simplefilter("ignore", ht.RefusedCutWarning)  # the layer is left alone
        jobs[job]()
    assert library.settings[-1:] in ([], [2])


# Schedulers that leave no mark on their optimizer.


@pytest.mark.parametrize("made", ["before", "after"])
def test_plateau_that_a_rollback_would_leave_is_noticed(made):
    layer = lru(8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    plateaus = [torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)] if made == "before" else []
    compressor = compressor_of(layer, optimizer, guard=always_worse(), order=6)
    plateaus = plateaus or [torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)]
    with pytest.raises(hr.InputError, match="restore must hold the learning-rate schedulers"):
        compressor.step()
    assert ht.state_sizes(layer) == {"": 8}
    compressor_of(layer, optimizer, guard=always_worse(), order=6, restore=plateaus).step()


def test_plateau_of_another_optimizer_is_nobodys_concern():
    layer, other = lru(8), torch.optim.SGD(lru(8).parameters(), lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(other)
    compressor_of(layer, guard=always_worse(), order=6).step()
    assert plateau.optimizer is other


# Two compressors on one layer.


def test_rollback_of_one_compressor_undoes_the_cut_of_another_on_the_same_layer():
    layer = lru(8)
    optimizer = torch.optim.AdamW(layer.parameters())
    guard = ht.Guard(lambda: float("nan"), tolerance=0.1, mode="max", settle_steps=2, on_fail="stop")
    first = compressor_of(layer, optimizer, guard=guard, order=6)
    second = compressor_of(layer, optimizer, order=4, end_step=2, config={"min_cut": 0})
    for _ in range(3):
        layer(torch.randn(2, 8, 3, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        first.step()
        second.step()
    assert ht.state_sizes(layer) == {"": 8}
    assert [(x.n, x.states, x.rolled_back) for x in (*first.history, *second.history)] == [(8, 6, True), (6, 4, True)]
    with pytest.raises(hr.InputError, match="must be a cut to roll back"):
        second.rollback()
