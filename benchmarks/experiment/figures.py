"""The pictures of a report: each function takes a study and returns a figure, touching no global state."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from hankelred.checks import Array

from .record import Cut, RunRecord
from .study import Study
from .summary import finished

# Okabe and Ito's palette: distinct also to the colour-blind.
INK, FAINT = "#2b2f36", "#8a9099"
ARM_COLOURS = {"full": "#5f6670", "compressed": "#0072b2", "scratch": "#d55e00"}
KEPT, DROPPED = "#0072b2", "#e69f00"
PART_COLOURS = {
    "state space layers": "#0072b2",
    "other layers": "#9fb4c4",
    "optimizer": "#c3ccd4",
    "the rest": "#e1e5e9",
}
FONT = ["DejaVu Sans"]
RISE = 2.5  # rows that the highest slope of the waterfall reaches up
DECADES = 3.0  # of the waterfall, below the largest value; cuts are decided above that
_Label = tuple[float, float, str, str]  # x, y, text, colour
LAYERS_SHOWN = 6  # of a deep model: the figure has a row for each


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=160, layout="constrained", facecolor="white")


def _tidy(axes: Axes, x: str = "", y: str = "", title: str = "") -> None:
    """Leave two thin axes, quiet ticks and a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9, length=3, color=FAINT)
    axes.grid(axis="y", color="#e8eaed", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(x, color=INK, fontsize=9.5)
    axes.set_ylabel(y, color=INK, fontsize=9.5)
    axes.set_title(title, loc="left", color=INK, fontsize=10.5, fontweight="bold")


def _name(arm: str, runs: Sequence[RunRecord]) -> str:
    """An arm's name with its final number of states."""
    states = np.mean([sum(run.final_states.values()) for run in runs])
    return f"{arm}, {round(float(states), 1):g} states"


def score(study: Study) -> Figure:
    """Draw what the task measures by, on the validation part, against training time, and beside it each run's test.

    Parameters
    ----------
    study : Study
        With one run at least; an unfinished run is drawn as far as it went.

    Returns
    -------
    Figure
        A line and a band (mean and standard deviation over seeds) for each arm.
    """
    figure = _figure(9.2, 4.3)
    curves, tests = figure.subplots(1, 2, width_ratios=[4, 1], sharey=True)
    metric = study.task.metric
    _tidy(curves, "training time, seconds", f"validation {metric.heading}", "while it learns")
    _tidy(tests, title="in the end: test")
    shown, labels = [], []
    for arm in study.arms:
        runs = finished(study, arm) or [run for run in study.records if run.arm == arm and run.measurements]
        if not runs:
            continue
        steps, seconds, values = _on_common_steps(runs)
        mean, deviation, colour = values.mean(axis=0), values.std(axis=0, ddof=len(runs) > 1), ARM_COLOURS[arm]
        curves.plot(seconds, mean, color=colour, linewidth=1.8)
        curves.fill_between(seconds, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)
        cuts = sorted({cut["step"] for run in runs for cut in run.cuts})
        at = np.interp(cuts, steps, seconds)
        curves.plot(at, np.interp(at, seconds, mean), "v", color=colour, markersize=6, markeredgecolor="white")
        shown.append(mean[len(mean) // 4 :] if len(mean) > 3 else mean)  # the first quarter may leave the picture
        labels.append((seconds[-1], mean[-1], _name(arm, runs), colour))
    limits = _limits(np.concatenate(shown), metric.rises)
    for end, height, text, colour in _apart(labels, (limits[1] - limits[0]) / 20):
        curves.annotate(text, (end, height), (5, 0), textcoords="offset points", va="center", color=colour, fontsize=9)
    _draw_tests(tests, study)
    curves.set_ylim(limits)
    curves.set_xlim(0, 1.3 * max((label[0] for label in labels), default=1.0))  # room for the names
    return figure


def _limits(values: Array, percent: bool) -> tuple[float, float]:
    """The limits of the axis: of percentages up to all of them, of bits with some room."""
    low, high = float(values.min()), float(values.max())
    if percent:
        return max(0.0, 10.0 * float(np.floor((low - 5) / 10))), 103.0
    room = 0.08 * (high - low) + 0.01
    return low - room, high + room


def _on_common_steps(runs: Sequence[RunRecord]) -> tuple[Array, Array, Array]:
    """Return (steps, mean seconds, validation of each run), at the steps that all the runs were measured at."""
    curves = [{m["step"]: m for m in run.measurements} for run in runs]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    seconds = np.mean([[curve[step]["seconds"] for step in steps] for curve in curves], axis=0)
    return np.array(steps), seconds, np.array([[curve[step]["validation"] for step in steps] for curve in curves])


def _apart(labels: list[_Label], distance: float) -> list[_Label]:
    """The labels with their heights moved up so that none covers another."""
    placed: list[_Label] = []
    for end, height, text, colour in sorted(labels, key=lambda label: label[1]):
        placed.append((end, max(height, placed[-1][1] + distance) if placed else height, text, colour))
    return placed


def _draw_tests(axes: Axes, study: Study) -> None:
    """Draw one dot for each run, and a bar at the mean of each arm."""
    for place, arm in enumerate(study.arms):
        values = [run.test for run in finished(study, arm) if run.test is not None]
        if values:
            colour = ARM_COLOURS[arm]
            axes.plot([place] * len(values), values, "o", color=colour, alpha=0.6, markersize=5, markeredgewidth=0)
            axes.hlines(np.mean(values), place - 0.3, place + 0.3, color=colour, linewidth=2)
            axes.annotate(
                f"{np.mean(values):.{study.task.metric.digits}f}",
                (place, max(values)),
                (0, 6),
                textcoords="offset points",
                ha="center",
                color=colour,
                fontsize=9,
            )
    axes.set_xticks(range(len(study.arms)), study.arms, fontsize=9, rotation=25, ha="right")
    axes.set_xlim(-0.6, len(study.arms) - 0.4)


def states(study: Study) -> Figure | None:
    """Draw the stored states of the compressed runs over the steps; None if there is no such run."""
    runs = [run for run in study.records if run.arm == "compressed"]
    if not runs:
        return None
    figure = _figure(9.2, 3.2)
    axes = figure.subplots()
    _tidy(axes, "optimizer steps", "stored states", "")
    axes.set_yscale("log", base=2)
    largest = max(max(run.states.values()) for run in runs)
    ticks = [2**k for k in range(int(np.log2(largest)) + 1)]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.axvspan(0, study.settings.window_steps, color="#f1f4f7", linewidth=0)
    axes.annotate(
        "reduction window",
        (study.settings.window_steps, 1),
        (4, -4),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        va="top",
        fontsize=8.5,
        color=FAINT,
    )
    ends: dict[int, set[int]] = {}
    for run in runs:
        for layer, before in run.states.items():
            cuts = [cut for cut in run.cuts if cut["layer"] == layer]
            steps = [0] + [cut["step"] for cut in cuts] + [run.steps]
            sizes = [before] + [cut["after"] for cut in cuts]
            axes.stairs(sizes, steps, baseline=None, color=KEPT, linewidth=1.6, alpha=0.55)
            ends.setdefault(sizes[-1], set()).add(run.seed)
    for size, seeds in ends.items():
        text = f"{size}  (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, sorted(seeds)))})"
        axes.annotate(
            text, (study.settings.steps, size), (-4, 4), textcoords="offset points", ha="right", color=KEPT, fontsize=9
        )
    axes.set_xlim(0, study.settings.steps)
    return figure


def waterfall(study: Study) -> Figure | None:
    """Draw the Hankel singular values of the first compressed run, spectrum under spectrum, time running down.

    Parameters
    ----------
    study : Study
        The first of its compressed runs is drawn, each layer in a column of its own.

    Returns
    -------
    Figure or None
        None if there is no such run.
    """
    runs = [run for run in study.records if run.arm == "compressed" and run.measurements]
    if not runs:
        return None
    layers = list(runs[0].states)[:LAYERS_SHOWN]
    figure = _figure(9.2, 6.0)
    for axes, layer in zip(np.atleast_1d(figure.subplots(1, len(layers))), layers, strict=True):
        _tidy(axes, "index of the Hankel singular value", title=layer if len(layers) > 1 else "")
        _draw_waterfall(axes, _spectra(runs[0], layer, study.settings.window_steps))
    return figure


@dataclass(frozen=True)
class _Spectrum:
    """Hankel singular values of a layer after a step, and the cut they decided, if they did."""

    step: int
    hsv: Array
    cut: Cut | None


def _spectra(run: RunRecord, layer: str, window: int) -> list[_Spectrum]:
    """The spectra to draw: all in the window and every third after it, and those before each cut."""
    cuts = {cut["step"]: cut for cut in run.cuts if cut["layer"] == layer}
    spectra = [_Spectrum(step, np.array(cut["hsv"]), cut) for step, cut in cuts.items()]
    later = [m["step"] for m in run.measurements if m["step"] > window][::-1][::3]  # from the last one back
    for measured in run.measurements:
        step = measured["step"]
        if step not in cuts and (step <= window or step in later):
            spectra.append(_Spectrum(step, np.array(measured["hsv"][layer]), None))
    return sorted(spectra, key=lambda spectrum: spectrum.step)


def _draw_waterfall(axes: Axes, spectra: list[_Spectrum]) -> None:
    """Draw each spectrum as a slope of logarithmic height over the index of its values, the next one before it."""
    top = max(spectrum.hsv[0] for spectrum in spectra)
    least = max(min(spectrum.hsv[-1] for spectrum in spectra), top * 10.0**-DECADES)
    for row, spectrum in enumerate(spectra):
        share = np.log(np.maximum(spectrum.hsv, least) / least) / np.log(top / least)
        index, height = np.arange(1, len(share) + 1), RISE * share - row
        kept = spectrum.cut["order"] if spectrum.cut else len(share)
        depth, colour = 2 * row, KEPT if spectrum.cut else "#dbe6ee"
        axes.fill_between(index[: kept + 1], -row, height[: kept + 1], color=colour, zorder=depth, linewidth=0)
        axes.fill_between(index[kept:], -row, height[kept:], color=DROPPED, zorder=depth, linewidth=0)
        axes.plot(index, height, color="white" if spectrum.cut else "#7d93a3", linewidth=0.8, zorder=depth + 1)
        if spectrum.cut:
            text = f"cut: {spectrum.cut['before']} → {spectrum.cut['after']} states"
            axes.annotate(text, (1.01, -row), xycoords=("axes fraction", "data"), color=INK, fontsize=9)
    axes.set_title(f"heights: logarithmic, {least:.3g} to {top:.3g}", loc="right", color=FAINT, fontsize=8.5)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(1, max(len(spectrum.hsv) for spectrum in spectra))
    axes.set_ylim(0.5 - len(spectra), RISE + 0.3)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    cut_rows = [row for row, spectrum in enumerate(spectra) if spectrum.cut]
    rows = sorted(cut_rows + [r for r in range(0, len(spectra), 4) if all(abs(r - other) > 1 for other in cut_rows)])
    axes.set_yticks([-row for row in rows], [f"step {spectra[row].step}" for row in rows])


def speed(study: Study) -> Figure | None:
    """Draw what a training step consists of; None if it was not measured."""
    if study.speed is None:
        return None
    arms = list(study.speed.parts)
    figure = _figure(9.2, 2.6)
    axes = figure.subplots()
    _tidy(axes, f"milliseconds of a training step, {study.speed.clock}")
    axes.grid(visible=False)
    left = np.zeros(len(arms))
    for part, colour in PART_COLOURS.items():
        width = np.array([max(0.0, study.speed.parts[arm][part]) for arm in arms])
        axes.barh(range(len(arms)), width, left=left, height=0.62, color=colour, edgecolor="white", label=part)
        left += width
    for place, arm in enumerate(arms):
        axes.annotate(f" {study.speed.median(arm):.2f}", (left[place], place), va="center", fontsize=9, color=INK)
    sizes = ["+".join(map(str, study.speed.states[arm])) for arm in arms]
    axes.set_yticks(range(len(arms)), [f"{arm}, {n} states" for arm, n in zip(arms, sizes, strict=True)])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    figure.legend(loc="outside upper center", ncols=len(PART_COLOURS), frameon=False, fontsize=9)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure
