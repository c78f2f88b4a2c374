"""Whether Triton kernels, once compiled for a device, do there what operations of torch do."""

from __future__ import annotations

import math
import warnings
from functools import cache

import torch
from torch import Tensor

from hankelred.errors import AccuracyWarning

from ._backends import use_backend
from .gramians import hankel_singular_values
from .heads import selective_heads
from .linear import linear_recurrence
from .selective import selective_scan
from .state_space import diagonal_ssm

# Largest differences relative to the largest entry, in single precision: hundreds of roundings, and far below what a
# wrong index or a missing barrier makes.
CLOSE = 1e-4


@torch.compiler.assume_constant_result
@cache
def kernels_agree(device: torch.device) -> bool:
    """Compare outputs and gradients of small examples, once for each device; warn where they differ."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            found, expected = (_examples(backend, device) for backend in ("triton", "torch"))
        wrong = max(((x - y).abs().max() / y.abs().max()).item() for x, y in zip(found, expected, strict=True))
        said = f"differ from operations of torch by {wrong:.1g}" if not wrong <= CLOSE else ""
    except Exception as error:  # whatever a compiler and a driver may raise
        said = f"fail: {type(error).__name__}: {error}"
    if said:
        warnings.warn(
            f"Triton kernels on {device} {said}. Operations of torch run in their place; report this, please, with "
            f"the versions of torch, Triton and the driver.",
            AccuracyWarning,
            stacklevel=2,
        )
    return not said


def _examples(backend: str, device: torch.device) -> list[Tensor]:
    """Outputs and gradients of all operations with kernels, over more than one tile of steps and states."""
    batch, length, channels, n = 2, 70, 34, 5
    u, v, b, c = (_wave(k, batch, length, x).to(device) for k, x in enumerate((channels, channels, n, n)))
    rates = torch.complex(-0.01 - _wave(5, channels).abs(), 3 * _wave(6, channels)).to(device)
    into, out = (
        torch.complex(_wave(k, *s), _wave(k + 1, *s)).to(device) for k, s in ((7, (channels, 2)), (9, (2, channels)))
    )
    steps, A = 0.1 * v.exp(), -(1 + _wave(11, channels, n).abs()).to(device)
    even = u[..., :32], steps[..., :32], A[:32, :4], b[..., :4], c[..., :4]  # all lanes and warps of a program at work
    # two pieces of steps and two blocks of states of one head
    head = [_wave(13, 1, 40, 1, 2), 0.1 * _wave(14, 1, 40, 1).exp(), _wave(15, 1) - 2]
    head += [_wave(16 + k, 1, 40, 1, 17) for k in range(2)]
    reset, resets = (_wave(21, *s).to(device) > 0.8 for s in ((1, 40), (batch, length)))
    system = (_wave(18, 2, 3) - 2, _wave(19, 2, 3, 2), _wave(20, 2, 1, 3))
    found = []
    with use_backend(backend):
        for run, tensors in (
            (lambda a, x: linear_recurrence(a, x, reverse=True), (0.9 * torch.cos(v), u)),
            (lambda r, x: linear_recurrence(r.exp(), x + 0j), (rates, u)),
            (lambda r, B, C, x: diagonal_ssm(r, B, C, x, method="recurrence"), (rates, into, out, u[..., :2])),
            (lambda *x: selective_scan(*x), (u, steps, A, b, c)),
            (lambda *x: selective_scan(*x), even),
            (lambda *x: selective_scan(*x, reset=resets), (u, steps, A, b, c)),
            (lambda *x: selective_heads(*x), tuple(x.to(device) for x in head)),
            (lambda *x: selective_heads(*x, reset=reset), tuple(x.to(device) for x in head)),
            (lambda *x: hankel_singular_values(*x, dt=0), tuple(x.to(device) for x in system)),
        ):
            leaves = [x.detach().requires_grad_() for x in tensors]
            y = run(*leaves)
            real = torch.view_as_real(y) if y.is_complex() else y
            weights = _wave(12, *real.shape).to(device)
            found += [y.detach(), *torch.autograd.grad((real * weights).sum(), leaves)]
    return found


def _wave(seed: int, *shape: int) -> Tensor:
    """Values between -1 and 1 that look random, the same everywhere."""
    places = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(7.3 * places + 1.7 * seed * seed + 0.3 * places**1.5).float().reshape(shape)
