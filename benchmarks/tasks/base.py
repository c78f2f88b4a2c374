"""What a task is: sequences with labels, split once and for all, and what models are measured by on them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

SPLIT_SEED = 0  # of the task, not of a run: every seed of a study is measured on the same test sequences
UNLABELLED = -100  # a position without a label; what torch's cross entropy leaves out
MEASURED = 128  # sequences of tokens to validate on; four times as many to test on
TRAINING = 32_000  # sequences of tokens to learn from at most


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
    per_loss : float
        The value at a loss of 1, where it is measured by the loss; accuracies are not.
    """

    name: str
    unit: str
    points: str
    rises: bool
    digits: int
    per_loss: float = 1.0

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
BITS = Metric("bits per character", "", "bits per character of the test text", False, 3, 1.0 / math.log(2.0))
ERROR = Metric("error", "% of the mean square", "points of the test error", rises=False, digits=3, per_loss=100.0)


@dataclass(frozen=True)
class Part:
    """Sequences and their labels.

    Attributes
    ----------
    inputs : (count, length, features) or (count, length) Tensor
        Sequences of numbers, float32, or of tokens, int64.
    labels : (count,), (count, length) or (count, length, channels) Tensor
        Class of each sequence, or of each position of one, int64; or real outputs at each position, float32.
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """The number of sequences."""
        return len(self.labels)


@dataclass(frozen=True)
class Task:
    """A classification of sequences, or of the positions of sequences of tokens; or real outputs to be predicted.

    Attributes
    ----------
    name : str
        What ``--task`` calls it.
    title, source : str
        What it is and where the data come from, for the report.
    classes : int
        Number of labels; or of outputs.
    train, validation, test : Part
        To learn from, to choose settings by, and to report.
    metric : Metric
        What models are measured by.
    vocabulary : str
        The character of each token where the tokens are text, else empty.
    symbols : int
        How many tokens there are, where that is not the number of classes.
    readout : {"mean", "last"}
        What a class is told from: the mean over a sequence, or its last position.
    padded : bool
        Whether sequences of different lengths begin with zeros, which no mean counts.
    longer : Part, optional
        Test sequences of twice the length, to see how a model goes on.
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
    symbols: int = 0
    readout: str = "mean"
    padded: bool = False
    longer: Part | None = None

    @property
    def tokens(self) -> bool:
        """Whether sequences are of tokens, and not of numbers."""
        return self.train.inputs.ndim == 2

    @property
    def everywhere(self) -> bool:
        """Whether every position of a sequence has a label, and not the sequence one."""
        return self.train.labels.ndim > 1

    @property
    def features(self) -> int:
        """Numbers given at each position of a sequence; of tokens, how many there are."""
        return (self.symbols or self.classes) if self.tokens else self.train.inputs.shape[2]

    @property
    def predicts(self) -> bool:
        """Whether the labels are real outputs."""
        return self.train.labels.is_floating_point()

    def loss(self, outputs: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """The mean square of the difference, or the cross entropy over all sequences or positions with a label."""
        if self.predicts:
            return F.mse_loss(outputs, labels, reduction=reduction)
        return F.cross_entropy(outputs.flatten(0, -2), labels.flatten(), ignore_index=UNLABELLED, reduction=reduction)

    @property
    def length(self) -> int:
        """Positions of a sequence."""
        return self.train.inputs.shape[1]
