"""Why does a Mamba that is cut early learn to recall later than one that is small from the start, or sooner?

    python -m benchmarks.studies.rates --task recall --steps 1000 --seeds 3 --budget 40min
    python -m benchmarks.studies.rates --task recall-32 --steps 2500
    python -m benchmarks.studies.rates --table

Pairs of a key and a value are shown, then the keys again: which value belongs to each? Two Mamba layers go from 128
states to 12 in one cut. It leaves two things that a fresh layer of 12 states does not have: rates between 1 and 120 in
the place of 1 to 12, and rows of the projections that training has made what they are. Arms are all four combinations:

- `rotation`: rates and rows of the cut.
- `rotation, fresh rates`: rows of the cut, rates 1 to 12 in every channel.
- `rotation, fresh rows`: rates of the cut, rows drawn as those of a fresh layer.
- `fresh rates and rows`: both; all other weights, and the optimizer's averages of them, are the large model's.
- `scratch`: 12 states from the first step; `full`: 128 to the last.

The cut comes at a tenth of the training, `early` at a twentieth, `late` at a quarter, `half` at a half. Runs of one
seed see the same batches, and all arms but `scratch` are branches of one run, the same up to the cut to the last bit.
*Jump* is the rise of the validation loss in the cut in nats, *tail* the share of the values that is dropped, in the
layer where it is largest, which `Schedule(max_tail=)` is a limit of, *alike* the mean cosine of two rows that write
into the states, by size, *slow* the share of rates that are at most 12. Every run is a line of
benchmarks/results/rates.jsonl, written when it ends.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from benchmarks import lines
from benchmarks.experiment.settings import Settings
from benchmarks.experiment.trainer import Trainer
from benchmarks.runs import Spread, table
from benchmarks.tasks import load_task
from hankelred_torch import CompressionConfig, compress_
from hankelred_torch.layers import Mamba

RESULTS = Path(__file__).parents[1] / "results" / "rates.jsonl"
TASKS = ("recall", "recall-16", "recall-32")
KEPT = 12
CURVE = 20  # looks at the validation part in a run
SHARES = {"": 0.1, ", early": 0.05, ", late": 0.25, ", half": 0.5}
FRESH = {  # what is drawn anew after the cut
    "rotation": (),
    "rotation, fresh rates": ("rates",),
    "rotation, fresh rows": ("rows",),
    "fresh rates and rows": ("rates", "rows"),
}
MAIN = ("full", "scratch", *FRESH, "rotation, early", "rotation, late")


@torch.no_grad()
def refresh(trainer: Trainer, what: Iterable[str]) -> None:
    """Give rates or rows of all Mamba layers the values that fresh layers start with.

    What is new has no gradient yet: its first averages are 0, its second ones the mean of their tensor.
    """
    for layer in trainer.model.modules():
        if not isinstance(layer, Mamba):
            continue
        fresh = Mamba(layer.channels, layer.states)
        n = layer.states
        if "rates" in what:
            layer.A_log.copy_(fresh.A_log)
            _forget(trainer.optimizer.state[layer.A_log], slice(None))
        if "rows" in what:
            rows = slice(len(layer.x_proj.weight) - 2 * n, None)  # behind those of the step
            layer.x_proj.weight[rows] = fresh.x_proj.weight[rows]
            _forget(trainer.optimizer.state[layer.x_proj.weight], rows)


def _forget(state: dict[str, Any], rows: slice) -> None:
    state["exp_avg"][rows] = 0
    state["exp_avg_sq"][rows] = state["exp_avg_sq"].mean()


@torch.no_grad()
def properties(trainer: Trainer) -> dict[str, float]:
    """How alike the rows are that write into the states, and how many rates are as slow as a fresh layer's."""
    alike, slow = [], []
    for layer in trainer.model.modules():
        if isinstance(layer, Mamba):
            n = layer.states
            rows = layer.x_proj.weight[-2 * n : -n]
            cosines = torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(rows).T
            alike.append((cosines.abs().sum() - n).item() / (n * (n - 1)))
            slow.append((layer.A_log.exp() <= KEPT + 0.5).double().mean().item())
    return {"alike": sum(alike) / len(alike), "slow": sum(slow) / len(slow)}


def cut(trainer: Trainer, what: Iterable[str], seed: int) -> dict[str, float]:
    """Cut all layers, draw some of it anew, and return what that did to the loss and to the states."""
    before, start = trainer.validation_loss(), time.thread_time()
    plan = compress_(trainer.model, CompressionConfig(order=KEPT), [trainer.optimizer], batches=trainer.batches)
    torch.manual_seed(seed)
    refresh(trainer, what)
    trainer.times[-1] += time.thread_time() - start
    tail = max(1 - x.kept_energy for x in plan.layers.values())
    return {"jump": trainer.validation_loss() - before, "tail": tail} | properties(trainer)


def follow(trainer: Trainer, steps: int, progress: Callable[[], Any]) -> list[list[float]]:
    """Train to a step; return steps and accuracy on the validation part on the way."""
    curve, every = list[list[float]](), max(1, trainer.settings.steps // CURVE)
    while trainer.steps < steps:
        trainer.train_to(min(steps, (trainer.steps // every + 1) * every), progress)
        if trainer.steps % every == 0:
            curve.append([trainer.steps, trainer.score(trainer.task.validation)])
    return curve


def group(path: Path, name: str, steps: int, arms: tuple[str, ...], budget: Any, seed: int, place: int) -> None:
    """Make the missing runs of one seed: branches of one run, the run itself, and the small model."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    settings, task = replace(Settings.of(name), steps=steps), load_task(name)

    def missing(arm: str) -> bool:
        return not budget.over and lines.of_run(lines.read(path), _key(name, steps, arm, seed)) is None

    def fresh(states: int) -> Trainer:
        return Trainer(task, settings, seed, [states] * settings.blocks, clock=time.thread_time)

    def finish(trainer: Trainer, arm: str, found: dict[str, Any], curve: list[list[float]]) -> None:
        with tqdm(total=steps, initial=trainer.steps, desc=f"{arm}, seed {seed}", position=place, disable=None) as bar:
            curve = curve + follow(trainer, steps, bar.update)
        found |= {"test": trainer.score(task.test), "seconds": sum(trainer.times), "curve": curve}
        found |= {f"{x} at the end": value for x, value in properties(trainer).items()}
        lines.add(path, _key(name, steps, arm, seed) | found | lines.machine())
        tqdm.write(f"{name}, {steps} steps, {arm}, seed {seed}: {found['test']:.1f} %, {found['seconds']:.0f} s")

    trunk, curve = None, list[list[float]]()
    for ending, share in sorted(SHARES.items(), key=lambda x: x[1]):
        for arm in [x for x in FRESH if x + ending in arms and missing(x + ending)]:
            trunk = trunk or fresh(settings.states)
            curve += follow(trunk, round(share * steps), lambda: None)
            branch = trunk.branch()
            finish(branch, arm + ending, cut(branch, FRESH[arm], seed), curve)
    if "scratch" in arms and missing("scratch"):
        finish(fresh(KEPT), "scratch", {}, [])
    if "full" in arms and missing("full"):
        finish(trunk or fresh(settings.states), "full", {}, curve)


def _key(task: str, steps: int, arm: str, seed: int) -> dict[str, Any]:
    return {"task": task, "steps": steps, "arm": arm, "kept": 128 if arm == "full" else KEPT, "seed": seed}


def summary(found: list[dict[str, Any]]) -> str:
    """A table for each task and length of the schedule: the end, the way there, and the states after the cut."""
    parts = []
    order = [*(arm + share for share in SHARES for arm in FRESH), "scratch", "full"]
    for task, steps in dict.fromkeys((x["task"], x["steps"]) for x in found):
        runs = [x | _way(x) for x in found if (x["task"], x["steps"]) == (task, steps)]
        runs.sort(key=lambda x: (order.index(x["arm"]), x["seed"]))
        columns = {"test": ("at the end, %", 1), "half": ("half way, %", 1), "learned": ("steps until 90 %", 0)}
        columns |= {
            "jump": ("jump", 2),
            "tail": ("tail", 2),
            "alike": ("alike after the cut", 2),
            "slow": ("slow after the cut", 2),
        }
        columns |= {"seconds": ("seconds", 0)}
        parts.append(f"{task}, {steps} steps\n\n{table(runs, 'arm', columns)}\n\n{_against_scratch(runs)}")
    return "\n\n".join(parts)


def _way(run: dict[str, Any]) -> dict[str, float | None]:
    """The accuracy half way, and the steps until nine in ten are right, of the whole schedule where it never is."""
    half = [score for step, score in run["curve"] if step <= run["steps"] / 2]
    learned = [step for step, score in run["curve"] if score >= 90]
    return {"half": half[-1] if half else None, "learned": float(learned[0] if learned else run["steps"])}


def _against_scratch(runs: list[dict[str, Any]]) -> str:
    small = {x["seed"]: x["test"] for x in runs if x["arm"] == "scratch"}
    said = []
    for arm in dict.fromkeys(x["arm"] for x in runs if x["arm"] != "scratch"):
        found = Spread.of(x["test"] - small[x["seed"]] for x in runs if x["arm"] == arm and x["seed"] in small)
        if found is not None and (ends := found.interval()):
            said.append(f"{arm} over scratch: {found.mean:+.1f} points ({ends[0]:+.1f} to {ends[1]:+.1f})")
    return "  \n".join(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="recall")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--arms", nargs="+", default=MAIN, metavar="ARM", help=f"of {', '.join(MAIN)}")
    parser.add_argument("--table", action="store_true", help="print the tables of all lines, and run nothing")
    lines.add_options(parser, RESULTS)
    options = parser.parse_args()
    if not options.table:
        work = partial(group, options.out, options.task, options.steps, tuple(options.arms), options.budget)
        lines.each_on_a_core(work, range(options.seeds), options.cores)
    print(summary(lines.read(options.out)))


if __name__ == "__main__":
    main()
