"""What tests of kernels share: random tensors, outputs with gradients, and definitions one step after the other."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from hankelred_torch import ops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("u", "delta", "A", "B", "C", "D", "initial")


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x.to(DEVICE).requires_grad_()


def largest(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest entry; 0 where there is none."""
    if torch.equal(found, expected):
        return 0.0
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


def gradients(run: Callable[..., Any], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Outputs, and gradients of a sum of them that weighs every entry differently."""
    outputs = run(*tensors)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    wide = [torch.promote_types(x.dtype, torch.float64) for x in outputs]  # the same numbers in every precision
    weights = [
        draw(*x.shape, dtype=dtype, seed=9 + k).detach().to(x.dtype)
        for k, (x, dtype) in enumerate(zip(outputs, wide, strict=True))
    ]
    return [*outputs, *torch.autograd.grad(outputs, tensors, weights)]


def assert_equal(
    run: Callable[..., Any], definition: Callable[..., Any], tensors: Sequence[Tensor], bound: float = 1e-12
) -> None:
    found, expected = gradients(run, tensors), gradients(definition, tensors)
    assert [x.shape for x in found] == [x.shape for x in expected]
    errors = [largest(f, e) for f, e in zip(found, expected, strict=True)]
    assert all(error < bound for error in errors), errors


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, function: Callable[..., Any]) -> None:
    """Let a module of a package that is not installed have a function, under the name of that."""
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        found = ModuleType(".".join(parts[:depth]))
        found.__spec__ = importlib.util.spec_from_loader(found.__name__, None)
        monkeypatch.setitem(sys.modules, found.__name__, found)
    setattr(found, function.__name__, function)


def heads(
    batch: int, length: int, count: int, size: int, groups: int, n: int, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Return tensors as a trained layer of heads has them, in the order of NAMES."""
    delta = 10 ** (-1 + 0.5 * draw(batch, length, count, seed=1).detach())
    A = -torch.arange(1, count + 1, dtype=torch.float64, device=DEVICE)
    B, C = (draw(batch, length, groups, n, seed=k) for k in (4, 5))
    u, D, initial = draw(batch, length, count, size, seed=3), draw(count, seed=6), draw(batch, count, size, n, seed=7)
    return [x.detach().to(dtype).requires_grad_() for x in (u, delta, A, B, C, D, initial)]


def heads_and_state(*x: Tensor, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return ops.selective_heads(*x[:6], initial=x[6], reset=reset, return_state=True)


def head_steps(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial: Tensor,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step after the other, as the formula says."""
    H, outputs = initial, []
    for t in range(u.shape[1]):
        b, c = (x[:, t].repeat_interleave(len(A) // x.shape[2], 1)[:, :, None] for x in (B, C))
        if reset is not None:
            H = torch.where(reset[:, t, None, None, None], 0, H)
        decay = torch.exp(delta[:, t] * A)[..., None, None]
        H = decay * H + (delta[:, t, :, None] * u[:, t])[..., None] * b
        outputs.append((H * c).sum(-1) + D[:, None] * u[:, t])
    return torch.stack(outputs, 1) if outputs else u * D[:, None], H


def resets(batch: int, length: int, piece: int) -> dict[str, Tensor]:
    """Resets of sequences: none that is True, at the first step, around borders of pieces, at every step, at random."""
    found = dict.fromkeys(("nowhere", "at the first step", "at borders", "everywhere", "at random"))
    for name in found:
        found[name] = torch.zeros(batch, length, dtype=torch.bool, device=DEVICE)
    found["at the first step"][:, 0] = True
    for row in range(batch):  # at the last step of a piece, the first of the next, or both
        found["at borders"][row, piece - 1 + row % 2 :: piece] = True
    found["at borders"][-1, piece::piece] = True
    found["everywhere"][:] = True
    found["at random"] |= draw(batch, length, seed=8) < -0.8
    return found
