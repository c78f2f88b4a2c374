"""The leading part of a singular value decomposition, against LAPACK's whole one."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg as sla

from hankelred.linalg.bidiagonal import SHARE, bidiagonalised
from hankelred.linalg.hankel_svd import GRADED_BELOW, HankelSVD, graded, norm_estimate


def with_singular_values(values: np.ndarray, rows: int, cplx: bool, seed: int = 0) -> np.ndarray:
    """Return a matrix with these singular values between random orthonormal bases."""
    rng = np.random.default_rng(seed)
    n = len(values)
    U, V = (rng.standard_normal((k, n)) + 1j * cplx * rng.standard_normal((k, n)) for k in (rows, n))
    M = (np.linalg.qr(U)[0] * values) @ np.linalg.qr(V)[0].conj().T
    return M if cplx else M.real


SPECTRA = {
    "falling": lambda n: np.exp(-np.arange(n) / 20),
    "flat": lambda n: np.ones(n),
    "a cluster across every cut": lambda n: 1.0 + 1e-13 * np.arange(n)[::-1],
    "ten distinct, the rest zero": lambda n: np.where(np.arange(n) < 10, 10.0 - np.arange(n), 0.0),
}


@pytest.mark.parametrize("cplx", [False, True])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("rows", [120, 200])
def test_leading_triples_decompose_the_matrix(spectrum, rows, cplx):
    M = with_singular_values(SPECTRA[spectrum](120), rows, cplx)
    found = bidiagonalised(M).leading(24)
    if found is None:  # allowed: the caller then takes all of them
        assert spectrum != "falling"
        return
    U, hsv, Vh = found
    size = 120 * np.finfo(float).eps * hsv[0]
    assert np.linalg.norm(M @ Vh.conj().T - U * hsv) < size
    assert np.linalg.norm(M.conj().T @ U - Vh.conj().T * hsv) < 10 * size  # the residual that decides
    assert np.linalg.norm(U.conj().T @ U - np.eye(24)) < size / hsv[0]
    assert np.linalg.norm(Vh @ Vh.conj().T - np.eye(24)) < size / hsv[0]


@pytest.mark.parametrize("cplx", [False, True])
def test_values_are_those_of_lapack_digit_by_digit(cplx):
    graded = with_singular_values(np.logspace(0, -3, 40), 60, cplx) * np.logspace(0, -12, 40)
    # both take dqds of the same bidiagonal matrix; the order of sums within it may differ
    np.testing.assert_allclose(bidiagonalised(graded).values(), sla.svdvals(graded), rtol=1e-13)


def test_more_vectors_than_pay_are_left_to_others():
    form = bidiagonalised(with_singular_values(SPECTRA["falling"](40), 40, False))
    assert form.leading(int(SHARE * 40)) is not None
    assert form.leading(int(SHARE * 40) + 1) is None


def test_a_subspace_that_is_not_invariant_is_not_returned(monkeypatch):
    form = bidiagonalised(with_singular_values(SPECTRA["falling"](80), 80, False))
    other = np.linalg.qr(np.random.default_rng(1).standard_normal((80, 8)))[0]
    monkeypatch.setattr(type(form), "_leading_subspace", lambda self, count: other)
    assert form.leading(8) is None


@pytest.mark.parametrize("shape", [(50, 120), (120, 50), (0, 3), (3, 0)])
@pytest.mark.parametrize("count", [0, 5, 40])
def test_a_product_of_factors_has_triples_of_any_shape(shape, count):
    rng = np.random.default_rng(0)
    rows, columns = shape
    R, S = rng.standard_normal((rows, 130)), rng.standard_normal((130, columns)) * np.logspace(0, -1, columns)
    cross = HankelSVD(S, R)
    count = min(count, len(cross.values))
    U, hsv, Vh = cross.triples(count)
    np.testing.assert_allclose(R @ S @ Vh[:count].conj().T, U[:, :count] * hsv[:count], atol=1e-11)
    np.testing.assert_allclose(hsv[:count], cross.values[:count], rtol=1e-12)


def test_small_values_are_decomposed_with_all_their_digits():
    n = 60
    S = np.triu(np.random.default_rng(0).standard_normal((n, n))) * np.logspace(0, -10, n)
    cross = HankelSVD(S, S.T.copy())
    small = int(np.argmax(cross.values < GRADED_BELOW * cross.values[0])) + 1
    _, hsv, _ = cross.triples(small)
    np.testing.assert_allclose(hsv, cross.values, rtol=1e-10)  # divide and conquer is right to eps hsv[0] only


@pytest.mark.parametrize("cplx", [False, True])
@pytest.mark.parametrize(("n", "share"), [(1, 1e-12), (4, 1e-3), (12, 1e-3), (40, 0.1), (150, 0.1)])
@pytest.mark.parametrize("unit", [1e-300, 1.0, 1e300])
def test_norms_are_estimated_from_below_in_any_unit(n, share, cplx, unit):
    rng = np.random.default_rng(0)
    for k in range(20):
        S = rng.standard_normal((n, n + k % 3)) + 1j * cplx * rng.standard_normal((n, n + k % 3))
        S = np.triu(S if cplx else S.real) * np.exp(-k * rng.uniform(0, 0.5, n + k % 3))
        exact = np.linalg.norm(S, 2)
        assert (1 - share) * exact <= norm_estimate(unit * S) / unit <= (1 + 1e-13) * exact


def test_a_longest_row_that_is_orthogonal_to_the_rest_does_not_hide_it():
    assert norm_estimate(np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.5]])) == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize("size", [5e-324, 1e-320, 1e-310, 1e-301])
def test_norms_of_subnormal_numbers_are_numbers(size):
    found = norm_estimate(np.array([[size, 7 * size], [0.0, size]]))
    assert size * 7 <= found <= size * 7.3  # a system like that, of no output, had a Gramian of norm NaN


@pytest.mark.parametrize("entry", [np.nan, np.inf, complex(0.0, np.inf), complex(np.nan, 0.0)])
def test_a_matrix_that_is_not_finite_has_an_infinite_norm(entry):
    assert norm_estimate(np.array([[1.0, 0.0], [entry, 2.0]])) == np.inf


def test_nothing_has_no_norm():
    assert norm_estimate(np.zeros((0, 3))) == norm_estimate(np.zeros((3, 2))) == 0.0


@pytest.mark.parametrize("cplx", [False, True])
@pytest.mark.parametrize("shape", [(6, 6), (6, 3), (3, 6), (80, 70)])
def test_graded_factors_are_of_the_same_gramian_without_noise(shape, cplx):
    rng = np.random.default_rng(0)
    S = rng.standard_normal(shape) + 1j * cplx * rng.standard_normal(shape)
    S = np.hstack([S if cplx else S.real, 1e-20 * rng.standard_normal((shape[0], 2))])
    found = graded(S)
    assert found.shape == (shape[0], min(shape))
    assert np.linalg.norm(found @ found.conj().T - S @ S.conj().T) < 1e-14 * np.linalg.norm(S) ** 2
    assert np.all(np.diff(np.abs(found).max(axis=0)) < 0)  # the pivots, each the largest of its column
    assert graded(0 * S).shape == (shape[0], 0)


@pytest.mark.parametrize("cplx", [False, True])
def test_bases_do_not_depend_on_what_was_asked_before(cplx):
    S, R = (with_singular_values(np.exp(-np.arange(80) / 4), 80, cplx, seed) for seed in (1, 2))
    first, second = HankelSVD(S, R), HankelSVD(S, R)
    first.bases(slice(0, 40), 40)
    for few, many in zip(first.bases(slice(0, 5), 5), second.bases(slice(0, 5), 5), strict=True):
        np.testing.assert_allclose(few, many, atol=1e-12 * np.abs(many).max())
    T, Ti = first.bases(slice(0, 5), 5)
    np.testing.assert_allclose(Ti @ T, np.eye(5), atol=1e-12)


def test_kernels_run_without_compilation():
    program = """
import numpy as np, hankelred as hr
for kind in (1.0, 1.0 + 0.5j):
    plant = hr.StateSpace(np.array([[-1.0, 2.0], [0.0, -3.0]]), kind * np.ones((2, 1)), np.ones((1, 2)))
    reduction = hr.balanced_truncation(plant, order=1)
    assert reduction.hinf_error() <= reduction.error_bound < hr.hinf_norm(plant)
"""
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, check=True)
