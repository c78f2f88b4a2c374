"""The S4D layer: what it computes, how it starts, and that it can be shrunk by replacing its parameters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from hankelred.errors import InputError
from hankelred_torch.layers import S4D
from hankelred_torch.ops import convolution

from .s4_repository import S4DKernel

STATE_AXES = {"log_A_real": 1, "A_imag": 1, "C": 1}


def layer(channels: int = 3, states: int = 5, seed: int = 0, init: str = "lin") -> S4D:
    torch.manual_seed(seed)
    return S4D(channels, states, init)


def sequences(batch: int, length: int, channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, length, channels, generator=torch.Generator().manual_seed(5)).to(dtype)


def formula(bank: S4D, u: Tensor) -> Tensor:
    """The definition, from the parameters, one step after the other: exact integration over a step of constant u."""
    p = {name: x.double() for name, x in bank.named_parameters()}
    A = torch.complex(-p["log_A_real"].exp(), p["A_imag"])
    lam = torch.exp(A * p["log_dt"].exp()[:, None])
    B, C = (lam - 1) / A, torch.view_as_complex(p["C"])
    x, outputs = torch.zeros(len(u), *lam.shape, dtype=torch.complex128), []
    for t in range(u.shape[1]):
        x = lam * x + B * u[:, t, :, None]
        outputs.append(2 * (x * C).sum(-1).real + p["D"] * u[:, t])
    return torch.stack(outputs, dim=1)


def shrink(bank: S4D, keep: Tensor) -> S4D:
    """Replace the parameters by their part on some states, as a reduction does."""
    for name, axis in STATE_AXES.items():
        setattr(bank, name, nn.Parameter(getattr(bank, name).detach().index_select(axis, keep)))
    return bank


def relative(y: Tensor, expected: Tensor) -> float:
    return float((y - expected).detach().abs().max() / expected.detach().abs().max())


@pytest.mark.parametrize("block", [1 << 21, 1])  # all channels at once, and one at a time
def test_gradients_are_those_of_the_formula(monkeypatch, block):
    monkeypatch.setattr(convolution, "BLOCK", block)
    bank, u = layer().double(), sequences(3, 40, 3, torch.float64).requires_grad_()
    parameters = [u, *bank.parameters()]
    expected = torch.autograd.grad(formula(bank, u).square().sum(), parameters)
    found = torch.autograd.grad(bank(u).square().sum(), parameters)
    assert all(relative(g, e) < 1e-11 for g, e in zip(found, expected, strict=True))


def test_single_precision_keeps_the_digits_of_long_responses():
    # powers are taken in double precision: the phase of step 4000 at 3 rad per step is right to rounding
    bank, u = layer(2, 8), sequences(1, 4000, 2)
    assert relative(bank(u), formula(bank, u.double())) < 2e-6


def test_layer_computes_what_the_published_kernel_computes():
    torch.manual_seed(0)
    kernel, bank = S4DKernel(3, N=10), layer()
    bank.load_state_dict(kernel.state_dict() | {"D": torch.zeros(3)})
    impulse = torch.zeros(1, 50, 3)
    impulse[:, 0] = 1
    assert relative(bank(impulse)[0].T, kernel(50)) < 1e-5


@pytest.mark.parametrize(
    ("init", "frequencies"),
    [
        ("lin", [0.0, math.pi, 2 * math.pi, 3 * math.pi]),
        # N = 8: (N / pi) (N / (2 k + 1) - 1)
        ("inv", [8 / math.pi * 7, 8 / math.pi * (5 / 3), 8 / math.pi * (3 / 5), 8 / math.pi * (1 / 7)]),
    ],
)
def test_poles_start_as_published(init, frequencies):
    bank = layer(2, 4, init=init)
    for row in bank.A_imag.tolist():
        assert row == pytest.approx(frequencies, rel=1e-6)
    assert bank.log_A_real.exp().flatten().tolist() == pytest.approx([0.5] * 8, rel=1e-6)


def test_weights_and_steps_start_as_published():
    bank = layer(2000, 2)
    low, high = math.log(1e-3), math.log(1e-1)
    assert torch.view_as_complex(bank.C.detach()).abs().square().mean() == pytest.approx(1.0, rel=0.08)
    assert low <= bank.log_dt.min()
    assert bank.log_dt.max() <= high
    assert bank.log_dt.mean().item() == pytest.approx((low + high) / 2, abs=0.15)  # five deviations of the mean


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 4), "at least 1"), ((4, 0), "at least 1"), ((4, 6, "legs"), "init must be")],
)
def test_empty_sizes_and_unknown_starts_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        S4D(*arguments)
