"""Does training with a Hankel penalty make a cut cheaper? Cutting alone against penalty, then cutting.

    python -m benchmarks.studies.penalty                     # all arms and seeds; about three minutes on one core
    python -m benchmarks.studies.penalty --seeds 1 --steps 200 --out quick.json
    python -m benchmarks.studies.penalty --time              # only what the penalty adds to a step
    python -m benchmarks.studies.penalty --time --task smnist

The demo's classifier learns the digits with 64 states. Half way it is cut to few states, by the same
balanced truncation in every arm, and learns on without a penalty. An arm is the strength of the penalty before the cut;
0 is cutting alone. The strengths were set before the first run, none was chosen by its result. Runs of one seed start
from the same weights and see the same batches. The accuracy before the cut, just after it and at the end is that on
the test part.

Every run is written to the file of results when it ends and is not made again; Ctrl-C loses the run in progress only.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.experiment.settings import Settings
from benchmarks.experiment.trainer import Trainer
from benchmarks.runs import parser_of, study, table
from benchmarks.tasks import Task, load_task
from hankelred_torch import CompressionConfig, compress_, find_ssm_layers, hankel_penalty, hankel_singular_values
from hankelred_torch.adapters import adapter_of

RESULTS = Path(__file__).parents[1] / "results" / "penalty.json"
STRENGTHS = (0.0, 3e-4, 1e-3, 3e-3)
EVERY = 10
STATES_KEPT = 4
SMALL = math.log(1e-8)  # of what is left of the slowest state, where doubling ends
COLUMNS = {
    name: (heading, 1)
    for name, heading in {
        "before": "before the cut, %",
        "after": "just after, %",
        "end": "at the end, %",
        "penalty": "sum of hsv",
        "tail": "share cut off, %",
        "needed": "states for 95 %",
    }.items()
}


def penalised(task: Task, settings: Settings, seed: int, strength: float, every: int = EVERY) -> Trainer:
    """A trainer that adds a penalty to its loss at every so many steps, none of strength 0."""
    trainer = Trainer(task, settings, seed)
    if strength:
        trainer.penalty = lambda: None if trainer.steps % every else every * strength * hankel_penalty(trainer.model)
    return trainer


def run(
    task: Task, settings: Settings, strength: float, kept: int, seed: int, progress: Callable[[], Any]
) -> dict[str, Any]:
    """Train, cut half way, train on; return accuracies and what the cut found."""
    trainer = penalised(task, settings, seed, strength)
    trainer.train_to(settings.steps // 2, progress)
    found = {
        "before": trainer.accuracy(task.test),
        "penalty": hankel_penalty(trainer.model).item(),
        "needed": states_for(trainer, 0.95),
    }
    report = compress_(trainer.model, CompressionConfig(order=kept), optimizers=[trainer.optimizer])
    found["tail"] = 100 * (1 - min(layer.kept_energy for layer in report.layers.values()))
    found["after"] = trainer.accuracy(task.test)
    trainer.penalty = None
    trainer.train_to(settings.steps, progress)
    return found | {"end": trainer.accuracy(task.test)}


def states_for(trainer: Trainer, share: float) -> float:
    """How many stored states carry a share of the sum of hsv, two values to a state; the mean over layers."""
    counts = []
    for hsv in hankel_singular_values(trainer.model).values():
        counts.append(np.searchsorted(np.cumsum(hsv), share * hsv.sum()) / 2)
    return float(np.ceil(np.mean(counts)))


def dense_penalty(layer: nn.Module) -> Tensor:
    """The sum of Hankel singular values of an LRU by dense matrices: what a penalty without structure computes.

    Gramians by doubling, values as square roots of the eigenvalues of their product, gradients through both.
    """
    system = adapter_of(layer).tensors_of_system()
    lam = system.rates[0].exp()
    (P, Q), X = (W @ W.mH for W in (system.B[0], system.C[0].mH)), lam.diag()
    for _ in range(math.ceil(math.log2(SMALL / math.log(lam.abs().max().item())))):
        P, Q, X = P + X @ P @ X.mH, Q + X.mH @ Q @ X, X @ X
    return torch.linalg.eigvals(P @ Q).abs().clamp(min=1e-12).sqrt().sum()


def time_per_step(task: Task, settings: Settings, rounds: int) -> dict[str, float]:
    """Milliseconds of CPU time of a step without penalty, with one every tenth step, every step, and a dense one."""
    arms = {"none": (0.0, 1), "every 10": (1e-3, 10), "every 1": (1e-3, 1)}
    trainers = {name: penalised(task, settings, 0, *arm) for name, arm in arms.items()}
    trainers["every 1, dense"] = trainer = Trainer(task, settings, 0)
    (name,) = find_ssm_layers(trainer.model)
    layer = trainer.model.get_submodule(name)
    trainer.penalty = lambda: 1e-3 * dense_penalty(layer)
    trainers["few states"] = Trainer(task, settings, 0, [STATES_KEPT])
    means: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(rounds):  # in turn, so that what else the machine does falls on all of them
        for name, trainer in trainers.items():
            start = time.thread_time()
            for _ in range(10):
                trainer.step()
            means[name].append((time.thread_time() - start) / 10)
    return {name: round(1e3 * statistics.median(times[2:]), 3) for name, times in means.items()}


def main() -> None:
    parser = parser_of(__doc__, 5, 1000, RESULTS)
    parser.add_argument("--states-kept", type=int, default=STATES_KEPT)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--task", choices=("digits", "smnist"), default="digits", help="of --time")
    parser.add_argument("--rounds", type=int, default=40, help="of --time, ten steps of each each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = replace(Settings(), steps=options.steps)
    task = load_task(settings.task)
    if options.time:
        timed = replace(Settings.of(options.task), order=None)
        print(time_per_step(load_task(options.task), timed, options.rounds))
        return
    runs = study(
        options.out,
        "accuracy on the test part in percent; the penalty acts on the first half of the steps, then the cut",
        asdict(settings) | {"states_kept": options.states_kept, "every": EVERY},
        [{"strength": strength, "seed": seed} for seed in range(options.seeds) for strength in STRENGTHS],
        lambda key: settings.steps,
        lambda key, progress: run(task, settings, key["strength"], options.states_kept, key["seed"], progress),
    )
    print(table(runs, "strength", COLUMNS))


if __name__ == "__main__":
    main()
