"""One arm of the experiment with one seed, and all that is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
import torch
from torch import nn

from hankelred.checks import Array
from hankelred_torch import CompressionConfig, Schedule, hankel_singular_values, state_sizes
from hankelred_torch import LayerCut as Attempt

from ..tasks import Task
from .settings import Settings
from .trainer import Trainer

MEASUREMENTS = 40  # equally spaced over a run; as many again, at most, in its reduction window

# What a language model writes, so that one can read what a cut did to it.
PROMPT = "def "
LENGTH = 120  # characters to write; with the prompt no more than a sequence of training has
WRITING_SEED = 0  # the same chances for every model


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

    `method` and `output_error` are those of layers that have a choice of methods.
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

    `states` are those of each layer at the start. `seconds` is training time, cuts included, measurements not. Rates
    are steps per second, from median step times, before the first cut and after the last; without cuts the second is
    of all steps and the first is None. `parameters` are the real numbers learned, at the start and at the end. `test`
    is what the task measures by, on the test part with the weights of the last step; None if the run was interrupted.
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


def record_run(
    trainer: Trainer,
    arm: str,
    seed: int,
    progress: Callable[[Measurement | None], None],
    stopped: Callable[[], object],
) -> RunRecord:
    """Train to the last step, or until `stopped`, and return all that was measured.

    `progress` is called after every step, with the new measurement where there is one; `stopped` is asked before every
    step.
    """
    task, settings = trainer.task, trainer.settings
    moments, before = measurement_steps(settings), trainer.parameters()
    record = RunRecord(arm, seed, state_sizes(trainer.model))
    look = (lambda: _sample(trainer, "")) if task.vocabulary else None
    while trainer.steps < settings.steps and not stopped():
        made = trainer.step(look)
        record.cuts += [_cut(attempt) for attempt in made.cuts]
        if made.cuts and look:
            record.samples += [made.before | {"when": "before the cut"}, made.after | {"when": "after the cut"}]
        measured = None
        if trainer.steps in moments or made.cuts:
            measured = _measure(trainer, made.loss.item())
            record.measurements.append(measured)
        progress(measured)
    times = np.array(trainer.times)
    record.steps, record.seconds = trainer.steps, float(times.sum())
    record.parameters = (before, trainer.parameters())
    record.rate_before, record.rate_after = _rates(times, [cut["step"] for cut in record.cuts])
    if record.steps == settings.steps:
        record.test = trainer.score(task.test)
        record.samples += [_sample(trainer, "in the end")] if task.vocabulary else []
    return record


def measurement_steps(settings: Settings) -> set[int]:
    """The steps after which a run is measured: evenly over all of it, and more densely in the window."""
    over_run = np.linspace(0, settings.steps, MEASUREMENTS + 1)[1:]
    over_window = np.linspace(0, settings.window_steps, MEASUREMENTS // 2 + 1)[1:]
    return {1} | {int(step) for step in np.ceil(np.concatenate([over_run, over_window]))}


def cuts_of(settings: Settings) -> tuple[CompressionConfig, Schedule]:
    """What the compressed arm may lose, and when it is cut; a given order is reached whatever that costs."""
    config = CompressionConfig(tau=settings.tau, order=settings.order, method=settings.method)  # type: ignore[arg-type]
    end, force = settings.window_steps, settings.order is not None
    return config, Schedule(settings.steps, end_step=end, attempts=settings.attempts, force=force)


@torch.no_grad()
def write_text(model: nn.Module, task: Task) -> str:
    """A prompt and what the model writes after it, one character drawn at a time; its mode stays."""
    generator = torch.Generator().manual_seed(WRITING_SEED)
    tokens = [task.vocabulary.index(character) for character in PROMPT]
    training = model.training
    model.eval()
    for _ in range(LENGTH):
        chances = model(torch.tensor([tokens]))[0, -1].softmax(dim=0)
        tokens.append(int(torch.multinomial(chances, 1, generator=generator)))
    model.train(training)
    return "".join(task.vocabulary[token] for token in tokens)


def _sample(trainer: Trainer, when: str) -> Sample:
    text = write_text(trainer.model, trainer.task)
    return Sample(step=trainer.steps, when=when, states=state_sizes(trainer.model), text=text)


def _cut(attempt: Attempt) -> Cut:
    """What the record keeps of an attempt that cut a layer."""
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


def _measure(trainer: Trainer, loss: float) -> Measurement:
    """The state of affairs after a step."""
    values = hankel_singular_values(trainer.model, trainer.batches[:1])  # what is only looked at can do with less data
    return Measurement(
        step=trainer.steps,
        seconds=sum(trainer.times),
        loss=trainer.check(loss),
        validation=trainer.score(trainer.task.validation),
        states=state_sizes(trainer.model),
        hsv={name: _digits(_largest(hsv)) for name, hsv in values.items()},
    )


def _largest(hsv: Array) -> Array:
    """Values of a layer; of a bank of systems, at every place the largest."""
    return hsv.reshape(-1, hsv.shape[-1]).max(axis=0)


def _digits(values: Iterable[float]) -> list[float]:
    """Return `values` to four significant digits: enough for a figure, and a tenth of the file."""
    return [float(f"{value:.4g}") for value in values]


def _rates(times: Array, cut_steps: list[int]) -> tuple[float | None, float | None]:
    """Steps per second before the first cut and after the last, by median step times."""
    first, last = (min(cut_steps) - 1, max(cut_steps)) if cut_steps else (0, 0)
    before, after = times[:first], times[last:]  # the steps of the cuts themselves are in neither
    return _rate(before), _rate(after)


def _rate(times: Array) -> float | None:
    return 1.0 / float(np.median(times)) if len(times) else None
