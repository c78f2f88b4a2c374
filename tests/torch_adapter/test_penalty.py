"""The Hankel penalty: the number it says it is, its gradient, and what training with it does."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import hankelred_torch as ht
from hankelred.errors import InputError
from hankelred_torch.penalty import HankelPenalty

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
    penalty = HankelPenalty(model, strength=1.0, every=1)
    penalty().backward()
    ht.compress_(model, ht.CompressionConfig(order=4))
    value = penalty()
    assert abs(value.item() / from_the_core(model, 1) - 1) < 1e-13
    value.backward()
    assert model.first.nu_log.grad.shape == (4,)


def test_mean_over_steps_does_not_depend_on_how_often_it_is_evaluated():
    model = lru()
    means = [sum(penalty() for _ in range(12)).item() / 12 for penalty in penalties(model, (1, 3, 4))]
    assert all(math.isclose(mean, 1e-2 * from_the_core(model, 1), rel_tol=1e-12) for mean in means)


def penalties(model, frequencies):
    return [HankelPenalty(model, 1e-2, every=every) for every in frequencies]


def test_steps_in_between_cost_no_evaluation_and_have_no_gradient():
    penalty = HankelPenalty(lru(), strength=1.0, every=3)
    assert [penalty().requires_grad for _ in range(7)] == [True, False, False, True, False, False, True]


def test_strength_zero_is_no_penalty():
    assert not HankelPenalty(lru(), strength=0)().requires_grad


def test_count_of_steps_goes_on_from_a_checkpoint():
    model = lru()
    first, second = penalties(model, (3, 3))
    first()
    second.load_state_dict(first.state_dict())
    assert [second().requires_grad for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize("p", [0.5, math.inf, math.nan, True])
def test_powers_without_a_finite_gradient_are_refused(p):
    with pytest.raises(InputError, match="p must be a number of at least 1"):
        ht.hankel_penalty(lru(), p)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": -1.0}, "strength must be"),
        ({"strength": 1.0, "p": 0.9}, "p must be"),
        ({"strength": 1.0, "every": 0}, "every must be"),
        ({"strength": 1.0, "every": 2.0}, "every must be"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        HankelPenalty(lru(), **arguments)


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
