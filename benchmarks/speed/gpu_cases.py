"""What is run on a GPU: operations, layers, and what others have in their place, with arguments and bytes moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks._common import optional
from benchmarks.speed import traffic
from hankelred_torch import hankel_penalty, ops
from hankelred_torch.layers import LRU, S4D, S5, Mamba


class Sizes(NamedTuple):
    """Sizes of a training; `states` of recurrences, `selective` of a selective scan, `head` of heads."""

    batch: int
    steps: int
    states: int
    length: int
    channels: int
    selective: tuple[int, ...]
    head: tuple[int, ...]
    systems: int
    layer: int

    @property
    def few(self) -> int:
        """Inputs of a diagonal state space model."""
        return min(64, self.channels)

    @property
    def heads(self) -> tuple[int, int]:
        """Heads, and channels of each: 24 of 64 at the sizes of a training."""
        size = min(64, self.channels)
        return max(1, self.channels // size), size


# The small ones only show that it runs.
LARGE = Sizes(16, 4096, 256, 2048, 1536, (12, 16, 24), (64, 128), 1536, 256)
SMALL = Sizes(2, 128, 8, 128, 16, (8,), (8,), 8, 16)
TINY = Sizes(1, 18, 2, 18, 3, (2,), (2,), 2, 3)

Case = tuple[str, Callable[..., Any], list[Tensor]]


def operations(size: Sizes, device: str) -> Iterator[Case]:
    """Yield name, function and arguments of each operation, the arguments in double precision on the device."""
    batch, length, channels = size.batch, size.length, size.channels

    def real(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, device=device)

    def complex_(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.complex128, device=device)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, dtype=torch.float64, device=device)

    lam = torch.polar(0.9 + 0.09 * uniform(size.states), 6.28 * uniform(size.states))
    yield "linear_recurrence, constant, complex", ops.linear_recurrence, [lam, complex_(batch, size.steps, size.states)]
    gate, v = uniform(batch, size.steps, 4 * size.states), real(batch, size.steps, 4 * size.states)
    yield "linear_recurrence, varying, real", ops.linear_recurrence, [gate, v]
    yield "torch's associative_scan, varying, real", associative_scan, [gate, v]
    if optional("s5"):
        yield "s5-pytorch's scan, varying, real", s5_scan, [gate, v]
    reset = uniform(batch, size.steps) < 0.01
    backwards = partial(ops.linear_recurrence, reset=reset, reverse=True)
    yield "linear_recurrence, varying, reset, reverse", backwards, [gate, v]
    u, delta = real(batch, length, channels), 10 ** (-3 + 2 * uniform(batch, length, channels))
    reset = uniform(batch, length) < 0.01
    for n in size.selective:
        A = -torch.arange(1, n + 1, dtype=torch.float64, device=device).repeat(channels, 1)
        selected = [u, delta, A, real(batch, length, n), real(batch, length, n), real(channels)]
        yield f"selective_scan, {n} states", ops.selective_scan, selected
        if device != "cpu" and optional("mamba_ssm"):
            time_last = [x.mT.contiguous() if x.ndim == 3 else x for x in selected]
            yield f"mamba_ssm's scan, {n} states", mamba_scan, time_last
    yield f"selective_scan, {n} states, reset", partial(ops.selective_scan, reset=reset), selected
    count, width = size.heads
    steps, rates = 10 ** (-3 + 2 * uniform(batch, length, count)), -(1 + torch.arange(count, device=device)).double()
    for n in size.head:
        scalar = [real(batch, length, count, width), steps, rates, *(real(batch, length, 1, n) for _ in "BC")]
        yield f"selective_heads, {n} states", ops.selective_heads, scalar
        if device != "cpu" and optional("mamba_ssm"):
            yield f"mamba_ssm's heads, {n} states", mamba_heads, scalar
    yield f"selective_heads, {n} states, reset", partial(ops.selective_heads, reset=reset), scalar
    model = [lam.log(), complex_(size.states, size.few), complex_(size.few, size.states)]
    model += [real(batch, size.steps, size.few)]
    yield "diagonal_ssm, recurrence", partial(ops.diagonal_ssm, method="recurrence"), model
    yield "diagonal_ssm, convolution", partial(ops.diagonal_ssm, method="convolution"), model
    order = min(16, 2 * size.states)
    bank = [0.95 * uniform(size.systems, order), real(size.systems, order, 1), real(size.systems, 1, order)]
    yield "hankel_singular_values", partial(ops.hankel_singular_values, dt=True), bank
    yield "gramian_factors", squared_factors, bank
    dense = [0.2 * real(4, 16, 16), real(4, 16, 16)]
    yield "solve_lyapunov", partial(ops.solve_lyapunov, dt=True), dense
    yield "balanced_truncation", lambda *a: ops.balanced_truncation(*a, dt=True, order=2).hsv, bank


def layers(size: Sizes) -> Iterator[tuple[str, nn.Module]]:
    for kind in (LRU, S5, S4D, Mamba):
        yield kind.__name__, kind(size.layer, min(16, size.states) if kind is Mamba else size.states)


def squared_factors(*system: Tensor) -> tuple[Tensor, Tensor]:
    """The Gramians: factors are unique only up to a rotation."""
    S, R = ops.gramian_factors(*system, dt=True)
    return S @ S.mH, R.mH @ R


def associative_scan(a: Tensor, b: Tensor) -> Tensor:
    """The recurrence by torch's own scan, whose fast mode exists for GPUs only."""
    from torch._higher_order_ops.associative_scan import associative_scan as scan

    def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    return scan(combine, (a, b), dim=1, combine_mode="pointwise" if b.is_cuda else "generic")[1]


def s5_scan(a: Tensor, b: Tensor) -> Tensor:
    """The recurrence by the scan of s5-pytorch, which takes one sequence."""
    from s5.jax_compat import associative_scan as scan

    def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    return torch.stack([scan(combine, pair)[1] for pair in zip(a, b, strict=True)])


def mamba_scan(*tensors: Tensor) -> Tensor:
    """The selective scan by the kernel of mamba_ssm, time last in memory as it wants it; ours in double precision."""
    if tensors[0].dtype == torch.float64:
        u, delta, A, B, C, D = tensors
        return ops.selective_scan(u.mT, delta.mT, A, B.mT, C.mT, D).mT
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    found: Tensor = selective_scan_fn(*tensors)
    return found


def mamba_heads(*tensors: Tensor) -> Tensor:
    """Heads by the kernels of mamba_ssm, which take products of float32 in TF32; ours in double precision."""
    if tensors[0].dtype == torch.float64:
        return ops.selective_heads(*tensors)
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    found: Tensor = mamba_chunk_scan_combined(*tensors, 256)
    return found


def moved(size: Sizes) -> dict[str, tuple[int, int]]:
    """Bytes that a forward pass and its adjoint move in float32 or complex64, of the lines that kernels run."""
    from hankelred_torch.ops import _heads_torch, _heads_triton, _linear_triton, _selective_triton

    shared = {"rows": size.batch, "steps": size.steps, "chunks": _linear_triton._shape(8)[1]}
    constant = shared | {"n": size.states, "varies": False, "width": 8}
    varying = shared | {"n": 4 * size.states, "varies": True, "width": 4}
    found = {
        "linear_recurrence, constant, complex": (
            traffic.linear(**constant),
            traffic.linear_adjoint(**constant, parts=2),
        ),
        "linear_recurrence, varying, real": (traffic.linear(**varying), traffic.linear_adjoint(**varying)),
    }
    part = {"batch": size.batch, "length": size.length, "width": 4}
    for n in size.selective:
        scan = part | {"channels": size.channels, "n": n, "segment": 16}
        back = traffic.selective_adjoint(**scan, block=_selective_triton.CHANNELS)
        found[f"selective_scan, {n} states"] = traffic.selective(**scan), back
    count, width = size.heads
    for n in size.head:
        head = part | {"heads": count, "size": width, "groups": 1, "n": n, "piece": _heads_torch.PIECE}
        tiles = {"block": min(width, _heads_triton.WIDEST), "together": _heads_triton.heads_at_once(count, width, n)}
        found[f"selective_heads, {n} states"] = traffic.heads(**head), traffic.heads_adjoint(**head, **tiles)
    return {name: (there.total, back.total) for name, (there, back) in found.items()}


def sequences(layer: nn.Module, u: Tensor) -> Tensor:
    return layer(u)


def penalty(layer: nn.Module, u: Tensor) -> Tensor:
    return hankel_penalty(layer)


def used(layer: nn.Module) -> list[nn.Parameter]:
    """The parameters that Hankel singular values depend on: all but the feedthrough."""
    return [p for name, p in layer.named_parameters() if name != "D"]
