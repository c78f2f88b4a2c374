"""Layouts of sharded models that are cut or refused, and what a cut sends and holds."""

from __future__ import annotations

import pickle
import runpy
import sys
import warnings
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from weakref import WeakSet

import numpy as np
import torch
import torch.distributed as dist
from adapter_models import lru
from forked import Scenarios, message
from selective_models import language_model
from sharded_models import (
    CONFIG,
    SCHEDULE,
    Blocks,
    in_layers,
    loss_of_sequences,
    loss_of_texts,
    same,
    sequences,
    shard,
    sharded,
    stand,
    texts,
    train,
)
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hankelred_torch as ht
from hankelred_torch import sharding
from hankelred_torch.adapters import analysis

WIDTH = 64  # channels and states
scenarios = Scenarios()


@scenarios
def another_version_of_torch():
    model, optimizer = sharded()
    kind = type(model._get_fsdp_state()._fsdp_param_groups[0].fsdp_params[0])
    kept = kind._init_extensions
    try:
        del kind._init_extensions
        return message(lambda: ht.InTrainingCompressor(model, optimizer, CONFIG, SCHEDULE))
    finally:
        kind._init_extensions = kept


@scenarios
def axis_that_cannot_be_divided():
    model, optimizer = sharded(shard_placement_fn=lambda p: Shard(p.ndim - 1 if p.shape[-1] % 2 == 0 else 0))
    before = stand(model, optimizer)
    error = message(lambda: ht.compress_(model, ht.CompressionConfig(order=7), optimizer))
    unchanged = same(stand(model, optimizer), before)
    ht.compress_(model, ht.CompressionConfig(order=4), optimizer)
    train(model, sequences, loss_of_sequences, steps=2, optimizer=optimizer)
    return [error, unchanged, ht.state_sizes(model)]


def laid_out(layer, places, mesh):
    for name, p in [*layer.named_parameters()]:
        spread = distribute_tensor(p.detach(), mesh, [places.get(name, Replicate())])
        setattr(layer, name, nn.Parameter(spread))
    return layer


@scenarios
def tensor_parallel():
    """Channels may be split by a tensor-parallel plan, states may not."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    channels = {"B_re": Shard(1), "B_im": Shard(1), "C_re": Shard(0), "C_im": Shard(0)}
    whole, split = (lru(12, 4, dtype=torch.float32) for _ in range(2))
    laid_out(split, channels, mesh)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ht.RefusedCutWarning)
        ht.compress_(whole, CONFIG)
    ht.compress_(split, CONFIG)
    equal = [torch.equal(sharding.whole(x), y) for x, y in zip(split.parameters(), whole.parameters(), strict=True)]
    placed = all(getattr(split, name).placements == (x,) for name, x in channels.items())
    of_states = laid_out(lru(12, 4, dtype=torch.float32), {"nu_log": Shard(0)}, mesh)
    return [all(equal), placed, ht.state_sizes(split), message(lambda: ht.compress_(of_states, CONFIG))]


@scenarios
def script_of_the_guide():
    """Run the script as torchrun does, but in the process group there is; return where it ended, and the sizes then."""
    path = Path(sys.argv[1]) / "run.pt"
    begin, end = dist.init_process_group, dist.destroy_process_group
    dist.init_process_group, dist.destroy_process_group = (lambda *_: None for _ in range(2))
    try:
        script = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "guides" / "scripts" / "sharded_loop.py"))
        script["main"](str(path), 20)  # to the end of the reduction window
    finally:
        dist.init_process_group, dist.destroy_process_group = begin, end
    model = script["build"]()
    optimizer = torch.optim.AdamW(model.parameters())
    compressor = ht.InTrainingCompressor(model, optimizer, ht.CompressionConfig(tau=0.1), ht.Schedule(end_step=20))
    return [ht.load_checkpoint(path, model, optimizer, compressor), ht.state_sizes(model)]


@scenarios
def wrapped_and_sharded():
    model = nn.parallel.DistributedDataParallel(nn.Sequential(lru(12, 4, dtype=torch.float32)))
    fully_shard(model.module)
    return message(lambda: ht.compress_(model, CONFIG))


@scenarios
def measured_and_penalised():
    """Values are those of a whole model on every rank; a penalty would need a gradient through all of them."""
    model, _ = sharded()
    values, wanted = ht.hankel_singular_values(model), ht.hankel_singular_values(Blocks())
    tracked = {x.layer: x.hsv for x in ht.Tracker(model, every=1).history}
    same = [[np.array_equal(x[name], hsv) for name, hsv in wanted.items()] for x in (values, tracked)]
    return [same, message(lambda: ht.hankel_penalty(model))]


@scenarios
def bytes_on_the_wire():
    """Bytes that are gathered in a cut, as whole tensors and as objects of all ranks, and what the cut tensors hold."""
    found = {"LRU": bytes_of(Blocks(), sequences, loss_of_sequences)}
    return found | {name: bytes_of(language_model(name).train(), texts, loss_of_texts) for name in ("Mamba", "Mamba2")}


def bytes_of(model, data, loss_of):
    full, objects = DTensor.full_tensor, dist.all_gather_object
    model = shard(model, in_layers(model))
    optimizer = train(model, data, loss_of, steps=1)[1]
    counts = {"tensors": 0, "largest": 0, "objects": 0, "messages": 0}

    def gathered(tensor, counts=counts, **how):
        size = tensor.numel() * tensor.element_size()
        counts["tensors"], counts["largest"] = counts["tensors"] + size, max(counts["largest"], size)
        return full(tensor, **how)

    def exchanged(values, value, counts=counts, **how):
        objects(values, value, **how)
        counts["objects"] += sum(len(pickle.dumps(x)) for x in values)
        counts["messages"] += 1

    adapters = ht.find_ssm_layers(model).values()
    places = {"layers": [y.places(y.replaced) for y in adapters], "others": [y.places(y.constants) for y in adapters]}
    for key, found in places.items():
        held = {id(x): x for y in found for *_, x in y.values()}.values()
        counts[key] = sum(x.numel() * x.element_size() for x in held)
    counts["model"] = sum(x.numel() * x.element_size() for x in model.parameters())
    DTensor.full_tensor, dist.all_gather_object = gathered, exchanged
    try:
        ht.compress_(model, CONFIG, optimizer, batches=None if data is sequences else [data(0)])
    finally:
        DTensor.full_tensor, dist.all_gather_object = full, objects
    return counts


class Wide(nn.Module):
    """Layers so large, and sequences so short, that their tensors are what memory is needed for."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(lru(WIDTH, WIDTH, seed=k, dtype=torch.float32) for k in range(layers))

    def forward(self, u):
        for layer in self.layers:
            u = u + layer(u)
        return u


def most_allocated(work):
    """Return the most bytes that tensors have held at a time beyond those there were before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    return max(accumulate(x.nbytes() for x in seen.profiler.kineto_results.events() if x.name() == "[memory]"))


class OnDevice(TorchDispatchMode):
    """Most bytes of tensors in single precision that were alive at a time, of those that are given or made meanwhile.

    What waits on the host is in bytes or in double precision: the others are on the device of the parameters.
    """

    def __init__(self, tensors):
        super().__init__()
        self._alive, self.most = {}, 0
        self._note(tensors)

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        self._note(x for x in tree_leaves(made) if isinstance(x, torch.Tensor))
        self.most = max(self.most, self.now())
        return made

    def _note(self, tensors):
        for x in tensors:
            if x.dtype == torch.float32 and not x.is_meta:
                storage = sharding.local(x).untyped_storage()
                self._alive.setdefault(storage._cdata, StorageWeakRef(storage))

    def now(self):
        self._alive = {key: x for key, x in self._alive.items() if not x.expired()}
        return sum(torch.UntypedStorage._new_with_weak_ptr(x.cdata).nbytes() for x in self._alive.values())


@scenarios
def memory_of_a_cut():
    """Most bytes that a training step and a cut hold at a time, in the unit of what one whole layer holds."""
    return {layers: memory_of(layers) for layers in (1, 3)}


def memory_of(layers):
    model = shard(Wide(layers), [*(f"layers.{k}" for k in range(layers)), ""])
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        model(torch.ones(1, 2, WIDTH)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def held():
        return [*model.parameters(), *(x for state in optimizer.state.values() for x in state.values())]

    def shards():
        return sum(sharding.local(x).untyped_storage().nbytes() for x in held())

    step()
    whole = sum(p.numel() * p.element_size() for p in model.layers[0].parameters())
    config = ht.CompressionConfig(fraction=0.9)
    with OnDevice(held()) as of_step:
        step()
    with OnDevice(held()) as of_cut, analyses_at_a_time() as most:
        ht.compress_(model, config, optimizer)
    found = {"step": of_step.most / whole, "cut": of_cut.most / whole, "analyses": max(most)}
    found |= {"left": of_cut.now() / whole, "new shards": shards() / whole}
    step()
    found["cut with the host"] = most_allocated(lambda: ht.compress_(model, config, optimizer)) / whole
    return found | {"and its shards": shards() / whole, "sizes": ht.state_sizes(model)}


@contextmanager
def analyses_at_a_time():
    """Count how many analyses, which hold the systems of whole layers, there are when another is made."""
    made, alive, most = analysis.LinearAnalysis.__init__, WeakSet(), []

    def init(self, *arguments):
        made(self, *arguments)
        alive.add(self)
        most.append(len(alive))

    analysis.LinearAnalysis.__init__ = init
    try:
        yield most
    finally:
        analysis.LinearAnalysis.__init__ = made
