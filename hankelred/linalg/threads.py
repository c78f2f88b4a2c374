"""How blocks of linear algebra run: on one BLAS thread where matrices are of modest size, overflow told at the end.

A Schur form or a singular value decomposition of some hundred states consists of thousands of small BLAS calls.
Spread over threads, each of them waits for the slowest thread: with two threads on two busy cores the Gramian factors
of 400 states took 6.9 s instead of 0.3 s (medians; never less than twelve times as long), and on idle cores there is
little to win, because the QR algorithm is sequential.

A number that overflows inside does not warn from the depths: infinities and NaN reach the result, where `check_result`
makes an error of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

# From here on the products inside are large enough to gain from more threads; below the lower limit BLAS uses one.
SERIAL_FROM, SERIAL_BELOW = 24, 1000

_taken = threading.Lock()
_NOTHING = nullcontext()


class _Blocks(threading.local):
    """What holds for the code that this Python thread runs."""

    quiet = serial = False


_inside = _Blocks()


def one_blas_thread(n: int) -> AbstractContextManager[None]:
    """Run the block with one BLAS thread if its matrices have from `SERIAL_FROM` to below `SERIAL_BELOW` rows.

    NumPy's warnings of overflow are off inside; the result is checked instead. Inside such a block another one costs
    next to nothing.
    """
    alone = SERIAL_FROM <= n < SERIAL_BELOW
    return _NOTHING if _inside.quiet and (_inside.serial or not alone) else _quiet(alone or _inside.serial)


@contextmanager
def _quiet(alone: bool) -> Iterator[None]:
    before = _inside.quiet, _inside.serial
    _inside.quiet, _inside.serial = True, alone
    try:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"), serial(True) if alone else _NOTHING:
            yield
    finally:
        _inside.quiet, _inside.serial = before


@contextmanager
def serial(wanted: bool, *others: Any) -> Iterator[None]:
    """Run the block with one BLAS thread where that is wanted; `others` are libraries with thread counts of their own.

    The number of threads belongs to the process, not to the Python thread that sets it. So one block at a time sets
    it and restores it itself; blocks inside that one, or beside it in another Python thread, leave it alone.
    """
    if not wanted or not _taken.acquire(blocking=False):
        yield
        return
    try:
        before = [(library, library.get_num_threads()) for library in (*_libraries(), *others)]
        for library, threads in before:
            if threads != 1:
                library.set_num_threads(1)
        try:
            yield
        finally:
            for library, threads in before:
                if threads != 1:
                    library.set_num_threads(threads)
    finally:
        _taken.release()


@cache
def _libraries() -> list[Any]:
    """Return the controls of the BLAS libraries of NumPy and SciPy; finding them takes a millisecond, once."""
    return ThreadpoolController().select(user_api="blas").lib_controllers
