"""One arm of an experiment with one seed: a model that learns, is measured, and, in the compressed arm, shrinks."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hankelred.checks import Array
from hankelred.errors import NumericalError

from .. import (
    CompressionConfig,
    InTrainingCompressor,
    Schedule,
    find_ssm_layers,
    hankel_singular_values,
    state_sizes,
)
from ..layers import S5
from ..planning import LayerCut as Attempt
from .model import SequenceClassifier, TokenModel
from .sampling import write
from .settings import Settings
from .tasks import UNLABELLED, Part, Task

MEASUREMENTS = 40  # equally spaced over a run; as many again, at most, in its reduction window
WARM_UP = 0.1  # share of the steps in which the learning rate rises
LARGEST_REAL_PART = -1e-4  # of a pole of S5, which nothing else keeps stable: published as an option of the layer
SAMPLES = 1  # batches of the training data on which layers whose matrices depend on their input are seen at work
MEASURED_AT_ONCE = 32_768  # positions


class Measurement(TypedDict):
    """What was measured after `step` steps; `seconds` is training time only."""

    step: int
    seconds: float
    loss: float
    validation: float
    states: dict[str, int]
    hsv: dict[str, list[float]]


class Cut(TypedDict):
    """One reduction of one layer; `hsv` are those before it, of which the first `order` were kept.

    `method` and `output_error` are those of layers that have a choice of methods, as in `CompressionReport`.
    """

    step: int
    layer: str
    before: int
    after: int
    order: int
    hsv: list[float]
    kept_energy: float
    error_bound: float | None
    method: str
    output_error: float | None
    seconds: float


class Sample(TypedDict):
    """What a language model wrote after `step` steps: before or after a cut, or in the end."""

    step: int
    when: str
    states: dict[str, int]
    text: str


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
        What the task measures by, on the test part with the weights of the last step; None if the run was interrupted.
    samples : list
        Texts of a language model.
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
    samples: list[Sample] = field(default_factory=list)

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
        kind = TokenModel if task.tokens else SequenceClassifier
        self.model = kind(
            task.features, task.classes, settings.channels, states, memory, settings.dropout, settings.layer
        )
        modules = dict(self.model.named_modules())
        slow = [p for name in find_ssm_layers(self.model) for p in _state_space_parameters(modules[name])]
        fast = [p for p in self.model.parameters() if not any(p is q for q in slow)]
        groups: list[dict[str, Any]] = [
            {"params": fast},
            {"params": slow, "lr": settings.lr * settings.alpha, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, _warm_up_then_cosine(settings.steps))
        self.data, self.metric = task.train, task.metric
        self.batch = min(settings.batch, len(task.train))
        self.batches = list(self._samples(seed))
        schedule = _schedule(settings)
        self._attempts = schedule.attempt_steps()
        self.compressor: InTrainingCompressor | None = None
        if shrink:
            optimizers, config = [self.optimizer], _config(settings)
            self.compressor = InTrainingCompressor(self.model, optimizers, config, schedule, batches=self.batches)
        self._made_of, self._learned = (task, settings, states, seed, shrink), 0
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
        loss = _cross_entropy(self.model(inputs), labels)
        loss.backward()
        return loss.detach()

    def learn(self) -> Tensor:
        """Make one optimizer step and return the loss before it."""
        loss = self.forward_backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        _keep_stable(self.model)
        self._learned += 1
        return loss

    @property
    def may_cut(self) -> bool:
        """Whether `shrink` will look for something to cut at this step."""
        return self.compressor is not None and self._learned in self._attempts

    def shrink(self) -> list[Cut]:
        """Cut, if this is the compressed arm and a step at which it may; return what was cut."""
        if self.compressor is None or self.compressor.step() is None:
            return []
        now = self.compressor.history[-1].step
        return [_cut(attempt) for attempt in self.compressor.history if attempt.step == now and attempt.cut]

    def step(self) -> tuple[Tensor, list[Cut]]:
        """Learn, and perhaps shrink; return loss and cuts."""
        return self.learn(), self.shrink()

    def branch(self) -> Trainer:
        """Return a trainer that goes on from here just as this one would, and leaves this one alone.

        Only of one that was never cut: its layers have the sizes they started with.
        """
        other = Trainer(*self._made_of)
        other.model.load_state_dict(self.model.state_dict())
        other.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        other.schedule.load_state_dict(self.schedule.state_dict())
        if other.compressor is not None and self.compressor is not None:
            other.compressor.load_state_dict(self.compressor.state_dict())
        other._learned, other._waiting = self._learned, self._waiting
        other._shuffle.set_state(self._shuffle.get_state())
        return other

    def parameters(self) -> int:
        """Return the real numbers that the model learns now."""
        return sum(p.numel() * (2 if p.is_complex() else 1) for p in self.model.parameters())

    def score(self, part: Part) -> float:
        """Return what the task measures by, on `part`."""
        return self.accuracy(part) if self.metric.rises else self.bits(part)

    def accuracy(self, part: Part) -> float:
        """Return the percentage of the labels of `part` that the model gets right."""
        labelled = part.labels != UNLABELLED
        guesses = torch.cat([scores.argmax(dim=-1) for scores, _ in self._scores(part)])
        return 100.0 * (guesses == part.labels)[labelled].double().mean().item()

    def bits(self, part: Part) -> float:
        """Return the mean of minus the logarithm to base 2 of what the model gives to the labels of `part`."""
        sums = [_cross_entropy(scores, labels, "sum").double() for scores, labels in self._scores(part)]
        return (sum(sums) / (part.labels != UNLABELLED).sum() / math.log(2)).item()

    def _scores(self, part: Part) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the scores and labels of a part, some sequences at a time."""
        at_once = max(1, MEASURED_AT_ONCE // part.inputs.shape[1])
        self.model.eval()
        with torch.no_grad():
            for inputs, labels in zip(part.inputs.split(at_once), part.labels.split(at_once), strict=True):
                yield self.model(inputs), labels
        self.model.train()

    def _samples(self, seed: int) -> Iterator[Tensor]:
        """Yield inputs of the training data, the same for all arms."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(SAMPLES):
            yield self.data.inputs[torch.randint(len(self.data), (self.batch,), generator=generator)]


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
        loss = trainer.learn()
        times[record.steps] = time.perf_counter() - start
        before = write(trainer.model, task) if trainer.may_cut and task.vocabulary else ""
        sizes = state_sizes(trainer.model)
        start = time.perf_counter()
        cuts = trainer.shrink()
        times[record.steps] += time.perf_counter() - start
        record.steps += 1
        record.cuts += cuts
        if cuts and task.vocabulary:
            record.samples.append(Sample(step=record.steps, when="before the cut", states=sizes, text=before))
            record.samples.append(_sample(trainer, task, record.steps, "after the cut"))
        measured = None
        if record.steps in moments or cuts:
            measured = _measure(trainer, record.steps, times.sum(), loss, task)
            record.measurements.append(measured)
        progress(measured)
    record.seconds = float(times.sum())
    record.parameters = (record.parameters[0], trainer.parameters())
    record.rate_before, record.rate_after = _rates(times[: record.steps], [cut["step"] for cut in record.cuts])
    if record.steps == settings.steps:
        record.test = trainer.score(task.test)
        if task.vocabulary:
            record.samples.append(_sample(trainer, task, record.steps, "in the end"))


def measurement_steps(settings: Settings) -> set[int]:
    """Return the steps after which a run is measured: evenly over all of it, and more densely in the window."""
    over_run = np.linspace(0, settings.steps, MEASUREMENTS + 1)[1:]
    over_window = np.linspace(0, settings.window_steps, MEASUREMENTS // 2 + 1)[1:]
    return {1} | {int(step) for step in np.ceil(np.concatenate([over_run, over_window]))}


def _state_space_parameters(layer: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a layer that the factor on the learning rate and no decay are for.

    All of them, or, of a layer that marks those to spare as the published code of Mamba does, the marked ones.
    """
    own = list(layer.parameters())
    return [p for p in own if getattr(p, "_no_weight_decay", False)] or own


def _cross_entropy(scores: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Return the cross entropy over sequences, or over all positions that have a label."""
    return F.cross_entropy(scores.flatten(0, -2), labels.flatten(), ignore_index=UNLABELLED, reduction=reduction)


def _config(settings: Settings) -> CompressionConfig:
    """Return what the compressed arm may lose."""
    return CompressionConfig(tau=settings.tau, order=settings.order, method=settings.method)  # type: ignore[arg-type]


def _schedule(settings: Settings) -> Schedule:
    """Return when the compressed arm cuts; a given order is to be reached whatever it costs."""
    force = settings.order is not None
    return Schedule(settings.steps, end_step=settings.window_steps, attempts=settings.attempts, force=force)


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
        method=attempt.method,
        output_error=attempt.output_error,
        seconds=attempt.seconds,
    )


def _measure(trainer: Trainer, step: int, seconds: float, loss: Tensor, task: Task) -> Measurement:
    """Return the state of affairs after `step` steps."""
    if not torch.isfinite(loss):
        raise NumericalError(
            f"the training loss must stay finite; got {loss.item()} at step {step}. Choose a smaller learning rate."
        )
    values = hankel_singular_values(trainer.model, trainer.batches[:1])  # what is only looked at can do with less data
    return Measurement(
        step=step,
        seconds=float(seconds),
        loss=loss.item(),
        validation=trainer.score(task.validation),
        states=state_sizes(trainer.model),
        hsv={name: _digits(_largest(hsv)) for name, hsv in values.items()},
    )


def _sample(trainer: Trainer, task: Task, step: int, when: str) -> Sample:
    return Sample(step=step, when=when, states=state_sizes(trainer.model), text=write(trainer.model, task))


def _largest(hsv: Array) -> Array:
    """Return values of a layer; of a bank of systems, at every place the largest."""
    return hsv.reshape(-1, hsv.shape[-1]).max(axis=0)


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


@torch.no_grad()
def _keep_stable(model: nn.Module) -> None:
    """Put poles of S5 that training has moved to the right back to where they are stable."""
    for module in model.modules():
        if isinstance(module, S5):
            module.Lambda_re.clamp_(max=LARGEST_REAL_PART)
