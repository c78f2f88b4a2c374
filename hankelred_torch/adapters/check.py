"""What a layer does against what its adapter takes it for: run on a random sequence, in double precision.

The layer itself runs, with copies of its tensors in double precision in their places, the parameters moved by a
hundredth: factors that are 1 and terms that are 0 at the start must be in the formula, too. It runs with all states and
with fewer, which needs the sizes that the adapter gives to be right.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hankelred import DiagonalSystem
from hankelred.checks import Array
from hankelred.errors import HankelredError, InputError

from ..convert import first
from ..exchange import holding
from ..sampling import running
from .base import Adapter

LENGTH = 32
MOVED = 0.01

# Layers may compute in single precision inside: 6e-8 of a phase of 1,000. Another formula is off by the square of the
# step times a rate at least: below this the two are one to all intents.
RTOL = 1e-4


class RunsWithAllStatesOnly(InputError):
    """The layer runs, but not as it would be after a cut."""


def difference(adapter: Adapter) -> float:
    """Run a layer and return the relative difference from what its adapter takes it for.

    Of a layer whose recurrence the adapter cannot run, how much its output changes when its states change places.

    Raises
    ------
    InputError
        If the layer does not run by itself on a sequence, or on nothing but a length.
    RunsWithAllStatesOnly
        If it does, but not with fewer states.
    """
    layer, fewer, errors, found = adapter.layer, adapter.states - adapter.round_to, [], None
    compare = _of_recurrence if adapter.kind == "selective" else _of_system
    with running(layer):
        for dtype in (torch.float64, torch.float32):  # some convert to single precision on the way
            try:
                with holding(layer, _moved(layer, dtype)):
                    found = compare(adapter, dtype)
                    if found <= RTOL and fewer > 0:
                        with holding(layer, adapter.resize(fewer), adapter.sizes(fewer)):
                            found = max(found, compare(adapter, dtype))
                return found
            except HankelredError:
                raise
            except Exception as error:  # whatever other people's code raises
                errors.append(f"{type(error).__name__}: {error}")
    plain = all(x in module._parameters or x in module._buffers for module, x, _ in adapter.places().values())
    if found is not None and plain:  # others, such as parametrized ones, are refused by name where they are replaced
        raise RunsWithAllStatesOnly(
            f"{type(layer).__qualname__} must run with fewer states to be reduced; got {errors[-1]}. It has a size or "
            f"a tensor of its states that {type(adapter).__name__} does not know: name it there."
        )
    raise InputError(
        f"{type(layer).__qualname__} must run by itself on a random sequence to be compared with what "
        f"{type(adapter).__name__} reads; got {errors[0]}"
    )


def _moved(layer: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return all tensors of a layer in another precision, parameters moved at random; one copy for all its holders."""
    generator, copies = torch.Generator().manual_seed(0), dict[int, Tensor]()
    named = [*layer.named_parameters(remove_duplicate=False), *layer.named_buffers(remove_duplicate=False)]
    named = [(name, x) for name, x in named if x.is_floating_point() or x.is_complex()]
    for _, x in named:
        if id(x) not in copies:
            copies[id(x)] = new = x.detach().to(torch.promote_types(x.dtype, dtype))
            if isinstance(x, nn.Parameter):
                noise = torch.randn(x.shape, generator=generator, dtype=dtype).to(x.device)
                size = new.abs().square().mean().sqrt()
                new = new + MOVED * noise * torch.where(new == 0, size.where(size > 0, 1.0), new)
                copies[id(x)] = nn.Parameter(new, requires_grad=False)
    return {name: copies[id(x)] for name, x in named}


def _of_system(adapter: Any, dtype: torch.dtype) -> float:
    """Compare a layer with one system, or one for every channel, by whatever the layer can be called with."""
    layer, read = adapter.layer, adapter.read(adapter.values())
    bank = [read] if isinstance(read, DiagonalSystem) else list(read)
    if not all(x.is_discrete for x in bank):  # in continuous time, shared by channels with steps of their own
        if (unshared := adapter.unshared()) is None:
            return _of_permutation(adapter, lambda: first(layer(LENGTH)))
        with holding(layer, unshared):
            bank = list(adapter.read(adapter.values()))
    u = np.random.default_rng(0).standard_normal((LENGTH, sum(x.m for x in bank)))
    y, direct = _outputs(bank, u)
    channels = bank[0].m
    if len(bank) == 1 and bank[0].p == 2 * channels:  # outputs of both directions
        y, direct = y[:, :channels] + _outputs(bank, u[::-1])[0][::-1, channels:], direct[:, :channels]
    kernel = np.stack([_responses(x)[:, :, 0].T for x in bank], axis=1)
    runs = _run(layer, torch.from_numpy(u).to(_device(layer), dtype))
    before = np.pad(y[:-1], ((1, 0), (0, 0)))  # outputs of the states before the input of a step, or behind it
    errors = [
        np.linalg.norm(run - expected) / max(np.linalg.norm(part), np.finfo(float).tiny)
        for run in runs
        for expected, part in ((y + direct, y), (before + direct, y), (kernel, kernel), (kernel[0], kernel[0]))
        if run.shape == expected.shape
    ]
    return float(min(errors, default=np.inf))


def _run(layer: nn.Module, u: Tensor) -> list[Array]:
    """Return what a layer makes of a sequence (length, channels), or of a length, in all ways that it can be called."""
    ways = (
        lambda: first(layer(u[None]))[0],
        lambda: first(layer(u)),
        lambda: first(layer(u.T[None]))[0].T,
        lambda: first(layer(LENGTH)),
    )
    found, errors = [], []
    for way in ways:
        try:
            found.append(way().cpu().numpy())
        except Exception as error:  # not the way it is called
            errors.append(error)
    if not found:
        raise errors[0]
    return found


def _responses(system: DiagonalSystem) -> Array:
    """Return the impulse response without the feedthrough, (length, p, m)."""
    powers = system.lam ** np.arange(LENGTH)[:, None]
    found = np.einsum("pn,ln,nm->lpm", system.C, powers, system.B)
    return found.real if system.has_real_output else found


def _outputs(bank: list[DiagonalSystem], u: Array) -> tuple[Array, Array]:
    """Return the outputs (length, p) of the states of all systems side by side, and what is fed through."""
    y, direct, start = [], [], 0
    for system in bank:
        own = u[:, start : start + system.m]
        start += system.m
        late = enumerate(_responses(system))
        y.append(sum(np.pad(own[: LENGTH - k] @ h.T, ((k, 0), (0, 0))) for k, h in late))
        direct.append(own @ (system.D.real if system.has_real_output else system.D).T)
    return np.hstack(y), np.hstack(direct)


def _of_recurrence(adapter: Any, dtype: torch.dtype) -> float:
    """Compare a selective layer with the recurrence of its adapter, or with itself, the states in another order."""
    layer = adapter.layer
    u = torch.randn(2, LENGTH, adapter.width, generator=torch.Generator().manual_seed(0)).to(_device(layer), dtype)
    expected, found = _recurrence(adapter, u), first(layer(u))
    if expected is None:
        return _of_permutation(adapter, lambda: first(layer(u)))
    return _relative(found, expected)


def _recurrence(adapter: Any, inputs: Tensor) -> Tensor | None:
    """Return the output of a selective layer by ``H_t = decay_t H_{t-1} + u_t B_t^T`` and ``y_t = H_t C_t``, in heads.

    The channels of Mamba are heads of one channel, with decays ``exp(delta_t A)``. A delta rule writes
    ``beta_t (u_t - decay_t H_{t-1} B_t)`` in the place of u.
    """
    data = adapter.sequences(inputs, None)
    decay, B, C, u = data[:4]
    beta = u.new_ones(u.shape[:3]) if data.beta is None else data.beta
    if data.rates is not None:
        decay, B, C, u = torch.exp(decay[..., None] * data.rates), B[:, :, None], C[:, :, None], (decay * u)[..., None]
    elif decay.ndim == u.ndim - 1:  # one for all states of a head
        decay = decay[..., None]
    B, C = (x.repeat_interleave(u.shape[2] // x.shape[2], dim=2) for x in (B, C))
    H, y = u.new_zeros(len(u), *u.shape[2:], B.shape[-1]), []
    for decay_t, B_t, C_t, u_t, beta_t in zip(*(x.unbind(1) for x in (decay, B, C, u, beta)), strict=True):
        H = decay_t[:, :, None] * H
        if data.beta is not None:
            u_t = beta_t[..., None] * (u_t - (H * B_t[:, :, None]).sum(-1))
        H = H + u_t[..., None] * B_t[:, :, None]
        y.append((H * C_t[:, :, None]).sum(-1))
    return adapter.output(inputs, data, torch.stack(y, 1).view(data.u.shape))


def _of_permutation(adapter: Any, run: Any) -> float:
    """Return how much the output changes when the states change places."""
    places = np.random.default_rng(0).permutation(adapter.states)
    moved = {
        name: x.index_select(axis, torch.as_tensor(adapter.entries(name, places), device=x.device))
        for name, axis in adapter.state_axes.items()
        for x in [adapter.tensor(name)]
    }
    before = run()
    with holding(adapter.layer, moved):
        return _relative(run(), before)


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(torch.finfo(expected.dtype).tiny))


def _device(layer: nn.Module) -> torch.device:
    return next((x.device for x in layer.parameters()), torch.device("cpu"))
