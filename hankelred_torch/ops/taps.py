"""Short causal convolutions, every channel with a few taps of its own, as before the states of a selective layer."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor
from torch.nn.functional import pad, silu

from ._backends import foreign_kernels

# What the kernels of causal_conv1d take: taps, numbers, and what strides must divide by where channels come last.
TAPS = (2, 3, 4)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
ALIGNED = 8


def short_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return SiLU of the convolution of sequences from rest, all arguments trusted.

    `x` is (batch, length, channels), `weight` (channels, taps), the last tap that of the step itself, and `bias`
    (channels,). The kernels of causal_conv1d run it on CUDA where that package is installed and they fit. The dtype is
    the widest of the arguments; kernels round to that of `x` on the way.
    """
    if foreign_kernels("causal_conv1d", x) and _fits(x, weight, bias):
        return _foreign(x, weight, bias)
    return convolved(pad(x, (0, 0, weight.shape[1] - 1, 0)), weight, bias)


def convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return SiLU of the convolution of inputs that begin ``taps - 1`` steps early.

    A sum over the taps: torch's depthwise convolution wants channels before time, and takes 2.5 times as long with both
    transpositions (batch 16, length 128, 128 channels, one core).
    """
    taps = weight.shape[1]
    length, y = x.shape[1] - taps + 1, bias
    for tap in range(taps):
        y = torch.addcmul(y, x[:, tap : tap + length], weight[:, tap])
    return silu(y)


def _fits(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Tell whether the kernels of causal_conv1d take such arguments."""
    dtypes = x.dtype in DTYPES and weight.dtype in DTYPES and bias.dtype == weight.dtype
    return dtypes and weight.shape[1] in TAPS and x.numel() > 0


def _foreign(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return what the kernels of causal_conv1d do, whose time axis comes last, in memory too if strides are odd."""
    from causal_conv1d import causal_conv1d_fn

    lined_up = x.stride(2) == 1 and not any(k % ALIGNED for k in (x.shape[2], x.stride(0), x.stride(1)))
    y: Tensor = causal_conv1d_fn(x.mT if lined_up else x.mT.contiguous(), weight, bias, activation="silu")
    return y.mT.to(reduce(torch.promote_types, (bias.dtype, weight.dtype), x.dtype))
