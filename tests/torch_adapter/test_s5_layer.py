"""The S5 layer: what it computes, how it starts, and that it can be shrunk by replacing its parameters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hankelred.errors import InputError
from hankelred_torch.layers import S5
from hankelred_torch.layers.s5 import hippo_normal

STATE_AXES = {"Lambda_re": 0, "Lambda_im": 0, "log_step": 0, "B": 0, "C": 1}


def layer(channels: int = 3, states: int = 6, seed: int = 0, blocks: int = 1) -> S5:
    torch.manual_seed(seed)
    return S5(channels, states, blocks)


def sequences(batch: int, length: int, channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, length, channels, generator=torch.Generator().manual_seed(5)).to(dtype)


def formula(s5: S5, u: Tensor) -> Tensor:
    """The definition, from the parameters, one step after the other: exact integration over a step of constant u."""
    p = {name: x.double() for name, x in s5.named_parameters()}
    poles, step = torch.complex(p["Lambda_re"], p["Lambda_im"]), p["log_step"].exp()
    lam = torch.exp(poles * step)
    B = ((lam - 1) / poles)[:, None] * torch.view_as_complex(p["B"])
    C = torch.view_as_complex(p["C"])
    x, outputs = torch.zeros(len(u), len(lam), dtype=torch.complex128), []
    for t in range(u.shape[1]):
        x = lam * x + u[:, t].to(B.dtype) @ B.T
        outputs.append(2 * (x @ C.T).real + p["D"] * u[:, t])
    return torch.stack(outputs, dim=1)


def shrink(s5: S5, keep: Tensor) -> S5:
    """Replace the parameters by their part on some states, as a reduction does."""
    for name, axis in STATE_AXES.items():
        setattr(s5, name, nn.Parameter(getattr(s5, name).detach().index_select(axis, keep)))
    return s5


def relative(y: Tensor, expected: Tensor) -> float:
    return float((y - expected).detach().abs().max() / expected.detach().abs().max())


def test_slow_pole_integrates_its_input():
    # expm1 keeps the digits of (exp(z) - 1) / lambda, which the plain formula loses for a step of 1e-9 time constants
    s5 = layer(1, 1).double()
    with torch.no_grad():
        s5.Lambda_re.fill_(-1e-9)
        s5.Lambda_im.zero_()
        s5.log_step.zero_()
        s5.B.copy_(torch.tensor([1.0, 0.0]))
        s5.C.copy_(torch.tensor([0.5, 0.0]))
        s5.D.zero_()
    y = s5(torch.ones(1, 10, 1, dtype=torch.float64))
    expected = -torch.expm1(-1e-9 * torch.arange(1, 11, dtype=torch.float64)) / 1e-9
    assert relative(y[0, :, 0], expected) < 1e-14


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_poles_start_as_eigenvalues_of_hippo_in_blocks(blocks):
    size = 12 // blocks
    A = -np.sqrt(np.outer(2 * np.arange(size) + 1, 2 * np.arange(size) + 1)) * np.tri(size, k=-1)
    A -= np.diag(np.arange(size) + 1.0)
    p = np.sqrt(np.arange(size) + 0.5)
    normal = np.linalg.eigvals(A + np.outer(p, p))
    expected = np.tile(np.sort(normal[normal.imag < 0].imag), blocks)
    s5 = layer(3, 6, blocks=blocks).double()
    s5.reset_parameters()
    assert np.allclose(s5.Lambda_im.detach().numpy(), expected, rtol=1e-12)
    assert np.allclose(s5.Lambda_re.detach().numpy(), -0.5, rtol=1e-12)


def test_eigenvectors_of_hippo_are_orthonormal():
    _, V = hippo_normal(16)
    assert np.abs(V.conj().T @ V - np.eye(8)).max() < 1e-13


def test_matrices_start_with_the_published_variance():
    # B = V^H B0 and C = C0 V with entries of variance 1 / (2 states) and orthonormal columns of V: sampling error 2 %
    s5 = layer(64, 64)
    B, C = (torch.view_as_complex(x.detach()) for x in (s5.B, s5.C))
    assert B.abs().square().mean() * 128 == pytest.approx(1.0, rel=0.05)
    assert C.abs().square().mean() * 128 == pytest.approx(2.0, rel=0.05)


def test_steps_start_log_uniformly_between_the_published_limits():
    log_step = layer(1, 4000, blocks=2000).log_step.detach()
    low, high = math.log(1e-3), math.log(1e-1)
    assert low <= log_step.min()
    assert log_step.max() <= high
    assert log_step.mean() == pytest.approx((low + high) / 2, abs=0.1)  # five deviations of the mean


def test_layer_computes_what_s5_pytorch_computes():
    model = pytest.importorskip("s5").S5(3, 6)
    theirs, ours = model.seq, layer()
    with torch.no_grad():
        ours.Lambda_re.copy_(theirs.Lambda.real)
        ours.Lambda_im.copy_(theirs.Lambda.imag)
        ours.log_step.copy_(theirs.log_step.reshape(-1))
        ours.B.copy_(theirs.B)
        ours.C.copy_(torch.view_as_real(theirs.C) / 2)  # there y = Re(C x), here 2 Re(C x)
        ours.D.copy_(theirs.D)
    u = sequences(2, 40, 3)
    assert relative(ours(u), model(u)) < 1e-4  # their (exp(z) - 1) / lambda cancels in single precision


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 4), "at least 1"), ((4, 0), "at least 1"), ((4, 6, 4), "blocks must divide"), ((4, 6, 0), "blocks must")],
)
def test_empty_sizes_and_uneven_blocks_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        S5(*arguments)
