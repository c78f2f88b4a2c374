"""Twins of layers that are made of plain operations of torch, for `torch.export` and ONNX."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from hankelred.checks import check_integer
from hankelred.errors import InputError

from ..layers import LRU, S4D, S5, Mamba
from ..layers._inputs import check_sequences, in_single
from ..ops.taps import convolved


def export_form(layer: nn.Module, max_length: int = 4096) -> nn.Module:
    """A twin of a layer without operators of its own, to be exported with any batch size and length.

    The recurrence runs by doubling: with ``x`` the inputs of the states, ``x_t + a^s x_{t-s}`` for s = 1, 2, 4, ...
    below `max_length`. That takes more memory and time than the layer itself, and converts to ONNX, which an FFT of
    variable length or a loop compiled by numba does not.

    Parameters
    ----------
    layer : LRU, S5, S4D or Mamba
        A layer of `hankelred_torch.layers`; its parameters are copied.
    max_length : int, default 4096
        Longest sequence; later steps are NaN in an exported program, and longer sequences an error in Python.

    Returns
    -------
    torch.nn.Module
        Maps (batch, length, channels) to the same, as the layer does to rounding.

    Raises
    ------
    InputError
        If the layer is of another class, or of a subclass with a ``forward`` of its own.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> layer, u = ht.layers.LRU(channels=2, states=8), torch.randn(2, 100, 2)
    >>> torch.allclose(ht.export_form(layer)(u), layer(u), atol=1e-5)
    True

    Both sizes stay open in the exported program, which torch makes for a size of 1 alone if the example has it:

    >>> auto, fixed = torch.export.Dim.AUTO, torch.export.Dim.STATIC
    >>> program = torch.export.export(ht.export_form(layer), (u,), dynamic_shapes=({0: auto, 1: auto, 2: fixed},))
    >>> program.module()(torch.randn(3, 7, 2)).shape
    torch.Size([3, 7, 2])
    """
    doublings = (check_integer(max_length, "max_length", least=1) - 1).bit_length()
    for kind, form in FORMS.items():
        if isinstance(layer, kind) and type(layer).forward is kind.forward:
            return form(layer, doublings, max_length).train(layer.training)
    names = ", ".join(kind.__name__ for kind in FORMS)
    raise InputError(
        f"layer must be one of {names} of hankelred_torch.layers with the forward of its class; got "
        f"{type(layer).__qualname__}. Export other layers by their own means."
    )


class _Form(nn.Module):
    """What the twins share: the scan by doubling, and the limit of length."""

    def __init__(self, channels: int, doublings: int, max_length: int) -> None:
        super().__init__()
        self.channels, self.doublings, self.max_length = channels, doublings, max_length

    def forward(self, u: Tensor) -> Tensor:
        """Apply the layer to sequences (batch, length, channels) from rest."""
        if not torch.compiler.is_compiling():
            check_sequences(u, self.channels, next(chain(self.parameters(), self.buffers())))
            if u.shape[1] > self.max_length:
                raise InputError(
                    f"u must have at most {self.max_length} steps; got {u.shape[1]}. Raise max_length of export_form."
                )
        steps = torch.arange(u.shape[1], device=u.device)[:, None]
        return torch.where(steps < self.max_length, self.outputs(u), torch.nan)

    def outputs(self, u: Tensor) -> Tensor:
        """Return the outputs, right in the first ``2^doublings`` steps."""
        raise NotImplementedError

    def powers(self, rates: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the real and imaginary parts of ``exp(2^k rates)`` for every doubling k, rounded at the end."""
        found = torch.stack([torch.exp(2**k * rates.detach()) for k in range(self.doublings)] or [rates.detach()[None]])
        return found[: self.doublings].real.to(dtype), found[: self.doublings].imag.to(dtype)

    def scan(self, re: Tensor, im: Tensor, powers_re: Tensor, powers_im: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states whose inputs have these real and imaginary parts."""
        for k in range(self.doublings):
            a, b, before_re, before_im = powers_re[k], powers_im[k], delayed(re, 2**k), delayed(im, 2**k)
            re, im = re + a * before_re - b * before_im, im + a * before_im + b * before_re
        return re, im


class _SystemForm(_Form):
    """LRU and S5: one system for all channels."""

    p_re: Tensor
    p_im: Tensor
    B_re: Tensor
    B_im: Tensor
    C_re: Tensor
    C_im: Tensor
    D: Tensor

    def __init__(self, layer: LRU | S5, doublings: int, max_length: int) -> None:
        super().__init__(layer.channels, doublings, max_length)
        B, C, D = (x.detach() for x in layer.system_matrices())
        powers = self.powers(layer.rates(), D.dtype)
        parts = (*powers, B.real, B.imag, C.real, C.imag, D)
        for name, x in zip(("p_re", "p_im", "B_re", "B_im", "C_re", "C_im", "D"), parts, strict=True):
            self.register_buffer(name, x.clone())

    def outputs(self, u: Tensor) -> Tensor:
        v = u.to(self.D.dtype)
        re, im = self.scan(v @ self.B_re.T, v @ self.B_im.T, self.p_re, self.p_im)
        y: Tensor = re @ self.C_re.T - im @ self.C_im.T + self.D * v
        return y.to(u.dtype)


class _ChannelForm(_Form):
    """S4D: a system for every channel, whose states see the channel itself."""

    p_re: Tensor
    p_im: Tensor
    C_re: Tensor
    C_im: Tensor
    D: Tensor

    def __init__(self, layer: S4D, doublings: int, max_length: int) -> None:
        super().__init__(layer.channels, doublings, max_length)
        C, D = layer.output_matrix().detach(), in_single(layer.D.detach())[0]
        parts = (*self.powers(layer.rates(), D.dtype), C.real, C.imag, D)
        for name, x in zip(("p_re", "p_im", "C_re", "C_im", "D"), parts, strict=True):
            self.register_buffer(name, x.clone())

    def outputs(self, u: Tensor) -> Tensor:
        v = u.to(self.D.dtype)
        inputs = v[..., None].expand(-1, -1, -1, self.C_re.shape[1])
        re, im = self.scan(inputs, torch.zeros_like(inputs), self.p_re, self.p_im)
        y: Tensor = (re * self.C_re - im * self.C_im).sum(-1) + self.D * v
        return y.to(u.dtype)


class _SelectiveForm(_Form):
    """Mamba: decays that vary from step to step are doubled along with the states."""

    def __init__(self, layer: Mamba, doublings: int, max_length: int) -> None:
        super().__init__(layer.channels, doublings, max_length)
        self.layer = copy.deepcopy(layer)

    def outputs(self, u: Tensor) -> Tensor:
        layer = self.layer
        x, z = layer.in_proj(u).chunk(2, dim=-1)
        x = convolved(delayed(x, layer.conv1d.weight.shape[2] - 1, whole=True), *layer._taps())
        v, delta, A, B, C = in_single(x, *layer._selected(x))
        a, h = torch.exp(delta[..., None] * A), (delta * v)[..., None] * B[:, :, None]
        for k in range(self.doublings):
            h, a = h + a * delayed(h, 2**k), a * delayed(a, 2**k)
        y = (h * C[:, :, None]).sum(-1) + layer.D * v
        found: Tensor = layer.out_proj(y.to(z.dtype) * silu(z))
        return found


def delayed(x: Tensor, steps: int, *, whole: bool = False) -> Tensor:
    """Return sequences (batch, length, ...) that begin with so many zeros, of the same length or `whole`."""
    late = pad(x, (0, 0) * (x.ndim - 2) + (steps, 0))
    return late if whole else late[:, : x.shape[1]]


FORMS: dict[type[Any], type[Any]] = {LRU: _SystemForm, S5: _SystemForm, S4D: _ChannelForm, Mamba: _SelectiveForm}
