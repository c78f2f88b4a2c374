"""The guard that keeps small linear algebra on one BLAS thread."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from hankelred import _threads, lyapunov_factor
from hankelred._threads import SERIAL_BELOW, one_blas_thread


def blas_threads():
    # Of NumPy and SciPy, which were there first; Slycot and others bring a BLAS of their own later.
    return {pool["num_threads"] for pool in _threads._controller().info() if pool["user_api"] == "blas"}


@pytest.fixture
def two_threads():
    with threadpool_limits(2, user_api="blas"):
        if blas_threads() != {2}:
            pytest.skip("BLAS here has no choice of threads")
        yield


@pytest.mark.usefixtures("two_threads")
def test_block_of_small_matrices_has_one_thread_and_gives_the_others_back():
    with one_blas_thread(10), one_blas_thread(20):
        assert blas_threads() == {1}
    assert blas_threads() == {2}


@pytest.mark.usefixtures("two_threads")
def test_large_matrices_keep_all_threads():
    with one_blas_thread(SERIAL_BELOW):
        assert blas_threads() == {2}


@pytest.mark.usefixtures("two_threads")
def test_threads_come_back_after_an_error():
    with pytest.raises(ZeroDivisionError), one_blas_thread(10):
        raise ZeroDivisionError
    assert blas_threads() == {2}


@pytest.mark.usefixtures("two_threads")
def test_factoring_a_gramian_leaves_the_number_of_threads():
    lyapunov_factor(-np.eye(3), np.ones((3, 1)))
    assert blas_threads() == {2}


def test_blocks_that_overlap_in_two_python_threads_restore_the_number_they_found(monkeypatch):
    class Library:  # a process-wide setting, as in OpenBLAS
        threads = 2

        @contextmanager
        def limit(self, limits, user_api):
            before, self.threads = self.threads, limits
            yield
            self.threads = before

    library, entered, leave = Library(), threading.Event(), threading.Event()
    monkeypatch.setattr(_threads, "_controller", lambda: library)

    def other():
        with one_blas_thread(10):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(10)
    with one_blas_thread(10):  # begins inside the other block and ends after it
        assert library.threads == 1
        leave.set()
        thread.join()
    assert library.threads == 2
