"""Tall arrays with their rows split, by ranks that are threads here: the same numbers, and one error for all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import scipy.linalg as sla

import hankelred as hr
from hankelred.linalg import adi
from hankelred.linalg.adi import LowRankGramians, Outcome
from hankelred.linalg.hankel_svd import HankelSVD
from hankelred.linalg.pencils import Cayley
from hankelred.linalg.ranks import RankError, Ranks

from .large import plate, stokes

LIMIT = 60  # seconds in which all threads must have come to an end


class Thread:
    """What `Ranks` asks of a communicator, of one thread among `size`."""

    def __init__(self, rank: int, size: int, table: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self._table, self._barrier = rank, size, table, barrier

    def allgather(self, x: Any) -> list[Any]:
        self._table[self.rank] = x
        self._barrier.wait()
        answers = list(self._table)
        self._barrier.wait()
        return answers

    def Allgatherv(self, own: np.ndarray, place: tuple[np.ndarray, list[int]]) -> None:
        assert own.flags.c_contiguous
        place[0][:] = np.concatenate(self.allgather(own))


def on_ranks(work: Callable[[Ranks], Any], size: int) -> list[Any]:
    """Return what each of so many ranks has found, an error as itself."""
    table, barrier = [None] * size, threading.Barrier(size, timeout=LIMIT)

    def one(rank: int) -> Any:
        ranks = Ranks(Thread(rank, size, table, barrier))
        try:
            found = work(ranks)
            ranks.every(None)
            return found
        except RankError as error:
            return error
        except Exception as error:
            ranks.tell(error)
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


def recursion(system: hr.StateSpace, ranks: Ranks | None) -> LowRankGramians:
    """Return the recursion of a system after its end."""
    pencil, (B, C, _) = system.pencil, system.ports
    rows = () if ranks is None else (ranks,)
    if system.is_discrete:
        pencil, B, C = Cayley(pencil), Cayley.GAIN * B, Cayley.GAIN * C
    found = LowRankGramians(pencil, B, C, 1e-14, 10**6, False, 2, *rows)
    for _ in found:
        pass
    return found


def systems() -> dict[str, hr.StateSpace]:
    """Return small systems, with and without a mass matrix, in both times, real and complex."""
    wind = plate(12, ports=2, wind=3.0)
    one = np.eye(144)
    return {
        "plate": wind,
        "complex": wind.with_(A=wind.A + 40j * type(wind.A)(one)),
        "mass": wind.with_(E=type(wind.A)(one + 0.2 * np.eye(144, k=1))),
        "discrete": hr.StateSpace(type(wind.A)(one) + 5e-4 * wind.A, wind.B, wind.C, dt=0.1),
        "constrained": stokes(6),
    }


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", systems())
def test_split_rows_give_the_factors_of_whole_ones(name, size, monkeypatch):
    monkeypatch.setattr(adi, "COMPRESS_FROM", 30)
    system = systems()[name]
    whole = recursion(system, None)
    assert whole.outcome is Outcome.CONVERGED
    expected = HankelSVD(whole.S, system.pencil.E(whole.R.conj().T, adjoint=True).conj().T)
    projection = np.matmul(*expected.bases(slice(0, 5), 5))

    def work(ranks: Ranks) -> Any:
        found = recursion(system, ranks)
        assert len(found.S) == found.R.shape[1] == len(ranks.own(np.arange(system.pencil.n)))
        svd = HankelSVD(found.S, ranks.pencil(system.pencil).E(found.R.conj().T, adjoint=True).conj().T, ranks)
        return found.outcome, found.shifts, found.solving, svd.values, svd.size, svd.bases(slice(0, 5), 5)

    answers = on_ranks(work, size)
    for outcome, shifts, solving, values, norms, (T, Ti) in answers:
        assert outcome is Outcome.CONVERGED
        assert shifts == answers[0][1]
        assert 0 < solving < 1e-10
        k = min(len(values), len(expected.values))
        np.testing.assert_allclose(values[:k], expected.values[:k], atol=1e-13 * expected.values[0])
        assert norms == pytest.approx(expected.size, rel=1e-9)
        np.testing.assert_array_equal(T, answers[0][5][0])  # the same bits, or ranks would part
        np.testing.assert_allclose(T @ Ti, projection, atol=1e-7 * np.abs(projection).max())


def test_norms_and_triangles_are_those_of_the_whole():
    X = np.random.default_rng(0).standard_normal((11, 3)) * [1e-170, 1.0, 1e160]  # squares leave the range

    def work(ranks: Ranks) -> Any:
        tall = adi._Tall(ranks)
        own = ranks.own(X)
        assert tall.agreed(ranks.comm.rank) == 0  # what the first rank says holds
        return tall.norm(own), tall.spectral_norm(own[:, 1:2]), tall.triangle(own[:, :2]), ranks.whole(own)

    for norm, spectral, triangle, whole in on_ranks(work, 4):
        assert norm == pytest.approx(np.linalg.norm(X / 1e160) * 1e160, rel=1e-14)
        assert spectral == pytest.approx(np.linalg.norm(X[:, 1:2], 2), rel=1e-14)
        np.testing.assert_allclose(abs(triangle), abs(sla.qr(X[:, :2], mode="r")[0][:2]), rtol=1e-12)
        np.testing.assert_array_equal(whole, X)


@pytest.mark.parametrize("when", ["at once", "in the recursion", "at the end"])
def test_a_failure_on_one_rank_is_an_error_on_all(when):
    system = systems()["plate"]

    def work(ranks: Ranks) -> None:
        def fail(here: str) -> None:
            if here == when and ranks.comm.rank == 1:
                raise MemoryError("Unable to allocate 8 GiB")

        fail("at once")
        pencil, (B, C, _) = system.pencil, system.ports
        for step, _ in enumerate(LowRankGramians(pencil, B, C, 1e-14, 10**6, rows=ranks)):
            if step == 3:
                fail("in the recursion")
        fail("at the end")

    first, failed, last = on_ranks(work, 3)
    assert type(failed) is MemoryError
    for other in (first, last):
        assert type(other) is RankError
        assert str(other).startswith(
            "All ranks must reach the end of the block; got on rank 1: MemoryError: Unable to allocate 8 GiB. "
        )


def test_arrays_that_differ_between_ranks_are_refused():
    def work(ranks: Ranks) -> None:
        ranks.check_same("These", np.arange(4.0), np.ones(3))
        ranks.check_same("Those", np.arange(4.0), np.full(3, 1.0 + (ranks.comm.rank == 2)))

    for error in on_ranks(work, 3):
        assert type(error) is hr.InputError
        assert "Those must be the same on all ranks; got other entries on rank 2 than on rank 0" in str(error)
