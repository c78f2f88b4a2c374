"""What a training step costs at the full size, after the cuts, and at the same final size without a cut.

The three models train in turn, a block of steps each, in one process, so that whatever else the machine does
meets all of them alike; medians over the blocks are compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from hankelred_torch import find_ssm_layers

from ..tasks import Task
from .record import RunRecord, cuts_of
from .settings import Settings
from .trainer import Trainer

ROUNDS = 15  # blocks of each model
BLOCK = 6  # steps in a block: long against the clock, short against changes of the machine's load


@dataclass
class SpeedProbe:
    """Times of a training step, in milliseconds.

    Attributes
    ----------
    clock : str
        What was measured: processor time of one thread, which other programs do not disturb, or wall-clock time.
    states : dict of str to list of int
        Stored states of each block in the full model, the compressed one, and one from scratch at its size.
    steps : dict of str to list of float
        Mean time of a step in each block, in the order of the rounds.
    parts : dict of str to dict of str to float
        The same step by parts, medians over the rounds; they add up to about the median step.
    """

    clock: str
    states: dict[str, list[int]]
    steps: dict[str, list[float]]
    parts: dict[str, dict[str, float]]

    def median(self, arm: str) -> float:
        """The median time of a step."""
        return statistics.median(self.steps[arm])

    def ratio(self, arm: str, to: str) -> float:
        """How many times longer a step of `arm` takes than one of `to`: the median over the rounds."""
        return statistics.median(a / b for a, b in zip(self.steps[arm], self.steps[to], strict=True))


def measure_speed(
    task: Task, settings: Settings, records: list[RunRecord], stopped: Callable[[], object]
) -> SpeedProbe | None:
    """Time steps of the three models in turn.

    Parameters
    ----------
    task, settings : Task, Settings
        Those of the study.
    records : list of RunRecord
        The first compressed run is repeated up to its last cut, so that the model timed was cut in training.
    stopped : callable
        Asked between blocks; if its answer is true the probe is given up.

    Returns
    -------
    SpeedProbe or None
        None if it was given up.
    """
    compressed = next(record for record in records if record.arm == "compressed")
    small = list(compressed.final_states.values())
    full, shrunk, scratch, bare = (
        Trainer(task, settings, compressed.seed, states, cuts)
        for states, cuts in ((None, None), (None, cuts_of(settings)), (small, None), (small, None))
    )
    shrunk.train_to(max((cut["step"] for cut in compressed.cuts), default=0), lambda: None)
    trainers = {"full": full, "compressed": shrunk, "scratch": scratch}
    for name in find_ssm_layers(bare.model):  # what is left of the model does not know how many states there are
        bare.model.set_submodule(name, nn.Identity())

    jobs: dict[tuple[str, str], Callable[[], object]] = {
        (arm, "step"): trainer.step for arm, trainer in trainers.items()
    }
    jobs |= {(arm, "pass"): partial(_pass, trainer) for arm, trainer in trainers.items()}
    learns = any(p.requires_grad for p in bare.model.parameters())
    jobs["bare", "pass"] = partial(_pass, bare) if learns else bare.next_batch  # a model may be of such layers alone
    jobs |= {(arm, "optimizer"): trainer.optimizer.step for arm, trainer in trainers.items()}  # with the last gradients
    clock = time.process_time if settings.threads == 1 else time.perf_counter
    times: dict[tuple[str, str], list[float]] = {job: [] for job in jobs}
    for _ in range(ROUNDS):
        for job, call in jobs.items():
            if stopped():
                return None
            times[job].append(_milliseconds(call, clock))
    steps = {arm: times[arm, "step"] for arm in trainers}
    bare_pass = times["bare", "pass"]
    parts = {
        arm: {
            "state space layers": _typical(times[arm, "pass"], bare_pass),
            "other layers": statistics.median(bare_pass),
            "optimizer": statistics.median(times[arm, "optimizer"]),
            "the rest": _typical(times[arm, "step"], times[arm, "pass"], times[arm, "optimizer"]),
        }
        for arm in trainers
    }
    name = "processor time" if settings.threads == 1 else "wall-clock time"
    sizes = {"full": [settings.states] * settings.blocks, "compressed": small, "scratch": small}
    return SpeedProbe(name, sizes, steps, parts)


def _typical(whole: list[float], *parts: list[float]) -> float:
    """The median over the rounds of what is left of `whole` without `parts`: neighbours share disturbances."""
    return statistics.median(total - sum(rest) for total, *rest in zip(whole, *parts, strict=True))


def _pass(trainer: Trainer) -> None:
    """Compute new gradients, as a step does."""
    trainer.optimizer.zero_grad()
    trainer.forward_backward()


def _milliseconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """The mean time of `BLOCK` calls, after one that is not counted: caches belong to the last model."""
    call()
    start = clock()
    for _ in range(BLOCK):
        call()
    return 1e3 * (clock() - start) / BLOCK
