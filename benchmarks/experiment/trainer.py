"""The one training loop of demo and studies: a model that learns and is cut on the way."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hankelred.errors import NumericalError
from hankelred_torch import (
    CompressionConfig,
    InTrainingCompressor,
    LayerCut,
    Schedule,
    find_ssm_layers,
    load_checkpoint,
    save_checkpoint,
)
from hankelred_torch.layers import S5

from ..tasks import UNLABELLED, Part, Task
from .models import model_of
from .settings import Settings

WARM_UP = 0.1  # share of the steps in which the learning rate rises
LONGEST = 32  # sequences: time constant that poles of S5, which nothing else keeps stable, can reach
MEASURED_AT_ONCE = 32_768  # positions
EVERY = 10  # steps between looks at a loss that is waited for


@dataclass
class Step:
    """One step: the loss before it, what was cut after it, and what `look` found before and after the cut."""

    loss: Tensor
    cuts: list[LayerCut] = field(default_factory=list)
    before: Any = None
    after: Any = None


class Trainer:
    """A model with its optimizer, schedule, data order and, where it is to shrink, compressor.

    Runs of one seed see the same batches in the same order, whatever their sizes and cuts.

    Parameters
    ----------
    task, settings : Task, Settings
        What to learn, and how.
    seed : int
        Decides initial weights, dropout and the order of the data.
    states : sequence of int, optional
        Stored states of each block at the start; by default those of the settings.
    cuts : tuple of CompressionConfig and Schedule, optional
        What to cut and when; by default nothing.
    on_cut : sequence
        Hooks of the compressor.
    samples : int
        Batches of the training data on which layers are seen at work.
    clock : callable
        Tells seconds; `times` are those of each step, its cut included.
    """

    def __init__(
        self,
        task: Task,
        settings: Settings,
        seed: int,
        states: Sequence[int] | None = None,
        cuts: tuple[CompressionConfig, Schedule] | None = None,
        on_cut: Sequence[Any] = (),
        samples: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        torch.manual_seed(seed)
        self.task, self.settings, self.clock = task, settings, clock
        self.model = model_of(task, settings, states or [settings.states] * settings.blocks)
        modules = dict(self.model.named_modules())
        slow = [p for name in find_ssm_layers(self.model) for p in _state_space_parameters(modules[name])]
        fast = [p for p in self.model.parameters() if not any(p is q for q in slow)]
        groups: list[dict[str, Any]] = [
            {"params": fast},
            {"params": slow, "lr": settings.lr * settings.alpha, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, _warm_up_then_cosine(settings.steps))
        self.batch = min(settings.batch, len(task.train))
        self.batches = list(self._samples(samples, seed))
        self.penalty: Callable[[], Tensor | None] | None = None  # added to the loss of a batch
        self.criterion: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None  # in the place of the task's loss
        self.compressor: InTrainingCompressor | None = None
        self._attempts: Sequence[int] = ()
        if cuts is not None:
            self.compressor = InTrainingCompressor(
                self.model, [self.optimizer], *cuts, batches=self.batches, on_cut=on_cut
            )
            self._attempts = cuts[1].attempt_steps()
        self.times: list[float] = []
        self._made_of = (task, settings, seed, states, cuts, on_cut, samples, clock)
        self._shuffle = torch.Generator().manual_seed(seed)
        self._waiting = torch.empty(0, dtype=torch.int64)

    @property
    def steps(self) -> int:
        """Steps made."""
        return len(self.times)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and labels of the next batch; an epoch drops what does not fill a batch."""
        data = self.task.train
        if len(self._waiting) < self.batch:
            self._waiting = torch.randperm(len(data), generator=self._shuffle)
        chosen, self._waiting = self._waiting[: self.batch], self._waiting[self.batch :]
        return data.inputs[chosen], data.labels[chosen]

    def forward_backward(self) -> Tensor:
        """Add the gradient of the next batch to those of the parameters; return its loss."""
        inputs, labels = self.next_batch()
        outputs = self.model(inputs)
        loss = self.criterion(inputs, outputs, labels) if self.criterion else self.task.loss(outputs, labels)
        loss.backward()
        return loss.detach()

    def step(self, look: Callable[[], Any] | None = None) -> Step:
        """Learn from a batch, and cut where it is time; `look` is called before and after an attempt to cut."""
        start = self.clock()
        made = Step(self.forward_backward())
        if self.penalty is not None and (value := self.penalty()) is not None:
            value.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self._keep_stable()
        self.times.append(self.clock() - start)
        if self.compressor is None:
            return made
        attempt = look is not None and self.steps in self._attempts
        made.before = look() if attempt and look else None
        start = self.clock()
        if self.compressor.step() is not None:
            made.cuts = [x for x in self.compressor.history if x.step == self.steps and x.cut]
        self.times[-1] += self.clock() - start
        made.after = look() if attempt and look else None
        return made

    def train_to(self, last: int, progress: Callable[[], Any], watch: float | None = None) -> int | None:
        """Train until `last` steps are made.

        Returns
        -------
        int or None
            Steps from here until the loss on the validation part was first no more than `watch`, in tens.
        """
        start, found = self.steps, None
        while self.steps < last:
            self.step()
            progress()
            if watch is not None and found is None and (self.steps - start) % EVERY == 0:
                found = self.steps - start if self.validation_loss() <= watch else None
        return found

    def branch(self) -> Trainer:
        """A trainer that goes on from here just as this one would, and leaves this one alone.

        Only of one that was never cut: its layers have the sizes they started with.
        """
        other = Trainer(*self._made_of)
        other.model.load_state_dict(self.model.state_dict())
        other.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        other.schedule.load_state_dict(self.schedule.state_dict())
        if other.compressor is not None and self.compressor is not None:
            other.compressor.load_state_dict(self.compressor.state_dict())
        other.times, other._waiting = self.times.copy(), self._waiting
        other._shuffle.set_state(self._shuffle.get_state())
        return other

    def save(self, path: Path, extra: Any = None) -> None:
        """Write all that `resume` goes on from, and plain values of the caller."""
        state = {"times": self.times, "waiting": self._waiting.tolist(), "extra": extra}
        restore = [self.schedule, self._shuffle]
        save_checkpoint(path, self.model, self.optimizer, self.compressor, restore=restore, extra=state)

    def resume(self, path: Path) -> Any:
        """Go on where a trainer made like this one was saved, to the last bit; return the caller's values."""
        restore = [self.schedule, self._shuffle]
        state = load_checkpoint(path, self.model, self.optimizer, self.compressor, restore=restore)
        self.times, self._waiting = list(state["times"]), torch.tensor(state["waiting"], dtype=torch.int64)
        return state["extra"]

    def parameters(self) -> int:
        """The real numbers that the model learns now."""
        return sum(p.numel() * (2 if p.is_complex() else 1) for p in self.model.parameters())

    def score(self, part: Part) -> float:
        """What the task measures by, on `part`."""
        return self.accuracy(part) if self.task.metric.rises else self.task.metric.per_loss * self.loss(part)

    def accuracy(self, part: Part) -> float:
        """The percentage of the labels of `part` that the model gets right."""
        labelled = part.labels != UNLABELLED
        guesses = torch.cat([scores.argmax(dim=-1) for scores, _ in self._scores(part)])
        return 100.0 * (guesses == part.labels)[labelled].double().mean().item()

    def loss(self, part: Part) -> float:
        """The mean loss over the labels of `part`."""
        sums = [self.task.loss(scores, labels, "sum").double() for scores, labels in self._scores(part)]
        return self.check((sum(sums) / (part.labels != UNLABELLED).sum()).item())

    def validation_loss(self) -> float:
        """The mean loss on the validation part."""
        return self.loss(self.task.validation)

    def check(self, loss: float) -> float:
        """Pass a loss on; raise `NumericalError` where training has diverged."""
        if not math.isfinite(loss):
            raise NumericalError(
                f"the loss must stay finite; got {loss} at step {self.steps}. Choose a smaller learning rate."
            )
        return loss

    def _scores(self, part: Part) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the scores and labels of a part, some sequences at a time."""
        at_once = max(1, MEASURED_AT_ONCE // part.inputs.shape[1])
        self.model.eval()
        with torch.no_grad():
            for inputs, labels in zip(part.inputs.split(at_once), part.labels.split(at_once), strict=True):
                yield self.model(inputs), labels
        self.model.train()

    def _samples(self, count: int, seed: int) -> Iterator[Tensor]:
        """Yield inputs of the training data, the same for all arms."""
        data, generator = self.task.train, torch.Generator().manual_seed(seed)
        for _ in range(count):
            yield data.inputs[torch.randint(len(data), (self.batch,), generator=generator)]

    @torch.no_grad()
    def _keep_stable(self) -> None:
        """Put poles of S5 that training has moved too close to the imaginary axis, or past it, back."""
        slowest = 1.0 / (LONGEST * self.task.length)  # decay in one step of a sequence
        for module in self.model.modules():
            if isinstance(module, S5):
                module.Lambda_re.clamp_(max=-slowest / module.log_step.exp())


def _state_space_parameters(layer: nn.Module) -> list[nn.Parameter]:
    """The parameters of a layer that the factor on the learning rate and no decay are for.

    All of them, or, of a layer that marks those to spare as the published code of Mamba does, the marked ones.
    """
    own = list(layer.parameters())
    return [p for p in own if getattr(p, "_no_weight_decay", False)] or own


def _warm_up_then_cosine(steps: int) -> Callable[[int], float]:
    """The factor on the learning rate as a function of the steps made."""
    rising = max(1, round(WARM_UP * steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - rising) / max(1, steps - rising))))

    return factor
