"""Diagonal state space models as convolutions: their impulse response, and causal convolution by FFT."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor

from ._operator import differentiable, once, operator


def impulse_response(rates: Tensor, B: Tensor, C: Tensor, length: int) -> Tensor:
    """Return ``K_t = Re(C diag(exp(t rates)) B)`` for t from 0 to ``length - 1``, (length, outputs, inputs).

    The arguments are planar, as for `planar_ssm`. The powers are products of two short tables,
    ``exp(t0 rates) exp(t1 rates)``, taken in double precision and only then rounded: every tap keeps the relative
    accuracy of the result's dtype, however long the response.
    """
    n, dtype = rates.shape[1], torch.promote_types(B.dtype, torch.complex64)
    rates = torch.complex(rates[0], rates[1])
    short = max(1, math.isqrt(length))
    coarse = torch.arange(0, length, short, device=rates.device, dtype=torch.float64)
    fine = torch.arange(short, device=rates.device, dtype=torch.float64)
    coarse, fine = (torch.exp(t[:, None] * rates).to(dtype) for t in (coarse, fine))
    powers = torch.view_as_real((coarse[:, None] * fine).reshape(-1, n)[:length]).flatten(1)
    B, C = torch.complex(B[0], -B[1]), torch.complex(C[:, 0], C[:, 1])  # the conjugates of both
    residues = torch.view_as_real(C.T[:, :, None] * B[:, None, :])  # Re(a b) = <a, conj(b)> of planes
    residues = residues.permute(0, 3, 1, 2).reshape(2 * n, -1)
    return product(powers, residues).view(length, len(C), B.shape[1])


def causal_convolution(u: Tensor, K: Tensor) -> Tensor:
    """Return ``y_t = sum_s K_s u_{t-s}`` for sequences `u` (batch, length, inputs), K (length, outputs, inputs)."""
    y: Tensor = _Convolution.apply(u, K)[0]
    return y


def fast_length(length: int) -> int:
    """Return a length of at least `length` that FFTs are fast for: a power of two times 1, 3, 5, 9 or 15."""
    return min(odd << (-(-length // odd) - 1).bit_length() for odd in (1, 3, 5, 9, 15))


# Asked beforehand: compilers before torch 2.13 do not know the question.
_CASTS = frozenset(x for x in ("cpu", "cuda", "hpu", "mps", "mtia", "xla", "xpu") if torch.amp.is_autocast_available(x))


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which products on the device of `x` keep the dtype of their factors."""
    device = x.device.type
    # the context costs as much as a small product: only where there is something to switch off
    on = device in _CASTS and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else contextlib.nullcontext()


# Bytes of sequences and spectra that pass through the convolution together: 1 to 4 MiB differ by less than a tenth.
BLOCK = 1 << 21


def _blocks(u: Tensor, padded: int) -> list[slice]:
    """Return slices of the channels whose padded sequences fill the cache; all at once where there is a GPU.

    There are none without sequences, of which an FFT is an error.
    """
    batch, channels, _ = u.shape
    if not batch:
        return []
    size = max(1, BLOCK // (2 * u.element_size() * batch * padded)) if u.is_cpu else channels
    return [slice(start, start + size) for start in range(0, channels, size)]


@operator("channel_convolution(Tensor u, Tensor K) -> Tensor", lambda u, K: u.new_empty(u.shape))
def _convolved(u: Tensor, K: Tensor) -> Tensor:
    u, padded = u.mT.contiguous(), fast_length(2 * u.shape[1] - 1)
    y = torch.empty_like(u)
    for block in _blocks(u, padded):
        Y = torch.fft.rfft(u[:, block], padded) * torch.fft.rfft(K[block], padded)
        y[:, block] = torch.fft.irfft(Y, padded)[..., : u.shape[2]]
    return y.mT.contiguous()


@operator(
    "channel_convolution_backward(Tensor gy, Tensor u, Tensor K) -> (Tensor, Tensor)",
    lambda gy, u, K: (u.new_empty(u.shape), K.new_empty(K.shape)),
)
def _correlated(gy: Tensor, u: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    gy, u, length = gy.mT.contiguous(), u.mT.contiguous(), u.shape[1]
    padded = fast_length(2 * length - 1)
    gu, gK = torch.empty_like(gy), gy.new_zeros(len(K), length)
    for block in _blocks(u, padded):
        U, G, H = (torch.fft.rfft(x, padded) for x in (u[:, block], gy[:, block], K[block]))
        gu[:, block] = torch.fft.irfft(G * H.conj(), padded)[..., :length]
        gK[block] = torch.fft.irfft((U.conj() * G).sum(0), padded)[:, :length]
    return gu.mT.contiguous(), gK


# Causal convolution of every channel with its own response, (batch, length, channels) and (channels, length). By hand,
# because autograd would fill up half spectra to full ones, and block by block of channels: batch 16, length 1024, 256
# channels take 101 ms forward and backward on one core, 232 ms at once with saved spectra, 264 ms by autograd.
channel_convolution = differentiable(
    _convolved,
    lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    lambda ctx, gy: once(_correlated, gy, *ctx.saved_tensors),
)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b``, a product that keeps its dtype in a backward pass under autocast, too."""
    found: Tensor = _Product.apply(a, b)
    return found


class _Product(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        with without_autocast(g):
            return g @ b.mT, a.mT @ g


class _Convolution(torch.autograd.Function):
    """Convolution with a hand-written adjoint: autograd would fill the half spectra up to full ones."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        padded = fast_length(u.shape[1] + len(K) - 1)
        U = _spectrum(u, padded)
        M = _real_matrices(torch.fft.rfft(K, padded, dim=0))
        return _sequences(U @ M, padded, u.shape[1]), U, M

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output[1:])

    @staticmethod
    def backward(ctx: Any, gy: Tensor, *_: Tensor | None) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = once(_convolution_adjoint, gy, *ctx.saved_tensors)
        return found


def _convolution_adjoint(gy: Tensor, u: Tensor, K: Tensor, U: Tensor, M: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the sequences and of the response, whose spectra are given."""
    padded = fast_length(u.shape[1] + len(K) - 1)
    G = _spectrum(gy, padded)
    with without_autocast(gy):
        gu, parts = G @ M.mT, U.mT @ G
    gu = _sequences(gu, padded, u.shape[1])
    parts = parts.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # put together to conj(U)^T G
    re = parts[:, :, 0, :, 0] + parts[:, :, 1, :, 1]
    im = parts[:, :, 0, :, 1] - parts[:, :, 1, :, 0]
    gK = torch.fft.irfft(torch.complex(re, im).mT, padded, dim=0)[: len(K)]
    return gu, gK


def _spectrum(u: Tensor, padded: int) -> Tensor:
    """Return the half spectrum of (batch, length, channels), frequencies first, parts interleaved."""
    return torch.view_as_real(torch.fft.rfft(u, padded, dim=1).transpose(0, 1).contiguous()).flatten(2)


def _sequences(U: Tensor, padded: int, length: int) -> Tensor:
    """Return the first `length` steps of the sequences with half spectrum U, as (batch, length, channels)."""
    spectrum = torch.view_as_complex(U.unflatten(2, (-1, 2)))
    return torch.fft.irfft(spectrum, padded, dim=0)[:length].transpose(0, 1).contiguous()


def _real_matrices(K: Tensor) -> Tensor:
    """Return real (2 inputs, 2 outputs) matrices that act on interleaved rows as ``K^T`` does on complex ones.

    A batch of small real products is several times faster than one of complex products.
    """
    K = K.mT
    blocks = torch.stack([K, 1j * K], dim=2)  # what the real and the imaginary part of an input give
    return torch.view_as_real(blocks).flatten(3).flatten(1, 2)
