"""Claims about finding, reading and writing state space layers."""

from __future__ import annotations

import copy
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize, prune

import hankelred as hr
import hankelred_torch as ht
import hankelred_torch.adapters.registry as registry_page
from hankelred_torch.adapters import Adapter, LinearAdapter, LRUAdapter, adapter_of

from .adapter_models import STATE_TENSORS, Stack, assert_unchanged, inputs, lru, make_inert, snapshot

OMEGA = np.linspace(0, np.pi, 65)


def response_to(system, u):
    """Simulate a diagonal system with real output, step by step in double precision."""
    u = u.double().numpy()
    x, y = np.zeros((len(u), system.n), dtype=complex), []
    for t in range(u.shape[1]):
        x = x * system.lam + u[:, t] @ system.B.T
        y.append((x @ system.C.T).real + u[:, t] @ system.D.T)
    return np.stack(y, axis=1)


def distance(G, H):
    """Return the largest difference of two frequency responses, relative to the first."""
    G, H = G.frequency_response(OMEGA), H.frequency_response(OMEGA)
    return np.abs(G - H).max() / np.abs(G).max()


@pytest.fixture
def registry(monkeypatch):
    """Undo registrations of a test."""
    monkeypatch.setattr(registry_page, "_REGISTERED", dict(registry_page._REGISTERED))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_system_read_computes_what_the_layer_computes(dtype, tolerance):
    layer, u = lru(dtype=dtype), inputs(dtype=dtype)
    y = response_to(ht.read_system(layer), u)
    assert np.abs(layer(u).detach().double().numpy() - y).max() < tolerance * np.abs(y).max()


def test_rates_are_read_before_they_are_rounded():
    layer = lru(dtype=torch.float32)
    with torch.no_grad():
        layer.nu_log.fill_(-25.0)  # |lam| = 1 - 1.4e-11 is 1 in float32
    assert np.allclose(ht.read_system(layer).rates.real, -np.exp(-25.0), rtol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_layers_are_read_exactly(dtype):
    layer = lru(dtype=dtype)
    assert np.array_equal(ht.read_system(layer).B, ht.read_system(copy.deepcopy(layer).double()).B)


@given(seed=st.integers(0, 1000), states=st.integers(1, 8), channels=st.integers(1, 3))
def test_written_system_is_read_back(seed, states, channels):
    system = ht.read_system(lru(states, channels, seed=seed))
    layer = lru(states, channels, seed=seed + 1)
    ht.write_system(layer, system)
    assert distance(system, ht.read_system(layer)) < 1e-12  # logarithms of rates lose a digit or two of 16


def test_layer_of_another_size_is_written():
    layer, u = lru(8), inputs()
    reduced = hr.balanced_truncation(ht.read_system(layer), states=5).system
    ht.write_system(layer, reduced)
    assert ht.state_sizes(layer) == {"": 5}
    y = response_to(reduced, u)
    assert np.abs(layer(u).detach().numpy() - y).max() < 1e-11 * np.abs(y).max()


def test_layer_of_the_same_size_keeps_its_parameters():
    layer = lru(8)
    before = dict(layer.named_parameters())
    ht.write_system(layer, ht.read_system(lru(8, seed=1)))
    assert all(p is before[name] for name, p in layer.named_parameters())


@pytest.mark.parametrize("pole", [0.9, -0.9, 0.0, 0.5 + 0.1j, 0.5 - 0.1j, 1 - 1e-7])
def test_every_stable_pole_can_be_written(pole):
    layer = lru(1, 1)
    system = hr.DiagonalSystem([pole], [[1.0 + 0j]], [[2.0]], [[0.5]], dt=True, output="real")
    ht.write_system(layer, system)
    # the phase of a positive real pole is 1e-12 instead of 0; 1 - |lam| = 1e-7 divides rounding errors of lam
    assert distance(system, ht.read_system(layer)) < 1e-8


def test_phase_of_a_positive_real_pole_stays_where_it_is():
    layer = lru(1, 1)
    ht.write_system(layer, hr.DiagonalSystem([0.9 + 0j], [[1.0]], [[1.0]], dt=True, output="real"))
    layer(inputs(1)).square().sum().backward()
    assert abs(layer.theta_log.grad.item()) < 1e-9 * abs(layer.nu_log.grad.item())


@pytest.mark.parametrize(
    ("system", "message"),
    [
        (hr.DiagonalSystem([-1.0 + 0j], np.ones((1, 2)), np.ones((2, 1)), dt=0, output="real"), "discrete"),
        (hr.DiagonalSystem([0.5 + 0j], np.ones((1, 2)), np.ones((2, 1)), dt=True), 'output="real"'),
        (hr.DiagonalSystem([0.5 + 0j], np.ones((1, 1)), np.ones((2, 1)), dt=True, output="real"), "2 inputs"),
        (hr.DiagonalSystem([1.5 + 0j], np.ones((1, 2)), np.ones((2, 1)), dt=True, output="real"), "unit circle"),
        (
            hr.DiagonalSystem([0.5 + 0j], np.ones((1, 2)), np.ones((2, 1)), np.ones((2, 2)), dt=True, output="real"),
            "diagonal",
        ),
    ],
)
def test_systems_the_layer_cannot_hold_are_refused_and_change_nothing(system, message):
    layer = lru(4, 2)
    before = snapshot(layer)
    with pytest.raises(hr.InputError, match=message):
        ht.write_system(layer, system)
    assert_unchanged(before, layer)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_tensors_that_are_not_finite_are_named(bad):
    layer = lru()
    with torch.no_grad():
        layer.C_im[0, 1] = bad
    with pytest.raises(hr.InputError, match="C_im must be finite; got 1 NaN or infinite of 24 entries in LRU"):
        ht.read_system(layer)


def test_pole_on_the_unit_circle_is_refused():
    layer = lru()
    with torch.no_grad():
        layer.nu_log[0] = -800.0
    with pytest.raises(hr.StabilityError, match=r"nu_log must be above -745.*got -800"):
        ht.read_system(layer)


def test_half_resized_layer_is_refused():
    layer = lru(8)
    layer.B_re = nn.Parameter(torch.zeros(5, 3))
    with pytest.raises(hr.InputError, match=r"must agree on the number of states.*'B_re': \(5, 3\)"):
        ht.find_ssm_layers(layer)


def test_reading_changes_nothing():
    layer = lru()
    before = snapshot(layer)
    ht.read_system(layer)
    ht.hankel_singular_values(layer)
    assert_unchanged(before, layer)


def test_layers_are_found_by_module_name_in_order():
    assert ht.state_sizes(nn.Sequential(nn.Linear(3, 3), Stack())) == {"1.first": 12, "1.second": 8}


def test_layer_used_twice_is_one_layer():
    layer = lru()
    assert list(ht.find_ssm_layers(nn.Sequential(layer, nn.ReLU(), layer))) == ["0"]


def test_layer_without_adapter_is_refused_with_what_to_do():
    with pytest.raises(hr.InputError, match=r"got torch.nn.modules.linear.Linear\. .* name both to register_adapter"):
        ht.read_system(nn.Linear(2, 2))


class Renamed(nn.Module):
    """A layer of a user, with all that an LRU has."""

    def __init__(self, states=4, channels=2):
        super().__init__()
        inner = lru(states, channels)
        for name, tensor in inner.named_parameters():
            self.register_parameter(name, tensor)


@pytest.mark.parametrize("key", [Renamed, f"{Renamed.__module__}.Renamed"])
def test_users_register_their_own_layers(registry, key):
    assert ht.find_ssm_layers(Renamed()) == {}
    ht.register_adapter(key, LRUAdapter)
    assert ht.state_sizes(Renamed()) == {"": 4}


class Nested(nn.Module):
    """A layer whose tensors, and the number of its states, belong to a submodule."""

    def __init__(self, states=8, channels=3):
        super().__init__()
        self.inner = Renamed(states, channels)
        self.inner.d_state = states


class NestedAdapter(LRUAdapter):
    """Names with dots, translated to those of an LRU where the maps are computed."""

    state_axes: ClassVar = {f"inner.{name}": axis for name, axis in LRUAdapter.state_axes.items()}
    parts: ClassVar = {part: tuple(f"inner.{x}" for x in names) for part, names in LRUAdapter.parts.items()}
    constants = ("inner.D",)

    def system(self, tensors):
        return super().system({name.removeprefix("inner."): x for name, x in tensors.items()})

    def tensors(self, rates, B, C, like):
        like = {name.removeprefix("inner."): x for name, x in like.items()}
        return {f"inner.{name}": x for name, x in super().tensors(rates, B, C, like).items()}

    def normal(self, rates):
        return {f"inner.{name}": x for name, x in super().normal(rates).items()}

    def bank(self, values):
        return LinearAdapter.bank(self, values)

    def sizes(self, states):
        return {"inner.d_state": states}


@pytest.mark.parametrize("cut", ["compress", "write"])
def test_tensors_and_sizes_of_submodules_have_names_with_dots(registry, cut):
    ht.register_adapter(Nested, NestedAdapter)
    layer = Nested()
    make_inert(layer.inner, live=5)
    before = ht.read_system(layer)
    if cut == "compress":
        ht.compress_(layer, ht.CompressionConfig(tau=0.0))
    else:
        ht.write_system(layer, hr.balanced_truncation(before, states=5).system)
    assert (ht.state_sizes(layer)[""], layer.inner.d_state) == (5, 5)
    assert distance(before, ht.read_system(layer)) < 1e-11


@pytest.mark.parametrize(("key", "adapter"), [("LRU", LRUAdapter), (3, LRUAdapter), (Renamed, Renamed)])
def test_registrations_of_the_wrong_kind_are_refused(registry, key, adapter):
    with pytest.raises(hr.InputError, match=r"must be a (subclass|module class)"):
        ht.register_adapter(key, adapter)


def test_class_registered_for_a_layer_it_does_not_fit_says_so(registry):
    ht.register_adapter(nn.Linear, LRUAdapter)
    with pytest.raises(hr.InputError, match="Linear must have a tensor nu_log to be read by LRUAdapter"):
        ht.find_ssm_layers(nn.Linear(2, 2))


def test_parametrized_tensors_are_read_but_not_replaced():
    layer = lru()
    parametrize.register_parametrization(layer, "nu_log", nn.Identity())
    assert ht.read_system(layer).n == 8
    with pytest.raises(hr.InputError, match=r"parametrized one\. .*remove_parametrizations\(layer, 'nu_log'\) first"):
        ht.write_system(layer, ht.read_system(lru(5)))


def test_pruned_tensors_are_not_replaced():
    layer = lru()
    prune.l1_unstructured(layer, "B_re", 3)
    with pytest.raises(hr.InputError, match=r"pruned one\. .*prune\.remove\(layer, 'B_re'\) first"):
        ht.write_system(layer, ht.read_system(lru(5)))


def test_plain_tensors_are_not_replaced():
    layer = lru()
    value = layer.B_re.detach()
    del layer.B_re
    layer.B_re = value
    with pytest.raises(hr.InputError, match="B_re of LRU must be a parameter or buffer to be replaced"):
        ht.write_system(layer, ht.read_system(lru(5)))


def test_states_kept_as_they_are_keep_their_parameters():
    layer = make_inert(lru(8), live=5)
    adapter = adapter_of(layer)
    values = adapter.values()
    reduction = adapter.analyse(values).reduce(5).reduction
    new = adapter.rewrite(values, reduction)
    order = np.argsort(new["nu_log"])
    old_order = np.argsort(values["nu_log"][:5])
    for name in STATE_TENSORS:
        axis = adapter.state_axes[name]
        kept = values[name].take(range(5), axis).take(old_order, axis)
        # rounding of the balancing and of phases; theta_log of a pole in the lower half plane is found again too
        assert np.abs(new[name].take(order, axis) - kept).max() < 1e-11, name


def test_adapter_of_a_family_is_a_subclass_of_adapter():
    assert issubclass(LRUAdapter, Adapter)
    assert adapter_of(lru()).kind == "lti"
