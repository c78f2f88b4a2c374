"""Claims about cuts: what they do to a model, what they leave alone, and that they happen in full or not at all."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

import hankelred as hr
import hankelred_torch as ht
from hankelred_torch import exchange
from hankelred_torch.adapters import LRUAdapter
from hankelred_torch.adapters import registry as known_layers
from hankelred_torch.surgery import cut

from .adapter_models import (
    STATE_TENSORS,
    Stack,
    assert_consistent,
    assert_unchanged,
    inputs,
    lru,
    make_inert,
    snapshot,
    train,
)


def adam(model, **options):
    return torch.optim.Adam(model.parameters(), lr=1e-2, **options)


@given(
    seed=st.integers(0, 1000),
    states=st.integers(1, 9),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_output_changes_by_no_more_than_the_bound(seed, states, dtype):
    layer, u = lru(10, seed=seed, dtype=dtype), inputs(seed=seed, dtype=dtype)
    before = layer(u)
    report = ht.compress_(layer, ht.CompressionConfig(order=states))
    change = torch.linalg.vector_norm((layer(u) - before).double())
    gain = report.layers[""].error_bound  # the l2 gain from rest, on any horizon
    rounding = 100 * torch.finfo(dtype).eps * torch.linalg.vector_norm(before.double())  # of 64 steps of recurrence
    assert change <= gain * torch.linalg.vector_norm(u.double()) + rounding


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_output_stays_where_only_inert_states_are_dropped(dtype, tolerance):
    layer, u = make_inert(lru(10, dtype=dtype), live=6), inputs(dtype=dtype)
    before = layer(u)
    ht.compress_(layer, ht.CompressionConfig(order=6))
    assert ht.state_sizes(layer) == {"": 6}
    assert (layer(u) - before).abs().max() < tolerance * before.abs().max()


def test_measured_error_of_the_report_is_within_its_bound():
    report = ht.compress_(lru(10), ht.CompressionConfig(order=4))
    layer = report.layers[""]
    assert layer.hsv[layer.order] <= layer.reduction.hinf_error() * (1 + 1e-9)
    assert layer.reduction.hinf_error() <= layer.error_bound


def test_second_cut_starts_from_the_first():
    layer, u = lru(10), inputs()
    before = layer(u)
    bounds = [ht.compress_(layer, ht.CompressionConfig(order=k)).layers[""].error_bound for k in (7, 4)]
    assert ht.state_sizes(layer) == {"": 4}
    assert torch.linalg.vector_norm(layer(u) - before) <= sum(bounds) * torch.linalg.vector_norm(u)


def test_parameters_are_new_objects_in_the_old_order():
    layer = lru()
    before = dict(layer.named_parameters())
    ht.compress_(layer, ht.CompressionConfig(order=4))
    assert [name for name, _ in layer.named_parameters()] == list(before)
    assert all(p is not before[name] for name, p in layer.named_parameters() if name in STATE_TENSORS)
    assert layer.D is before["D"]


def test_attributes_and_trainability_of_parameters_are_kept():
    layer = lru(dtype=torch.float32)
    layer.nu_log._optim = {"lr": 1e-4, "weight_decay": 0.0}
    layer.C_im.requires_grad_(False)
    ht.compress_(layer, ht.CompressionConfig(order=4))
    assert layer.nu_log._optim == {"lr": 1e-4, "weight_decay": 0.0}
    assert not layer.C_im.requires_grad
    assert layer.B_re.requires_grad
    assert {p.dtype for p in layer.parameters()} == {torch.float32}


def test_hooks_on_parameters_are_kept_and_can_be_removed():
    layer, seen = lru(), []
    handle = layer.B_re.register_hook(lambda grad: seen.append(grad.shape))
    layer.B_re.register_post_accumulate_grad_hook(lambda p: seen.append("after"))
    ht.compress_(layer, ht.CompressionConfig(order=4))
    layer(inputs()).sum().backward()
    assert seen == [(4, 3), "after"]
    handle.remove()
    layer(inputs()).sum().backward()
    assert seen == [(4, 3), "after", "after"]


def test_gradients_are_dropped_with_the_old_parameters():
    layer = lru()
    layer(inputs()).sum().backward()
    ht.compress_(layer, ht.CompressionConfig(order=4))
    assert all(getattr(layer, name).grad is None for name in STATE_TENSORS)
    assert layer.D.grad is not None


def test_live_graph_of_the_last_step_does_no_harm():
    layer = lru()
    optimizer = adam(layer)
    loss = layer(inputs()).square().mean()
    loss.backward(retain_graph=True)
    optimizer.step()
    ht.compress_(layer, ht.CompressionConfig(order=4), optimizer)
    train(layer, optimizer, 1)
    assert loss.item() > 0
    assert_consistent(layer, optimizer)


def test_every_module_that_holds_a_parameter_gets_the_new_one():
    class Watcher(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer
            self.watched = layer.C_re
            self.many = nn.ParameterList([layer.nu_log])

    model = Watcher(lru())
    ht.compress_(model, ht.CompressionConfig(order=4))
    assert model.watched is model.layer.C_re
    assert model.many[0] is model.layer.nu_log
    assert model.watched.shape == (3, 4)


def test_state_tensors_may_be_buffers():
    layer = lru()
    value = layer.nu_log.detach()
    del layer.nu_log
    layer.register_buffer("nu_log", value)
    ht.compress_(layer, ht.CompressionConfig(order=4), adam(layer))
    assert layer._buffers["nu_log"].shape == (4,)


def test_layers_that_share_parameters_are_refused_unless_left_out():
    model = Stack((8, 8))
    model.second.B_re = model.first.B_re
    before = snapshot(model)
    with pytest.raises(hr.InputError, match=r"must not share .*; got B_re in 'first' and 'second'\. Untie them"):
        ht.compress_(model, ht.CompressionConfig(order=4, target_modules="first"))
    assert_unchanged(before, model)


def test_parametrized_layer_is_refused_and_unchanged():
    model = Stack()
    parametrize.register_parametrization(model.second, "nu_log", nn.Identity())
    before = snapshot(model)
    with pytest.raises(hr.InputError, match="remove_parametrizations"):
        ht.compress_(model, ht.CompressionConfig(order=4), adam(model))
    assert_unchanged(before, model)


def test_learning_rate_schedule_goes_on():
    model = Stack()
    optimizer = adam(model)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
    train(model, optimizer, 2)
    schedule.step()
    before = optimizer.param_groups[0]["lr"]
    ht.compress_(model, ht.CompressionConfig(order=4), optimizer)
    group = optimizer.param_groups[0]
    train(model, optimizer, 1)
    schedule.step()
    assert optimizer.param_groups[0] is group
    assert group["lr"] > before


@pytest.mark.parametrize("several", [list, tuple, iter])
def test_several_optimizers_share_a_model(several):
    model = Stack()
    slow = torch.optim.SGD(list(model.first.parameters())[:3], lr=1e-3, momentum=0.9)
    fast = torch.optim.AdamW(
        [*list(model.first.parameters())[3:], *model.second.parameters(), *model.head.parameters()]
    )
    train(model, [slow, fast], 2)
    ht.compress_(model, ht.CompressionConfig(order=4), several([slow, fast]))
    assert_consistent(model, slow, fast)
    train(model, [slow, fast], 1)


def test_param_groups_keep_their_settings_and_places():
    model = Stack()
    optimizer = torch.optim.AdamW(
        [
            {"params": list(model.first.parameters()), "lr": 1e-4, "weight_decay": 0.0},
            {"params": [*model.second.parameters(), *model.head.parameters()]},
        ]
    )
    names = {id(p): name for name, p in model.named_parameters()}
    before = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    ht.compress_(model, ht.CompressionConfig(order=4), optimizer)
    names = {id(p): name for name, p in model.named_parameters()}
    assert [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups] == before
    assert optimizer.param_groups[0]["lr"] == 1e-4


def test_optimizer_that_misses_a_parameter_is_refused_and_nothing_changes():
    model = Stack()
    optimizer = torch.optim.Adam([*model.first.parameters(), *model.head.parameters(), model.second.B_re])
    before = snapshot(model, optimizer)
    with pytest.raises(hr.InputError, match=r"none that holds nu_log, theta_log, .*C_im of layer 'second'\. Pass all"):
        ht.compress_(model, ht.CompressionConfig(order=4), optimizer)
    assert_unchanged(before, model, optimizer)


def test_frozen_parameters_need_no_optimizer():
    model = Stack()
    model.second.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    train(model, optimizer, 2)
    ht.compress_(model, ht.CompressionConfig(order=4), optimizer)
    assert ht.state_sizes(model) == {"first": 4, "second": 4}
    assert_consistent(model, optimizer)


def test_parameter_held_twice_is_refused():
    layer = lru()
    with pytest.raises(hr.InputError, match="must be held by one param group of one optimizer; got 2"):
        ht.compress_(layer, ht.CompressionConfig(order=4), [adam(layer), adam(layer)])


def test_lbfgs_is_refused():
    layer = lru()
    with pytest.raises(hr.InputError, match="got LBFGS, which keeps one flat history"):
        ht.compress_(layer, ht.CompressionConfig(order=4), torch.optim.LBFGS(layer.parameters()))


@pytest.mark.parametrize("optimizers", ["adam", [3], 3])
def test_optimizers_of_another_kind_are_refused(optimizers):
    with pytest.raises(hr.InputError, match=r"optimizers must be one torch optimizer or several; got (str|int)"):
        ht.compress_(lru(), ht.CompressionConfig(order=4), optimizers)


def test_plan_is_carried_out_at_the_weights_of_the_cut():
    layer, u = lru(), inputs()
    plan = ht.plan(layer, ht.CompressionConfig(order=4))
    train(layer, adam(layer), 3)
    fresh = copy.deepcopy(layer)
    report = ht.compress_(layer, plan)
    ht.compress_(fresh, ht.CompressionConfig(order=4))
    assert torch.equal(layer(u), fresh(u))
    assert report.layers[""].error_bound != plan.layers[""].error_bound


def test_plan_of_another_model_is_refused():
    plan = ht.plan(lru(8), ht.CompressionConfig(order=4))
    with pytest.raises(hr.InputError, match=r"one for layer '' with 8 states and \{'': 9\} in the model"):
        ht.compress_(lru(9), plan)


def test_nothing_happens_where_the_gate_is_not_passed():
    model = Stack()
    optimizer = adam(model)
    train(model, optimizer, 2)
    before = snapshot(model, optimizer)
    report = ht.compress_(model, ht.CompressionConfig(order=12), optimizer)
    assert not report.is_cut
    assert_unchanged(before, model, optimizer)


class Sized(nn.Module):
    """A layer that remembers its number of states, as many published ones do."""

    def __init__(self, states=8):
        super().__init__()
        self.d_state = states
        for name, tensor in lru(states).named_parameters():
            self.register_parameter(name, tensor)


class SizedAdapter(LRUAdapter):
    def sizes(self, states):
        return {"d_state": states}


class BrokenAdapter(LRUAdapter):
    def sizes(self, states):
        return {"d_state": states, "no_such_attribute": states}


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(known_layers, "_REGISTERED", dict(known_layers._REGISTERED))


def test_sizes_a_layer_remembers_are_updated(registry):
    ht.register_adapter(Sized, SizedAdapter)
    layer = Sized()
    ht.compress_(layer, ht.CompressionConfig(order=4))
    assert layer.d_state == 4


def test_failure_in_the_middle_puts_everything_back(registry):
    ht.register_adapter(Sized, BrokenAdapter)
    model = nn.ModuleDict({"good": lru(), "bad": Sized()})
    optimizer = adam(model)
    optimizer.state[model["good"].nu_log] = {"step": torch.tensor(3.0), "exp_avg": torch.ones(8).double()}
    before = snapshot(model, optimizer)
    with pytest.raises(AttributeError, match="no_such_attribute"):
        ht.compress_(model, ht.CompressionConfig(order=4), optimizer)
    assert_unchanged(before, model, optimizer)
    assert model["bad"].d_state == 8


def test_value_that_is_not_finite_stops_the_cut_before_it_begins(monkeypatch):
    rewrite = LRUAdapter.rewrite

    def broken(self, values, reduction):
        return rewrite(self, values, reduction) | {"C_re": np.full((3, reduction.system.n), np.nan)}

    model = Stack()
    before = snapshot(model)
    monkeypatch.setattr(LRUAdapter, "rewrite", broken)
    with pytest.raises(hr.NumericalError, match=r"must be finite in torch.float64; got nan"):
        ht.compress_(model, ht.CompressionConfig(order=4))
    assert_unchanged(before, model)


def _wrong_shape(model, monkeypatch):
    carried = cut.carried_states

    def one_too_many(*args):
        states = carried(*args)
        for entries in states.values():
            for state in entries.values():
                state["exp_avg"] = torch.zeros(5, 3)
        return states

    monkeypatch.setattr(cut, "carried_states", one_too_many)


def _forgotten_holder(model, monkeypatch):
    holders = exchange.holders_of
    calls = []

    def without_the_watcher(*models):
        calls.append(None)
        found = holders(*models)
        if len(calls) == 1:  # while preparing; the check afterwards looks for itself
            found[model.first.B_re] = found[model.first.B_re][:1]
        return found

    model.head.watched = model.first.B_re
    monkeypatch.setattr(exchange, "holders_of", without_the_watcher)


def _optimizer_not_told(model, monkeypatch):
    monkeypatch.setattr(exchange.Exchange, "_writes_to_optimizers", lambda self: [])


@pytest.mark.parametrize(
    ("sabotage", "message"),
    [
        (_wrong_shape, r"Optimizer state exp_avg of the new .* must fit shape"),
        (_forgotten_holder, "The old B_re of layer 'first' must be gone"),
        (_optimizer_not_told, "The old nu_log of layer 'first' must be gone"),
    ],
)
def test_inconsistencies_are_noticed_and_put_back(monkeypatch, sabotage, message):
    model = Stack()
    optimizer = adam(model)
    train(model, optimizer, 2)
    sabotage(model, monkeypatch)
    before = snapshot(model, optimizer)
    with pytest.raises(ht.SurgeryError, match=message):
        ht.compress_(model, ht.CompressionConfig(order=4), optimizer)
    assert_unchanged(before, model, optimizer)


def test_report_prints_counts_and_is_ready_for_json():
    model = Stack((12, 4))
    report = ht.compress_(model, ht.CompressionConfig(order=4))
    assert report.sizes == ht.state_sizes(model)
    assert report.parameters[1] == sum(p.numel() for p in model.parameters())
    assert f"parameters {report.parameters[0]} -> {report.parameters[1]}" in str(report)
    assert "4 of 4 states are needed" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["layers"][0]["states"] == 4
    assert report.scalars("a")["a/first/states"] == 4.0


# raised by torch itself where it traces an autograd function
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_cut_of_a_compiled_model_is_seen_by_the_next_call():
    model = torch.compile(lru(), backend="eager")
    u = inputs()
    model(u)
    ht.compress_(model, ht.CompressionConfig(order=4))
    assert torch.allclose(model(u), model._orig_mod(u), rtol=1e-12)
    torch._dynamo.reset()


@given(
    sizes=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    orders=st.lists(st.integers(1, 8), min_size=1, max_size=3),
    optimizer=st.sampled_from(["SGD", "Adam", "AdamW", "NAdam", "RMSprop", "Adagrad", "Adafactor"]),
    policy=st.sampled_from(["transport", "reset"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 100),
)
def test_cuts_leave_models_that_train_on(sizes, orders, optimizer, policy, dtype, seed):
    model = Stack(sizes, seed=seed, dtype=dtype)
    options = {"momentum": 0.9} if optimizer in ("SGD", "RMSprop") else {}
    trainer = getattr(torch.optim, optimizer)(model.parameters(), lr=1e-3, **options)
    for order in orders:
        train(model, trainer, 2, seed=seed)
        ht.compress_(model, ht.CompressionConfig(order=order, min_cut=0.0, optimizer_state=policy), trainer)
        assert_consistent(model, trainer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert torch.isfinite(train(model, trainer, 1, seed=seed))
    for name in ("first.nu_log", "first.B_re", "second.C_re", "second.nu_log"):
        assert not torch.equal(before[name], model.get_parameter(name)), name
    assert all(torch.isfinite(p).all() for p in model.parameters())
