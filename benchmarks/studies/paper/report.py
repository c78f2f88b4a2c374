"""Tables of the study, from its lines alone: what each arm ends with, and whether it ends better than another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import lines
from benchmarks.runs import Spread
from benchmarks.tasks import ACCURACY, ERROR, Metric
from hankelred.systems.files import write_atomically

from . import figures, texts
from .arms import ARMS, BEST_OF, LARGE

Line = dict[str, Any]
RESOLVED = 1e-3  # % of the mean square: an error below counts as this one, the answer is found
CUTS = tuple(name for name, arm in ARMS.items() if arm.share is not None)
RIVALS = (
    "scratch",
    "scratch, low",
    *(x for x in BEST_OF if x.startswith("scratch")),
    *(x for x in ARMS if "as long as" in x),
)
DISTURBED = ("full", "white 25%", "sampled 25%", "white, two cuts", "sampled, two cuts", "scratch")


def metric_of(task: str) -> Metric:
    """What a task measures by, without its data."""
    return ERROR if task.startswith("teacher") else ACCURACY


def with_best(found: Iterable[Line]) -> list[Line]:
    """The lines, and of every family with all its members the one that is best on validation, seed by seed."""
    found = list(found)
    groups: dict[tuple[int, int], dict[str, Line]] = {}
    for line in found:
        groups.setdefault((line["kept"], line["seed"]), {})[line["arm"]] = line
    for family, members in BEST_OF.items():
        for runs in groups.values():
            if all(x in runs for x in members):
                rises = metric_of(runs[members[0]]["task"]).rises
                best = max((runs[x] for x in members), key=lambda x: x["validation"] if rises else -x["validation"])
                found.append(best | {"arm": family, "seconds": sum(runs[x]["seconds"] for x in members)})
    return found


def arms_of(found: Sequence[Line]) -> list[str]:
    """The arms there are, families behind their members."""
    names = {line["arm"] for line in found}
    order = [*ARMS]
    for family, members in BEST_OF.items():
        order.insert(max(order.index(x) for x in members) + 1, family)
    return [name for name in order if name in names]


def main_table(found: Sequence[Line]) -> str:
    """A row for each arm and size: what it ends with and what that costs."""
    found = with_best(found)
    if not found:
        return ""
    metric = metric_of(found[0]["task"])
    head = ("arm", "states", "seeds", metric.heading, "seconds", "steps", "steps/s at the end", "peak MB")
    rows = []
    for kept in sorted({line["kept"] for line in found}, reverse=True):
        for arm in arms_of(found):
            runs = [line for line in found if (line["kept"], line["arm"]) == (kept, arm)]
            if runs:
                rows.append(_row(arm, runs, metric))
    return markdown(head, rows)


def _row(arm: str, runs: Sequence[Line], metric: Metric) -> tuple[str, ...]:
    def mean(name: str, digits: int = 0) -> str:
        spread = Spread.of(x[name] for x in runs)
        return f"{spread.mean:.{digits}f}" if spread else "–"

    score = Spread.of(x["test"] for x in runs)
    assert score is not None
    return (
        arm,
        mean("states"),
        str(len(runs)),
        score.text(metric.digits),
        mean("seconds", 1 if runs[0]["seconds"] < 100 else 0),
        mean("steps"),
        mean("rate"),
        mean("peak MB"),
    )


@dataclass(frozen=True)
class Difference:
    """How much better one arm is than another, over seeds that both have; more is better whatever the metric.

    Accuracies by points, errors by factors: their logarithms are compared, because seeds that find the answer and
    seeds that do not differ by orders of magnitude.
    """

    arm: str
    over: str
    kept: int
    spread: Spread
    wins: int
    losses: int
    by_factor: bool

    @property
    def verdict(self) -> str:
        """What the 95 % interval of the mean says."""
        ends = self.spread.interval()
        if ends is None:
            return "one seed"
        return "better" if ends[0] > 0 else "worse" if ends[1] < 0 else "not told apart"

    def text(self, value: float) -> str:
        """A difference as it is told: points, or the factor of the error."""
        return f"error x {10.0**-value:.2g}" if self.by_factor else f"{value:+.1f}"

    @property
    def interval(self) -> str:
        """The ends of the 95 % interval, the better one last."""
        ends = self.spread.interval()
        return " to ".join(map(self.text, ends)).replace("to error x", "to") if ends else "–"

    def cells(self) -> tuple[str, ...]:
        """The row of a table."""
        wins = f"{self.wins} : {self.losses} of {self.spread.count}"
        return self.arm, self.over, str(self.kept), self.text(self.spread.mean), self.interval, wins, self.verdict


def difference(found: Sequence[Line], arm: str, over: str, kept: int) -> Difference | None:
    """Compare two arms at one size, seed by seed; the large model is the same for all sizes."""
    rises = metric_of(found[0]["task"]).rises

    def gain(x: float, y: float) -> float:
        return x - y if rises else math.log10(max(y, RESOLVED) / max(x, RESOLVED))

    one, other = ({x["seed"]: x["test"] for x in found if x["arm"] == a and _at(x, kept)} for a in (arm, over))
    gains = [gain(one[k], other[k]) for k in sorted(one.keys() & other.keys())]
    spread = Spread.of(gains)
    wins, losses = sum(x > 0 for x in gains), sum(x < 0 for x in gains)
    return spread and Difference(arm, over, kept, spread, wins, losses, not rises)


def _at(line: Line, kept: int) -> bool:
    return line["kept"] == kept or line["arm"] in LARGE


def differences(found: Sequence[Line]) -> Iterator[Difference]:
    """Every way to cut against every way to start small, and against the large model."""
    sizes = sorted({line["kept"] for line in found if line["arm"] not in LARGE}, reverse=True)
    names = arms_of(found)
    for kept in sizes:
        for arm in (x for x in names if x in CUTS):
            for over in (x for x in names if x in RIVALS or x in LARGE):
                compared = difference(found, arm, over, kept)
                if compared is not None:
                    yield compared


def difference_table(found: Sequence[Line]) -> str:
    """All differences of a task."""
    head = ("arm", "over", "states", "better by", "95 % interval", "seeds better : worse", "verdict")
    return markdown(head, [x.cells() for x in differences(with_best(found))])


def robustness_table(found: Sequence[Line]) -> str:
    """The score under disturbance of some arms, the mean over seeds."""
    digits = metric_of(found[0]["task"]).digits
    names = [x for x in arms_of(found) if x in DISTURBED]
    kinds = list(dict.fromkeys(kind for line in found for kind in line["robust"]))
    rows = []
    for kept in sorted({line["kept"] for line in found}, reverse=True):
        for arm in names:
            runs = [x["robust"] for x in found if (x["kept"], x["arm"]) == (kept, arm)]
            if runs:
                means = [Spread.of(x[kind] for x in runs if kind in x) for kind in kinds]
                rows.append((arm, str(kept), *(f"{x.mean:.{digits}f}" if x else "–" for x in means)))
    return markdown(("arm", "states", *kinds), rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def headline_table(found: Mapping[str, Sequence[Line]]) -> str:
    """What the paper says, and what the lines say of it."""
    rows = []
    for claim in texts.CLAIMS:
        said = [text for task, kept, arm, over in claim.tests if (text := _said(found, task, kept, arm, over))]
        rows.append((claim.claim, *claim.conclude(said)))
    return markdown(("the paper", "here", "figures"), rows)


def _said(found: Mapping[str, Sequence[Line]], task: str, kept: int, arm: str, over: str) -> tuple[str, str] | None:
    if not found.get(task):
        return None
    known = difference(with_best(found[task]), arm, over, kept)
    if known is None:
        return None
    arm_, over_, states, mean, interval, wins, _ = known.cells()
    unit = " points" if metric_of(task).rises else ""
    return known.verdict, f"{task} at {states}: {arm_} over {over_} {mean}{unit} ({interval}; {wins} seeds)"


def page(task: str, found: Sequence[Line]) -> str:
    """The page of a task."""
    drawn = "\n\n".join(f"![{what}]({task}-{name}.svg)" for name, what in figures.FIGURES.items())
    parts = [
        f"# {texts.TITLES[task]}",
        texts.GENERATED,
        texts.setting(found),
        drawn,
        "## What each arm ends with",
        main_table(found),
        texts.READING,
        "## Differences, seed by seed",
        difference_table(found),
        "## Disturbed inputs and coarser weights",
        texts.ROBUST,
        robustness_table(found),
        "## Arms",
        "\n".join(f"- *{x}*: {ARMS[x].what}" for x in arms_of(found) if x in ARMS),
    ]
    return "\n\n".join(parts) + "\n"


def write(results: Path, docs: Path) -> None:
    """Write the pages and figures of all lines there are."""
    found = {path.stem: lines.read(path) for path in sorted(results.glob("*.jsonl"))}
    found = {task: rows for task, rows in found.items() if rows}
    pages = {f"{task}.md": page(task, rows) for task, rows in found.items()}
    pages["index.md"] = texts.index(found, headline_table(found))
    docs.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        write_atomically(docs / name, lambda file, text=text: file.write(text.encode()))
    for task, rows in found.items():
        figures.write(docs, task, with_best(rows), metric_of(task))
