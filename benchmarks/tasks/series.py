"""Real series of several channels: exercises seen by a watch, and spoken vowels."""

from __future__ import annotations

import io

import numpy as np
import torch

from hankelred.checks import Array

from ..data import read
from .base import SPLIT_SEED, Part, Task

WINDOW, HOP = 512, 128  # steps at 50 Hz
VALIDATED, TESTED = (7, 8), (9, 10)  # people
LONGEST = 29  # steps of a vowel


def watch() -> Task:
    """Which of seven exercises of the shoulder is made, in windows of ten seconds; people are in one part only."""
    data = np.load(io.BytesIO(read("watch", "seglearn/data/watch_dataset.npy")), allow_pickle=True).item()
    windows: dict[str, list[tuple[Array, int]]] = {"train": [], "validation": [], "test": []}
    for x, label, person in zip(data["X"], data["y"], data["subject"], strict=True):
        part = "validation" if person in VALIDATED else "test" if person in TESTED else "train"
        starts = range(0, len(x) - WINDOW + 1, HOP)
        windows[part] += [(np.asarray(x[k : k + WINDOW], np.float32), int(label)) for k in starts]
    seen = np.concatenate([x for x, _ in windows["train"]])
    mean, deviation = seen.mean(axis=0), seen.std(axis=0)
    parts = {name: _part([((x - mean) / deviation, y) for x, y in found]) for name, found in windows.items()}
    return Task(
        name="watch",
        title="exercises of the shoulder, 6 channels of a watch for ten seconds: which of seven?",
        source="The watch data of the package seglearn 1.2.5 of PyPI",
        classes=7,
        **parts,
    )


def vowels() -> Task:
    """Which of nine people says a vowel, from 7 to 29 steps of 12 coefficients; the official test part."""
    train, test = (
        _series(read("vowels", f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_{x}.ts").decode())
        for x in ("TRAIN", "TEST")
    )
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(train))
    held = len(train) // 5
    return Task(
        name="vowels",
        title="Japanese vowels, 12 coefficients at each step: who of nine people says it?",
        source="The UCI set JapaneseVowels from the package aeon 1.6.0 of PyPI",
        classes=9,
        train=_part([train[k] for k in shuffled[held:]]),
        validation=_part([train[k] for k in shuffled[:held]]),
        test=_part(test),
        padded=True,
    )


def _series(text: str) -> list[tuple[Array, int]]:
    """The series of a file of the ts format, behind as many zeros as they lack, and their classes from 0."""
    found = []
    for line in text.partition("@data")[2].split():
        *channels, label = line.split(":")
        x = np.array([[float(value) for value in channel.split(",")] for channel in channels], np.float32).T
        found.append((np.pad(x, ((LONGEST - len(x), 0), (0, 0))), int(label) - 1))
    return found


def _part(found: list[tuple[Array, int]]) -> Part:
    inputs, labels = zip(*found, strict=True)
    return Part(torch.from_numpy(np.stack(inputs)), torch.from_numpy(np.array(labels, np.int64)))
