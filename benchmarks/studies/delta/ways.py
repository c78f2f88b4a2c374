"""Ways to lose channels of the keys of gated delta nets: which are kept, and how that is written into the layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg as sla
import torch

from benchmarks.experiment.trainer import Trainer
from hankelred.checks import Array
from hankelred.linalg.semidefinite import psd_factor
from hankelred.selective import SelectiveStatistics, select
from hankelred_torch import CompressionConfig, add_state_maps_, compress_, find_ssm_layers, plan
from hankelred_torch.adapters import collect_statistics
from hankelred_torch.adapters.state_maps import StateMap
from hankelred_torch.layer_sums import LayerStatistics, on_cpu
from hankelred_torch.sampling import layer_inputs


@dataclass(frozen=True)
class Seen:
    """What a layer did with sample batches: its statistics, and the sums of products of keys (groups, n, n)."""

    sums: SelectiveStatistics
    keys: Array
    seed: int


Choose = Callable[[Seen, int], Array]  # to the channels kept, (groups, order)


def by_pivots(seen: Seen, order: int) -> Array:
    """Channels of the keys as a QR decomposition with column pivoting takes them, the keys of all steps being rows."""
    return np.stack([sla.qr(psd_factor(G).T, mode="r", pivoting=True)[1][:order] for G in seen.keys])


def by_score(seen: Seen, order: int) -> Array:
    """Channels with the largest mean square of what is written times that of what is read, each by itself."""
    P, Q = (np.diagonal(X, axis1=1, axis2=2).real for X in seen.sums.gramians())
    return np.argsort(-P * Q, axis=1)[:, :order]


def at_random(seen: Seen, order: int) -> Array:
    """Any channels, others for every group and seed."""
    rng = np.random.default_rng(seen.seed)
    return np.stack([rng.permutation(seen.sums.n)[:order] for _ in seen.keys])


CHOSEN: dict[str, Choose] = {"pivoted QR": by_pivots, "score": by_score, "random": at_random}
WAYS = {
    "rotation": "state maps, then the orthonormal basis of what is written and what is read",
    "selection": "the channels whose loss changes the output least, from its exact form",
    "pivoted QR": "channels of the keys by QR with column pivoting on keys, after the manner of rank-revealing pruning",
    "score": "channels by the norm of what is written times that of what is read, one by one",
    "random": "any channels",
}


def cut(trainer: Trainer, way: str, kept: int, seed: int) -> dict[str, object]:
    """Cut the keys of all layers to `kept` channels; return what it is expected to change and the bytes of states."""
    model, batches = trainer.model, trainer.batches
    if way == "rotation":
        add_state_maps_(model)
    statistics = collect_statistics(model, batches)
    method: Any = "rotation" if way == "rotation" else "selection"
    todo = plan(model, CompressionConfig(order=kept, method=method), statistics)
    if way in CHOSEN:
        probe = layer_inputs(model, find_ssm_layers(model), statistics.probe)
        layers = {}
        for name, adapter in find_ssm_layers(model).items():
            seen = statistics.layers[name]
            assert isinstance(seen, LayerStatistics)
            chosen = CHOSEN[way](Seen(seen.sums, _products(adapter, probe[name]), seed), kept)
            given = StateMap(select(seen.sums, kept, fold=False, kept=chosen))
            written = adapter.rewrite(adapter.values(), given)
            layers[name] = replace(todo.layers[name], reduction=given, output_error=None, _written=written)
        todo = replace(todo, layers=layers)
    report = compress_(model, todo, [trainer.optimizer])
    expected = [x.reduction.core.predicted_error for x in todo.layers.values()]
    return {"predicted": max(expected), "bytes": list(report.state_bytes or ())}


@torch.no_grad()
def _products(adapter: Any, inputs: torch.Tensor) -> Array:
    keys = on_cpu(adapter.sequences(inputs, None).B).astype(float)
    return np.einsum("btgi,btgj->gij", keys, keys)
