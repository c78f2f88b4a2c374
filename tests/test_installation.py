"""Imports, and compiled code that can be kept nowhere: a read-only installation, a full disk, a damaged cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sizes import is_long

import hankelred

PACKAGE = Path(hankelred.__file__).parent
KERNEL = """
from hankelred.linalg.compiled import kernel

@kernel
def doubled(x):
    return 2.0 * x
"""
CALL = "import kernel; assert kernel.doubled(21.0) == 42.0"


def run(code: str, *prefix: str, **environment: str) -> None:
    """Run code in a fresh interpreter, and fail with what it says if it fails."""
    path = os.pathsep.join([environment.pop("PYTHONPATH", ""), str(PACKAGE.parent)])
    known = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA")}
    command = [*prefix, sys.executable, "-c", code]
    found = subprocess.run(
        command, env={**known, "PYTHONPATH": path, **environment}, cwd="/", capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A folder with a module of one kernel."""
    (tmp_path / "kernel.py").write_text(KERNEL, encoding="utf-8")
    return tmp_path


def test_import_loads_nothing_that_is_seldom_needed():
    seldom = {"numba", "scipy.signal", "scipy.io", "scipy.optimize", "control", "matplotlib", "torch"}
    run(f"import sys, hankelred, hankelred.control; found = {seldom} & sys.modules.keys(); assert not found, found")


@pytest.mark.parametrize("size", [0, 1, 100])
def test_damaged_cache_files_cost_time_and_no_results(kernel, size):
    cache = kernel / "cache"
    run(CALL, PYTHONPATH=str(kernel), NUMBA_CACHE_DIR=str(cache))
    files = [file for file in cache.rglob("*") if file.is_file()]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:size])
    run(CALL, PYTHONPATH=str(kernel), NUMBA_CACHE_DIR=str(cache))


def test_a_cache_folder_that_cannot_be_made_costs_time_and_no_results(kernel):
    run(CALL, PYTHONPATH=str(kernel), NUMBA_CACHE_DIR=str(kernel / "kernel.py" / "below a file"))


def test_a_full_disk_costs_time_and_no_results(kernel):
    pytest.importorskip("resource", reason="limits the size of files, which is as good as a full disk")
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); "
    run(full + CALL, PYTHONPATH=str(kernel), NUMBA_CACHE_DIR=str(kernel / "cache"))


def test_a_read_only_installation_of_a_user_without_a_home_works(tmp_path):
    setpriv = shutil.which("setpriv")
    if os.name == "nt" or (os.geteuid() == 0 and setpriv is None):
        pytest.skip("needs a user whom file modes stop")
    copy = tmp_path / "site"
    shutil.copytree(PACKAGE, copy / "hankelred", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "kernel.py").write_text(KERNEL, encoding="utf-8")
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    powerless = [str(setpriv), "--bounding-set", "-dac_override", "--inh-caps", "-dac_override"]
    code = f"import hankelred as hr; assert hr.__file__.startswith({str(copy)!r}); {CALL}"
    if is_long():  # all kernels of a reduction are compiled
        code += "; bal = hr.balance(([[-1.0, 2.0], [0.0, -3.0]], [[1.0], [2.0]], [[1.0, 1.0]], 0)); bal.reduce(1)"
    run(code, *(powerless if os.geteuid() == 0 else []), PYTHONPATH=str(copy), HOME=os.path.join(os.devnull, "nobody"))
