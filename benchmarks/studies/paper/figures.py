"""Figures of the report: what is reached with so many states, in so much time, how fast, and how sizes fall."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.runs import Spread
from benchmarks.tasks import Metric
from hankelred.systems.files import write_atomically

from . import texts

Line = dict[str, Any]
FIGURES = {
    "states": "what is reached with so many states",
    "time": "what is reached in so much processor time",
    "speed": "steps per second against states",
    "sizes": "states over the steps of a run",
}
SHOWN = {  # arm, colour (Okabe and Ito), marker
    "full": ("#000000", "o"),
    "white 25%": ("#E69F00", "s"),
    "white, two cuts": ("#E69F00", "s"),
    "sampled 25%": ("#0072B2", "D"),
    "sampled, two cuts": ("#0072B2", "D"),
    "scratch": ("#CC79A7", "^"),
    "full, low": ("#999999", "o"),
    "sampled, low 25%": ("#56B4E9", "D"),
    "sampled, low, two cuts": ("#56B4E9", "D"),
    "scratch, low": ("#56B4E9", "^"),
    "scratch, best learning rate": ("#D55E00", "v"),
    "scratch, as long as sampled 25%": ("#009E73", "<"),
    "scratch, as long as sampled two cuts": ("#009E73", "<"),
}


def write(docs: Path, task: str, found: Sequence[Line], metric: Metric) -> None:
    """Write all figures of a task, the same bytes for the same lines and versions."""
    drawings: dict[str, Callable[[Axes], None]] = {
        "states": lambda axes: _states(axes, task, found, metric),
        "time": lambda axes: _time(axes, found, metric),
        "speed": lambda axes: _speed(axes, found),
        "sizes": lambda axes: _sizes(axes, found),
    }
    plt.switch_backend("Agg")
    with plt.rc_context({"svg.hashsalt": "hankelred", "font.size": 9}):
        for name, draw in drawings.items():
            figure, axes = plt.subplots(figsize=(6.0, 3.6), layout="constrained")
            draw(axes)
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7)
            path = docs / f"{task}-{name}.svg"
            write_atomically(path, lambda file, x=figure: x.savefig(file, format="svg", metadata={"Date": None}))
            plt.close(figure)


def _of(found: Sequence[Line], arm: str) -> dict[int, list[Line]]:
    """The runs of an arm by size."""
    kept = sorted({x["kept"] for x in found if x["arm"] == arm})
    return {n: [x for x in found if (x["arm"], x["kept"]) == (arm, n)] for n in kept}


def _states(axes: Axes, task: str, found: Sequence[Line], metric: Metric) -> None:
    for arm, (colour, marker) in SHOWN.items():
        points = [(n, Spread.of(x["test"] for x in runs)) for n, runs in _of(found, arm).items()]
        if points:
            sizes, spreads = zip(*points, strict=True)
            means, errors = [x.mean for x in spreads], [x.deviation or 0.0 for x in spreads]
            axes.errorbar(sizes, means, errors, color=colour, marker=marker, capsize=2, label=arm, linewidth=1)
    for (kind, points), marker in zip(texts.PAPER.get(task, {}).items(), ("x:", "+:", "*"), strict=False):
        axes.plot(*zip(*points, strict=True), marker, color="0.5", alpha=0.8, label=f"the paper, {kind}")
    axes.set_xscale("log", base=2)
    if not metric.rises:
        axes.set_yscale("log")
    axes.set(xlabel="states", ylabel=metric.heading)


def _time(axes: Axes, found: Sequence[Line], metric: Metric) -> None:
    for arm, (colour, marker) in SHOWN.items():
        for place, (n, runs) in enumerate(_of(found, arm).items()):
            x, y = (np.mean([line[name] for line in runs]) for name in ("seconds", "test"))
            axes.plot(x, y, marker, color=colour, label=None if place else arm, linestyle="none")
            axes.annotate(f"{n}", (x, y), textcoords="offset points", xytext=(4, 3), fontsize=7)
    if not metric.rises:
        axes.set_yscale("log")
    axes.set(xlabel="processor time of one thread, s", ylabel=metric.heading)


def _speed(axes: Axes, found: Sequence[Line]) -> None:
    for arm, (colour, marker) in SHOWN.items():
        points = [(n, np.median([x["rate"] for x in runs])) for n, runs in _of(found, arm).items()]
        if points and "best" not in arm and "as long" not in arm:
            axes.plot(*zip(*points, strict=True), marker, color=colour, label=arm, linestyle="-", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="states", ylabel="steps per second at the end")


def _sizes(axes: Axes, found: Sequence[Line]) -> None:
    seed = min(x["seed"] for x in found)
    for line in found:
        if line["seed"] == seed and line["arm"] in SHOWN and len(line["sizes"]) > 1:
            steps, sizes = zip(*((x[0], x[1]) for x in line["sizes"]), strict=True)
            colour, _ = SHOWN[line["arm"]]
            label = f"{line['arm']}, to {line['kept']}"
            axes.step((*steps, line["steps"]), (*sizes, sizes[-1]), where="post", color=colour, label=label)
    axes.set_yscale("log", base=2)
    axes.set(xlabel="step", ylabel="states")
    if not axes.get_lines():
        axes.plot([], [], label="no cut in training")
