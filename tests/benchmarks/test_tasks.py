"""The tasks of the experiment: what is learned, and what it is measured by."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.experiment import tasks
from benchmarks.experiment.settings import PRESETS, Settings
from benchmarks.experiment.tasks import UNLABELLED, VOCABULARY, load_task
from hankelred.errors import InputError


@pytest.fixture(scope="module")
def text() -> tasks.Task:
    """The text task with little to measure on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "TRAINING", 200)
        patch.setattr(tasks, "MEASURED", 8)
        return load_task("text")


def decoded(tokens: torch.Tensor) -> str:
    return "".join(VOCABULARY[token] for token in tokens.flatten().tolist())


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


def test_a_random_sequence_of_recall_is_never_answered_by_its_position():
    labels = load_task("recall").train.labels[:, 2 * tasks.PAIRS :].numpy()
    most = max(np.bincount(column).max() for column in labels.T) / len(labels)
    assert most < 1.2 / tasks.VALUES  # 32,000 draws of 16 values: a deviation is 0.02 of the mean


def test_settings_are_those_of_the_task_unless_they_are_given():
    assert Settings.of("text").states == PRESETS["text"]["states"] == 128
    assert Settings.of("text", states=16).states == 16
    assert Settings.of("digits") == Settings()


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
