"""The training experiment: one command, three arms, a report."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from hankelred.errors import InputError
from hankelred_torch.experiment import probe, study, training
from hankelred_torch.experiment.cli import register
from hankelred_torch.experiment.settings import Settings
from hankelred_torch.experiment.summary import Spread
from hankelred_torch.experiment.tasks import load_task
from hankelred_torch.layers import S5

TINY = [
    *("--states", "8", "--channels", "4", "--dropout", "0.1"),
    *("--tau", "0.3", "--window", "0.5", "--attempts", "2"),
    *("--steps", "24", "--batch", "16"),
]
PROGRAM = """
import argparse, sys
from hankelred_torch.experiment.cli import register
parser = argparse.ArgumentParser()
register(parser.add_subparsers())
arguments = parser.parse_args()
sys.exit(arguments.run(arguments))
"""


def train(out: Path, *options: str) -> int:
    """Run the subcommand in this process, with a short speed probe."""
    parser = argparse.ArgumentParser(prog="hankelred")
    register(parser.add_subparsers())
    arguments = parser.parse_args(["train", "--out", str(out), *TINY, *options])
    return arguments.run(arguments)


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def learned(out: Path) -> list[dict]:
    """Return what the runs of a folder learned, without the times."""
    timed = {"seconds", "rate_before", "rate_after"}
    return [{key: _untimed(value) for key, value in run.items() if key not in timed} for run in results(out)["runs"]]


def _untimed(value: object) -> object:
    if isinstance(value, list):
        return [{k: v for k, v in x.items() if k != "seconds"} if isinstance(x, dict) else x for x in value]
    return value


@pytest.fixture(autouse=True)
def short_probe(monkeypatch):
    monkeypatch.setattr(probe, "ROUNDS", 2)
    monkeypatch.setattr(probe, "BLOCK", 1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a study of two seeds and all arms."""
    out = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "ROUNDS", 2)
        patch.setattr(probe, "BLOCK", 1)
        assert train(out, "--seeds", "2") == 0
    return out


def test_every_arm_and_seed_is_trained_to_the_last_step(finished):
    runs = [(run["arm"], run["seed"], run["steps"]) for run in results(finished)["runs"]]
    assert runs == [(arm, seed, 24) for seed in (0, 1) for arm in ("full", "compressed", "scratch")]


def test_compressed_loses_states_in_the_window(finished):
    for run in results(finished)["runs"]:
        if run["arm"] == "compressed":
            assert run["cuts"]
            assert all(cut["step"] <= 12 for cut in run["cuts"])


def test_scratch_starts_at_the_sizes_that_compressed_ends_with(finished):
    runs = {(run["arm"], run["seed"]): run for run in results(finished)["runs"]}
    for seed in (0, 1):
        assert runs["scratch", seed]["states"] == runs["compressed", seed]["measurements"][-1]["states"]


def test_full_keeps_its_states_and_parameters(finished):
    for run in results(finished)["runs"]:
        if run["arm"] == "full":
            assert run["measurements"][-1]["states"] == run["states"] == {"blocks.0.ssm": 8}
            assert run["parameters"][0] == run["parameters"][1]


def test_arms_of_one_seed_see_the_same_data():
    settings, task = Settings(states=8, channels=4), load_task("digits")
    full, small = (training.Trainer(task, settings, [n], seed=3, shrink=False) for n in (8, 2))
    for _ in range(30):  # beyond the end of an epoch
        assert torch.equal(full.next_batch()[0], small.next_batch()[0])


def test_the_same_seed_gives_the_same_result_to_the_last_bit(finished, tmp_path):
    train(tmp_path, "--seeds", "1")
    assert learned(tmp_path) == learned(finished)[:3]


def test_another_seed_gives_another_result(finished):
    runs = learned(finished)
    assert runs[0]["measurements"] != runs[3]["measurements"]


def test_a_study_leaves_threads_and_random_state_alone(tmp_path):
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    train(tmp_path, "--seeds", "1", "--arms", "full", "--threads", "2")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_the_report_contains_every_promised_part(finished):
    page = (finished / "report.html").read_text()
    for part in (
        "The arms compared", "test accuracy", "final states", "before first cut", "after last cut", "training time",
        "parameters", "Accuracy against time", "State sizes over time", "Hankel singular values while",
        "What a step costs", "points of test accuracy", "outside the state space layers", "Settings",
    ):  # fmt: skip
        assert part in page, part
    assert len(re.findall(r'src="data:image/png;base64,[A-Za-z0-9+/]{1000}', page)) == 4
    for name in ("accuracy", "states", "waterfall", "speed"):
        assert (finished / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_nothing_from_elsewhere(finished):
    page = (finished / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)


def test_the_table_shows_mean_and_deviation_over_seeds(finished):
    tests = [run["test"] for run in results(finished)["runs"] if run["arm"] == "full"]
    expected = f"{np.mean(tests):.1f} ± {np.std(tests, ddof=1):.1f}"
    assert expected in (finished / "report.html").read_text()


def test_finished_runs_are_not_made_again(finished, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a finished run was trained again")

    before = results(finished)
    monkeypatch.setattr(study, "train", refuse)
    monkeypatch.setattr(study, "measure_speed", refuse)
    assert train(finished, "--seeds", "2") == 0
    assert results(finished) == before


def test_more_seeds_go_on_from_those_there_are(tmp_path, finished):
    (tmp_path / "runs").mkdir()
    for path in (finished / "runs").glob("*-seed0.json"):
        shutil.copy(path, tmp_path / "runs")
    train(tmp_path, "--seeds", "2")
    for path in (finished / "runs").glob("*-seed0.json"):
        assert (tmp_path / "runs" / path.name).read_bytes() == path.read_bytes()
    assert learned(tmp_path) == learned(finished)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    def fail_half_way(path, text, **options):
        path.write_bytes(text[: len(text) // 2].encode())
        raise OSError("disk full")

    file = tmp_path / "run.json"
    study.write_atomically(file, "old")
    monkeypatch.setattr(Path, "write_text", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        study.write_atomically(file, "something new")
    assert file.read_bytes() == b"old"


def test_an_interrupted_study_reports_what_there_is_and_goes_on_later(tmp_path):
    options = [*TINY, "--seeds", "1", "--steps", "200"]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "train", "--out", str(tmp_path), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    first = tmp_path / "runs" / "full-seed0.json"
    _wait_for(first, process)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 130, messages
    assert "stopping after this step" in messages
    assert not results(tmp_path)["complete"]
    page = (tmp_path / "report.html").read_text()
    assert "not complete" in page
    assert "Accuracy against time" in page
    written = first.read_bytes()
    assert train(tmp_path, *options[len(TINY) :]) == 0
    assert results(tmp_path)["complete"]
    assert first.read_bytes() == written


def _wait_for(path: Path, process: subprocess.Popen) -> None:
    """Wait until a program has written a file."""
    for _ in range(3000):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError(f"{path.name} was not written in a minute")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ("--task nosuch", ["task must be one of", "got 'nosuch'", "Choose from: digits"]),
        ("--arms full,scratch", ["arms must name compressed", "got full, scratch", "Add compressed"]),
        ("--arms full,half", ["arms must be of", "got half", "Separate by commas"]),
        ("--seeds 0", ["seeds must be at least 1", "got 0", "One run"]),
        ("--tau 1.5", ["tau must be between 0 and 1", "got 1.5", "share that a cut may drop"]),
        ("--order 9", ["order must be from 1 to 8", "got 9", "stored states to keep"]),
        ("--steps 0", ["steps must be at least 1", "got 0", "Choose a positive number"]),
        ("--window 0.01", ["window must be", "got 0 of 24 steps", "widen the window"]),
    ],
)
def test_a_bad_option_is_refused_in_three_parts(options, parts, tmp_path):
    with pytest.raises(InputError) as refused:
        train(tmp_path / "new", *options.split())
    for part in parts:
        assert part in str(refused.value)
    assert not (tmp_path / "new").exists()


def test_a_folder_with_other_settings_is_refused_and_left_alone(finished):
    before = results(finished)
    with pytest.raises(InputError, match=r"got tau=0\.2, and tau=0\.3 in .*Choose another folder"):
        train(finished, "--tau", "0.2")
    assert results(finished) == before


def test_order_leads_to_that_many_states(tmp_path):
    train(tmp_path, "--seeds", "1", "--arms", "compressed", "--order", "3")
    (run,) = results(tmp_path)["runs"]
    assert (run["cuts"][-1]["step"], run["cuts"][-1]["after"]) == (12, 3)


def test_diverged_training_says_what_to_do():
    settings, task = Settings(states=8, channels=4), load_task("digits")
    trainer = training.Trainer(task, settings, [8], seed=0, shrink=False)
    with pytest.raises(np.linalg.LinAlgError, match=r"finite; got nan at step 7\. Choose a smaller learning"):
        training._measure(trainer, 7, 0.0, torch.tensor(float("nan")), task)


def test_the_parts_of_the_digits_are_disjoint_and_cover_them():
    task = load_task("digits")
    parts = [part.inputs.flatten(1).numpy() for part in (task.train, task.validation, task.test)]
    assert sum(len(part) for part in parts) == 1797
    rows = {row.tobytes() for part in parts for row in part}
    assert len(rows) == 1797 - _repeated()


def _repeated() -> int:
    from sklearn.datasets import load_digits

    images = load_digits().data
    return len(images) - len({row.tobytes() for row in images})


def test_one_seed_has_no_confidence_interval():
    assert Spread.of([3.0]).interval() is None


def test_the_confidence_interval_is_students():
    # 1, 2, 3: mean 2, deviation 1, quantile 4.303 of two degrees of freedom
    low, high = Spread.of([1.0, 2.0, 3.0]).interval()
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)


def test_poles_of_s5_that_training_makes_unstable_are_put_back():
    settings = Settings(layer="s5", states=8, channels=4, steps=24, batch=16)
    trainer = training.Trainer(load_task("digits"), settings, [8], seed=0, shrink=False)
    (layer,) = (module for module in trainer.model.modules() if isinstance(module, S5))
    with torch.no_grad():
        layer.Lambda_re[0] = 0.05
    trainer.learn()
    assert layer.Lambda_re.max() <= training.LARGEST_REAL_PART
