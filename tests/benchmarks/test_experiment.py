"""The training experiment: one command, three arms, a report."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.experiment import probe, report, study
from benchmarks.experiment.__main__ import main
from benchmarks.experiment.record import PROMPT, RunRecord
from benchmarks.experiment.settings import Settings
from benchmarks.experiment.study import Study
from benchmarks.experiment.summary import gain, sentences
from benchmarks.experiment.trainer import Trainer
from benchmarks.tasks import BITS, base, load_task
from hankelred.systems import files

TINY = [
    *("--states", "8", "--channels", "4", "--dropout", "0.1"),
    *("--tau", "0.3", "--window", "0.5", "--attempts", "2"),
    *("--steps", "24", "--batch", "16"),
]
TINY_TEXT = ["--task", "text", "--states", "12", "--channels", "8", "--steps", "20", "--batch", "4", "--order", "4"]


def train(out: Path, *options: str) -> int:
    """Run the command in this process."""
    return main(["--out", str(out), *TINY, *options])


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def learned(out: Path) -> list[dict]:
    """What the runs of a folder learned, without the times."""
    timed = {"seconds", "rate_before", "rate_after"}
    return [{key: _untimed(value) for key, value in run.items() if key not in timed} for run in results(out)["runs"]]


def _untimed(value: object) -> object:
    if isinstance(value, list):
        return [{k: v for k, v in x.items() if k != "seconds"} if isinstance(x, dict) else x for x in value]
    return value


@pytest.fixture(autouse=True, scope="module")
def little_to_do():
    """Time and measure next to nothing."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (probe, "ROUNDS", 2),
            (probe, "BLOCK", 1),
            (base, "TRAINING", 200),
            (base, "MEASURED", 8),
        ):
            patch.setattr(module, name, value)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, little_to_do) -> Path:
    """The folder of a study of two seeds and all arms."""
    out = tmp_path_factory.mktemp("study")
    assert train(out, "--seeds", "2") == 0
    return out


@pytest.fixture(scope="module")
def written(tmp_path_factory, little_to_do) -> Path:
    """The folder of a study of the text with one seed and all arms."""
    out = tmp_path_factory.mktemp("text")
    assert main([*TINY_TEXT, "--seeds", "1", "--out", str(out)]) == 0
    return out


def runs(out: Path) -> dict[str, dict]:
    return {run["arm"]: run for run in results(out)["runs"]}


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
    monkeypatch.setattr(study, "record_run", refuse)
    monkeypatch.setattr(study, "measure_speed", refuse)
    assert train(finished, "--seeds", "2") == 0
    assert results(finished) == before | {"environment": results(finished)["environment"]}  # which has a date


def keep(finished: Path, out: Path, chosen: Callable[[dict], bool]) -> list[dict]:
    """Write some of the runs of a study into another folder."""
    document = results(finished)
    document["runs"] = [run for run in document["runs"] if chosen(run)]
    (out / "results.json").write_text(json.dumps(document))
    return document["runs"]


def test_more_seeds_go_on_from_those_there_are(tmp_path, finished):
    kept = keep(finished, tmp_path, lambda run: run["seed"] == 0)
    train(tmp_path, "--seeds", "2")
    assert results(tmp_path)["runs"][: len(kept)] == kept
    assert learned(tmp_path) == learned(finished)


def test_fewer_arms_and_seeds_lose_no_run(tmp_path, finished):
    kept = keep(finished, tmp_path, lambda run: True)
    assert train(tmp_path, "--seeds", "1", "--arms", "full") == 0
    assert results(tmp_path)["runs"] == kept
    assert results(tmp_path)["speed"] == results(finished)["speed"]


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path, finished, monkeypatch, capsys):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def fill(path, write):
        def half(file):
            file.write(b"half")
            raise OSError(28, "No space left on device", str(path))

        files.write_atomically(path, half)

    monkeypatch.setattr(report, "write_atomically", fill)
    assert train(tmp_path, "--seeds", "1") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.name != "results.json"} == {
        path: content for path, content in before.items() if path.name != "results.json"
    }


def signals(monkeypatch: pytest.MonkeyPatch, *sent: int) -> None:
    """Send signals to this process in the tenth step of the second run."""
    made, step = [], Trainer.step

    def step_and_send(trainer, look=None):
        made.append(trainer)
        if len(made) == 2 + 24 + 10:  # two steps compile
            for number in sent:  # one after the other: of two that wait, Python runs the lower number first
                handler, end = signal.getsignal(number), time.monotonic() + 10
                os.kill(os.getpid(), number)
                while signal.getsignal(number) is handler and time.monotonic() < end:
                    time.sleep(0.001)
        return step(trainer, look)

    monkeypatch.setattr(Trainer, "step", step_and_send)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_study_reports_what_there_is_and_goes_on_later(sent, code, tmp_path, monkeypatch, capsys):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        signals(patch, sent)
        assert train(tmp_path, "--seeds", "1") == code
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    said = capsys.readouterr()
    assert "stopping after this step" in said.err
    assert "interrupted at step 10, " in said.out
    assert not results(tmp_path)["complete"]
    first, second = results(tmp_path)["runs"]
    assert (second["steps"], second["test"]) == (10, None)
    page = (tmp_path / "report.html").read_text()
    assert "not complete" in page
    assert "Accuracy against time" in page
    assert train(tmp_path, "--seeds", "1") == 0
    assert results(tmp_path)["complete"]
    assert results(tmp_path)["runs"][0] == first
    assert [run["steps"] for run in results(tmp_path)["runs"]] == [24] * 3


def test_a_second_signal_ends_the_program_at_once_and_finished_runs_stay(tmp_path, monkeypatch):
    signals(monkeypatch, signal.SIGTERM, signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell in the background has ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, "--seeds", "1")
    finally:
        signal.signal(signal.SIGINT, before)
    assert [run["arm"] for run in results(tmp_path)["runs"]] == ["full"]


def test_closed_streams_do_not_matter(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert train(tmp_path, "--seeds", "1", "--arms", "full") == 0
    assert (tmp_path / "report.html").exists()


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
def test_a_bad_option_is_refused_in_three_parts(options, parts, tmp_path, capsys):
    assert train(tmp_path / "new", *options.split()) == 1
    said = capsys.readouterr().err
    for part in parts:
        assert part in said
    assert not (tmp_path / "new").exists()


def test_a_folder_with_other_settings_is_refused_and_left_alone(finished, capsys):
    before = results(finished)
    assert train(finished, "--tau", "0.2") == 1
    assert re.search(r"got tau=0\.2, and tau=0\.3 in .*results\.json\. Choose another place", capsys.readouterr().err)
    assert results(finished) == before


def test_an_out_that_cannot_be_a_folder_is_refused_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "record_run", None)
    (tmp_path / "taken").write_text("a file")
    assert train(tmp_path / "taken") == 1
    assert str(tmp_path / "taken") in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "a file"


def damaged(change: Callable[[dict], object]) -> Callable[[str], str]:
    def damage(text: str) -> str:
        document = json.loads(text)
        change(document)
        return json.dumps(document)

    return damage


DAMAGES: dict[str, Callable[[str], str]] = {
    "truncated": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "no object": lambda text: "[]",
    "an empty object": lambda text: "{}",
    "no text": lambda text: "\udcff\udcfe",
    "deep": lambda text: "[" * 100_000,
    "settings that are none": damaged(lambda x: x.update(settings=None)),
    "runs that are none": damaged(lambda x: x.update(runs={})),
    "a run that is none": damaged(lambda x: x["runs"].append([])),
    "an unknown field": damaged(lambda x: x["runs"][1].update(colour="red")),
    "a missing field": damaged(lambda x: x["runs"][1].pop("cuts")),
    "a field of another kind": damaged(lambda x: x["runs"][0].update(steps="24")),
    "an unknown field of a cut": damaged(lambda x: x["runs"][1]["cuts"][0].update(colour="red")),
    "a missing field of a measurement": damaged(lambda x: x["runs"][0]["measurements"][0].pop("hsv")),
    "a broken measurement": damaged(lambda x: x["runs"][0]["measurements"].__setitem__(0, None)),
    "a broken speed": damaged(lambda x: x.update(speed={"clock": "sun"})),
    "a speed that is a number": damaged(lambda x: x.update(speed=3)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_of_results_is_refused_by_name_and_left_alone(damage, finished, tmp_path, capsys):
    path, whole = tmp_path / "results.json", (finished / "results.json").read_text()
    path.write_bytes(damage(whole).encode(errors="surrogateescape"))
    before = path.read_bytes()
    assert train(tmp_path, "--seeds", "2") == 1
    said = capsys.readouterr().err
    assert said.startswith(f"experiment: {path} must hold the results of an earlier run; got ")
    assert said.endswith("Delete or rename it, or use another --out.\n")
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["stray.json", "runs/stray.json", "speed.json"])
def test_other_files_in_the_folder_do_not_matter(name, finished, tmp_path):
    kept = keep(finished, tmp_path, lambda run: True)
    stray = tmp_path / name
    stray.parent.mkdir(exist_ok=True)
    stray.write_text("{")
    assert train(tmp_path, "--seeds", "2") == 0
    assert results(tmp_path)["runs"] == kept
    assert stray.read_text() == "{"


def test_order_leads_to_that_many_states(tmp_path):
    train(tmp_path, "--seeds", "1", "--arms", "compressed", "--order", "3")
    (run,) = results(tmp_path)["runs"]
    assert (run["cuts"][-1]["step"], run["cuts"][-1]["after"]) == (12, 3)


def test_fewer_bits_are_better():
    text = load_task("text")
    record = RunRecord("full", 0, {"": 4}, measurements=[])
    found = {("compressed", 0): 2.0, ("scratch", 0): 2.5, ("compressed", 1): 2.1, ("scratch", 1): 2.6}
    records = [replace(record, arm=arm, seed=seed, test=test) for (arm, seed), test in found.items()]
    whole = Study(Settings.of("text"), text, ["compressed", "scratch"], 2, records)
    assert gain(whole, "compressed", "scratch").mean == pytest.approx(-0.5)
    said = [sentence for sentence in sentences(whole) if "small from the start" in sentence]
    assert "0.500 bits per character of the test text below" in said[0]
    assert "shrinking while learning helped" in said[0]
    assert not BITS.rises


def test_the_help_names_the_defaults_of_every_task(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    defaults = "64, 128 for text, recall, recall-16, recall-32, 256 for smnist, scifar"
    assert f"stored states of each layer at the start (default: {defaults})" in said


def test_the_compressed_arm_is_cut_once_at_the_end_of_the_window(written):
    found = runs(written)["compressed"]
    assert [(cut["step"], cut["before"], cut["after"]) for cut in found["cuts"]] == [(2, 12, 4)] * 2
    assert runs(written)["scratch"]["states"] == {"blocks.0.ssm": 4, "blocks.1.ssm": 4}


def test_results_are_in_bits_per_character(written):
    document = results(written)
    assert document["metric"]["name"] == "bits per character"
    assert all(1 < run["test"] < 8 for run in document["runs"])


def test_texts_are_kept_before_and_after_a_cut_and_in_the_end(written):
    samples = runs(written)["compressed"]["samples"]
    states = [(x["step"], x["when"], set(x["states"].values())) for x in samples]
    assert states == [(2, "before the cut", {12}), (2, "after the cut", {4}), (20, "in the end", {4})]
    assert all(x["text"].startswith(PROMPT) and len(x["text"]) > 100 for x in samples)


def test_the_report_speaks_of_bits_and_shows_what_was_written(written):
    page = (written / "report.html").read_text()
    for part in ("Bits per character against time", "test bits per character", "What it writes", "before the cut"):
        assert part in page, part
    assert "accuracy" not in page
    assert (written / "bits.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_of_state_space_layers_alone_is_reported_too(tmp_path):
    options = "--task teacher-4 --seeds 1 --steps 10 --states 8 --attempts 1 --batch 4"
    main([*options.split(), "--out", str(tmp_path)])
    assert "of the mean square" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [cut["after"] for cut in runs(tmp_path)["compressed"]["cuts"]] == [4]
