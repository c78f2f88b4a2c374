"""The training experiment on tokens: a language model, what it is measured by, and what it writes."""

from __future__ import annotations

import argparse
import copy
import json
import math
import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hankelred.errors import InputError
from hankelred_torch import state_sizes
from hankelred_torch.experiment import probe, sampling, tasks
from hankelred_torch.experiment.cli import register
from hankelred_torch.experiment.settings import LAYERS, PRESETS, Settings
from hankelred_torch.experiment.study import Study
from hankelred_torch.experiment.summary import gain, sentences
from hankelred_torch.experiment.tasks import BITS, UNLABELLED, VOCABULARY, Part, load_task
from hankelred_torch.experiment.training import RunRecord, Trainer

TINY = {"states": 12, "channels": 8, "steps": 20, "batch": 4}


def parsed(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hankelred")
    register(parser.add_subparsers())
    return parser.parse_args(["train", *options])


@pytest.fixture(scope="module")
def text() -> tasks.Task:
    """Return the text task with little to measure on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "TRAINING", 200)
        patch.setattr(tasks, "MEASURED", 8)
        return load_task("text")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Return the folder of a study of the text with one seed and all arms."""
    out = tmp_path_factory.mktemp("text")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ROUNDS", 2), ("BLOCK", 1)):
            patch.setattr(probe, name, value)
        for name, value in (("TRAINING", 200), ("MEASURED", 8)):
            patch.setattr(tasks, name, value)
        sizes = [f"--{name}={value}" for name, value in TINY.items()]
        arguments = parsed("--task", "text", "--seeds", "1", "--order", "4", "--out", str(out), *sizes)
        assert arguments.run(arguments) == 0
    return out


def runs(out: Path) -> dict[str, dict]:
    return {run["arm"]: run for run in json.loads((out / "results.json").read_text())["runs"]}


def decoded(tokens: torch.Tensor) -> str:
    return "".join(VOCABULARY[token] for token in tokens.flatten().tolist())


def test_the_text_is_that_of_the_standard_library(text):
    root = Path(sysconfig.get_path("stdlib"))
    whole = "".join(path.read_text(encoding="utf-8") for path in (root / "ast.py", root / "os.py", root / "abc.py"))
    found = [decoded(part.inputs[0]) for part in (text.train, text.validation, text.test)]
    assert all("\ufffd" not in x and len(x) == tasks.CONTEXT for x in found)
    assert set(whole) <= set(VOCABULARY)
    sources = {path.read_text(encoding="utf-8", errors="replace") for path in root.rglob("*.py")}
    assert all(any(piece in source for source in sources) for piece in (x[20:60] for x in found))


def test_the_text_is_the_same_at_every_load(text, monkeypatch):
    monkeypatch.setattr(tasks, "TRAINING", 200)
    monkeypatch.setattr(tasks, "MEASURED", 8)
    again = load_task("text")
    assert torch.equal(again.train.inputs, text.train.inputs)
    assert torch.equal(again.test.labels, text.test.labels)


def test_labels_are_the_characters_that_follow(text):
    assert torch.equal(text.train.inputs[:, 1:], text.train.labels[:, :-1])


def test_unknown_characters_become_one_token(tmp_path):
    file = tmp_path / "a.py"
    file.write_bytes("x\tσ\U0001d518\x7f\r\ny".encode())
    assert decoded(torch.from_numpy(tasks._encoded([file]))) == "x\ufffd\ufffd\ufffd\ufffd\ny"


def test_no_file_is_in_two_parts(monkeypatch):
    seen: list[set[Path]] = []
    encode = tasks._encoded
    monkeypatch.setattr(tasks, "_encoded", lambda files: (seen.append(set(files)), encode(files[:3]))[1])
    load_task("text")
    train, validation, test = seen
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert len(validation) == len(test) == (len(train) + len(validation) + len(test)) // 10


def test_a_python_without_its_source_is_refused_in_three_parts(monkeypatch, tmp_path):
    monkeypatch.setattr(tasks.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(InputError, match=r"must be installed for the task text; got 0 files in .*another task"):
        load_task("text")


def test_recall_asks_for_the_value_each_key_was_shown_with():
    task = load_task("recall")
    for inputs, labels in zip(task.test.inputs[:20].tolist(), task.test.labels[:20].tolist(), strict=True):
        shown = dict(zip(inputs[0 : 2 * tasks.PAIRS : 2], inputs[1 : 2 * tasks.PAIRS : 2], strict=True))
        asked = inputs[2 * tasks.PAIRS :]
        assert len(shown) == tasks.PAIRS  # no key twice
        assert sorted(asked) == sorted(shown)
        assert labels[2 * tasks.PAIRS :] == [shown[key] for key in asked]
        assert set(labels[: 2 * tasks.PAIRS]) == {UNLABELLED}


def test_a_model_that_knows_nothing_needs_the_logarithm_of_the_vocabulary(text):
    trainer = Trainer(text, Settings.of("text", **TINY), [4, 4], seed=0, shrink=False)
    torch.nn.init.zeros_(trainer.model.head.weight)
    torch.nn.init.zeros_(trainer.model.head.bias)
    assert trainer.score(text.test) == pytest.approx(math.log2(len(VOCABULARY)), rel=1e-6)  # sums in single precision


def test_positions_without_label_count_in_neither_measure():
    task = load_task("recall")
    trainer = Trainer(task, Settings.of("recall", **TINY), [4, 4], seed=0, shrink=False)
    part = Part(task.test.inputs[:8], task.test.labels[:8])
    late = Part(part.inputs, part.labels.clone())
    late.labels[:, -4:] = UNLABELLED
    scores = trainer.model(part.inputs).log_softmax(dim=-1)[:, 2 * tasks.PAIRS : -4]
    labels = part.labels[:, 2 * tasks.PAIRS : -4]
    bits = -scores.gather(2, labels[..., None]).mean().item() / math.log(2)
    assert trainer.bits(late) == pytest.approx(bits, rel=1e-5)
    assert trainer.accuracy(late) == pytest.approx(100 * (scores.argmax(-1) == labels).double().mean().item())


@pytest.mark.parametrize("layer", LAYERS)
def test_a_token_model_sees_nothing_of_what_comes_after(layer, text):
    torch.manual_seed(0)
    settings = Settings.of("text", **TINY | {"layer": layer})
    model = Trainer(text, settings, [4, 4], seed=0, shrink=False).model
    tokens = text.test.inputs[:2].clone()
    before = model(tokens)
    tokens[:, 70:] = (tokens[:, 70:] + 1) % len(VOCABULARY)
    after = model(tokens)
    # to rounding: convolutions by fast Fourier transforms mix all positions by 1e-7 or so
    torch.testing.assert_close(before[:, :70], after[:, :70], rtol=0, atol=1e-5)
    assert (before[:, 70:] - after[:, 70:]).abs().max() > 1e-3


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_can_be_cut_while_it_learns_the_digits(layer):
    settings = Settings(layer=layer, states=8, channels=4, steps=4, window=0.5, attempts=1, batch=8, order=3)
    trainer = Trainer(load_task("digits"), settings, [8], seed=0, shrink=True)
    for _ in range(4):
        trainer.step()
    assert state_sizes(trainer.model) == {"blocks.0.ssm": 3}


def test_of_mamba_only_the_marked_parameters_are_spared_the_decay(text):
    trainer = Trainer(text, Settings.of("text", **TINY), [4, 4], seed=0, shrink=False)
    spared = {id(p) for p in trainer.optimizer.param_groups[1]["params"]}
    names = {name for name, p in trainer.model.named_parameters() if id(p) in spared}
    assert names == {f"blocks.{k}.ssm.{name}" for k in (0, 1) for name in ("A_log", "D")}


def test_a_branch_goes_on_as_its_trunk_to_the_last_bit(text):
    trunk = Trainer(text, Settings.of("text", **TINY | {"steps": 200}), [6, 6], seed=1, shrink=False)
    for _ in range(48):  # the first epoch has 50 batches
        trunk.learn()
    branch, untouched = trunk.branch(), copy.deepcopy(trunk.model.state_dict())
    losses = [branch.learn() for _ in range(5)]
    for name, value in trunk.model.state_dict().items():
        assert torch.equal(value, untouched[name]), name
    assert losses == [trunk.learn() for _ in range(5)]
    for x, y in zip(trunk.model.parameters(), branch.model.parameters(), strict=True):
        assert torch.equal(x, y)


def test_a_branch_cuts_where_its_trunk_does(text):
    trunk = Trainer(text, Settings.of("text", **TINY | {"window": 0.2, "order": 3}), [6, 6], seed=1, shrink=True)
    trunk.step()
    branch = trunk.branch()
    cuts = [[cut["step"] for cut in x.step()[1]] for x in (trunk, branch) for _ in range(3)]
    assert cuts == [[], [], [4, 4]] * 2


@pytest.mark.parametrize(
    ("asked", "used"),
    [("rotation", "rotation"), ("selection", "folded selection"), ("selection_without_fold", "selection")],
)
def test_the_method_that_is_asked_for_cuts(asked, used, text):
    settings = Settings.of("text", **TINY | {"window": 0.1, "order": 3, "method": asked})
    trainer = Trainer(text, settings, [6, 6], seed=0, shrink=True)
    trainer.step()
    _, cuts = trainer.step()
    assert [cut["method"] for cut in cuts] == [used, used]
    assert all(0 < cut["output_error"] < 1 for cut in cuts)


def test_the_compressed_arm_is_cut_once_at_the_end_of_the_window(finished):
    found = runs(finished)["compressed"]
    assert [(cut["step"], cut["before"], cut["after"]) for cut in found["cuts"]] == [(2, 12, 4)] * 2
    assert runs(finished)["scratch"]["states"] == {"blocks.0.ssm": 4, "blocks.1.ssm": 4}


def test_results_are_in_bits_per_character(finished):
    document = json.loads((finished / "results.json").read_text())
    assert document["metric"]["name"] == "bits per character"
    assert all(1 < run["test"] < 8 for run in document["runs"])


def test_texts_are_kept_before_and_after_a_cut_and_in_the_end(finished):
    samples = runs(finished)["compressed"]["samples"]
    states = [(x["step"], x["when"], set(x["states"].values())) for x in samples]
    assert states == [(2, "before the cut", {12}), (2, "after the cut", {4}), (20, "in the end", {4})]
    assert all(x["text"].startswith(sampling.PROMPT) and len(x["text"]) > 100 for x in samples)


def test_the_report_speaks_of_bits_and_shows_what_was_written(finished):
    page = (finished / "report.html").read_text()
    for part in ("Bits per character against time", "test bits per character", "What it writes", "before the cut"):
        assert part in page, part
    assert "accuracy" not in page
    assert (finished / "bits.png").read_bytes().startswith(b"\x89PNG")


def test_writing_is_repeatable_and_leaves_the_model_and_random_numbers_alone(text):
    model = Trainer(text, Settings.of("text", **TINY), [4, 4], seed=0, shrink=False).model
    state = torch.random.get_rng_state()
    assert sampling.write(model, text) == sampling.write(model, text)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_fewer_bits_are_better(text):
    record = RunRecord("full", 0, {"": 4}, measurements=[])
    found = {("compressed", 0): 2.0, ("scratch", 0): 2.5, ("compressed", 1): 2.1, ("scratch", 1): 2.6}
    records = [replace(record, arm=arm, seed=seed, test=test) for (arm, seed), test in found.items()]
    study = Study(Settings.of("text"), text, ["compressed", "scratch"], 2, records)
    assert gain(study, "compressed", "scratch").mean == pytest.approx(-0.5)
    said = [sentence for sentence in sentences(study) if "small from the start" in sentence]
    assert "0.500 bits per character of the test text below" in said[0]
    assert "shrinking while learning helped" in said[0]
    assert not BITS.rises


def test_settings_are_those_of_the_task_unless_they_are_given():
    assert Settings.of("text").states == PRESETS["text"]["states"] == 128
    assert Settings.of("text", states=16).states == 16
    assert Settings.of("digits") == Settings()


def test_the_help_names_the_defaults_of_every_task(capsys):
    with pytest.raises(SystemExit):
        parsed("--help")
    said = " ".join(capsys.readouterr().out.split())
    assert "stored states of each layer at the start (default: 64, 128 for text and recall)" in said


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"layer": "gru"}, ["layer must be one of lru, mamba, s4d, s5", "got 'gru'", "The help says"]),
        ({"method": "best"}, ["method must be one of auto", "got 'best'", "The help says"]),
    ],
)
def test_an_unknown_choice_is_refused_in_three_parts(options, parts):
    with pytest.raises(InputError) as refused:
        Settings(**options)
    for part in parts:
        assert part in str(refused.value)


def test_a_random_sequence_of_recall_is_never_answered_by_its_position():
    labels = load_task("recall").train.labels[:, 2 * tasks.PAIRS :].numpy()
    most = max(np.bincount(column).max() for column in labels.T) / len(labels)
    assert most < 1.2 / tasks.VALUES  # 32,000 draws of 16 values: a deviation is 0.02 of the mean
