"""Teacher and student: the outputs of a random linear system of known order, to be predicted from its inputs."""

from __future__ import annotations

import numpy as np
import torch

import hankelred as hr
from hankelred.checks import Array

from .base import ERROR, SPLIT_SEED, Part, Task

CHANNELS, LENGTH = 2, 256
SEQUENCES = {"train": 4000, "validation": 200, "test": 800, "longer": 400}


def teacher(states: int) -> Task:
    """White noise through a teacher with so many complex states, whose Hankel singular values say what can be reached.

    Its poles have moduli from 0.9 to 0.995; outputs have a mean square of 1 in each channel.
    """
    system = teacher_system(states)
    rng = np.random.default_rng([SPLIT_SEED, states])
    parts = {}
    for name, count in SEQUENCES.items():
        u = rng.standard_normal((count, LENGTH * (1 + (name == "longer")), CHANNELS))
        y = _outputs(system, u)
        parts[name] = u, y
    scale = np.sqrt(np.square(parts["train"][1]).mean(axis=(0, 1)))
    return Task(
        name=f"teacher-{states}",
        title=f"the output of a linear system with {states} complex states, predicted from white noise that drives it",
        source="Drawn at random",
        classes=CHANNELS,
        **{name: Part(_float(u), _float(y / scale)) for name, (u, y) in parts.items()},
        metric=ERROR,
    )


def teacher_system(states: int) -> hr.DiagonalSystem:
    """The teacher, before its outputs are scaled."""
    rng = np.random.default_rng([SPLIT_SEED, states, 1])
    lam = rng.uniform(0.9, 0.995, states) * np.exp(1j * rng.uniform(0.0, np.pi, states))
    B, C = (rng.standard_normal(x) + 1j * rng.standard_normal(x) for x in ((states, CHANNELS), (CHANNELS, states)))
    B *= np.sqrt(1.0 - np.abs(lam) ** 2)[:, None]  # every state has the same mean square
    return hr.DiagonalSystem(lam, B, C, dt=True, output="real")


def _outputs(system: hr.DiagonalSystem, u: Array) -> Array:
    y, x = np.empty_like(u), np.zeros((len(u), system.n), complex)
    for t in range(u.shape[1]):
        x = system.lam * x + u[:, t] @ system.B.T
        y[:, t] = (x @ system.C.T).real
    return y


def _float(x: Array) -> torch.Tensor:
    return torch.from_numpy(x.astype(np.float32))
