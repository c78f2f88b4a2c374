"""Logarithms of triangular matrices against fifty digits."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import scipy.linalg as sla

from hankelred.linalg.logarithm import triangular_logarithm

RNG = np.random.default_rng(0)
UPPER = np.triu(RNG.standard_normal((6, 6)), 1)
CASES = {
    "random": np.diag(RNG.uniform(0.1, 2, 6) + 1j * RNG.uniform(-3, 3, 6)) + UPPER,
    "stiff": np.diag(np.logspace(-6, 6, 6) + 1j) + UPPER,
    "defective": np.eye(6) + np.eye(6, k=1),
    "far from normal": (1 + 1j) * np.eye(10) + 10 * np.eye(10, k=1),
    "large above the diagonal": np.diag(np.arange(1.0, 7.0) + 1j) + 1e6 * UPPER,
    "nearly imaginary": np.diag([1e-9 + 1j, 1e-9 - 1j, 2, 1, 1, 1]) + UPPER,
    "near the identity": np.eye(6) + 1e-9 * UPPER,
    "one state": np.array([[-0.3 + 1.0j]]),
    "no states": np.zeros((0, 0)),
}


@pytest.mark.parametrize("name", CASES)
def test_logarithm_is_that_of_many_digits(name):
    T = CASES[name].astype(complex)
    with mpmath.workdps(50):
        expected = mpmath.logm(mpmath.matrix(T.tolist())).tolist() if len(T) else []
    expected = np.array(expected, dtype=complex).reshape(T.shape)
    assert np.linalg.norm(triangular_logarithm(T) - expected) <= 2e-14 * np.linalg.norm(expected)


def test_logarithm_draws_no_random_numbers_and_does_not_warn():
    A = np.random.default_rng(1).standard_normal((80, 80))
    T = sla.schur(1j * np.eye(80) - A + 20 * np.eye(80), output="complex")[0]
    before = np.random.get_state()[2]  # noqa: NPY002
    L = triangular_logarithm(T)
    assert np.random.get_state()[2] == before  # noqa: NPY002
    assert np.linalg.norm(sla.expm(L) - T) < 1e-13 * np.linalg.norm(T)
