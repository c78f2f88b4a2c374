"""CPU time of imports in fresh interpreters: hankelred beside what it is built on, and python-control.

    python -m benchmarks.speed.imports          # prints, and writes benchmarks/results/imports_speed.json

Imports come in turn, the least time of nine each; the package is imported from a copy with bytecode.
"""

from __future__ import annotations

import compileall
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import hankelred
from benchmarks._common import parser, surroundings, write

BASE = "import numpy, scipy.linalg"
IMPORTS = (BASE, "import hankelred", "import hankelred.control", "import control")
ROUNDS = 9


def cpu_time(code: str, path: str) -> float:
    """The CPU time of a fresh interpreter."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=path, env={**os.environ, "PYTHONPATH": path})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    arguments = parser(__doc__, "imports_speed.json").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(Path(hankelred.__file__).parent, Path(folder) / "hankelred")
        compileall.compile_dir(folder, quiet=1)
        rounds = [[cpu_time(code, folder) for code in IMPORTS] for _ in range(ROUNDS)]
    seconds = {code: min(times) for code, times in zip(IMPORTS, zip(*rounds, strict=True), strict=True)}
    for code, least in seconds.items():
        print(f"{code}: {least:.3f} s, {least / seconds[BASE]:.2f} times the first")
    write(arguments.output, {**surroundings(), "seconds": seconds})


if __name__ == "__main__":
    main()
