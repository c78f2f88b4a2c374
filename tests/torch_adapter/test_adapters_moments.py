"""Claims about gradients and their averages through a cut of layers in continuous time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import hankelred as hr
import hankelred_torch as ht
from hankelred_torch.adapters import adapter_of
from hankelred_torch.adapters.transport import Filled, unwrapped

from .continuous_layers import (
    FAMILIES,
    assert_same_states,
    inputs,
    made,
    make_inert,
    run,
    s4d,
    s5,
    ssm_kernel_with_shared_poles,
)


def gradients(layer, u):
    """Return the gradient of a loss that pulls the output to another one, by tensor name."""
    layer.zero_grad()
    y = run(layer, u)
    (y - u.cumsum(1).repeat(1, 1, y.shape[2] // u.shape[2])).square().mean().backward()
    adapter = adapter_of(layer)
    return {name: layer.get_parameter(name).grad.numpy().copy() for name in adapter.state_axes}


def random_squares(values, adapter):
    """Return positive second moments for the tensors of a layer, those of complex ones with two positive parts."""
    generator = np.random.default_rng(0)
    squares = {}
    for name in adapter.state_axes:
        shape = values[name].shape
        squares[name] = generator.uniform(0.5, 2.0, shape)
        if np.iscomplexobj(values[name]):
            squares[name] = squares[name] + 1j * generator.uniform(0.5, 2.0, shape)
    return squares


def test_phases_are_those_next_to_the_given_ones():
    rates = unwrapped(np.array([-0.1 + 0.2j, -0.1 + 3.0j]), np.array([12.0, -3.3]))
    assert np.allclose(np.exp(rates), np.exp([-0.1 + 0.2j, -0.1 + 3.0j]))
    assert np.allclose(rates.imag, [0.2 + 4 * np.pi, 3.0 - 2 * np.pi])


@pytest.mark.parametrize("family", [*FAMILIES, ssm_kernel_with_shared_poles])
def test_gradient_is_carried_exactly_where_dropped_states_are_inert(family):
    layer = make_inert(made(family), live=5)
    u = inputs(40, channels=6 if family is ssm_kernel_with_shared_poles else 3)
    adapter = adapter_of(layer)
    values, first = adapter.values(), gradients(layer, u)
    reduction = adapter.analyse(values).reduce(5).reduction
    carried = adapter.carry_first(values, reduction, first)
    ht.compress_(layer, ht.CompressionConfig(order=5))
    expected = gradients(layer, u)
    for name, g in expected.items():
        assert np.abs(carried[name] - g).max() < 1e-6 * np.abs(g).max(), name


@pytest.mark.parametrize("family", [*FAMILIES, ssm_kernel_with_shared_poles])
def test_first_moments_of_kept_states_are_kept_whatever_they_are(family):
    # averages over steps that moved the parameters are no gradient at any of them: log_step has a part of its own
    layer = make_inert(made(family), live=5)
    adapter = adapter_of(layer)
    values = adapter.values()
    reduction = adapter.analyse(values).reduce(5).reduction
    averages = random_squares(values, adapter)
    for name, axis in adapter.state_axes.items():
        if name != "C":  # nothing else of a state without output has a gradient
            np.moveaxis(averages[name], axis, 0)[5:] = 0
    new = adapter.rewrite(values, reduction)
    poles = next(name for name in ("Lambda", "Lambda_im", "A_imag") if name in values)
    carried = adapter.carry_first(values, reduction, averages)
    assert_same_states(layer, carried | {"poles": new[poles]}, averages, values, live=5, rtol=1e-6)


def test_phases_of_reduced_states_do_not_matter_where_only_products_count():
    layer, u = made(s4d), inputs(40)
    adapter = adapter_of(layer)
    values, first = adapter.values(), gradients(layer, u)
    reduction = adapter.analyse(values).reduce(4).reduction
    turned = tuple(turn(x, np.exp(1j * np.arange(1, 5))) for x in reduction)
    expected, found = (adapter.carry_first(values, x, first) for x in (reduction, turned))
    for name, g in expected.items():
        assert np.abs(found[name] - g).max() < 1e-9 * np.abs(g).max(), name


def turn(reduction, phase):
    """Return a reduction with the phases of its pairs turned, the same input-output behaviour."""
    system, pairs = reduction.system, reduction.order - reduction.system.n
    stored = np.where(np.arange(system.n) < pairs, phase[: system.n], 1.0)
    full = np.concatenate([stored[:pairs], stored[:pairs].conj(), stored[pairs:]])
    B, C = system.B * stored[:, None], system.C / stored
    turned = hr.DiagonalSystem.from_rates(system.rates, B, C, system.D, dt=True, output="real")
    return replace(reduction, system=turned, T=reduction.T / full, Ti=reduction.Ti * full[:, None])


def test_states_that_stand_for_conjugates_have_the_phases_of_conjugates():
    # unaligned, a pair is stored by its pole above the real axis, whichever was stored before
    rates = np.array([-0.1 - 0.5j, -0.2 + 1.0j, -0.3 - 2.0j])
    system = hr.DiagonalSystem.from_rates(rates, np.ones((3, 1)), [[1.0, 2.0, 0.0]], dt=True, output="real")
    filled = Filled([hr.balance(system).reduce(states=2)])
    assert np.sort(filled.mean(rates.imag[None], odd=True)[0]) == pytest.approx([0.5, 1.0], abs=1e-9)
    assert np.sort(filled.mean(rates.imag[None])[0]) == pytest.approx([-0.5, 1.0], abs=1e-9)


@pytest.mark.parametrize("family", [*FAMILIES, ssm_kernel_with_shared_poles])
def test_second_moments_of_kept_states_are_kept(family):
    layer = make_inert(made(family), live=5)
    adapter = adapter_of(layer)
    values = adapter.values()
    reduction = adapter.analyse(values).reduce(5).reduction
    squares = random_squares(values, adapter)
    carried = adapter.carry_second(values, reduction, squares)
    new = adapter.rewrite(values, reduction)
    poles = next(name for name in ("Lambda", "Lambda_im", "A_imag") if name in values)
    assert_same_states(layer, carried | {"poles": new[poles]}, squares, values, live=5, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_second_moments_are_not_negative_and_fit_the_new_tensors(family):
    layer = made(family)
    adapter = adapter_of(layer)
    values = adapter.values()
    reduction = adapter.analyse(values).reduce(4).reduction
    carried = adapter.carry_second(values, reduction, random_squares(values, adapter))
    new = adapter.rewrite(values, reduction)
    for name, x in carried.items():
        assert x.shape == new[name].shape, name
        assert np.all(x.real >= 0), name
        assert np.all(x.imag >= 0), name


@pytest.mark.parametrize("family", FAMILIES)
def test_carried_gradient_points_where_the_gradient_of_the_reduced_layer_does(family):
    # exact only for inert states; measured for these layers: cosines of .911 to .99999
    layer, u = made(family), inputs(100)
    adapter = adapter_of(layer)
    values, first = adapter.values(), gradients(layer, u)
    reduction = adapter.analyse(values).reduce(6).reduction
    carried = adapter.carry_first(values, reduction, first)
    ht.compress_(layer, ht.CompressionConfig(order=6))
    expected = gradients(layer, u)
    a, b = (
        np.concatenate([np.asarray(x[name]).ravel() for name in ("B", "C") if name in x]) for x in (carried, expected)
    )
    assert np.real(np.vdot(a, b)) > 0.85 * np.linalg.norm(a) * np.linalg.norm(b)


@pytest.mark.parametrize("family", [s5, s4d])
def test_moments_of_frozen_tensors_are_not_needed(family):
    layer = made(family)
    adapter = adapter_of(layer)
    values = adapter.values()
    reduction = adapter.analyse(values).reduce(4).reduction
    only = {"C": np.ones_like(values["C"])}
    for carry in (adapter.carry_first, adapter.carry_second):
        assert np.isfinite(carry(values, reduction, only)["C"]).all()


def test_steps_of_reduced_states_are_means_of_the_old_ones():
    layer = made(s5)
    before = layer.log_step.detach()
    ht.compress_(layer, ht.CompressionConfig(order=4))
    assert before.min() <= layer.log_step.min()
    assert layer.log_step.max() <= before.max()


def test_rates_of_a_pole_at_zero_are_limited():
    system = hr.DiagonalSystem([0.0 + 0j, 0.5], np.ones((2, 1)), np.ones((1, 2)), dt=True, output="real")
    written = adapter_of(ht.layers.LRU(1, 2)).write(system)
    assert -np.exp(written["nu_log"]) == pytest.approx([-80.0, np.log(0.5)], rel=1e-14)
