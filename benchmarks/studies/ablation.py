"""What do the parts of a cut contribute? One part left out at a time, and the cut at other times.

    python -m benchmarks.studies.ablation                  # all arms, five seeds: some fifteen minutes on one core
    python -m benchmarks.studies.ablation --seeds 1 --steps 200 --out /tmp/ablation.json

The demo's classifier with two blocks learns the digits. One cut takes each layer from 64 states to 12; in
most arms at a tenth of training. Runs of one seed start from the same weights and see the same batches.

- `transport` is the default: the optimizer's averages go through the change of basis. `reset` starts them anew,
  `slice` keeps their first rows, as published code does; `re-warm-up` lets the learning rate rise anew for 50 steps.
- `complex system` truncates the system without regard to the real part that is taken of its output.
- `cut at 2 %` and so on move the cut.
- `tau, per layer` and `tau, global` choose sizes by the same share of lost Hankel singular values.
- `full` is never cut, `scratch` starts with 12 states.

`jump` is the rise of the cross entropy on the validation part in the cut; `recovery` the steps until it is back where
it was before the cut, counted in tens; `final` the accuracy on the test part in percent after the last step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiment.settings import Settings
from benchmarks.experiment.trainer import Trainer
from benchmarks.runs import parser_of, study, table
from benchmarks.studies.published import ComplexAdapter, FirstStates, served_by
from benchmarks.tasks import Task, load_task
from hankelred_torch import CompressionConfig, Rewarm, Schedule, state_sizes
from hankelred_torch.adapters import LRUAdapter

RESULTS = Path(__file__).parents[1] / "results" / "ablation.json"
KEPT = 12
COLUMNS = {  # heading, and digits behind the point
    "jump": ("jump of the loss", 3),
    "recovery": ("recovery, steps", 0),
    "final": ("final accuracy, %", 2),
    "states": ("states, sum", 1),
}


@dataclass(frozen=True)
class Arm:
    """How one arm differs from the default."""

    share: float | None = 0.1  # of training, at which the cut is made
    changes: dict[str, Any] = field(default_factory=dict)
    hooks: Callable[[], list[Any]] = list
    complex_system: bool = False
    states: int = 64


ARMS = {
    "transport": Arm(),
    "reset": Arm(changes={"optimizer_state": "reset"}),
    "slice": Arm(changes={"optimizer_state": "reset"}, hooks=lambda: [FirstStates()]),
    "transport, re-warm-up": Arm(hooks=lambda: [Rewarm(50)]),
    "reset, re-warm-up": Arm(changes={"optimizer_state": "reset"}, hooks=lambda: [Rewarm(50)]),
    "complex system": Arm(complex_system=True),
    "cut at 2 %": Arm(0.02),
    "cut at 5 %": Arm(0.05),
    "cut at 20 %": Arm(0.2),
    "cut at 30 %": Arm(0.3),
    "tau, per layer": Arm(changes={"order": None, "tau": 0.25}),
    "tau, global": Arm(changes={"order": None, "tau": 0.25, "budget": "global"}),
    "full": Arm(None),
    "scratch": Arm(None, states=KEPT),
}


def run(task: Task, settings: Settings, arm: Arm, seed: int, progress: Callable[[], Any]) -> dict[str, Any]:
    """Train one arm and return its figures."""
    figures: dict[str, Any] = {"jump": None, "recovery": None}
    settings, cuts = replace(settings, states=arm.states), None
    if arm.share is not None:
        cut = round(arm.share * settings.steps)
        schedule = Schedule(start_step=cut - 1, end_step=cut, attempts=1, force=True)
        cuts = CompressionConfig(**{"order": KEPT} | arm.changes), schedule
    with served_by(ComplexAdapter if arm.complex_system else LRUAdapter):
        trainer = Trainer(task, settings, seed, cuts=cuts, on_cut=arm.hooks())
        if cuts is not None:
            trainer.train_to(cut - 1, progress)
            made = trainer.step(trainer.validation_loss)
            progress()
            recovered = trainer.train_to(settings.steps, progress, watch=made.before)
            figures = {"jump": made.after - made.before, "recovery": recovered and float(recovered)}
        trainer.train_to(settings.steps, progress)
    return figures | {"final": trainer.accuracy(task.test), "states": float(sum(state_sizes(trainer.model).values()))}


def main() -> None:
    options = parser_of(__doc__, 5, 800, RESULTS).parse_args()
    torch.set_num_threads(1)
    settings = replace(Settings(), steps=options.steps, blocks=2)
    task = load_task(settings.task)
    runs = study(
        options.out,
        "jump: rise of the validation loss in the cut; recovery: steps until it is back; final: test accuracy, percent",
        asdict(settings) | {"states_kept": KEPT},
        [{"arm": name, "seed": seed} for seed in range(options.seeds) for name in ARMS],
        lambda key: settings.steps,
        lambda key, progress: run(task, settings, ARMS[key["arm"]], key["seed"], progress),
    )
    print(table(runs, "arm", COLUMNS))


if __name__ == "__main__":
    main()
