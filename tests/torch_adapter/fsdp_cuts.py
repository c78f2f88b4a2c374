"""Cuts of sharded models that fail on one rank, are undone, or see other samples on every rank."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from forked import Scenarios, mean, message, share
from selective_models import language_model
from sharded_models import (
    CONFIG,
    LAYOUTS,
    SCHEDULE,
    Blocks,
    loss_of_sequences,
    same,
    sequences,
    shard,
    sharded,
    stand,
    texts,
    train,
)

import hankelred_torch as ht
from hankelred_torch.surgery import fsdp as sharding_of_parameters

scenarios = Scenarios()


@scenarios
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


@scenarios
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


@scenarios
def other_rank_lacks_a_parameter():
    model, optimizer = sharded()
    if dist.get_rank() == 1:
        optimizer = torch.optim.AdamW(model.head.parameters())
    before = stand(model, optimizer)
    return [message(lambda: ht.compress_(model, CONFIG, optimizer)), same(stand(model, optimizer), before)]


@scenarios
def other_rank_has_other_settings():
    model, optimizer = sharded()
    config = ht.CompressionConfig(order=5 - dist.get_rank())
    before = stand(model, optimizer)
    return [message(lambda: ht.compress_(model, config, optimizer)), same(stand(model, optimizer), before)]


@scenarios
def other_rank_cuts_fewer_layers():
    model, optimizer = sharded()
    config = ht.CompressionConfig(order=5, target_modules=None if dist.get_rank() == 0 else ["1.layer"])
    return message(lambda: ht.compress_(model, config, optimizer))


@scenarios
def writing_fails_on_one_rank():
    model, optimizer = sharded()
    before = stand(model, optimizer)
    put = sharding_of_parameters._take_place
    try:
        if dist.get_rank() == 1:
            sharding_of_parameters._take_place = failing_after(3, put)
        error = message(lambda: ht.compress_(model, CONFIG, optimizer))
    finally:
        sharding_of_parameters._take_place = put
    return [error, same(stand(model, optimizer), before), ht.state_sizes(model)]


def failing_after(calls, function):
    left = [calls]

    def failing(*arguments):
        left[0] -= 1
        if left[0] == 0:
            raise OSError("the memory is gone")
        return function(*arguments)

    return failing


@scenarios
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


@scenarios
def short_last_batches():
    """The last batch is shorter than the others, and shorter still on one rank: every sequence counts as much."""
    config, ids = ht.CompressionConfig(tau=0.05), texts(0)
    model = shard(language_model("Mamba"), ("backbone.layers.0", "backbone.layers.1", ""))
    batches = [ids, texts(1)[:3]] if dist.get_rank() == 0 else [texts(2), texts(3)[:1]]
    plan = ht.plan(model, config, batches)
    whole = ht.plan(language_model("Mamba"), config, [ids, texts(1)[:3], texts(2), texts(3)[:1]])
    pairs = [(x, whole.layers[name]) for name, x in plan.layers.items()]
    return [plan.sizes == whole.sizes, float(max(abs(x.hsv - y.hsv).max() / y.hsv.max() for x, y in pairs))]


@scenarios
def linear_layers_by_samples():
    """Rank 1 has no sample: the cut is that of a whole model, and so is what was measured of it."""
    config, batches = ht.CompressionConfig(tau=0.05, weighting="sampled"), [sequences(0), sequences(1)]
    model, optimizer = sharded()
    plan = ht.compress_(model, config, optimizer, batches=batches if dist.get_rank() == 0 else [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ht.RefusedCutWarning)
        whole = ht.compress_(Blocks(), config, batches=batches)
    return [
        plan.sizes,
        whole.sizes,
        [(x.output_error, whole.layers[name].output_error) for name, x in plan.layers.items()],
    ]


@scenarios
def plans_of_every_budget():
    model, _ = sharded()
    given = [{"tau": 0.2, "budget": "global"}, {"max_error": 2.0}, {"max_error": 4.0, "budget": "global"}, {"order": 4}]
    plans = [[ht.plan(x, ht.CompressionConfig(**values)) for values in given] for x in (model, Blocks())]
    return [[(a.sizes, b.sizes), a.is_cut] for a, b in zip(*plans, strict=True)]


@scenarios
def smallest_by_a_metric():
    """The smallest model by the loss on what every rank has for it, beside a whole model by the loss on all."""

    def by(model, metric):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        config = ht.CompressionConfig(target_modules=["1.layer"])
        plan = ht.compress_(model, config, optimizer, metric=metric, tolerance=0.05, mode="min")
        return plan.sizes, plan.metric, optimizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ht.RefusedCutWarning)
        whole, metric, _ = by(Blocks(), lambda model: loss_of_sequences(model, sequences(9)).item())
    model = shard(Blocks(), LAYOUTS["block"][0])
    sizes, its_metric, optimizer = by(model, lambda model: loss_of_sequences(model, share(sequences(9))).item())
    train(model, sequences, loss_of_sequences, steps=2, optimizer=optimizer)
    apart = max(abs(its_metric[key] - metric[key]) / metric[key] for key in metric)
    return [sizes, whole, apart, ht.state_sizes(model)["blocks.1.layer"]]


@scenarios
def metric_fails_on_one_rank():
    """Before it runs the model; a pass of it would wait for the others."""
    model, optimizer = sharded()

    def metric():
        if dist.get_rank() == 1:
            raise ValueError("no validation data")
        return 0.0

    guard = ht.Guard(metric, tolerance=0.1, mode="min")
    compressor = ht.InTrainingCompressor(model, optimizer, CONFIG, ht.Schedule(end_step=1, attempts=1), guard)
    train(model, sequences, loss_of_sequences, steps=1, optimizer=optimizer)
    return [message(compressor.step), ht.state_sizes(model)]


@scenarios
def sample_of_one_rank_is_not_finite():
    model, optimizer = sharded()
    u = sequences(0)
    if dist.get_rank() == 1:
        u[0, 0, 0] = torch.nan
    config = ht.CompressionConfig(tau=0.05, weighting="sampled")
    return message(lambda: ht.compress_(model, config, optimizer, batches=[u]))


@scenarios
def sample_of_one_rank_is_of_another_kind():
    model, optimizer = sharded()
    batches = [sequences(0) if dist.get_rank() == 0 else sequences(0).double()]
    config = ht.CompressionConfig(tau=0.05, weighting="sampled")
    return message(lambda: ht.compress_(model, config, optimizer, batches=batches))
