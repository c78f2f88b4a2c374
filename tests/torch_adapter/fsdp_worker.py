"""What the ranks of test_sharded.py do: all scenarios that are named, and what each rank found to a file."""

from __future__ import annotations

import gc
import importlib
import math
import os
import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from adapter_models import lru
from forked import run_scenarios
from selective_models import language_model, tokens
from settings import what_and_when
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import hankelred_torch as ht
from hankelred_torch import sharding
from hankelred_torch.surgery import fsdp as sharding_of_parameters

CONFIG, SCHEDULE = what_and_when(fraction=0.5, end_step=3, attempts=1, force=True)
FREQUENCIES = np.linspace(0.01, 3, 40)  # radians per step
STEPS = SCHEDULE.end_step + (20 if os.environ.get("HANKELRED_LONG", "0") not in ("", "0") else 4)
SCENARIOS = {}


def scenario(function):
    SCENARIOS[function.__name__] = function
    return function


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


def share(x):
    """Return what this rank sees of the data of all."""
    return x.chunk(dist.get_world_size())[dist.get_rank()]


def mean(x):
    x = x.detach().clone().float()
    dist.all_reduce(x)
    return x.item() / dist.get_world_size()


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


def responses(model):
    """Return the transfer functions of all time-invariant layers on the unit circle."""
    sharding.reshard(model)
    found = {name: x.read(x.values()) for name, x in ht.find_ssm_layers(model).items() if x.kind == "lti"}
    return {name: x.frequency_response(FREQUENCIES) for name, x in found.items()}


def apart(a, b):
    """Return the largest relative difference of arrays or tensors by name, in the norm of each."""
    if a.keys() != b.keys() or any(a[x].shape != b[x].shape for x in a):
        return math.inf
    return max((float(abs(a[x] - b[x]).max() / abs(a[x]).max()) for x in a), default=0.0)


def message(call):
    """Return the class and text of what a call raises."""
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


def run_of(model, data, loss_of, *, own, **how):
    """Train and cut a model; return losses, optimizer, and the transfer functions of its layers after the cut."""
    seen = []

    def made(model, optimizer):
        return compressor_of(model, optimizer, on_cut=lambda plan, compressor: seen.append(responses(model)))

    losses, optimizer, _ = train(model, data, loss_of, steps=STEPS, own=own, compressor_of=made, **how)
    return losses, optimizer, seen[0]


def beside_a_twin(build, names, data, loss_of, *, options=None, **how):
    """Train and cut a sharded model and, on rank 0, a whole one on the data of all ranks; compare them."""
    cut_at, twin = SCHEDULE.end_step, {}
    if dist.get_rank() == 0:
        model = build()
        losses, _, cut = run_of(model, data, loss_of, own=False, **how)
        twin = {"sizes": ht.state_sizes(model), "losses": losses, "cut": cut}
    model = shard(build(), names, **(options or {}))
    losses, optimizer, cut = run_of(model, data, loss_of, own=True, **how)
    spread = all(map(sharding.is_spread, model.parameters()))
    states = all(sharding.is_spread(x["exp_avg"]) for x in optimizer.state.values())
    found = {"sizes": ht.state_sizes(model), "spread": spread and states}
    found["fits"] = all(x["exp_avg"].shape == p.shape for p, x in optimizer.state.items())
    if dist.get_rank() == 0:
        ratios = [abs(x - y) / abs(y) for x, y in zip(losses, twin["losses"], strict=True)]
        found |= {"twin": twin["sizes"], "before": max(ratios[:cut_at]), "after": max(ratios[cut_at:])}
        found |= {"next": ratios[cut_at], "responses": apart(twin["cut"], cut)}
    return found


LAYOUTS = {
    "block": (("blocks.0", "blocks.1", ""), {}),
    "layer": (("blocks.0.layer", "blocks.1.layer", ""), {}),
    "root": (("",), {}),
    "kept": (("blocks.0", "blocks.1", ""), {"reshard_after_forward": False}),
}


@scenario
def lru_in_blocks():
    return beside_a_twin(Blocks, *LAYOUTS["block"][:1], sequences, loss_of_sequences, parts=2, clip=1.0)


@scenario
def lru_as_units():
    return beside_a_twin(Blocks, *LAYOUTS["layer"][:1], sequences, loss_of_sequences)


@scenario
def lru_in_the_root():
    return beside_a_twin(Blocks, *LAYOUTS["root"][:1], sequences, loss_of_sequences)


@scenario
def lru_kept_after_forward():
    return beside_a_twin(Blocks, LAYOUTS["kept"][0], sequences, loss_of_sequences, options=LAYOUTS["kept"][1])


@scenario
def lru_on_two_dimensions():
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("copies", "shards"))
    return beside_a_twin(Blocks, LAYOUTS["block"][0], sequences, loss_of_sequences, options={"mesh": mesh})


def in_layers(model):
    return [*(name for name, x in model.named_modules() if type(x).__name__.endswith("Block")), ""]


def of_hugging_face(name, **how):
    model = language_model(name)
    return beside_a_twin(lambda: language_model(name).train(), in_layers(model), texts, loss_of_texts, **how)


@scenario
def mamba():
    return of_hugging_face("Mamba")


@scenario
def mamba2():
    return of_hugging_face("Mamba2", clip=1.0)


@scenario
def mamba_in_bfloat16():
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return of_hugging_face("Mamba", options={"mp_policy": policy})


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


@scenario
def rolled_back():
    """A guard that fails puts the very shards back, and training goes on as if nothing had been tried."""
    model, optimizer = sharded()
    values, seen = iter([0.0, 1.0 + dist.get_rank()]), []
    guard = ht.Guard(lambda: next(values), tolerance=0.1, on_fail="stop", mode="min")

    class Before:
        def before(self, plan, compressor):
            seen.append(stand(model, optimizer))

        def undone(self, plan, compressor):
            seen.append(stand(model, optimizer))

    def made(model, optimizer):
        return ht.InTrainingCompressor(model, optimizer, CONFIG, SCHEDULE, guard, on_cut=Before())

    losses, _, compressor = train(model, sequences, loss_of_sequences, steps=5, optimizer=optimizer, compressor_of=made)
    other, its_optimizer = sharded()
    straight, *_ = train(other, sequences, loss_of_sequences, steps=5, optimizer=its_optimizer)
    return [same(*seen), losses == straight, compressor.history[0].rolled_back, ht.state_sizes(model)]


@scenario
def averages():
    """An averaged copy, sharded alike, is cut along and goes on averaging."""
    model, optimizer = sharded()
    copy = shard(Blocks(), LAYOUTS["block"][0])
    train(model, sequences, loss_of_sequences, steps=2, optimizer=optimizer)
    ht.compress_(model, CONFIG, optimizer, ema=copy)
    with torch.no_grad():
        for mine, average in zip(model.parameters(), copy.parameters(), strict=True):
            average.lerp_(mine, 0.5)
    return [ht.state_sizes(copy), mean(loss_of_sequences(copy, share(sequences(0)))) < 10]


@scenario
def other_rank_lacks_a_parameter():
    model, optimizer = sharded()
    if dist.get_rank() == 1:
        optimizer = torch.optim.AdamW(model.head.parameters())
    before = stand(model, optimizer)
    return [message(lambda: ht.compress_(model, CONFIG, optimizer)), same(stand(model, optimizer), before)]


@scenario
def other_rank_has_other_settings():
    model, optimizer = sharded()
    config = ht.CompressionConfig(order=5 - dist.get_rank())
    before = stand(model, optimizer)
    return [message(lambda: ht.compress_(model, config, optimizer)), same(stand(model, optimizer), before)]


@scenario
def other_rank_cuts_fewer_layers():
    model, optimizer = sharded()
    config = ht.CompressionConfig(order=5, target_modules=None if dist.get_rank() == 0 else ["1.layer"])
    return message(lambda: ht.compress_(model, config, optimizer))


@scenario
def writing_fails_on_one_rank():
    model, optimizer = sharded()
    before = stand(model, optimizer)
    put = sharding_of_parameters._become
    try:
        if dist.get_rank() == 1:
            sharding_of_parameters._become = failing_after(3, put)
        error = message(lambda: ht.compress_(model, CONFIG, optimizer))
    finally:
        sharding_of_parameters._become = put
    return [error, same(stand(model, optimizer), before), ht.state_sizes(model)]


def failing_after(calls, function):
    left = [calls]

    def failing(*arguments):
        left[0] -= 1
        if left[0] == 0:
            raise OSError("the memory is gone")
        return function(*arguments)

    return failing


@scenario
def samples_of_uneven_ranks():
    """Rank 0 has two batches and rank 1 none, then one: the cut is that of a whole model that sees all of them."""
    found = []
    for number in (0, 1):
        model = shard(language_model("Mamba"), ("backbone.layers.0", "backbone.layers.1", ""))
        batches = [texts(0), texts(1)] if dist.get_rank() == 0 else [texts(2)][:number]
        plan = ht.plan(model, ht.CompressionConfig(tau=0.05), batches)
        whole = ht.plan(
            language_model("Mamba"), ht.CompressionConfig(tau=0.05), [texts(0), texts(1), texts(2)][: 2 + number]
        )
        pairs = [(x, whole.layers[name]) for name, x in plan.layers.items()]
        spectra = [abs(x.hsv - y.hsv).max() / y.hsv.max() for x, y in pairs]
        errors = [(x.output_error, y.output_error) for x, y in pairs]
        found.append([plan.sizes == whole.sizes, float(max(spectra)), errors])
    return found


@scenario
def sample_of_one_rank_is_not_finite():
    model, optimizer = sharded()
    u = sequences(0)
    if dist.get_rank() == 1:
        u[0, 0, 0] = torch.nan
    config = ht.CompressionConfig(tau=0.05, weighting="sampled")
    return message(lambda: ht.compress_(model, config, optimizer, batches=[u]))


@scenario
def sample_of_one_rank_is_of_another_kind():
    model, optimizer = sharded()
    batches = [sequences(0) if dist.get_rank() == 0 else sequences(0).double()]
    config = ht.CompressionConfig(tau=0.05, weighting="sampled")
    return message(lambda: ht.compress_(model, config, optimizer, batches=batches))


@scenario
def another_version_of_torch():
    model, optimizer = sharded()
    kind = type(model._get_fsdp_state()._fsdp_param_groups[0].fsdp_params[0])
    kept = kind._init_extensions
    try:
        del kind._init_extensions
        return message(lambda: ht.InTrainingCompressor(model, optimizer, CONFIG, SCHEDULE))
    finally:
        kind._init_extensions = kept


@scenario
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


@scenario
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


@scenario
def wrapped_and_sharded():
    model = nn.parallel.DistributedDataParallel(nn.Sequential(lru(12, 4, dtype=torch.float32)))
    fully_shard(model.module)
    return message(lambda: ht.compress_(model, CONFIG))


@scenario
def bytes_on_the_wire():
    """Bytes that are gathered in a cut, as whole tensors and as objects of all ranks, and what the cut tensors hold."""
    return {name: bytes_of(name) for name in ("Mamba", "Mamba2")}


def bytes_of(name, **options):
    full, objects = DTensor.full_tensor, dist.all_gather_object
    model = language_model(name, **options).train()
    model = shard(model, in_layers(model))
    optimizer = train(model, texts, loss_of_texts, steps=1)[1]
    counts = {"tensors": 0, "largest": 0, "objects": 0, "messages": 0}

    def gathered(tensor, counts=counts, **how):
        size = tensor.numel() * tensor.element_size()
        counts["tensors"], counts["largest"] = counts["tensors"] + size, max(counts["largest"], size)
        return full(tensor, **how)

    def exchanged(values, value, counts=counts, **how):
        objects(values, value, **how)
        counts["objects"] += sum(len(pickle.dumps(x)) for x in values)
        counts["messages"] += 1

    held = [x for y in ht.find_ssm_layers(model).values() for *_, x in y.places(y.replaced).values()]
    counts["layers"] = sum(x.numel() * x.element_size() for x in held)
    counts["model"] = sum(x.numel() * x.element_size() for x in model.parameters())
    DTensor.full_tensor, dist.all_gather_object = gathered, exchanged
    try:
        ht.compress_(model, CONFIG, optimizer, batches=[texts(0)])
    finally:
        DTensor.full_tensor, dist.all_gather_object = full, objects
    return counts


def warm_up():
    """Import and compile in this process, once, what its forks need: they have it then."""
    importlib.import_module("torch.distributed.checkpoint")
    model = Blocks()
    optimizer = torch.optim.AdamW(model.parameters())
    ht.compress_(model, CONFIG, optimizer)


def main():
    folder, names = Path(sys.argv[1]), sys.argv[4:]
    ranks, limit = int(sys.argv[2]), float(sys.argv[3])
    warnings.simplefilter("ignore")
    for name in ("Mamba", "Mamba2"):
        language_model(name)  # imported before the fork
    warm_up()
    wanted = {name: SCENARIOS[name] for name in names or SCENARIOS}
    ended = run_scenarios(wanted, folder, ranks, limit)
    gc.collect()
    os._exit(0 if not any(ended) else 1)


if __name__ == "__main__":
    main()
