"""Cutting a Mamba language model from 128 states to 12 while it learns: by a rotation, by selections, or not at all.

    python -m benchmarks.studies.mamba                      # text; all arms and seeds, half an hour on one core
    python -m benchmarks.studies.mamba --task recall        # associative recall, a task that needs states
    python -m benchmarks.studies.mamba --seeds 1 --steps 100 --out quick.json

The model is that of `python -m benchmarks.experiment --task text`. One cut takes every layer from 128 states to 12, at
10 or 30 % of training. All arms of a seed share the weights, the data and the training up to their cut, to the last
bit: a run is trained once and branches there.

- `rotation` cuts by the covariances of states and outputs, `rotation, moments` by second moments of the steps.
- `selection` keeps the states that explain most and folds into them what the others explain; `bare` does not fold.
- `axis` keeps the states with the largest `P_ii Q_ii`, by covariances: what methods after the manner of GHOST do.
  `mean dynamics` does the same by the Gramians of the mean step. `random` keeps any. None of them folds.
- `full` is never cut, `scratch` starts with 12 states.

`jump` is the rise of the loss on the validation part in the cut, `recovery` the steps until it is back, counted in
tens; `final` the loss on the test part after the last step, in bits per character (recall: accuracy in percent). All
seconds are processor time of the one thread, measurements left out; `cost` are those of the cut: statistics, analysis
and surgery. `reached` are the seconds until the validation loss, measured every 100 steps, is within 1 % of what the
full model of the same seed ends with.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.experiment.settings import Settings
from benchmarks.experiment.trainer import Trainer
from benchmarks.runs import Run, Spread, parser_of, study, table
from benchmarks.tasks import Task, load_task
from hankelred.checks import Array
from hankelred.selective import SelectiveReduction, SelectiveStatistics, rotate, select
from hankelred_torch import CompressionConfig, compress_, find_ssm_layers, register_adapter, state_sizes
from hankelred_torch.adapters import MambaAdapter, SampleStatistics
from hankelred_torch.adapters.selective import SelectiveAnalysis, StateMap
from hankelred_torch.layer_sums import LayerStatistics
from hankelred_torch.layers import Mamba

RESULTS = Path(__file__).parents[1] / "results"
KEPT = 12
CURVE = 100  # steps between measurements of the whole run
PAIRED = ("rotation at 10 %", "scratch")  # arms that further seeds are spent on
COLUMNS = {  # heading, and digits behind the point
    "jump": ("jump", 4),
    "recovery": ("recovery, steps", 0),
    "final": ("final", 3),
    "states": ("states", 0),
    "rate": ("characters/s at the end", 0),
    "seconds": ("seconds", 1),
    "reached": ("seconds to full + 1 %", 1),
    "cost": ("seconds of the cut", 2),
}

Reduce = Callable[[SelectiveStatistics, Array, int], SelectiveReduction]  # statistics, rates, order


def rotation(sums: SelectiveStatistics, A: Array, order: int, method: Any = "covariance") -> SelectiveReduction:
    return rotate(sums, A, order, method=method)


def selection(sums: SelectiveStatistics, A: Array, order: int, fold: bool = True) -> SelectiveReduction:
    return select(sums, order, fold=fold)


def by_axis(sums: SelectiveStatistics, A: Array, order: int, method: Any = "covariance") -> SelectiveReduction:
    """Keep the states with the largest product of the diagonal entries of both Gramians."""
    P, Q = (X[0].diagonal().real for X in sums.gramians(method))
    return select(sums, order, fold=False, kept=np.argsort(-P * Q)[:order])


def at_random(sums: SelectiveStatistics, A: Array, order: int) -> SelectiveReduction:
    """Keep states drawn by a number that differs from layer to layer and from seed to seed."""
    rng = np.random.default_rng(np.ascontiguousarray(A).view(np.uint32).ravel())
    return select(sums, order, fold=False, kept=rng.permutation(sums.n)[:order])


@dataclass(frozen=True)
class Arm:
    """What one arm does; `moments` tells whether it needs more than the statistics that a cut collects itself."""

    share: float | None = None  # of training, at which it is cut
    reduce: Reduce = rotation
    moments: bool = False
    states: int = 128


WAYS = {
    "rotation": Arm(),
    "selection": Arm(reduce=selection),
    "bare": Arm(reduce=partial(selection, fold=False)),
    "random": Arm(reduce=at_random),
    "rotation, moments": Arm(reduce=partial(rotation, method="second_moment"), moments=True),
    "axis": Arm(reduce=by_axis),
    "mean dynamics": Arm(reduce=partial(by_axis, method="mean")),
}
LATE = ("rotation", "selection", "bare", "random")  # ways that are tried at 30 %, too
# In the order in which they are run: branches of a run at 10 %, then at 30 %, then its end.
ARMS = {f"{name} at 10 %": Arm(0.1, way.reduce, way.moments) for name, way in WAYS.items()}
ARMS |= {f"{name} at 30 %": Arm(0.3, WAYS[name].reduce, WAYS[name].moments) for name in LATE}
ARMS |= {"scratch": Arm(states=KEPT), "full": Arm()}


def adapter_that(reduce: Reduce) -> type[MambaAdapter]:
    """An adapter of Mamba layers that reduces them in one way only."""

    class OneWay(MambaAdapter):
        def analyse(self, values: Any, statistics: Any = None, method: str = "auto") -> SelectiveAnalysis:
            A = -np.exp(values["A_log"])
            return SelectiveAnalysis(statistics, lambda order: (StateMap(reduce(statistics.sums, A, order)),))

    return OneWay


@contextmanager
def reducing_by(reduce: Reduce) -> Iterator[None]:
    """Let Mamba layers be reduced in one way only meanwhile."""
    register_adapter(Mamba, adapter_that(reduce))
    try:
        yield
    finally:
        register_adapter(Mamba, MambaAdapter)


@torch.no_grad()
def with_moments(trainer: Trainer) -> SampleStatistics:
    """Collect what a cut collects, and second moments of the steps besides."""
    layers = {}
    with ExitStack() as hooks:
        for name, adapter in find_ssm_layers(trainer.model).items():
            layers[name] = LayerStatistics(adapter.states)
            layers[name].sums = SelectiveStatistics(adapter.states, moments=True)

            def listen(module: Any, inputs: Any, found: Any = layers[name], adapter: Any = adapter) -> None:
                found.update(adapter.sequences(inputs[0], None))

            hooks.callback(adapter.layer.register_forward_pre_hook(listen).remove)
        for batch in trainer.batches:
            trainer.model(batch)
    return SampleStatistics(layers, trainer.batches[0])


def cut(trainer: Trainer, arm: Arm) -> float:
    """Cut all layers and return the seconds it took."""
    start = time.thread_time()
    with reducing_by(arm.reduce):
        batches = with_moments(trainer) if arm.moments else trainer.batches
        compress_(trainer.model, CompressionConfig(order=KEPT), [trainer.optimizer], batches=batches)
    return time.thread_time() - start


@dataclass
class Course:
    """A trainer on its way, with what was measured; times are processor time of the thread."""

    trainer: Trainer
    curve: list[list[float]] = field(default_factory=list)  # step, seconds, validation loss

    @classmethod
    def fresh(cls, task: Task, settings: Settings, seed: int, states: int) -> Course:
        return cls(Trainer(task, replace(settings, states=states), seed, clock=time.thread_time))

    def branch(self) -> Course:
        return Course(self.trainer.branch(), self.curve.copy())

    def run_to(self, step: int, progress: Callable[[], Any], watch: float | None = None) -> int | None:
        def after() -> None:
            progress()
            if self.trainer.steps % CURVE == 0:
                self.note()

        return self.trainer.train_to(step, after, watch)

    def bits(self) -> float:
        return self.trainer.validation_loss() / math.log(2)

    def note(self) -> None:
        self.curve.append([self.trainer.steps, round(sum(self.trainer.times), 2), round(self.bits(), 5)])

    def rate(self) -> float:
        """The positions per second of the last steps, by their median time."""
        trainer = self.trainer
        return trainer.batch * trainer.task.length / statistics.median(trainer.times[-50:])


class Trunk:
    """Runs of one task: the one that all arms of a seed branch from is kept until another seed is asked for."""

    def __init__(self, task: Task, settings: Settings) -> None:
        self.task, self.settings = task, settings
        self._kept: tuple[int, Course] | None = None

    def at(self, seed: int, step: int, progress: Callable[[], Any]) -> Course:
        """The uncut run of a seed, trained to a step."""
        if self._kept is None or self._kept[0] != seed or self._kept[1].trainer.steps > step:
            self._kept = seed, Course.fresh(self.task, self.settings, seed, self.settings.states)
        self._kept[1].run_to(step, progress)
        return self._kept[1]

    def run(self, key: dict[str, Any], progress: Callable[[], Any]) -> dict[str, Any]:
        arm, seed, steps = ARMS[key["arm"]], key["seed"], self.settings.steps
        found: dict[str, Any] = {}
        if arm.share is not None:
            course = self.at(seed, round(arm.share * steps), progress).branch()
            before, loss, rate = course.bits(), course.trainer.validation_loss(), course.rate()
            found |= {"before": before, "cost": cut(course.trainer, arm), "rate before": rate}
            found["jump"] = course.bits() - before
            course.trainer.times[-1] += found["cost"]
            recovered = course.run_to(steps, progress, watch=loss)
            found["recovery"] = recovered and float(recovered)
        elif arm.states > KEPT:
            course = self.at(seed, steps, progress)
        else:
            course = Course.fresh(self.task, self.settings, seed, arm.states)
            course.run_to(steps, progress)
        if steps % CURVE:
            course.note()
        trainer, test = course.trainer, self.task.test
        found |= {"final": trainer.score(test), "test bits": [trainer.loss(test) / math.log(2)]}
        found |= {"states": float(sum(state_sizes(trainer.model).values())), "rate": course.rate()}
        return found | {"seconds": sum(trainer.times), "curve": course.curve}


def add_reached(runs: list[Run]) -> None:
    """Add the seconds until a run is within 1 % of the end of the full run of its seed."""
    levels = {run["seed"]: 1.01 * run["curve"][-1][2] for run in runs if run["arm"] == "full"}
    for run in runs:
        _, seconds, losses = (np.array(x) for x in zip(*run["curve"], strict=True))
        below = np.flatnonzero(losses <= levels.get(run["seed"], -np.inf))
        run["reached"] = float(seconds[below[0]]) if len(below) else None


def against(runs: list[Run], other: str) -> str:
    """The differences in the final loss to another arm, seed by seed, in Markdown."""
    base = {run["seed"]: run["test bits"][0] for run in runs if run["arm"] == other}
    lines = [f"| arm | seeds | final loss minus {other} | 95 % interval |", "|---|---|---|---|"]
    for arm in ARMS:
        pairs = [run["test bits"][0] - base[run["seed"]] for run in runs if run["arm"] == arm and run["seed"] in base]
        spread = Spread.of(pairs)
        if spread is not None and arm != other:
            ends = spread.interval()
            interval = f"{ends[0]:+.4f} to {ends[1]:+.4f}" if ends else "–"
            lines.append(f"| {arm} | {spread.count} | {spread.mean:+.4f} | {interval} |")
    return "\n".join(lines)


def wanted(seeds: int) -> list[dict[str, Any]]:
    """The runs, seed by seed, so that an interrupted study is balanced; two more seeds for a pair of arms."""
    keys = [{"arm": arm, "seed": seed} for seed in range(seeds) for arm in ARMS]
    return keys + [{"arm": arm, "seed": seed} for seed in range(seeds, seeds + 2) for arm in PAIRED]


def main() -> None:
    parser = parser_of(__doc__, 3, 1000, RESULTS)
    parser.add_argument("--task", choices=("text", "recall"), default="text")
    options = parser.parse_args()
    out = options.out / f"mamba_{options.task}.json" if options.out.is_dir() else options.out
    torch.set_num_threads(1)
    threadpool_limits(1)  # NumPy's linear algebra, too
    settings = Settings.of(options.task, steps=options.steps)
    task = load_task(options.task)
    warm_up = Course.fresh(task, settings, 0, 2 * KEPT).trainer
    warm_up.step()
    cut(warm_up, WAYS["rotation, moments"])  # compiles what no run should be timed with

    def steps(key: dict[str, Any]) -> int:
        return settings.steps - round((ARMS[key["arm"]].share or 0.0) * settings.steps)

    runs = study(
        out,
        "jump: rise of the validation loss in the cut; recovery: steps until it is back; final: on the test part; "
        "before, jump, test bits: bits per position; seconds and cost: processor time; rate: positions per second; "
        "curve: step, seconds, validation loss",
        asdict(settings) | {"states_kept": KEPT},
        wanted(options.seeds),
        steps,
        Trunk(task, settings).run,
    )
    add_reached(runs)
    print(table(runs, "arm", COLUMNS), against(runs, "scratch"), against(runs, "full"), sep="\n\n")


if __name__ == "__main__":
    main()
