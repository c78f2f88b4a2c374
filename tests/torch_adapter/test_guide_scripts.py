"""Claims of the guide on training loops: its scripts run, and two lines are what compression adds to them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sizes import is_long

import hankelred_torch as ht

SCRIPTS = Path(__file__).parents[2] / "docs" / "guides" / "scripts"
NEEDS = {"plain_loop": "torch", "hugging_face": "transformers", "lightning_module": "lightning"}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings(r"ignore:.*isinstance\(treespec, LeafSpec\).*"),
]


def run(name, *, compressed):
    """Run a script with its new lines or without them, and return its model and accuracy."""
    pytest.importorskip(NEEDS[name])
    lines = (SCRIPTS / f"{name}.py").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if compressed or not line.endswith("# new")]
    namespace = {"__name__": name}
    threads = torch.get_num_threads()
    exec(compile("\n".join(kept), f"{name}.py", "exec"), namespace)
    model, accuracy = namespace["main"]()
    torch.set_num_threads(threads)
    return model, accuracy


@pytest.mark.parametrize("name", NEEDS)
def test_two_lines_are_new(name):
    lines = (SCRIPTS / f"{name}.py").read_text(encoding="utf-8").splitlines()
    new = [number for number, line in enumerate(lines, 1) if line.endswith("  # new")]
    assert len(new) == 2
    guide = (SCRIPTS.parent / "integrations.md").read_text(encoding="utf-8")
    assert f"scripts/{name}.py\n:emphasize-lines: {new[0]}, {new[1]}\n" in guide


@pytest.mark.parametrize("name", NEEDS)
def test_script_trains_without_the_new_lines(name):
    model, accuracy = run(name, compressed=False)
    assert ht.state_sizes(model) == {"layer": 32}
    assert accuracy > 0.9


@pytest.mark.parametrize("name", NEEDS)
def test_script_trains_a_smaller_model_with_them(name):
    model, accuracy = run(name, compressed=True)
    assert ht.state_sizes(model)["layer"] < 24
    assert accuracy > 0.9


@pytest.mark.skipif(not is_long(), reason="starts three processes that import everything: HANKELRED_LONG=1")
@pytest.mark.skipif(torch.cuda.is_available(), reason="would shard over GPUs: torch.cuda.is_available()")
def test_lines_of_the_guide_train_on_two_ranks_and_resume_on_one(tmp_path):
    guide = (SCRIPTS.parent / "sharded_training.md").read_text(encoding="utf-8").splitlines()
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS.parents[2]), "OMP_NUM_THREADS": "1"}
    said = []
    for line in [x for x in guide if x.startswith("torchrun --standalone")]:
        words = shlex.split(line.replace("sharded_loop.py", str(SCRIPTS / "sharded_loop.py")))
        command = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert ran.returncode == 0, ran.stderr[-4000:]
        assert "Warning" not in ran.stderr
        said += [x.partition(":")[0] for x in ran.stdout.splitlines() if x.startswith("step")]
    assert said == [f"step {k} on {ranks} ranks" for k, ranks in ((10, 2), (20, 2), (30, 1), (40, 1))]
