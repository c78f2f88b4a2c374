"""Does training with a Hankel penalty make a cut cheaper? Cutting alone against penalty, then cutting.

    python -m benchmarks.studies.penalty                     # all arms and seeds; about three minutes on one core
    python -m benchmarks.studies.penalty --seeds 1 --steps 200 --out quick.json
    python -m benchmarks.studies.penalty --time              # only what the penalty adds to a step

The classifier of `hankelred train` learns the digits with 64 states. Half way it is cut to few states, by the same
balanced truncation in every arm, and learns on without a penalty. An arm is the strength of the penalty before the cut;
0 is cutting alone. The strengths were set before the first run, none was chosen by its result. Runs of one seed start
from the same weights and see the same batches. The accuracy before the cut, just after it and at the end is that on
the test part.

Every run is written to the file of results when it ends and is not made again; Ctrl-C loses the run in progress only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hankelred_torch import CompressionConfig, compress_, hankel_penalty, hankel_singular_values
from hankelred_torch.experiment.settings import Settings
from hankelred_torch.experiment.study import write_atomically
from hankelred_torch.experiment.tasks import Task, load_task
from hankelred_torch.experiment.training import Trainer

Penalty = Callable[[], Tensor | None]

RESULTS = Path(__file__).parents[1] / "results" / "penalty.json"
STRENGTHS = (0.0, 3e-4, 1e-3, 3e-3)
EVERY = 10
STATES_KEPT = 4
STEPS = 1000
SEEDS = 5
COLUMNS = {
    "before": "before the cut, %",
    "after": "just after, %",
    "end": "at the end, %",
    "penalty": "sum of hsv",
    "tail": "share cut off, %",
    "needed": "states for 95 %",
}


def trainer_of(task: Task, settings: Settings, seed: int) -> Trainer:
    return Trainer(task, settings, [settings.states] * settings.blocks, seed, shrink=False)


def penalty_of(trainer: Trainer, strength: float, every: int) -> Penalty:
    """Return what gives the penalty on every so many steps, so many times as strong, and None on the others."""
    steps = itertools.count()
    return lambda: (
        strength * every * hankel_penalty(trainer.model) if next(steps) % every == 0 and strength > 0 else None
    )


def step(trainer: Trainer, penalty: Penalty | None) -> None:
    """Make one optimizer step on the loss and the penalty."""
    trainer.forward_backward()
    if penalty is not None:
        value = penalty()
        if value is not None:
            value.backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    trainer.schedule.step()


def run(task: Task, settings: Settings, strength: float, kept: int, seed: int, bar: tqdm[Any]) -> dict[str, float]:
    """Train, cut half way, train on; return accuracies and what the cut found."""
    trainer = trainer_of(task, settings, seed)
    penalty = penalty_of(trainer, strength, EVERY)
    cut = settings.steps // 2
    for _ in range(cut):
        step(trainer, penalty)
        bar.update()
    before = trainer.accuracy(task.test)
    total = hankel_penalty(trainer.model).item()
    needed = states_for(trainer, 0.95)
    report = compress_(trainer.model, CompressionConfig(order=kept), optimizers=[trainer.optimizer])
    lost = 1 - min(layer.kept_energy for layer in report.layers.values())
    after = trainer.accuracy(task.test)
    for _ in range(settings.steps - cut):
        step(trainer, None)
        bar.update()
    end = trainer.accuracy(task.test)
    return {"before": before, "after": after, "end": end, "penalty": total, "tail": 100 * lost, "needed": needed}


def states_for(trainer: Trainer, share: float) -> float:
    """Return how many stored states carry a share of the sum of hsv, two values to a state; the mean over layers."""
    counts = []
    for hsv in hankel_singular_values(trainer.model).values():
        counts.append(np.searchsorted(np.cumsum(hsv), share * hsv.sum()) / 2)
    return float(np.ceil(np.mean(counts)))


def time_per_step(task: Task, settings: Settings) -> dict[str, float]:
    """Return milliseconds of CPU time of a step without penalty, with one every tenth step, and every step."""
    arms = {"none": None, "every 10": 10, "every 1": 1}
    trainers = {name: trainer_of(task, settings, 0) for name in arms}
    penalties = {name: every and penalty_of(trainers[name], 1e-3, every) for name, every in arms.items()}
    means: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(40):  # in turn, so that what else the machine does falls on all of them
        for name in arms:
            start = time.thread_time()
            for _ in range(10):
                step(trainers[name], penalties[name] or None)
            means[name].append((time.thread_time() - start) / 10)
    return {name: round(1e3 * statistics.median(times[2:]), 3) for name, times in means.items()}


def table(runs: list[dict[str, Any]]) -> str:
    """Return mean and standard deviation over the seeds, a row for each arm, in Markdown."""
    lines = ["| strength | seeds | " + " | ".join(COLUMNS.values()) + " |", "|" + "---|" * (len(COLUMNS) + 2)]
    for strength in sorted({x["strength"] for x in runs}):
        rows = [x for x in runs if x["strength"] == strength]
        cells = []
        for name in COLUMNS:
            values = [row[name] for row in rows]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        label = "0 (cut alone)" if strength == 0 else f"{strength:g}"
        lines.append(f"| {label} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--states-kept", type=int, default=STATES_KEPT)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--time", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = replace(Settings(), steps=options.steps)
    task = load_task(settings.task)
    if options.time:
        print(time_per_step(task, settings))
        return

    document: dict[str, Any] = {
        "what": "accuracy on the test part in percent; the penalty acts on the first half of the steps, then the cut",
        "settings": asdict(settings) | {"states_kept": options.states_kept, "every": EVERY},
        "environment": {"torch": torch.__version__, "machine": f"{platform.machine()}, one core"},
        "runs": [],
    }
    if options.out.exists():
        earlier = json.loads(options.out.read_text(encoding="utf-8"))
        if earlier["settings"] != document["settings"]:
            parser.error(f"{options.out} holds runs with other settings; choose another file with --out")
        document = earlier
    runs: list[dict[str, Any]] = document["runs"]
    wanted = [(strength, seed) for seed in range(options.seeds) for strength in STRENGTHS]
    missing = [key for key in wanted if key not in {(x["strength"], x["seed"]) for x in runs}]
    with tqdm(total=len(missing) * settings.steps, unit="step") as bar:
        for strength, seed in missing:
            bar.set_description(f"strength {strength:g}, seed {seed}")
            found = run(task, settings, strength, options.states_kept, seed, bar)
            runs.append({"strength": strength, "seed": seed} | {k: float(f"{v:.4g}") for k, v in found.items()})
            write_atomically(options.out, json.dumps(document, indent=1) + "\n")
    if "milliseconds per step" not in document:
        document["milliseconds per step"] = time_per_step(task, settings)
        write_atomically(options.out, json.dumps(document, indent=1) + "\n")
    print(table(runs))
    print("milliseconds per step:", document["milliseconds per step"])


if __name__ == "__main__":
    main()
