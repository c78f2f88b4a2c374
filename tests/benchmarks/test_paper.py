"""The study of the paper's claims: its lines, its arms, and what its report makes of them."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import lines
from benchmarks.experiment.settings import Settings
from benchmarks.experiment.trainer import Trainer
from benchmarks.studies import rates
from benchmarks.studies.paper import arms, course, figures, group, report, texts
from benchmarks.tasks import load_task
from hankelred.errors import InputError
from hankelred_torch import compress_, read_system, state_sizes

SETTINGS = replace(Settings.of("teacher-4"), states=8, steps=20, batch=8, order=None)
RESULTS = Path(report.__file__).parents[2] / "results"


@pytest.fixture(autouse=True)
def in_its_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Large models are kept where they stay in nobody's way."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def line(arm: str, test: float, seed: int = 0, kept: int = 4, **more: Any) -> dict[str, Any]:
    """A line with what the report reads."""
    found = {"task": "digits", "arm": arm, "kept": kept, "seed": seed, "test": test, "validation": test, "states": kept}
    found |= {"seconds": 2.0, "steps": 10, "rate": 5.0, "peak MB": 100.0, "sizes": [[0, 64]], "robust": {"bf16": test}}
    return found | {"wall": 1.0, "commit": "abc", "versions": {"python": "3"}} | more


def _add(path: Path, seed: int) -> None:
    for k in range(20):
        lines.add(path, line(f"arm {k}", 1.0, seed))


def test_lines_of_several_processes_are_all_there(tmp_path):
    path = tmp_path / "new" / "lines.jsonl"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add, args=(path, seed)) for seed in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = lines.read(path)
    assert sorted((x["seed"], x["arm"]) for x in found) == sorted((s, f"arm {k}") for s in range(2) for k in range(20))


@pytest.mark.parametrize("torn", ["", '{"task": "di', '{"task": "digits", "arm": "full", "kept": 4, "seed": 1}'])
def test_a_line_that_was_torn_by_a_kill_is_left_out_and_written_over(tmp_path, torn):
    path = tmp_path / "lines.jsonl"
    lines.add(path, line("full", 1.0))
    with path.open("a") as file:
        file.write(torn)
    assert [x["arm"] for x in lines.read(path)] == ["full"]
    lines.add(path, line("scratch", 2.0))
    assert [x["arm"] for x in lines.read(path)] == ["full", "scratch"]


@pytest.mark.parametrize("text", ["x\n", "[]\n", "3\n", '{"task": "digits"}\n'])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "lines.jsonl").write_text(text)
    with pytest.raises(InputError, match="another line 1"):
        lines.read(tmp_path / "lines.jsonl")


def test_what_json_does_not_know_is_none_and_numbers_are_short(tmp_path):
    lines.add(tmp_path / "x", line("full", float("nan"), curve=[[1, 0.123456789]]))
    (found,) = lines.read(tmp_path / "x")
    assert found["test"] is None
    assert found["curve"] == [[1, 0.1235]]


@pytest.mark.parametrize(("text", "seconds"), [("40min", 2400), ("0.5h", 1800), ("30 s", 30)])
def test_a_budget_ends_after_its_time(text, seconds, monkeypatch):
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    budget = lines.Budget(text)
    monkeypatch.setattr(time, "time", lambda: now + seconds - 1)
    assert not budget.over
    monkeypatch.setattr(time, "time", lambda: now + seconds + 1)
    assert budget.over


@pytest.mark.parametrize("text", ["40", "min", "-1min", "1d"])
def test_a_budget_without_a_unit_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="such as 40min"):
        lines.Budget(text)


def test_every_arm_ends_with_the_size_it_is_asked_for_and_a_second_call_makes_none(tmp_path):
    path, budget = tmp_path / "lines.jsonl", lines.Budget("1h")
    names = [x for x in arms.ARMS if "%" not in x or "10%" in x]  # others differ in a share alone
    group.group(path, SETTINGS, group.with_needed(names), budget, (3, 0), 0)
    found = lines.read(path)
    assert {x["arm"] for x in found} == set(names)
    assert {x["arm"]: x["states"] for x in found} == {x: 8 if x in arms.LARGE else 3 for x in names}
    for x in found:
        assert np.isfinite(x["test"])
        assert x["seconds"] > 0
        assert x["peak MB"] > 0
        assert x["steps"] == 20 or "after" in x["arm"] or "as long" in x["arm"] or "penalty" in x["arm"]
        assert set(x["robust"]) > {"as it is", "bf16 weights", "8-bit weights"}
    cut = next(x for x in found if x["arm"] == "white, four cuts")
    assert [x[0] for x in cut["sizes"]] == [0, 1, 2]  # a tenth of 20 steps
    before = path.read_text()
    group.group(path, SETTINGS, group.with_needed(names), budget, (3, 0), 0)
    assert path.read_text() == before
    texts_ = report.page("teacher-4", found)
    assert all(f"| {x} |" in texts_ for x in (*names, *arms.BEST_OF))


def test_a_budget_that_is_used_up_begins_nothing(tmp_path):
    group.group(tmp_path / "x", SETTINGS, ["full"], lines.Budget("0s"), (3, 0), 0)
    assert not (tmp_path / "x").exists()


def test_the_large_model_that_is_kept_is_the_one_that_was_trained():
    task = load_task("teacher-4")
    course.made(task, SETTINGS, "full", 4, 0, [], lambda n: None)
    kept, seconds = course.large(task, SETTINGS, 0)
    trainer = Trainer(task, SETTINGS, 0, samples=course.SAMPLES)
    trainer.train_to(SETTINGS.steps, lambda: None)
    assert seconds > 0
    for name, x in trainer.model.state_dict().items():
        assert torch.equal(x, kept.state_dict()[name])


@pytest.mark.parametrize("arm", ["full", "sampled, two cuts", "scratch"])
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(arm, monkeypatch):
    task, settings = load_task("teacher-4"), replace(SETTINGS, steps=40)
    whole = course.made(task, settings, arm, 3, 0, [], lambda n: None)
    monkeypatch.setattr(course, "SAVE_EVERY", 0.0)
    steps = []

    def killed(n: int) -> None:
        steps.append(n)
        if len(steps) == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        course.made(task, settings, arm, 3, 0, [], killed)
    resumed = course.made(task, settings, arm, 3, 0, [], steps.append)
    assert steps[25] == 24
    assert sum(steps[25:]) == 40
    for name in ("test", "validation", "steps", "states", "robust"):
        assert resumed[name] == whole[name], name
    for name in ("curve", "sizes"):
        assert [(x[0], x[-1]) for x in resumed[name]] == [(x[0], x[-1]) for x in whole[name]], name
    assert not list(course.cache().glob("runs/*"))


def test_a_run_as_long_as_another_makes_as_many_steps_as_fit():
    earlier = [line("scratch", 1.0, steps=100, seconds=10.0), line("sampled 10%", 1.0, seconds=15.0)]
    assert course._steps_in_the_time_of("sampled 10%", earlier) == 150
    with pytest.raises(LookupError, match="must come before"):
        course._steps_in_the_time_of("sampled 10%", earlier[:1])


@pytest.mark.parametrize("name", ["LAST", "AIRE", "random", "smallest"])
def test_methods_that_keep_states_keep_those_of_the_best_score_as_they_are(name):
    trainer = Trainer(load_task("teacher-4"), SETTINGS, 0)
    trainer.train_to(5, lambda: None)
    layer = trainer.model[0]
    full, averages = read_system(layer), trainer.optimizer.state[layer.B_re]["exp_avg"].clone()
    score = {
        "LAST": lambda b, c, lam: b * c / (1 - abs(lam)),
        "AIRE": lambda b, c, lam: b * c / (1 - abs(lam) ** 2) ** 0.5,
    }
    with course.served_by(arms.ARMS[name].adapter):
        compress_(layer, course.CompressionConfig(order=3), [trainer.optimizer])
    small = read_system(layer)
    places = [int(np.argmin(abs(full.lam - x))) for x in small.lam]
    np.testing.assert_allclose(small.lam, full.lam[places], rtol=1e-6)
    np.testing.assert_allclose(small.C, full.C[:, places], rtol=1e-5)
    np.testing.assert_allclose(trainer.optimizer.state[layer.B_re]["exp_avg"], averages[places], rtol=1e-5, atol=1e-9)
    if name in score:
        b, c = np.linalg.norm(full.B, axis=1), np.linalg.norm(full.C, axis=0)
        assert set(places) == set(np.argsort(score[name](b, c, full.lam))[-3:])


def test_a_student_learns_from_labels_and_teacher_alike():
    task = load_task("digits")
    teacher = torch.nn.Flatten()  # says what it is given
    u, labels = torch.randn(5, 10, 1), torch.arange(5)
    told = u.flatten(1)
    loss = course._distilling(task, teacher, 2.0)
    assert loss(u, told, labels) == pytest.approx(0.5 * task.loss(told, labels).item())
    soft, wrong = (told / 2).softmax(-1), torch.zeros(5, 10)
    distance = (soft * (soft.log() + np.log(10))).sum(-1).mean()
    assert loss(u, wrong, labels).item() == pytest.approx(0.5 * (np.log(10) + 4 * distance.item()), rel=1e-5)


def test_of_a_family_the_best_on_validation_counts_whatever_it_does_on_the_test():
    members = arms.BEST_OF["scratch, best learning rate"]
    found = [line(x, 50.0 + k, validation=90.0 - k) for k, x in enumerate(members)]
    (best,) = [x for x in report.with_best(found) if x["arm"] == "scratch, best learning rate"]
    assert (best["test"], best["seconds"]) == (50.0, 6.0)
    assert len(report.with_best(found[1:])) == 2  # not whole
    errors = [x | {"task": "teacher-4"} for x in found]
    assert report.with_best(errors)[-1]["test"] == 52.0  # less is better


def test_differences_are_of_pairs_and_say_what_their_interval_says():
    found = [line("white 10%", 80.0 + s, s) for s in range(3)] + [line("scratch", 70.0 + 1.1 * s, s) for s in range(4)]
    compared = report.difference(found, "white 10%", "scratch", 4)
    assert compared.spread.mean == pytest.approx(9.9)
    assert (compared.wins, compared.spread.count) == (3, 3)
    assert compared.verdict == "better"
    assert report.difference(found, "scratch", "white 10%", 4).verdict == "worse"
    noisy = [x | {"test": x["test"] + 30 * (-1) ** x["seed"]} if x["arm"] == "scratch" else x for x in found]
    assert report.difference(noisy, "white 10%", "scratch", 4).verdict == "not told apart"
    assert report.difference(found[:1] + found[3:], "white 10%", "scratch", 4).verdict == "one seed"
    assert report.difference(found, "white 10%", "full", 4) is None


def test_errors_are_compared_by_their_factor_down_to_what_is_resolved():
    found = [x | {"task": "teacher-4"} for s in range(3) for x in (line("white 10%", 1.0, s), line("scratch", 4.0, s))]
    compared = report.difference(found, "white 10%", "scratch", 4)
    assert (compared.spread.mean, compared.cells()[3]) == (pytest.approx(np.log10(4)), "error x 0.25")
    assert (compared.verdict, compared.wins) == ("better", 3)
    found[0]["test"], found[1]["test"] = 1e-9, 1e-5
    assert report.difference(found[:2], "white 10%", "scratch", 4).spread.mean == 0


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (["better", "better"], "confirmed"),
        (["better", "not told apart"], "confirmed in part"),
        (["worse", "not told apart"], "contradicted"),
        (["worse", "better"], "both ways"),
        (["not told apart"], "not told apart"),
        ([], "not tested"),
    ],
)
def test_a_claim_is_what_its_comparisons_say(verdicts, said):
    assert texts.Claim("x", ()).conclude([(x, "") for x in verdicts])[0] == said


def test_a_claim_on_a_cost_is_told_and_not_judged():
    claim = texts.Claim("costs little", (), judged=False)
    assert claim.conclude([("worse", "-1.1 points")]) == ("by so much", "-1.1 points")


def test_every_claim_names_arms_and_tasks_that_there_are():
    for claim in texts.CLAIMS:
        for task, _, arm, over in claim.tests:
            assert task in texts.TITLES
            assert arm in arms.ARMS
            assert over in {*arms.ARMS, *arms.BEST_OF}
    assert set(figures.SHOWN) <= {*arms.ARMS, *arms.BEST_OF}


def test_the_report_is_the_same_twice_byte_for_byte(tmp_path):
    found = [
        line(a, 80.0 + s, s, sizes=[[0, 64], [3, 4, 1, 2]]) for s in range(2) for a in ("full", "white 25%", "scratch")
    ]
    for x in found:
        lines.add(tmp_path / "digits.jsonl", x)
    pages = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        report.write(tmp_path, folder)
        pages.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert pages[0] == pages[1]
    assert set(pages[0]) == {"index.md", "digits.md", *(f"digits-{x}.svg" for x in figures.FIGURES)}


def test_committed_tables_are_those_of_the_committed_lines(tmp_path):
    """Figures are of the same lines, but their bytes are those of one version of matplotlib."""
    docs = RESULTS.parents[1] / "docs" / "results"
    report.write(RESULTS / "paper", tmp_path)
    for path in docs.glob("*.md"):
        if path.stem in texts.BESIDE:  # written and tested by a study of its own
            continue
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_rates_and_rows_are_drawn_anew_where_they_are_to_be(tmp_path, monkeypatch):
    task = load_task("recall")
    settings = replace(Settings.of("recall"), states=16, channels=8, steps=10, batch=4)
    monkeypatch.setattr(rates, "KEPT", 4)
    for arm, what in rates.FRESH.items():
        trainer = Trainer(task, settings, 0)
        trainer.train_to(2, lambda: None)
        twin = trainer.branch()
        found = rates.cut(trainer, what, 0)
        assert set(state_sizes(trainer.model).values()) == {4}
        compress_(twin.model, rates.CompressionConfig(order=4), [twin.optimizer], batches=twin.batches)
        for layer, like in zip(trainer.model.blocks, twin.model.blocks, strict=True):
            same_rates = torch.equal(layer.ssm.A_log, like.ssm.A_log)
            assert same_rates == ("rates" not in what), arm
            old, new = (x.ssm.x_proj.weight for x in (like, layer))
            assert torch.equal(old[:-8], new[:-8]), arm
            assert torch.equal(old[-8:], new[-8:]) == ("rows" not in what), arm
        assert found["slow"] == 1.0 or "rates" not in what
        assert trainer.optimizer.state[trainer.model.blocks[0].ssm.A_log]["exp_avg"].any() == ("rates" not in what)


def test_runs_of_the_rates_are_branches_of_one(tmp_path):
    path, names = tmp_path / "lines.jsonl", ("rotation", "rotation, late", "full")
    rates.group(path, "recall", 8, names, lines.Budget("1h"), 0, 0)
    found = {x["arm"]: x for x in lines.read(path)}
    assert set(found) == set(names)
    assert [x[0] for x in found["rotation, late"]["curve"]] == list(range(1, 9))
    assert found["rotation, late"]["curve"][:1] == found["full"]["curve"][:1]  # the same before the cut at step 2
    assert "steps until 90 %" in rates.summary(lines.read(path))
    assert json.loads(path.read_text().splitlines()[0])["kept"] == 12
