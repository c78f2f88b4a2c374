"""The tasks an experiment can train on: sequences with one label each, split once and for all.

A new task is one function that returns a `Task`, and one line in `TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hankelred.errors import InputError

SPLIT_SEED = 0  # of the task, not of a run: every seed of a study is measured on the same test sequences


@dataclass(frozen=True)
class Part:
    """Sequences and their labels.

    Attributes
    ----------
    inputs : (count, length, features) Tensor
        Sequences, float32.
    labels : (count,) Tensor
        Class of each sequence, int64.
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.labels)


@dataclass(frozen=True)
class Task:
    """A classification task.

    Attributes
    ----------
    name : str
        What ``--task`` calls it.
    title, source : str
        What it is and where the data come from, for the report.
    classes : int
        Number of labels.
    train, validation, test : Part
        To learn from, to choose settings by, and to report.
    """

    name: str
    title: str
    source: str
    classes: int
    train: Part
    validation: Part
    test: Part

    @property
    def features(self) -> int:
        """Numbers given at each position of a sequence."""
        return self.train.inputs.shape[2]

    @property
    def length(self) -> int:
        """Positions of a sequence."""
        return self.train.inputs.shape[1]


def digits() -> Task:
    """Return handwritten digits, read pixel by pixel: 1,797 sequences of 64 grey values."""
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
        source="the digits that scikit-learn ships: the test half of the UCI optical recognition set, 1,797 images",
        classes=10,
        train=train,
        validation=validation,
        test=test,
    )


TASKS: dict[str, Callable[[], Task]] = {"digits": digits}


def load_task(name: str) -> Task:
    """Return the task called `name`; raise `InputError` if there is none."""
    if name not in TASKS:
        raise InputError(f"task must be one of the known tasks; got {name!r}. Choose from: {', '.join(TASKS)}.")
    return TASKS[name]()
