"""Claims about adapters that users write from a map and its inverse."""

from __future__ import annotations

import copy
from typing import ClassVar

import numpy as np
import pytest
import torch

import hankelred as hr
import hankelred_torch as ht
from hankelred_torch import adapters
from hankelred_torch.convert import rounded

from .adapter_models import assert_consistent, assert_unchanged, snapshot
from .other_layers import INPUTS, LAYERS, ComplexLRU, ComplexLRUAdapter, DecayBank

COMPLEX = [layer for layer in LAYERS if layer is not DecayBank]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Know the layers in these tests only."""
    monkeypatch.setattr(adapters.registry, "_REGISTERED", dict(adapters.registry._REGISTERED))
    for layer, adapter in LAYERS.items():
        ht.register_adapter(layer, adapter)


def made(family, states=8, seed=0):
    torch.manual_seed(seed)
    return family(states)


def inputs(length=40, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, length, INPUTS, generator=generator, dtype=torch.float64)


def simulated(system, u):
    """Return the outputs of the systems read, step by step."""
    if isinstance(system, hr.DiagonalBank):
        return np.concatenate([simulated(x, u[..., k : k + 1]) for k, x in enumerate(system)], axis=2)
    x, y = np.zeros((len(u), system.n), dtype=complex), []
    for t in range(u.shape[1]):
        x = x * system.lam + u[:, t] @ system.B.T
        y.append((x @ system.C.T).real + u[:, t] @ system.D.T)
    return np.stack(y, axis=1)


def make_inert(layer, live):
    """Unlink all states after the first `live`."""
    adapter = ht.adapters.adapter_of(layer)
    with torch.no_grad():
        for part in ("B", "C"):
            for name in adapter.parts.get(part, ()):
                adapter.tensor(name).narrow(adapter.state_axes[name], live, adapter.states - live).zero_()
    return layer


def train(layer, optimizer, steps=3, seed=0):
    for k in range(steps):
        u = inputs(seed=seed + k)
        y = layer(u)
        (y - u.cumsum(1).mean(2, keepdim=True)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def relative(x, y):
    x, y = (np.asarray(z.detach() if isinstance(z, torch.Tensor) else z) for z in (x, y))
    return np.abs(x - y).max() / np.abs(y).max()


@pytest.mark.parametrize("family", LAYERS)
def test_system_read_computes_what_the_layer_computes(family):
    layer, u = made(family), inputs()
    assert relative(simulated(ht.read_system(layer), u.numpy()), layer(u)) < 1e-12


@pytest.mark.parametrize("family", LAYERS)
@pytest.mark.parametrize("states", [8, 5])
def test_written_system_is_what_the_layer_computes_then(family, states):
    source, layer, u = made(family, states, seed=1), made(family), inputs()
    ht.write_system(layer, ht.read_system(source))
    assert ht.state_sizes(layer) == {"": states}
    assert relative(layer(u), source(u)) < 1e-12


@pytest.mark.parametrize("family", LAYERS)
def test_cut_stays_within_its_bound(family):
    layer, u = made(family), inputs(300)
    u[:, 150:] = 0  # all of the response is seen
    before = layer(u)
    report = ht.compress_(layer, ht.CompressionConfig(order=4))
    change = (layer(u) - before).detach().norm(dim=(1, 2)) / u.norm(dim=(1, 2))
    assert report.sizes == {"": 4}
    assert change.max() <= report.layers[""].error_bound


@pytest.mark.parametrize("family", COMPLEX)
def test_training_goes_on_as_if_inert_states_had_never_been_there(family):
    full = make_inert(made(family), live=5)
    optimizer = torch.optim.Adam(full.parameters(), lr=1e-3)
    train(full, optimizer)
    small = copy.deepcopy(full)
    optimizer_small = torch.optim.Adam(small.parameters(), lr=1e-3)
    optimizer_small.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    ht.compress_(small, ht.CompressionConfig(tau=0.0), optimizer_small)
    assert ht.state_sizes(small) == {"": 5}
    assert_consistent(small, optimizer_small)
    for layer, x in ((full, optimizer), (small, optimizer_small)):
        train(layer, x, 4, seed=20)
    assert relative(small(inputs(seed=9)), full(inputs(seed=9))) < 1e-8


@pytest.mark.parametrize("family", LAYERS)
def test_penalty_is_that_of_the_system(family):
    layer = made(family)
    penalty = ht.hankel_penalty(layer)
    penalty.backward()
    assert penalty.item() == pytest.approx(hr.hankel_singular_values(ht.read_system(layer)).sum(), rel=1e-10)
    adapter = ht.adapters.adapter_of(layer)
    assert all(adapter.tensor(name).grad is not None for name in adapter.state_axes)


@pytest.mark.parametrize("family", LAYERS)
def test_further_states_change_nothing(family):
    layer = made(family)
    adapter = ht.adapters.adapter_of(layer)
    values = adapter.values()
    padded = values | adapter.pad(values, 11)
    assert relative(simulated(adapter.read(padded), inputs().numpy()), layer(inputs())) < 1e-12
    assert adapter.read(padded).n == 11


@pytest.mark.parametrize("family", LAYERS)
def test_averaged_copy_that_equals_the_layer_is_cut_as_the_layer(family):
    layer = made(family)
    twin = copy.deepcopy(layer)
    ht.compress_(layer, ht.CompressionConfig(order=4), ema=twin)
    for name, p in layer.named_parameters():
        assert relative(twin.get_parameter(name), p) < 1e-8, name


def test_attribute_that_is_a_tensor_follows_the_size():
    layer = made(ComplexLRU)
    ht.compress_(layer, ht.CompressionConfig(order=3))
    assert layer.state.shape == (3,)


class Stacked(ComplexLRUAdapter):
    """An adapter whose map has no leading axis."""

    def system(self, t):
        return tuple(x[0] for x in super().system(t))


class Transposed(ComplexLRUAdapter):
    """An adapter that takes B for its transpose."""

    def system(self, t):
        return super().system(t | {"B": t["B"].T})


class Forgetful(ComplexLRUAdapter):
    """An adapter with a name that the layer has not."""

    constants: ClassVar = ("D", "bias")


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (Stacked, r"Stacked must fit the tensors of ComplexLRU, nu_log \(8,\).*got rates, B, C and D of shapes"),
        (Transposed, r"Transposed must fit the tensors of ComplexLRU.*B \(8, 2\).*Register an adapter that fits"),
        (Forgetful, "ComplexLRU must have a tensor bias to be read by Forgetful"),
        (adapters.LRUAdapter, "ComplexLRU must have a tensor B_re to be read by LRUAdapter"),
    ],
)
def test_adapters_that_do_not_fit_are_refused_by_name(adapter, message):
    ht.register_adapter(ComplexLRU, adapter)
    with pytest.raises(hr.InputError, match=message):
        ht.read_system(made(ComplexLRU))


def test_layer_of_known_names_with_a_dense_feedthrough_is_refused_with_its_shapes():
    layer = ht.layers.LRU(channels=4, states=8)
    layer.D = torch.nn.Parameter(torch.randn(4, 4))
    with pytest.raises(hr.InputError, match=r"LRUAdapter must fit the tensors of LRU.*D \(4, 4\); got"):
        ht.read_system(layer)


def without_time(system):
    return hr.DiagonalSystem(-np.ones(2) + 0j, np.ones((2, system.m)), np.ones((system.p, 2)), dt=0, output="real")


@pytest.mark.parametrize("family", LAYERS)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: None, "must be a DiagonalSystem, .* got NoneType"),
        (lambda x: "lru.npz", "must be a DiagonalSystem, .* got str"),
        (lambda x: x.rates, "must be a DiagonalSystem, .* got ndarray"),
        (lambda x: x[0].dense() if isinstance(x, hr.DiagonalBank) else x.dense(), "diagonal_layer makes a layer"),
        (lambda x: [], "got 0"),
        (lambda x: hr.balanced_truncation(x, states=2), r"got a (Bank)?Reduction\. Pass \.system"),
    ],
)
def test_what_is_no_system_of_the_layer_is_refused_and_changes_nothing(family, wrong, message):
    layer = made(family)
    before = snapshot(layer)
    with pytest.raises(hr.InputError, match=message):
        ht.write_system(layer, wrong(ht.read_system(layer)))
    assert_unchanged(before, layer)


@pytest.mark.parametrize("family", LAYERS)
def test_systems_of_other_inputs_outputs_times_or_kinds_are_refused(family):
    layer = made(family)
    before = snapshot(layer)
    read = ht.read_system(layer)
    each = list(read) if isinstance(read, hr.DiagonalBank) else [read]
    m, p = each[0].m, each[0].p
    cases = {
        f"must have the {m} inputs and {p} outputs": hr.DiagonalSystem.from_rates(
            each[0].rates, np.ones((8, m + 1)), np.ones((p, 8)), dt=True, output="real"
        ),
        "holds stable discrete systems": without_time(each[0]),
        'output="real"': hr.DiagonalSystem.from_rates(each[0].rates, each[0].B, each[0].C, dt=True),
    }
    for message, system in cases.items():
        with pytest.raises(hr.InputError, match=message):
            ht.write_system(layer, [system, *each[1:]])
    assert_unchanged(before, layer)


@pytest.mark.parametrize("make", [lambda: ht.layers.S5(3, 4), lambda: ht.layers.LRU(3, 4)])
def test_feedthrough_that_a_layer_cannot_hold_is_refused(make):
    layer = make()
    before = snapshot(layer)
    system = ht.read_system(layer)
    with pytest.raises(hr.InputError, match=r"D must be one that .* can hold in D \(3,\), diagonal"):
        ht.write_system(layer, system.with_(D=np.ones((3, 3))))
    assert_unchanged(before, layer)


def test_dense_feedthrough_is_written_where_the_layer_has_one():
    layer = made(ComplexLRU)
    D = np.arange(6.0).reshape(3, 2)
    ht.write_system(layer, ht.read_system(layer).with_(D=D))
    assert np.array_equal(layer.D.detach().numpy(), D)


def test_bank_is_read_as_a_bank_and_written_back():
    layer = ht.layers.S4D(channels=3, states=6).double()
    bank = ht.read_system(layer)
    assert isinstance(bank, hr.DiagonalBank)
    ht.write_system(layer, hr.balanced_truncation(bank, states=4).systems)
    assert ht.state_sizes(layer) == {"": 4}


def test_a_real_pole_is_written_to_a_layer_of_logarithms_of_phases():
    # The guide's adapter gave log(0) for it, and the plan of an LRU of other people failed with "got inf".
    layer = made(ComplexLRU)
    system = ht.read_system(layer)
    rates = np.where(np.arange(system.n) == 2, system.rates.real, system.rates)
    ht.write_system(layer, hr.DiagonalSystem.from_rates(rates, system.B, system.C, system.D, dt=True, output="real"))
    np.testing.assert_allclose(ht.read_system(layer).lam, np.exp(rates), rtol=1e-11)


def test_a_value_that_is_not_finite_is_named():
    with pytest.raises(hr.NumericalError, match=r"The new theta_log must be finite .* real poles"):
        rounded({"theta_log": np.array([0.0, -np.inf])}, {"theta_log": torch.zeros(2)})
