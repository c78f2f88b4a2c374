"""When a cut was too much: a metric before and after, and what is allowed between them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hankelred.checks import check_choice, check_integer, check_number, check_type
from hankelred.errors import InputError

from .randomness import random_state, set_random_state


@dataclass(frozen=True)
class Guard:
    """A condition on every cut of an `InTrainingCompressor`: a metric must not get worse by more than a tolerance.

    The metric is taken before the cut, after it and, with `settle_steps`, again when the model has had some steps to
    settle; the last of these decides. A cut that fails is rolled back, bit for bit.

    Parameters
    ----------
    metric : callable
        Returns the metric as a float. It is called with the model if it has a positional argument without a default,
        else with nothing; in evaluation mode, without gradients, and what it draws from random generators is put back.
    tolerance : float
        How much worse the metric may be, in its own units.
    mode : {"max", "min"}, optional
        Whether more is better, as for an accuracy, or less, as for a loss. Of `validation_loss` it is known.
    settle_steps : int, default 0
        Steps of training between the cut and the decision. A rollback loses them.
    on_fail : {"halve", "stop"}, default "halve"
        After a rollback, cut half as much at once, again and again until it holds, is less than ``min_cut`` or comes
        out no smaller than what failed; or make no more cuts at all.

    Raises
    ------
    InputError
        If an argument is out of its range, or nobody says whether more of the metric is better.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> guard = ht.Guard(lambda: 0.93, tolerance=0.01, mode="max")
    >>> guard.holds(0.93, 0.925), guard.holds(0.93, 0.91)
    (True, False)
    """

    metric: Callable[..., Any]
    tolerance: float
    mode: Literal["max", "min"] | None = None
    settle_steps: int = 0
    on_fail: Literal["halve", "stop"] = "halve"

    def __post_init__(self) -> None:
        """Check every value once, here."""
        if not callable(self.metric) or isinstance(self.metric, type):
            raise InputError(
                f"metric must be callable and return a float; got {type(self.metric).__name__}. "
                f"For a loss over batches pass validation_loss(batches, loss)."
            )
        mode = getattr(self.metric, "better", None) if self.mode is None else self.mode
        if mode is None:
            raise InputError(
                'mode must be "max" or "min" for a metric of which it is not known whether more is better; got None. '
                'Pass "min" for a loss or an error, "max" for an accuracy.'
            )
        checked = {
            "tolerance": check_number(self.tolerance, "tolerance", least=0, hint="It is in units of the metric."),
            "mode": check_choice(mode, "mode", ("max", "min")),
            "settle_steps": check_integer(self.settle_steps, "settle_steps", 0, hint="It counts optimizer steps."),
            "on_fail": check_choice(self.on_fail, "on_fail", ("halve", "stop")),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        _arguments_of(self.metric)

    def measure(self, model: nn.Module) -> float:
        """Take the metric of a model, and leave the run as if it had not been asked for.

        Parameters
        ----------
        model : torch.nn.Module
            The model in training.

        Returns
        -------
        float
            What the metric returned.

        Raises
        ------
        InputError
            If `model` is no module, or the metric returns no number.
        """
        check_type(model, "model", nn.Module)
        training = [(module, module.training) for module in model.modules()]
        randomness = random_state()
        model.eval()
        try:
            with torch.no_grad():
                return _as_float(self.metric(*[model][: _arguments_of(self.metric)]), "metric must return")
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
        before, after = _as_float(before, "before must be"), _as_float(after, "after must be")
        loss = before - after if self.mode == "max" else after - before
        return loss <= self.tolerance


def validation_loss(batches: Iterable[Any], loss: Callable[[Any, Any], Tensor]) -> Callable[[nn.Module], float]:
    """Make a metric for a `Guard`: the mean loss of a model over validation batches.

    Parameters
    ----------
    batches : iterable of (inputs, targets)
        Asked anew every time, such as a list or a DataLoader; moved to the device of the model.
    loss : callable
        Takes outputs and targets and returns their mean loss over the batch.

    Returns
    -------
    callable
        Takes the model and returns the loss, every example counted once; a `Guard` knows that less is better.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> batches = [(torch.ones(2, 3), torch.ones(2, 3)), (torch.ones(4, 3), torch.zeros(4, 3))]
    >>> metric = ht.validation_loss(batches, torch.nn.functional.mse_loss)
    >>> round(metric(torch.nn.Identity()), 3)
    0.667
    """
    if not callable(loss) or isinstance(loss, type):
        raise InputError(f"loss must be callable with outputs and targets; got {type(loss).__name__}.")
    if isinstance(batches, (Tensor, Mapping, str, bytes)) or not hasattr(batches, "__iter__"):
        raise InputError(f"batches must be an iterable of pairs of inputs and targets; got {type(batches).__name__}.")

    def metric(model: nn.Module) -> float:
        check_type(model, "model", nn.Module)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        total, count = 0.0, 0
        for pair in batches:
            if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(x, Tensor) for x in pair)):
                raise InputError(f"batches must hold pairs of tensors, inputs and targets; got {type(pair).__name__}.")
            inputs, targets = pair
            value = loss(model(inputs.to(device)), targets.to(device))
            total, count = total + _as_float(value, "loss must return") * len(targets), count + len(targets)
        if not count:
            raise InputError("batches must hold an example each time it is asked; got none. Pass a list or a loader.")
        return total / count

    metric.better = "min"  # type: ignore[attr-defined]
    return metric


def _as_float(value: Any, what: str) -> float:
    """Give a number as a float, also one that is in a tensor or an array by itself, and one that is none (NaN)."""
    if isinstance(value, (Tensor, np.ndarray)) and math.prod(value.shape) == 1 and not getattr(value, "is_meta", 0):
        value = value.item()
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise InputError(f"{what} a real number; got {type(value).__name__}.")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value == abs(value) else -math.inf


def _arguments_of(metric: Callable[..., Any]) -> int:
    """Count the arguments a metric must have, the model or none: those with a default are the user's own."""
    try:
        parameters = inspect.signature(metric).parameters.values()
    except (TypeError, ValueError):  # it is compiled and does not tell
        return 0
    positional = [x for x in parameters if x.kind in (x.POSITIONAL_ONLY, x.POSITIONAL_OR_KEYWORD)]
    needed = sum(x.default is x.empty for x in positional)
    keywords = [x.name for x in parameters if x.kind is x.KEYWORD_ONLY and x.default is x.empty]
    if needed > 1 or keywords:
        raise InputError(
            f"metric must be callable with the model or with nothing; got one that needs {needed + len(keywords)} "
            f"arguments. Bind the others by functools.partial."
        )
    open_ended = not positional and any(x.kind is x.VAR_POSITIONAL for x in parameters)
    return 1 if needed or open_ended else 0
