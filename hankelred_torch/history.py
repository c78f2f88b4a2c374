"""What a compressor measured and did in the course of training, for people, files, plots and loggers."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from itertools import pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hankelred.errors import InputError, OrderError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Measurement:
    """One layer at one attempt: what was measured, what was decided and why.

    Attributes
    ----------
    step : int
        Optimizer steps made so far.
    layer : str
        Module name.
    n : int
        States stored before.
    states : int
        States stored afterwards; of a cut that was rolled back, those it had tried.
    order : int
        Hankel singular values kept.
    kept_energy : float
        Share of their sum that is kept.
    error_bound : float or None
        Bound on the H-infinity norm of the difference the cut made; 0 without a cut, None for a selective layer.
    hsv : list of float
        All Hankel singular values before the cut, decreasing.
    cut : bool
        Whether the layer lost states.
    reason : str
        Why it did not, or why the order is not the one asked for; empty otherwise.
    seconds : float
        Wall-clock time of the whole attempt, all layers; without that of the guard's metric.
    analysis_seconds : float
        Part of it that went into measuring and deciding.
    drift : float or None
        Hankel norm of what training changed since the last measurement, and what rounding may add: no hsv has moved by
        more. Of a bank, the largest. A `Tracker` notes it from its second measurement on.
    metric : dict of str to float
        What the guard's metric was ``before`` and ``after`` the cut and, after a settling time, ``settled``.
    rolled_back : bool
        Whether the cut was undone.
    method : str
        How the states of a selective layer became fewer, as in its plan; empty otherwise.
    output_error : float or None
        Relative change of the output of a selective layer on the first of the sample batches; None otherwise.
    fixed_drift : float or None
        A second bound on the same movement, in the coordinates of the layer, for equal orders only; see
        `hsv_drift_bound`.
    moved : float or None
        How far the hsv that moved most has moved.
    certified_orders : list of int or None
        All orders, in hsv, whose cut no value can have crossed since the last measurement, because the gap there is
        more than twice the drift; of a bank, those certified for each of its systems. A `Tracker` notes them.
    matches : list of list of int, or None
        For every system of the layer, the place at which each hsv of the last measurement continues, counted from 0,
        or -1; see `match_hsv`. Noted by a `Tracker`.
    """

    step: int
    layer: str
    n: int
    states: int
    order: int
    kept_energy: float
    error_bound: float | None
    hsv: list[float]
    cut: bool
    reason: str
    seconds: float
    analysis_seconds: float = 0.0
    drift: float | None = None
    metric: dict[str, float] | None = None
    rolled_back: bool = False
    method: str = ""
    output_error: float | None = None
    fixed_drift: float | None = None
    moved: float | None = None
    certified_orders: list[int] | None = None
    matches: list[list[int]] | None = None

    @property
    def drift_bound(self) -> float | None:
        """The smaller of both bounds on how far an hsv has moved; None without a comparison."""
        return min((x for x in (self.drift, self.fixed_drift) if x is not None), default=None)

    def keeps(self, order: int) -> bool | None:
        """Tell whether the first `order` hsv continue those of the last measurement, in any order among themselves.

        Parameters
        ----------
        order : int
            Values kept.

        Returns
        -------
        bool or None
            None where they were not matched. A match is the best guess, not a proof; `certified_orders` are proven.
        """
        if self.matches is None:
            return None
        return all(0 <= place < order for match in self.matches for place in match[:order])


class History(list[Measurement]):
    """All measurements of a run, in order; a list that knows its way to a table, JSON, plots and loggers.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> _ = torch.manual_seed(0)
    >>> layer = ht.layers.LRU(channels=2, states=8)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    >>> config, schedule = ht.CompressionConfig(fraction=0.5), ht.Schedule(end_step=2, attempts=2, force=True)
    >>> compressor = ht.InTrainingCompressor(layer, optimizer, config, schedule)
    >>> reports = [compressor.step() for _ in range(2)]
    >>> [(record.step, record.n, record.states) for record in compressor.history]
    [(1, 8, 4), (2, 4, 2)]
    """

    def to_list(self) -> list[dict[str, Any]]:
        """Return the measurements as plain values, ready for JSON.

        Returns
        -------
        list of dict
            One entry per measurement.
        """
        return [asdict(measurement) for measurement in self]

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the measurements as JSON, and write it to a file if one is named.

        Parameters
        ----------
        path : str or path-like, optional
            Where to write it.

        Returns
        -------
        str
            An array with one object per measurement.
        """
        text = json.dumps(self.to_list(), indent=1)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    @classmethod
    def from_list(cls, records: list[dict[str, Any]]) -> History:
        """Return the history of what `to_list` returned.

        Parameters
        ----------
        records : list of dict
            One entry per measurement.

        Returns
        -------
        History
            Equal to the one they came from.
        """
        names = {x.name for x in fields(Measurement)}
        return cls(Measurement(**{key: x for key, x in record.items() if key in names}) for record in records)

    def table(self) -> str:
        """Return the measurements as a table for people.

        Returns
        -------
        str
            One line per measurement; columns that are empty all the way down are left out.
        """
        rows = [tuple(_HEADINGS)] + [_row(measurement) for measurement in self]
        used = [k for k in range(len(_HEADINGS)) if not self or any(row[k] for row in rows[1:])]
        widths = [max(len(row[k]) for row in rows) for k in used]
        lines = ("  ".join(row[k].ljust(width) for k, width in zip(used, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)

    def scalars(self, prefix: str = "hankelred") -> dict[str, float]:
        """Return the latest figures of every layer for a logger.

        Parameters
        ----------
        prefix : str, default "hankelred"
            First part of every name.

        Returns
        -------
        dict of str to float
            ``prefix/layer/states``, ``.../hsv_max``, ``.../hsv_sum``, ``.../kept_energy``, ``.../error_bound`` and,
            where measured, ``.../output_error``, ``.../drift`` and ``.../moved``; ``prefix/cuts`` and
            ``prefix/seconds`` of the run so far.
        """
        result = {}
        for record in {record.layer: record for record in self}.values():  # the last one of each layer
            name = f"{prefix}/{record.layer or 'model'}"
            finite = [x for x in record.hsv if np.isfinite(x)]
            result[f"{name}/states"] = float(_states_now(record))
            result[f"{name}/hsv_max"], result[f"{name}/hsv_sum"] = max(finite, default=0.0), float(sum(finite))
            result[f"{name}/kept_energy"] = record.kept_energy
            measured = {key: getattr(record, key) for key in _MEASURED}
            result |= {f"{name}/{key}": value for key, value in measured.items() if value is not None}
        result[f"{prefix}/cuts"] = float(sum(record.cut for record in self))
        # the layers of one attempt share its time
        result[f"{prefix}/seconds"] = float(sum(seconds for _, seconds in {(x.step, x.seconds) for x in self}))
        return result

    def settled(self, order: int, layer: str | None = None, *, proven: bool = False) -> int | None:
        """Find the first step after which what an order keeps never changed.

        What is kept are the subspaces of the first hsv, not coordinates: training may turn them, and values may change
        places among themselves. What cuts do to a layer is not compared, only what training does between measurements.

        Parameters
        ----------
        order : int
            Hankel singular values kept; a stored complex state of a layer with real output counts twice.
        layer : str, optional
            Module name; may be left out where only one layer was measured.
        proven : bool, default False
            Ask for certificates instead of matches: no hsv can have crossed the cut, whatever happened in between.

        Returns
        -------
        int or None
            Step of the first measurement from which on every later one kept the set; None if the last did not.

        Raises
        ------
        InputError
            If the layer was not measured, or no two measurements of it were compared.
        OrderError
            If the layer has fewer hsv than `order`.

        Examples
        --------
        >>> import hankelred_torch as ht
        >>> history = ht.Tracker(ht.layers.LRU(channels=2, states=8), every=1).history
        >>> history.settled(4)
        Traceback (most recent call last):
        ...
        hankelred.errors.InputError: history must hold two measurements of '' ...
        """
        records = self._of_layer(layer)
        fewest = min(len(record.hsv) for record in records)
        if isinstance(order, bool) or not isinstance(order, (int, np.integer)) or not 1 <= order <= fewest:
            raise OrderError(f"order must be an integer from 1 to {fewest}, the fewest hsv measured; got {order!r}.")
        compared = [
            (earlier.step, order in later.certified_orders if proven else later.keeps(int(order)))
            for earlier, later in pairwise(records)
            if later.certified_orders is not None and (proven or later.matches is not None)
        ]
        if not compared:
            raise InputError(
                f"history must hold two measurements of {records[0].layer!r} that were compared; got none. "
                f"Use a Tracker for longer."
            )
        steps = [step for step, _ in takewhile(lambda pair: pair[1], reversed(compared))]
        return steps[-1] if steps else None

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the states of every layer over the steps.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        matplotlib.axes.Axes
            The axes drawn into; cuts that were rolled back are crosses.

        Raises
        ------
        InputError
            If nothing was measured yet.
        """
        from hankelred.plotting import new_axes

        self._require_records()
        ax = ax or new_axes(1)[0]
        for k, layer in enumerate(dict.fromkeys(record.layer for record in self)):
            records = [record for record in self if record.layer == layer]
            steps = [x for record in records for x in (record.step, record.step)]
            states = [x for record in records for x in (record.n, _states_now(record))]
            ax.plot(steps, states, color=f"C{k}", marker="o", markersize=4, label=layer or "model")
            undone = [(record.step, record.states) for record in records if record.rolled_back]
            if undone:
                ax.plot(*zip(*undone, strict=True), "x", color=f"C{k}", label=f"{layer or 'model'}, rolled back")
        ax.set(xlabel="optimizer step", ylabel="stored states", ylim=(0, None))
        ax.legend()
        return ax

    def plot_hsv(self, layer: str | None = None, ax: Axes | None = None, order: int | None = None) -> Axes:
        """Draw the Hankel singular values of a layer over the steps, on a logarithmic axis.

        Parameters
        ----------
        layer : str, optional
            Module name; may be left out where only one layer was measured.
        ax : matplotlib.axes.Axes, optional
            Where to draw; a new figure by default.
        order : int, optional
            Values to show as kept; by default what the last measurement kept.

        Returns
        -------
        matplotlib.axes.Axes
            The axes drawn into: one line per place in the order, gray from where it is cut off. Where measurements were
            compared, error bars say how far each value can have come since the last one, unless that is more than
            itself; and wherever the order was certified, a dashed line runs through the gap that nothing has crossed.

        Raises
        ------
        InputError
            If the layer was not measured yet.
        """
        from hankelred.plotting import DROPPED, ERROR, KEPT, new_axes

        records = [record for record in self._of_layer(layer) if not record.rolled_back]
        ax = ax or new_axes(1)[0]
        steps = [record.step for record in records]
        longest = max(len(record.hsv) for record in records)
        curves, bars = np.full((longest, len(records)), np.nan), np.full((longest, len(records)), np.nan)
        for k, record in enumerate(records):
            curves[: len(record.hsv), k] = record.hsv
            bars[:, k] = np.nan if record.drift_bound is None else record.drift_bound
        curves[~(curves > 0)] = np.nan  # no place on a logarithmic axis
        bars[~(bars < curves)] = np.nan
        kept = records[-1].order if order is None else order
        for place, (curve, bar) in enumerate(zip(curves, bars, strict=True)):
            style: dict[str, Any] = {"color": KEPT if place < kept else DROPPED, "linewidth": 0.8, "markersize": 3}
            ax.plot(steps, curve, ".-", **style)
            if np.isfinite(bar).any():
                ax.errorbar(steps, curve, bar, fmt="none", ecolor=style["color"], elinewidth=0.8)
        label = f"order {kept} certified"
        for k, (earlier, later) in enumerate(pairwise(records)):
            if later.certified_orders is not None and kept in later.certified_orders and kept < longest:
                middle = np.sqrt(curves[kept - 1, k : k + 2] * curves[kept, k : k + 2])
                ax.plot([earlier.step, later.step], middle, "--", color=ERROR, linewidth=1.2, label=label)
                label = "_"  # one entry in the legend
        if label == "_":
            ax.legend()
        title = records[0].layer or "model"
        ax.set(xlabel="optimizer step", ylabel="Hankel singular value (y per u)", yscale="log", title=title)
        return ax

    def _of_layer(self, layer: str | None) -> list[Measurement]:
        """Return the measurements of one layer, the only one if it is not named."""
        self._require_records()
        names = list(dict.fromkeys(record.layer for record in self))
        known = ", ".join(map(repr, names))
        if layer is None and len(names) > 1:
            raise InputError(f"layer must be named where several were measured; got none of {known}.")
        if layer is not None and layer not in names:
            raise InputError(f"layer must be one that was measured ({known}); got {layer!r}.")
        return [record for record in self if record.layer == (names[0] if layer is None else layer)]

    def _require_records(self) -> None:
        if not self:
            raise InputError("history must hold a measurement to be drawn; got none. Train past the first attempt.")


def _states_now(record: Measurement) -> int:
    """Return the states the layer stores after a measurement."""
    return record.n if record.rolled_back else record.states


_MEASURED = ("error_bound", "output_error", "drift", "moved")
_HEADINGS = "step layer states kept bound drift metric seconds note".split()


def _row(record: Measurement) -> tuple[str, ...]:
    """Return a measurement as the cells of a line."""
    states = f"{record.n} -> {record.states}" if record.states < record.n else f"{record.n}"
    metric = " -> ".join(f"{x:.4g}" for x in (record.metric or {}).values())
    drift = f"{record.drift:.3g}" if record.drift is not None else ""
    bound = f"{record.error_bound:.3g}" if record.states < record.n and record.error_bound is not None else ""
    return (
        f"{record.step}",
        record.layer or "(model)",
        states,
        f"{record.kept_energy:.2%}",
        bound,
        drift,
        metric,
        f"{record.seconds:.2g}",
        record.reason,
    )
