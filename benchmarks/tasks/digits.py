"""Handwritten digits that scikit-learn ships, read pixel by pixel."""

from __future__ import annotations

import numpy as np
import torch

from .base import SPLIT_SEED, Part, Task


def digits() -> Task:
    """Handwritten digits, read pixel by pixel: 1,797 sequences of 64 grey values."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    sequences = (images / 16.0 - 0.5).astype(np.float32)[:, :, None]  # grey values 0..16, row by row
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    train, validation, test = (
        Part(torch.from_numpy(sequences[part]), torch.from_numpy(labels[part].astype(np.int64)))
        for part in np.split(shuffled, [1097, 1347])
    )
    return Task(
        name="digits",
        title="handwritten digits, 8 × 8 pixels read one by one",
        source="The digits that scikit-learn ships: the test half of the UCI optical recognition set, 1,797 images",
        classes=10,
        train=train,
        validation=validation,
        test=test,
    )
