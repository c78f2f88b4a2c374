"""Cutting a Mamba language model from 128 states to 12 while it learns: by a rotation, by selections, or not at all.

    python -m benchmarks.studies.mamba                      # text; all arms and seeds, half an hour on one core
    python -m benchmarks.studies.mamba --task recall        # associative recall, a task that needs states
    python -m benchmarks.studies.mamba --seeds 1 --steps 100 --out quick.json

The model is that of `hankelred train --task text`. One cut takes every layer from 128 states to 12, at 10 or 30 % of
training. All arms of a seed share the weights, the data and the training up to their cut, to the last bit: a run is
trained once and branches there.

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

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.studies.runs import Run, parser_of, run_missing
from hankelred.checks import Array
from hankelred.selective import SelectiveReduction, SelectiveStatistics, rotate, select
from hankelred_torch import CompressionConfig, compress_, find_ssm_layers, register_adapter, state_sizes
from hankelred_torch.adapters import MambaAdapter, SampleStatistics
from hankelred_torch.adapters.selective import SelectiveAnalysis, StateMap
from hankelred_torch.experiment.settings import Settings
from hankelred_torch.experiment.summary import Spread
from hankelred_torch.experiment.tasks import Task, load_task
from hankelred_torch.experiment.training import Trainer
from hankelred_torch.layers import Mamba
from hankelred_torch.sampling import LayerStatistics

RESULTS = Path(__file__).parents[1] / "results"
KEPT = 12
EVERY = 10  # steps between measurements until a loss has recovered
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
    """Return an adapter of Mamba layers that reduces them in one way only."""

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
    """A trainer on its way, with what was measured."""

    task: Task
    trainer: Trainer
    steps: int = 0
    times: list[float] = field(default_factory=list)
    curve: list[list[float]] = field(default_factory=list)  # step, seconds, validation loss

    def branch(self) -> Course:
        return Course(self.task, self.trainer.branch(), self.steps, self.times.copy(), self.curve.copy())

    def run_to(self, step: int, progress: Callable[[], Any], watch: float | None = None) -> int | None:
        """Train to a step; return after which one the loss was first no more than `watch`, looking every `EVERY`."""
        since, found = self.steps, None
        while self.steps < step:
            start = time.thread_time()
            self.trainer.learn()
            self.times.append(time.thread_time() - start)
            self.steps += 1
            progress()
            if self.steps % CURVE == 0:
                self.note()
            looking = watch is not None and found is None and (self.steps - since) % EVERY == 0
            if looking and self.loss() <= watch:
                found = self.steps
        return found

    def loss(self) -> float:
        return self.trainer.bits(self.task.validation)

    def note(self) -> None:
        self.curve.append([self.steps, round(sum(self.times), 2), round(self.loss(), 5)])


class Study:
    """Runs of one task: the one that all arms of a seed branch from is kept until another seed is asked for."""

    def __init__(self, task: Task, settings: Settings) -> None:
        self.task, self.settings = task, settings
        self._trunk: tuple[int, Course] | None = None

    def fresh(self, seed: int, states: int) -> Course:
        return Course(self.task, Trainer(self.task, self.settings, [states] * self.settings.blocks, seed, shrink=False))

    def trunk(self, seed: int, step: int, progress: Callable[[], Any]) -> Course:
        """Return the uncut run of a seed, trained to a step."""
        if self._trunk is None or self._trunk[0] != seed or self._trunk[1].steps > step:
            self._trunk = seed, self.fresh(seed, self.settings.states)
        self._trunk[1].run_to(step, progress)
        return self._trunk[1]

    def run(self, key: dict[str, Any], progress: Callable[[], Any]) -> dict[str, Any]:
        arm, seed, steps = ARMS[key["arm"]], key["seed"], self.settings.steps
        found: dict[str, Any] = {}
        if arm.share is None:
            course = self.trunk(seed, steps, progress) if arm.states > KEPT else self.fresh(seed, arm.states)
            course.run_to(steps, progress)
        else:
            at = round(arm.share * steps)
            course = self.trunk(seed, at, progress).branch()
            before, rate = course.loss(), self._rate(course)
            found |= {"before": before, "cost": cut(course.trainer, arm), "rate before": rate}
            found["jump"] = course.loss() - before
            course.times.append(found["cost"])
            recovered = course.run_to(steps, progress, watch=before)
            found["recovery"] = None if recovered is None else float(recovered - at)
        if steps % CURVE:
            course.note()
        states = float(sum(state_sizes(course.trainer.model).values()))
        found |= {"final": course.trainer.score(self.task.test), "test bits": [course.trainer.bits(self.task.test)]}
        found |= {"states": states, "rate": self._rate(course), "seconds": sum(course.times), "curve": course.curve}
        return found

    def _rate(self, course: Course) -> float:
        """Return the positions per second of the last steps, by their median time."""
        return self.settings.batch * self.task.length / statistics.median(course.times[-50:])


def add_reached(runs: list[Run]) -> None:
    """Add the seconds until a run is within 1 % of the end of the full run of its seed."""
    levels = {run["seed"]: 1.01 * run["curve"][-1][2] for run in runs if run["arm"] == "full"}
    for run in runs:
        _, seconds, losses = (np.array(x) for x in zip(*run["curve"], strict=True))
        below = np.flatnonzero(losses <= levels.get(run["seed"], -np.inf))
        run["reached"] = float(seconds[below[0]]) if len(below) else None


def table(runs: list[Run]) -> str:
    """Return mean and standard deviation over the seeds, a row for each arm, in Markdown."""
    lines = ["| arm | seeds | " + " | ".join(heading for heading, _ in COLUMNS.values()) + " |", "|---" * 10 + "|"]
    for arm in ARMS:
        rows = [run for run in runs if run["arm"] == arm]
        spreads = [(Spread.of(row.get(name) for row in rows), digits) for name, (_, digits) in COLUMNS.items()]
        cells = [spread.text(digits) if spread else "–" for spread, digits in spreads]
        if rows:
            lines.append(f"| {arm} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def against(runs: list[Run], other: str) -> str:
    """Return the differences in the final loss to another arm, seed by seed, in Markdown."""
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
    """Return the runs, seed by seed, so that an interrupted study is balanced; two more seeds for a pair of arms."""
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
    warm_up = Study(task, settings).fresh(0, 2 * KEPT)
    warm_up.trainer.learn()
    cut(warm_up.trainer, WAYS["rotation, moments"])  # compiles what no run should be timed with
    study = Study(task, settings)

    def steps(key: dict[str, Any]) -> int:
        return settings.steps - round((ARMS[key["arm"]].share or 0.0) * settings.steps)

    runs = run_missing(
        out,
        "jump: rise of the validation loss in the cut; recovery: steps until it is back; final: on the test part; "
        "before, jump, test bits: bits per position; seconds and cost: processor time; rate: positions per second; "
        "curve: step, seconds, validation loss",
        asdict(settings) | {"states_kept": KEPT},
        wanted(options.seeds),
        steps,
        study.run,
    )
    add_reached(runs)
    print(table(runs), against(runs, "scratch"), against(runs, "full"), sep="\n\n")


if __name__ == "__main__":
    main()
