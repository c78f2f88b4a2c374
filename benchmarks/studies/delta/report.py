"""The page of the study, from its lines alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks import lines
from benchmarks.runs import Spread
from benchmarks.tasks import ACCURACY, BITS, Metric
from hankelred.systems.files import write_atomically

from ..paper.report import markdown
from .ways import WAYS

Line = dict[str, Any]
TITLES = {
    "mqar-8": "Recall, 8 pairs",
    "mqar-16": "Recall, 16 pairs",
    "mqar-32": "Recall, 32 pairs",
    "text": "Characters of source code, a small hybrid",
}
GENERATED = (
    "This page is written by `python -m benchmarks.studies.delta --report` from the lines of "
    "`benchmarks/results/delta.jsonl`; the runs are made by the same command with `--task`."
)
ABOUT = (
    "Gated delta nets keep a matrix for every head, as many rows as their keys have channels. Here keys lose channels: "
    "after training, at 10 or 30 % of it, or they have few from the start. *Recall*: so many random directions, in as "
    "many dimensions, with one of 16 values each, then the directions again; one layer with one head, keys of 64 "
    "channels, values of 16. *Text*: Qwen3.5 with two gated delta nets and one full attention, keys of 32 channels."
)
READING = (
    "Means and standard deviations over seeds, in brackets how many if not all. What is cut *after* training is not "
    "trained any more. All runs of a seed are the same up to their cut. *Scratch* is small from the start, *long* for "
    "2.5 times as many steps. Learning rate .005: at .01 a small model of a first trial did not leave chance. "
    "Rotations of commits up to 7825b6d had one map for keys and queries; later ones read with a map of their own, "
    "which errs a little less."
)
PLANNED = (
    "*Planned* is the relative change of the layer's gated output that a cut expects: what is not read, on the "
    "sampled batches, for channels that are kept; for a rotation, as if what is read did not depend on what is held. "
    "The mean over seeds of the layer where it is largest."
)
GOAL, LOSS = 0.5, 0.01  # share of the state's bytes to save, at no more than so many bits per character
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#999999")  # Okabe and Ito


def metric_of(task: str) -> Metric:
    """What a task measures by, without its data."""
    return BITS if task == "text" else ACCURACY


def _sizes(found: Sequence[Line]) -> list[int]:
    return sorted({x["kept"] for x in found if x["arm"] != "full"}, reverse=True)


def _arms(found: Sequence[Line]) -> list[str]:
    names = {x["arm"] for x in found}
    moments = ("after: {}", "{} 10%", "{} 30%")
    return [x for x in ("scratch", "scratch, long", *(y.format(z) for y in moments for z in WAYS)) if x in names]


def _values(found: Sequence[Line], arm: str, kept: int, name: str = "test") -> Spread | None:
    return Spread.of(x[name] for x in found if (x["arm"], x["kept"]) == (arm, kept) and name in x)


def _cell(spread: Spread | None, digits: int, seeds: int) -> str:
    if spread is None:
        return ""
    return spread.text(digits) + ("" if spread.count == seeds else f" ({spread.count})")


def size_table(found: Sequence[Line], name: str = "test") -> str:
    """A row for each arm, a column for each size: what it ends with."""
    if not found:
        return ""
    digits = metric_of(found[0]["task"]).digits if name == "test" else 3
    seeds, sizes, full = len({x["seed"] for x in found}), _sizes(found), next(iter(_full(found)), None)
    head = ("arm", *([f"{full} channels"] if full and name == "test" else []), *map(str, sizes))
    rows = []
    if full and name == "test":
        rows.append(("full", _cell(_values(found, "full", full), digits, seeds), *[""] * len(sizes)))
    for arm in _arms(found):
        cells = [_cell(_values(found, arm, n, name), digits, seeds) for n in sizes]
        if any(cells):
            rows.append((arm, *([""] if full and name == "test" else []), *cells))
    return markdown(head, rows)


def _full(found: Sequence[Line]) -> set[int]:
    return {x["kept"] for x in found if x["arm"] == "full"}


def lost(found: Sequence[Line], arm: str, kept: int) -> Spread | None:
    """What an arm loses against the full model at one size, seed by seed; more is worse."""
    sign = 1 if metric_of(found[0]["task"]).rises else -1
    full = {x["seed"]: x["test"] for x in found if x["arm"] == "full"}
    runs = {x["seed"]: x["test"] for x in found if (x["arm"], x["kept"]) == (arm, kept)}
    return Spread.of(sign * (full[k] - runs[k]) for k in sorted(full.keys() & runs.keys()))


def losses(found: Sequence[Line], kept: int) -> list[tuple[str, ...]]:
    """What every arm loses at one size, as rows of a table."""
    digits, rows = metric_of(found[0]["task"]).digits, list[tuple[str, ...]]()
    for arm in _arms(found):
        spread = lost(found, arm, kept)
        if spread:
            ends = spread.interval()
            interval = " to ".join(f"{x:+.{digits}f}" for x in ends) if ends else "–"
            rows.append((arm, str(kept), f"{spread.mean:+.{digits}f}", interval, str(spread.count)))
    return rows


def loss_table(found: Sequence[Line]) -> str:
    """What is lost at every size."""
    unit = "bits" if found[0]["task"] == "text" else "points"
    rows = [row for kept in _sizes(found) for row in losses(found, kept)]
    return markdown(("arm", "channels", f"lost against full, {unit}", "95 % interval", "seeds"), rows)


def byte_table(found: Sequence[Line]) -> str:
    """Bytes of the states of one sequence against what is lost, of cuts."""
    rows = []
    for kept in _sizes(found):
        sizes = [x["bytes"] for x in found if x["kept"] == kept and x.get("bytes")]
        if not sizes:
            continue
        before, after = sizes[0]
        rows.append((str(kept), f"{after:,.0f} of {before:,.0f}", f"{1 - after / before:.0%}"))
    return markdown(("channels", "bytes of states of a sequence", "saved"), rows) if rows else ""


def verdict(found: Sequence[Line]) -> str:
    """Whether half of the bytes can go for a hundredth of a bit."""
    reached = []
    for arm in _arms(found):
        for kept in _sizes(found):
            sizes = [x["bytes"] for x in found if (x["arm"], x["kept"]) == (arm, kept) and x.get("bytes")]
            spread = lost(found, arm, kept)
            if sizes and spread and 1 - sizes[0][1] / sizes[0][0] >= GOAL and spread.mean <= LOSS:
                reached.append(f"{arm} at {kept} ({spread.mean:+.3f})")
    by = ", ".join(reached) if reached else "none of these cuts"
    return f"At least {GOAL:.0%} fewer bytes at no more than {LOSS:g} bits per character: {by}."


def page(found: Sequence[Line]) -> str:
    """The whole page."""
    commits = ", ".join(sorted({str(x["commit"]) for x in found}))
    named = ", ".join(f"{name} {version}" for name, version in found[-1]["versions"].items())
    hours = sum(x["wall"] for x in found) / 3600
    setting = f"{len(found)} runs, {hours:.1f} hours, one thread each ({named}; commits {commits})."
    parts = ["# Keys of gated delta nets", GENERATED, ABOUT, setting, READING, PLANNED, f"![{ALT}](delta.svg)"]
    for task, title in TITLES.items():
        runs = [x for x in found if x["task"] == task]
        if not runs:
            continue
        metric = metric_of(task)
        what = f"`python -m benchmarks.studies.delta --task {task}`, {metric.heading} on the test part after "
        parts += [f"## {title}", what + f"{next(x['steps'] for x in runs if x['arm'] != 'scratch, long')} steps."]
        parts += [size_table(runs), loss_table(runs), byte_table(runs)]
        parts += [verdict(runs)] if task == "text" else []
        parts += ["Planned change of the output:", size_table(runs, "predicted")]
    parts += ["## Ways", "\n".join(f"- *{name}*: {what}." for name, what in WAYS.items())]
    return "\n\n".join(x for x in parts if x) + "\n"


ALT = "what is reached with so many channels of keys, cut after training or small from the start"


def figure(docs: Path, found: Sequence[Line]) -> None:
    """Draw what is reached over sizes, a panel for each task; the same bytes for the same lines and versions."""
    tasks = [x for x in TITLES if any(line["task"] == x for line in found)]
    plt.switch_backend("Agg")
    with plt.rc_context({"svg.hashsalt": "hankelred", "font.size": 9}):
        drawn, panels = plt.subplots((len(tasks) + 1) // 2, 2, figsize=(7.2, 5.6), layout="constrained", squeeze=False)
        for axes, task in zip_longest(panels.flat, tasks):
            axes.set_visible(task is not None)
            if task is not None:
                _panel(axes, [x for x in found if x["task"] == task])
                axes.set(xlabel="channels of the keys", ylabel=metric_of(task).heading)
                axes.set_title(TITLES[task], fontsize=9)
        panels[0, 0].legend(fontsize=7)
        path = docs / "delta.svg"
        write_atomically(path, lambda file: drawn.savefig(file, format="svg", metadata={"Date": None}))
        plt.close(drawn)


def _panel(axes: Axes, found: Sequence[Line]) -> None:
    shown = {f"after: {x}": (colour, "-") for x, colour in zip(WAYS, COLOURS, strict=True)} | {"scratch": ("k", "")}
    for arm, (colour, style) in shown.items():
        points = [(n, spread) for n in _sizes(found) if (spread := _values(found, arm, n))]
        if points:
            sizes, spreads = zip(*points, strict=True)
            means, errors = [x.mean for x in spreads], [x.deviation or 0.0 for x in spreads]
            marks: Any = {"color": colour, "linestyle": style, "marker": "o" if arm == "scratch" else "."}
            axes.errorbar(sizes, means, errors, capsize=2, label=arm, linewidth=1, markersize=4, **marks)
    for n in _full(found):
        spread = _values(found, "full", n)
        if spread:
            axes.axhline(spread.mean, color="0.5", linewidth=0.8, label="full")
            if found[0]["task"] == "text":  # any channels lose up to two bits: out of sight
                axes.set_ylim(spread.mean - 0.06, spread.mean + 0.2)
    axes.grid(alpha=0.3)


def write(results: Path, docs: Path) -> None:
    """Write page and figure of all lines there are."""
    found = lines.read(results)
    if not found:
        return
    docs.mkdir(parents=True, exist_ok=True)
    write_atomically(docs / "delta.md", lambda file: file.write(page(found).encode()))
    figure(docs, found)
