"""Claims about cuts of time-invariant layers that go by the inputs the layers really get."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings

import numpy as np
import pytest
import torch
from sampled_layers import LAYERS, relative, slow_inputs
from torch import nn

import hankelred as hr
import hankelred_torch as ht
from hankelred.weighting import Sampled
from hankelred_torch import layer_sums
from hankelred_torch.adapters import adapter_of, collect_statistics
from hankelred_torch.sampling import watch


def states_of(layer, u):
    """Return the states of every system by the recurrence itself, (systems, batch, length, n)."""
    read = ht.read_system(layer)
    bank = [read] if isinstance(read, hr.DiagonalSystem) else list(read)
    found, start = [], 0
    for system in bank:
        own = np.asarray(u[..., start : start + system.m], dtype=float)
        start += system.m
        x, states = np.zeros((len(own), system.n), complex), []
        for entering in own.swapaxes(0, 1):
            x = x * system.lam + entering @ system.B.T
            states.append(x)
        found.append(np.stack(states, axis=1))
    return np.stack(found)


def outer(x):
    rows = x.reshape(len(x), -1, x.shape[-1])
    return np.einsum("kri,krj->kij", rows, rows.conj()) / rows.shape[1]


@pytest.mark.parametrize("name", LAYERS)
def test_sums_are_those_of_the_states_that_the_inputs_drive(name):
    torch.manual_seed(0)
    layer, batches = LAYERS[name](), [slow_inputs(seed=1), slow_inputs(seed=2)]
    found = collect_statistics(layer, batches).layers[""]
    expected = outer(np.concatenate([states_of(layer, u) for u in batches], axis=1))
    assert relative(found.sums.mean(), expected) < 2e-5  # states in single precision
    assert found.sums.count == 2 * 6 * 80


@pytest.mark.parametrize("name", LAYERS)
def test_a_plan_is_the_truncation_against_these_states(name):
    torch.manual_seed(0)
    layer, u = LAYERS[name]().double(), slow_inputs().double()
    states = states_of(layer, u)
    read, n = ht.read_system(layer), ht.state_sizes(layer)[""] // 2
    plan = ht.plan(layer, ht.CompressionConfig(order=n), [u]).layers[""]
    data = Sampled(states=states if isinstance(read, hr.DiagonalBank) else states[0])
    expected = hr.hankel_singular_values(read, data)
    np.testing.assert_allclose(plan.hsv, np.atleast_2d(expected).max(axis=0), atol=1e-6 * plan.hsv[0])
    assert plan.method == "sampled balanced truncation"
    assert plan.error_bound == np.inf
    ht.compress_(layer, ht.CompressionConfig(order=n), batches=[u])
    reduced = ht.read_system(layer)
    omega = np.linspace(0, 0.5, 20)  # where the inputs are
    alike = hr.balanced_truncation(read, states=n, weighting=data)
    pairs = zip(reduced, alike.systems, strict=True) if isinstance(read, hr.DiagonalBank) else [(reduced, alike.system)]
    for ours, theirs in pairs:
        a, b = ours.frequency_response(omega), theirs.frequency_response(omega)
        assert relative(a, b) < 1e-2  # states at the floor of the covariance turn with rounding


def test_sums_of_a_layer_that_is_one_system_weigh_that_system():
    torch.manual_seed(0)
    layer, u = ht.layers.LRU(4, 16), [slow_inputs()]
    sums = collect_statistics(layer, u).layers[""].sums
    found = hr.hankel_singular_values(ht.read_system(layer), weighting=Sampled(states=sums))
    planned = ht.plan(layer, ht.CompressionConfig(order=4), u).layers[""].hsv
    np.testing.assert_allclose(found, planned, rtol=1e-10, atol=1e-12 * planned[0])
    with pytest.raises(hr.InputError, match="one system of 16 states"):
        hr.balance(
            ht.read_system(layer), weighting=Sampled(states=collect_statistics(ht.layers.S4D(4, 16), u).layers[""].sums)
        )


@pytest.mark.parametrize("piece", [1, 100, 2000])
@pytest.mark.parametrize("name", LAYERS)
def test_sums_do_not_depend_on_how_many_states_are_held_at_a_time(monkeypatch, name, piece):
    torch.manual_seed(0)
    layer, u = LAYERS[name](), slow_inputs()
    mask = (torch.rand(u.shape[:2]) > 0.3).long()

    def summed():
        adapter = adapter_of(layer)
        found = adapter.statistics()
        with torch.no_grad():
            adapter.observe(found, u, mask, None)
        return found.sums

    whole = summed()
    monkeypatch.setattr(layer_sums, "PIECE", piece)
    pieces = summed()
    assert pieces.count == whole.count == int(mask.sum())
    assert relative(pieces.mean(), whole.mean()) < 1e-5  # states in single precision


@pytest.mark.parametrize("name", LAYERS)
def test_on_slow_inputs_the_output_changes_less_than_by_a_white_cut_and_is_told_as_it_is(name):
    torch.manual_seed(0)
    layer, u = LAYERS[name](), slow_inputs()
    before, errors = layer(u).detach(), {}
    for weighting in ("white", "sampled"):
        torch.manual_seed(0)
        copy = LAYERS[name]()
        plan = ht.compress_(copy, ht.CompressionConfig(order=3, weighting=weighting), batches=[u])
        errors[weighting] = float((copy(u).detach() - before).norm() / before.norm())
    assert errors["sampled"] < 0.7 * errors["white"], errors
    assert plan.layers[""].output_error == pytest.approx(errors["sampled"], rel=1e-3)
    assert "measured" in str(plan)


def test_white_noise_is_taken_without_data_for_a_bound_and_where_asked_for():
    torch.manual_seed(0)
    layer, u = ht.layers.LRU(4, 16), slow_inputs()
    white = ht.plan(layer, ht.CompressionConfig(order=4)).layers[""]
    assert white.method == ""
    assert np.isfinite(white.error_bound)
    for config in ({"order": 4, "weighting": "white"}, {"max_error": 1e3}):
        found = ht.plan(layer, ht.CompressionConfig(**config), [u]).layers[""]
        assert found.method == ""
        assert found.states == 16 or 0 < found.output_error < 10
        row = str(ht.plan(layer, ht.CompressionConfig(**config), [u])).splitlines()[1]
        assert found.states == 16 or f"{found.error_bound:.3g}; measured {found.output_error:.3g}" in row
        np.testing.assert_array_equal(found.hsv, white.hsv)
        assert np.isfinite(found.error_bound)
    np.testing.assert_array_equal(ht.hankel_singular_values(layer, [u])[""], white.hsv)


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_the_fewest_states_are_found_whose_measured_error_is_within_what_was_asked_for(name, refit):
    torch.manual_seed(0)
    layer, u = LAYERS[name](), [slow_inputs()]
    errors = {
        n: ht.plan(layer, ht.CompressionConfig(order=n, weighting="sampled", refit=refit, min_cut=0), u).layers[""]
        for n in range(1, ht.state_sizes(layer)[""])
    }
    for most in (0.02, 0.1, 0.3):
        config = ht.CompressionConfig(max_error=most, weighting="sampled", refit=refit, min_cut=0)
        found = ht.plan(layer, config, u).layers[""]
        holding = [n for n, x in errors.items() if x.output_error <= most]
        if not holding:
            assert not found.cut
            assert f"max_error={most}" in found.reason
            continue
        assert found.output_error <= most
        below = [x.output_error for n, x in errors.items() if n < found.states]
        assert found.states == min(holding) or any(x > most for x in below)  # errors that fall again, as a detour
        np.testing.assert_allclose(found.output_error, measured_error(layer, found.states, config, u[0]), rtol=1e-3)


def measured_error(layer, states, config, u):
    """Cut a copy and compare outputs."""
    small = copy.deepcopy(layer)
    ht.compress_(small, dataclasses.replace(config, max_error=None, order=states), batches=[u])
    with torch.no_grad():
        whole, cut = layer(u).double(), small(u).double()
    return float((whole - cut).norm() / whole.norm())


def test_an_error_that_no_cut_keeps_is_told_and_nothing_is_cut():
    torch.manual_seed(0)
    layer, u = ht.layers.LRU(4, 16), [slow_inputs()]
    found = ht.plan(layer, ht.CompressionConfig(max_error=1e-7, weighting="sampled"), u).layers[""]
    assert not found.cut
    assert "the relative output error was" in found.reason
    assert "max_error=1e-07" in found.reason
    unseen = torch.nn.ModuleDict({"used": ht.layers.LRU(4, 8), "not": ht.layers.LRU(4, 8)})
    unseen.forward = lambda u: unseen["used"](u)
    with pytest.raises(hr.NumericalError, match="needs inputs"):
        ht.plan(unseen, ht.CompressionConfig(max_error=0.1, weighting="sampled"), u)
    with pytest.raises(hr.InputError, match="budget"):
        ht.CompressionConfig(max_error=0.1, weighting="sampled", budget="global")


def test_a_selective_layer_is_cut_within_a_measured_error_too():
    torch.manual_seed(0)
    layer, u = ht.layers.Mamba(8, 16), [slow_inputs(channels=8)]
    found = ht.plan(layer, ht.CompressionConfig(max_error=0.2, weighting="sampled"), u).layers[""]
    assert found.cut
    assert found.output_error <= 0.2


@pytest.mark.parametrize("criterion", [{"order": 4}, {"tau": 0.02}])
def test_a_layer_that_delays_its_inputs_has_nothing_to_lose_and_is_left_alone_in_training(criterion):
    """All 32 Hankel singular values are nearly equal: the states are a memory of the last inputs."""
    lam = 0.995 * np.exp(1j * np.pi * (2 * np.arange(16) + 1) / 32)
    delay = hr.DiagonalSystem(lam, np.ones((16, 1)), (lam**-20 / 16)[None], dt=True, output="real")
    model = nn.Sequential(ht.layers.LRU(1, 16), nn.Linear(1, 1))
    with torch.no_grad():
        model[0].D.zero_()
    ht.write_system(model[0], delay.with_(D=np.zeros((1, 1))))
    u = torch.randn(8, 100, 1)
    torch.testing.assert_close(model[0](u)[:, 20:32], u[:, :12], rtol=0, atol=1e-4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    schedule = ht.Schedule(total_steps=10, end_step=2, attempts=1)
    compressor = ht.InTrainingCompressor(model, optimizer, ht.CompressionConfig(**criterion), schedule)
    told = pytest.warns(ht.RefusedCutWarning, match="max_tail") if "order" in criterion else contextlib.nullcontext()
    with told:
        for _ in range(2):
            model(torch.randn(8, 100, 1)).square().mean().backward()
            optimizer.step()
            assert compressor.step() is None
    (record,) = compressor.history
    assert (record.n, record.states_now) == (16, 16)
    assert record.reason
    assert record.hsv[20] > 0.5 * record.hsv[0]


def test_parameters_that_wait_for_a_first_call_are_not_made_by_looking():
    model, u = nn.Sequential(ht.layers.LRU(4, 16), nn.LazyLinear(2)), [slow_inputs()]
    with pytest.raises(hr.InputError, match=r"1\.weight, 1\.bias, which wait for a first forward pass. Call the model"):
        ht.plan(model, ht.CompressionConfig(order=4), u)
    ht.hankel_singular_values(model, u)
    assert isinstance(model[1], nn.LazyLinear)
    assert ht.plan(model, ht.CompressionConfig(order=4)).is_cut  # without data the model need not run


def test_settings_that_contradict_each_other_are_refused():
    for wrong in ({"weighting": "pink"}, {"refit": "yes"}, {"refit": 2}, {"refit": np.zeros(0)}):
        with pytest.raises(hr.InputError):
            ht.CompressionConfig(**wrong)
    with pytest.raises(hr.InputError, match="batches"):
        ht.plan(ht.layers.LRU(4, 16), ht.CompressionConfig(order=4, refit=True))
    with pytest.raises(hr.NumericalError, match="inputs"):
        ht.plan(ht.layers.LRU(4, 16), ht.CompressionConfig(order=4, weighting="sampled"))


def trained(config):
    """Train a little with the two lines and return the model and the plans of the cuts."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), ht.layers.LRU(4, 16), nn.Tanh(), ht.layers.S4D(4, 8), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = ht.Schedule(total_steps=20, end_step=10, attempts=2, force=True)
    compressor = ht.InTrainingCompressor(model, optimizer, config, schedule)
    inputs, plans = slow_inputs(channels=2), []
    for _ in range(12):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
        plans.append(compressor.step())
    return model, [plan for plan in plans if plan is not None], compressor


def test_two_lines_watch_the_training_itself_and_leave_no_trace():
    model, plans, compressor = trained(ht.CompressionConfig(order=4))
    assert [plan.layers["1"].method for plan in plans] == ["sampled balanced truncation"] * 2
    assert [plan.layers["3"].method for plan in plans] == ["sampled balanced truncation"] * 2
    assert all(plan.layers["1"].output_error < 0.5 for plan in plans)
    assert ht.state_sizes(model) == {"1": 4, "3": 4}
    assert not any(x._forward_hooks or x._forward_pre_hooks for x in model.modules())
    assert "sampled" in str(compressor.history.to_json())
    _, plans, _ = trained(ht.CompressionConfig(order=4, weighting="white"))
    assert [plan.layers["1"].method for plan in plans] == ["", ""]


def test_watched_sums_do_not_change_a_training():
    def parameters(weighting):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 4), ht.layers.LRU(4, 16), nn.Dropout(0.5), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        config = ht.CompressionConfig(order=16, weighting=weighting)  # no cut: all states are wanted
        compressor = ht.InTrainingCompressor(model, optimizer, config, ht.Schedule(total_steps=10, end_step=5))
        for _ in range(8):
            optimizer.zero_grad()
            model(slow_inputs(channels=2)).square().mean().backward()
            optimizer.step()
            compressor.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(parameters("white"), parameters("auto"))


class MaskedLRU(ht.layers.LRU):
    def forward(self, u, attention_mask=None, seq_idx=None, state=None):
        return super().forward(u)


class NamedLRU(ht.layers.LRU):
    def forward(self, hidden_states, return_state=False):
        return super().forward(hidden_states)


def test_inputs_that_are_called_states_are_inputs():
    torch.manual_seed(0)
    layer, u = NamedLRU(4, 8), slow_inputs(batch=2, length=20)
    for call in (lambda: layer(u), lambda: layer(hidden_states=u, return_state=True)):
        with watch(layer, {"": adapter_of(layer)}) as seen:
            call()
        found = seen.statistics().layers[""]
        assert found.seen, found.reason
        assert relative(found.sums.mean(), outer(states_of(layer, u))) < 2e-5


def test_padding_and_packed_documents_are_kept_apart():
    torch.manual_seed(0)
    layer, u = MaskedLRU(4, 8), slow_inputs(batch=2, length=20)
    adapter = adapter_of(layer)
    mask = torch.ones(2, 20)
    mask[0, 12:] = 0
    rows = states_of(layer, u)[0]
    kept = np.concatenate([rows[0, :12], rows[1]])
    with watch(layer, {"": adapter}) as seen:
        layer(u, attention_mask=mask)
    assert relative(seen.statistics().layers[""].sums[0].mean(), outer(kept[None])[0]) < 2e-5
    with watch(layer, {"": adapter}) as seen:
        layer(u, seq_idx=(torch.arange(20) >= 7).long().expand(2, 20))
    alone = np.concatenate([states_of(layer, x)[0].reshape(-1, 8) for x in (u[:, :7], u[:, 7:])])
    assert relative(seen.statistics().layers[""].sums[0].mean(), outer(alone[None])[0]) < 2e-5


def test_a_call_that_cannot_be_understood_leaves_white_noise_and_the_training_alone():
    torch.manual_seed(0)
    layer, u = MaskedLRU(4, 8), slow_inputs(batch=2, length=20)
    adapter = adapter_of(layer)
    with watch(layer, {"": adapter}) as seen:
        layer(u, state=torch.zeros(2, 8))
    found = seen.statistics()
    assert not found.layers[""].seen
    assert "rest" in found.layers[""].reason
    assert ht.plan(layer, ht.CompressionConfig(order=3), found).layers[""].method == ""
    with pytest.raises(hr.NumericalError, match="rest"):
        ht.plan(layer, ht.CompressionConfig(order=3, weighting="sampled"), found)


def test_a_layer_that_the_batches_do_not_reach_is_reduced_by_white_noise():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = ht.layers.LRU(4, 8), ht.layers.LRU(4, 8)

        def forward(self, u):
            return self.first(u)

    torch.manual_seed(0)
    plan = ht.plan(Two(), ht.CompressionConfig(order=3), [slow_inputs()])
    assert [plan.layers[name].method for name in ("first", "second")] == ["sampled balanced truncation", ""]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_of_low_precision_under_autocast_are_seen(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), ht.layers.LRU(4, 8))
    u = slow_inputs()
    with warnings.catch_warnings(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        warnings.simplefilter("ignore")
        with watch(model, ht.find_ssm_layers(model)) as seen:
            model(u)
    found = seen.statistics().layers["1"]
    expected = outer(states_of(model[1], model[0](u).detach()))
    assert relative(found.sums.mean(), expected) < (1e-4 if dtype == torch.float32 else 5e-2)


def test_a_plan_for_data_is_carried_out_on_a_layer_that_has_moved_since_by_the_same_data():
    torch.manual_seed(0)
    layer, u = ht.layers.LRU(4, 16), slow_inputs()
    plan = ht.plan(layer, ht.CompressionConfig(order=4), [u])
    with torch.no_grad():
        layer.C_re.mul_(1.01)
    done = ht.compress_(layer, plan).layers[""]
    assert done.method == "sampled balanced truncation"
    assert ht.state_sizes(layer)[""] == 4


def test_statistics_merge_as_if_one_had_seen_all():
    torch.manual_seed(0)
    layer, batches = ht.layers.S4D(4, 8), [slow_inputs(seed=1), slow_inputs(seed=2)]
    both = collect_statistics(layer, batches)
    one, other = (collect_statistics(layer, [u]) for u in batches)
    one.merge(other)
    np.testing.assert_allclose(one.layers[""].sums.mean(), both.layers[""].sums.mean(), rtol=1e-6, atol=1e-9)
    a, b = (ht.plan(layer, ht.CompressionConfig(order=3), x).layers[""].hsv for x in (one, both))
    np.testing.assert_allclose(a, b, rtol=1e-5)
