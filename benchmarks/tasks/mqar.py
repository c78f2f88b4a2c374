"""Recall with keys that are vectors: which value was shown with a direction that was never seen before."""

from __future__ import annotations

import numpy as np
import torch

from . import base
from .base import SPLIT_SEED, UNLABELLED, Part, Task
from .recall import VALUES


def mqar(pairs: int) -> Task:
    """Continuous multi-query recall: keys and values in turn, then the keys in another order, asking for the values.

    Keys are directions drawn anew for every sequence, in as many dimensions as there are pairs; values are one of 16,
    as a one in a place of its own.
    """
    rng = np.random.default_rng([SPLIT_SEED, pairs])
    counts = base.TRAINING, base.MEASURED, 4 * base.MEASURED
    train, validation, test = (_sequences(rng, count, pairs) for count in counts)
    return Task(
        name=f"mqar-{pairs}",
        title=f"{pairs} directions with a value each, then the directions again: which value belongs to each?",
        source="Drawn at random",
        classes=VALUES,
        train=train,
        validation=validation,
        test=test,
    )


def _sequences(rng: np.random.Generator, count: int, pairs: int) -> Part:
    keys = rng.standard_normal((count, pairs, pairs), dtype=np.float32)
    keys *= pairs**0.5 / np.linalg.norm(keys, axis=2, keepdims=True)  # entries of mean square 1
    values = rng.integers(VALUES, size=(count, pairs))
    order = rng.permuted(np.tile(np.arange(pairs), (count, 1)), axis=1)
    inputs = np.zeros((count, 3 * pairs, pairs + VALUES), np.float32)
    inputs[:, 0 : 2 * pairs : 2, :pairs] = keys
    inputs[:, 1 : 2 * pairs : 2, pairs:] = np.eye(VALUES, dtype=np.float32)[values]
    inputs[:, 2 * pairs :, :pairs] = np.take_along_axis(keys, order[:, :, None], axis=1)
    labels = np.full((count, 3 * pairs), UNLABELLED)
    labels[:, 2 * pairs :] = np.take_along_axis(values, order, axis=1)
    return Part(torch.from_numpy(inputs), torch.from_numpy(labels))
