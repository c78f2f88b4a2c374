"""Optimizers of other packages, made as their users make them, and one run in which a cut must not be felt.

All of them, or some, in a table: ``PYTHONPATH=.:tests python -m torch_adapter.other_optimizers [NAME ...]``.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
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


def optimizers():
    """Return the names of all: of pytorch_optimizer as it has them, of other packages with those in front."""
    found = []
    if has("pytorch_optimizer"):
        found += sorted(importlib.import_module("pytorch_optimizer").get_supported_optimizers())
    for package in ("torchao", "bitsandbytes"):  # those with states of few bits, and their twins
        names = dir(importlib.import_module(f"{package}.optim")) if has(package) else []
        found += [f"{package}.{x}" for x in names if x[0].isupper() and x.endswith(("bit", "Fp8")) and "Paged" not in x]
    return found


def made(name, model):
    """Return an optimizer for a model."""
    package, _, kind = name.rpartition(".")
    if package:
        momentum = {"momentum": 0.9} if kind.startswith(("SGD", "LARS", "RMSprop")) else {}
        return getattr(importlib.import_module(f"{package}.optim"), kind)(model.parameters(), lr=1e-3, **momentum)
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

    def __init__(self, make, seed=0, channels=4):
        torch.manual_seed(seed)
        layer = make_inert(ht.layers.LRU(channels, 32), live=31)
        self.model = nn.Sequential(nn.Linear(2, channels), layer, nn.Linear(channels, 1))
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


def change_of(name):
    """Return the same for an optimizer by name; states of few bits are kept of large tensors only."""
    sizes = {"channels": 256, "steps": 20} if "." in name else {}
    with torch.compiler.set_stance("force_eager") if "torchao" in name else contextlib.nullcontext():
        return change_by_a_lossless_cut(lambda model: made(name, model), **sizes)


def table(names):
    """Yield a line for each optimizer: by how much losses change, or why it was refused, and what was said before."""
    for name in names:
        try:
            ratio, early, _ = change_of(name)
        except Exception as error:  # theirs or ours
            yield f"{name:32} {type(error).__name__}: {error}"
        else:
            yield f"{name:32} {ratio:8.3g}  {'warned' if early else ''}"


def change_by_a_lossless_cut(make, steps=60, **options):
    """Return the largest ratio of losses of ten steps with and without a cut, the warnings and the steps that failed.

    The first warnings are those of making a compressor, before the first step.
    """
    plain, cut = Run(make, **options), Run(make, **options)
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


if __name__ == "__main__":
    for line in table(sys.argv[1:] or optimizers()):
        print(line[:160], flush=True)
