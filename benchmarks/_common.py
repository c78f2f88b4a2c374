"""What all benchmarks share: CPU times of programs taken in turn, what these depend on, and files of results."""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import hankelred
from hankelred.systems.files import write_atomically

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "scipy", "numba", "slycot", "control", "pymor")

Run = Callable[[], Any]


def least_times(runs: Mapping[str, Run], rounds: int = 0, budget: float = 0.1, fewest: int = 4) -> dict[str, float]:
    """The least CPU time of each program in seconds, all of them in turn.

    Turns are taken `rounds` times, or for about `budget` seconds a program and `fewest` times at least. What else the
    machine does falls on all programs alike, and only adds to a time.
    """
    least, start, count = dict.fromkeys(runs, math.inf), time.perf_counter(), 0
    while count <= rounds if rounds else count < fewest or time.perf_counter() - start < budget * len(runs):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            if count:  # the first round compiles, imports and fills caches
                least[name] = min(least[name], time.process_time() - begin)
        count += 1
    return least


def optional(name: str) -> Any:
    """A module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def surroundings(packages: tuple[str, ...] = PACKAGES) -> dict[str, Any]:
    """What the numbers depend on: versions, processor, date."""
    versions = {"python": platform.python_version(), "hankelred": hankelred.__version__}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "processor": processor(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": versions,
    }


def processor() -> str:
    """The name of the processor as the operating system knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def parser(doc: str | None, name: str) -> argparse.ArgumentParser:
    """A parser of arguments that knows where results go."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--output", type=Path, default=RESULTS / name)
    return found


def write(path: Path, document: dict[str, Any]) -> None:
    """Write results as JSON, the rows of a table on a line each; until they are complete the old file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "{\n" + ",\n".join(_entry(*item) for item in finite(document).items()) + "\n}\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def finite(value: Any) -> Any:
    """A value with None for every number in it that JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _entry(key: str, value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], (list, dict)):
        return f"{json.dumps(key)}: [\n" + ",\n".join(f"  {json.dumps(row)}" for row in value) + "\n]"
    return f"{json.dumps(key)}: {json.dumps(value)}"
