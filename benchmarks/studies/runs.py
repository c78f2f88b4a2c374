"""Runs of a study in one file: each is written when it ends, and never made twice."""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hankelred_torch.experiment.study import write_atomically

Run = dict[str, Any]


def run_missing(
    out: Path,
    what: str,
    settings: dict[str, Any],
    wanted: list[dict[str, Any]],
    steps: Callable[[dict[str, Any]], int],
    run: Callable[[dict[str, Any], Callable[[], Any]], dict[str, Any]],
) -> list[Run]:
    """Make the wanted runs that the file does not hold, and return all of them.

    Parameters
    ----------
    out : Path
        The file of results.
    what : str
        A sentence on the figures, for whoever opens it.
    settings : dict
        Of all runs; a file with others is refused.
    wanted : list of dict
        What tells one run from another, such as arm and seed.
    steps : callable
        From one of these to the number of training steps.
    run : callable
        From one of these, and a function to be called at every step, to its figures.
    """
    document: dict[str, Any] = {
        "what": what,
        "settings": settings,
        "environment": {"torch": torch.__version__, "machine": f"{platform.machine()}, one core"},
        "runs": [],
    }
    if out.exists():
        earlier = json.loads(out.read_text(encoding="utf-8"))
        if earlier["settings"] != settings:
            raise SystemExit(f"{out} holds runs with other settings; choose another file with --out")
        document = earlier
    runs: list[Run] = document["runs"]
    done = [{name: x[name] for name in key} for key in wanted[:1] for x in runs]
    missing = [key for key in wanted if key not in done]
    with tqdm(total=sum(steps(key) for key in missing), unit="step") as bar:
        for key in missing:
            bar.set_description(", ".join(f"{name} {value}" for name, value in key.items()))
            found = run(key, bar.update)
            runs.append(key | {name: rounded(value) for name, value in found.items()})
            write_atomically(out, json.dumps(document, indent=1) + "\n")
    return [x for x in runs if {name: x[name] for name in wanted[0]} in wanted]


def rounded(value: Any) -> Any:
    """Return a number to four significant digits, anything else as it is."""
    return float(f"{value:.4g}") if isinstance(value, float) and math.isfinite(value) else value


def table(runs: list[Run], by: str, columns: dict[str, str]) -> str:
    """Return mean and standard deviation over the seeds, a row for each arm in the order of the runs, in Markdown."""
    lines = [f"| {by} | seeds | " + " | ".join(columns.values()) + " |", "|" + "---|" * (len(columns) + 2)]
    for arm in dict.fromkeys(x[by] for x in runs):
        rows = [x for x in runs if x[by] == arm]
        cells = []
        for name in columns:
            values = [row[name] for row in rows if row.get(name) is not None]
            spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3g}{spread}" if values else "–")
        lines.append(f"| {arm} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parser_of(document: str | None, seeds: int, steps: int, out: Path) -> argparse.ArgumentParser:
    """Return the arguments every study has."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--out", type=Path, default=out)
    return parser
