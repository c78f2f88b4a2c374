"""Recursive solvers on Schur forms: residuals, across the size where halving begins."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg as sla
from hypothesis import given
from hypothesis import strategies as st
from numpy.linalg import norm

from hankelred.linalg import triangular
from hankelred.linalg.triangular import (
    LEAF,
    flipped,
    halve,
    is_schur_form,
    schur_eigenvalues,
    solve_hermitian_stein,
    solve_hermitian_sylvester,
    solve_stein,
    solve_sylvester,
)

SIZES = [1, 2, 3, 7, LEAF, LEAF + 1, 3 * LEAF]
# Substitution is backward stable row by row; the constant covers a growth with the square root of n.
TOLERANCE = 1e-14


def random(rng, shape, kind):
    x = rng.standard_normal(shape)
    return x + 1j * rng.standard_normal(shape) if kind == "complex" else x


def schur_form(rng, n, kind, radius=0.9, shift=0.0):
    """Return a Schur form with eigenvalues in a disc, of modest norm."""
    A = random(rng, (n, n), kind)
    A *= radius / abs(np.linalg.eigvals(A)).max()
    T, _ = sla.schur(A - shift * np.eye(n), output=kind)
    return T


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("l", [1, 2, LEAF + 5])
def test_sylvester_solution_leaves_no_residual(k, l, kind):
    rng = np.random.default_rng(k + l)
    T, M = schur_form(rng, k, kind, shift=1), schur_form(rng, l, kind, shift=1)
    F = random(rng, (k, l), kind)
    X = F.copy()
    solve_sylvester(T, M, X)
    assert norm(T @ X + X @ M.conj().T - F) <= TOLERANCE * norm(X) * (norm(T) + norm(M))


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("l", [1, 2, LEAF + 5])
def test_stein_solution_and_its_product_leave_no_residual(k, l, kind):
    rng = np.random.default_rng(k + l)
    T, M = schur_form(rng, k, kind), schur_form(rng, l, kind)
    F, G = random(rng, (k, l), kind), random(rng, (k, l), kind)
    X, H = F.copy(), G.copy()
    solve_stein(T, M, X, H)
    scale = (norm(X) + norm(H)) * (1 + norm(T) + norm(M))
    assert norm(H - T @ X - G) <= TOLERANCE * scale
    assert norm(X - H @ M.conj().T - F) <= TOLERANCE * scale


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("n", SIZES)
def test_hermitian_solvers_agree_with_the_general_ones(n, kind):
    rng = np.random.default_rng(n)
    T, F = schur_form(rng, n, kind), random(rng, (n, n), kind)
    F = F + F.conj().T
    stable = T - np.eye(n)
    expected, X = F.copy(), F.copy()
    solve_sylvester(stable, stable, expected)
    solve_hermitian_sylvester(stable, X)
    assert norm(X - expected) <= 1e-12 * norm(expected)  # the condition of the equation is below 100 here
    expected, X = F.copy(), F.copy()
    solve_stein(T, T, expected, np.zeros_like(F))
    solve_hermitian_stein(T, X)
    assert norm(X - expected) <= 1e-12 * norm(expected)


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(2, 12), st.sampled_from(["real", "complex"]))
def test_halving_down_to_single_blocks_changes_nothing(seed, k, l, kind):
    rng = np.random.default_rng(seed)
    T, M = schur_form(rng, k, kind), schur_form(rng, l, kind)
    whole, whole_H = random(rng, (k, l), kind), random(rng, (k, l), kind)
    parts, parts_H = whole.copy(), whole_H.copy()
    solve_stein(T, M, whole, whole_H)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triangular, "LEAF", 2)
        solve_stein(T, M, parts, parts_H)
    assert norm(parts - whole) <= 1e-12 * norm(whole)  # |1 - lam conj(mu)| is at least 0.19
    assert norm(parts_H - whole_H) <= 1e-12 * norm(whole_H)


def test_blocks_whose_first_pivot_vanishes_are_solved():
    T, M = np.array([[-1.0, 2.0], [-3.0, -1.0]]), np.array([[1.0]])  # T + 1 = [[0, 2], [-3, 0]]
    X = np.array([[4.0], [9.0]])
    solve_sylvester(T, M, X)
    np.testing.assert_array_equal(X, [[-3.0], [2.0]])


def test_nan_in_the_right_side_stays_visible():
    T = -np.eye(3)
    F = np.array([[1.0, 2.0], [np.nan, 1.0], [0.0, 1.0]])
    solve_sylvester(T, T[:2, :2], F)
    assert np.isnan(F).any()


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("n", [1, 2, 9, 40])
def test_eigenvalues_are_read_off_the_schur_form(n, kind):
    T = schur_form(np.random.default_rng(n), n, kind)
    found, expected = schur_eigenvalues(T), np.linalg.eigvals(T)
    assert abs(found[:, None] - expected).min(axis=0).max() <= 1e-13  # eigvals of T: condition below 100
    assert abs(found[:, None] - expected).min(axis=1).max() <= 1e-13


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_flipped_schur_form_is_one_of_the_dual(kind):
    T = schur_form(np.random.default_rng(1), 9, kind)
    J = np.eye(9)[::-1]
    assert is_schur_form(flipped(T))
    np.testing.assert_array_equal(flipped(T), J @ T.conj().T @ J)


def test_matrices_that_are_no_schur_form_are_recognised():
    block = np.array([[-1.0, 2.0], [-3.0, -1.0]])
    assert is_schur_form(block)
    assert is_schur_form(np.zeros((0, 0)))
    assert not is_schur_form(block * [[1, 1], [1, 2]])  # unequal diagonal
    assert not is_schur_form(abs(block))  # real eigenvalues
    assert not is_schur_form(block.astype(complex))
    assert not is_schur_form(np.eye(3) + np.diag([1.0, 1.0], -1) - np.diag([1.0, 1.0], 1))  # overlapping blocks
    assert not is_schur_form(np.eye(3)[::-1])


@given(st.integers(0, 2**32 - 1), st.integers(2, 12))
def test_halving_cuts_no_block(seed, n):
    T = schur_form(np.random.default_rng(seed), n, "real")
    h = halve(T)
    assert h == n or T[h, h - 1] == 0
