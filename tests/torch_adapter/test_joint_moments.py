"""First and second moments after a cut are those that one optimizer can have: no step is longer than before."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import hankelred_torch as ht
from hankelred_torch.adapters.transport import raised

from .continuous_layers import FAMILIES, inputs, made, run, ssm_kernel_with_shared_poles

OPTIMIZERS = {
    "adam": (lambda p: torch.optim.Adam(p, lr=1e-3), "exp_avg", "exp_avg_sq"),
    "nadam": (lambda p: torch.optim.NAdam(p, lr=1e-3), "exp_avg", "exp_avg_sq"),
    "amsgrad": (lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True), "exp_avg", "max_exp_avg_sq"),
    "centred rmsprop": (lambda p: torch.optim.RMSprop(p, lr=1e-3, centered=True), "grad_avg", "square_avg"),
}


def parts(x):
    return [x.real, x.imag] if x.is_complex() else [x]


def largest_ratio(optimizer, tensors, first, second):
    """Return the largest ratio of a first moment to the root of its second moment, infinite where that is 0."""
    found = 0.0
    for p in tensors:
        state = optimizer.state[p]
        for m, v in zip(parts(state[first]), parts(state[second]), strict=True):
            used = m != 0
            found = max(found, (m[used].double().abs() / v[used].double().sqrt()).max().item() if used.any() else 0.0)
    return found


def step(layer, optimizer, u):
    y = run(layer, u)
    (y - u.cumsum(1).repeat(1, 1, y.shape[2] // u.shape[2])).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def state_tensors(layer):
    return [layer.get_parameter(name) for name in ht.adapters.adapter_of(layer).state_axes]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("family", [*FAMILIES, ssm_kernel_with_shared_poles, lambda: ht.layers.LRU(3, 8)])
def test_no_entry_has_a_larger_ratio_of_moments_than_the_layer_had(family, name):
    layer = made(family)
    make, first, second = OPTIMIZERS[name]
    optimizer = make(layer.parameters())
    for seed in range(3):
        step(layer, optimizer, inputs(40, 6 if family is ssm_kernel_with_shared_poles else 3, seed=seed))
    before = largest_ratio(optimizer, state_tensors(layer), first, second)
    for order in (6, 4, 2):
        ht.compress_(layer, ht.CompressionConfig(order=order), optimizer)
        assert largest_ratio(optimizer, state_tensors(layer), first, second) <= before * (1 + 1e-9)


@pytest.mark.parametrize("order", [24, 20, 12])
@pytest.mark.parametrize(
    "family", [lambda: ht.layers.S4D(4, 32), lambda: ht.layers.S5(4, 32), lambda: ht.layers.LRU(4, 32)]
)
def test_step_without_gradient_after_a_cut_is_a_few_learning_rates_long(family, order):
    # stochastic depth drops the layer in this step; a second moment of 0 made one of 2.5 million learning rates
    torch.manual_seed(0)
    layer = family()
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    for _ in range(3):
        layer(torch.randn(4, 32, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    ht.compress_(layer, ht.CompressionConfig(order=order), optimizer)
    before = [p.detach().clone() for p in layer.parameters()]
    (0 * layer(torch.randn(4, 32, 4))).sum().backward()
    optimizer.step()
    moved = max((p.detach() - x).abs().max().item() for p, x in zip(layer.parameters(), before, strict=True))
    assert moved < 10 * 1e-3


def test_cut_after_long_training_leaves_moments_that_adam_can_have():
    torch.manual_seed(2)
    layer = ht.layers.S5(4, 24)
    model = nn.Sequential(nn.Linear(2, 4), layer, nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        u = torch.randn(4, 32, 2)
        (model(u) - u.cumsum(1)[..., :1] / 8).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    ht.compress_(model, ht.CompressionConfig(order=12), optimizer)
    # Cauchy-Schwarz for betas (.9, .999): m^2 <= (1 - .9)^2 / ((1 - .999) (1 - .81 / .999)) v
    assert largest_ratio(optimizer, state_tensors(layer), "exp_avg", "exp_avg_sq") <= 7.28


def test_moments_that_fit_each_other_are_left_as_they_are():
    m, v = {"x": np.array([1.0, -2.0])}, {"x": np.array([1.0, 4.0])}
    assert np.array_equal(raised((m, v), (m, v))["x"], v["x"])
    assert np.array_equal(raised((m, {"x": 0 * v["x"]}), (m, v))["x"], [1.0, 4.0])
    z = {"x": np.array([3.0 + 4.0j])}
    assert raised((z, {"x": np.array([1.0 + 0j])}), (m, v))["x"] == 9 + 16j


def test_second_moments_too_small_for_single_precision_judge_nothing():
    before = {"x": np.array([1.0, 1e-20])}, {"x": np.array([1.0, 1e-45])}
    assert raised(({"x": np.array([2.0])}, {"x": np.array([0.0])}), before)["x"] == 4.0
