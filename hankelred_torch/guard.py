"""When a cut was too much: a metric before and after, and what is allowed between them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hankelred.errors import InputError

from .surgery.snapshot import random_state, set_random_state


@dataclass(frozen=True)
class Guard:
    """A condition on every cut of an `InTrainingCompressor`: a metric must not get worse by more than a tolerance.

    The metric is taken before the cut, after it and, with `settle_steps`, again when the model has had some steps to
    settle; the last of these decides. A cut that fails is rolled back, bit for bit.

    Parameters
    ----------
    metric : callable
        Returns the metric as a float. It is called with the model, or with nothing if it takes no argument; in
        evaluation mode, without gradients, and what it draws from random generators is put back.
    tolerance : float
        How much worse the metric may be, in its own units.
    mode : {"max", "min"}, default "max"
        Whether more is better, as for an accuracy, or less, as for a loss.
    on_fail : {"halve", "stop"}, default "halve"
        After a rollback, cut half as much at once, again and again until it holds or is less than ``min_cut``; or
        make no more cuts at all.
    settle_steps : int, default 0
        Steps of training between the cut and the decision. A rollback loses them.

    Raises
    ------
    InputError
        If an argument is out of its range.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> guard = ht.Guard(lambda: 0.93, tolerance=0.01)
    >>> guard.holds(0.93, 0.925), guard.holds(0.93, 0.91)
    (True, False)
    """

    metric: Callable[..., Any]
    tolerance: float
    mode: Literal["max", "min"] = "max"
    on_fail: Literal["halve", "stop"] = "halve"
    settle_steps: int = 0

    def __post_init__(self) -> None:
        """Check every value once, here."""
        if not callable(self.metric):
            raise InputError(
                f"metric must be callable and return a float; got {type(self.metric).__name__}. "
                f"For a loss over batches pass validation_loss(batches, loss)."
            )
        if not self.tolerance >= 0:
            raise InputError(f"tolerance must be from 0 up, in units of the metric; got {self.tolerance}.")
        for name, choices in (("mode", ("max", "min")), ("on_fail", ("halve", "stop"))):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}.")
        if isinstance(self.settle_steps, bool) or not isinstance(self.settle_steps, int) or self.settle_steps < 0:
            raise InputError(f"settle_steps must be an integer from 0 up; got {self.settle_steps!r}.")

    def measure(self, model: nn.Module) -> float:
        """Return the metric of a model, and leave the run as if it had not been asked for.

        Parameters
        ----------
        model : torch.nn.Module
            The model in training.

        Returns
        -------
        float
            What the metric returned.
        """
        training = [(module, module.training) for module in model.modules()]
        randomness = random_state()
        model.eval()
        try:
            with torch.no_grad():
                return float(self.metric(model) if _takes_an_argument(self.metric) else self.metric())
        finally:
            for module, mode in training:
                module.training = mode
            set_random_state(randomness)

    def holds(self, before: float, after: float) -> bool:
        """Tell whether the metric is still within the tolerance.

        Parameters
        ----------
        before, after : float
            The metric before and after a cut.

        Returns
        -------
        bool
            False also if one of them is not a number.
        """
        loss = before - after if self.mode == "max" else after - before
        return loss <= self.tolerance


def validation_loss(batches: Iterable[Any], loss: Callable[[Any, Any], Tensor]) -> Callable[[nn.Module], float]:
    """Return a metric for a `Guard`: the mean loss of a model over validation batches.

    Parameters
    ----------
    batches : iterable of (inputs, targets)
        Asked anew every time, such as a list or a DataLoader; moved to the device of the model.
    loss : callable
        Takes outputs and targets and returns their mean loss over the batch.

    Returns
    -------
    callable
        Takes the model and returns the loss, every example counted once; for ``mode="min"``.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> batches = [(torch.ones(2, 3), torch.ones(2, 3)), (torch.ones(4, 3), torch.zeros(4, 3))]
    >>> metric = ht.validation_loss(batches, torch.nn.functional.mse_loss)
    >>> round(metric(torch.nn.Identity()), 3)
    0.667
    """

    def metric(model: nn.Module) -> float:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        total, count = 0.0, 0
        for inputs, targets in batches:
            value = loss(model(inputs.to(device)), targets.to(device))
            total, count = total + float(value) * len(targets), count + len(targets)
        if not count:
            raise InputError("batches must hold an example each time it is asked; got none. Pass a list or a loader.")
        return total / count

    return metric


def _takes_an_argument(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except (TypeError, ValueError):  # it takes none, or is compiled and does not tell
        return False
    return True
