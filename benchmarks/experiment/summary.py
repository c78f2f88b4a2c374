"""What a study says: a table of means and deviations over seeds, and sentences that follow from its figures."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.runs import Spread, spread

from .record import RunRecord
from .study import Study


@dataclass(frozen=True)
class Row:
    """One line of the table, as text."""

    arm: str
    runs: int
    score: str
    states: str
    rate_before: str
    rate_after: str
    seconds: str
    parameters: str


def table(study: Study) -> list[Row]:
    """A row for each arm with a finished run."""
    digits = study.task.metric.digits
    return [_row(arm, runs, digits) for arm in study.arms if (runs := finished(study, arm))]


def finished(study: Study, arm: str) -> list[RunRecord]:
    """The finished runs of one arm."""
    return [record for record in study.records if record.arm == arm and record.finished]


def _row(arm: str, runs: list[RunRecord], digits: int) -> Row:
    sizes = [_count(run.final_states[layer] for run in runs) for layer in runs[0].final_states]
    return Row(
        arm=arm,
        runs=len(runs),
        score=spread((run.test for run in runs), digits),
        states=", ".join(sizes),
        rate_before=_rate(run.rate_before for run in runs),
        rate_after=_rate(run.rate_after for run in runs),
        seconds=spread((run.seconds for run in runs), 1),
        parameters=_count((run.parameters[1] for run in runs), 0),
    )


def _rate(values: Iterable[float | None]) -> str:
    """Rates in whole numbers, slow ones with a digit behind the point."""
    known = [value for value in values if value is not None]
    return spread(known, 0 if not known or min(known) >= 30 else 1)


def _count(values: Iterable[int], digits: int = 1) -> str:
    """Whole numbers as one where they agree."""
    known = list(values)
    return str(known[0]) if len(set(known)) == 1 else spread(known, digits)


def gain(study: Study, arm: str, over: str) -> Spread | None:
    """The difference between two arms on the test part, seed by seed; for accuracy in percentage points."""
    others = {run.seed: run.test for run in finished(study, over)}
    pairs = [(run.test, others[run.seed]) for run in finished(study, arm) if run.seed in others]
    return Spread.of(a - b for a, b in pairs if a is not None and b is not None)


def sentences(study: Study) -> list[str]:
    """What the study found, in plain words and in the order of interest."""
    found = [_sizes(study), _against_scratch(study), _against_full(study), _speed(study), _missing(study)]
    return [sentence for sentence in found if sentence]


@dataclass(frozen=True)
class Text:
    """What a language model wrote, and a line on which one it was."""

    caption: str
    text: str


def texts(study: Study) -> list[Text]:
    """What the models of the first seed wrote: before the first cut, after the last, and in the end."""
    found = []
    for run in (run for run in study.records if run.seed == 0):
        around = [sample for sample in run.samples if sample["when"] != "in the end"]
        for sample in around[:1] + around[-1:] + run.samples[len(around) :]:
            states = "+".join(map(str, sample["states"].values()))
            found.append(Text(f"{run.arm}, step {sample['step']}, {sample['when']}, {states} states", sample["text"]))
    return found


def _sizes(study: Study) -> str | None:
    runs = finished(study, "compressed")
    if not runs:
        return None
    before = _mean_states(run.states for run in runs)
    after = _mean_states(run.final_states for run in runs)
    if before == after:
        return (
            f"No state was cut: the {before:g} states of the model stayed in all {len(runs)} runs. Either all of them "
            f"carry weight, or the tolerance is too strict for this task; a larger --tau cuts more."
        )
    last = max(cut["step"] for run in runs for cut in run.cuts)
    return (
        f"The model started with {before:g} states and ended with {round(after, 1):g}; the last cut came after "
        f"{100 * last / study.settings.steps:.0f} % of its training."
    )


def _mean_states(sizes: Iterable[dict[str, int]]) -> float:
    return statistics.fmean(sum(size.values()) for size in sizes)


def _against_scratch(study: Study) -> str | None:
    difference = gain(study, "compressed", "scratch")
    if difference is None:
        return None
    metric = study.task.metric
    size = f"{abs(difference.mean):.{metric.digits}f} {metric.points} {'above' if difference.mean > 0 else 'below'}"
    found = f"It ended {size} a model that was as small from the start"
    interval = difference.interval()
    if interval is None:
        return f"{found}; one seed is no proof."
    low, high = interval
    digits = metric.digits
    found += f" (95 % confidence interval over {difference.count} seeds: {low:+.{digits}f} to {high:+.{digits}f})"
    better, worse = (low > 0, high < 0) if metric.rises else (high < 0, low > 0)
    if better:
        return f"{found}: shrinking while learning helped."
    if worse:
        return f"{found}: with these settings the method did harm. A smaller --tau cuts more carefully."
    return f"{found}: too few seeds, or too small a difference, to say that the method helped."


def _against_full(study: Study) -> str | None:
    difference = gain(study, "compressed", "full")
    if difference is None:
        return None
    metric = study.task.metric
    unit = "points" if metric.unit else metric.name
    if difference.mean < 0 if metric.rises else difference.mean > 0:
        better = f"{abs(difference.mean):.{metric.digits}f} {unit} better"
        return f"The full model, never cut, is {better}: what was cut was not all superfluous."
    return f"It lost nothing against the full model, never cut ({difference.mean:+.{metric.digits}f} {unit})."


def _speed(study: Study) -> str | None:
    if study.speed is None:
        return None
    full, small, scratch = (study.speed.median(arm) for arm in ("full", "compressed", "scratch"))
    layers = study.speed.parts["full"]["state space layers"]
    return (
        f"A training step takes {full:.1f} ms with all states and {small:.1f} ms after the cuts, "
        f"{study.speed.ratio('compressed', to='scratch'):.2f} times as long as in the model that was small from the "
        f"start ({scratch:.1f} ms). {max(0.0, 1 - layers / full):.0%} of the full model's step is spent outside the "
        f"state space layers and gains nothing from fewer states."
    )


def _missing(study: Study) -> str | None:
    if not study.interrupted:
        return None
    done = sum(record.finished for record in study.records)
    return (
        f"This report is not complete: {done} of {len(study.arms) * study.seeds} runs are finished. The same command "
        f"goes on where it stopped."
    )
