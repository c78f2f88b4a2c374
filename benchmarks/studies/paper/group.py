"""All missing runs of one task, size and seed, in the order of their arms."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from benchmarks import lines
from benchmarks.experiment.settings import Settings
from benchmarks.experiment.trainer import Trainer
from benchmarks.tasks import Task, load_task
from hankelred_torch import CompressionConfig, Schedule

from .arms import ARMS, LARGE
from .course import made


def with_needed(arms: Sequence[str]) -> list[str]:
    """The arms, and before each those whose lines it needs."""
    needed = [x for arm in arms for x in ((ARMS[arm].as_long_as, "scratch", arm) if ARMS[arm].as_long_as else (arm,))]
    return list(dict.fromkeys(needed))


def compile_kernels(task: Task, settings: Settings) -> None:
    """Cut a model once in either way, so that no run is timed with what its first calls compile."""
    brief = replace(settings, steps=4, attempts=1, window=1.0)
    for weighting in ("white", "sampled"):
        config = CompressionConfig(order=max(1, settings.states // 4), weighting=weighting, refit=True)
        cuts = config, Schedule(brief.steps, end_step=2, attempts=1, force=True)
        Trainer(task, brief, 0, cuts=cuts, clock=time.thread_time).train_to(brief.steps, lambda: None)


def group(path: Path, settings: Settings, arms: list[str], budget: Any, job: tuple[int, int], place: int) -> None:
    """Make the runs of one size and seed that are missing, in the order of the arms."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    kept, seed = job
    task, memory, where = load_task(settings.task), lines.PeakMemory(), lines.machine()
    compile_kernels(task, settings)
    for arm in arms:
        of_full = arm in LARGE  # one for all sizes
        key = {"task": task.name, "arm": arm, "kept": settings.states if of_full else kept, "seed": seed}
        known = lines.read(path)
        if budget.over or lines.of_run(known, key):
            continue
        earlier = [line for line in known if (line["kept"], line["seed"]) == (kept, seed)]
        memory.start()
        name = f"{arm}, {kept} states, seed {seed}"
        with tqdm(total=settings.steps, desc=name, position=place, leave=False, disable=None) as bar:
            found = made(task, settings, arm, kept, seed, earlier, bar.update)
        lines.add(path, key | found | {"peak MB": memory.megabytes()} | where)
        tqdm.write(f"{task.name}, {name}: {task.metric.text(found['test'])}, {found['seconds']:.0f} s")
