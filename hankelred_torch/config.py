"""What may be cut, by which criterion and when: one frozen configuration for every way of using the adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np

from hankelred.errors import InputError

# The share of training in which the method was found to work, that of the learning rate's warm-up: Chahine, Nazari,
# Rus, Rusch, "The Curious Case of In-Training Compression of State Space Models", ICLR 2026, arXiv 2510.02823.
DEFAULT_WINDOW = 0.1


@dataclass(frozen=True)
class CompressionConfig:
    """What may be cut, by which criterion and when.

    Parameters
    ----------
    tau : float, default 0.05
        Share of the sum of Hankel singular values that may be lost: the least order is kept whose values carry
        ``1 - tau`` of it. Not used where `order`, `fraction` or `max_error` is given.
    order : int or mapping of str to int, optional
        Stored states to keep, for every layer or by layer name; layers that a mapping does not name are left alone.
        `InTrainingCompressor` gets there in equal ratios, one for each attempt.
    fraction : float, optional
        Share of its stored states that a layer keeps at every cut, whatever its Hankel singular values.
    max_error : float, optional
        Error budget of a cut: the least order whose bound on the H-infinity error is within it, in units of output
        per unit of input.
    min_order : int, default 1
        Fewest stored states a layer is cut to.
    min_cut : float, default 0.05
        A layer is cut only if it keeps fewer than ``(1 - min_cut)`` of its states.
    round_to : int, optional
        Ask for a multiple of this many states, rounded up; by default what the kernels of a layer ask for: 8 in Mamba-2
        and its relatives, else 1. The result can be smaller where a conjugate pair would be split, or where fewer
        states link inputs to outputs at all.
    budget : {"per_layer", "global"}, default "per_layer"
        Whether every layer meets the criterion by itself, or all layers together: states are then dropped where the
        predicted error is least.
    method : {"auto", "balanced_truncation", "rotation", "selection", "selection_without_fold"}, default "auto"
        How selective layers lose states: by a rotation of scaled states that goes into the projections, or by
        selection, with or without folding what kept states tell of dropped ones into the outputs. ``"auto"`` takes,
        layer by layer, what changes the output on a sample batch least of what the layer can represent. Time-invariant
        layers are truncated in balanced coordinates in any case.
    start_step : int, default 0
        Optimizer step at which the reduction window opens.
    end_step : int, optional
        Optimizer step at which it closes; by default at 10 % of `total_steps`.
    total_steps : int, optional
        Optimizer steps of the whole training.
    attempts : int, default 4
        Measurements in the window, at equal distances, the last at its end.
    interval : int, optional
        Measure every so many steps of the window instead.
    certify : bool, default False
        Let `InTrainingCompressor` cut a layer only when its hsv are settled: when the gap at the cut is more than twice
        the Hankel norm of what training changed since the last measurement, so that no hsv can have crossed the cut
        meanwhile. The first measurement has nothing to compare with; the last of the window cuts in any case.
    max_tail : float, default 0.3
        Largest share of the sum of hsv that `InTrainingCompressor` drops in one cut to meet a given `order` or
        `fraction`. A flat spectrum is a sign that training has not yet decided which states it needs.
    force : bool, default False
        Cut to a given `order` or `fraction` whatever the tail. A call of `plan` or `compress_` is that word already.
    measure : bool, default False
        Measure the true H-infinity error of every cut and the drift since the last measurement, for the history of
        `InTrainingCompressor`: several times the work of an attempt.
    optimizer_state : {"transport", "reset"}, default "transport"
        What becomes of the averages an optimizer keeps: carried over by the change of basis, or started anew.
    lr_rewarm_steps : int, default 0
        Steps after a cut in which learning rates rise linearly from near 0 to what the schedule says.
    target_modules : str or sequence of str, optional
        Layers that may be cut: a regular expression that matches a whole layer name, or names and their endings; all
        by default.

    Raises
    ------
    InputError
        If a value is out of its range.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> config = ht.CompressionConfig(tau=0.02, total_steps=10_000)
    >>> config.attempt_steps()
    (250, 500, 750, 1000)
    >>> ht.CompressionConfig.from_dict(config.to_dict()) == config
    True
    """

    tau: float = 0.05
    order: int | Mapping[str, int] | None = None
    fraction: float | None = None
    max_error: float | None = None
    min_order: int = 1
    min_cut: float = 0.05
    round_to: int | None = None
    budget: Literal["per_layer", "global"] = "per_layer"
    method: Literal["auto", "balanced_truncation", "rotation", "selection", "selection_without_fold"] = "auto"
    start_step: int = 0
    end_step: int | None = None
    total_steps: int | None = None
    attempts: int = 4
    interval: int | None = None
    certify: bool = False
    max_tail: float = 0.3
    force: bool = False
    measure: bool = False
    optimizer_state: Literal["transport", "reset"] = "transport"
    lr_rewarm_steps: int = 0
    target_modules: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Check every value once, here."""
        for name in ("tau", "min_cut"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be a share from 0 to below 1; got {getattr(self, name)}. 0.05 is 5 %.")
        if not 0 <= self.max_tail <= 1:
            raise InputError(f"max_tail must be a share from 0 to 1; got {self.max_tail}. Write 0.3 for 30 %.")
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise InputError(f"fraction must be a share between 0 and 1; got {self.fraction}. 0.9 keeps 90 % at a cut.")
        if self.max_error is not None and not self.max_error >= 0:
            raise InputError(
                f"max_error must be a gain from 0 up; got {self.max_error}. It bounds the H-infinity error."
            )
        given = [name for name in ("order", "fraction", "max_error") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"At most one of order, fraction and max_error may be given; got {' and '.join(given)}.")
        for name in ("min_order", "attempts"):
            _check_integer(name, getattr(self, name), 1)
        for name in ("start_step", "lr_rewarm_steps"):
            _check_integer(name, getattr(self, name), 0)
        for name in ("round_to", "end_step", "total_steps", "interval"):
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), 1)
        for order in self.order.values() if isinstance(self.order, Mapping) else [self.order]:
            if order is not None:
                _check_integer("order", order, 1)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}.")
        if isinstance(self.order, Mapping):
            object.__setattr__(self, "order", dict(self.order))
        if self.target_modules is not None and not isinstance(self.target_modules, str):
            object.__setattr__(self, "target_modules", tuple(self.target_modules))

    def attempt_steps(self) -> tuple[int, ...]:
        """Return the optimizer steps, counted from 1, after which to measure and perhaps cut.

        Returns
        -------
        tuple of int
            `attempts` steps or, in a window that short, fewer; with `interval` as many as fit the window.

        Raises
        ------
        InputError
            If neither `end_step` nor `total_steps` is given, the window is empty, or `interval` exceeds it.
        """
        end = self.end_step
        if end is None:
            if self.total_steps is None:
                raise InputError(
                    "One of end_step and total_steps must be given to place the reduction window; got neither. "
                    "Pass total_steps, the optimizer steps of the training: the window is then its first 10 %."
                )
            end = max(1, round(DEFAULT_WINDOW * self.total_steps))
        if end <= self.start_step:
            raise InputError(
                f"The reduction window must end after it starts; got start_step={self.start_step} and an end at {end}. "
                f"Lower start_step or pass a later end_step."
            )
        length = end - self.start_step
        if self.interval is not None:
            if self.interval > length:
                raise InputError(
                    f"interval must fit the reduction window; got interval={self.interval} and {length} steps. "
                    f"Lower interval or pass a later end_step."
                )
            return tuple(range(self.start_step + self.interval, end + 1, self.interval))
        ends = {self.start_step + -(-length * k // self.attempts) for k in range(1, self.attempts + 1)}
        return tuple(sorted(ends))

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain values, ready for JSON.

        Returns
        -------
        dict of str to object
            One entry per field.
        """
        values = asdict(self)
        if isinstance(self.target_modules, tuple):
            values["target_modules"] = list(self.target_modules)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CompressionConfig:
        """Make a configuration of what `to_dict` returned.

        Parameters
        ----------
        values : mapping of str to object
            Fields by name; those left out have their defaults.

        Returns
        -------
        CompressionConfig
            Checked as usual.

        Raises
        ------
        InputError
            If a name is not a field.
        """
        names = [x.name for x in fields(cls)]
        unknown = sorted(set(values) - set(names))
        if unknown:
            raise InputError(f"values must hold fields of CompressionConfig ({', '.join(names)}); got {unknown}.")
        return cls(**values)


_CHOICES = {
    "budget": ("per_layer", "global"),
    "method": ("auto", "balanced_truncation", "rotation", "selection", "selection_without_fold"),
    "optimizer_state": ("transport", "reset"),
}


def _check_integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(f"{name} must be an integer from {least} up; got {value!r}.")
