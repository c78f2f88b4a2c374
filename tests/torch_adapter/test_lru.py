"""The LRU layer: what it computes, how it starts, and that it can be shrunk by replacing its parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hankelred.errors import InputError
from hankelred_torch.layers import LRU
from hankelred_torch.ops import state_space

STATE_AXES = {"nu_log": 0, "theta_log": 0, "gamma_log": 0, "B_re": 0, "B_im": 0, "C_re": 1, "C_im": 1}


def layer(channels: int = 3, states: int = 7, seed: int = 0, **ring: float) -> LRU:
    torch.manual_seed(seed)
    return LRU(channels, states, **ring)


def sequences(batch: int, length: int, channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, length, channels, generator=torch.Generator().manual_seed(5)).to(dtype)


def formula(lru: LRU, u: Tensor) -> Tensor:
    """The definition, from the parameters, one step after the other."""
    parameters = {name: p.double() for name, p in lru.named_parameters()}
    lam = torch.exp(torch.complex(-parameters["nu_log"].exp(), parameters["theta_log"].exp()))
    gamma = parameters["gamma_log"].exp()
    B = torch.complex(parameters["B_re"], parameters["B_im"])
    C = torch.complex(parameters["C_re"], parameters["C_im"])
    x, outputs = torch.zeros(len(u), len(lam), dtype=torch.complex128), []
    for t in range(u.shape[1]):
        x = lam * x + gamma * (u[:, t].to(B.dtype) @ B.T)
        outputs.append((x @ C.T).real + parameters["D"] * u[:, t])
    return torch.stack(outputs, dim=1)


def shrink(lru: LRU, keep: Tensor) -> LRU:
    """Replace the parameters by their part on some states, as a reduction does."""
    for name, axis in STATE_AXES.items():
        setattr(lru, name, nn.Parameter(getattr(lru, name).detach().index_select(axis, keep)))
    return lru


def relative(y: Tensor, expected: Tensor) -> float:
    return float((y - expected).detach().abs().max() / expected.detach().abs().max())


def test_gradients_agree_with_differences():
    lru, u = layer(2, 3).double(), sequences(2, 5, 2, torch.float64).requires_grad_()
    names = [name for name, _ in lru.named_parameters()]

    def output(u: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(lru, dict(zip(names, parameters, strict=True)), (u,))

    assert torch.autograd.gradcheck(output, (u, *lru.parameters()))


@pytest.mark.parametrize("method", ["recurrence", "convolution"])
def test_float32_layer_has_the_poles_that_its_parameters_define(monkeypatch, method):
    monkeypatch.setattr(state_space, "choose_method", lambda *sizes: method)
    lru, u = layer(2, 4, r_min=1 - 1e-6, r_max=1 - 1e-7), sequences(1, 3000, 2)
    # phases rounded to float32 would be off by up to 2e-7 a step, 7e-4 at the end
    assert relative(lru(u).double(), formula(lru, u.double())) < 5e-6


def test_one_layer_serves_sequences_of_different_lengths():
    lru = layer()
    u = sequences(2, 90, 3)
    whole = lru(u)
    for length in (90, 1, 64, 7):
        assert relative(lru(u[:, :length]), whole[:, :length]) < 1e-5


def step_by_step(lru: LRU, u: Tensor) -> Tensor:
    state, outputs = lru.initial_state(len(u)), []
    for t in range(u.shape[1]):
        y, state = lru.step(u[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, dim=1)


def test_shrunk_layer_trains():
    lru, u = layer(), sequences(2, 30, 3)
    shrink(lru, torch.arange(2))
    optimizer = torch.optim.SGD(lru.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(loss := lru(u).square().mean())
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


def test_parameters_are_named_and_shaped_as_in_the_literature_and_real():
    shapes = {name: (tuple(p.shape), p.dtype) for name, p in layer(3, 7).named_parameters()}
    expected = dict.fromkeys(("nu_log", "theta_log", "gamma_log"), (7,)) | dict.fromkeys(("B_re", "B_im"), (7, 3))
    expected |= dict.fromkeys(("C_re", "C_im"), (3, 7)) | {"D": (3,)}
    assert shapes == {name: (shape, torch.float32) for name, shape in expected.items()}


def test_poles_start_uniformly_on_the_ring():
    lam = layer(1, 20_000, r_min=0.5, r_max=0.8, max_phase=1.5).rates().exp().detach()
    # uniform in area: |lam|^2 and the phase are uniform; 20000 samples, 5 standard errors of the mean
    area = (lam.abs().square() - 0.25) / (0.64 - 0.25)
    phase = lam.angle() / 1.5
    for x in (area, phase):
        assert x.min() > -1e-6
        assert x.max() < 1 + 1e-6
        assert abs(x.mean() - 0.5) < 5 / (12 * 20_000) ** 0.5
        assert abs((x < 0.25).double().mean() - 0.25) < 5 * (3 / 16 / 20_000) ** 0.5


def test_states_start_with_unit_variance_on_white_input():
    lru = layer(16, 2000)
    B, C, _ = (x.detach() for x in lru.system_matrices())
    variance = B.abs().square().sum(1).double() / -torch.expm1(2 * lru.rates().real.detach())
    # |b|^2 has 32 degrees of freedom over 2 x 16: mean 1, variance 1/16; 5 standard errors
    assert abs(variance.mean() - 1) < 5 * (1 / 16 / 2000) ** 0.5
    assert abs(C.abs().square().mean() * 2000 / 2 - 1) < 5 * (1 / 32_000) ** 0.5


def test_gain_keeps_its_digits_next_to_the_circle():
    lru = layer(1, 50, r_min=1 - 1e-9, r_max=1 - 1e-12)
    nu = lru.nu_log.detach().double().exp()
    # 1 - |lam|^2 = 2 nu to 1e-9; gamma_log holds it to float32: ln(1e-5) to 6e-8 relative
    assert torch.allclose(lru.gamma_log.double(), 0.5 * (2 * nu).log(), rtol=2e-7, atol=0)


@pytest.mark.parametrize("method", ["recurrence", "convolution"])
def test_recurrence_keeps_single_precision_under_autocast(monkeypatch, method):
    monkeypatch.setattr(state_space, "choose_method", lambda *sizes: method)
    lru, u = layer(16, 32), sequences(4, 100, 16).bfloat16()
    exact = lru.double()(u.double())
    lru.float().zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = lru(u)
    assert y.dtype == torch.float32
    assert relative(y, exact) < 1e-5  # bfloat16 products would leave 1e-2


@pytest.mark.parametrize("method", ["recurrence", "convolution"])
def test_gradients_keep_single_precision_under_autocast(monkeypatch, method):
    monkeypatch.setattr(state_space, "choose_method", lambda *sizes: method)
    lru, u = layer(16, 32), sequences(4, 100, 16)
    expected = torch.autograd.grad(lru(u).square().sum(), list(lru.parameters()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(lru(u).square().sum(), list(lru.parameters()))
    for g, e in zip(found, expected, strict=True):
        assert relative(g, e) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0, "states": 4}, "at least 1"),
        ({"channels": 4, "states": 0}, "at least 1"),
        ({"channels": 4, "states": 4, "r_min": 0.99, "r_max": 0.9}, "ring in the unit disk"),
        ({"channels": 4, "states": 4, "r_max": 1.1}, "ring in the unit disk"),
        ({"channels": 4, "states": 4, "max_phase": 0}, "max_phase must be positive"),
    ],
)
def test_empty_sizes_rings_and_phases_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        LRU(**arguments)
