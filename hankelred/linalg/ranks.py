"""Rows of tall arrays split over the ranks of MPI, and one rank's failure as an error on all of them."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import traceback
from typing import Any, NamedTuple

import numpy as np

from ..checks import Array
from ..errors import HankelredError, InputError
from .pencils import Pencil
from .rows import SplitEngine, SplitPencil

# Seconds in which the other ranks must hear of a failure: one that waits in a library for this rank never will.
PATIENCE = 60.0


class RankError(HankelredError):
    """Another rank has failed, with the message that this one repeats."""


class _Failure(NamedTuple):
    rank: int
    reason: str


class Ranks:
    """The ranks of a communicator, which share the rows of tall arrays in order, as evenly as can be.

    Whatever waits for other ranks goes through `every` or follows a call of it: a rank that has failed answers there.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
        The ranks; nobody else sends messages there.
    engine : SplitEngine, optional
        What factors sparse matrices over them.
    share : float, default 1
        Of all ranks those on this machine.
    """

    def __init__(self, comm: Any, engine: SplitEngine | None = None, share: float = 1.0) -> None:
        self.comm, self.engine, self.share = comm, engine, share

    def every(self, x: Any) -> list[Any]:
        """Return what every rank has here, in their order; raise what has gone wrong on one of them."""
        answers: list[Any] = self.comm.allgather(x)
        for answer in answers:
            if isinstance(answer, _Failure):
                raise RankError(
                    f"All ranks must reach the end of the block; got on rank {answer.rank}: {answer.reason} Its output "
                    f"holds the traceback."
                )
        return answers

    def tell(self, error: BaseException) -> None:
        """Tell the other ranks of an error where they wait next; end this process if they do not come there."""
        timer = threading.Timer(PATIENCE, _end, [self.comm.rank, traceback.format_exc()])
        timer.daemon = True
        timer.start()
        self.comm.allgather(_Failure(self.comm.rank, f"{type(error).__name__}: {str(error).rstrip('.')}."))
        timer.cancel()

    def total(self, x: Array) -> Array:
        """Return the sum of what every rank has here, added in their order."""
        return np.asarray(sum(self.every(x)))

    def places(self, n: int) -> slice:
        """Return the places of the rows of this rank among n."""
        each, more = divmod(n, self.comm.size)
        start = self.comm.rank * each + min(self.comm.rank, more)
        return slice(start, start + each + (self.comm.rank < more))

    def own(self, X: Array) -> Array:
        """Return the rows of this rank, a copy: the others need not stay in memory for them."""
        return X[self.places(len(X))].copy(order="K")

    def whole(self, X: Array) -> Array:
        """Return all rows, of which each rank has its own."""
        counts = self.every(len(X))
        out = np.empty((sum(counts), X.shape[1]), X.dtype, order="F")
        for column, place in zip(X.T, out.T, strict=True):
            self.comm.Allgatherv(np.ascontiguousarray(column), (place, counts))
        return out

    def pencil(self, pencil: Pencil) -> Pencil:
        """Return a pencil of whole columns as one of own rows."""
        return SplitPencil(pencil, self)

    def check_same(self, name: str, *arrays: Array) -> None:
        """Refuse arrays that are not the same on every rank."""
        found = hashlib.blake2b()
        for x in arrays:
            found.update(f"{x.dtype} {x.shape}".encode())
            found.update(np.ascontiguousarray(x).data)
        digests = self.every(found.digest())
        others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        if others:
            raise InputError(
                f"{name} must be the same on all ranks; got other entries on rank {others[0]} than on rank 0. Make the "
                f"system in the same way on every rank, or send that of one rank to the others."
            )


def _end(rank: int, report: str) -> None:
    """End this process, and with it those of the other ranks, which do not answer."""
    print(f"Rank {rank} has failed, and others wait for it elsewhere:\n{report}", file=sys.stderr, flush=True)
    os._exit(1)
