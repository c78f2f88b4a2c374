"""The guard that keeps small linear algebra on one BLAS thread."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from hankelred import lyapunov_factor
from hankelred.linalg import threads
from hankelred.linalg.threads import SERIAL_BELOW, SERIAL_FROM, one_blas_thread


def blas_threads():
    # Of NumPy and SciPy, which were there first; Slycot and others bring a BLAS of their own later.
    return {library.get_num_threads() for library in threads._libraries()}


@pytest.fixture
def two_threads():
    with threadpool_limits(2, user_api="blas"):
        if blas_threads() != {2}:
            pytest.skip("BLAS here has no choice of threads")
        yield


@pytest.mark.usefixtures("two_threads")
def test_block_of_small_matrices_has_one_thread_and_gives_the_others_back():
    with one_blas_thread(SERIAL_FROM), one_blas_thread(200):
        assert blas_threads() == {1}
    assert blas_threads() == {2}


@pytest.mark.usefixtures("two_threads")
def test_large_matrices_keep_all_threads():
    with one_blas_thread(SERIAL_BELOW):
        assert blas_threads() == {2}


@pytest.mark.usefixtures("two_threads")
def test_matrices_too_small_for_threads_are_left_alone():
    with one_blas_thread(SERIAL_FROM - 1):  # finding the libraries would cost more than the work
        assert blas_threads() == {2}


@pytest.mark.usefixtures("two_threads")
def test_large_matrices_inside_a_block_of_few_states_have_one_thread():
    with one_blas_thread(4), one_blas_thread(200):
        assert blas_threads() == {1}
        with one_blas_thread(4), one_blas_thread(SERIAL_BELOW):
            assert blas_threads() == {1}
    assert blas_threads() == {2}


def test_warnings_of_overflow_are_off_inside_and_as_before_behind():
    with np.errstate(over="raise"):
        with one_blas_thread(4), one_blas_thread(200):
            assert np.geterr()["over"] == "ignore"
        assert np.geterr()["over"] == "raise"
        with pytest.raises(FloatingPointError), one_blas_thread(4):
            raise FloatingPointError
        with one_blas_thread(4):
            assert np.geterr()["over"] == "ignore"


@pytest.mark.usefixtures("two_threads")
def test_threads_come_back_after_an_error():
    with pytest.raises(ZeroDivisionError), one_blas_thread(200):
        raise ZeroDivisionError
    assert blas_threads() == {2}


@pytest.mark.usefixtures("two_threads")
def test_factoring_a_gramian_leaves_the_number_of_threads():
    lyapunov_factor(-np.eye(40), np.ones((40, 1)))
    assert blas_threads() == {2}


def test_blocks_that_overlap_in_two_python_threads_restore_the_number_they_found(monkeypatch):
    class Library:  # a process-wide setting, as in OpenBLAS
        threads = 2

        def get_num_threads(self):
            return self.threads

        def set_num_threads(self, number):
            self.threads = number

    library, entered, leave = Library(), threading.Event(), threading.Event()
    monkeypatch.setattr(threads, "_libraries", lambda: [library])

    def other():
        with one_blas_thread(200):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(10)
    with one_blas_thread(200):  # begins inside the other block and ends after it
        assert library.threads == 1
        leave.set()
        thread.join()
    assert library.threads == 2
