"""How many channels do the keys of gated delta nets need, and which, when they are cut in training or after it?

    python -m benchmarks.studies.delta --task mqar-16 --seeds 3 --budget 40min     # whatever is missing, for so long
    python -m benchmarks.studies.delta --task text --arms full "after: rotation" "after: selection"
    python -m benchmarks.studies.delta --report                                    # docs/results/delta.md

Recall: pairs of a direction and a value are shown, then the directions again; one gated delta net with keys of 64
channels answers. Text: a small Qwen3.5, gated delta nets and one full attention, predicts characters. Arms:

- `full`: never cut; `scratch`: keys of so few channels from the first step; `scratch, long`: 2.5 times as many steps.
- `after: WAY`: the full model when it is trained, cut and not trained any more.
- `WAY 10%`, `WAY 30%`: cut at that share of the training. Up to there the run is that of `full`, to the last bit.

Ways are `rotation` (state maps), `selection`, `pivoted QR`, `score` and `random`. Learning rates are those that suit
the full and the small model on the validation part. The test part is looked at once. Every run is a line of
benchmarks/results/delta.jsonl, written when it ends.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
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
from benchmarks.tasks import Task, load_task

from ..rates import follow
from . import report
from .ways import WAYS, cut

RESULTS = Path(__file__).parents[2] / "results" / "delta.jsonl"
DOCS = Path(__file__).parents[3] / "docs" / "results"
SAMPLES = 8  # batches on which a layer is seen at work
LONG = 2.5
SHARES = {"10%": 0.1, "30%": 0.3}
RECALL = (48, 32, 24, 16)
KEPT = {"mqar-16": RECALL, "mqar-8": RECALL, "mqar-32": RECALL, "text": (24, 16, 8)}
TEXT = {"layer": "delta", "states": 32, "channels": 64, "blocks": 3, "steps": 600, "lr": 5e-3}
ARMS = (
    "full",
    *(f"after: {x}" for x in WAYS),
    "scratch",
    "scratch, long",
    *(f"{x} {share}" for share in SHARES for x in WAYS),
)
MAIN = (
    *ARMS[: ARMS.index("scratch, long") + 1],
    *(f"{x} {share}" for share in SHARES for x in ("rotation", "selection")),
)


def settings_of(task: str, steps: int = 0) -> Settings:
    """What all runs of a task share."""
    given = TEXT if task == "text" else {}
    return Settings.of(task, **given | ({"steps": steps} if steps else {}), attempts=1)


class Trunk:
    """The run of one seed that is never cut, as it was at some steps; made when it is first asked for."""

    def __init__(self, task: Task, settings: Settings, seed: int) -> None:
        self._fresh = partial(Trainer, task, settings, seed, samples=SAMPLES, clock=time.thread_time)
        self._steps = [*(round(x * settings.steps) for x in SHARES.values()), settings.steps]
        self._kept: dict[int, tuple[Trainer, list[list[float]]]] = {}

    def at(self, steps: int) -> tuple[Trainer, list[list[float]]]:
        """A trainer that goes on from there, and the curve up to there."""
        if steps not in self._kept:
            done = max((x for x in self._kept if x <= steps), default=0)
            trainer, curve = self.at(done) if done else (self._fresh(), [])
            for stop in (x for x in self._steps if done < x <= steps):
                curve = curve + follow(trainer, stop, lambda: None)
                self._kept[stop] = trainer.branch(), curve
        trainer, curve = self._kept[steps]
        return trainer.branch(), copy.copy(curve)


def group(
    path: Path, settings: Settings, arms: Sequence[str], kept: Sequence[int], budget: Any, seed: int, place: int
) -> None:
    """Make the missing runs of one seed: those of the large model, its cuts, and the small models."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    task, where = load_task(settings.task), lines.machine()
    trunk = Trunk(task, settings, seed)
    for arm in arms:
        for size in [settings.states] if arm == "full" else kept:
            key = {"task": task.name, "arm": arm, "kept": size, "seed": seed}
            if budget.over or lines.of_run(lines.read(path), key):
                continue
            wall = time.perf_counter()
            with tqdm(total=settings.steps, desc=f"{arm}, {size}", position=place, leave=False, disable=None) as bar:
                trainer, found = made(trunk, task, settings, arm, size, seed, bar.update)
            found |= {"test": trainer.score(task.test), "validation": trainer.score(task.validation)}
            found |= {"seconds": sum(trainer.times), "wall": time.perf_counter() - wall, "steps": trainer.steps}
            lines.add(path, key | found | where)
            tqdm.write(f"{task.name}, {arm}, {size}, seed {seed}: {task.metric.text(found['test'])}")


def made(
    trunk: Trunk, task: Task, settings: Settings, arm: str, kept: int, seed: int, progress: Callable[[], Any]
) -> tuple[Trainer, dict[str, Any]]:
    """Make one run; return its trainer at the end, and what was seen on the way."""
    way, _, share = arm.removeprefix("after: ").rpartition(" ") if arm[-1] == "%" else (arm[7:], "", "")
    if arm.startswith("scratch"):
        steps = round((LONG if "long" in arm else 1.0) * settings.steps)
        small = replace(settings, states=kept, steps=steps)
        trainer = Trainer(task, small, seed, samples=SAMPLES, clock=time.thread_time)
        return trainer, {"curve": follow(trainer, steps, progress)}
    trainer, curve = trunk.at(round(SHARES.get(share, 1.0) * settings.steps))
    if arm == "full":
        return trainer, {"curve": curve}
    before = trainer.score(task.validation)
    found = cut(trainer, way, kept, seed) | {"before": before, "cut": trainer.score(task.validation)}
    return trainer, found | {"curve": curve + follow(trainer, settings.steps, progress)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=tuple(KEPT))
    parser.add_argument("--steps", type=int, default=0, help="those of the task by default")
    parser.add_argument("--kept", type=int, nargs="+", help="channels of keys to end with")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=MAIN, metavar="ARM", help=f"of {', '.join(ARMS)}")
    lines.add_options(parser, RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--report", action="store_true", help="write the page of all lines into docs/results")
    options = parser.parse_args()
    if not (options.task or options.report):
        parser.error("one of --task and --report must be given")
    if options.task:
        settings, kept = settings_of(options.task, options.steps), options.kept or KEPT[options.task]
        work = partial(group, options.out, settings, options.arms, kept, options.budget)
        lines.each_on_a_core(work, range(options.seeds), options.cores)
        print(report.size_table([x for x in lines.read(options.out) if x["task"] == options.task]))
    if options.report:
        report.write(RESULTS, options.docs)


if __name__ == "__main__":
    main()
