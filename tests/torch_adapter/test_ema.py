"""Claims about averaged copies of a model that is cut."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import hankelred as hr
import hankelred_torch as ht
from hankelred_torch.surgery import Exchange

from .adapter_models import STATE_TENSORS, Stack, assert_unchanged, inputs, lru, make_inert, snapshot, train
from .continuous_layers import FAMILIES, made


def averaged(model, decay=0.9):
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def train_with_average(model, optimizer, ema, steps, *, seed=0):
    for k in range(steps):
        train(model, optimizer, 1, seed=seed + k)
        ema.update_parameters(model)


def adam(model, lr=1e-2):
    return torch.optim.Adam(model.parameters(), lr=lr)


def relative(x, y):
    return ((x - y).abs().max() / y.abs().max()).item()


def test_copy_that_equals_the_model_goes_on_equal_to_it():
    model = Stack()
    twin = copy.deepcopy(model)
    ht.compress_(model, ht.CompressionConfig(order=4), ema=twin)
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert p is not q
        # both written from one reduction; the copy's through its bases, which carry the rounding of the balancing
        assert torch.allclose(p, q, rtol=1e-9, atol=1e-9), name


@pytest.mark.parametrize("family", FAMILIES, ids=lambda x: x.__name__)
def test_copies_of_every_family_follow(family):
    model = made(family)
    near, same = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        for p in near.parameters():
            p.mul_(1 + 1e-7 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    adapter = ht.find_ssm_layers(model)[""]
    config = ht.CompressionConfig(order=adapter.states // 2, min_cut=0.0)
    report = ht.compress_(model, config, ema=[near, same])
    assert report.ema_restarted == ()
    live, found, moved = (ht.find_ssm_layers(x)[""].values() for x in (model, same, near))
    for name in adapter.state_axes:
        size = np.abs(live[name]).max()
        # the same to the rounding of the bases; a copy that is a distance away stays that near, up to the condition
        # of the change of basis
        assert np.abs(found[name] - live[name]).max() < 1e-7 * size, name
        assert np.abs(moved[name] - live[name]).max() < 1e-3 * size, name


def test_output_of_the_average_stays_where_only_inert_states_are_dropped():
    model = make_inert(lru(9), live=5)
    optimizer, ema = adam(model, 1e-3), averaged(model)
    train_with_average(model, optimizer, ema, 5)
    u = inputs()
    before, live, distance = ema(u), model(u), relative(ema(u), model(u))
    report = ht.compress_(model, ht.CompressionConfig(order=5), optimizer, ema)
    assert report.ema_restarted == ()
    assert relative(model(u), live) < 1e-9
    # the poles of the average are right to first order in its distance from the model
    assert relative(ema(u), before) < 0.05 * distance


def test_average_goes_on_as_if_inert_states_had_never_been_there():
    # the state coordinates correspond: later updates mix each state with its own average
    full = make_inert(lru(9), live=5)
    small = copy.deepcopy(full)
    averages = [averaged(full), averaged(small)]
    optimizers = [torch.optim.SGD(x.parameters(), lr=1e-3) for x in (full, small)]
    for model, optimizer, ema in zip((full, small), optimizers, averages, strict=True):
        train_with_average(model, optimizer, ema, 4)
    ht.compress_(small, ht.CompressionConfig(order=5), optimizers[1], averages[1])
    for model, optimizer, ema in zip((full, small), optimizers, averages, strict=True):
        train_with_average(model, optimizer, ema, 4, seed=9)
    u = inputs()
    distance = relative(full(u), averages[0](u))
    assert relative(averages[1](u), averages[0](u)) < 0.05 * distance


def test_average_is_nearer_to_its_old_self_than_to_one_balanced_by_itself():
    # history: copies used to be cut on their own, or by slicing, and the next update mixed unrelated states
    model = Stack()
    optimizer, ema = adam(model), averaged(model)
    train_with_average(model, optimizer, ema, 10)
    alone = copy.deepcopy(ema)
    config = ht.CompressionConfig(order=5)
    ht.compress_(alone.module, config)
    ht.compress_(model, config, optimizer, ema)
    u = inputs()
    before = ema(u), alone(u)
    for average in (ema, alone):
        average.update_parameters(model)
    moved = relative(ema(u), before[0]), relative(alone(u), before[1])
    assert moved[0] < 0.3 * moved[1]


def test_shapes_holders_and_counters_of_the_average_follow():
    model = Stack()
    optimizer, ema = adam(model), averaged(model)
    train_with_average(model, optimizer, ema, 3)
    ht.compress_(model, ht.CompressionConfig(order={"first": 4}), optimizer, [ema])
    assert ht.state_sizes(ema.module) == ht.state_sizes(model) == {"first": 4, "second": 8}
    assert ema.n_averaged == 3
    train_with_average(model, optimizer, ema, 2)
    assert ema.n_averaged == 5
    assert not any(p is q for p, q in zip(ema.module.parameters(), model.parameters(), strict=True))


def test_copy_of_another_dtype_keeps_it():
    model = lru(dtype=torch.float32)
    ema = AveragedModel(copy.deepcopy(model).double())
    ht.compress_(model, ht.CompressionConfig(order=4), ema=ema)
    assert {p.dtype for p in ema.module.parameters()} == {torch.float64}


def test_average_that_would_be_unstable_starts_anew_and_the_report_says_so():
    model, ema = Stack((8, 8)), averaged(Stack((8, 8)))
    plan = ht.plan(model, ht.CompressionConfig(order=3))
    bases = plan.layers["first"].reduction
    shares = (bases.Ti * bases.T.T)[0, :8]  # of the old poles in the first new one; they sum to 1, not their sizes
    with torch.no_grad():
        ema.module.first.nu_log.fill_(-12.0)
        ema.module.first.theta_log.copy_(torch.from_numpy(np.log(np.mod(-np.angle(shares), 2 * np.pi))))
    report = ht.compress_(model, plan, ema=ema)
    assert report.ema_restarted == ("first",)
    assert "averages that start anew: first" in str(report)
    assert report.to_dict()["ema_restarted"] == ["first"]
    for name in STATE_TENSORS:
        assert torch.equal(getattr(ema.module.first, name), getattr(model.first, name))


@pytest.mark.parametrize(
    ("ema", "message"),
    [
        (Stack((12, 7)), r"'second': \('LRU', 7\)"),
        (nn.Linear(2, 2), r"got \{\}\. Pass the copy of this model"),
        ("average", "ema must be one averaged model or several, .* got str"),
    ],
)
def test_copy_of_another_structure_is_refused_and_nothing_changes(ema, message):
    model = Stack()
    before = snapshot(model)
    with pytest.raises(hr.InputError, match=message):
        ht.compress_(model, ht.CompressionConfig(order=4), ema=[ema] if isinstance(ema, str) else ema)
    assert_unchanged(before, model)


def test_failure_in_the_copy_puts_model_and_copies_back(monkeypatch):
    model = Stack()
    optimizer, ema = adam(model), averaged(model)
    train_with_average(model, optimizer, ema, 2)
    before, before_ema = snapshot(model, optimizer), snapshot(ema)

    def interrupted(*_):
        assert ema.module.first.states == model.first.states == 4
        raise KeyboardInterrupt

    monkeypatch.setattr(Exchange, "_verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ht.compress_(model, ht.CompressionConfig(order=4), optimizer, ema)
    assert_unchanged(before, model, optimizer)
    assert_unchanged(before_ema, ema)


def test_copy_that_is_not_finite_is_refused_and_nothing_changes():
    model, ema = Stack(), averaged(Stack())
    with torch.no_grad():
        ema.module.second.B_re[0, 0] = np.nan
    before = snapshot(model)
    with pytest.raises(hr.InputError, match="B_re must be finite; got 1 NaN"):
        ht.compress_(model, ht.CompressionConfig(order=4), ema=ema)
    assert_unchanged(before, model)
