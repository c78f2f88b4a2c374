"""Settings every test runs under: one thread, no display, the same examples each time."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Before NumPy and torch are imported (nothing above does): LAPACK with several threads stalls on small matrices.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# `deterministic` draws the same examples on every machine; `thorough` looks for new ones:
#   HYPOTHESIS_PROFILE=thorough pytest
# No deadline in either: the first example of a test compiles numba kernels.
settings.register_profile(
    "deterministic",
    max_examples=30,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("thorough", max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "deterministic"))


def pytest_configure(config: pytest.Config) -> None:
    """Forget compiled kernels that are older than any source: numba looks at a kernel's own file, not at what it calls.

    A kernel that calls another one with arguments which that has no longer would go on in its old form.
    """
    if hasattr(config, "workerinput"):  # the others start when this is done
        return
    root = Path(__file__).parents[1] / "hankelred"
    newest = max(path.stat().st_mtime for path in root.rglob("*.py"))
    for index in root.rglob("*.nbi"):
        with suppress(FileNotFoundError):  # another session does the same
            if index.stat().st_mtime < newest:
                index.unlink()


@pytest.fixture(scope="session")
def pyproject() -> dict[str, Any]:
    """Return what pyproject.toml says."""
    return tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
