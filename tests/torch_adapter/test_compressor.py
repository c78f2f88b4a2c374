"""Claims about when the compressor cuts, what it remembers and how it refuses."""

from __future__ import annotations

import copy
import io
import json

import numpy as np
import pytest
import torch
from torch import nn

import hankelred as hr
import hankelred_torch as ht

from .adapter_models import Stack, assert_consistent, train
from .settings import what_and_when


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def run(model, optimizer, compressor, steps, *, seed=0):
    """Train with the compressor in the loop; return its reports by step."""
    reports = {}
    for k in range(steps):
        train(model, optimizer, 1, seed=seed + k)
        report = compressor.step()
        if report is not None:
            reports[report.step] = report
    return reports


def compress_in(model, steps=10, **config):
    optimizer = adam(model)
    compressor = ht.InTrainingCompressor(model, optimizer, *what_and_when(**config))
    return compressor, run(model, optimizer, compressor, steps), optimizer


def test_model_shrinks_in_the_window_and_nowhere_else():
    model = Stack()
    compressor, reports, optimizer = compress_in(model, 12, tau=0.2, start_step=2, end_step=8, attempts=3)
    assert {record.step for record in compressor.history} == {4, 6, 8}
    assert 4 in reports
    assert set(reports) <= {4, 6, 8}
    sizes = ht.state_sizes(model)
    assert sizes["first"] < 12
    assert sizes["second"] < 8
    assert_consistent(model, optimizer)


def test_given_orders_are_reached_in_equal_ratios():
    compressor, _, _ = compress_in(Stack(), 4, order={"first": 3}, end_step=4, attempts=2, force=True)
    assert [(record.n, record.states) for record in compressor.history] == [(12, 6), (6, 3)]


def test_report_is_returned_only_where_something_was_cut():
    # from 12 to 11 states in quarters: 11.7 and 11.7 round to 12, 11.5 to 11
    compressor, reports, _ = compress_in(Stack(), 6, order={"first": 11}, end_step=4, attempts=4)
    assert list(reports) == [3]
    assert reports[3].sizes == {"first": 11}
    assert str(reports[3]).splitlines()[-1].startswith("step 3, parameters ")
    assert len(compressor.history) == 4


def test_history_tells_what_was_measured_and_why_nothing_was_cut():
    white = {"weighting": "white"}  # the one with a bound
    compressor, _, _ = compress_in(Stack(), 6, order={"first": 11}, end_step=4, attempts=4, **white)
    first, last = compressor.history[0], compressor.history[2]
    assert (first.step, first.layer, first.n, first.states, first.cut) == (1, "first", 12, 12, False)
    assert first.reason == "12 of 12 states are needed; a cut keeps fewer than 11.4"
    assert (last.step, last.n, last.states, last.cut, last.reason) == (3, 12, 11, True, "")
    assert len(last.hsv) == 24
    assert np.all(np.diff(last.hsv) <= 0)
    tail = np.array(last.hsv)[last.order :].sum()
    assert last.error_bound == pytest.approx(2 * tail, rel=1e-6)
    assert last.kept_energy == pytest.approx(1 - tail / sum(last.hsv))
    assert last.seconds > 0


def test_history_is_ready_for_json():
    compressor, _, _ = compress_in(Stack(), 4, order=4, end_step=4, attempts=2, force=True)
    records = json.loads(json.dumps(compressor.history.to_list()))
    assert records == compressor.history.to_list()
    assert records[0]["layer"] == "first"


def test_same_seed_gives_the_same_model():
    outcomes = []
    for _ in range(2):
        model = Stack()
        compress_in(model, 6, tau=0.1, end_step=4, attempts=2)
        outcomes.append(model.state_dict())
    assert all(torch.equal(x, y) for x, y in zip(*(o.values() for o in outcomes), strict=True))


def test_loss_goes_on_falling_after_a_cut():
    model = Stack()
    optimizer = adam(model)
    compressor = ht.InTrainingCompressor(model, optimizer, *what_and_when(tau=0.05, end_step=20, attempts=2))
    losses = []
    for _ in range(80):
        losses.append(train(model, optimizer, 1).item())
        compressor.step()
    assert sum(ht.state_sizes(model).values()) < 20
    assert losses[-1] < 0.7 * losses[20]


def test_model_without_state_space_layers_is_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(hr.InputError, match="model must contain a state space layer with an adapter; got 1 Linear"):
        ht.InTrainingCompressor(model, adam(model), *what_and_when(total_steps=10))


def test_missing_window_is_refused():
    model = Stack()
    with pytest.raises(hr.InputError, match="One of end_step and total_steps must be given"):
        ht.InTrainingCompressor(model, adam(model), *what_and_when())


def test_optimizer_that_misses_a_layer_is_refused_before_training():
    model = Stack()
    with pytest.raises(hr.InputError, match=r"none that holds nu_log.* of layer 'first'"):
        ht.InTrainingCompressor(model, adam(model.second), *what_and_when(total_steps=10))


def test_compressor_needs_an_optimizer():
    model = Stack()
    with pytest.raises(hr.InputError, match=r"optimizers must hold at least one optimizer; got none"):
        ht.InTrainingCompressor(model, [], *what_and_when(total_steps=10))


def test_layers_that_are_not_targets_need_no_optimizer():
    model = Stack()
    config = what_and_when(order=4, end_step=1, target_modules=["second"])
    compressor = ht.InTrainingCompressor(model, adam(model.second), *config)
    assert compressor.step().sizes == {"second": 4}


def test_diverged_layer_is_noticed_and_left_alone():
    model = Stack()
    optimizer = adam(model)
    compressor = ht.InTrainingCompressor(model, optimizer, *what_and_when(order=4, end_step=1))
    with torch.no_grad():
        model.second.nu_log[3] = np.nan
    before = model.second.nu_log
    with pytest.warns(ht.RefusedCutWarning, match="nu_log must be finite; got 1 NaN or infinite of 8"):
        compressor.step()
    assert model.second.nu_log is before
    assert "must be finite" in compressor.history[-1].reason


def test_resumed_run_takes_the_attempts_that_are_left():
    config = what_and_when(tau=0.1, end_step=8, attempts=4)
    straight = Stack()
    optimizer = adam(straight)
    compressor = ht.InTrainingCompressor(straight, optimizer, *config)
    run(straight, optimizer, compressor, 5)

    stored = io.BytesIO()
    torch.save(compressor.state_dict(), stored)
    stored.seek(0)
    resumed = copy.deepcopy(straight)
    optimizer_resumed = adam(resumed)
    optimizer_resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    second = ht.InTrainingCompressor(resumed, optimizer_resumed, *config)
    second.load_state_dict(torch.load(stored, weights_only=True))

    run(straight, optimizer, compressor, 5, seed=5)
    run(resumed, optimizer_resumed, second, 5, seed=5)
    assert ht.state_sizes(resumed) == ht.state_sizes(straight)
    assert all(torch.equal(x, y) for x, y in zip(resumed.parameters(), straight.parameters(), strict=True))
    no_time = {"seconds": 0, "analysis_seconds": 0}
    without_time = [[r | no_time for r in x.history.to_list()] for x in (second, compressor)]
    assert without_time[0] == without_time[1]


def test_state_of_a_model_of_other_sizes_is_refused():
    compressor, _, _ = compress_in(Stack(), 2, order=4, end_step=2, force=True)
    model = Stack()
    fresh = ht.InTrainingCompressor(model, adam(model), *what_and_when(order=4, end_step=2))
    with pytest.raises(hr.InputError, match=r"\{'first': 4, 'second': 4\}; got \{'first': 12, 'second': 8\}\. Resize"):
        fresh.load_state_dict(compressor.state_dict())
    assert len(fresh.history) == 0
