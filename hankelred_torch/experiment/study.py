"""All arms and seeds of a study in one folder: each run is written when it ends, and never made twice."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import hankelred
from hankelred.errors import InputError

from .. import state_sizes
from .probe import SpeedProbe, measure_speed
from .settings import Settings
from .tasks import Metric, Task, load_task
from .training import Measurement, RunRecord, Trainer, train


@dataclass
class Study:
    """What a folder holds, complete or not.

    Attributes
    ----------
    settings : Settings
        Those of every run.
    task : Task
        What was learned.
    arms, seeds : list of str, int
        What was asked for.
    records : list of RunRecord
        Runs there are; the last may be unfinished.
    speed : SpeedProbe or None
        Times of a step, where there was time to measure them.
    """

    settings: Settings
    task: Task
    arms: list[str]
    seeds: int
    records: list[RunRecord]
    speed: SpeedProbe | None = None

    @property
    def interrupted(self) -> bool:
        """Whether something that was asked for is missing."""
        return sum(record.finished for record in self.records) < len(self.arms) * self.seeds

    def to_json(self) -> dict[str, Any]:
        """Return all figures, with what they were measured on."""
        return {
            "settings": asdict(self.settings),
            "arms": self.arms,
            "seeds": self.seeds,
            "complete": not self.interrupted,
            "metric": asdict(self.task.metric),
            "environment": {
                "hankelred": hankelred.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            },
            "speed": asdict(self.speed) if self.speed else None,
            "runs": [asdict(record) for record in self.records],
        }


def run_study(settings: Settings, arms: list[str], seeds: int, folder: Path, stopped: Callable[[], bool]) -> Study:
    """Run what `folder` does not hold yet.

    Parameters
    ----------
    settings : Settings
        Those of every run.
    arms : list of str
        Arms in the order of `check_arms`.
    seeds : int
        Runs of each arm; their seeds are 0, 1, ...
    folder : Path
        Where runs are written, and found if they were finished before.
    stopped : callable
        Asked before every step; once it answers True nothing new is begun.

    Returns
    -------
    Study
        With an unfinished run, or without some, if it was stopped.

    Raises
    ------
    InputError
        If the task is unknown, or `folder` holds runs with other settings.
    """
    task = load_task(settings.task)
    runs = folder / "runs"
    _refuse_other_settings(runs, settings)
    runs.mkdir(parents=True, exist_ok=True)
    study = Study(settings, task, arms, seeds, [])
    with _computing_with(settings.threads), _Bars(len(arms) * seeds, settings.steps, task.metric) as bars:
        paths = {(arm, seed): runs / f"{arm}-seed{seed}.json" for seed in range(seeds) for arm in arms}
        if not all(path.exists() for path in paths.values()):
            _compile_kernels(task, settings)
        for (arm, seed), path in paths.items():
            record = _load(path)
            if record is None and not stopped():
                record = _run(study, arm, seed, bars, stopped)
                if record.finished:
                    write_atomically(path, json.dumps({"settings": asdict(settings), "run": asdict(record)}))
            if record is None:
                break
            study.records.append(record)
            bars.finish(record)
        if "compressed" in arms and not study.interrupted:
            study.speed = _speed(study, folder / "speed.json", stopped)
    return study


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is, at every moment, either the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def _compile_kernels(task: Task, settings: Settings) -> None:
    """Make two steps with a cut between them, so that no run is timed with what its first calls compile."""
    brief = replace(settings, steps=2, window=0.5, attempts=1, tau=0.9, order=None)
    trainer = Trainer(task, brief, [settings.states] * settings.blocks, seed=0, shrink=True)
    trainer.step()
    trainer.step()


def _run(study: Study, arm: str, seed: int, bars: _Bars, stopped: Callable[[], bool]) -> RunRecord:
    """Train one arm with one seed; `scratch` starts at the sizes that `compressed` ended with."""
    settings = study.settings
    states = [settings.states] * settings.blocks
    if arm == "scratch":
        states = final_sizes(study, seed)
    trainer = Trainer(study.task, settings, states, seed, shrink=arm == "compressed")
    record = RunRecord(arm, seed, state_sizes(trainer.model))
    bars.start(record)
    train(trainer, record, study.task, settings, bars.step, stopped)
    return record


def final_sizes(study: Study, seed: int) -> list[int]:
    """Return the stored states of each block that the compressed run of `seed` ended with."""
    for record in study.records:
        if (record.arm, record.seed) == ("compressed", seed):
            return list(record.final_states.values())
    raise LookupError(f"no compressed run of seed {seed} comes before the run that takes its sizes")


def _speed(study: Study, path: Path, stopped: Callable[[], bool]) -> SpeedProbe | None:
    """Return the step times that the folder holds, or measure them."""
    if path.exists():
        return SpeedProbe(**json.loads(path.read_text(encoding="utf-8")))
    compressed = next(record for record in study.records if record.arm == "compressed")
    speed = measure_speed(study.task, study.settings, compressed, stopped)
    if speed:
        write_atomically(path, json.dumps(asdict(speed)))
    return speed


def _load(path: Path) -> RunRecord | None:
    """Return the finished run that `path` holds, None if there is none."""
    return RunRecord(**json.loads(path.read_text(encoding="utf-8"))["run"]) if path.exists() else None


def _refuse_other_settings(runs: Path, settings: Settings) -> None:
    """Raise `InputError` if a run in the folder `runs` was made with other settings."""
    mine = asdict(settings)
    for path in sorted(runs.glob("*.json")):
        theirs = json.loads(path.read_text(encoding="utf-8"))["settings"]
        differing = [name for name in mine if theirs.get(name) != mine[name]]
        if differing:
            here = ", ".join(f"{name}={mine[name]}" for name in differing)
            there = ", ".join(f"{name}={theirs.get(name)}" for name in differing)
            raise InputError(
                f"out must be a new folder, or one with runs of the same settings; got {here}, and {there} in "
                f"{runs.parent}. Choose another folder, or delete that one."
            )


@contextmanager
def _computing_with(threads: int) -> Iterator[None]:
    """Set the threads of torch, and leave them and the random state as they were."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(before)


class _Bars:
    """Progress bars of the study and of the run in progress; on a terminal only, besides a line for each run."""

    def __init__(self, runs: int, steps: int, metric: Metric) -> None:
        self._steps, self._metric = steps, metric
        self._all = tqdm(total=runs * steps, desc="all runs", unit="step", position=0, disable=None)
        self._one: tqdm[Any] | None = None

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._one:
            self._one.close()
        self._all.close()

    def start(self, record: RunRecord) -> None:
        """Show a bar for the run of `record`."""
        name = f"{record.arm}, seed {record.seed}"
        self._one = tqdm(total=self._steps, desc=name, unit="step", position=1, leave=False, disable=None)

    def step(self, measured: Measurement | None) -> None:
        """Move both bars on by a step."""
        for bar in (self._one, self._all):
            if bar is not None:
                bar.update()
        if measured and self._one is not None:
            states = "+".join(str(n) for n in measured["states"].values())
            self._one.set_postfix_str(
                f"loss {measured['loss']:.3f}, validation {self._metric.text(measured['validation'])}, states {states}"
            )

    def finish(self, record: RunRecord) -> None:
        """Take the bar of the run away and say how it ended."""
        if self._one:
            self._one.close()
            self._one = None
        else:  # it was found in the folder
            self._all.update(record.steps)
        states = "+".join(str(n) for n in record.final_states.values())
        ending = (
            f"interrupted at step {record.steps}"
            if record.test is None
            else f"test {self._metric.name} {record.test:.{self._metric.digits}f} {self._metric.unit}".rstrip()
        )
        self._all.write(f"{record.arm:>10}, seed {record.seed}: {ending}, {states} states, {record.seconds:.0f} s")
