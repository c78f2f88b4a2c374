"""Right and wrong arguments for every public callable: a right result, or an error that names the argument."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.calls import ROOMS, TARGETS, TRUSTED, public_callables
from fuzz.engine import run, table
from sizes import is_long

# Inputs for each callable: about a thousand in all, or twelve thousand.
INPUTS = 100 if is_long() else 8


def test_every_public_callable_is_fuzzed() -> None:
    assert public_callables() - TRUSTED == {name.partition(" (")[0] for name in TARGETS}


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work where a path such as "text" names nothing, and where what is saved under it stays in nobody's way."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("room", ROOMS)
def test_no_input_ends_badly(room: str, capfd: pytest.CaptureFixture[str], in_empty_folder: None) -> None:
    outcomes = [run(room, seed) for seed in range(INPUTS * len(ROOMS[room]))]
    said = "" if room == "cli" else capfd.readouterr().err  # LAPACK writes its complaints there
    assert not any(outcome.is_bad for outcome in outcomes), table(outcomes)
    assert not said


def test_an_input_is_the_same_each_time() -> None:
    first, second = ([run("analysis", seed) for seed in range(20)] for _ in range(2))
    assert [(x.mutation, x.kind) for x in first] == [(x.mutation, x.kind) for x in second]
