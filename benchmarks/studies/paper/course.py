"""One run: a model learns, is cut by its arm's way, and is measured."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.data import cache
from benchmarks.experiment.settings import Settings
from benchmarks.experiment.trainer import Trainer
from benchmarks.tasks import Part, Task
from hankelred.systems.files import write_atomically
from hankelred_torch import CompressionConfig, Schedule, compress_, hankel_penalty, state_sizes
from hankelred_torch.layers import LRU

from ..published import FirstStates, served_by
from .arms import ARMS, Arm

SAMPLES = 8  # batches on which a layer is seen at work
CURVE = 10  # looks at the validation part in a run
EVERY = 10  # steps between two penalties
ROBUST = 2000  # test sequences at most for accuracy under disturbance
SAVE_EVERY = 180.0  # seconds between two states of a run that it could go on from
TUNED_LR = 0.25  # of the learning rate, for a model that was cut after training

Line = dict[str, Any]


class Course:
    """A trainer on its way, with what was seen of it; times are processor time of the thread."""

    def __init__(self, trainer: Trainer, progress: Callable[[int], Any]) -> None:
        self.trainer, self.progress = trainer, progress
        self.sizes, self.curve = [[0, self.states()]], list[list[float]]()
        self.cut_steps: list[int] = []

    def states(self) -> int:
        """The stored states of all layers."""
        return sum(state_sizes(self.trainer.model).values())

    def run(self, last: int, path: Path) -> None:
        """Train to a step, cut where the trainer cuts, and look at the validation part now and then.

        Where it stands is written to `path` every few minutes; a run that was killed goes on from there.
        """
        trainer, saved = self.trainer, time.monotonic()
        every = max(1, trainer.settings.steps // CURVE)
        if path.exists():
            self.sizes, self.curve, self.cut_steps = trainer.resume(path)
            self.progress(trainer.steps)
        while trainer.steps < last:
            made = trainer.step(lambda: round(trainer.score(trainer.task.validation), 4))
            if made.cuts:
                self.sizes.append([trainer.steps, self.states(), made.before, made.after])
                self.cut_steps.append(trainer.steps)
            if trainer.steps % every == 0:
                self.look()
            self.progress(1)
            if time.monotonic() - saved > SAVE_EVERY and trainer.steps < last:
                path.parent.mkdir(parents=True, exist_ok=True)
                trainer.save(path, [self.sizes, self.curve, self.cut_steps])
                saved = time.monotonic()

    def look(self) -> None:
        """Note how the model does on the validation part."""
        seconds, score = sum(self.trainer.times), self.trainer.score(self.trainer.task.validation)
        self.curve.append([self.trainer.steps, round(seconds, 2), round(score, 4)])

    def rates(self) -> dict[str, float | None]:
        """Steps per second before the first cut and after the last, by median times."""
        times = np.array(self.trainer.times)
        first, last = (self.cut_steps[0] - 1, self.cut_steps[-1]) if self.cut_steps else (0, 0)
        found = {"rate before": times[:first], "rate": times[last:]}
        return {name: float(1.0 / np.median(x)) if len(x) else None for name, x in found.items()}


def made(
    task: Task,
    settings: Settings,
    name: str,
    kept: int,
    seed: int,
    earlier: Sequence[Line],
    progress: Callable[[int], Any],
) -> Line:
    """Make one run and return its line, without what all lines of a machine have."""
    arm, wall = ARMS[name], time.perf_counter()
    settings = replace(settings, lr=arm.lr * settings.lr)
    if arm.as_long_as:
        settings = replace(settings, steps=_steps_in_the_time_of(arm.as_long_as, earlier))
    before = 0.0
    with served_by(arm.adapter):
        if arm.share == 1.0:
            trainer, before = _cut_afterwards(task, settings, arm, kept, seed, progress)
            course = Course(trainer, progress)
        else:
            cuts = None if arm.share is None else _cuts(arm, settings, kept)
            hooks = [FirstStates()] if arm.sliced else []
            start = [kept] if arm.small else None
            trainer = Trainer(task, settings, seed, start, cuts, hooks, SAMPLES, time.thread_time)
            _start_poles(trainer, arm, seed)
            if arm.temperature is not None:
                teacher, before = large(task, settings, seed)
                trainer.criterion = _distilling(task, teacher, arm.temperature)
            course = Course(trainer, progress)
        place = _place(settings, seed, f"{name}-{kept}")
        course.run(0 if arm.share == 1.0 and not arm.tuned else trainer.settings.steps, place)
    place.unlink(missing_ok=True)
    if name == "full":
        _keep(trainer, settings, seed)
    found = {"steps": trainer.steps, "lr": settings.lr, "states": course.states()}
    found |= {"test": trainer.score(task.test), "validation": trainer.score(task.validation)}
    found |= {"seconds": sum(trainer.times) + before, "wall": time.perf_counter() - wall} | course.rates()
    return found | {"sizes": course.sizes, "curve": course.curve, "robust": robustness(trainer)}


def _cuts(arm: Arm, settings: Settings, kept: int) -> tuple[CompressionConfig, Schedule]:
    end = round((arm.share or 0.0) * settings.steps)
    start = 0 if arm.cuts > 1 else end - 1
    schedule = Schedule(settings.steps, start_step=start, end_step=end, attempts=arm.cuts, force=True)
    return CompressionConfig(order=kept, **arm.changes), schedule


def _steps_in_the_time_of(other: str, earlier: Sequence[Line]) -> int:
    """As many steps of the small model as the time of another run of the same seed and size allows."""
    lines = {line["arm"]: line for line in earlier}
    if other not in lines or "scratch" not in lines:
        raise LookupError(f"runs of {other} and scratch must come before one that takes the time of the first")
    return round(lines["scratch"]["steps"] * lines[other]["seconds"] / lines["scratch"]["seconds"])


def _start_poles(trainer: Trainer, arm: Arm, seed: int) -> None:
    """Draw LRU layers anew with poles on the arm's ring."""
    if arm.ring is None:
        return
    fastest, slowest, phase = arm.ring
    length = trainer.task.length
    r_min, r_max = (1.0 - 1.0 / (x * length) if x else 0.0 for x in (fastest, slowest))
    torch.manual_seed(seed)
    for layer in trainer.model.modules():
        if isinstance(layer, LRU):
            layer.load_state_dict(LRU(layer.channels, layer.states, max(0.0, r_min), r_max, phase).state_dict())


def _place(settings: Settings, seed: int, name: str = "full") -> Path:
    """Where a run on its way or the large model of a seed is kept: outside of version control, with the data."""
    mark = hashlib.sha256(json.dumps([name, asdict(settings)], sort_keys=True).encode()).hexdigest()[:12]
    return cache() / ("models" if name == "full" else "runs") / f"{settings.task}-{mark}-{seed}.pt"


def _keep(trainer: Trainer, settings: Settings, seed: int) -> None:
    path = _place(settings, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {"model": trainer.model.state_dict(), "seconds": sum(trainer.times)}
    write_atomically(path, lambda file: torch.save(kept, file))


def large(task: Task, settings: Settings, seed: int) -> tuple[torch.nn.Module, float]:
    """The large model of a seed, trained to the end, and the seconds that took; kept from its own run or made anew."""
    trainer = Trainer(task, settings, seed, samples=SAMPLES, clock=time.thread_time)
    path = _place(settings, seed)
    if not path.exists():
        trainer.train_to(settings.steps, lambda: None)
        _keep(trainer, settings, seed)
    kept = torch.load(path, weights_only=True)
    trainer.model.load_state_dict(kept["model"])
    return trainer.model, float(kept["seconds"])


def _cut_afterwards(
    task: Task, settings: Settings, arm: Arm, kept: int, seed: int, progress: Callable[[int], Any]
) -> tuple[Trainer, float]:
    """A trainer of a model that was trained, then cut, with the steps it is to be tuned for before it."""
    if arm.penalty:
        trainer = Trainer(task, settings, seed, samples=SAMPLES, clock=time.thread_time)
        trainer.penalty = lambda: None if trainer.steps % EVERY else EVERY * arm.penalty * hankel_penalty(trainer.model)
        trainer.train_to(settings.steps, lambda: progress(1))
        model, seconds = trainer.model, sum(trainer.times)
    else:
        model, seconds = large(task, settings, seed)
    steps = max(1, round(arm.tuned * settings.steps))
    brief = replace(settings, steps=steps, lr=TUNED_LR * settings.lr, attempts=1, window=1.0)
    tuner = Trainer(task, brief, seed, samples=SAMPLES, clock=time.thread_time)
    tuner.model.load_state_dict(model.state_dict())
    start = time.thread_time()
    compress_(tuner.model, CompressionConfig(order=kept, **arm.changes), [tuner.optimizer], batches=tuner.batches)
    seconds += time.thread_time() - start
    return tuner, seconds


def _distilling(task: Task, teacher: torch.nn.Module, temperature: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The loss of a student: half the task's, half the distance to what the teacher says."""
    teacher = copy.deepcopy(teacher).eval()

    def loss(inputs: Tensor, outputs: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            told = teacher(inputs)
        if task.predicts:
            return 0.5 * (task.loss(outputs, labels) + F.mse_loss(outputs, told))
        guessed, known = ((x / temperature).log_softmax(-1) for x in (outputs, told))
        distance = F.kl_div(guessed, known, reduction="batchmean", log_target=True)
        return 0.5 * (task.loss(outputs, labels) + temperature**2 * distance)

    return loss


def robustness(trainer: Trainer) -> Mapping[str, float]:
    """The score on the first test sequences as they are and disturbed, and with coarser weights."""
    test, noise = trainer.task.test, torch.Generator().manual_seed(0)
    u = test.inputs[:ROBUST]
    if not u.is_floating_point():
        return {}
    labels, scale = test.labels[:ROBUST], u.std()
    inputs = {"as it is": u, "samples dropped 10 %": u * (torch.rand(u.shape[:2], generator=noise) > 0.1)[..., None]}
    for share in (0.1, 0.3):
        inputs[f"noise {share:g}"] = u + share * scale * torch.randn(u.shape, generator=noise)
    found = {name: trainer.score(Part(x, labels)) for name, x in inputs.items()}
    if (longer := trainer.task.longer) is not None:
        found["twice as long"] = trainer.score(Part(longer.inputs[:ROBUST], longer.labels[:ROBUST]))
    whole = copy.deepcopy(trainer.model)
    for name, coarser in {"bf16 weights": lambda x: x.bfloat16().float(), "8-bit weights": _eight_bits}.items():
        with torch.no_grad():
            for p in trainer.model.parameters():
                p.copy_(coarser(p))
        found[name] = trainer.score(Part(u, labels))
        trainer.model.load_state_dict(whole.state_dict())
    return found


def _eight_bits(x: Tensor) -> Tensor:
    """A tensor to 255 equal levels between minus and plus its largest entry."""
    step = x.abs().max() / 127
    return x if step == 0 else (x / step).round() * step
