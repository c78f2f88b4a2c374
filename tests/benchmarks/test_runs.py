"""Files of runs that studies share: what is made, kept, refused and printed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypedDict

import pytest

from benchmarks._common import write
from benchmarks.runs import Spread, conforms, read_results, run_missing, study, table
from hankelred.errors import InputError

SETTINGS = {"steps": 3}


def make(path, wanted, settings=SETTINGS, **how: Any):
    """Make runs of a study whose figures are their seeds, and return which were made."""
    made = []

    def run(key, progress):
        made.append(key["seed"])
        progress()
        return {"figure": key["seed"] / 3, **how}

    found = study(path, "figures", settings, [{"arm": "a", "seed": seed} for seed in wanted], lambda key: 1, run)
    return made, found


def test_runs_that_a_file_holds_are_not_made_again(tmp_path):
    path = tmp_path / "new" / "runs.json"
    assert make(path, [0, 1]) == (
        [0, 1],
        [{"arm": "a", "seed": 0, "figure": 0.0}, {"arm": "a", "seed": 1, "figure": 0.3333}],
    )
    assert make(path, [0, 1, 2])[0] == [2]
    made, found = make(path, [1])
    assert (made, [run["seed"] for run in found]) == ([], [1])
    assert [run["seed"] for run in json.loads(path.read_text())["runs"]] == [0, 1, 2]


def test_every_run_is_written_when_it_ends(tmp_path):
    path, seen = tmp_path / "runs.json", []

    def run(key, found, bars):
        seen.append(len(json.loads(path.read_text())["runs"]))
        return None if key["seed"] == 2 else {}

    run_missing(path, {"settings": {}}, [{"seed": seed} for seed in range(4)], lambda key: 1, run)
    assert seen == [0, 1, 2]  # None ends the study


def test_what_cannot_be_written_fails_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        make(tmp_path / "file" / "runs.json", [0])


def test_a_study_with_other_settings_is_refused(tmp_path):
    make(tmp_path / "runs.json", [0])
    with pytest.raises(SystemExit, match=r"got steps=4, and steps=3 in .*runs\.json\. Choose another place with --out"):
        make(tmp_path / "runs.json", [0], {"steps": 4})


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "{}", '{"settings": []}', '{"settings": {"steps": 3}, "runs": 0}']
)
def test_a_file_that_no_study_wrote_is_refused_by_name(text, tmp_path):
    path = tmp_path / "runs.json"
    path.write_text(text)
    with pytest.raises(
        InputError, match=r"runs\.json must hold the results of an earlier run; got .*Delete or rename it"
    ):
        read_results(path, SETTINGS)
    assert path.read_text() == text


def test_a_figure_that_is_not_finite_is_kept_as_none(tmp_path):
    _, found = make(tmp_path / "runs.json", [0], other=float("nan"))
    assert found[0]["other"] is None


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    write(path, {"a": 1})
    with pytest.raises(TypeError):
        write(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


class Inner(TypedDict):
    name: str


@dataclass
class Outer:
    count: int
    share: float | None
    pair: tuple[int, int]
    inner: dict[str, list[Inner]]


RIGHT: dict[str, Any] = {"count": 1, "share": None, "pair": [1, 2], "inner": {"x": [{"name": "a"}]}}


@pytest.mark.parametrize("change", [{}, {"share": 1}, {"share": 0.5}, {"inner": {}}])
def test_a_value_of_a_kind_conforms(change):
    assert conforms(RIGHT | change, Outer)


@pytest.mark.parametrize(
    "change",
    [{"count": True}, {"count": 1.0}, {"share": "1"}, {"pair": [1]}, {"pair": [1, "2"]}, {"inner": []}, {"more": 1}]
    + [{"inner": {"x": wrong}} for wrong in ({"name": "a"}, [{}], [{"name": 1}], [{"name": "a", "more": 1}], [None])],
    ids=str,
)
def test_a_value_of_another_kind_does_not_conform(change):
    assert not conforms(RIGHT | change, Outer)


def test_one_seed_has_no_confidence_interval():
    assert Spread.of([3.0]).interval() is None


def test_the_confidence_interval_is_students():
    # 1, 2, 3: mean 2, deviation 1, quantile 4.303 of two degrees of freedom
    low, high = Spread.of([1.0, 2.0, 3.0]).interval()
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)


def test_a_table_has_a_row_for_each_arm_and_says_what_is_missing():
    rows = [{"arm": "a", "x": 1.0}, {"arm": "b", "x": None}, {"arm": "a", "x": 2.0}]
    assert table(rows, "arm", {"x": ("heading", 2)}).splitlines()[2:] == ["| a | 2 | 1.50 ± 0.71 |", "| b | 1 | – |"]
