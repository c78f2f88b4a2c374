"""The models of the experiments: an encoder, blocks around one state space layer each, and a linear head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from hankelred_torch.layers import LRU, S4D, S5, Mamba

from ..tasks import Task
from .delta import Hybrid, delta_net
from .settings import Settings


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


class GatedBlock(nn.Module):
    """Norm, a layer that mixes channels and has a gate of its own, and dropout, added to the input."""

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
    """One class for each sequence of numbers or tokens; `states` are those of each block's layer."""

    def __init__(self, task: Task, settings: Settings, states: Sequence[int]) -> None:
        super().__init__()
        channels = settings.channels
        self.encoder = (nn.Embedding if task.tokens else nn.Linear)(task.features, channels)
        self.blocks = nn.Sequential(*(_block(ChannelNorm(channels), task, settings, n) for n in states))
        self.head = nn.Linear(channels, task.classes)
        self.readout, self.padded = task.readout, task.padded

    def forward(self, x: Tensor) -> Tensor:
        """Map sequences (batch, length, features), or (batch, length) of tokens, to scores (batch, classes)."""
        y = self.blocks(self.encoder(x))
        if self.readout == "last":
            return self.head(y[:, -1])
        if self.padded:
            there = (x if x.ndim == 2 else x.abs().sum(2)) != 0
            return self.head((y * there[..., None]).sum(1) / there.sum(1, keepdim=True))
        return self.head(y.mean(dim=1))


class PositionModel(nn.Module):
    """One class for each position of a sequence of numbers or tokens, from that position and those before it."""

    def __init__(self, task: Task, settings: Settings, states: Sequence[int]) -> None:
        super().__init__()
        channels = settings.channels
        self.encoder = (nn.Embedding if task.tokens else nn.Linear)(task.features, channels)
        # of each position by itself: statistics over time would tell a position what comes after it
        self.blocks = nn.Sequential(*(_block(nn.RMSNorm(channels), task, settings, n) for n in states))
        self.norm = nn.RMSNorm(channels)
        self.head = nn.Linear(channels, task.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map sequences as of `SequenceClassifier` to scores (batch, length, classes)."""
        return self.head(self.norm(self.blocks(self.encoder(x))))


def model_of(task: Task, settings: Settings, states: Sequence[int]) -> nn.Module:
    """A new model for a task, with these stored states in its blocks; where outputs are real, of layers alone."""
    if settings.layer == "delta" and task.tokens:
        return Hybrid(task, settings, states)
    if task.predicts:
        return nn.Sequential(*(_layer(task, settings, task.features, n) for n in states))
    return (PositionModel if task.everywhere else SequenceClassifier)(task, settings, states)


def _block(norm: nn.Module, task: Task, settings: Settings, states: int) -> nn.Module:
    layer = _layer(task, settings, settings.channels, states)
    if settings.layer in ("mamba", "delta"):
        return GatedBlock(norm, layer, settings.dropout)
    return Block(norm, layer, settings.channels, settings.dropout)


def _layer(task: Task, settings: Settings, channels: int, states: int) -> nn.Module:
    r_max = max(0.9, 1.0 - 1.0 / (settings.memory * task.length))
    kinds: dict[str, Callable[[int, int], nn.Module]]
    kinds = {"lru": partial(LRU, r_max=r_max), "mamba": Mamba, "s4d": S4D, "s5": S5, "delta": delta_net}
    return kinds[settings.layer](channels, states)
