"""The leading part of a singular value decomposition, against LAPACK's whole one."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg as sla

from hankelred.linalg.bidiagonal import SHARE, bidiagonalised
from hankelred.linalg.hankel_svd import GRADED_BELOW, HankelSVD


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
