"""What may be lost, and when: two frozen objects for every way of using the adapter, checked when they are made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar

from hankelred.checks import check_choice, check_flag, check_integer, check_items, check_number, check_type
from hankelred.errors import InputError

# The share of training in which the method was found to work, that of the learning rate's warm-up: Chahine, Nazari,
# Rus, Rusch, "The Curious Case of In-Training Compression of State Space Models", ICLR 2026, arXiv 2510.02823.
DEFAULT_WINDOW = 0.1

S = TypeVar("S", bound="_Settings")


class _Settings:
    """The way of settings to plain values and back."""

    def to_dict(self) -> dict[str, Any]:
        """Give the settings as plain values, ready for JSON.

        Returns
        -------
        dict of str to object
            One entry per field.
        """
        values = asdict(self)  # type: ignore[call-overload]
        return {name: list(x) if isinstance(x, tuple) else x for name, x in values.items()}

    @classmethod
    def from_dict(cls: type[S], values: Mapping[str, Any]) -> S:
        """Make settings of what `to_dict` gave, or of a file.

        Parameters
        ----------
        values : mapping of str to object
            Fields by name; those left out have their defaults.

        Returns
        -------
        CompressionConfig or Schedule
            Checked as usual.

        Raises
        ------
        InputError
            If a name is not a field, or a value is not what its field takes.
        """
        names = [x.name for x in fields(cls)]  # type: ignore[arg-type]
        check_type(values, "values", Mapping)  # type: ignore[type-abstract]
        unknown = sorted(map(str, set(values) - set(names)))
        if unknown:
            raise InputError(f"values must hold fields of {cls.__name__} ({', '.join(names)}); got {unknown}.")
        return cls(**values)

    def _set(self, **values: Any) -> None:
        """Put checked values, plain numbers all of them, in the place of what was given."""
        for name, value in values.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class CompressionConfig(_Settings):
    """What may be lost: criterion and limits of a cut.

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
        per unit of input. With ``weighting="sampled"``: the relative error of every layer's own output, measured on
        the samples, for which sizes are searched by bisection.
    min_order : int, default 1
        Fewest stored states a layer is cut to.
    min_cut : float, default 0.05
        A layer is cut only if it keeps fewer than ``(1 - min_cut)`` of its states.
    round_to : int, optional
        Ask for a multiple of this many states, rounded up; by default what the kernels of a layer ask for: 8 in Mamba-2
        and its relatives, else 1. The result can be smaller where a conjugate pair would be split, or where fewer
        states link inputs to outputs at all.
    budget : {"per_layer", "global"}, default "per_layer"
        Whether every layer meets `tau` or `max_error` by itself, or all layers together: states are then dropped where
        the predicted error is least.
    method : {"auto", "balanced_truncation", "rotation", "selection", "selection_without_fold"}, default "auto"
        How selective layers lose states: by a rotation of scaled states that goes into the projections, or by
        selection, with or without folding what kept states tell of dropped ones into the outputs. ``"auto"`` takes,
        layer by layer, what changes the output on a sample batch least of what the layer can represent. Time-invariant
        layers are truncated in balanced coordinates in any case.
    weighting : {"auto", "white", "sampled"}, default "auto"
        What errors of time-invariant layers are weighed by: ``"sampled"``, the inputs that they really get, in sample
        batches or in the steps of a training that are watched; ``"white"`` noise, the only one with an error bound.
        ``"auto"`` is sampled where data can be seen and `max_error` does not ask for a bound, otherwise white.
        Selective layers always go by data.
    refit : {"auto", True, False}, default "auto"
        Whether C, and D as far as the layer holds one, are fitted again to the outputs that a time-invariant layer
        had before it was reduced, on a sample batch, to the poles of the cut and to those of one that leaves to D what
        states answer to an input in its own step: True keeps the better fit where the outputs of the other half of the
        batch come closer than without; ``"auto"`` tries it where `compress_` has a metric to judge by, and not at all
        else.
    optimizer_state : {"transport", "reset"}, default "transport"
        What becomes of the averages an optimizer keeps: carried over by the change of basis, or started anew.
    target_modules : str or sequence of str, optional
        Layers that may be cut: a regular expression that matches a whole layer name, or names and their endings; all
        by default.
    exclude_modules : str or sequence of str, optional
        Layers of these that are left alone all the same, named likewise.

    Raises
    ------
    InputError
        If a value is of another type or out of its range.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> config = ht.CompressionConfig(tau=0.02, exclude_modules=["head"])
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
    weighting: Literal["auto", "white", "sampled"] = "auto"
    refit: Literal["auto"] | bool = "auto"
    optimizer_state: Literal["transport", "reset"] = "transport"
    target_modules: str | Sequence[str] | None = None
    exclude_modules: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Check every value once, here."""
        share = "It is a share: 0.05 is 5 %."
        self._set(
            tau=check_number(self.tau, "tau", least=0, below=1, hint=share),
            order=_checked_order(self.order),
            min_order=check_integer(self.min_order, "min_order", 1),
            min_cut=check_number(self.min_cut, "min_cut", least=0, below=1, hint=share),
            budget=check_choice(self.budget, "budget", ("per_layer", "global")),
            method=check_choice(self.method, "method", _METHODS),
            weighting=check_choice(self.weighting, "weighting", ("auto", "white", "sampled")),
            optimizer_state=check_choice(self.optimizer_state, "optimizer_state", ("transport", "reset")),
            target_modules=checked_modules(self.target_modules, "target_modules"),
            exclude_modules=checked_modules(self.exclude_modules, "exclude_modules"),
        )
        if self.fraction is not None:
            self._set(fraction=check_number(self.fraction, "fraction", least=0, below=1, hint=share))
            if self.fraction == 0:
                raise InputError("fraction must be above 0; got 0. 0.9 keeps 90 % of the states at a cut.")
        if self.max_error is not None:
            hint = "It bounds the H-infinity norm of an error."
            self._set(max_error=check_number(self.max_error, "max_error", least=0, hint=hint))
        if self.round_to is not None:
            self._set(round_to=check_integer(self.round_to, "round_to", 1))
        if not (isinstance(self.refit, str) and self.refit == "auto"):
            self._set(refit=check_flag(self.refit, "refit"))
        given = [name for name in ("order", "fraction", "max_error") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"At most one of order, fraction and max_error may be given; got {' and '.join(given)}.")
        if self.budget == "global" and given and given != ["max_error"]:
            raise InputError(
                f"budget must be 'per_layer' with a given {given[0]}; got 'global', which shares an error."
            )
        if self.budget == "global" and given and self.weighting == "sampled":
            raise InputError(
                "budget must be 'per_layer' with max_error and weighting='sampled', where each layer's own output is "
                "measured; got 'global'. Use tau, or weighting='white', whose bounds add up."
            )


@dataclass(frozen=True)
class Schedule(_Settings):
    """When layers are cut in a training: a window of optimizer steps, and attempts in it.

    Parameters
    ----------
    total_steps : int, optional
        Optimizer steps of the whole training.
    start_step : int, default 0
        Optimizer step at which the reduction window opens.
    end_step : int, optional
        Optimizer step at which it closes; by default at 10 % of `total_steps`.
    attempts : int, default 4
        Attempts in the window, at equal distances, the last at its end.
    max_tail : float, default 0.3
        Largest share of the sum of hsv that is dropped in one cut to meet a given `order` or `fraction`. A flat
        spectrum is a sign that training has not yet decided which states it needs.
    force : bool, default False
        Cut to a given `order` or `fraction` whatever the tail. A call of `plan` or `compress_` is that word already.

    Raises
    ------
    InputError
        If a value is of another type or out of its range, or the window is empty or ends after training.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> ht.Schedule(total_steps=10_000).attempt_steps()
    (250, 500, 750, 1000)
    """

    total_steps: int | None = None
    start_step: int = 0
    end_step: int | None = None
    attempts: int = 4
    max_tail: float = 0.3
    force: bool = False

    def __post_init__(self) -> None:
        """Check every value once, here."""
        for name in ("total_steps", "end_step"):
            if getattr(self, name) is not None:
                self._set(**{name: check_integer(getattr(self, name), name, 1)})
        self._set(
            start_step=check_integer(self.start_step, "start_step", 0),
            attempts=check_integer(self.attempts, "attempts", 1),
            max_tail=check_number(self.max_tail, "max_tail", least=0, most=1, hint="It is a share: 0.3 is 30 %."),
            force=check_flag(self.force, "force"),
        )
        end = self._end()
        if end is not None and end <= self.start_step:
            raise InputError(
                f"The reduction window must end after it starts; got start_step={self.start_step} and an end at {end}. "
                f"Lower start_step or pass a later end_step."
            )
        if end is not None and self.total_steps is not None and end > self.total_steps:
            raise InputError(f"end_step must be within the training; got {end} of {self.total_steps} steps.")

    def attempt_steps(self) -> tuple[int, ...]:
        """Optimizer steps, counted from 1, after which a compressor measures and perhaps cuts.

        Returns
        -------
        tuple of int
            `attempts` steps or, in a window that is shorter than that, fewer.

        Raises
        ------
        InputError
            If neither `end_step` nor `total_steps` is given.
        """
        end = self._end()
        if end is None:
            raise InputError(
                "One of end_step and total_steps must be given to place the reduction window; got neither. "
                "Pass total_steps, the optimizer steps of the training: the window is then its first 10 %."
            )
        length = end - self.start_step
        return tuple(sorted({self.start_step + -(-length * k // self.attempts) for k in range(1, self.attempts + 1)}))

    def _end(self) -> int | None:
        if self.end_step is not None or self.total_steps is None:
            return self.end_step
        return max(1, round(DEFAULT_WINDOW * self.total_steps))


_METHODS = ("auto", "balanced_truncation", "rotation", "selection", "selection_without_fold")


def _checked_order(order: Any) -> Any:
    """Give an order, or those of several layers, as plain integers."""
    if order is None:
        return None
    if not isinstance(order, Mapping):
        return check_integer(order, "order", 1, hint="It counts stored states; a mapping gives them by layer.")
    if not order or not all(isinstance(name, str) for name in order):
        raise InputError(f"order must be an integer, or name at least one layer by a string; got {dict(order)!r}.")
    return {name: check_integer(value, "order", 1) for name, value in order.items()}


def checked_modules(modules: Any, name: str) -> Any:
    """Give names of modules, or an expression for them that compiles."""
    if modules is None:
        return None
    if isinstance(modules, str):
        try:
            re.compile(modules)
        except re.error as error:
            raise InputError(f"{name} must be a regular expression or names; got {modules!r} ({error}).") from error
        return modules
    found = () if isinstance(modules, (bytes, Mapping)) else tuple(check_items(modules, name))
    if not found or not all(isinstance(each, str) for each in found):
        raise InputError(f"{name} must be a regular expression or a sequence of names; got {modules!r}.")
    return found


def is_named(name: str, modules: str | Sequence[str]) -> bool:
    """Tell whether modules, an expression or names and their endings, mean this one."""
    if isinstance(modules, str):
        return re.fullmatch(modules, name) is not None
    return any(name == each or name.endswith(f".{each}") for each in modules)
