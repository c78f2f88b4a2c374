"""Every script of the gallery runs, what it asserts is true, and it leaves a picture.

A tenth of them here, because `make docs` runs all and stops at the first that fails.
"""

from __future__ import annotations

import runpy
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
from sizes import sample

GALLERY = Path(__file__).parents[1] / "docs" / "gallery"
SCRIPTS = [script for part in ("models", "training") for script in sample(sorted((GALLERY / part).glob("plot_*.py")))]
pytestmark = [  # what Trainers say on a machine without a GPU and with two cores
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings(r"ignore:.*isinstance\(treespec, LeafSpec\).*"),
]


@pytest.fixture(autouse=True)
def as_before(monkeypatch, tmp_path):
    """Leave backend, threads, figures and seeds to other tests as they were."""
    monkeypatch.chdir(tmp_path)
    backend, threads, state = matplotlib.get_backend(), torch.get_num_threads(), torch.get_rng_state()
    matplotlib.use("agg")
    yield
    plt.close("all")
    matplotlib.use(backend)
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_runs_and_draws(script, tmp_path):
    pytest.importorskip("control")
    runpy.run_path(str(script))
    (number,) = plt.get_fignums()
    plt.figure(number).savefig(tmp_path / "figure.png")  # what cannot be drawn fails here
