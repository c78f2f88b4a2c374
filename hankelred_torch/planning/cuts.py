"""The one record of a cut, from the decision to the history: `LayerCut` of every layer in a `Plan` of all of them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from hankelred.checks import Array, check_flag, check_integer, check_number, check_type
from hankelred.errors import OrderError
from hankelred.markup import html_table
from hankelred.systems.files import write_atomically

from ..config import CompressionConfig
from ..errors import reading


@dataclass(frozen=True, eq=False)
class LayerCut:
    """One layer in one decision: what it has, what it is to keep or has kept, and why.

    Attributes
    ----------
    layer : str
        Module name.
    n : int
        States it stored before.
    states : int
        States it stores afterwards; n where it is left alone; of a cut that was rolled back, those it had tried.
    order : int
        Hankel singular values kept: a stored complex state of a layer with real output counts twice. Of a bank of
        systems, the most that one of them keeps.
    kept_energy : float
        Share of the sum of Hankel singular values that is kept.
    error_bound : float
        Bound on the H-infinity norm of the difference between the layer before and the layer as it is stored
        afterwards, rounding to its dtype included, in units of output per unit of input; 0 where nothing is cut,
        infinite where a cut goes by data, which bounds nothing for others.
    hsv : (k,) ndarray
        Hankel singular values before the cut, decreasing, in the same units; of a bank, at every place the largest of
        its systems. Of a selective layer, what stands in for them; empty where it could not be told.
    rounding : float
        Part of the bound that rounding to the dtype of the layer has.
    reason : str
        Why the layer is left alone, or why the order is not the one asked for; empty otherwise.
    method : str
        How the states become fewer: of a selective layer "rotation", "folded selection" or "selection"; of a
        time-invariant one that was weighed by data "sampled balanced truncation"; else empty, balanced truncation.
    output_error : float or None
        Root mean square change that the cut makes to the output of the layer, relative to it, measured on a batch where
        the cut went by data.
    step : int
        Optimizer steps made so far, where a compressor or tracker made the record; else 0.
    seconds, analysis_seconds : float
        Wall-clock time of the whole attempt, all layers, without that of the guard's metric; and the part of it that
        went into measuring and deciding.
    metric : dict of str to float
        What the guard's metric was ``before`` and ``after`` the cut and, after a settling time, ``settled``.
    rolled_back : bool
        Whether the cut was undone.
    drift, fixed_drift : float or None
        Two bounds on how far training has moved a value since the last measurement of a `Tracker`: the Hankel norm of
        the difference, and what rounding may add; and in the coordinates of the layer, for equal orders only. Of a
        bank, the largest.
    moved : float or None
        How far the value that moved most has moved.
    certified_orders : list of int or None
        All orders whose cut no value can have crossed since the last measurement, because the gap there is more than
        twice the drift; of a bank, those certified for each of its systems.
    matches : list of list of int, or None
        For every system of the layer, the place at which each value of the last measurement continues, counted from
        0, or -1; see `match_hsv`.
    state_bytes : (int, int) or None
        Memory that the states take between two steps of one sequence, before and after; None where it is not known.
    reduction : Reduction or tuple of them or StateMap or None
        The reduction behind a cut that is planned, which can measure its true error, one per system of a bank; not
        kept in files, nor of a time-invariant layer that is spread over ranks.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> record = ht.plan(ht.layers.LRU(channels=2, states=8), ht.CompressionConfig(order=4)).layers[""]
    >>> record.n, record.states, record.hsv.shape
    (8, 4, (16,))
    """

    layer: str
    n: int
    states: int
    order: int
    kept_energy: float
    error_bound: float
    hsv: Array = field(repr=False)
    reason: str = ""
    method: str = ""
    output_error: float | None = None
    rounding: float = 0.0
    step: int = 0
    seconds: float = 0.0
    analysis_seconds: float = 0.0
    metric: dict[str, float] | None = None
    rolled_back: bool = False
    drift: float | None = None
    fixed_drift: float | None = None
    moved: float | None = None
    certified_orders: list[int] | None = field(default=None, repr=False)
    matches: list[list[int]] | None = field(default=None, repr=False)
    state_bytes: tuple[int, int] | None = None
    reduction: Any = field(default=None, repr=False)
    _statistics: Any = field(default=None, repr=False)  # of the data it was planned by
    _values: Mapping[str, Array] = field(default_factory=dict, repr=False)  # the tensors it was planned for
    _written: Mapping[str, Array] = field(default_factory=dict, repr=False)  # those it is to have
    _dtypes: tuple[Any, ...] = field(default=(), repr=False)  # in which its rounding was bounded
    _mark: str = field(default="", repr=False)  # of the tensors, where they are not kept

    @property
    def cut(self) -> bool:
        """Whether the layer loses states, or has lost them."""
        return self.states < self.n and not self.rolled_back

    @property
    def states_now(self) -> int:
        """States the layer stores when all is done."""
        return self.n if self.rolled_back else self.states

    @property
    def drift_bound(self) -> float | None:
        """The smaller of both bounds on how far a value has moved; None without a comparison."""
        return min((x for x in (self.drift, self.fixed_drift) if x is not None), default=None)

    def keeps(self, order: int) -> bool | None:
        """Tell whether the first `order` values continue those of the last measurement, in any order.

        Parameters
        ----------
        order : int
            Values kept.

        Returns
        -------
        bool or None
            None where they were not matched. A match is the best guess, not a proof; `certified_orders` are proven.

        Raises
        ------
        OrderError
            If the layer has fewer values.
        """
        order = check_order(order, len(self.hsv))
        if self.matches is None:
            return None
        return all(0 <= place < order for match in self.matches for place in match[:order])

    def left_alone(self, reason: str) -> LayerCut:
        """Give the record of a layer that is not cut after all.

        Parameters
        ----------
        reason : str
            Why.

        Returns
        -------
        LayerCut
            With all its states.
        """
        whole: dict[str, Any] = {"states": self.n, "order": len(self.hsv), "kept_energy": 1.0, "error_bound": 0.0}
        whole["rounding"] = 0.0
        whole["state_bytes"] = self.state_bytes and (self.state_bytes[0], self.state_bytes[0])
        return replace(self, **whole, reason=reason, method="", output_error=None, reduction=None)

    def _with_bytes(self, of: Callable[[int], int]) -> LayerCut:
        """Give the record with the memory of its states, as a function of their number."""
        return replace(self, state_bytes=(of(self.n), of(self.states)) if of(self.n) else None)

    def _without_tensors(self) -> LayerCut:
        """Give the record without the reduction and what else belongs to a plan only.

        Returns
        -------
        LayerCut
            As histories keep it.
        """
        return replace(self, reduction=None, _statistics=None, _values={}, _written={}, _dtypes=(), _mark="")

    def to_dict(self) -> dict[str, Any]:
        """Give everything but the reduction as plain values, ready for strict JSON.

        Returns
        -------
        dict of str to object
            One entry per attribute; None for a number that is not finite.
        """
        found = {name: getattr(self, name) for name in _SAVED}
        return {name: _plain(x) for name, x in found.items()} | {"cut": self.cut}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> LayerCut:
        """Make a record of what `to_dict` gave.

        Parameters
        ----------
        record : mapping of str to object
            Entries that are no attributes are left out.

        Returns
        -------
        LayerCut
            Without its reduction.
        """
        with reading("record", "that of a layer, as from to_dict"):
            found = {name: x for name, x in record.items() if name in _SAVED}
            found["hsv"] = np.array([math.inf if x is None else x for x in found["hsv"]], dtype=np.float64)
            if found["error_bound"] is None:
                found["error_bound"] = math.inf
            if found.get("metric") is not None:
                found["metric"] = {key: math.nan if x is None else float(x) for key, x in found["metric"].items()}
            if found.get("state_bytes") is not None:
                found["state_bytes"] = tuple(check_integer(x, "state_bytes", least=0) for x in found["state_bytes"])
            for name in found.keys() & _CHECKS.keys():
                found[name] = _CHECKS[name](found[name], name)
            return cls(**found)


@dataclass(frozen=True, eq=False)
class Plan:
    """What is cut in every layer: decided by `plan`, printed as a table, carried out and given back by `compress_`.

    Attributes
    ----------
    layers : dict of str to LayerCut
        By module name.
    config : CompressionConfig
        The configuration behind it.
    step : int or None
        Optimizer step of the cut where an `InTrainingCompressor` made it.
    seconds : float
        Wall-clock time of analysis and surgery together, once carried out.
    parameters : tuple of int, or None
        Parameters of the whole model before and after, once carried out.
    state_bytes : tuple of int, or None
        Memory that the states of all layers take between two steps of one sequence, before and after.
    forward_seconds : tuple of float, or None
        Forward pass of the model on a batch of the training before and after, where the compressor has heard one.
    ema_restarted : tuple of str
        Layers whose averaged copy could not follow the cut and starts anew from the live layer.
    metric : dict of str to float
        Value of the metric before and after, where `compress_` was given one.
    trials : tuple of (int, float)
        What it tried: states of all layers together, and the metric; for `hankelred.plotting.plot_tradeoff`.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> _ = torch.manual_seed(0)
    >>> plan = ht.plan(torch.nn.Sequential(ht.layers.LRU(4, 16)), ht.CompressionConfig(order=8))
    >>> plan.sizes
    {'0': 8}
    """

    layers: dict[str, LayerCut]
    config: CompressionConfig
    step: int | None = None
    seconds: float = 0.0
    parameters: tuple[int, int] | None = None
    state_bytes: tuple[int, int] | None = None
    forward_seconds: tuple[float, float] | None = None
    ema_restarted: tuple[str, ...] = ()
    metric: dict[str, float] | None = None
    trials: tuple[tuple[int, float], ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """States every layer is to store, or stores now, by module name."""
        return {name: layer.states_now for name, layer in self.layers.items()}

    @property
    def is_cut(self) -> bool:
        """Whether any layer loses states."""
        return any(layer.cut for layer in self.layers.values())

    def to_dict(self) -> dict[str, Any]:
        """Give the plan as plain values, ready for strict JSON.

        Returns
        -------
        dict of str to object
            The settings, the totals, one entry per layer, and the versions of what computed them.
        """
        totals = {x.name: _plain(getattr(self, x.name)) for x in fields(self) if x.name not in ("layers", "config")}
        layers = [layer.to_dict() for layer in self.layers.values()]
        return {"config": self.config.to_dict(), **totals, "layers": layers, "versions": versions()}

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Give the plan as strict JSON, and write it to a file if one is named.

        Parameters
        ----------
        path : str or path-like, optional
            Where to; the file is whole at any moment.

        Returns
        -------
        str
            One object, as from `to_dict`.
        """
        return as_json(self.to_dict(), path)

    def scalars(self, prefix: str = "hankelred") -> dict[str, float]:
        """Give the figures of the plan for a logger.

        Parameters
        ----------
        prefix : str, default "hankelred"
            First part of every name.

        Returns
        -------
        dict of str to float
            ``prefix/layer/states``, ``.../kept_energy`` and ``.../error_bound``, or for selective layers
            ``.../output_error``; once carried out, ``prefix/parameters`` and ``prefix/seconds``.
        """
        found = {
            f"{prefix}/{name or 'model'}/{figure}": float(x)
            for name, layer in self.layers.items()
            for figure in ("states", "kept_energy", "error_bound", "output_error")
            if (x := getattr(layer, figure)) is not None and np.isfinite(x)
        }
        if self.parameters is not None:
            found |= {f"{prefix}/parameters": float(self.parameters[1]), f"{prefix}/seconds": self.seconds}
        return found

    def __str__(self) -> str:
        """Print the plan as a table, one line per layer, and a line of totals."""
        return "\n".join([columns([_HEADER, *map(_row, self.layers.values())]), *self._totals()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the same as a table for notebooks."""
        return html_table(map(_row, self.layers.values()), _HEADER, "\n".join(["Plan", *self._totals()]))

    def _totals(self) -> list[str]:
        """Return lines about all layers together."""
        totals = [] if self.step is None else [f"step {self.step}"]
        if self.parameters is not None:
            totals.append("parameters {} -> {}".format(*self.parameters))
            if self.state_bytes is not None:
                totals.append("states {} -> {} bytes per sequence".format(*self.state_bytes))
            totals.append(f"{self.seconds:.2f} s")
        if self.forward_seconds is not None:
            totals.append("forward pass {:.3g} -> {:.3g} s".format(*self.forward_seconds))
        if self.metric is not None:
            totals.append("metric " + " -> ".join(f"{x:.4g}" for x in self.metric.values()))
        lines = [", ".join(totals)]
        if self.ema_restarted:
            lines.append(f"averages that start anew: {', '.join(self.ema_restarted)}")
        return [line for line in lines if line]


def check_order(order: Any, fewest: int) -> int:
    """Give an order from 1 to the fewest values measured as an int."""
    if isinstance(order, (bool, np.bool_)) or not isinstance(order, (int, np.integer)) or not 1 <= order <= fewest:
        raise OrderError(f"order must be an integer from 1 to {fewest}, the fewest hsv measured; got {order!r}.")
    return int(order)


def columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Lay rows of text out in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {"hankelred": version("hankelred"), "torch": torch.__version__, "numpy": np.__version__}


def as_json(content: Any, path: str | os.PathLike[str] | None) -> str:
    """Give plain values as strict JSON, and write it to a file if one is named."""
    text = json.dumps(content, indent=1, allow_nan=False)
    if path is not None:
        write_atomically(path, lambda file: file.write(text.encode("utf-8")))
    return text


def _figure(value: Any, name: str) -> float:
    """Give a number of a record, which may be infinite."""
    return math.inf if isinstance(value, float) and value == math.inf else check_number(value, name, least=0)


# What entries of a saved record are; the others are None where they were not measured.
_CHECKS: dict[str, Callable[[Any, str], Any]] = {"rolled_back": check_flag, "error_bound": _figure}
_CHECKS |= dict.fromkeys(("n", "states", "order", "step"), partial(check_integer, least=0))
_CHECKS |= dict.fromkeys(("kept_energy", "rounding", "seconds", "analysis_seconds"), _figure)
_CHECKS |= dict.fromkeys(("layer", "reason", "method"), partial(check_type, kind=str))
_SAVED = tuple(x.name for x in fields(LayerCut) if x.name != "reduction" and not x.name.startswith("_"))


def _plain(x: Any) -> Any:
    """Give plain values that strict JSON can hold."""
    if isinstance(x, np.ndarray):
        return _plain(x.tolist())
    if isinstance(x, Mapping):
        return {key: _plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(value) for value in x]
    if isinstance(x, (float, np.floating)):
        return float(x) if math.isfinite(x) else None
    return int(x) if isinstance(x, np.integer) else x


_HEADER = ("layer", "states", "kept hsv", "error bound", "")


def _row(layer: LayerCut) -> tuple[str, ...]:
    """Give one layer as the cells of a line."""
    cut = layer.states < layer.n
    bound = "none" if layer.method else f"{layer.error_bound:.3g}"
    measured = "" if layer.output_error is None else f"; measured {layer.output_error:.3g}"
    spread = getattr(layer.reduction, "spread", None)
    method = layer.method if spread is None else f"{layer.method}, rates spread by {spread:.0%} over channels"
    note = "; ".join(filter(None, (method, layer.reason)))
    states = f"{layer.n} -> {layer.states}" if cut else f"{layer.n}"
    return layer.layer or "(model)", states, f"{layer.kept_energy:.2%}", bound + measured if cut else "", note
