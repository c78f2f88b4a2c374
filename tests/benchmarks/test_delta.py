"""The study of the keys of gated delta nets: its task, its ways to cut, its runs and its page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import lines
from benchmarks.experiment.trainer import Trainer
from benchmarks.speed import decode
from benchmarks.studies.delta import __main__ as study
from benchmarks.studies.delta import report, ways
from benchmarks.tasks import UNLABELLED, load_task
from benchmarks.tasks.recall import VALUES
from hankelred.selective import SelectiveStatistics
from hankelred_torch import find_ssm_layers, state_sizes

pytest.importorskip("transformers")

RESULTS = Path(report.__file__).parents[2] / "results" / "delta.jsonl"
SETTINGS = replace(study.settings_of("mqar-8", 10), states=16, channels=8, batch=4)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def trained(seed: int = 0) -> Trainer:
    trainer = Trainer(load_task("mqar-8"), SETTINGS, seed)
    trainer.train_to(5, lambda: None)
    return trainer


def test_recall_of_directions_asks_for_the_value_that_each_was_shown_with():
    part = load_task("mqar-8").test
    shown, values = part.inputs[:, 0:16:2, :8], part.inputs[:, 1:16:2, 8:].argmax(-1)
    near = torch.einsum("bqd,bpd->bqp", part.inputs[:, 16:, :8], shown)
    asked = near.argmax(-1)  # a direction is nearest to itself
    assert torch.equal(part.labels[:, 16:], values.gather(1, asked))
    assert (part.labels[:, :16] == UNLABELLED).all()
    assert (asked.sort().values == torch.arange(8)).all()
    torch.testing.assert_close(part.inputs[:, 0:16:2].square().sum(-1), torch.full((len(part), 8), 8.0))
    counts = np.bincount(part.labels[:, 16:].flatten(), minlength=VALUES)
    assert counts.min() > 0.5 * counts.mean()  # nothing is to be had by guessing one value


def test_pivots_pass_over_channels_that_others_tell_and_scores_do_not():
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((500, 4)) * [3.0, 3.0, 2.0, 1.0]
    keys[:, 1] = keys[:, 0]
    sums = SelectiveStatistics(4)
    sums.update(np.full((1, 500, 4), 0.5), keys[None], keys[None])
    seen = ways.Seen(sums, (keys.T @ keys)[None], 0)
    assert set(ways.by_pivots(seen, 3)[0]) in ({0, 2, 3}, {1, 2, 3})
    assert set(ways.by_score(seen, 3)[0]) == {0, 1, 2}
    assert not np.array_equal(ways.at_random(seen, 3), ways.at_random(replace(seen, seed=5), 3))


@pytest.mark.parametrize("way", ways.WAYS)
def test_every_way_keeps_channels_or_a_basis_of_them(way):
    trainer, like = trained(), trained()
    expected = ways.cut(trainer, way, 8, 0)
    assert set(state_sizes(trainer.model).values()) == {8}
    assert expected["bytes"] == [16 * 16 * 4, 8 * 16 * 4]
    assert 0 < expected["predicted"] < 1
    old, new = (next(iter(find_ssm_layers(x.model).values())).layer for x in (like, trainer))
    if way == "rotation":
        torch.testing.assert_close(new.key_map @ new.key_map.T, torch.eye(8))
        return
    rows = [int((old.in_proj_qkv.weight[:16] == x).all(1).nonzero()[0]) for x in new.in_proj_qkv.weight[:8]]
    assert torch.equal(new.in_proj_qkv.weight[8:16], old.in_proj_qkv.weight[16 + torch.tensor(rows)])
    averages = [x.optimizer.state[y.in_proj_qkv.weight]["exp_avg"] for x, y in ((like, old), (trainer, new))]
    assert torch.equal(averages[1][:8], averages[0][rows])


def test_a_selection_is_expected_to_change_no_more_than_others_do():
    expected = {way: ways.cut(trained(), way, 8, 0)["predicted"] for way in ways.WAYS if way != "rotation"}
    assert min(expected, key=expected.__getitem__) == "selection"


def test_all_arms_are_run_once_and_reported(tmp_path):
    path = tmp_path / "lines.jsonl"
    arms = ("full", "after: rotation", "after: random", "scratch", "selection 30%", "rotation 10%")
    for _ in range(2):
        study.group(path, SETTINGS, arms, (8,), lines.Budget("1h"), 0, 0)
    found = {x["arm"]: x for x in lines.read(path)}
    assert tuple(found) == arms
    assert len(lines.read(path)) == len(arms)
    assert found["full"]["kept"] == 16
    assert [x[0] for x in found["rotation 10%"]["curve"]] == list(range(1, 11))
    assert found["selection 30%"]["curve"][:3] == found["full"]["curve"][:3]
    assert found["after: random"]["before"] == found["full"]["validation"]
    assert "| after: rotation |" in report.page(lines.read(path))


def test_a_budget_that_is_used_up_begins_nothing(tmp_path):
    study.group(tmp_path / "x", SETTINGS, study.ARMS, (8,), lines.Budget("0s"), 0, 0)
    assert not (tmp_path / "x").exists()


def line(arm: str, test: float, kept: int = 16, seed: int = 0, task: str = "text", **more: Any) -> dict[str, Any]:
    found = {"task": task, "arm": arm, "kept": kept, "seed": seed, "test": test, "steps": 10, "wall": 1.0}
    return found | {"commit": "abc", "versions": {"python": "3"}} | more


def test_losses_are_of_pairs_and_count_in_the_direction_of_the_task():
    found = [line(a, x + s, kept=n, seed=s) for s in (0, 1) for a, n, x in (("full", 32, 2.0), ("scratch", 16, 2.5))]
    assert report.losses(found, 16) == [("scratch", "16", "+0.500", "+0.500 to +0.500", "2")]
    recall = [x | {"task": "mqar-8"} for x in found]
    assert report.losses(recall, 16)[0][2] == "-0.5"


@pytest.mark.parametrize(("lost", "said"), [(0.009, "after: rotation at 16 (+0.009)"), (0.02, "none of these cuts")])
def test_the_verdict_on_bytes_is_that_of_the_lines(lost, said):
    cut = line("after: rotation", 2.0 + lost, bytes=[100, 50], predicted=0.1)
    assert report.verdict([line("full", 2.0, kept=32), cut]).endswith(f"{said}.")
    assert "none of these cuts" in report.verdict([line("full", 2.0, kept=32), cut | {"bytes": [100, 51]}])


def test_the_page_is_the_same_twice_byte_for_byte(tmp_path):
    for x in (line("full", 2.0, kept=32), line("after: rotation", 2.1, bytes=[2, 1], predicted=0.1)):
        lines.add(tmp_path / "x.jsonl", x)
    for folder in ("one", "two"):
        report.write(tmp_path / "x.jsonl", tmp_path / folder)
    pages = [{x.name: x.read_bytes() for x in (tmp_path / y).iterdir()} for y in ("one", "two")]
    assert pages[0] == pages[1]
    assert set(pages[0]) == {"delta.md", "delta.svg"}


def test_the_committed_page_is_that_of_the_committed_lines():
    """The figure is of the same lines, but its bytes are those of one version of matplotlib."""
    page = RESULTS.parents[2] / "docs" / "results" / "delta.md"
    assert report.page(lines.read(RESULTS)).encode() == page.read_bytes()


def test_decoding_is_timed_for_every_model_and_bytes_follow_the_size(monkeypatch):
    for name, value in {"CHANNELS": 16, "BATCHES": (1,), "BURN_IN": 0, "PROMPT": 4}.items():
        monkeypatch.setattr(decode, name, value)
    found = decode.rows(decode.models(16, (8,)), 2)
    assert [(x["model"], x["channels"]) for x in found] == [("full", 16), ("selected", 8), ("mapped", 8)]
    assert [x["state bytes"] / found[0]["state bytes"] for x in found] == [1.0, 0.5, 0.5]
    assert all(x["ms, batch 1"] > 0 for x in found)
