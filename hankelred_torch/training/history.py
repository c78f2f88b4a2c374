"""What a compressor measured and did in the course of training, for people, files, plots and loggers."""

from __future__ import annotations

import os
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from hankelred.checks import check_flag, check_items
from hankelred.errors import InputError
from hankelred.markup import html_table

from ..planning.cuts import LayerCut, as_json, check_order, columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class History(list[LayerCut]):
    """All records of a run, in order: one `LayerCut` per layer and attempt; prints as a table.

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

    def __eq__(self, other: object) -> bool:
        """Tell whether another history has the same figures."""
        return isinstance(other, History) and self.to_list() == other.to_list()

    def __repr__(self) -> str:
        """Print the latest record of every layer, and what the run has cut so far."""
        latest = {record.layer: record for record in self}
        first = {record.layer: record for record in reversed(self)}
        lines = [
            f"{name or '(model)'}: {first[name].n} -> {record.states_now} states at step {record.step}"
            + (f"; {record.reason}" if record.reason else "")
            for name, record in latest.items()
        ]
        cuts = sum(record.cut for record in self)
        return "\n".join([f"History of {len(self)} records, {cuts} cuts", *lines])

    __str__ = __repr__

    def to_list(self) -> list[dict[str, Any]]:
        """Give the records as plain values, ready for strict JSON.

        Returns
        -------
        list of dict
            One entry per record.
        """
        return [record.to_dict() for record in self]

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Give the records as strict JSON, and write it to a file if one is named.

        Parameters
        ----------
        path : str or path-like, optional
            Where to; the file is whole at any moment.

        Returns
        -------
        str
            An array with one object per record; null for what is not finite.
        """
        return as_json(self.to_list(), path)

    @classmethod
    def from_list(cls, records: list[dict[str, Any]]) -> History:
        """Make the history of what `to_list` gave.

        Parameters
        ----------
        records : list of dict
            One entry per record.

        Returns
        -------
        History
            Equal to the one they came from.
        """
        return cls([LayerCut.from_dict(record) for record in check_items(records, "records")])

    def table(self) -> str:
        """Lay the records out as a table for people.

        Returns
        -------
        str
            One line per record; columns that are empty all the way down are left out.
        """
        return columns(self._cells())

    def _repr_html_(self, caption: str = "") -> str:
        """Return the records as a table for notebooks."""
        header, *rows = self._cells()
        return html_table(rows, header, caption or repr(self).splitlines()[0])

    def _cells(self) -> list[tuple[str, ...]]:
        """Return the header and a row per record, without columns that are empty all the way down."""
        rows = [tuple(_HEADINGS)] + [_row(record) for record in self]
        used = [k for k in range(len(_HEADINGS)) if not self or any(row[k] for row in rows[1:])]
        return [tuple(row[k] for k in used) for row in rows]

    def scalars(self, prefix: str = "hankelred") -> dict[str, float]:
        """Give the latest figures of every layer for a logger.

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
            result[f"{name}/states"] = float(record.states_now)
            result[f"{name}/hsv_max"], result[f"{name}/hsv_sum"] = max(finite, default=0.0), float(sum(finite))
            result[f"{name}/kept_energy"] = record.kept_energy
            measured = {key: getattr(record, key) for key in _MEASURED}
            result |= {f"{name}/{key}": x for key, x in measured.items() if x is not None and np.isfinite(x)}
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
        proven = check_flag(proven, "proven")
        records = self._of_layer(layer)
        order = check_order(order, min(len(record.hsv) for record in records))
        compared = [
            (earlier.step, order in later.certified_orders if proven else later.keeps(order))
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
        from hankelred.plotting import CYCLE, as_axes

        self._require_records()
        ax = as_axes(ax)
        for k, layer in enumerate(dict.fromkeys(record.layer for record in self)):
            records = [record for record in self if record.layer == layer]
            colour = CYCLE[k % len(CYCLE)]
            steps = [x for record in records for x in (record.step, record.step)]
            states = [x for record in records for x in (record.n, record.states_now)]
            ax.plot(steps, states, color=colour, marker="o", markersize=4, label=layer or "model")
            undone = [(record.step, record.states) for record in records if record.rolled_back]
            if undone:
                ax.plot(*zip(*undone, strict=True), "x", color=colour, label=f"{layer or 'model'}, rolled back")
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
        OrderError
            If none of the measurements has so many values.
        """
        from hankelred.plotting import DROPPED, ERROR, KEPT, as_axes

        records = [record for record in self._of_layer(layer) if not record.rolled_back]
        ax = as_axes(ax)
        steps = [record.step for record in records]
        longest = max(len(record.hsv) for record in records)
        curves, bars = np.full((longest, len(records)), np.nan), np.full((longest, len(records)), np.nan)
        for k, record in enumerate(records):
            curves[: len(record.hsv), k] = record.hsv
            bars[:, k] = np.nan if record.drift_bound is None else record.drift_bound
        curves[~(curves > 0)] = np.nan  # no place on a logarithmic axis
        bars[~(bars < curves)] = np.nan
        kept = records[-1].order if order is None else check_order(order, longest)
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

    def plot_waterfall(self, layer: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw all Hankel singular values of a layer through training as an image: steps to the right, places down.

        Parameters
        ----------
        layer : str, optional
            Module name; may be left out where only one layer was measured.
        ax : matplotlib.axes.Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        matplotlib.axes.Axes
            The axes drawn into. A column is a measurement and lasts until the next; the colour is the value relative
            to the largest of its column, as a power of ten down to rounding; places that were cut off are empty.

        Raises
        ------
        InputError
            If the layer was not measured yet.
        """
        from hankelred.plotting import as_axes

        records = self._of_layer(layer)
        image = np.full((max(len(record.hsv) for record in records), len(records)), np.nan)
        for k, record in enumerate(records):
            values = np.array(record.hsv, dtype=float)
            largest = values[np.isfinite(values)].max(initial=0.0) or 1.0
            image[: len(values), k] = np.log10(np.clip(values / largest, np.finfo(np.float64).eps, 1.0))
        steps = [record.step for record in records]
        end = 2 * steps[-1] - steps[-2] if len(steps) > 1 else steps[-1] + 1  # as wide as the column before
        ax = as_axes(ax)
        mesh = ax.pcolormesh([*steps, end], np.arange(len(image) + 1) + 0.5, image, cmap="cividis")
        figure: Any = ax.figure
        figure.colorbar(mesh, ax=ax, label="log10 of hsv / largest")
        ax.set(xlabel="optimizer step", ylabel="place in the order", ylim=(len(image) + 0.5, 0.5))
        ax.set_title(records[0].layer or "model")
        return ax

    def _of_layer(self, layer: str | None) -> list[LayerCut]:
        """Return the measurements of one layer, the only one if it is not named."""
        self._require_records()
        names = list(dict.fromkeys(record.layer for record in self))
        known = ", ".join(map(repr, names))
        if layer is None and len(names) > 1:
            raise InputError(f"layer must be named where several were measured; got none of {known}.")
        if layer is not None and not (isinstance(layer, str) and layer in names):
            raise InputError(f"layer must be one that was measured ({known}); got {layer!r}.")
        return [record for record in self if record.layer == (names[0] if layer is None else layer)]

    def _require_records(self) -> None:
        if not self:
            raise InputError("history must hold a measurement to be drawn; got none. Train past the first attempt.")


_MEASURED = ("error_bound", "output_error", "drift", "moved")
_HEADINGS = "step layer states kept bound error drift metric seconds note".split()


def _row(record: LayerCut) -> tuple[str, ...]:
    """Give a record as the cells of a line."""
    tried = record.states < record.n
    bound = record.error_bound if tried and np.isfinite(record.error_bound) else None
    return (
        f"{record.step}",
        record.layer or "(model)",
        f"{record.n} -> {record.states}" if tried else f"{record.n}",
        f"{record.kept_energy:.2%}",
        *("" if x is None else f"{x:.3g}" for x in (bound, record.output_error, record.drift)),
        " -> ".join(f"{x:.4g}" for x in (record.metric or {}).values()),
        f"{record.seconds:.2g}",
        "; ".join(filter(None, (record.method, record.reason))),
    )
