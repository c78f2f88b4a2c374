"""White noise, to be told again so many steps later: all Hankel singular values are alike, and none can go."""

from __future__ import annotations

import numpy as np
import torch

from .base import ERROR, SPLIT_SEED, Part, Task

CHANNELS, LENGTH = 1, 128
SEQUENCES = {"train": 4000, "validation": 200, "test": 800}


def delay(steps: int) -> Task:
    """White noise delayed by a number of steps."""
    rng = np.random.default_rng([SPLIT_SEED, steps])
    parts = {}
    for name, count in SEQUENCES.items():
        u = rng.standard_normal((count, LENGTH, CHANNELS)).astype(np.float32)
        y = np.concatenate([np.zeros_like(u[:, :steps]), u[:, :-steps]], axis=1)
        parts[name] = Part(torch.from_numpy(u), torch.from_numpy(y))
    return Task(
        name=f"delay-{steps}",
        title=f"white noise, to be told again {steps} steps later",
        source="Drawn at random",
        classes=CHANNELS,
        **parts,
        metric=ERROR,
    )
