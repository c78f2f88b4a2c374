"""Whether Triton kernels, once compiled for a device, do there what operations of torch do."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

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

Example = tuple[Callable[..., Any], Sequence[Tensor]]


@torch.compiler.assume_constant_result
@cache
def kernels_agree(device: torch.device) -> bool:
    """Compare outputs and gradients of small examples, once for each device; warn where they differ."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            wrong = next((wrong for wrong in map(_difference, _examples(device)) if not wrong <= CLOSE), 0.0)
        said = f"differ from operations of torch by {wrong:.1g}" if wrong else ""
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


def _difference(example: Example) -> float:
    """The largest difference of outputs and gradients, relative to the largest entry of each; NaN if one has it."""
    found, expected = (_results(backend, *example) for backend in ("triton", "torch"))
    return float(torch.stack([(x - y).abs().max() / y.abs().max() for x, y in zip(found, expected, strict=True)]).max())


def _results(backend: str, run: Callable[..., Any], tensors: Sequence[Tensor]) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in tensors]
    with use_backend(backend):
        y = run(*leaves)
        real = torch.view_as_real(y) if y.is_complex() else y
        weights = _wave(12, *real.shape).to(y.device)
        return [y.detach(), *torch.autograd.grad((real * weights).sum(), leaves)]


def _examples(device: torch.device) -> Iterator[Example]:
    """Operations with kernels and their arguments, over more than one tile of steps and states."""
    u, v = (_wave(k, 2, 70, 34).to(device) for k in range(2))
    # complex numbers are half as many in a program, and their tiles twice as long
    rates, z = torch.complex(-0.01 - _wave(5, 17).abs(), 3 * _wave(6, 17)).to(device), _wave(4, 1, 140, 17).to(device)
    into, out = (torch.complex(_wave(k, *s), _wave(k + 1, *s)).to(device) for k, s in ((7, (17, 2)), (9, (2, 17))))
    # two blocks of channels, two pieces of steps, and two groups of states that do not fill theirs; and full ones
    scanned = [u[:, :20], 0.1 * v[:, :20].exp(), -(1 + _wave(11, 34, 5).abs()).to(device)]
    scanned += [_wave(k, 2, 20, 5).to(device) for k in (2, 3)]
    full = [x[..., :32] for x in scanned[:2]] + [scanned[2][:32, :4]] + [x[..., :4] for x in scanned[3:]]
    # two pieces of steps and two blocks of states of one head
    head = [_wave(13, 1, 40, 1, 2), 0.1 * _wave(14, 1, 40, 1).exp(), _wave(15, 1) - 2]
    head += [_wave(16 + k, 1, 40, 1, 17) for k in range(2)]
    reset, resets = (_wave(21, *s).to(device) > 0.8 for s in ((1, 40), (2, 20)))
    system = [_wave(18, 2, 3) - 2, _wave(19, 2, 3, 2), _wave(20, 2, 1, 3)]
    head, system = ([x.to(device) for x in tensors] for tensors in (head, system))
    yield partial(linear_recurrence, reverse=True), (0.9 * torch.cos(v[:1]), u[:1])
    yield (lambda r, x: linear_recurrence(r.exp(), x + 0j)), (rates, z)
    yield partial(diagonal_ssm, method="recurrence"), (rates, into, out, z[..., :2])
    yield selective_scan, scanned
    yield selective_scan, full
    yield partial(selective_scan, reset=resets), scanned
    yield selective_heads, head
    yield partial(selective_heads, reset=reset), head
    yield partial(hankel_singular_values, dt=0), system


def _wave(seed: int, *shape: int) -> Tensor:
    """Values between -1 and 1 that look random, the same everywhere."""
    places = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(7.3 * places + 1.7 * seed * seed + 0.3 * places**1.5).float().reshape(shape)
