"""Factor solvers on a Schur form: equations of the factor and of its companions, and the hard cases."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg as sla
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.linalg import norm

from hankelred.errors import NumericalError
from hankelred.linalg import triangular
from hankelred.linalg._schur_kernels import continuous_leaf, discrete_leaf
from hankelred.linalg.triangular import LEAF, gramian_factor, is_schur_form, schur_factors
from tests.reference_lyapunov import exact_factor_singular_values, lyapunov_residual

domains = pytest.mark.parametrize("discrete", [False, True])
kinds = pytest.mark.parametrize("kind", ["real", "complex"])


def random(rng, shape, kind):
    x = rng.standard_normal(shape)
    return x + 1j * rng.standard_normal(shape) if kind == "complex" else x


def stable_schur_form(rng, n, kind, discrete):
    A = random(rng, (n, n), kind)
    lam = np.linalg.eigvals(A)
    A = 0.95 * A / abs(lam).max() if discrete else A - (lam.real.max() + 0.1) * np.eye(n)
    return sla.schur(A, output=kind)[0]


def residual(T, B, discrete):
    U = gramian_factor(T, B, discrete)
    return lyapunov_residual(T, U @ U.conj().T, B @ B.conj().T, discrete)


def companion_defect(T, B, discrete):
    """Return how far M and Y are from ``M + M^H + Y Y^H = 0``, or with Z from a unitary matrix."""
    which = None if T.dtype.kind == "c" else True
    if discrete:
        _, M, Y, Za, Zb = discrete_leaf(T, B.copy(), which)
        unitary = np.block([[M, Y], [Za.conj().T, Zb.conj().T]])
        return norm(unitary @ unitary.conj().T - np.eye(len(unitary))) / len(unitary)
    _, M, Y = continuous_leaf(T, B.copy(), which)
    return norm(M + M.conj().T + Y @ Y.conj().T) / norm(M)


@st.composite
def pairs(draw):
    """Draw a stable Schur form of few states, its eigenvalues anywhere, and an input matrix with zero rows."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind, discrete = draw(st.sampled_from(["real", "complex"])), draw(st.booleans())
    decays = st.sampled_from([1e-9, 1e-4, 0.1, 0.5, 1.0])  # distance from the boundary; 1 is a zero eigenvalue
    angles = st.sampled_from([0.0, 1e-15, 1e-10, 1e-6, 1.0, 3.1, np.pi])
    sizes = st.sampled_from([0.0, 1e-12, 1.0])
    T = np.zeros((0, 0))
    for _ in range(draw(st.integers(1, 6))):
        radius, angle = 1 - draw(decays), draw(angles)
        re, im = (radius * np.cos(angle), radius * np.sin(angle)) if discrete else (-draw(decays), 2 * angle)
        if kind == "complex":
            block = np.array([[re + 1j * im]])
        elif abs(im) < 1e-16 or abs(im) == np.sin(np.pi):
            block = np.array([[re]])
        else:
            skew = 10.0 ** draw(st.sampled_from([-6, 0, 3]))
            block = np.array([[re, im * skew], [-im / skew, re]])
        T = sla.block_diag(T, block) if T.size else block
    n, m = len(T), draw(st.integers(1, 4))
    T = T + draw(sizes) * np.triu(random(rng, (n, n), kind), 2)  # from diagonal to far from normal
    T[np.diag_indices(n)] = T.diagonal()
    B = random(rng, (n, m), kind) * [[draw(sizes)] for _ in range(n)]
    assume(is_schur_form(T))
    return T, B, discrete


@kinds
@domains
@pytest.mark.parametrize("n", [1, 2, 3, 7, LEAF, LEAF + 1, 3 * LEAF])
@pytest.mark.parametrize("m", [1, 2, 10, LEAF + 20])
def test_factor_leaves_no_residual(n, m, kind, discrete):
    rng = np.random.default_rng(n + m)
    T = stable_schur_form(rng, n, kind, discrete)
    assert residual(T, random(rng, (n, m), kind), discrete) <= 1e-15 * (n + 10)  # n eps and a few roundings


@given(pairs())
def test_factor_of_awkward_pairs_leaves_no_residual(pair):
    T, B, discrete = pair
    assert residual(T, B, discrete) <= 1e-14


@given(pairs())
def test_factor_is_upper_triangular_with_real_nonnegative_diagonal(pair):
    U = gramian_factor(*pair)
    np.testing.assert_array_equal(U, np.triu(U))
    assert (U.diagonal().real >= 0).all()
    assert (U.diagonal().imag == 0).all()


@given(pairs())
def test_companions_satisfy_their_own_equation_whatever_the_factor(pair):
    assert companion_defect(*pair) <= 1e-13


@given(pairs())
def test_companions_are_those_of_the_factor(pair):
    T, B, discrete = pair
    which = None if T.dtype.kind == "c" else True
    U, M, Y = (discrete_leaf if discrete else continuous_leaf)(T, B.copy(), which)[:3]
    assert norm(U @ Y - B) <= 1e-13 * (norm(U) * norm(Y) + norm(B))
    size = norm(T) + (1 if discrete else norm(M))  # [M Y] has unit rows in discrete time
    assert norm(T @ U - U @ M) <= 1e-13 * size * norm(U)


@given(pairs())
def test_halving_down_to_single_blocks_gives_the_same_gramian(pair):
    T, B, discrete = pair
    assume(len(T) > 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triangular, "LEAF", 2)
        assert residual(T, B, discrete) <= 1e-14


@domains
def test_inputs_beyond_the_number_of_states_change_only_rounding(discrete):
    rng = np.random.default_rng(5)
    T, B = stable_schur_form(rng, 6, "real", discrete), rng.standard_normal((6, 40))
    Q, _ = np.linalg.qr(rng.standard_normal((40, 40)))
    U, V = gramian_factor(T, B, discrete), gramian_factor(T, B @ Q, discrete)
    assert norm(U - V) <= 1e-12 * norm(U)  # U is unique; the equation's condition is below 1000


@domains
def test_rows_that_no_input_reaches_are_zero_in_the_factor(discrete):
    rng = np.random.default_rng(1)
    T, B = stable_schur_form(rng, 8, "real", discrete), rng.standard_normal((8, 2))
    cut = 4 if T[4, 3] == 0 else 5
    B[cut:] = 0
    U = gramian_factor(T, B, discrete)
    assert not U[cut:].any()
    assert residual(T, B, discrete) <= 1e-14


@domains
@pytest.mark.parametrize("shape", [(0, 2), (3, 0), (0, 0)])
def test_empty_systems_have_zero_factors(shape, discrete):
    U = gramian_factor(-0.5 * np.eye(shape[0]), np.zeros(shape), discrete)
    np.testing.assert_array_equal(U, np.zeros((shape[0], shape[0])))


@domains
@pytest.mark.parametrize("scale", [2.0**-600, 2.0**600])
def test_factor_scales_with_its_input_without_under_or_overflow(scale, discrete):
    rng = np.random.default_rng(2)
    T, B = stable_schur_form(rng, 5, "real", discrete), rng.standard_normal((5, 2))
    np.testing.assert_allclose(
        gramian_factor(T, scale * B, discrete) / scale, gramian_factor(T, B, discrete), rtol=1e-14
    )


def test_factor_of_a_delay_line_is_its_hankel_matrix():
    n = 20
    T = np.eye(n, k=1)  # nilpotent; B = e_n moves up one row per step
    U = gramian_factor(T, np.eye(n)[:, -1:], discrete=True)
    np.testing.assert_array_equal(U, np.eye(n))


@pytest.mark.parametrize("distance", [1e-12, 1e-10, 1e-6])
@pytest.mark.parametrize("sign", [-1, 1])
def test_eigenvalues_next_to_plus_or_minus_one_cost_no_digits(sign, distance):
    rng = np.random.default_rng(3)
    T = np.triu(0.1 * rng.standard_normal((30, 30)), 1) + np.diag(np.linspace(-0.8, 0.8, 30))
    T[3, 3] = T[17, 17] = sign * (1 - distance)
    assert residual(T, rng.standard_normal((30, 2)), discrete=True) <= 1e-14


@domains
@pytest.mark.parametrize("split", [1e-17, 1e-16, 3e-16, 1e-15, 1e-13, 1e-10, 1e-8, 1e-5])
def test_nearly_real_pairs_leave_no_residual_and_exact_companions(split, discrete):
    # A repeated real eigenvalue comes out of the Schur form as such a pair. Once a factor by the determinant and
    # companions normalised row by row left residuals of 1e-4 here.
    rng = np.random.default_rng(12)
    for skew in (1e-6, 1.0, 1e3):
        T = 0.1 * rng.standard_normal((4, 4)) - np.eye(4) / 2
        T = np.triu(T)
        T[1, 1], T[1, 2], T[2, 1], T[2, 2] = (0.9 if discrete else -0.1), split * skew, -split / skew, T[1, 1]
        T[2, 2] = T[1, 1]
        for rows in ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [skew, 1.0], rng.standard_normal(2)):
            B = np.array([[1.0], [rows[0]], [rows[1]], [0.0]])
            assert residual(T, B, discrete) <= 1e-14
            assert companion_defect(T, B, discrete) <= 1e-14


@kinds
def test_inputs_that_fade_below_the_square_root_of_the_smallest_number_do_no_harm(kind):
    # With 800 states, rates of 10 per sample among them, squares of such rows once underflowed: residual 1e-4.
    rng = np.random.default_rng(14)
    T = 1e-8 * stable_schur_form(rng, 45, kind, discrete=True)
    T[0, 0] = 0.5
    B = random(rng, (45, 2), kind) * np.geomspace(1e-150, 1, 45)[:, None]
    assert companion_defect(T, B, discrete=True) <= 1e-14
    assert residual(T, B, discrete=True) <= 1e-14


@kinds
@domains
def test_one_jordan_block_leaves_no_residual(kind, discrete):
    n = 60
    T = np.eye(n, k=1) + (0.3 if discrete else -0.7) * np.eye(n)
    if kind == "complex":
        T = T + 0.2j * np.eye(n)
    assert residual(T, np.eye(n)[:, -1:].astype(T.dtype), discrete) <= 1e-14


@domains
def test_small_singular_values_of_the_factor_have_correct_digits(discrete):
    n = 8
    poles = 0.11 * np.arange(1, n + 1) if discrete else -np.arange(1, n + 1.0)
    T = np.diag(poles) + np.triu(np.ones((n, n)), 1) * (0.01 if discrete else 1)
    B = np.ones((n, 1))
    U = gramian_factor(T, B, discrete)
    graded = sla.qr(U.T, pivoting=True, mode="r")[0]
    found, exact = sla.svdvals(graded), exact_factor_singular_values(T, B, discrete)
    np.testing.assert_allclose(found, exact, rtol=1e-10)  # eps over the least, 1e-5 of the first: 2e-11


@kinds
@domains
def test_both_factors_of_few_states_are_those_of_one_equation_each(kind, discrete):
    rng = np.random.default_rng(4)
    for n in (1, 2, 5, LEAF):
        T = stable_schur_form(rng, n, kind, discrete)
        B, C = random(rng, (n, 1), kind), random(rng, (min(n, 3), n), kind)
        S, R = schur_factors(T, B, C, discrete)
        assert lyapunov_residual(T, S @ S.conj().T, B @ B.conj().T, discrete) <= 1e-14
        assert lyapunov_residual(T.conj().T, R.conj().T @ R, C.conj().T @ C, discrete) <= 1e-14


@kinds
@domains
def test_factors_of_few_states_that_overflow_are_refused(kind, discrete):
    T = stable_schur_form(np.random.default_rng(5), 3, kind, discrete)
    T[0, 0] = 1 - 1e-15 if discrete else -1e-15
    large, one = np.full((3, 1), 1e305).astype(T.dtype), np.ones((3, 1), T.dtype)
    for B, C in ((large, one.T), (one, large.T)):
        with pytest.raises(NumericalError, match="Gramian"):
            schur_factors(T, B, C, discrete)


def test_kernels_run_without_compilation():
    program = """
import numpy as np
from hankelred.linalg.schur import rounding_norms
from hankelred.linalg.triangular import gramian_factor, schur_factors
T = np.array([[-0.5, 0.3, 0.2], [-0.4, -0.5, 0.1], [0.0, 0.0, -0.2]])
for discrete in (False, True):
    for S in (T, np.triu(T).astype(complex)):
        B = np.ones((3, 2), S.dtype)
        P = gramian_factor(S, B, discrete)
        P = P @ P.conj().T
        R = S @ P @ S.conj().T - P + B @ B.T if discrete else S @ P + P @ S.conj().T + B @ B.T
        assert np.linalg.norm(R) < 1e-14 * np.linalg.norm(P)
        left, right = schur_factors(S, B, B.T, discrete)
        assert np.linalg.norm(left @ left.conj().T - P) < 1e-14 * np.linalg.norm(P)
        assert np.isfinite(rounding_norms(S, S, left, right, discrete)).all()
"""
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, check=True)
