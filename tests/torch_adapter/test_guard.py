"""Claims about guards: what a metric decides, and that a rollback puts everything back."""

from __future__ import annotations

import math

import pytest
import torch

import hankelred as hr
import hankelred_torch as ht

from .adapter_models import Stack, assert_consistent, train
from .settings import what_and_when
from .training_runs import OPTIMIZERS, Run, assert_same

CONFIG = {"order": 4, "end_step": 4, "attempts": 1, "force": True}


def scripted(values):
    """Return a metric that gives these values one after another."""
    queue = list(values)
    return lambda: queue.pop(0)


def guarded(values, config=CONFIG, *, optimizer="adamw", **options):
    guard = ht.Guard(scripted(values), tolerance=0.1, **({"mode": "max"} | options))
    return Run(config, optimizer=optimizer, guard=guard)


def weights_of_plain_run(steps, config=None, **options):
    """Return what a run comes to; it draws from global random states, so runs follow one another."""
    run = Run(config, **options)
    run.steps(steps)
    return run.weights()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_run_goes_on_after_a_rollback_as_if_there_had_been_no_cut(optimizer):
    plain = weights_of_plain_run(8, optimizer=optimizer)
    run = guarded([1.0, 0.0], on_fail="stop", optimizer=optimizer)
    run.steps(8)
    assert [(x.cut, x.rolled_back) for x in run.compressor.history] == [(False, True)] * 2
    assert_same(run.weights(), plain)
    assert_consistent(run.model, run.optimizer)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_rollback_after_the_settling_time_goes_back_to_before_the_cut(optimizer):
    # the steps of the settling time are lost: 4 + 3 steps and a rollback are 4 steps
    then, later = (weights_of_plain_run(k, optimizer=optimizer) for k in (4, 7))
    run = guarded([1.0, 1.0, 0.0], on_fail="stop", settle_steps=3, optimizer=optimizer)
    run.steps(6)
    assert run.model.first.states == 4
    run.step()
    assert run.model.first.states == 10
    assert_same(run.weights(), then)
    run.steps(3)
    assert_same(run.weights(), later)


def test_rollback_puts_the_old_objects_back():
    run = guarded([1.0, 0.0], on_fail="stop")
    run.steps(3)
    modules = [dict(x.named_parameters()) for x in (run.model, run.ema)]
    held = tuple(run.optimizer.param_groups[0]["params"])
    averages = tuple((p, state["exp_avg"]) for p, state in run.optimizer.state.items())
    run.step()
    for before, model in zip(modules, (run.model, run.ema), strict=True):
        assert all(p is before[name] for name, p in model.named_parameters())
    assert all(p is q for p, q in zip(held, run.optimizer.param_groups[0]["params"], strict=True))
    assert all(run.optimizer.state[p]["exp_avg"] is x for p, x in averages)


def test_rollback_on_request_undoes_the_last_cut():
    plain = weights_of_plain_run(4)
    run = Run(CONFIG)
    run.steps(9)
    run.compressor.rollback()
    assert_same(run.weights(), plain)
    assert [record.rolled_back for record in run.compressor.history] == [True, True]
    assert run.compressor.history[0].reason == "rolled back on request"


def test_rollback_without_a_cut_is_refused():
    run = Run(CONFIG)
    run.steps(2)
    with pytest.raises(hr.InputError, match="There must be a cut to roll back; got none"):
        run.compressor.rollback()


def test_sizes_that_layers_remember_are_rolled_back(monkeypatch):
    from hankelred_torch.adapters import registry

    from .test_surgery import Sized, SizedAdapter

    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    ht.register_adapter(Sized, SizedAdapter)
    layer = Sized()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    compressor = ht.InTrainingCompressor(layer, optimizer, *what_and_when(order=4, end_step=1, force=True))
    compressor.step()
    assert layer.d_state == 4
    compressor.rollback()
    assert layer.d_state == 8


def test_guard_that_holds_changes_nothing_but_the_time():
    # the metric draws random numbers and switches modes; the run does not notice
    def metric(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        torch.rand(5)
        return 1.0

    plain = weights_of_plain_run(7, CONFIG)
    run = Run(CONFIG, guard=ht.Guard(metric, tolerance=0.0, mode="max"))
    run.steps(7)
    assert run.model.training
    assert_same(run.weights(), plain)


def test_failed_cuts_are_halved_until_they_hold():
    run = guarded([1.0, 0.5, 1.0, 0.5, 1.0, 0.95])
    reports = run.steps(4)
    assert reports[-1].sizes == {"first": 9, "second": 7}  # 10 and 8 states: cuts of 6 and 4, 3 and 2, then 1 and 1
    assert [(x.layer, x.states, x.cut, x.rolled_back) for x in run.compressor.history] == [
        ("first", 4, False, True),
        ("second", 4, False, True),
        ("first", 7, False, True),
        ("second", 6, False, True),
        ("first", 9, True, False),
        ("second", 7, True, False),
    ]
    assert run.compressor.history[0].metric == {"before": 1.0, "after": 0.5}
    assert run.compressor.history[0].reason == "rolled back: the metric went from 1 to 0.5"
    assert ht.state_sizes(run.model) == reports[-1].sizes
    assert_consistent(run.model, run.optimizer)


def test_halving_ends_where_a_cut_is_not_worth_it():
    run = guarded([1.0, 0.5] * 9, CONFIG | {"min_cut": 0.25})
    run.steps(4)
    tried = [x.states for x in run.compressor.history if x.layer == "first"]
    assert tried == [4, 7]  # the next would keep 9 of 10, less than 25 %
    assert ht.state_sizes(run.model) == {"first": 10, "second": 8}


def test_failed_cuts_after_settling_are_halved_too():
    run = guarded([1.0, 1.0, 0.5, 1.0, 1.0, 1.0], settle_steps=2)
    reports = run.steps(8)
    assert [k + 1 for k, x in enumerate(reports) if x is not None] == [4, 6]
    assert ht.state_sizes(run.model) == {"first": 7, "second": 6}
    assert run.compressor.history[2].metric == {"before": 1.0, "after": 1.0, "settled": 1.0}


def test_stop_makes_no_more_cuts():
    run = guarded([1.0, 0.5], CONFIG | {"attempts": 4, "end_step": 8}, on_fail="stop")
    run.steps(12)
    assert {record.step for record in run.compressor.history} == {2}
    assert ht.state_sizes(run.model) == {"first": 10, "second": 8}


@pytest.mark.parametrize(
    ("mode", "before", "after", "holds"),
    [
        ("max", 0.9, 0.8, True),
        ("max", 0.9, 0.79, False),
        ("max", 0.9, 1.5, True),
        ("min", 0.2, 0.3, True),
        ("min", 0.2, 0.35, False),
        ("min", 0.2, 0.0, True),
        ("max", 0.9, math.nan, False),
        ("min", math.nan, 0.2, False),
        ("min", 0.2, math.inf, False),
    ],
)
def test_tolerance_is_in_units_of_the_metric(mode, before, after, holds):
    assert ht.Guard(lambda: 0.0, tolerance=0.1 + 1e-12, mode=mode).holds(before, after) == holds


def test_validation_loss_counts_every_example_once():
    batches = [(torch.ones(3, 2), torch.zeros(3, 2)), (torch.ones(1, 2), torch.ones(1, 2))]
    metric = ht.validation_loss(batches, torch.nn.functional.mse_loss)
    assert [metric(torch.nn.Identity()), metric(torch.nn.Identity())] == [0.75, 0.75]


def test_validation_loss_guards_a_run():
    def far(outputs, targets):
        return (outputs - targets).square().mean()

    u = torch.randn(4, 12, 3, generator=torch.Generator().manual_seed(7))
    guard = ht.Guard(ht.validation_loss([(u, u.cumsum(1))], far), tolerance=10.0, mode="min")
    run = Run(CONFIG, guard=guard)
    run.steps(4)
    metric = run.compressor.history[0].metric
    assert 0 < metric["before"] != metric["after"] > 0


def test_empty_validation_data_are_refused():
    metric = ht.validation_loss(iter([]), torch.nn.functional.mse_loss)
    with pytest.raises(hr.InputError, match="batches must hold an example each time"):
        metric(torch.nn.Identity())


def test_metric_that_fails_after_the_cut_undoes_it():
    plain = weights_of_plain_run(4)
    run = guarded([1.0])  # the second call has nothing to give
    with pytest.raises(IndexError):
        run.steps(4)
    assert_same(run.weights(), plain)
    assert {record.reason for record in run.compressor.history} == {"rolled back: the metric failed"}


def test_failing_metric_leaves_modes_and_random_numbers():
    def metric():
        torch.rand(3)
        raise ZeroDivisionError

    model = Stack()
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        ht.Guard(metric, tolerance=0.1, mode="max").measure(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_guard_without_the_scheduler_is_refused_at_the_first_step():
    model = Stack()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = ht.Guard(lambda: 1.0, tolerance=0.1, mode="max")
    compressor = ht.InTrainingCompressor(model, optimizer, *what_and_when(total_steps=10), guard)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)  # may come later than the guard
    train(model, optimizer, 1)
    scheduler.step()
    with pytest.raises(hr.InputError, match=r"restore must hold the learning-rate schedulers.*SGD that has one"):
        compressor.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": 0.9}, r"metric must be callable and return a float; got float"),
        ({"tolerance": -0.1}, r"tolerance must be at least 0; got -0\.1"),
        ({"tolerance": math.nan}, r"tolerance must be at least 0; got nan"),
        ({"mode": "best"}, r"mode must be one of 'max', 'min'; got 'best'"),
        ({"on_fail": "cry"}, r"on_fail must be one of 'halve', 'stop'; got 'cry'"),
        ({"settle_steps": -1}, r"settle_steps must be at least 0; got -1"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(hr.InputError, match=message):
        ht.Guard(**({"metric": lambda: 0.0, "tolerance": 0.1, "mode": "max"} | options))


def test_settling_longer_than_the_next_attempt_is_refused():
    with pytest.raises(hr.InputError, match=r"settle_steps must be below the distance of two attempts; got 5 and 2"):
        guarded([], CONFIG | {"attempts": 2}, settle_steps=5)


def test_objects_without_state_are_refused():
    model = Stack()
    with pytest.raises(hr.InputError, match=r"restore must hold objects with state_dict .*; got int"):
        ht.InTrainingCompressor(model, torch.optim.SGD(model.parameters()), *what_and_when(total_steps=10), restore=[3])
