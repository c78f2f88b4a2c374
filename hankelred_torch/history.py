"""What a compressor measured and did in the course of training, for people, files, plots and loggers."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hankelred.errors import InputError

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
    error : float or None
        H-infinity norm of the difference the cut made, where the configuration asks to measure it.
    drift : float or None
        Hankel norm of what training changed since the last measurement: no hsv has moved by more. None at the first
        measurement, for selective layers, and where the configuration asks neither to measure nor to certify.
    gap : float or None
        Distance of the hsv on both sides of the cut, None without a cut or where nothing is dropped. If it exceeds
        twice the drift, no hsv has crossed the cut since the last measurement.
    metric : dict of str to float
        What the guard's metric was ``before`` and ``after`` the cut and, after a settling time, ``settled``.
    rolled_back : bool
        Whether the cut was undone.
    method : str
        How the states of a selective layer became fewer, as in its plan; empty otherwise.
    output_error : float or None
        Relative change of the output of a selective layer on the first of the sample batches; None otherwise.
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
    error: float | None = None
    drift: float | None = None
    gap: float | None = None
    metric: dict[str, float] | None = None
    rolled_back: bool = False
    method: str = ""
    output_error: float | None = None


class History(list[Measurement]):
    """All measurements of a run, in order; a list that knows its way to a table, JSON, plots and loggers.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> _ = torch.manual_seed(0)
    >>> layer = ht.layers.LRU(channels=2, states=8)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    >>> config = ht.CompressionConfig(fraction=0.5, end_step=2, attempts=2, force=True)
    >>> compressor = ht.InTrainingCompressor(layer, optimizer, config)
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
            where measured, ``.../error`` and ``.../drift``; ``prefix/cuts`` and ``prefix/seconds`` of the run so far.
        """
        result = {}
        for record in {record.layer: record for record in self}.values():  # the last one of each layer
            name = f"{prefix}/{record.layer or 'model'}"
            finite = [x for x in record.hsv if np.isfinite(x)]
            result[f"{name}/states"] = float(_states_now(record))
            result[f"{name}/hsv_max"], result[f"{name}/hsv_sum"] = max(finite, default=0.0), float(sum(finite))
            result[f"{name}/kept_energy"] = record.kept_energy
            measured = {key: getattr(record, key) for key in ("error_bound", "error", "output_error", "drift")}
            result |= {f"{name}/{key}": value for key, value in measured.items() if value is not None}
        result[f"{prefix}/cuts"] = float(sum(record.cut for record in self))
        # the layers of one attempt share its time
        result[f"{prefix}/seconds"] = float(sum(seconds for _, seconds in {(x.step, x.seconds) for x in self}))
        return result

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

    def plot_hsv(self, layer: str, ax: Axes | None = None) -> Axes:
        """Draw the Hankel singular values of a layer over the steps, on a logarithmic axis.

        Parameters
        ----------
        layer : str
            Module name.
        ax : matplotlib.axes.Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        matplotlib.axes.Axes
            The axes drawn into: one line per place in the order, gray from where it is cut off.

        Raises
        ------
        InputError
            If the layer was not measured yet.
        """
        from hankelred.plotting import DROPPED, KEPT, new_axes

        records = [record for record in self if record.layer == layer and not record.rolled_back]
        if not records:
            self._require_records()
            known = ", ".join(repr(x) for x in dict.fromkeys(record.layer for record in self))
            raise InputError(f"layer must be one that was measured ({known}); got {layer!r}.")
        ax = ax or new_axes(1)[0]
        steps = [record.step for record in records]
        longest = max(len(record.hsv) for record in records)
        curves = np.full((longest, len(records)), np.nan)
        for k, record in enumerate(records):
            curves[: len(record.hsv), k] = record.hsv
        curves[~(curves > 0)] = np.nan  # no place on a logarithmic axis
        kept = records[-1].order
        for place, curve in enumerate(curves):
            ax.plot(steps, curve, ".-", color=KEPT if place < kept else DROPPED, linewidth=0.8, markersize=3)
        ax.set(xlabel="optimizer step", ylabel="Hankel singular value (y per u)", yscale="log", title=layer or "model")
        return ax

    def _require_records(self) -> None:
        if not self:
            raise InputError("history must hold a measurement to be drawn; got none. Train past the first attempt.")


def _states_now(record: Measurement) -> int:
    """Return the states the layer stores after a measurement."""
    return record.n if record.rolled_back else record.states


_HEADINGS = "step layer states kept bound error drift gap metric seconds note".split()


def _row(record: Measurement) -> tuple[str, ...]:
    """Return a measurement as the cells of a line."""
    states = f"{record.n} -> {record.states}" if record.states < record.n else f"{record.n}"
    metric = " -> ".join(f"{x:.4g}" for x in (record.metric or {}).values())
    gap = f"{record.gap:.3g}" if record.gap is not None else ""
    error, drift = (f"{x:.3g}" if x is not None else "" for x in (record.error, record.drift))
    bound = f"{record.error_bound:.3g}" if record.states < record.n and record.error_bound is not None else ""
    return (
        f"{record.step}",
        record.layer or "(model)",
        states,
        f"{record.kept_energy:.2%}",
        bound,
        error,
        drift,
        gap,
        metric,
        f"{record.seconds:.2g}",
        record.reason,
    )
