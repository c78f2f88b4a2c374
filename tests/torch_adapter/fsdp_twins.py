"""Sharded runs beside one of a whole model on the data of all ranks: the same sizes, losses and layers."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from forked import Scenarios
from selective_models import language_model
from sharded_models import (
    FREQUENCIES,
    LAYOUTS,
    SCHEDULE,
    STEPS,
    Blocks,
    compressor_of,
    in_layers,
    loss_of_sequences,
    loss_of_texts,
    sequences,
    shard,
    texts,
    train,
)
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

import hankelred_torch as ht
from hankelred_torch import sharding

scenarios = Scenarios()


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


def run_of(model, data, loss_of, *, own, **how):
    """Train and cut a model; return losses, optimizer, and the transfer functions of its layers after the cut."""
    seen = []

    def made(model, optimizer):
        return compressor_of(model, optimizer, on_cut=lambda plan, compressor: seen.append(responses(model)))

    losses, optimizer, _ = train(model, data, loss_of, steps=STEPS, own=own, compressor_of=made, **how)
    return losses, optimizer, seen[0]


def beside_a_twin(build, names, data, loss_of, *, options=None, wrap=lambda model: model, **how):
    """Train and cut a sharded model and, on rank 0, a whole one on the data of all ranks; compare them."""
    cut_at, twin = SCHEDULE.end_step, {}
    if dist.get_rank() == 0:
        model = build()
        losses, _, cut = run_of(model, data, loss_of, own=False, **how)
        twin = {"sizes": ht.state_sizes(model), "losses": losses, "cut": cut}
    model = shard(wrap(build()), names, **(options or {}))
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


@scenarios
def lru_in_blocks():
    return beside_a_twin(Blocks, *LAYOUTS["block"][:1], sequences, loss_of_sequences, parts=2, clip=1.0)


@scenarios
def lru_as_units():
    return beside_a_twin(Blocks, *LAYOUTS["layer"][:1], sequences, loss_of_sequences)


@scenarios
def lru_in_the_root():
    return beside_a_twin(Blocks, *LAYOUTS["root"][:1], sequences, loss_of_sequences)


@scenarios
def lru_kept_after_forward():
    return beside_a_twin(Blocks, LAYOUTS["kept"][0], sequences, loss_of_sequences, options=LAYOUTS["kept"][1])


@scenarios
def lru_offloaded():
    policy = CPUOffloadPolicy(pin_memory=False)
    return beside_a_twin(Blocks, LAYOUTS["block"][0], sequences, loss_of_sequences, options={"offload_policy": policy})


@scenarios
def lru_checkpointed_and_compiled():
    """One block is recomputed in the backward pass, as accelerate wraps it, and one is compiled."""

    def wrapped(model):
        model.blocks[0] = checkpoint_wrapper(model.blocks[0], preserve_rng_state=False)
        model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
        return model

    return beside_a_twin(Blocks, LAYOUTS["block"][0], sequences, loss_of_sequences, wrap=wrapped)


@scenarios
def lru_on_two_dimensions():
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("copies", "shards"))
    return beside_a_twin(Blocks, LAYOUTS["block"][0], sequences, loss_of_sequences, options={"mesh": mesh})


def of_hugging_face(name, **how):
    model = language_model(name)
    return beside_a_twin(lambda: language_model(name).train(), in_layers(model), texts, loss_of_texts, **how)


@scenarios
def mamba():
    return of_hugging_face("Mamba")


@scenarios
def mamba2():
    return of_hugging_face("Mamba2", clip=1.0)


@scenarios
def mamba_in_bfloat16():
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return of_hugging_face("Mamba", options={"mp_policy": policy})
