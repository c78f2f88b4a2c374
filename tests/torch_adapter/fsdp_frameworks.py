"""What the ranks of test_sharded_frameworks.py do under Accelerate and Trainer: train, cut, save, resume, hand over."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import accelerate
import torch
import torch.distributed as dist
import transformers
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from forked import Scenarios, mean, message, share
from selective_models import language_model, tokens
from settings import what_and_when
from sharded_models import Blocks, loss_of_sequences, sequences, warm_up

import hankelred_torch as ht
from hankelred_torch import sharding
from hankelred_torch.integrations.accelerate import register
from hankelred_torch.integrations.transformers import CompressionCallback

FOLDER = Path(sys.argv[1])
CONFIG, SCHEDULE = what_and_when(order=4, end_step=4, attempts=2, force=True)
PATIENT = ht.Guard(lambda: 0.0, tolerance=1.0, mode="min", settle_steps=1)
SAVED, STEPS = 3, 6
scenarios = Scenarios()


def shard_on_cpus():
    """Let accelerate shard where there is no GPU: it knows no such runs, and would take the plugin for nothing."""
    state = accelerate.state.AcceleratorState
    made = state.__init__

    def init(self, *arguments, fsdp_plugin=None, **options):
        made(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            accelerate.state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    state.__init__ = init


def weights(model, optimizer):
    """Return the shards of this rank, of parameters and averages."""
    sharding.reshard(model)
    held = [*model.parameters(), *(x for state in optimizer.state.values() for x in state.values())]
    return [sharding.local(x).detach().clone() for x in held]


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Accelerated:
    """A run with accelerate, whose FSDP plugin wraps, checkpoints and shards the blocks."""

    def __init__(self, kind, guard=None, **options):
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["Block"],
            state_dict_type=kind,
            cpu_ram_efficient_loading=False,
            **options,
        )
        self.accelerator = accelerate.Accelerator(cpu=True, fsdp_plugin=plugin, gradient_accumulation_steps=2)
        model = Blocks()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.compressor = ht.InTrainingCompressor(self.model, self.optimizer, CONFIG, SCHEDULE, guard)
        self.handle = register(self.accelerator, self.compressor)

    def steps(self, first, last):
        """Take steps of two micro-batches, and return the losses."""
        losses = []
        for step in range(2 * first, 2 * last):
            with self.accelerator.accumulate(self.model):
                loss = loss_of_sequences(self.model, share(sequences(step)))
                self.accelerator.backward(loss)
                self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.compressor.step()
            losses.append(mean(loss))
        return losses


def of_accelerate(kind, **options):
    """Save, go on, resume, and load the whole result."""
    folder = FOLDER / f"{kind}_{len(options)}"
    run = Accelerated(kind, **options)
    run.steps(0, SAVED)
    run.accelerator.save_state(folder / "state")
    dist.barrier()
    losses = run.steps(SAVED, STEPS)
    resumed = Accelerated(kind, **options)
    resumed.accelerator.load_state(folder / "state")
    found = {"same losses": losses == resumed.steps(SAVED, STEPS), "sizes": ht.state_sizes(run.model)}
    found["same"] = equal(weights(run.model, run.optimizer), weights(resumed.model, resumed.optimizer))
    found["steps"] = [run.compressor.steps, resumed.compressor.steps]
    found["spread"] = all(map(sharding.is_spread, resumed.model.parameters()))
    resumed.handle.remove()
    fresh = Accelerated(kind, **options)
    found["without input_dir"] = message(fresh.accelerator.load_state)
    mine = folder / "state" if dist.get_rank() == 0 else FOLDER
    found["seen by rank 0 alone"] = message(lambda: fresh.accelerator.load_state(mine))
    return found | handed_over(run.model, folder, Blocks, lambda model: model(sequences(0)))


def handed_over(model, folder, build, outputs):
    """Save a sharded model whole, load it in this process, and compare sizes and outputs."""
    ht.save_pretrained(model, folder / "whole")
    loaded = ht.from_pretrained(folder / "whole", build)
    with torch.no_grad():
        there, here = outputs(model.eval()), outputs(loaded.eval())
    plain = all(not sharding.is_spread(x) for x in loaded.parameters())
    return {"whole": [plain, ht.state_sizes(loaded), float((there - here).abs().max() / there.abs().max())]}


@scenarios
def accelerate_in_shards():
    return of_accelerate("SHARDED_STATE_DICT")


@scenarios
def accelerate_in_one_file():
    return of_accelerate("FULL_STATE_DICT", activation_checkpointing=True)


@scenarios
def accelerate_with_a_guard_that_takes_steps():
    return message(lambda: Accelerated("SHARDED_STATE_DICT", PATIENT))


class Texts(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        ids = tokens(batch=1, length=16, seed=index)[0]
        return {"input_ids": ids, "labels": ids}


def trainer_of(folder, kind, guard=None, model=None, **options):
    settings = {"version": 2, "transformer_layer_cls_to_wrap": ["MambaBlock"], "state_dict_type": kind} | options
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        save_steps=SAVED,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        fsdp=True,
        fsdp_config=settings,
    )
    callback = CompressionCallback(CONFIG, SCHEDULE, guard)
    model = language_model("Mamba").train() if model is None else model
    trainer = transformers.Trainer(model, arguments, train_dataset=Texts(), callbacks=[callback])
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    callback.attach(trainer)
    return trainer, callback


def of_trainer(kind, **options):
    """Save on the way, resume from there, and load the whole result."""
    folder = FOLDER / f"trainer_{kind}"
    trainer, callback = trainer_of(folder, kind, **options)
    trainer.train()
    found = {"sizes": ht.state_sizes(trainer.model), "cuts": sorted({x.step for x in callback.history if x.cut})}
    found["spread"] = all(map(sharding.is_spread, trainer.model.parameters()))
    resumed, its_callback = trainer_of(folder, kind, **options)
    resumed.train(its_callback.resume_from(folder / f"checkpoint-{SAVED}", resumed.model))
    found["same"] = equal(
        weights(trainer.model, trainer.optimizer.optimizer), weights(resumed.model, resumed.optimizer.optimizer)
    )
    if kind == "FULL_STATE_DICT":  # the checkpoint itself is a whole model
        loaded = ht.from_pretrained(folder / f"checkpoint-{STEPS}")
        found["checkpoint"] = ht.state_sizes(loaded)
    ids = tokens(batch=2, length=16, seed=100)
    return found | handed_over(trainer.model, folder, None, lambda model: model(input_ids=ids, use_cache=False).logits)


@scenarios
def trainer_in_shards():
    return of_trainer("SHARDED_STATE_DICT")


@scenarios
def trainer_in_one_file():
    return of_trainer("FULL_STATE_DICT", activation_checkpointing=True)


@scenarios
def trainer_with_a_guard_that_takes_steps():
    return message(trainer_of(FOLDER / "guarded", "SHARDED_STATE_DICT", PATIENT)[0].train)


@scenarios
def trainer_of_adapters():
    try:
        import peft
    except ImportError:
        return None
    model = peft.get_peft_model(language_model("Mamba").train(), peft.LoraConfig(target_modules=["embeddings"]))
    return message(trainer_of(FOLDER / "adapters", "SHARDED_STATE_DICT", model=model)[0].train)


def main():
    warnings.simplefilter("ignore")
    shard_on_cpus()
    language_model("Mamba")  # imported before the fork
    warm_up()
    scenarios.main()


if __name__ == "__main__":
    main()
