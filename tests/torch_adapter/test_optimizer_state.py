"""Claims about what optimizers remember through a cut."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hankelred_torch as ht
from hankelred_torch.adapters import adapter_of, transport

from .adapter_models import STATE_TENSORS, Stack, assert_consistent, inputs, lru, make_inert, train

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "sgd plain": lambda p: torch.optim.SGD(p, lr=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-3),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-3),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "rmsprop centered": lambda p: torch.optim.RMSprop(p, lr=1e-3, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-3, initial_accumulator_value=0.1),
}
APPROXIMATE = {
    # averages of past steps start from zero again; Adafactor scales by means over all states, dropped ones included
    "rmsprop momentum": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-3),
    # its steps of own sizes begin again
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
    "asgd": lambda p: torch.optim.ASGD(p, lr=1e-3),
}


def cut(model, optimizer, order, policy="transport"):
    return ht.compress_(model, ht.CompressionConfig(order=order, optimizer_state=policy), optimizer)


def state_copy(layer, optimizer):
    """Return the state of a layer's tensors by name, copied."""
    return {
        name: {k: torch.as_tensor(v).clone() for k, v in optimizer.state[getattr(layer, name)].items()}
        for name in STATE_TENSORS
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_if_inert_states_had_never_been_there(name):
    # the strongest test of transport: the cut only selects, and parameters and averages of the rest stay theirs, in
    # the last digits; so the outputs of both models stay together through further steps of the optimizer
    full = make_inert(lru(9), live=5)
    optimizer = OPTIMIZERS[name](full.parameters())
    train(full, optimizer, 4)
    small = copy.deepcopy(full)
    optimizer_small = OPTIMIZERS[name](small.parameters())
    optimizer_small.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    report = cut(small, optimizer_small, 5)
    assert report.sizes == {"": 5}
    for model, x in ((full, optimizer), (small, optimizer_small)):
        train(model, x, 6, seed=1)
    full_output, small_output = full(inputs()), small(inputs())
    # the optimizers divide by roots of second moments, which magnifies the rounding of the balancing
    assert (full_output - small_output).abs().max() < 1e-9 * full_output.abs().max()


@pytest.mark.parametrize("name", [*OPTIMIZERS, *APPROXIMATE])
@pytest.mark.parametrize("policy", ["transport", "reset"])
def test_every_optimizer_trains_every_parameter_after_the_cut(name, policy):
    model = Stack()
    optimizer = (OPTIMIZERS | APPROXIMATE)[name](model.parameters())
    train(model, optimizer, 3)
    cut(model, optimizer, 4, policy)
    assert_consistent(model, optimizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, optimizer, 1, seed=9)
    stuck = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert stuck == []


def test_other_layers_keep_their_state():
    model = Stack()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, 3)
    before = optimizer.state[model.head.weight]
    cut(model, optimizer, {"first": 4})
    assert optimizer.state[model.head.weight] is before
    assert optimizer.state[model.second.B_re]["exp_avg"].shape == (8, 3)


def test_step_counts_are_kept():
    layer = lru()
    optimizer = OPTIMIZERS["nadam"](layer.parameters())
    train(layer, optimizer, 3)
    before = state_copy(layer, optimizer)
    cut(layer, optimizer, 4)
    after = state_copy(layer, optimizer)
    for name in STATE_TENSORS:
        assert list(after[name]) == list(before[name])
        assert after[name]["step"] == before[name]["step"] == 3
        assert after[name]["mu_product"] == before[name]["mu_product"]


def test_reset_starts_the_averages_and_their_bias_correction_anew():
    layer = lru()
    optimizer = OPTIMIZERS["adam"](layer.parameters())
    train(layer, optimizer, 3)
    cut(layer, optimizer, 4, "reset")
    assert layer.B_re not in optimizer.state
    train(layer, optimizer, 1)
    assert optimizer.state[layer.B_re]["step"] == 1
    assert optimizer.state[layer.D]["step"] == 4


def test_reset_gives_adagrad_its_initial_sum():
    # Adagrad makes its state when it is constructed and never again
    layer = lru()
    optimizer = OPTIMIZERS["adagrad"](layer.parameters())
    train(layer, optimizer, 3)
    cut(layer, optimizer, 4, "reset")
    assert torch.equal(optimizer.state[layer.C_re]["sum"], torch.full((3, 4), 0.1, dtype=torch.float64))
    assert optimizer.state[layer.C_re]["step"] == 0


def test_optimizer_that_has_not_stepped_has_nothing_to_carry():
    layer = lru()
    optimizer = OPTIMIZERS["adam"](layer.parameters())
    cut(layer, optimizer, 4)
    assert len(optimizer.state) == 0
    train(layer, optimizer, 1)


def test_fused_step_after_the_cut_is_the_plain_step():
    # a fused optimizer does not notice a state of the wrong size: it reads the wrong rows
    layers = [lru(dtype=torch.float32) for _ in range(2)]
    optimizers = [
        torch.optim.AdamW(x.parameters(), lr=1e-2, fused=f) for x, f in zip(layers, (True, False), strict=True)
    ]
    for layer, optimizer in zip(layers, optimizers, strict=True):
        train(layer, optimizer, 3)
        cut(layer, optimizer, 4)
        assert optimizer.state[layer.B_re]["exp_avg"].shape == (4, 3)
        train(layer, optimizer, 1)
    fused, plain = (dict(x.named_parameters()) for x in layers)
    for name, p in plain.items():
        # both round to float32 at every step, and divide by roots of second moments
        assert torch.allclose(fused[name], p, rtol=1e-4, atol=1e-4), name


def dense_gradient(layer, reduction, batches):
    """Return the mean gradient of the reduced layer's poles, as the image of that of a copy with a dense state matrix.

    The copy runs in the doubled coordinates ``[x; conj(x)]``; its gradient comes from autograd, off the diagonal too.
    """
    system = ht.read_system(layer)
    A = torch.from_numpy(np.diag(np.r_[system.lam, system.lam.conj()])).requires_grad_()
    B = torch.from_numpy(np.vstack([system.B, system.B.conj()]))
    C = torch.from_numpy(np.hstack([system.C, system.C.conj()]) / 2)
    D = torch.tensor(system.D.tolist(), dtype=torch.float64)
    total = torch.zeros_like(A)
    for u, target in batches:
        x, outputs = torch.zeros(len(u), len(A), dtype=A.dtype), []
        for step in u.unbind(1):
            x = x @ A.T + step.to(A.dtype) @ B.T
            outputs.append((x @ C.T).real + step @ D.T)
        loss = (torch.stack(outputs, 1) - target).square().mean()
        total += torch.autograd.grad(loss, A)[0]
    M = (total / len(batches)).numpy()
    poles = np.diag(reduction.T.conj().T @ M @ reduction.Ti.conj().T)
    new = reduction.system
    pairs = reduction.order - new.n
    return new.lam.conj() * np.r_[2 * poles[:pairs], poles[2 * pairs :].real]


@pytest.mark.parametrize("seed", range(3))
def test_transported_pole_moments_are_those_of_a_dense_copy_of_the_layer(seed, monkeypatch):
    exact = functools.partial(transport.carry_first_moments, staleness=0.0)
    monkeypatch.setattr(transport, "carry_first_moments", exact)  # gradients at one point, not averages of a run
    layer = lru(8, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(2, 4, 30, 3, generator=generator, dtype=torch.float64) for _ in range(3)]
    for u, target in batches:
        (layer(u) - target).square().mean().div(len(batches)).backward()
    adapter = adapter_of(layer)
    values = adapter.values()
    reduction = adapter.analyse(values).reduce(4).reduction
    moments = {name: getattr(layer, name).grad.numpy() for name in STATE_TENSORS}
    carried = adapter.carry_first(values, reduction, moments)
    new = adapter.rewrite(values, reduction)
    rates = dense_gradient(layer, reduction, batches)
    # through the logarithms: d rate / d nu_log = -nu, d rate / d theta_log = i theta
    for got, wanted in (
        (carried["nu_log"], -np.exp(new["nu_log"]) * rates.real),
        (carried["theta_log"], np.exp(new["theta_log"]) * rates.imag),
    ):
        # divided by pole distances; the closest of these layers are some .05 apart
        assert np.abs(got - wanted).max() < 1e-9 * np.abs(wanted).max()


@given(seed=st.integers(0, 1000))
def test_transported_gradient_of_selected_states_is_their_gradient(seed):
    # exact on inert states: the gradient of the cut layer, by autograd, is the one carried over
    layer, u = make_inert(lru(8, seed=seed), live=4), inputs(seed=seed)
    layer(u).pow(2).sum().backward()
    gradients = {name: getattr(layer, name).grad.numpy().copy() for name in STATE_TENSORS}
    adapter = adapter_of(layer)
    values = adapter.values()
    reduction = adapter.analyse(values).reduce(4).reduction
    carried = adapter.carry_first(values, reduction, gradients)
    ht.compress_(layer, ht.CompressionConfig(order=4))
    layer(u).pow(2).sum().backward()
    for name in STATE_TENSORS:
        truth = getattr(layer, name).grad.numpy()
        # 1e-12 where poles are apart; random ones can be close, and the balancing mixes close ones
        assert np.abs(carried[name] - truth).max() < 1e-9 * max(np.abs(truth).max(), 1e-3), name


def step_in_place(layer, seed):
    """Return an optimizer without step length whose momentum is the gradient of one batch."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0, momentum=0.9)
    train(layer, optimizer, 1, seed=seed, length=60)
    return optimizer


def test_transported_moments_point_along_the_gradient_of_the_cut_layer():
    # an estimate where states are lost; slicing by index attaches moments to other states, cosines near 0
    cosines = []
    for seed in range(5):
        layer = lru(12, seed=seed)
        optimizer = step_in_place(layer, seed)
        cut(layer, optimizer, 8)
        carried, truth = (state_copy(layer, x) for x in (optimizer, step_in_place(layer, seed)))
        pairs = [[x[name]["momentum_buffer"].ravel() for x in (carried, truth)] for name in STATE_TENSORS]
        cosines.append([torch.cosine_similarity(x, y, 0).item() for x, y in pairs])
    assert np.median(cosines, axis=0).min() > 0.9


def test_pole_moments_fall_back_to_the_diagonal_where_those_of_c_are_missing():
    # the off-diagonal ones need the moments of B and C; with half of them they would be wrong
    adapter = adapter_of(lru(8))
    values = adapter.values()
    reduction = adapter.analyse(values).reduce(4).reduction
    generator = np.random.default_rng(0)
    moments = {name: generator.standard_normal(values[name].shape) for name in STATE_TENSORS[:5]}
    with_B = adapter.carry_first(values, reduction, moments)
    without = adapter.carry_first(values, reduction, {name: moments[name] for name in ("nu_log", "theta_log")})
    for name in ("nu_log", "theta_log"):
        assert np.array_equal(with_B[name], without[name])


def test_averages_of_past_steps_start_from_zero():
    layer = lru()
    optimizer = APPROXIMATE["rmsprop momentum"](layer.parameters())
    train(layer, optimizer, 3)
    cut(layer, optimizer, 4)
    state = optimizer.state[layer.B_re]
    assert torch.equal(state["momentum_buffer"], torch.zeros(4, 3, dtype=torch.float64))
    assert state["square_avg"].min() > 0


def test_factored_second_moments_are_those_of_the_states_kept():
    layer = make_inert(lru(9), live=5)
    optimizer = APPROXIMATE["adafactor"](layer.parameters())
    train(layer, optimizer, 3)

    def second_moments():
        state = optimizer.state[layer.B_im]
        return state["row_var"] * state["col_var"] / state["row_var"].mean()

    before = second_moments()[:5]
    cut(layer, optimizer, 5)
    # rows by size: the cut may order states anew
    assert torch.allclose(second_moments().sort(0).values, before.sort(0).values, rtol=1e-9)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="Muon came with torch 2.9")
def test_muon_and_adamw_share_a_layer():
    layer = lru(dtype=torch.float32)
    optimizers = [
        torch.optim.Muon([p for p in layer.parameters() if p.ndim == 2]),
        torch.optim.AdamW([p for p in layer.parameters() if p.ndim == 1]),
    ]
    train(layer, optimizers, 3)
    ht.compress_(layer, ht.CompressionConfig(order=4), optimizers)
    assert_consistent(layer, *optimizers)
    train(layer, optimizers, 1)


@given(seed=st.integers(0, 1000), order=st.integers(1, 7))
def test_transported_second_moments_are_finite_and_not_negative(seed, order):
    layer = lru(8, seed=seed, dtype=torch.float32)
    optimizer = torch.optim.Adam(layer.parameters(), amsgrad=True)
    train(layer, optimizer, 2, seed=seed)
    cut(layer, optimizer, order)
    for name in STATE_TENSORS:
        for key in ("exp_avg_sq", "max_exp_avg_sq"):
            second = optimizer.state[getattr(layer, name)][key]
            assert second.dtype == torch.float32
            assert torch.isfinite(second).all()
            assert second.min() >= 0


def test_states_keep_their_dtype():
    layer = lru(dtype=torch.float32)
    optimizer = OPTIMIZERS["adam"](layer.parameters())
    train(layer, optimizer, 2)
    for state in optimizer.state.values():
        state["exp_avg"] = state["exp_avg"].bfloat16()
    cut(layer, optimizer, 4)
    assert optimizer.state[layer.B_re]["exp_avg"].dtype == torch.bfloat16
    assert optimizer.state[layer.B_re]["exp_avg_sq"].dtype == torch.float32
