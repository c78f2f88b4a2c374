"""The source of Python's standard library, character by character."""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from hankelred.checks import Array
from hankelred.errors import InputError

from . import base
from .base import BITS, SPLIT_SEED, Part, Task

# Characters of the text: end of line, printable ASCII, and one that stands for all others.
VOCABULARY = "\n" + "".join(map(chr, range(32, 127))) + "\ufffd"
CONTEXT = 128  # characters of a sequence
# Folders of the standard library that are not written by its authors, or are tests of it.
LEFT_OUT = {"__pycache__", "dist-packages", "ensurepip", "idle_test", "lib2to3", "site-packages", "test", "tests"}


def text() -> Task:
    """The source of Python's standard library, to be predicted character by character."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(x for x in root.rglob("*.py") if not LEFT_OUT & set(x.relative_to(root).parts))
    if len(files) < 20:
        raise InputError(
            f"The source of the standard library must be installed for the task text; got {len(files)} files in "
            f"{root}. Use a Python that has it, or another task."
        )
    # whole files go into one part each, so that no text is learned that is tested on
    shuffled = [files[k] for k in np.random.default_rng(SPLIT_SEED).permutation(len(files))]
    tenth = len(files) // 10
    parts = [shuffled[2 * tenth :], shuffled[:tenth], shuffled[tenth : 2 * tenth]]
    train, validation, test = (
        _predicting(_encoded(part), most)
        for part, most in zip(parts, (base.TRAINING, base.MEASURED, 4 * base.MEASURED), strict=True)
    )
    return Task(
        name="text",
        title="source code, each character predicted from those before it",
        source=f"The standard library of Python {platform.python_version()}, as installed with it, {len(files)} files",
        classes=len(VOCABULARY),
        train=train,
        validation=validation,
        test=test,
        metric=BITS,
        vocabulary=VOCABULARY,
    )


def _encoded(files: Sequence[Path]) -> Array:
    """The text of files as places in `VOCABULARY`."""
    table = np.full(129, len(VOCABULARY) - 1)
    for place, character in enumerate(VOCABULARY[:-1]):
        table[ord(character)] = place
    # universal newlines: the same tokens wherever Python is installed
    whole = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
    return table[np.minimum(np.frombuffer(whole.encode("utf-32-le"), "<u4"), 128)]


def _predicting(tokens: Array, most: int) -> Part:
    """Cut tokens into sequences, each position labelled with the next token; evenly chosen where there are too many."""
    count = (len(tokens) - 1) // CONTEXT
    chosen = np.linspace(0, count - 1, min(most, count)).astype(int)
    windows = CONTEXT * chosen[:, None] + np.arange(CONTEXT)
    return Part(torch.from_numpy(tokens[windows]), torch.from_numpy(tokens[windows + 1]))
