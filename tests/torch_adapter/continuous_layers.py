"""Layers in continuous time of every family with an adapter, and what their tests have in common."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hankelred_torch as ht

from .s4_repository import S4DKernel, SSMKernelDiag

CHANNELS, STATES = 3, 8


def s5():
    return ht.layers.S5(CHANNELS, STATES)


def s5_pytorch(bidir=False):
    layer = pytest.importorskip("s5").S5(CHANNELS, STATES, bidir=bidir).seq
    layer.Lambda = nn.Parameter(layer.Lambda.detach().to(torch.complex128))
    layer.C = nn.Parameter(layer.C.detach().to(torch.complex128))
    return layer


def s5_both_directions():
    return s5_pytorch(bidir=True)


def s4d():
    return ht.layers.S4D(CHANNELS, STATES)


def s4d_kernel():
    return S4DKernel(CHANNELS, N=2 * STATES)


def ssm_kernel():
    return SSMKernelDiag(CHANNELS, 2 * STATES)


def ssm_kernel_of_two_outputs():
    return SSMKernelDiag(CHANNELS, 2 * STATES, channels=2, real_transform="none", dt_transform="softplus")


def ssm_kernel_with_shared_poles():
    return SSMKernelDiag(2 * CHANNELS, 2 * STATES, channels=2, n_ssm=CHANNELS)


SYSTEMS = [s5, s5_pytorch, s5_both_directions]
BANKS = [s4d, s4d_kernel, ssm_kernel, ssm_kernel_of_two_outputs]
FAMILIES = SYSTEMS + BANKS


def made(family, seed=0):
    """Return a layer in double precision with parameters as if training had moved them, poles of some length."""
    torch.manual_seed(seed)
    layer = family().double() if family not in (s5_pytorch, s5_both_directions) else _double(family())
    with torch.no_grad():
        for name, p in layer.named_parameters():
            noise = torch.randn(p.shape, dtype=p.dtype)
            if name in ("Lambda", "Lambda_im", "A_imag"):
                p.add_(1j * noise.real if p.is_complex() else noise)
            elif name in ("log_step", "log_dt", "inv_dt"):
                p.add_(1.0 if name == "inv_dt" and getattr(layer, "dt_transform", "") == "softplus" else 1.5)
                p.add_(0.2 * noise)
            elif name in ("B", "C"):
                p.add_(0.3 * noise)
            elif name != "A_real" or layer.real_transform == "exp":
                p.add_(0.2 * noise)
    return layer


def _double(layer):
    """Make the real parameters of a layer with complex ones double."""
    for name, p in list(layer.named_parameters()):
        if not p.is_complex():
            setattr(layer, name, nn.Parameter(p.detach().double()))
    return layer


def run(layer, u: Tensor) -> Tensor:
    """Return what a layer makes of sequences (batch, length, channels), by its own code in double precision."""
    if type(layer).__name__ == "S5SSM":
        return torch.stack([_s5_pytorch(layer, x) for x in u])
    if isinstance(layer, (S4DKernel, SSMKernelDiag)):
        K = layer(u.shape[1]).reshape(-1, u.shape[2], u.shape[1])  # (outputs, channels, length)
        U, K = torch.fft.rfft(u.mT, 2 * u.shape[1]), torch.fft.rfft(K, 2 * u.shape[1])
        y = torch.fft.irfft(U[:, None] * K, 2 * u.shape[1])[..., : u.shape[1]]
        return y.movedim(3, 1).flatten(2)
    return layer(u)


def _s5_pytorch(layer, u: Tensor) -> Tensor:
    """Run the package's discretisation and scan in double precision: its `forward` casts B to single."""
    from s5.s5_model import apply_ssm

    B = torch.view_as_complex(layer.B)
    lam, B = layer.discretize(layer.Lambda, B, layer.log_step.exp())
    return apply_ssm(lam, B, layer.C, layer.D, u, bidir=layer.bidir)[0]


def make_inert(layer, live):
    """Unlink all states after the first `live`: no input where there is one to take away, and no output."""
    adapter = ht.adapters.adapter_of(layer)
    with torch.no_grad():
        for name in {"B", "C"} & set(adapter.state_axes):
            tensor, axis = layer.get_parameter(name), adapter.state_axes[name]
            for part in tensor.chunk(tensor.shape[axis] // adapter.states, dim=axis):
                part.narrow(axis, live, adapter.states - live).zero_()
    return layer


def inputs(length=64, channels=CHANNELS, *, seed=5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, length, channels, generator=generator, dtype=torch.float64)


def assert_same_states(layer, new, old, values, *, live, rtol):
    """Check that arrays for a reduced layer are those of its first `live` states before, state by state.

    States are told apart by the frequencies in `values`; `new` has those of the reduced layer under "poles" where they
    are not among its own arrays.
    """
    adapter = ht.adapters.adapter_of(layer)
    poles = next(name for name in ("Lambda", "Lambda_im", "A_imag") if name in values)
    new_poles, old_poles = (x.imag if np.iscomplexobj(x) else x for x in (new.get("poles", new[poles]), values[poles]))
    for name, axis in adapter.state_axes.items():
        both = name == "C" and getattr(layer, "bidir", False)
        pairs = zip(*(np.split(x[name], 1 + both, axis=axis) for x in (new, old)), strict=True)
        for new_half, old_half in pairs:
            found = in_order(new_half, new_poles, axis)
            expected = in_order(old_half.take(range(live), axis), old_poles[..., :live], axis)
            assert np.abs(found - expected).max() <= rtol * np.abs(expected).max(), name


def in_order(x, poles, axis):
    """Return an array with the states of every channel in the order of their frequencies."""
    order = np.argsort(poles, axis=-1)
    if poles.ndim == 1:
        return x.take(order, axis)
    x = np.moveaxis(x, (axis - 1, axis), (0, 1))
    order = np.tile(order, (len(x) // len(order), 1))  # channels that share poles
    return np.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)
