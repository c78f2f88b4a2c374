"""What 12 states cost over 128: scan, block, training step of a language model, and a whole run that is cut early.

    python -m benchmarks.speed.mamba            # prints
    python -m benchmarks.speed.mamba --write    # and keeps it in benchmarks/results/mamba_speed.json

One implementation at two sizes, forward and backward, on one thread. Times are seconds of the thread: the least of
several, both sizes in turn, so that what else the machine does falls on both alike; of training steps, the least mean
of a few. Beside every factor stands how many characters a second that is.

The run is put together of what was measured: 1,000 steps of the experiment's model of text, 100 with all states, the
cut with its statistics, and 900 with 12; against 1,000 steps with all.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from hankelred_torch import CompressionConfig, compress_, plan
from hankelred_torch.adapters import collect_statistics
from hankelred_torch.layers import Mamba
from hankelred_torch.ops import selective_scan

from .._common import least_times, surroundings, write
from ..experiment.settings import Settings
from ..experiment.trainer import Trainer
from ..tasks import Task, load_task
from .selective import BATCH, INNER, LENGTH, scan_arguments

RESULTS = Path(__file__).parents[1] / "results" / "mamba_speed.json"
SIZES = (128, 12)
ROUNDS, BLOCK = 12, 4  # blocks of training steps of each model, in turn
STEPS, CUT = 1000, 100
CUTS = 3  # measurements of a cut


def scan_times() -> dict[int, float]:
    gy = torch.randn(BATCH, LENGTH, INNER)
    arguments = {n: scan_arguments(n) for n in SIZES}
    runs = {str(n): lambda x=x: torch.autograd.grad(selective_scan(*x), x, gy) for n, x in arguments.items()}
    return {int(n): t for n, t in least_times(runs, budget=1.0).items()}


def block_times() -> dict[int, float]:
    u, gy = torch.randn(2, BATCH, LENGTH, INNER // 2)
    blocks = {n: Mamba(INNER // 2, n) for n in SIZES}
    runs = {str(n): lambda x=x: torch.autograd.grad(x(u), list(x.parameters()), gy) for n, x in blocks.items()}
    return {int(n): t for n, t in least_times(runs, budget=1.0).items()}


def trainers(task: Task, settings: Settings) -> dict[int, Trainer]:
    return {n: Trainer(task, replace(settings, states=n), 0, clock=time.thread_time) for n in SIZES}


def step_times(models: dict[int, Trainer]) -> dict[int, float]:
    means: dict[int, list[float]] = {n: [] for n in models}
    for _ in range(ROUNDS):
        for n, trainer in models.items():
            trainer.train_to(trainer.steps + 1 + BLOCK, lambda: None)
            means[n].append(sum(trainer.times[-BLOCK:]) / BLOCK)  # at the first, caches belong to the other model
    return {n: min(x) for n, x in means.items()}


def cut_times(trainer: Trainer) -> dict[str, float]:
    """The least times of the parts of a cut to 12 states."""
    parts: dict[str, list[float]] = {"statistics": [], "analysis": [], "surgery": []}
    for _ in range(CUTS + 1):  # the first compiles
        branch = trainer.branch()
        moments = [time.thread_time()]
        sampled = collect_statistics(branch.model, branch.batches)
        moments.append(time.thread_time())
        todo = plan(branch.model, CompressionConfig(order=SIZES[1]), batches=sampled)
        moments.append(time.thread_time())
        compress_(branch.model, todo, [branch.optimizer], batches=sampled)
        moments.append(time.thread_time())
        for name, before, after in zip(parts, moments, moments[1:], strict=False):
            parts[name].append(after - before)
    return {name: min(x[1:]) for name, x in parts.items()}


def compared(seconds: dict[int, float], characters: int) -> dict[str, Any]:
    """Times, their ratio, and characters per second, rounded."""
    large, small = (seconds[n] for n in SIZES)
    line: dict[str, Any] = {f"{n} states, s": float(f"{t:.3g}") for n, t in seconds.items()}
    line["factor"] = round(large / small, 2)
    return line | {f"{n} states, characters/s": round(characters / t) for n, t in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--channels", type=int, help="of the language model, default as in the experiment")
    options = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)  # NumPy's linear algebra, too
    torch.manual_seed(0)
    task = load_task("text")
    settings = Settings.of("text", **({"channels": options.channels} if options.channels else {}))
    batch = settings.batch * task.length
    models = trainers(task, settings)
    steps = step_times(models)
    cut = cut_times(models[SIZES[0]])
    whole = STEPS * steps[128]
    cut_run = CUT * steps[128] + sum(cut.values()) + (STEPS - CUT) * steps[12]
    document = {
        "what": "forward and backward, 12 states against 128, one thread",
        **surroundings(("torch", "numba")),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "sizes of scan and block": {"batch": BATCH, "length": LENGTH, "inner channels": INNER},
        "model": {"blocks": settings.blocks, "channels": settings.channels, "batch": settings.batch, "length": LENGTH},
        "scan": compared(scan_times(), BATCH * LENGTH),
        "block": compared(block_times(), BATCH * LENGTH),
        "training step": compared(steps, batch),
        "run of 1,000 steps, cut after 100": compared({128: whole, 12: cut_run}, STEPS * batch),
        "parts of the cut, s": {name: float(f"{t:.3g}") for name, t in cut.items()},
        "cut, share of its run, %": round(100 * sum(cut.values()) / cut_run, 2),
    }
    print(json.dumps(document, indent=1))
    if options.write:
        write(RESULTS, document)


if __name__ == "__main__":
    main()
