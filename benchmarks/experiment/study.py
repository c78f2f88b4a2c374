"""All arms and seeds of a study, and the file that holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch

from benchmarks._common import surroundings, write
from benchmarks.runs import Bars, Run, broken, conforms, run_missing, run_of

from ..tasks import Metric, Task, load_task
from .probe import SpeedProbe, measure_speed
from .record import Measurement, RunRecord, cuts_of, record_run
from .settings import Settings
from .trainer import Trainer

RESULTS = "results.json"


@dataclass
class Study:
    """What was asked for, and what there is of it: the last record may be unfinished, and the speed not measured."""

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


def run_study(settings: Settings, arms: list[str], seeds: int, folder: Path, stopped: Callable[[], object]) -> Study:
    """Run what ``results.json`` in `folder` does not hold yet.

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
        Asked before every step; once its answer is true nothing new is begun.

    Returns
    -------
    Study
        With an unfinished run, or without some, if it was stopped.

    Raises
    ------
    InputError
        If the task is unknown, or the file holds runs with other settings or something else.
    """
    task = load_task(settings.task)
    path = folder / RESULTS
    wanted: list[Run] = [{"arm": arm, "seed": seed} for seed in range(seeds) for arm in arms]
    compile_kernels = cache(lambda: _compile_kernels(task, settings))

    def run(key: Run, runs: list[Run], bars: Bars) -> Run | None:
        if stopped():
            return None
        compile_kernels()
        arm, seed = key["arm"], key["seed"]
        states = final_sizes(runs, seed) if arm == "scratch" else None
        trainer = Trainer(task, settings, seed, states, cuts_of(settings) if arm == "compressed" else None)
        return asdict(record_run(trainer, arm, seed, lambda found: bars.step(_note(found, task.metric)), stopped))

    head = {"settings": asdict(settings), "metric": asdict(task.metric)}
    with _computing_with(settings.threads):
        document = run_missing(
            path,
            head,
            wanted,
            lambda key: settings.steps,
            run,
            said=lambda found: _line(RunRecord(**found), task.metric),
            finished=lambda found: found["test"] is not None,
            kind=RunRecord,
        )
        found = [run_of(document["runs"], key) for key in wanted]
        study = Study(settings, task, arms, seeds, [RunRecord(**one) for one in found if one is not None])
        if "compressed" in arms and not study.interrupted:
            speed = document.get("speed")
            if not conforms(speed, SpeedProbe | None):
                raise broken(path, "got something else for speed")
            study.speed = SpeedProbe(**speed) if speed else measure_speed(task, settings, study.records, stopped)
    asked = {"arms": arms, "seeds": seeds, "complete": not study.interrupted, "environment": surroundings(("torch",))}
    runs, earlier = document.pop("runs"), document.get("speed")
    write(path, document | asked | {"speed": asdict(study.speed) if study.speed else earlier, "runs": runs})
    return study


def final_sizes(runs: list[Run], seed: int) -> list[int]:
    """The stored states of each block that the compressed run of `seed` ended with."""
    compressed = run_of(runs, {"arm": "compressed", "seed": seed})
    if compressed is None:
        raise LookupError(f"no compressed run of seed {seed} comes before the run that takes its sizes")
    return list(RunRecord(**compressed).final_states.values())


def _compile_kernels(task: Task, settings: Settings) -> None:
    """Make two steps with a cut between them, so that no run is timed with what its first calls compile."""
    brief = replace(settings, steps=2, window=0.5, attempts=1, tau=0.9, order=None)
    trainer = Trainer(task, brief, seed=0, cuts=cuts_of(brief))
    trainer.train_to(2, lambda: None)


def _note(found: Measurement | None, metric: Metric) -> str:
    """How a run stands, for its bar."""
    if found is None:
        return ""
    states = "+".join(map(str, found["states"].values()))
    return f"loss {found['loss']:.3f}, validation {metric.text(found['validation'])}, states {states}"


def _line(record: RunRecord, metric: Metric) -> str:
    """How a run ended."""
    ending = f"interrupted at step {record.steps}"
    if record.test is not None:
        ending = f"test {metric.name} {record.test:.{metric.digits}f} {metric.unit}".rstrip()
    states = "+".join(map(str, record.final_states.values()))
    return f"{record.arm:>10}, seed {record.seed}: {ending}, {states} states, {record.seconds:.0f} s"


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
