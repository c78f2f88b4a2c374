"""The sequence classifier of the experiments: linear encoder, blocks around one LRU each, mean pooling, linear head."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import LRU


class Block(nn.Module):
    """Batch norm, LRU, GELU, gated linear unit and dropout, added to the input (the block of arXiv 2510.02823)."""

    def __init__(self, channels: int, states: int, memory: float, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)
        self.ssm = LRU(channels, states, r_max=max(0.9, 1.0 - 1.0 / memory))
        self.gate = nn.Linear(channels, 2 * channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, channels) to the same."""
        y = self.norm(x.flatten(0, 1)).view_as(x)  # statistics of each channel over batch and length
        y = self.dropout(F.gelu(self.ssm(y)))
        return x + self.dropout(F.glu(self.gate(y)))


class SequenceClassifier(nn.Module):
    """One class for each sequence.

    Parameters
    ----------
    features, classes : int
        Numbers at each position of a sequence, and classes to tell apart.
    channels : int
        Width of the model.
    states : sequence of int
        Stored states of each block's LRU; its length is the number of blocks.
    memory : float
        Longest time constant of a state at the start, in steps; the shortest is that of a pole at 0.9.
    dropout : float
        Share of channels switched off at random in training.
    """

    def __init__(
        self, features: int, classes: int, channels: int, states: Sequence[int], memory: float, dropout: float
    ) -> None:
        super().__init__()
        self.encoder = nn.Linear(features, channels)
        self.blocks = nn.Sequential(*(Block(channels, n, memory, dropout) for n in states))
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map sequences (batch, length, features) to scores (batch, classes)."""
        return self.head(self.blocks(self.encoder(x)).mean(dim=1))
