"""Results as JSON lines: one per run, added by whichever process made it; and the processes, one to a core."""

from __future__ import annotations

import argparse
import fcntl
import json
import multiprocessing
import os
import re
import resource
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks._common import finite, surroundings
from benchmarks.runs import rounded
from hankelred.errors import InputError

Line = dict[str, Any]
KEY = ("task", "arm", "kept", "seed")


def read(path: Path) -> list[Line]:
    """The lines of a file; a last one that was not written to its end is left out, and made again."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    found = []
    for number, text in enumerate(lines[:-1], 1):
        try:
            line = json.loads(text)
            found.append({name: line[name] for name in KEY} | line)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path} must hold the lines of an earlier run of this study; got another line {number}. Delete it, "
                f"or use another --out."
            ) from error
    return found


def add(path: Path, line: Line) -> None:
    """Add a line, whole or not at all, behind those of other processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb+" if path.exists() else "wb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = file.read()
        file.seek(text.rfind(b"\n") + 1)  # behind the last whole line
        file.truncate()
        file.write(json.dumps(finite(_rounded(line))).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _rounded(value: Any) -> Any:
    """A value with every number in it to four significant digits."""
    if isinstance(value, dict):
        return {name: _rounded(x) for name, x in value.items()}
    return [_rounded(x) for x in value] if isinstance(value, list) else rounded(value)


def of_run(lines: Sequence[Line], key: Line) -> Line | None:
    """The line of a run, None if there is none."""
    return next((line for line in lines if all(line[name] == value for name, value in key.items())), None)


def machine() -> Line:
    """What every line says of where it was made."""
    found = surroundings(("torch", "numpy", "scipy", "numba", "transformers"))
    return {
        "versions": found["versions"],
        "processor": found["processor"],
        "date": found["date"],
        "threads": 1,
        "commit": commit(),
    }


def commit() -> str:
    """The commit that the code is of, with a mark if it was changed since; empty outside of version control."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


class PeakMemory:
    """The largest memory of this process since the last start, in megabytes; since its own where it cannot be reset."""

    def start(self) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def megabytes(self) -> float:
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return round(next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) / 1024)
        except (OSError, StopIteration):
            return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def each_on_a_core(work: Callable[[Any, int], None], jobs: Sequence[Any], cores: Sequence[int]) -> None:
    """Do jobs in processes that are bound to a core each; `work` gets a job and the place of its process.

    The next job in order goes to the first process that is free. Ctrl-C ends them all; lines that were added stay.
    """
    if len(cores) == 1 or len(jobs) == 1:
        os.sched_setaffinity(0, {cores[0]})
        for job in jobs:
            work(job, 0)
        return
    context = multiprocessing.get_context("spawn")
    places = context.Queue()
    for place in enumerate(cores):
        places.put(place)
    with ProcessPoolExecutor(len(cores), context, _bind, (places,)) as pool:
        for future in [pool.submit(_do, work, job) for job in jobs]:
            future.result()


_PLACE = 0


def _bind(places: Any) -> None:
    global _PLACE
    _PLACE, core = places.get()
    os.sched_setaffinity(0, {core})


def _do(work: Callable[[Any, int], None], job: Any) -> None:
    work(job, _PLACE)


class Budget:
    """Wall-clock time after which nothing is begun; what is begun is finished."""

    def __init__(self, text: str) -> None:
        found = re.fullmatch(r"([\d.]+)\s*(s|min|h)", text)
        if not found:
            raise argparse.ArgumentTypeError(f"a budget is a number with s, min or h, such as 40min; got {text!r}")
        self._end = time.time() + float(found[1]) * {"s": 1.0, "min": 60.0, "h": 3600.0}[found[2]]

    @property
    def over(self) -> bool:
        """Whether it is used up."""
        return time.time() > self._end


def add_options(parser: argparse.ArgumentParser, out: Path) -> None:
    """Add the arguments of every study that writes lines: seeds, budget, cores and where results go."""
    here = sorted(os.sched_getaffinity(0))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=Budget, default="10000h", help="such as 40min, after which no run is begun")
    parser.add_argument("--cores", type=lambda n: here[: int(n)], default=here, help="how many; all by default")
    parser.add_argument("--out", type=Path, default=out)
