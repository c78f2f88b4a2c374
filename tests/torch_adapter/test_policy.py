"""Claims about what a compressor refuses, waits for and measures by itself."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

import hankelred as hr
import hankelred_torch as ht
from hankelred.drift import drift_bound
from hankelred_torch import policy
from hankelred_torch.tracking import compare

from .adapter_models import Stack, lru, train
from .training_runs import Run


def run(steps, *, model=None, lr=1e-2, **config):
    model = Stack() if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    compressor = ht.InTrainingCompressor(model, optimizer, ht.CompressionConfig(**config))
    for k in range(steps):
        train(model, optimizer, 1, seed=k)
        compressor.step()
    return model, compressor


@pytest.mark.parametrize("criterion", [{"order": 2}, {"order": {"first": 2, "second": 2}}, {"fraction": 0.2}])
def test_layer_with_a_flat_spectrum_is_not_cut_to_a_given_size(criterion):
    with pytest.warns(ht.RefusedCutWarning, match=r"'first' was not cut: \d states would drop \d\d% of the hsv sum"):
        model, compressor = run(2, end_step=2, attempts=1, **criterion)
    assert ht.state_sizes(model) == {"first": 12, "second": 2}  # the second has a tail of a quarter
    record = compressor.history[0]
    assert (record.cut, record.states, record.order, record.kept_energy) == (False, 12, 24, 1.0)
    assert "above max_tail=0.3; train on first, or pass force=True" in record.reason


def test_refused_cut_is_tried_again_and_warns_only_at_the_end():
    with pytest.warns(ht.RefusedCutWarning) as warnings:
        _, compressor = run(4, order=1, end_step=4, attempts=2, max_tail=0.01)
    assert len(warnings) == 1
    assert [record.step for record in compressor.history] == [2, 2, 4, 4]


@pytest.mark.parametrize("word", [{"force": True}, {"max_tail": 1.0}])
def test_user_who_insists_gets_the_size(word):
    model, _ = run(2, order=2, end_step=2, attempts=1, **word)
    assert ht.state_sizes(model) == {"first": 2, "second": 2}


@pytest.mark.parametrize("criterion", [{"tau": 0.6}, {"max_error": 100.0}])
def test_tails_that_a_criterion_allows_are_dropped(criterion):
    model, compressor = run(2, end_step=2, attempts=1, **criterion)
    assert ht.state_sizes(model)["first"] < 12
    assert compressor.history[0].kept_energy < 0.7


def test_call_of_compress_is_the_users_word():
    model = Stack()
    assert ht.compress_(model, ht.CompressionConfig(order=2)).sizes == {"first": 2, "second": 2}


def test_first_measurement_and_drifting_layers_are_not_cut_but_the_last_attempt_cuts():
    _, compressor = run(6, lr=3e-2, tau=0.2, end_step=6, attempts=3, certify=True)
    first, second, last = ([r for r in compressor.history if r.step == k] for k in (2, 4, 6))
    assert {r.reason for r in first} == {"not certified: nothing to compare the first measurement with"}
    assert all("not certified: the gap at the cut is" in r.reason for r in second)
    assert all(r.cut for r in last)
    assert all(r.drift > 0 for r in second)


def test_settled_layer_is_cut_before_the_end():
    # steps of no length: the drift is 0 and every gap is certified
    model, compressor = run(4, lr=0.0, tau=0.2, end_step=8, attempts=4, certify=True)
    assert [(r.step, r.cut) for r in compressor.history] == [(2, False), (2, False), (4, True), (4, True)]
    assert all(r.drift < 1e-9 * r.hsv[0] < r.gap for r in compressor.history[2:])  # of the difference of equal numbers
    assert ht.state_sizes(model)["first"] < 12


def test_hsv_move_by_no_more_than_the_drift():
    # Weyl's inequality for Hankel operators, across a cut as well
    _, compressor = run(8, lr=2e-2, tau=0.1, end_step=8, attempts=4, measure=True)
    for layer in ("first", "second"):
        records = [r for r in compressor.history if r.layer == layer]
        for earlier, later in pairwise(records):
            # after a cut the layer has the hsv it keeps only up to the error of the cut, so compare uncut ones
            if not earlier.cut:
                size = max(len(earlier.hsv), len(later.hsv))
                old, new = (np.pad(r.hsv, (0, size - len(r.hsv))) for r in (earlier, later))
                assert np.abs(new - old).max() <= later.drift * (1 + 1e-9)


def test_certified_order_is_what_the_core_certifies():
    model = lru(10)
    adapter = ht.find_ssm_layers(model)[""]
    before = adapter.values()
    train(model, torch.optim.Adam(model.parameters(), lr=1e-3), 2)
    layer = ht.plan(model, ht.CompressionConfig(order=5)).layers[""]
    after = adapter.values()
    found = policy.certificate(layer, compare(adapter, before, after, follow=False))
    expected = drift_bound(ht.read_system(model), adapter.read(before)).certify(layer.order)
    assert (found.gap, found.drift, found.margin) == (expected.gap, expected.drift, expected.margin)
    assert found.drift == pytest.approx(hr.hankel_norm(ht.read_system(model) - adapter.read(before)))
    gaps = policy.gaps_at_cut(layer)
    assert gaps == [layer.hsv[layer.order - 1] - layer.hsv[layer.order]]


def test_measured_errors_lie_between_the_next_hsv_and_the_bound():
    _, compressor = run(2, tau=0.2, end_step=2, attempts=1, measure=True)
    for record in compressor.history:
        assert record.hsv[record.order] <= record.error * (1 + 1e-9)
        assert record.error <= record.error_bound


def test_nothing_is_measured_that_nobody_asked_for():
    _, compressor = run(4, tau=0.2, end_step=4, attempts=2)
    assert {(r.error, r.drift) for r in compressor.history} == {(None, None)}
    assert compressor.state_dict()["measured"] == {}


def test_attempts_come_at_intervals():
    _, compressor = run(12, tau=0.0, start_step=2, end_step=9, interval=3)
    assert sorted({r.step for r in compressor.history}) == [5, 8]


def test_interval_longer_than_the_window_is_refused():
    with pytest.raises(hr.InputError, match="interval must fit the reduction window; got interval=9 and 5 steps"):
        ht.CompressionConfig(interval=9, end_step=5).attempt_steps()


def test_fraction_is_kept_at_every_cut():
    _, compressor = run(4, fraction=0.75, end_step=4, attempts=2, force=True)
    assert [(r.n, r.states) for r in compressor.history if r.layer == "first"] == [(12, 9), (9, 7)]


def test_two_criteria_are_refused():
    with pytest.raises(hr.InputError, match="At most one of order, fraction and max_error may be given; got order and"):
        ht.CompressionConfig(order=3, max_error=0.1)


def test_half_of_a_cut_is_a_cut_to_half_way():
    layers = ht.plan(Stack(), ht.CompressionConfig(order={"first": 3, "second": 7}, min_cut=0.0)).layers
    config = policy.halved(layers, ht.CompressionConfig(tau=0.3))
    assert config.order == {"first": 8}  # half of the 9; the other lost one state, half of which is none
    assert config.force
    assert config.tau == 0.3


def test_learning_rate_rises_after_a_cut_and_the_schedule_does_not_notice():
    felt = {}
    for steps in (0, 4):
        each = Run({"order": 5, "end_step": 3, "attempts": 1, "force": True, "lr_rewarm_steps": steps}, optimizer="sgd")
        rates = []
        each.optimizer.register_step_pre_hook(lambda x, *_, rates=rates: rates.append(x.param_groups[0]["lr"]))
        each.steps(10)
        felt[steps] = rates
        felt[f"schedule {steps}"] = each.scheduler.get_last_lr()
    factors = np.array([1, 1, 1, 0.2, 0.4, 0.6, 0.8, 1, 1, 1])
    assert felt[4] == pytest.approx(factors * felt[0])
    assert felt["schedule 4"] == felt["schedule 0"]


def test_sample_batches_that_can_be_read_once_are_refused():
    model = Stack()
    with pytest.raises(hr.InputError, match="batches must give the same batches to every attempt; got an iterator"):
        ht.InTrainingCompressor(
            model, torch.optim.SGD(model.parameters()), ht.CompressionConfig(total_steps=10), batches=iter([])
        )


def test_certificate_of_a_bank_is_that_of_the_system_with_the_least_margin():
    torch.manual_seed(0)
    model = torch.nn.Sequential(ht.layers.S4D(4, 8).double(), torch.nn.Linear(4, 1).double())
    adapter = ht.find_ssm_layers(model)["0"]
    before = adapter.values()
    train(model, torch.optim.Adam(model.parameters(), lr=1e-3), 2, channels=4)
    layer = ht.plan(model, ht.CompressionConfig(order=4)).layers["0"]
    drift = compare(adapter, before, adapter.values(), follow=False)
    each = [bound.certify(x.order).margin for bound, x in zip(drift.bounds, layer.reduction, strict=True)]
    assert len(set(each)) == 4
    assert policy.certificate(layer, drift).margin == min(each)
