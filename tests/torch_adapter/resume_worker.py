"""What test_elastic_resume.py runs: sharded runs that are killed, and resumed on as many ranks, fewer or more."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from forked import mean, on_ranks, share
from settings import what_and_when
from sharded_models import LAYOUTS, Blocks, loss_of_sequences, sequences, shard, warm_up

import hankelred_torch as ht
from hankelred_torch import sharding
from hankelred_torch.saving import shards
from hankelred_torch.surgery import fsdp

CONFIG, SCHEDULE = what_and_when(fraction=0.7, end_step=4, attempts=2, force=True)
ON_TRIAL = what_and_when(fraction=0.7, end_step=2, attempts=1, force=True)
CUTS, STEPS, LIMIT = (2, 4, 6), 6, 200.0  # the last of these is the end


def made(sharded):
    model = Blocks()
    if sharded:
        shard(model, LAYOUTS["block"][0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ht.RefusedCutWarning)
        return model, optimizer, ht.InTrainingCompressor(model, optimizer, CONFIG, SCHEDULE)


def run(rank, folder, *, sharded=True, until=STEPS, killed=None, kept=None):
    """Go on from the checkpoint in a folder if there is one, save after every step, and tell how each of them ended."""
    torch.manual_seed(rank)
    model, optimizer, compressor = made(sharded)
    path, losses, first = folder / "run.pt", [], 0
    if path.exists():
        extra = ht.load_checkpoint(path, model, optimizer, compressor)
        first, losses = extra["step"], extra["losses"]
    found = {first: _stand(folder, model, optimizer, compressor, losses)}
    for step in range(first, until):
        own = dist.get_world_size() > 1
        loss = loss_of_sequences(model, share(sequences(step)) if own else sequences(step))
        torch.rand(())  # every rank draws on its own
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(mean(loss))
        kill = None if killed is None or killed["step"] != step + 1 else killed
        _arm(kill, rank)
        _die_at("before", kill, rank)
        compressor.step()
        _die_at("after", kill, rank)
        ht.save_checkpoint(path, model, optimizer, compressor, extra={"step": step + 1, "losses": losses})
        found[step + 1] = _stand(folder, model, optimizer, compressor, losses)
        if kept is not None and rank == 0:
            shutil.copytree(folder, kept / str(step + 1))
    (folder / f"rank_{rank}.json").write_text(json.dumps(found))


def _stand(folder, model, optimizer, compressor, losses):
    """Tell all that a step leaves: what there is to compare of two runs."""
    sharding.reshard(model)
    found = {"sizes": ht.state_sizes(model), "losses": [*losses], "digest": digest_of(model, optimizer)}
    found["random"] = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()
    found["history"] = [(x.step, x.layer, x.states) for x in compressor.history]
    return found | {"folders": len([x for x in folder.iterdir() if x.is_dir()])}


def digest_of(model, optimizer):
    """Return a hash of all parameters and averages, whole."""
    from hankelred_torch.surgery.ranks import digest

    parts = [sharding.whole(p).detach() for p in model.parameters()]
    parts += [sharding.whole(x) for state in optimizer.state.values() for x in state.values()]
    return digest(parts)


def _dies(kill, rank):
    return kill is not None and (kill["who"] == "all" or rank == ("first", "other").index(kill["who"]))


def _die_at(moment, kill, rank):
    if _dies(kill, rank) and kill["moment"] == moment:
        os.kill(os.getpid(), signal.SIGKILL)


def _arm(kill, rank):
    """Let a process be killed inside of a cut or of a save."""
    if not _dies(kill, rank):
        return
    places = {"in the cut": (fsdp, "_take_place"), "shards are written": (shards, "write_content")}
    places |= {"the file is written": (shards.shutil, "rmtree")}
    if kill["moment"] in places:
        module, name = places[kill["moment"]]
        setattr(module, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))


def launched(folder, name, ranks, **how):
    """Run so many ranks, and return how they ended."""
    where = folder / name
    where.mkdir(exist_ok=True)
    store = where.with_name(f"{name}_store_{len(list(folder.iterdir()))}")
    return on_ranks(ranks, lambda rank: run(rank, where, **how), store, LIMIT)


def saved_on_trial(rank, folder):
    """Save while a guard has not decided on a cut, resume, let it fail in both runs, and tell whether they are one."""

    def ran(values, first, steps, path=None):
        model, optimizer, _ = made(True)
        guard = ht.Guard(lambda: next(values), tolerance=0.1, on_fail="stop", mode="min", settle_steps=2)
        compressor = ht.InTrainingCompressor(model, optimizer, *ON_TRIAL, guard)
        if path is not None:
            ht.load_checkpoint(path, model, optimizer, compressor)
        for step in range(first, first + steps):
            loss_of_sequences(model, share(sequences(step))).backward()
            optimizer.step()
            optimizer.zero_grad()
            compressor.step()
            if path is None and step == 2:
                ht.save_checkpoint(folder / "run.pt", model, optimizer, compressor)
        sharding.reshard(model)
        rolled_back = [x.rolled_back for x in compressor.history]
        return [ht.state_sizes(model), rolled_back, digest_of(model, optimizer)]

    straight = ran(iter([0.0, 0.0, 5.0]), 0, 6)  # before the cut, after it, and when it has settled
    resumed = ran(iter([5.0]), 3, 3, folder / "run.pt")
    (folder / f"rank_{rank}.json").write_text(json.dumps([straight, resumed]))


def found_in(folder, name):
    return [json.loads(x.read_text()) for x in sorted((folder / name).glob("rank_*.json"))]


def killed_runs(folder, kills):
    """Kill runs, each in the step after a checkpoint of the straight one; say how they ended, and how resumed ones did.

    All of them are resumed by the same two ranks, in turn, which saves most of the time.
    """
    ended, places = [], [folder / f"kill_{k}" for k in range(len(kills))]
    for kill, place in zip(kills, places, strict=True):
        shutil.copytree(folder / "kept" / str(kill["step"] - 1), place)
        ended.append(launched(folder, place.name, 2, killed=kill, until=kill["step"]))

    def resumed(rank):
        for kill, place in zip(kills, places, strict=True):
            run(rank, place, until=next(x for x in CUTS if x > kill["step"] or x == STEPS))

    again = on_ranks(2, resumed, folder / "resumed_store", LIMIT + 20 * len(kills))
    return list(zip(ended, [found_in(folder, x.name) for x in places], strict=True)), again


def main():
    folder, kills = Path(sys.argv[1]), json.loads(sys.argv[2])
    warnings.simplefilter("ignore")
    warm_up()
    results = {"ends": {}, "elastic": {}}
    ends = results["ends"]
    (folder / "kept").mkdir()
    ends["straight"] = launched(folder, "straight", 2, kept=folder / "kept")
    results["straight"] = found_in(folder, "straight")
    results["killed"], ends["killed, resumed"] = killed_runs(folder, kills)
    (folder / "trial").mkdir()
    ends["trial"] = on_ranks(2, lambda rank: saved_on_trial(rank, folder / "trial"), folder / "trial_store", LIMIT)
    results["trial"] = found_in(folder, "trial")
    for name, before, after in (
        ("2 to 1 whole", (2, True), (1, False)),
        ("2 to 1 sharded", (2, True), (1, True)),
        ("1 whole to 2", (1, False), (2, True)),
        ("1 sharded to 2", (1, True), (2, True)),
    ):
        where = name.replace(" ", "_")
        if before[0] == 2:
            shutil.copytree(folder / "kept" / "3", folder / where)
        else:
            ends[name] = launched(folder, where, before[0], sharded=before[1], until=3)
        ends[f"{name}, resumed"] = launched(folder, where, after[0], sharded=after[1])
        results["elastic"][name] = found_in(folder, where)[: after[0]]
    (folder / "results.json").write_text(json.dumps(results))
    os._exit(0)


if __name__ == "__main__":
    main()
