"""A training run with everything that people use, shared by the tests of guards, resumes and checkpoints."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import hankelred_torch as ht

from .adapter_models import lru
from .settings import what_and_when


class Noisy(nn.Module):
    """Two LRU layers with batch statistics and dropout between them."""

    def __init__(self, sizes=(10, 8), channels=3, *, seed=0):
        super().__init__()
        self.first = lru(sizes[0], channels, seed=seed, dtype=torch.float32)
        self.norm = nn.BatchNorm1d(channels)
        self.dropout = nn.Dropout(0.2)
        self.second = lru(sizes[1], channels, seed=seed + 1, dtype=torch.float32)

    def forward(self, u):
        x = self.norm(torch.tanh(self.first(u)).transpose(1, 2)).transpose(1, 2)
        return self.second(u + self.dropout(x))


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
}


class Run:
    """Model, optimizer, scheduler, scaler, average, data order and, if a configuration is given, compressor."""

    def __init__(self, config=None, *, optimizer="adamw", seed=0, metric=None, **options):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (a part of the random state that is restored)
        self.model = Noisy(seed=seed)
        torch.manual_seed(seed + 1)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=50)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        self.data = torch.Generator().manual_seed(seed)
        self.restore = [self.scheduler, self.scaler, self.data]
        self.compressor = None
        if config is not None:
            config = dict(config)
            rewarm = config.pop("rewarm", 0)
            options = ({"on_cut": ht.Rewarm(rewarm)} if rewarm else {}) | options
            self.compressor = ht.InTrainingCompressor(
                self.model,
                self.optimizer,
                *what_and_when(**config),
                ema=self.ema,
                restore=self.restore,
                **options,
            )

    def step(self):
        u = torch.randn(4, 12, 3, generator=self.data)
        u = u + 0.1 * random.random() + 0.1 * np.random.rand()  # noqa: NPY002 (as data loaders of users do)
        loss = (self.model(u) - u.cumsum(1)).square().mean()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.ema.update_parameters(self.model)
        return None if self.compressor is None else self.compressor.step()

    def steps(self, count):
        return [self.step() for _ in range(count)]

    def save(self, path, extra=None):
        ht.save_checkpoint(path, self.model, self.optimizer, self.compressor, self.ema, self.restore, extra)

    def load(self, path):
        return ht.load_checkpoint(path, self.model, self.optimizer, self.compressor, self.ema, self.restore)

    def weights(self):
        """Return all that training has changed, by name."""
        found = {f"model.{name}": x for name, x in self.model.state_dict().items()}
        found |= {f"ema.{name}": x for name, x in self.ema.state_dict().items()}
        for k, state in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{k}.{name}": torch.as_tensor(x) for name, x in state.items()}
        found["lr"] = torch.tensor(self.optimizer.param_groups[0]["lr"])
        found["scale"] = torch.tensor(self.scaler.get_scale())
        return {name: x.clone() for name, x in found.items()}


def assert_same(got, wanted):
    """Check that two results of `Run.weights` agree to the last bit."""
    assert list(got) == list(wanted)
    different = [name for name in wanted if not torch.equal(got[name], wanted[name])]
    assert different == []
