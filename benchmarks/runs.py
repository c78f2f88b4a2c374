"""Runs of a study in one file: each is written when it ends, and never made twice."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats
from tqdm import tqdm

from benchmarks._common import finite, surroundings, write
from hankelred.errors import InputError

Run = dict[str, Any]


class Bars:
    """Progress bars of a study and of its run in progress, on a terminal only, and a line for every run."""

    def __init__(self, steps: int) -> None:
        self._all = tqdm(total=steps, desc="all runs", unit="step", position=0, disable=None)
        self._one: tqdm[Any] | None = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()
        self._all.close()

    def _close(self) -> None:
        if self._one is not None:
            self._one.close()
        self._one = None

    def start(self, name: str, steps: int) -> None:
        """Show a bar for a run."""
        self._one = tqdm(total=steps, desc=name, unit="step", position=1, leave=False, disable=None)

    def step(self, note: str = "") -> None:
        """Move both bars on by a step, and say how the run stands."""
        for bar in (self._one, self._all):
            if bar is not None:
                bar.update()
        if note and self._one is not None:
            self._one.set_postfix_str(note)

    def end(self, line: str = "") -> None:
        """Take the bar of the run away and say how it ended."""
        self._close()
        if line:
            self._all.write(line)


def run_missing(
    path: Path,
    head: dict[str, Any],
    wanted: list[Run],
    steps: Callable[[Run], int],
    run: Callable[[Run, list[Run], Bars], Run | None],
    said: Callable[[Run], str] | None = None,
    finished: Callable[[Run], bool] = lambda run: True,
    kind: Any = Run,
) -> dict[str, Any]:
    """Make the wanted runs that a file of results does not hold.

    Parameters
    ----------
    path : Path
        The file; after every run it is either the old or the new one.
    head : dict
        What a new file says besides its runs. One that has other ``settings`` is refused; what else it says stays.
    wanted : list of dict
        What tells one run from another, such as arm and seed.
    steps : callable
        From one of these to the number of training steps.
    run : callable
        From one of these, the runs there are, and bars to be moved on at every step, to its figures; None ends it all.
    said : callable, optional
        From a run to the line that is printed when it has ended, or was found.
    finished : callable, optional
        Whether a run in the file need not be made again.
    kind : type
        What a run in the file must be, as in `conforms`.

    Returns
    -------
    dict
        All that the file holds.
    """
    document = head | read_results(path, head["settings"], kind)
    runs: list[Run] = [found for found in document.pop("runs", []) if finished(found)]
    document["runs"] = runs
    missing = [key for key in wanted if run_of(runs, key) is None]
    if missing:
        write(path, document)  # what cannot be written is to fail before the work
    with Bars(sum(map(steps, missing))) as bars:
        for key in wanted:
            found = run_of(runs, key)
            if found is None:
                bars.start(", ".join(f"{name} {value}" for name, value in key.items()), steps(key))
                figures = run(key, runs, bars)
                if figures is None:
                    break
                found = key | figures
                runs.append(found)
                write(path, document)
            bars.end(said(found) if said else "")
    return document


def run_of(runs: Iterable[Run], key: Run) -> Run | None:
    """The run that has a name, None if there is none."""
    return next((run for run in runs if all(run.get(name) == value for name, value in key.items())), None)


def read_results(path: Path, settings: dict[str, Any], kind: Any = Run) -> dict[str, Any]:
    """What a file of results holds, if there is one; what no run with these settings wrote is refused."""
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise broken(path, f"got a file that is no JSON ({error})") from error
    if not conforms(document, dict[str, Any]) or not conforms(document.get("settings"), dict[str, Any]):
        raise broken(path, "got no settings")
    theirs = document["settings"]
    differing = [name for name in settings | theirs if name not in theirs or theirs[name] != settings.get(name)]
    if differing:
        here, there = (", ".join(f"{n}={x[n]}" for n in differing if n in x) for x in (settings, theirs))
        raise InputError(
            f"out must be new, or hold runs of the same settings; got {here or 'none'}, and {there or 'none'} in "
            f"{path}. Choose another place with --out, or delete that one."
        )
    if not conforms(document.get("runs"), list[Any]):
        raise broken(path, "got no list of runs")
    for number, run in enumerate(document["runs"], 1):
        if not conforms(run, kind):
            raise broken(path, f"got a run with other fields or kinds of values, number {number}")
    return document


def broken(path: Path, got: str) -> InputError:
    """The error of a file that no study wrote."""
    return InputError(
        f"{path} must hold the results of an earlier run; {got}. Delete or rename it, or use another --out."
    )


def conforms(value: Any, kind: Any) -> bool:
    """Tell whether a value read from JSON is of a kind: a type with arguments, a typed dictionary or a dataclass."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(conforms(value, one) for one in arguments)
    if kind is None or kind is type(None):
        return value is None
    if origin is list:
        return isinstance(value, list) and all(conforms(one, arguments[0]) for one in value)
    if origin is tuple:
        return isinstance(value, list) and len(value) == len(arguments) and all(map(conforms, value, arguments))
    if origin is dict:
        return isinstance(value, dict) and all(conforms(one, arguments[1]) for one in value.values())
    if kind in (int, float, str):
        return isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    fields = typing.get_type_hints(kind)
    return (
        isinstance(value, dict) and value.keys() == fields.keys() and all(conforms(value[n], fields[n]) for n in fields)
    )


def study(
    out: Path,
    what: str,
    settings: dict[str, Any],
    wanted: list[Run],
    steps: Callable[[Run], int],
    run: Callable[[Run, Callable[[], None]], Run | None],
) -> list[Run]:
    """Make the runs that the file of a study lacks, rounded to four digits, and return those that are wanted.

    A run that is None ends the study there.
    """
    head = {"what": what, "settings": settings, "environment": surroundings(("torch",))}

    def made(key: Run, _: list[Run], bars: Bars) -> Run | None:
        found = run(key, bars.step)
        return found and {name: rounded(x) for name, x in found.items()}

    try:
        document = run_missing(out, head, wanted, steps, made)
    except InputError as error:
        raise SystemExit(str(error)) from error
    runs = finite(document["runs"])
    return [found for key in wanted if (found := run_of(runs, key)) is not None]


def rounded(value: Any) -> Any:
    """A number to four significant digits, anything else as it is."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


@dataclass(frozen=True)
class Spread:
    """Mean of some values, and their standard deviation where there are two or more."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """The spread of the values there are, None if there are none."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))

    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the mean, by Student's distribution; None for one value."""
        if self.deviation is None:
            return None
        reach = float(stats.t.ppf(0.975, self.count - 1)) * self.deviation / math.sqrt(self.count)
        return self.mean - reach, self.mean + reach

    def text(self, digits: int = 1) -> str:
        """Mean ± deviation."""
        deviation = "" if self.deviation is None else f" ± {self.deviation:.{digits}f}"
        return f"{self.mean:.{digits}f}{deviation}"


def spread(values: Iterable[float | None], digits: int = 1) -> str:
    """Mean ± deviation of the values there are."""
    found = Spread.of(values)
    return found.text(digits) if found else "–"


def table(runs: list[Run], by: str, columns: Mapping[str, tuple[str, int]]) -> str:
    """A row for each arm in the order of the runs, in Markdown; columns are heading and digits by figure."""
    lines = [f"| {by} | seeds | " + " | ".join(heading for heading, _ in columns.values()) + " |"]
    lines.append("|" + "---|" * (len(columns) + 2))
    for arm in dict.fromkeys(x[by] for x in runs):
        rows = [x for x in runs if x[by] == arm]
        cells = [spread((row.get(name) for row in rows), digits) for name, (_, digits) in columns.items()]
        lines.append(f"| {arm} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parser_of(document: str | None, seeds: int, steps: int, out: Path) -> argparse.ArgumentParser:
    """The arguments every study has."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--out", type=Path, default=out)
    return parser
