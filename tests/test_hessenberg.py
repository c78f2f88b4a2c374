"""Hessenberg forms and solves with them: residuals, SciPy, a slow twin in long double, matrices next to singular."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg as sla

from hankelred.checks import EPS
from hankelred.linalg.hessenberg import HessenbergForm, HessenbergPencil

SIZES = [1, 2, 3, 5, 8, 31, 64, 130]
SHIFTS = [0.0, -1.5, -0.3 + 2.0j, 0.7 - 1e-3j]


def matrix(n: int, kind: str = "real", seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n, n)) - 2 * np.eye(n)
    return A + 1j * rng.standard_normal((n, n)) if kind == "complex" else A


def right_side(n: int, k: int, kind: str = "real") -> Any:
    rng = np.random.default_rng(1)
    X = rng.standard_normal((n, k))
    return X + 1j * rng.standard_normal((n, k)) if kind == "complex" else X


def backward_error(M: Any, X: Any, F: Any) -> float:
    """How far M must be moved for X to be exact, relative to its norm, at worst over the columns."""
    return float((np.linalg.norm(M @ X - F, axis=0) / (np.linalg.norm(M) * np.linalg.norm(X, axis=0))).max(initial=0.0))


def solve_in_long_double(M: Any, F: Any) -> Any:
    """Gaussian elimination with partial pivoting, as in a textbook."""
    M, X = M.astype(np.clongdouble), F.astype(np.clongdouble)
    n = len(M)
    for k in range(n):
        best = k + int(np.argmax(np.abs(M[k:, k])))
        M[[k, best]], X[[k, best]] = M[[best, k]], X[[best, k]]
        ratio = M[k + 1 :, k] / M[k, k]
        M[k + 1 :] -= ratio[:, None] * M[k]
        X[k + 1 :] -= ratio[:, None] * X[k]
    for k in range(n - 1, -1, -1):
        X[k] = (X[k] - M[k, k + 1 :] @ X[k + 1 :]) / M[k, k]
    return X


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("n", SIZES)
def test_the_form_is_a_unitary_similarity(n: int, kind: str):
    A = matrix(n, kind)
    form = HessenbergForm(A)
    Z = form.rotated(np.eye(n, dtype=A.dtype))
    assert not np.tril(form.H, -2).any()
    assert np.linalg.norm(Z.conj().T @ Z - np.eye(n)) <= 10 * n * EPS
    assert np.linalg.norm(Z @ form.H @ Z.conj().T - A) <= 10 * n * EPS * np.linalg.norm(A)


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("n", SIZES)
def test_reflectors_applied_one_way_and_back_change_nothing(n: int, kind: str):
    form, X = HessenbergForm(matrix(n, kind)), right_side(n, 3, kind)
    assert np.linalg.norm(form.rotated(form.rotated(X), adjoint=True) - X) <= 10 * n * EPS * np.linalg.norm(X)


@pytest.mark.parametrize("p", SHIFTS)
@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("n", SIZES)
def test_shifted_solves_are_backward_stable(n: int, kind: str, p: complex):
    form = HessenbergForm(matrix(n, kind))
    M = form.H + p * np.eye(n)
    for right in ("real", "complex"):
        F = right_side(n, 3, right)
        assert backward_error(M, form.solve(p, F), F) <= 4 * EPS
        assert backward_error(M.conj().T, form.solve_adjoint(p, F), F) <= 4 * EPS


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("n", SIZES)
def test_products_are_those_of_the_matrix(n: int, kind: str):
    form = HessenbergForm(matrix(n, kind))
    for right in ("real", "complex"):
        X = right_side(n, 3, right)
        assert np.allclose(form.times(X), form.H @ X, atol=1e-12)
        assert np.allclose(form.times(X, adjoint=True), form.H.conj().T @ X, atol=1e-12)


@pytest.mark.parametrize("p", SHIFTS)
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_shifted_solves_agree_with_scipy(kind: str, p: complex):
    form, F = HessenbergForm(matrix(40, kind)), right_side(40, 2)
    M = form.H + p * np.eye(40)
    far = 100 * EPS * np.linalg.cond(M)
    for found, expected in (
        (form.solve(p, F), sla.solve(M, F)),
        (form.solve_adjoint(p, F), sla.solve(M.conj().T, F)),
    ):
        assert np.linalg.norm(found - expected) <= far * np.linalg.norm(expected)


@pytest.mark.parametrize("p", [-1.5, -0.3 + 2.0j])
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_shifted_solves_are_as_right_as_the_condition_allows(kind: str, p: complex):
    form, F = HessenbergForm(matrix(24, kind, seed=3)), right_side(24, 2)
    M = form.H + p * np.eye(24)
    expected = solve_in_long_double(M, F)
    error = float(np.linalg.norm((form.solve(p, F) - expected).astype(complex)))
    assert error <= 20 * EPS * np.linalg.cond(M) * float(np.linalg.norm(expected.astype(complex)))


@pytest.mark.parametrize("distance", [1e-6, 1e-10, 1e-14])
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_a_shift_next_to_a_pole_leaves_solves_backward_stable(kind: str, distance: float):
    form, F = HessenbergForm(matrix(60, kind)), right_side(60, 2)
    for pole in form.eigenvalues()[:6]:
        p = -pole * (1 + distance)
        M = form.H + p * np.eye(60)
        assert backward_error(M, form.solve(p, F), F) <= 4 * EPS
        assert backward_error(M.conj().T, form.solve_adjoint(p, F), F) <= 4 * EPS


def test_graded_and_decoupled_matrices_are_solved_as_well():
    graded = np.diag(-np.geomspace(1e-6, 1e6, 50)) + np.diag(np.full(49, 1e-3), 1)
    for A in (graded, sla.block_diag(matrix(10), graded, matrix(7))):
        form, F = HessenbergForm(A), right_side(len(A), 2)
        for p in (-1e-4, -3.0 + 1e3j):
            assert backward_error(form.H + p * np.eye(len(A)), form.solve(p, F), F) <= 4 * EPS


@pytest.mark.parametrize("A", [np.zeros((1, 1)), np.diag([2.0, 3.0, 5.0]), np.diag([2.0 + 0j, 3.0, 5.0])])
def test_a_singular_matrix_gives_no_finite_solution(A: Any):
    form, n = HessenbergForm(A), len(A)
    for p in (-A[0, 0], -A[-1, -1]):
        for found in (form.solve(p, np.ones((n, 1))), form.solve_adjoint(p, np.ones((n, 1)))):
            assert not np.isfinite(found).all()


def test_solves_leave_their_right_side_alone():
    form, F = HessenbergForm(matrix(20)), right_side(20, 2)
    for p in (-1.0, -1.0 + 1.0j):
        form.solve(p, F), form.solve_adjoint(p, F)
    assert np.array_equal(F, right_side(20, 2))


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("n", SIZES)
def test_the_schur_form_is_that_of_the_matrix(n: int, kind: str):
    A = matrix(n, kind)
    T, Z, poles = HessenbergForm(A).schur()
    assert np.linalg.norm(Z @ T @ Z.conj().T - A) <= 30 * n * EPS * np.linalg.norm(A)
    assert np.linalg.norm(Z.conj().T @ Z - np.eye(n)) <= 30 * n * EPS
    assert not np.tril(T, -1 if kind == "complex" else -2).any()
    assert np.allclose(poles.sum(), np.trace(A), atol=1e-12 * n)


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("n", SIZES)
def test_eigenvalues_need_no_schur_form(n: int, kind: str):
    A = matrix(n, kind)
    found = HessenbergForm(A).eigenvalues()
    assert max(np.abs(found - pole).min() for pole in np.linalg.eigvals(A)) <= 1e-10


@pytest.mark.parametrize(("moved", "scale"), [(0.0, 1.0), (0.25, 1.0), (0.0, 0.5)])
def test_the_pencil_solves_what_it_multiplies(moved: float, scale: float):
    pencil, X, p = HessenbergPencil(HessenbergForm(matrix(30)), moved, scale), right_side(30, 2), -0.4 + 1.0j
    for adjoint in (False, True):
        q = p.conjugate() if adjoint else p
        F = pencil.A(X, adjoint) + q * pencil.E(X, adjoint)
        solver = pencil.factor(p)
        found = solver.solve_adjoint(F) if adjoint else solver.solve(F)
        assert np.allclose(found, X, atol=1e-11)
