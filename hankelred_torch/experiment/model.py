"""The models of the experiments: an encoder, blocks around one state space layer each, and a linear head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import LRU, S4D, S5, Mamba


class Block(nn.Module):
    """Norm, state space layer, GELU, gated linear unit and dropout, added to the input (as in arXiv 2510.02823)."""

    def __init__(self, norm: nn.Module, ssm: nn.Module, channels: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.ssm = norm, ssm
        self.gate = nn.Linear(channels, 2 * channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, channels) to the same."""
        y = self.dropout(F.gelu(self.ssm(self.norm(x))))
        return x + self.dropout(F.glu(self.gate(y)))


class MambaBlock(nn.Module):
    """Norm, Mamba and dropout, added to the input: Mamba mixes channels and has a gate of its own."""

    def __init__(self, norm: nn.Module, ssm: nn.Module, dropout: float) -> None:
        super().__init__()
        self.norm, self.ssm = norm, ssm
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, channels) to the same."""
        return x + self.dropout(self.ssm(self.norm(x)))


class ChannelNorm(nn.BatchNorm1d):
    """Batch norm with the statistics of each channel over batch and length."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, channels) to the same."""
        return super().forward(x.flatten(0, 1)).view_as(x)


class SequenceClassifier(nn.Module):
    """One class for each sequence of numbers.

    Parameters
    ----------
    features, classes : int
        Numbers at each position of a sequence, and classes to tell apart.
    channels : int
        Width of the model.
    states : sequence of int
        Stored states of each block's layer; its length is the number of blocks.
    memory : float
        Longest time constant of a state of an LRU at the start, in steps; the shortest is that of a pole at 0.9.
    dropout : float
        Share of channels switched off at random in training.
    layer : str
        Kind of the state space layers, one of `LAYERS`.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        channels: int,
        states: Sequence[int],
        memory: float,
        dropout: float,
        layer: str = "lru",
    ) -> None:
        super().__init__()
        self.encoder = nn.Linear(features, channels)
        self.blocks = nn.Sequential(
            *(_block(ChannelNorm(channels), layer, channels, n, memory, dropout) for n in states)
        )
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map sequences (batch, length, features) to scores (batch, classes)."""
        return self.head(self.blocks(self.encoder(x)).mean(dim=1))


class TokenModel(nn.Module):
    """One class for each position of a sequence of tokens, from that position and those before it.

    Parameters
    ----------
    tokens, classes : int
        Different tokens, and classes to tell apart.
    channels, states, memory, dropout, layer
        As for `SequenceClassifier`.
    """

    def __init__(
        self,
        tokens: int,
        classes: int,
        channels: int,
        states: Sequence[int],
        memory: float,
        dropout: float,
        layer: str = "lru",
    ) -> None:
        super().__init__()
        self.encoder = nn.Embedding(tokens, channels)
        # of each position by itself: statistics over time would tell a position what comes after it
        self.blocks = nn.Sequential(
            *(_block(nn.RMSNorm(channels), layer, channels, n, memory, dropout) for n in states)
        )
        self.norm = nn.RMSNorm(channels)
        self.head = nn.Linear(channels, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (batch, length) to scores (batch, length, classes)."""
        return self.head(self.norm(self.blocks(self.encoder(tokens))))


def _block(norm: nn.Module, layer: str, channels: int, states: int, memory: float, dropout: float) -> nn.Module:
    if layer == "mamba":
        return MambaBlock(norm, Mamba(channels, states), dropout)
    r_max = max(0.9, 1.0 - 1.0 / memory)
    kinds: dict[str, Callable[[int, int], nn.Module]] = {"lru": partial(LRU, r_max=r_max), "s4d": S4D, "s5": S5}
    return Block(norm, kinds[layer](channels, states), channels, dropout)
