"""Associative recall: which value was shown with a key."""

from __future__ import annotations

import numpy as np
import torch

from . import base
from .base import SPLIT_SEED, UNLABELLED, Part, Task

PAIRS, KEYS, VALUES = 8, 16, 16


def recall() -> Task:
    """Associative recall: pairs of a key and a value, then the keys in another order, asking for the values."""
    rng = np.random.default_rng(SPLIT_SEED)
    train, validation, test = (_pairs(rng, count) for count in (base.TRAINING, base.MEASURED, 4 * base.MEASURED))
    return Task(
        name="recall",
        title=f"{PAIRS} keys with a value each, then the keys again in another order: which value belongs to each?",
        source="Drawn at random",
        classes=KEYS + VALUES,
        train=train,
        validation=validation,
        test=test,
    )


def _pairs(rng: np.random.Generator, count: int) -> Part:
    keys = rng.permuted(np.tile(np.arange(KEYS), (count, 1)), axis=1)[:, :PAIRS]
    values = KEYS + rng.integers(VALUES, size=(count, PAIRS))
    order = rng.permuted(np.tile(np.arange(PAIRS), (count, 1)), axis=1)
    shown = np.stack([keys, values], axis=2).reshape(count, -1)
    inputs = np.concatenate([shown, np.take_along_axis(keys, order, axis=1)], axis=1)
    answers = np.take_along_axis(values, order, axis=1)
    labels = np.concatenate([np.full_like(shown, UNLABELLED), answers], axis=1)
    return Part(torch.from_numpy(inputs), torch.from_numpy(labels))
