"""The Hankel penalty: the number it says it is, its gradient, and what training with it does."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import hankelred_torch as ht
from hankelred.errors import InputError

from .adapter_models import Stack, lru, make_inert


def from_the_core(model: nn.Module, p: float) -> float:
    """The definition: powers of what `hankel_singular_values` reads from the parameters."""
    return sum(float((hsv**p).sum()) for hsv in ht.hankel_singular_values(model).values())


@pytest.mark.parametrize("p", [1, 1.5, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_penalty_is_the_sum_of_powers_of_all_hsv_of_all_layers(p, dtype):
    model = Stack(dtype=dtype)
    penalty = ht.hankel_penalty(model, p)
    assert penalty.dtype == dtype
    assert abs(penalty.item() / from_the_core(model, p) - 1) < (1e-13 if dtype == torch.float64 else 1e-7)


@pytest.mark.parametrize("layer", [ht.layers.LRU, ht.layers.S5, ht.layers.S4D])
def test_penalty_is_the_sum_of_hsv_for_every_family_of_layers(layer):
    torch.manual_seed(0)
    model = layer(3, 8)
    penalty = ht.hankel_penalty(model)
    assert abs(penalty.item() / from_the_core(model, 1) - 1) < 1e-6  # returned in float32
    penalty.backward()
    assert any(x.grad is not None and x.grad.abs().max() > 0 for x in model.parameters())


@pytest.mark.parametrize("p", [1, 2])
def test_gradient_agrees_with_differences(p):
    layer = lru(states=4, channels=2)
    names = [name for name, _ in layer.named_parameters()]

    def penalty(*parameters):
        with torch.no_grad():
            copy = lru(states=4, channels=2)
        for name, parameter in zip(names, parameters, strict=True):
            delattr(copy, name)
            setattr(copy, name, parameter)
        return ht.hankel_penalty(copy, p)

    parameters = [x.detach().clone().requires_grad_() for x in layer.parameters()]
    assert torch.autograd.gradcheck(penalty, parameters)


@pytest.mark.parametrize("p", [1, 3])
def test_gradient_is_finite_at_zero_and_repeated_hsv(p):
    layer = make_inert(lru(states=8), live=4)
    with torch.no_grad():
        for name in ht.adapters.LRUAdapter.state_axes:  # the fourth state becomes a copy of the third
            x = getattr(layer, name)
            (x.T if name.startswith("C") else x)[3] = (x.T if name.startswith("C") else x)[2]
    hsv = ht.hankel_singular_values(layer)[""]
    assert (hsv[-10:] < 1e-15 * hsv[0]).all()
    ht.hankel_penalty(layer, p).backward()
    assert all(torch.isfinite(x.grad).all() for name, x in layer.named_parameters() if name != "D")


def test_descent_brings_the_tail_down():
    model = Stack()
    before = ht.hankel_singular_values(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    for _ in range(30):
        optimizer.zero_grad()
        ht.hankel_penalty(model).backward()
        optimizer.step()
    for name, hsv in ht.hankel_singular_values(model).items():
        assert hsv.sum() < 0.5 * before[name].sum()


def test_penalty_works_after_a_cut():
    model = Stack()
    ht.hankel_penalty(model).backward()
    ht.compress_(model, ht.CompressionConfig(order=4))
    value = ht.hankel_penalty(model)
    assert abs(value.item() / from_the_core(model, 1) - 1) < 1e-13
    value.backward()
    assert model.first.nu_log.grad.shape == (4,)


@pytest.mark.parametrize("p", [0.5, math.inf, math.nan, True, "1", None])
def test_powers_without_a_finite_gradient_are_refused(p):
    with pytest.raises(InputError, match="p must be "):
        ht.hankel_penalty(lru(), p)


def test_model_without_state_space_layers_is_refused():
    with pytest.raises(InputError, match="must contain a state space layer"):
        ht.hankel_penalty(nn.Linear(2, 2))


def test_layer_family_without_differentiable_system_is_refused_by_name():
    class Family(ht.adapters.LRUAdapter):
        tensors_of_system = ht.adapters.Adapter.tensors_of_system

    class Layer(ht.layers.LRU):
        pass

    ht.register_adapter(Layer, Family)
    with pytest.raises(InputError, match="Family must have a method tensors_of_system for penalties; got none"):
        ht.hankel_penalty(Layer(2, 3))
