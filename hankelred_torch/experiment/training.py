"""One arm of an experiment with one seed: a model that learns, is measured, and, in the compressed arm, shrinks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hankelred._checks import Array
from hankelred.errors import NumericalError

from .. import CompressionConfig, InTrainingCompressor, find_ssm_layers, hankel_singular_values, state_sizes
from ..history import Measurement as Attempt
from .model import SequenceClassifier
from .settings import Settings
from .tasks import Part, Task

MEASUREMENTS = 40  # equally spaced over a run; as many again, at most, in its reduction window
WARM_UP = 0.1  # share of the steps in which the learning rate rises


class Measurement(TypedDict):
    """What was measured after `step` steps; `seconds` is training time only."""

    step: int
    seconds: float
    loss: float
    validation: float
    states: dict[str, int]
    hsv: dict[str, list[float]]


class Cut(TypedDict):
    """One reduction of one layer; `hsv` are those before it, of which the first `order` were kept."""

    step: int
    layer: str
    before: int
    after: int
    order: int
    hsv: list[float]
    kept_energy: float
    error_bound: float
    seconds: float


@dataclass
class RunRecord:
    """All that is kept of a run; JSON can hold it.

    Attributes
    ----------
    arm, seed : str, int
        Which run.
    states : dict of str to int
        Stored states of each layer at the start.
    measurements, cuts : list
        In the order of the steps.
    steps : int
        Steps made.
    seconds : float
        Training time, cuts included, measurements not.
    rate_before, rate_after : float or None
        Steps per second, from median step times: before the first cut and after the last; without cuts the second
        is of all steps and the first is None.
    parameters : tuple of two int
        Real numbers learned, at the start and at the end.
    test : float or None
        Accuracy on the test part in percent, with the weights of the last step; None if the run was interrupted.
    """

    arm: str
    seed: int
    states: dict[str, int]
    measurements: list[Measurement] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    rate_before: float | None = None
    rate_after: float | None = None
    parameters: tuple[int, int] = (0, 0)
    test: float | None = None

    @property
    def finished(self) -> bool:
        """Whether the run went to its last step."""
        return self.test is not None

    @property
    def final_states(self) -> dict[str, int]:
        """Stored states of each layer at the end, or where the run was interrupted."""
        return self.measurements[-1]["states"] if self.measurements else self.states


class Trainer:
    """A model with its optimizer, schedule, data order and, where it is to shrink, compressor.

    Runs of one seed see the same batches in the same order, whatever their arm.

    Parameters
    ----------
    task : Task
        What to learn.
    settings : Settings
        How.
    states : sequence of int
        Stored states of each block at the start.
    seed : int
        Decides initial weights, dropout and the order of the data.
    shrink : bool
        Whether states are cut in the reduction window.
    """

    def __init__(self, task: Task, settings: Settings, states: Sequence[int], seed: int, shrink: bool) -> None:
        torch.manual_seed(seed)
        memory = settings.memory * task.length
        self.model = SequenceClassifier(
            task.features, task.classes, settings.channels, states, memory, settings.dropout
        )
        layers = find_ssm_layers(self.model)
        modules = dict(self.model.named_modules())
        slow = [p for name in layers for p in modules[name].parameters()]
        fast = [p for p in self.model.parameters() if not any(p is q for q in slow)]
        groups: list[dict[str, Any]] = [
            {"params": fast},
            {"params": slow, "lr": settings.lr * settings.alpha, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, _warm_up_then_cosine(settings.steps))
        self.compressor = _compressor(self.model, self.optimizer, settings) if shrink else None
        self.data = task.train
        self.batch = min(settings.batch, len(task.train))
        self._shuffle = torch.Generator().manual_seed(seed)
        self._waiting = torch.empty(0, dtype=torch.int64)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of the next batch; an epoch drops what does not fill a batch."""
        if len(self._waiting) < self.batch:
            self._waiting = torch.randperm(len(self.data), generator=self._shuffle)
        chosen, self._waiting = self._waiting[: self.batch], self._waiting[self.batch :]
        return self.data.inputs[chosen], self.data.labels[chosen]

    def forward_backward(self) -> Tensor:
        """Return the cross entropy of the next batch, and add its gradient to those of the parameters."""
        inputs, labels = self.next_batch()
        loss = F.cross_entropy(self.model(inputs), labels)
        loss.backward()
        return loss.detach()

    def step(self) -> tuple[Tensor, list[Cut]]:
        """Make one optimizer step and, in the window of the compressed arm, perhaps a cut; return loss and cuts."""
        loss = self.forward_backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        if self.compressor is None or self.compressor.step() is None:
            return loss, []
        now = self.compressor.history[-1].step
        return loss, [_cut(attempt) for attempt in self.compressor.history if attempt.step == now and attempt.cut]

    def parameters(self) -> int:
        """Return the real numbers that the model learns now."""
        return sum(p.numel() * (2 if p.is_complex() else 1) for p in self.model.parameters())

    def accuracy(self, part: Part) -> float:
        """Return the percentage of `part` that the model labels right."""
        self.model.eval()
        with torch.no_grad():
            guesses = torch.cat([self.model(inputs).argmax(dim=1) for inputs in part.inputs.split(512)])
        self.model.train()
        return 100.0 * (guesses == part.labels).double().mean().item()


def train(
    trainer: Trainer,
    record: RunRecord,
    task: Task,
    settings: Settings,
    progress: Callable[[Measurement | None], None],
    stopped: Callable[[], bool],
) -> None:
    """Train to the last step, or until `stopped`, and write all that is measured into `record`.

    Parameters
    ----------
    trainer : Trainer
        Fresh; trained in place.
    record : RunRecord
        Fresh; filled in place.
    task, settings : Task, Settings
        Those of the trainer.
    progress : callable
        Called after every step, with the new measurement where there is one.
    stopped : callable
        Asked before every step; if it answers True the run is left unfinished.
    """
    moments = measurement_steps(settings)
    times = np.zeros(settings.steps)
    record.parameters = (trainer.parameters(),) * 2
    while record.steps < settings.steps and not stopped():
        start = time.perf_counter()
        loss, cuts = trainer.step()
        times[record.steps] = time.perf_counter() - start
        record.steps += 1
        record.cuts += cuts
        measured = None
        if record.steps in moments or cuts:
            measured = _measure(trainer, record.steps, times.sum(), loss, task)
            record.measurements.append(measured)
        progress(measured)
    record.seconds = float(times.sum())
    record.parameters = (record.parameters[0], trainer.parameters())
    record.rate_before, record.rate_after = _rates(times[: record.steps], [cut["step"] for cut in record.cuts])
    if record.steps == settings.steps:
        record.test = trainer.accuracy(task.test)


def measurement_steps(settings: Settings) -> set[int]:
    """Return the steps after which a run is measured: evenly over all of it, and more densely in the window."""
    over_run = np.linspace(0, settings.steps, MEASUREMENTS + 1)[1:]
    over_window = np.linspace(0, settings.window_steps, MEASUREMENTS // 2 + 1)[1:]
    return {1} | {int(step) for step in np.ceil(np.concatenate([over_run, over_window]))}


def _compressor(
    model: SequenceClassifier, optimizer: torch.optim.Optimizer, settings: Settings
) -> InTrainingCompressor:
    """Return what cuts `model` in the window of `settings`."""
    config = CompressionConfig(
        tau=settings.tau,
        order=settings.order,
        end_step=settings.window_steps,
        total_steps=settings.steps,
        attempts=settings.attempts,
        force=settings.order is not None,  # a given order is to be reached whatever it costs: so says the command line
    )
    return InTrainingCompressor(model, [optimizer], config)


def _cut(attempt: Attempt) -> Cut:
    """Return what the record keeps of an attempt that cut a layer."""
    return Cut(
        step=attempt.step,
        layer=attempt.layer,
        before=attempt.n,
        after=attempt.states,
        order=attempt.order,
        hsv=_digits(attempt.hsv),
        kept_energy=attempt.kept_energy,
        error_bound=attempt.error_bound,
        seconds=attempt.seconds,
    )


def _measure(trainer: Trainer, step: int, seconds: float, loss: Tensor, task: Task) -> Measurement:
    """Return the state of affairs after `step` steps."""
    if not torch.isfinite(loss):
        raise NumericalError(
            f"the training loss must stay finite; got {loss.item()} at step {step}. Choose a smaller learning rate."
        )
    return Measurement(
        step=step,
        seconds=float(seconds),
        loss=loss.item(),
        validation=trainer.accuracy(task.validation),
        states=state_sizes(trainer.model),
        hsv={name: _digits(hsv) for name, hsv in hankel_singular_values(trainer.model).items()},
    )


def _digits(values: Iterable[float]) -> list[float]:
    """Return `values` to four significant digits: enough for a figure, and a tenth of the file."""
    return [float(f"{value:.4g}") for value in values]


def _rates(times: Array, cut_steps: list[int]) -> tuple[float | None, float | None]:
    """Return steps per second before the first cut and after the last, by median step times."""
    first, last = (min(cut_steps) - 1, max(cut_steps)) if cut_steps else (0, 0)
    before, after = times[:first], times[last:]  # the steps of the cuts themselves are in neither
    return _rate(before), _rate(after)


def _rate(times: Array) -> float | None:
    return 1.0 / float(np.median(times)) if len(times) else None


def _warm_up_then_cosine(steps: int) -> Callable[[int], float]:
    """Return the factor on the learning rate as a function of the steps made."""
    rising = max(1, round(WARM_UP * steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - rising) / max(1, steps - rising))))

    return factor
