"""Associative recall: which value was shown with a key."""

from __future__ import annotations

import numpy as np
import torch

from . import base
from .base import SPLIT_SEED, UNLABELLED, Part, Task

PAIRS, VALUES = 8, 16


def recall(pairs: int = PAIRS) -> Task:
    """Associative recall: pairs of a key and a value, then the keys in another order, asking for the values.

    Keys are drawn from twice as many as there are pairs.
    """
    rng = np.random.default_rng(SPLIT_SEED)
    counts = base.TRAINING, base.MEASURED, 4 * base.MEASURED
    train, validation, test = (_sequences(rng, count, pairs) for count in counts)
    return Task(
        name="recall" if pairs == PAIRS else f"recall-{pairs}",
        title=f"{pairs} keys with a value each, then the keys again in another order: which value belongs to each?",
        source="Drawn at random",
        classes=2 * pairs + VALUES,
        train=train,
        validation=validation,
        test=test,
    )


def _sequences(rng: np.random.Generator, count: int, pairs: int) -> Part:
    keys = rng.permuted(np.tile(np.arange(2 * pairs), (count, 1)), axis=1)[:, :pairs]
    values = 2 * pairs + rng.integers(VALUES, size=(count, pairs))
    order = rng.permuted(np.tile(np.arange(pairs), (count, 1)), axis=1)
    shown = np.stack([keys, values], axis=2).reshape(count, -1)
    inputs = np.concatenate([shown, np.take_along_axis(keys, order, axis=1)], axis=1)
    answers = np.take_along_axis(values, order, axis=1)
    labels = np.concatenate([np.full_like(shown, UNLABELLED), answers], axis=1)
    return Part(torch.from_numpy(inputs), torch.from_numpy(labels))
