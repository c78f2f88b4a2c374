"""Claims about analysing a bank when not every channel can take the order it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hankelred as hr
import hankelred_torch as ht
from hankelred.errors import DiagonalisationError
from hankelred_torch.adapters import adapter_of

CHANNELS, STATES = 3, 8


@pytest.fixture
def bank():
    torch.manual_seed(0)
    return ht.layers.S4D(CHANNELS, STATES).double()


@pytest.fixture
def one_by_one(monkeypatch):
    """Make the reduction of all channels at once fail, as it does when one of them cannot be diagonalised."""

    def failing(*args, **kwargs):
        raise DiagonalisationError("one of them is defective")

    monkeypatch.setattr(hr, "balanced_truncation", failing)


@pytest.fixture
def without_order(monkeypatch, one_by_one):
    """Return a way to make one order of the channel with so large an hsv impossible."""
    reduce = hr.Balancing.reduce

    def forbid(largest, forbidden):
        def without(self, order=None, *, states=None):
            order = self.order(states=states) if order is None else order
            if order == forbidden and self.hsv[0] == pytest.approx(largest, rel=1e-9):
                raise DiagonalisationError("defective", [order - 1, order + 2])
            return reduce(self, order)

        monkeypatch.setattr(hr.Balancing, "reduce", without)

    return forbid


def planned(layer, **config):
    return ht.plan(layer, ht.CompressionConfig(min_cut=0.0, **config)).layers[""]


@pytest.mark.parametrize("config", [{"tau": 0.1}, {"order": 4}])
def test_channels_one_by_one_are_those_at_once(bank, config, request):
    at_once = planned(bank, **config)
    request.getfixturevalue("one_by_one")
    alone = planned(bank, **config)
    assert (alone.states, alone.order) == (at_once.states, at_once.order)
    assert alone.error_bound == pytest.approx(at_once.error_bound, rel=1e-9)
    assert alone.kept_energy == pytest.approx(at_once.kept_energy, rel=1e-9)


def test_channel_that_cannot_be_diagonalised_takes_a_smaller_order_where_a_size_was_given(bank, without_order):
    asked = planned(bank, order=4)
    hsv = ht.hankel_singular_values(bank)[""]
    without_order(hsv[1, 0], asked.reduction[1].order)
    found = planned(bank, order=4)
    assert found.states == 4
    assert found.reduction[1].order == asked.reduction[1].order - 1
    assert found.reason.startswith(f"channel 1: order {asked.reduction[1].order} cannot be diagonalised")


def test_other_channels_keep_as_many_states_where_one_needs_more(bank, without_order):
    asked = planned(bank, tau=0.3)
    hsv = ht.hankel_singular_values(bank)[""]
    without_order(hsv[1, 0], asked.reduction[1].order)
    found = planned(bank, tau=0.3)
    assert found.states == max(x.system.n for x in found.reduction)
    assert found.states > asked.states
    assert found.kept_energy > asked.kept_energy


def test_layer_is_left_alone_where_a_channel_has_no_diagonal_reduction(bank, one_by_one, monkeypatch):
    def never(self, order=None, *, states=None):
        raise DiagonalisationError("The reduced state matrix is defective.")

    monkeypatch.setattr(hr.Balancing, "reduce", never)
    found = planned(bank, order=4)
    assert not found.cut
    assert found.reason == "channel 0: The reduced state matrix is defective."


def test_predicted_loss_is_the_true_one_where_no_real_poles_appear(bank):
    adapter = adapter_of(bank)
    analysis = adapter.analyse(adapter.values())
    for states in range(1, STATES):
        found = analysis.reduce(states)
        assert 1 - found.kept_energy >= analysis.tail(states) - 1e-12
        assert found.error_bound >= analysis.bound(states) * (1 - 1e-9)
        if all(x.order == 2 * states for x in found.reduction):
            assert 1 - found.kept_energy == pytest.approx(analysis.tail(states), rel=1e-9)


def test_feedthrough_stays_in_the_reduced_systems(bank):
    for reduction, D in zip(planned(bank, order=3).reduction, bank.D, strict=True):
        assert np.array_equal(reduction.system.D, [[D.item()]])
