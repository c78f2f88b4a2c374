"""Optimizers of other packages, made as their users make them, and one run in which a cut must not be felt."""

from __future__ import annotations

import importlib.util
import warnings

import torch
from torch import nn

import hankelred_torch as ht
from hankelred_torch.surgery import as_optimizers, check_optimizers

from .adapter_models import make_inert

# Arguments beside the parameters and the learning rate, as in the documentation of each.
SPECIAL = {
    "bsam": {"num_data": 64},
    "ranger21": {"num_iterations": 100},
    "sgd": {"momentum": 0.9},
    "sgdw": {"momentum": 0.9},
    "pid": {"momentum": 0.9},
    "adafactor": {"momentum_dtype": torch.float32},
}
LEARNING_RATES = {"prodigy": 1.0, "adadelta": 0.1, "adamg": 1.0, "dadaptsgd": 1e-2} | dict.fromkeys(
    ("dadaptadagrad", "dadaptadam", "dadaptlion", "dadaptadan"), 1.0
)
OF_MODELS = ("adalomo", "adammini", "lomo")
OF_MATRICES = ("adago", "adamuon", "distributedmuon", "muon", "muonclip", "normuon")
BY_CLOSURE = ("AliG", "BSAM", "LBFGS")


def has(package):
    return importlib.util.find_spec(package) is not None


def pytorch_optimizers():
    """Return the names of all optimizers of pytorch_optimizer."""
    if not has("pytorch_optimizer"):
        return []
    import pytorch_optimizer

    return sorted(pytorch_optimizer.get_supported_optimizers())


def made(name, model):
    """Return an optimizer of pytorch_optimizer for a model."""
    import pytorch_optimizer

    if name in OF_MODELS:
        return pytorch_optimizer.load_optimizer(name)(model, lr=1e-3)
    parameters = list(model.parameters())
    if name in OF_MATRICES:
        parameters = [
            {"params": [p for p in parameters if (p.ndim == 2) == matrices], "use_muon": matrices}
            for matrices in (True, False)
        ]
    rate = LEARNING_RATES.get(name, 1e-3)
    return pytorch_optimizer.load_optimizer(name)(parameters, lr=rate, **SPECIAL.get(name, {}))


class Run:
    """A small model in training, of whose 32 states one is inert."""

    def __init__(self, make, seed=0):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(2, 4), make_inert(ht.layers.LRU(4, 32), live=31), nn.Linear(4, 1))
        self.optimizer = make(self.model)
        if hasattr(self.optimizer, "train"):
            self.optimizer.train()
        self.generator = torch.Generator().manual_seed(seed)

    def step(self):
        u = torch.randn(8, 24, 2, generator=self.generator)
        if hasattr(self.optimizer, "zero_grad"):
            self.optimizer.zero_grad()
        loss = (self.model(u) - u.cumsum(1)[..., :1] / 4).square().mean()
        loss.backward(create_graph=type(self.optimizer).__name__ in ("AdaHessian", "SophiaH"))
        self.optimizer.step(*((lambda: loss,) if type(self.optimizer).__name__ in BY_CLOSURE else ()))
        for p in self.model.parameters():
            p.grad = None
        return loss.item()


def change_by_a_lossless_cut(make, steps=60):
    """Return the largest ratio of losses of ten steps with and without a cut, the warnings and the steps that failed.

    The first warnings are those of making a compressor, before the first step.
    """
    plain, cut = Run(make), Run(make)
    with warnings.catch_warnings(record=True) as early:
        warnings.simplefilter("always", ht.OptimizerStateWarning)
        check_optimizers(ht.find_ssm_layers(cut.model), as_optimizers(cut.optimizer))
    for run in (plain, cut):
        torch.manual_seed(1)
        for _ in range(steps):
            run.step()
    with warnings.catch_warnings(record=True) as late:
        warnings.simplefilter("always")
        ht.compress_(cut.model, ht.CompressionConfig(order=31, min_cut=0), cut.optimizer)
    assert ht.state_sizes(cut.model) == {"1": 31}
    losses = []
    for run in (plain, cut):
        torch.manual_seed(2)
        losses.append([run.step() for _ in range(10)])
    ratios = [max(x / y, y / x) if x == x and y == y else float("inf") for x, y in zip(*losses, strict=True)]
    said = [[str(x.message) for x in w if issubclass(x.category, ht.OptimizerStateWarning)] for w in (early, late)]
    return max(ratios), *said
