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

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg as sla
import torch

import hankelred as hr
from benchmarks.experiment.settings import Settings
from benchmarks.experiment.trainer import Trainer
from benchmarks.runs import parser_of, study, table
from benchmarks.tasks import Task, load_task
from hankelred.checks import Array
from hankelred_torch import CompressionConfig, Rewarm, Schedule, find_ssm_layers, register_adapter, state_sizes
from hankelred_torch.adapters import LRUAdapter
from hankelred_torch.adapters.analysis import SystemAnalysis
from hankelred_torch.layers import LRU

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


class FirstStates:
    """Give the optimizer the first rows of the averages it had, whatever they mean after the cut."""

    def before(self, plan: Any, compressor: Any) -> None:
        self._old = [dict(compressor.optimizers[0].state[tensor]) for tensor, _ in self._tensors(compressor)]

    def after(self, plan: Any, compressor: Any) -> None:
        for (tensor, axis), old in zip(self._tensors(compressor), self._old, strict=True):
            first = {key: x.narrow(axis, 0, tensor.shape[axis]).clone() if x.ndim else x for key, x in old.items()}
            compressor.optimizers[0].state[tensor] = first

    def _tensors(self, compressor: Any) -> list[tuple[torch.Tensor, int]]:
        layers = find_ssm_layers(compressor.model).values()
        return [(layer.tensor(name), axis) for layer in layers for name, axis in layer.state_axes.items()]


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


class ComplexAdapter(LRUAdapter):
    """An adapter that truncates the complex system of a layer, as if its complex output were used."""

    def analyse(self, values: Mapping[str, Array], statistics: Any = None) -> SystemAnalysis:
        system = self.read(values)
        assert system.rates is not None
        full = hr.DiagonalSystem.from_rates(system.rates, system.B, system.C, system.D, dt=system.dt)

        def align(found: hr.Reduction) -> hr.Reduction:
            small = found.system
            kept = hr.DiagonalSystem.from_rates(small.rates, small.B, small.C, small.D.real, dt=small.dt, output="real")
            T, Ti = sla.block_diag(found.T, found.T.conj()), sla.block_diag(found.Ti, found.Ti.conj())
            return self.align(
                system, replace(found, system=kept, order=2 * found.order, hsv=np.repeat(found.hsv, 2), T=T, Ti=Ti)
            )

        return SystemAnalysis(full, align)


@contextmanager
def adapting(complex_system: bool) -> Iterator[None]:
    """Let `ComplexAdapter` serve LRU layers meanwhile."""
    if complex_system:
        register_adapter(LRU, ComplexAdapter)
    try:
        yield
    finally:
        register_adapter(LRU, LRUAdapter)


def run(task: Task, settings: Settings, arm: Arm, seed: int, progress: Callable[[], Any]) -> dict[str, Any]:
    """Train one arm and return its figures."""
    figures: dict[str, Any] = {"jump": None, "recovery": None}
    settings, cuts = replace(settings, states=arm.states), None
    if arm.share is not None:
        cut = round(arm.share * settings.steps)
        schedule = Schedule(start_step=cut - 1, end_step=cut, attempts=1, force=True)
        cuts = CompressionConfig(**{"order": KEPT} | arm.changes), schedule
    with adapting(arm.complex_system):
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
