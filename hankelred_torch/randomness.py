"""The random generators that a run draws from, read and put back together."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Return the state of the random generators of Python, NumPy and torch on every device, as plain values."""
    kind, keys, *position = np.random.get_state()  # noqa: NPY002 (the global state is what users' code draws from)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return {
        "python": random.getstate(),
        "numpy": (kind, [int(x) for x in keys], *position),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def way_back(generator: Any) -> Callable[[], Any] | None:
    """Return what puts a random generator of torch, NumPy or Python where it is now; None of anything else."""
    if isinstance(generator, torch.Generator):
        return partial(generator.set_state, generator.get_state())
    if isinstance(generator, np.random.Generator):
        return partial(setattr, generator.bit_generator, "state", generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return partial(generator.set_state, generator.get_state())
    return partial(generator.setstate, generator.getstate()) if isinstance(generator, random.Random) else None


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the random generators where they were."""
    kind, keys, *position = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *position))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
