"""Models that are sharded over ranks, their data, and a loop that trains and cuts them, shared by the workers."""

from __future__ import annotations

import importlib
import os
import warnings

import numpy as np
import torch
from adapter_models import lru
from forked import mean, share
from selective_models import tokens
from settings import what_and_when
from torch import nn
from torch.distributed.fsdp import fully_shard

import hankelred_torch as ht
from hankelred_torch import sharding

CONFIG, SCHEDULE = what_and_when(fraction=0.5, end_step=3, attempts=1, force=True)
FREQUENCIES = np.linspace(0.01, 3, 40)  # radians per step
STEPS = SCHEDULE.end_step + (20 if os.environ.get("HANKELRED_LONG", "0") not in ("", "0") else 4)


class Block(nn.Module):
    """An LRU behind a norm, beside the stream, as in a sequence model."""

    def __init__(self, states, seed):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.layer = lru(states, 4, seed=seed, dtype=torch.float32)

    def forward(self, u):
        return u + torch.tanh(self.layer(self.norm(u)))


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(states, k) for k, states in enumerate((12, 9)))
        self.head = nn.Linear(4, 2)

    def forward(self, u):
        for block in self.blocks:
            u = block(u)
        return self.head(u).clone()  # a view of it would be warned of


def sequences(step):
    """Return the sequences of all ranks at a step."""
    return torch.randn(4, 16, 4, generator=torch.Generator().manual_seed(step))


def loss_of_sequences(model, u):
    return (model(u) - u.cumsum(1)[..., :2]).square().mean()


def texts(step):
    return tokens(batch=4, length=16, seed=step)


def loss_of_texts(model, ids):
    return model(input_ids=ids, labels=ids, use_cache=False).loss


def shard(model, names, **options):
    for name in names:
        fully_shard(model.get_submodule(name), **options)
    return model


def train(model, data, loss_of, *, steps, compressor_of=None, own=True, parts=1, clip=None, first=0, optimizer=None):
    """Take steps, and return the losses, the optimizer and what the compressor did."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    compressor = None if compressor_of is None else compressor_of(model, optimizer)
    losses = []
    for step in range(first, first + steps):
        total = 0.0
        for k, part in enumerate(data(step).chunk(parts)):
            if own and sharding.units(model):
                model.set_requires_gradient_sync(k == parts - 1)
            loss = loss_of(model, share(part) if own else part) / parts
            loss.backward()
            total += mean(loss) if own else loss.item()
            if k < parts - 1 and compressor is not None:
                compressor.step()  # a micro-batch, which does not count
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
        if compressor is not None:
            compressor.step()
    return losses, optimizer, compressor


def compressor_of(model, optimizer, **options):
    with warnings.catch_warnings():  # one model for itself in each process, as is meant for the twin
        warnings.filterwarnings("ignore", "This process is one of several", ht.RefusedCutWarning)
        return ht.InTrainingCompressor(model, optimizer, CONFIG, SCHEDULE, **options)


LAYOUTS = {
    "block": (("blocks.0", "blocks.1", ""), {}),
    "layer": (("blocks.0.layer", "blocks.1.layer", ""), {}),
    "root": (("",), {}),
    "kept": (("blocks.0", "blocks.1", ""), {"reshard_after_forward": False}),
}


def in_layers(model):
    return [*(name for name, x in model.named_modules() if type(x).__name__.endswith("Block")), ""]


def sharded(names=LAYOUTS["block"][0], **options):
    model = shard(Blocks(), names, **options)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def stand(model, optimizer):
    """Return the shards of this rank: parameters and what the optimizer keeps, values and identities."""
    sharding.reshard(model)
    found = [(id(p), sharding.local(p).detach().clone()) for p in model.parameters()]
    for state in optimizer.state.values():
        found += [(id(x), sharding.local(x).clone()) for x in state.values()]
    return found


def same(a, b):
    return len(a) == len(b) and all(i == j and torch.equal(x, y) for (i, x), (j, y) in zip(a, b, strict=True))


def warm_up():
    """Import and compile in this process, once, what its forks need: they have it then."""
    importlib.import_module("torch.distributed.checkpoint")
    model = Blocks()
    optimizer = torch.optim.AdamW(model.parameters())
    ht.compress_(model, CONFIG, optimizer)
