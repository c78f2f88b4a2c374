"""Claims about following Hankel singular values along a training run."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import hankelred as hr
import hankelred_torch as ht
from hankelred.drift import drift_bound, match_hsv

from .adapter_models import Stack, lru, train


class Bank(nn.Module):
    """A bank of systems, one for each of three channels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.bank = ht.layers.S4D(3, 6).double()

    def forward(self, u):
        return self.bank(u)


def tracked(model, *, steps=4, lr=1e-2, every=1):
    tracker, optimizer = ht.Tracker(model, every), torch.optim.Adam(model.parameters(), lr=lr)
    for k in range(steps):
        train(model, optimizer, 1, seed=k)
        tracker.step()
    return tracker.history


@pytest.fixture(scope="module", params=[Stack, Bank])
def history(request):
    return tracked(request.param())


def of_layer(history, layer):
    return [record for record in history if record.layer == layer]


def set_gains(layer, gains):
    """Make a layer of decoupled real states whose hsv are the gains times a factor that all share."""
    n = len(gains)
    with torch.no_grad():
        layer.nu_log.fill_(np.log(0.5))
        layer.theta_log.fill_(-50.0)  # phases of 0
        layer.gamma_log.zero_()
        for weight in (layer.B_re, layer.C_re):
            weight.copy_(torch.diag(torch.tensor(gains, dtype=torch.float64).sqrt()))
        for weight in (layer.B_im, layer.C_im):
            weight.zero_()
    assert layer.B_re.shape == (n, n)
    return layer


def through(*path):
    """Return the history of a layer that goes through these gains, a step each."""
    layer = set_gains(lru(3, 3), path[0])
    tracker = ht.Tracker(layer, every=1)
    for gains in path[1:]:
        set_gains(layer, gains)
        tracker.step()
    return tracker.history


def test_no_value_moves_by_more_than_either_bound(history):
    # Weyl's inequality, for banks at every place the largest value
    for layer in {record.layer for record in history}:
        for earlier, later in pairwise(of_layer(history, layer)):
            largest = np.abs(np.subtract(later.hsv, earlier.hsv)).max()
            assert 0 < largest <= later.moved * (1 + 1e-9)
            assert later.moved <= later.drift_bound == min(later.drift, later.fixed_drift)


def test_comparison_is_that_of_the_core():
    layer = lru(6)
    tracker, before = ht.Tracker(layer, every=1), ht.read_system(layer)
    train(layer, torch.optim.SGD(layer.parameters(), lr=1e-4), 1)
    (record,) = tracker.step()
    bound = drift_bound(ht.read_system(layer), before)
    assert record.hsv == pytest.approx(ht.hankel_singular_values(layer)[""])
    assert record.drift == bound.hankel_norm + bound.floor
    assert record.moved == bound.drift.max()
    assert record.certified_orders == bound.certified_orders.tolist() != []
    assert record.matches == [match_hsv(before, ht.read_system(layer))[0].tolist()]


def test_order_of_a_bank_is_certified_only_if_it_is_for_every_system():
    model = Bank()
    adapter = ht.find_ssm_layers(model)["bank"]
    tracker, before = ht.Tracker(model, every=1), adapter.read(adapter.values())
    train(model, torch.optim.Adam(model.parameters(), lr=3e-4), 1)
    (record,) = tracker.step()
    each = [drift_bound(*pair) for pair in zip(adapter.read(adapter.values()), before, strict=True)]
    orders = range(1, 13)
    assert record.certified_orders == [r for r in orders if all(bound.certify(r) for bound in each)] != []
    assert any(bound.certify(r) for bound in each for r in orders if r not in record.certified_orders)
    assert len(record.matches) == 3


def test_drift_of_a_bank_is_the_largest_of_its_systems():
    model = Bank()
    adapter = ht.find_ssm_layers(model)["bank"]
    tracker, before = ht.Tracker(model, every=1), adapter.read(adapter.values())
    train(model, torch.optim.Adam(model.parameters(), lr=3e-4), 1)
    (record,) = tracker.step()
    each = [drift_bound(*pair) for pair in zip(adapter.read(adapter.values()), before, strict=True)]
    assert record.drift == max(bound.hankel_norm + bound.floor for bound in each)
    assert record.fixed_drift == max(bound.fixed_coordinates + bound.floor for bound in each)
    assert record.moved == max(bound.drift.max() for bound in each)


def test_values_that_cross_are_followed():
    history = through([4.0, 2.0, 1.0], [4.0, 1.0, 2.0])
    assert history[1].matches[0][:3] == [0, 2, 1]
    assert history[1].keeps(1)
    assert not history[1].keeps(2)
    assert history[1].keeps(3)


def test_match_tells_where_each_value_of_before_is_now():
    history = through([4.0, 2.0, 1.0], [1.0, 4.0, 2.0])
    assert history[1].matches[0][:3] == [2, 0, 1]


def test_kept_set_settles_after_the_last_crossing_of_the_cut():
    path = [4.0, 2.0, 1.0], [4.0, 1.0, 2.0], [2.2, 1.0, 2.0], [1.9, 1.0, 2.0], [1.9, 1.0, 2.001]
    history = through(*path)
    assert history.settled(1) == 3  # the first and the third exchange places from step 2 to step 3
    assert history.settled(2) == 1
    assert history.settled(3) == 0


def test_proven_settling_is_no_earlier_than_the_observed_one():
    history = through([4.0, 2.0, 1.0], [4.0, 1.2, 1.0], [4.0, 1.201, 1.0])
    assert history.settled(2) == 0
    assert history.settled(2, proven=True) == 1  # the first step moved more than half of the gap
    assert history[2].certified_orders[:3] == [1, 2, 3]


def test_set_that_changed_at_the_end_has_not_settled():
    history = through([4.0, 2.0, 1.0], [4.0, 1.0, 2.0])
    assert history.settled(2) is None
    assert history.settled(2, proven=True) is None


def test_turning_the_states_changes_no_kept_set():
    # the same system with its states in another order: other coordinates, the same subspaces
    layer = lru(6)
    tracker = ht.Tracker(layer, every=1)
    with torch.no_grad():
        for name, axis in ht.find_ssm_layers(layer)[""].state_axes.items():
            tensor = getattr(layer, name)
            tensor.copy_(tensor.flip(axis).clone())
    (record,) = tracker.step()
    assert record.moved <= record.drift < 1e-9 * record.hsv[0]  # the rounding floor
    assert tracker.history.settled(4) == tracker.history.settled(4, proven=True) == 0


def test_tracker_changes_nothing():
    models = [Stack(), Stack()]
    for k, model in enumerate(models):
        optimizer, tracker = torch.optim.Adam(model.parameters()), ht.Tracker(model, every=2)
        for seed in range(4):
            train(model, optimizer, 1, seed=seed)
            if k:
                tracker.step()
    for plain, followed in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(plain, followed)


def test_cuts_are_followed_too():
    model = Stack()
    tracker = ht.Tracker(model, every=1, target_modules="first")
    ht.compress_(model, ht.CompressionConfig(order={"first": 8}))
    (record,) = tracker.step()
    assert (record.layer, record.n, len(record.hsv)) == ("first", 8, 16)
    assert record.fixed_drift is None  # other orders have no coordinates in common
    assert np.abs(record.hsv - np.array(tracker.history[0].hsv[:16])).max() <= record.drift
    assert tracker.history.settled(6, "first") == 0


def test_history_of_a_tracker_survives_json(history):
    assert ht.History.from_list(json.loads(history.to_json())) == history


def test_records_written_before_comparisons_were_kept_are_still_read():
    new = {"fixed_drift", "moved", "certified_orders", "matches"}
    records = [{k: x for k, x in each.items() if k not in new} for each in tracked(Stack(), steps=1).to_list()]
    old = ht.History.from_list(records)
    assert [r.keeps(2) for r in old] == [None] * 4
    with pytest.raises(hr.InputError, match="history must hold two measurements of 'first' that were compared"):
        old.settled(2, "first")


def test_resumed_tracker_goes_on_as_if_it_had_not_stopped(tmp_path):
    straight = tracked(Stack(), steps=6, every=2)
    model = Stack()
    optimizer, tracker = torch.optim.Adam(model.parameters(), lr=1e-2), ht.Tracker(model, every=2)
    for k in range(6):
        if k == 3:
            torch.save(tracker.state_dict(), tmp_path / "tracker.pt")
            tracker = ht.Tracker(model, every=2)
            tracker.load_state_dict(torch.load(tmp_path / "tracker.pt", weights_only=True))
        train(model, optimizer, 1, seed=k)
        tracker.step()
    same = [[{**record, "seconds": 0} for record in x.to_list()] for x in (straight, tracker.history)]
    assert same[0] == same[1]


def test_state_of_other_layers_is_refused():
    state = ht.Tracker(Stack(), every=1, target_modules="first").state_dict()
    with pytest.raises(hr.InputError, match="state must be of a tracker of the same layers, 'first', 'second'; got"):
        ht.Tracker(Stack(), every=1).load_state_dict(state)


def test_picture_has_error_bars_and_the_certificate():
    history = through([4.0, 2.0, 1.0], [4.0, 1.2, 1.0], [4.0, 1.201, 1.0])
    ax = history.plot_hsv(order=2)
    (certificate,) = [line for line in ax.get_lines() if line.get_linestyle() == "--"]
    assert certificate.get_xdata().tolist() == [1, 2]
    assert np.all(certificate.get_ydata() < [history[1].hsv[1], history[2].hsv[1]])
    assert np.all(certificate.get_ydata() > [history[1].hsv[2], history[2].hsv[2]])
    bars = ax.containers[0].lines[2][0].get_segments()  # of the largest value, from step 1 on
    low, high = bars[-1][:, 1]
    assert (high - low) / 2 == pytest.approx(history[2].drift_bound)
    assert (high + low) / 2 == pytest.approx(history[2].hsv[0])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["order 2 certified"]


def test_value_smaller_than_its_bound_has_no_error_bar():
    ax = through([4.0, 2.0, 0.1], [3.0, 2.0, 0.1]).plot_hsv()
    assert len(ax.containers) == 2


@pytest.mark.parametrize("order", [0, 7, 2.0, True])
def test_order_outside_of_the_values_is_refused(order):
    with pytest.raises(hr.OrderError, match="order must be an integer from 1 to 6, the fewest hsv measured; got"):
        through([4.0, 2.0, 1.0], [4.0, 2.0, 1.0]).settled(order)


def test_layer_must_be_named_where_there_are_several():
    history = tracked(Stack(), steps=1)
    with pytest.raises(hr.InputError, match="layer must be named where several were measured; got none of 'first'"):
        history.settled(2)
    assert history.settled(24, "first") == 0


@pytest.mark.parametrize("every", [0, 1.5, True])
def test_distance_of_no_steps_is_refused(every):
    with pytest.raises(hr.InputError, match=r"^every must be (an integer|at least 1); got"):
        ht.Tracker(lru(3), every)


def test_model_without_a_time_invariant_layer_is_refused():
    with pytest.raises(hr.InputError, match="model must have a time-invariant state space layer to be tracked"):
        ht.Tracker(ht.layers.Mamba(4, 4), every=1)


def test_scalars_tell_movement(history):
    scalars, record = history.scalars("a"), history[-1]
    assert scalars[f"a/{record.layer}/moved"] == record.moved
