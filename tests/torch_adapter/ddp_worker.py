"""What every process of test_distributed.py does: run all scenarios, and write what this rank found to a file."""

from __future__ import annotations

import importlib
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist
from adapter_models import Stack, assert_consistent
from forked import Scenarios, message, share
from selective_models import language_model, tokens
from settings import what_and_when
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel as DDP

import hankelred as hr
import hankelred_torch as ht

CONFIG, SCHEDULE = what_and_when(fraction=0.6, end_step=2, attempts=1, force=True)
scenarios = Scenarios()


def batch(step):
    """Return the sequences of all ranks at a step."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(4, 16, 3, generator=generator, dtype=torch.float64)


def train(model, optimizer, compressor=None, *, steps=5, shard=True, first=0):
    for step in range(first, first + steps):
        u = batch(step)
        u = share(u) if shard else u
        (model(u) - u.cumsum(1)[..., :2]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if compressor is not None:
            compressor.step()


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def same_everywhere(model):
    """Tell whether all ranks have the same parameters, bit for bit."""
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, (ht.state_sizes(model), weights(model).tolist()))
    return all(x == found[0] for x in found)


def wrapped(**arguments):
    ddp = DDP(Stack(), **arguments)
    return ddp, torch.optim.AdamW(ddp.parameters(), lr=1e-2)


def kept(ddp):
    names = ("static_graph", "gradient_as_bucket_view", "find_unused_parameters", "broadcast_buffers")
    return {name: bool(getattr(ddp, name)) for name in names} | {"bucket_bytes_cap": ddp.bucket_bytes_cap}


@scenarios
def every_kind_of_wrapper():
    single = Stack()
    optimizer = torch.optim.AdamW(single.parameters(), lr=1e-2)
    with warnings.catch_warnings():  # one model for itself in each process, as is meant here
        warnings.filterwarnings("ignore", "This process is one of several", ht.RefusedCutWarning)
        compressor = ht.InTrainingCompressor(single, optimizer, CONFIG, SCHEDULE)
    train(single, optimizer, compressor, shard=False)
    found = {}
    for name, arguments in {
        "plain": {},
        "static_graph": {"static_graph": True},
        "bucket_view": {"gradient_as_bucket_view": True},
        "find_unused": {"find_unused_parameters": True},
        "buckets": {"bucket_cap_mb": 1},
        "group": {"process_group": dist.new_group()},
        "rank_local_buffers": {"broadcast_buffers": False},
    }.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers, since torch 2.13
            ddp, optimizer = wrapped(**arguments)
        before, group = kept(ddp), ddp.process_group
        compressor = ht.InTrainingCompressor(ddp, optimizer, CONFIG, SCHEDULE)
        train(ddp, optimizer, compressor)
        assert_consistent(ddp, optimizer)
        difference = (weights(ddp) - weights(single)).abs().max().item()
        arguments_kept = kept(ddp) == before and ddp.process_group is group
        found[name] = [same_everywhere(ddp.module), ht.state_sizes(ddp.module), arguments_kept, difference]
    return found


@scenarios
def rank_0_decides():
    ddp, optimizer = wrapped()
    wanted = {"first": 5, "second": 4} if dist.get_rank() == 0 else {"first": 3, "second": 2}
    ht.compress_(ddp, ht.CompressionConfig(order=wanted), optimizer)
    return [ht.state_sizes(ddp.module), same_everywhere(ddp.module)]


@scenarios
def ranks_that_differ():
    ddp, optimizer = wrapped()
    train(ddp, optimizer, steps=1)
    if dist.get_rank() == 1:
        with torch.no_grad():
            ddp.module.first.B_re[0, 0] += 1e-12
    before = weights(ddp)
    error = message(lambda: ht.compress_(ddp, CONFIG, optimizer))
    return [error, torch.equal(weights(ddp), before)]


@scenarios
def optimizers_that_differ():
    ddp, optimizer = wrapped()
    train(ddp, optimizer, steps=1)
    optimizer.state[ddp.module.first.B_re]["exp_avg"] *= 1 + dist.get_rank()
    return message(lambda: ht.compress_(ddp, CONFIG, optimizer))


@scenarios
def rank_0_fails():
    ddp, optimizer = wrapped()
    with torch.no_grad():
        ddp.module.first.B_re[0, 0] = float("nan")
    return message(lambda: ht.compress_(ddp, CONFIG, optimizer))


@scenarios
def other_rank_fails():
    ddp, optimizer = wrapped()
    if dist.get_rank() == 1:
        optimizer = torch.optim.AdamW(ddp.module.head.parameters())
    before = weights(ddp)
    error = message(lambda: ht.compress_(ddp, CONFIG, optimizer))
    return [error, torch.equal(weights(ddp), before)]


@scenarios
def hooks_and_mode():
    ddp, optimizer = wrapped(gradient_as_bucket_view=True)
    calls = []
    ddp.register_comm_hook(None, fp16_compress_hook)  # its twin of bfloat16 is for NCCL only
    ddp.register_forward_hook(lambda *_: calls.append(1))
    ddp.eval()
    train(ddp, optimizer, ht.InTrainingCompressor(ddp, optimizer, CONFIG, SCHEDULE), steps=4)
    name = ddp._get_ddp_logging_data()["comm_hook"]
    return [name, len(calls), ddp.training, same_everywhere(ddp.module), ht.state_sizes(ddp.module)]


@scenarios
def hook_with_a_state():
    ddp, optimizer = wrapped()
    ddp.register_comm_hook(PowerSGDState(None), powerSGD_hook)
    errors = [
        message(lambda: ht.InTrainingCompressor(ddp, optimizer, CONFIG, SCHEDULE)),
        message(lambda: ht.compress_(ddp, CONFIG, optimizer)),
    ]
    return [errors, ht.state_sizes(ddp.module)]


@scenarios
def hook_of_torch_itself():
    ddp, optimizer = wrapped()
    ddp._register_builtin_comm_hook(dist.BuiltinCommHookType.FP16_COMPRESS)
    return message(lambda: ht.InTrainingCompressor(ddp, optimizer, CONFIG, SCHEDULE))


@scenarios
def samples_of_uneven_ranks():
    """What the ranks hear of a training is added up: one has three sequences, the other one."""
    config, schedule = what_and_when(tau=0.05, end_step=1, attempts=1, force=True)
    ids = tokens(batch=4, length=16, seed=0)
    own, plans = ids[:3] if dist.get_rank() == 0 else ids[3:], []
    for model, x in ((DDP(language_model("Mamba").train()), own), (language_model("Mamba").train(), ids)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with warnings.catch_warnings():  # one model for itself in each process, as is meant here
            warnings.filterwarnings("ignore", "This process is one of several", ht.RefusedCutWarning)
            compressor = ht.InTrainingCompressor(model, optimizer, config, schedule)
        model(input_ids=x, labels=x, use_cache=False).loss.backward()
        optimizer.step()
        compressor.step()
        plans.append(compressor.history)
    pairs = [*zip(*plans, strict=True)]
    return [
        [(x.states, y.states) for x, y in pairs],
        [float(abs(x.hsv / x.hsv[0] - y.hsv / y.hsv[0]).max()) for x, y in pairs],
    ]


@scenarios
def metric_of_the_ranks():
    ddp, optimizer = wrapped()
    values = iter([1.0, 0.0] if dist.get_rank() == 0 else [1.0, 1.0])  # the mean falls by a half
    guard = ht.Guard(lambda: next(values), tolerance=0.4, on_fail="stop", mode="max")
    compressor = ht.InTrainingCompressor(ddp, optimizer, CONFIG, SCHEDULE, guard)
    train(ddp, optimizer, compressor)
    record = compressor.history[0]
    return [record.metric, record.rolled_back, ht.state_sizes(ddp.module), same_everywhere(ddp.module)]


@scenarios
def cut_by_hand():
    ddp, optimizer = wrapped()
    ht.compress_(ddp.module, CONFIG, optimizer)
    ht.refresh_ddp_(ddp)
    train(ddp, optimizer, steps=2)
    agreeing = same_everywhere(ddp.module)
    ht.compress_(ddp.module, ht.CompressionConfig(order=3 - dist.get_rank()), optimizer)
    return [agreeing, message(lambda: ht.refresh_ddp_(ddp))]


@scenarios
def resumed_in_the_wrapper(folder=None):
    def made():
        ddp, optimizer = wrapped()
        return ddp, optimizer, ht.InTrainingCompressor(ddp, optimizer, CONFIG, SCHEDULE)

    straight = made()
    train(*straight, steps=5)
    first = made()
    train(*first, steps=3)
    path = Path(sys.argv[1]) / f"run_{dist.get_rank()}.pt"
    ht.save_checkpoint(path, *first)
    resumed = made()
    train(*resumed[:2], steps=1)
    ht.load_checkpoint(path, *resumed)
    train(*resumed, steps=2, first=3)
    return torch.equal(weights(resumed[0]), weights(straight[0]))


@scenarios
def compiled_wrapper():
    ddp, optimizer = wrapped()
    model = torch.compile(ddp, backend="eager")
    train(model, optimizer, ht.InTrainingCompressor(model, optimizer, CONFIG, SCHEDULE), steps=4)
    return [ht.state_sizes(ddp.module), same_everywhere(ddp.module)]


@scenarios
def sharded_model_cut_by_its_full_state():
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )
    from torch.distributed.fsdp import fully_shard

    def build_model():
        return Stack(dtype=torch.float32)

    def build_optimizer(model):
        return torch.optim.AdamW(model.parameters(), lr=1e-2)

    def advance(model, optimizer, steps):
        for step in range(steps):
            model(batch(step).float()).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    whole, config = build_model(), ht.CompressionConfig(order=4)
    single = build_optimizer(whole)
    advance(whole, single, 3)
    ht.compress_(whole, config, single)
    advance(whole, single, 2)
    wanted = {name: x.tolist() for name, x in whole.state_dict().items()}

    model = fully_shard(build_model())
    optimizer = build_optimizer(model)
    advance(model, optimizer, 3)

    # the recipe of docs/guides/sharded_training.md
    gather = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=gather)
    states = get_optimizer_state_dict(model, optimizer, options=gather)
    whole = build_model()
    cut = [None, None]
    if torch.distributed.get_rank() == 0:
        ht.resize_(whole, weights)
        whole.load_state_dict(weights)
        its_optimizer = build_optimizer(whole)
        set_optimizer_state_dict(whole, its_optimizer, states, options=gather)
        ht.compress_(whole, config, its_optimizer)
        cut = [whole.state_dict(), get_optimizer_state_dict(whole, its_optimizer, options=gather)]
    torch.distributed.broadcast_object_list(cut)
    ht.resize_(whole, cut[0])
    model = fully_shard(whole)
    optimizer = build_optimizer(model)
    set_model_state_dict(model, cut[0], options=gather)
    set_optimizer_state_dict(model, optimizer, cut[1], options=gather)

    advance(model, optimizer, 2)
    got = {name: x.full_tensor() for name, x in model.state_dict().items()}
    return max((got[name] - torch.tensor(x)).abs().max().item() for name, x in wanted.items())


@scenarios
def trainer_of_hugging_face():
    try:
        import transformers
    except ImportError:
        return None
    from hankelred_torch.integrations.transformers import CompressionCallback

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stack = Stack(dtype=torch.float32)

        def forward(self, u, labels):
            return {"loss": (self.stack(u) - labels).square().mean()}

    data = [{"u": u, "labels": u.cumsum(0)[..., :2]} for u in torch.randn(64, 10, 3)]
    settings = {"max_steps": 6, "save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True}
    arguments = transformers.TrainingArguments(output_dir=sys.argv[1], ddp_find_unused_parameters=False, **settings)
    callback = CompressionCallback(CONFIG, SCHEDULE)
    trainer = transformers.Trainer(Model(), arguments, train_dataset=data, callbacks=[callback])
    unattached = message(trainer.train)
    callback.attach(trainer)
    trainer.train()
    return [
        unattached,
        type(trainer.model_wrapped).__name__,
        ht.state_sizes(trainer.model),
        same_everywhere(trainer.model),
    ]


def main():
    importlib.import_module("torch.distributed.checkpoint.state_dict")  # before the fork
    with suppress(ImportError):
        importlib.import_module("hankelred_torch.integrations.transformers")
    model = Stack()
    ht.compress_(model, CONFIG, torch.optim.AdamW(model.parameters()))
    warnings.simplefilter("error", hr.HankelredWarning)
    scenarios.main()


if __name__ == "__main__":
    main()
