"""Claims about what a compressor refuses, waits for and measures by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hankelred as hr
import hankelred_torch as ht
from hankelred_torch.training import policy

from .adapter_models import Stack, train
from .settings import what_and_when
from .training_runs import Run


def run(steps, *, model=None, lr=1e-2, **config):
    model = Stack() if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    compressor = ht.InTrainingCompressor(model, optimizer, *what_and_when(**config))
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
    assert config.tau == 0.3


def test_learning_rate_rises_after_a_cut_and_the_schedule_does_not_notice():
    felt = {}
    for steps in (0, 4):
        each = Run({"order": 5, "end_step": 3, "attempts": 1, "force": True, "rewarm": steps}, optimizer="sgd")
        rates = []
        each.optimizer.register_step_post_hook(lambda x, *_, rates=rates: rates.append(x.param_groups[0]["lr"]))
        each.steps(10)
        felt[steps] = rates
        felt[f"schedule {steps}"] = each.scheduler.get_last_lr()
    factors = np.array([1, 1, 1, 0.2, 0.4, 0.6, 0.8, 1, 1, 1])
    assert felt[4] == pytest.approx(factors * felt[0])
    assert felt["schedule 4"] == felt["schedule 0"]


class Stream(torch.utils.data.IterableDataset):
    """Data that are their own iterator: whoever reads of them takes them from all others."""

    def __iter__(self):
        return self

    def __next__(self):
        return torch.zeros(8, 3)


@pytest.mark.parametrize("batches", [iter([]), torch.utils.data.DataLoader(Stream(), 4)], ids=["iterator", "loader"])
def test_sample_batches_that_can_be_read_once_are_refused(batches):
    # history: of such a loader the compressor took what the training was to see, in every attempt
    model = Stack()
    with pytest.raises(hr.InputError, match="batches must give the same batches to every attempt; got an iterator"):
        ht.InTrainingCompressor(
            model, torch.optim.SGD(model.parameters()), *what_and_when(total_steps=10), batches=batches
        )
