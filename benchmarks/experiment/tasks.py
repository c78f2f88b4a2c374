"""The tasks an experiment can train on: sequences with labels, split once and for all.

A new task is one function that returns a `Task`, and one line in `TASKS`.
"""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hankelred.checks import Array
from hankelred.errors import InputError

SPLIT_SEED = 0  # of the task, not of a run: every seed of a study is measured on the same test sequences
UNLABELLED = -100  # a position without a label; what torch's cross entropy leaves out

# Characters of the text task: end of line, printable ASCII, and one that stands for all others.
VOCABULARY = "\n" + "".join(map(chr, range(32, 127))) + "\ufffd"
CONTEXT = 128  # characters of a sequence
MEASURED = 128  # sequences to validate on; four times as many to test on
TRAINING = 32_000  # sequences to learn from at most, about four million characters
# Folders of the standard library that are not written by its authors, or are tests of it.
LEFT_OUT = {"__pycache__", "dist-packages", "ensurepip", "idle_test", "lib2to3", "site-packages", "test", "tests"}

PAIRS, KEYS, VALUES = 8, 16, 16  # of associative recall


@dataclass(frozen=True)
class Metric:
    """What a model is measured by, and how the report speaks of it.

    Attributes
    ----------
    name : str
        A word or two.
    unit : str
        Written behind a value; may be empty.
    points : str
        What a difference of two values is a number of.
    rises : bool
        Whether more is better.
    digits : int
        After the decimal point.
    """

    name: str
    unit: str
    points: str
    rises: bool
    digits: int

    def text(self, value: float) -> str:
        """A value with its unit."""
        return f"{value:.{self.digits}f} {self.unit or self.name}"

    @property
    def heading(self) -> str:
        """Name and unit for a column of a table or an axis."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def key(self) -> str:
        """Name for a file."""
        return self.name.split()[0]


ACCURACY = Metric("accuracy", "%", "points of test accuracy", rises=True, digits=1)
BITS = Metric("bits per character", "", "bits per character of the test text", rises=False, digits=3)


@dataclass(frozen=True)
class Part:
    """Sequences and their labels.

    Attributes
    ----------
    inputs : (count, length, features) or (count, length) Tensor
        Sequences of numbers, float32, or of tokens, int64.
    labels : (count,) or (count, length) Tensor
        Class of each sequence, or of each position of one; int64.
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """The number of sequences."""
        return len(self.labels)


@dataclass(frozen=True)
class Task:
    """A classification of sequences, or of the positions of sequences of tokens.

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
    metric : Metric
        What models are measured by.
    vocabulary : str
        The character of each token where the tokens are text, else empty.
    """

    name: str
    title: str
    source: str
    classes: int
    train: Part
    validation: Part
    test: Part
    metric: Metric = ACCURACY
    vocabulary: str = ""

    @property
    def tokens(self) -> bool:
        """Whether sequences are of tokens, with a label at each position, and not of numbers with one label."""
        return self.train.inputs.ndim == 2

    @property
    def features(self) -> int:
        """Numbers given at each position of a sequence; of tokens, how many there are."""
        return self.classes if self.tokens else self.train.inputs.shape[2]

    @property
    def length(self) -> int:
        """Positions of a sequence."""
        return self.train.inputs.shape[1]


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
        source="the digits that scikit-learn ships: the test half of the UCI optical recognition set, 1,797 images",
        classes=10,
        train=train,
        validation=validation,
        test=test,
    )


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
        _predicting(_encoded(part), most) for part, most in zip(parts, (TRAINING, MEASURED, 4 * MEASURED), strict=True)
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


def recall() -> Task:
    """Associative recall: pairs of a key and a value, then the keys in another order, asking for the values."""
    rng = np.random.default_rng(SPLIT_SEED)
    train, validation, test = (_pairs(rng, count) for count in (TRAINING, MEASURED, 4 * MEASURED))
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


TASKS: dict[str, Callable[[], Task]] = {"digits": digits, "text": text, "recall": recall}


def load_task(name: str) -> Task:
    """The task called `name`; raise `InputError` if there is none."""
    if name not in TASKS:
        raise InputError(f"task must be one of the known tasks; got {name!r}. Choose from: {', '.join(TASKS)}.")
    return TASKS[name]()
