"""Units, the ordered Schur form, and which poles are marginal: families with a known number of them.

``HYPOTHESIS_PROFILE=thorough`` runs the families whole; otherwise those that are large run a seeded share.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import mpmath as mp
import numpy as np
import pytest
import scipy.linalg as sla
import scipy.signal
from hypothesis import given
from hypothesis import strategies as st
from numpy.linalg import norm

from hankelred.errors import NumericalError
from hankelred.linalg.hankel_svd import norm_estimate
from hankelred.linalg.marginality import BACKWARD
from hankelred.linalg.schur import (
    SchurForm,
    apply_units,
    balanced_units,
    decouple,
    inverse_norm,
    ordered_schur,
    rounding_norms,
)
from hankelred.linalg.triangular import schur_eigenvalues

EPS = np.finfo(float).eps
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
Array = np.ndarray


def form(A: Array, discrete: bool = False, offset: float = 0.0) -> SchurForm:
    """Return the ordered Schur form of A in balanced units."""
    n = len(A)
    B, C = np.eye(n)[:, :1], np.eye(n)[:1]
    return ordered_schur(apply_units(balanced_units(A, B, C), A, B, C)[0], discrete, offset)


def in_units(A: Array, w: Array) -> Array:
    """Return A for the states ``x / w``."""
    return A * w / w[:, None]


def powers(rng: np.random.Generator, n: int, decades: int = 30) -> Array:
    """Return random powers of two."""
    return 2.0 ** rng.integers(-decades, decades, n)


def rotated(A: Array, rng: np.random.Generator) -> Array:
    """Return A in random orthogonal, or unitary, coordinates."""
    n = len(A)
    Q = np.linalg.qr(rng.standard_normal((n, n)) + (1j * rng.standard_normal((n, n)) if A.dtype.kind == "c" else 0))[0]
    return Q @ A @ Q.conj().T


def bilinear(A: Array) -> Array:
    """Return the discrete twin of A: the boundary goes to the unit circle, fast poles to -1/3."""
    n = len(A)
    half = A / max(np.abs(np.linalg.eigvals(A)).max(), 1e-3) / 2
    return np.linalg.solve(np.eye(n) - half, np.eye(n) + half)


def mass_chain(n: int, stiffness: float, damping: str, free: bool) -> Array:
    """Return n masses on springs, in the states position and speed."""
    K = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    if free:
        K[0, 0] = K[-1, -1] = 1
    K *= stiffness
    D = {"1e-5 K": 1e-5 * K, "1e-3 K": 1e-3 * K, "mixed": 1e-4 * K * (1 + np.cos(np.arange(n))[:, None] / 2)}[damping]
    return np.block([[np.zeros((n, n)), np.eye(n)], [-K, -D]])


def mass_chains() -> Iterator[tuple[str, Array, int]]:
    """Yield 192 chains: their name, A, and how many poles are marginal."""
    for n in (2, 4, 9, 20):
        for stiffness in 10.0 ** np.arange(8):
            for damping in ("1e-5 K", "1e-3 K", "mixed"):
                for free in (True, False):
                    name = f"{n} masses, k {stiffness:g}, damping {damping}, free {free}"
                    yield name, mass_chain(n, stiffness, damping, free), 2 * free


def servos() -> Iterator[tuple[str, Array, int]]:
    """Yield motors that drive an inertia through a shaft."""
    for k in 10.0 ** np.arange(1, 7):
        for c in (1e-5 * k, 1e-3 * k):
            a, b = 0.02, 0.3
            shaft = [[0, 1, 0, 0], [-k / a, -c / a, k / a, c / a], [0, 0, 0, 1], [k / b, c / b, -k / b, -c / b]]
            yield f"shaft {k:g}, {c:g}", np.array(shaft), 2


def integrators() -> Iterator[tuple[str, Array, int]]:
    """Yield chains of one to three integrators, with lags, and behind a slow and a fast pole."""
    for k in (1, 2, 3):
        chain = np.eye(k, k=1)
        yield f"{k} integrators", chain, k
        for fast in (1.0, 1e3, 1e6, 1e9, 1e12):
            A = sla.block_diag(chain, [[-fast]])
            before, behind = A.copy(), A.copy()
            before[k - 1, k], behind[k, 0] = 1.0, fast
            slow = sla.block_diag(chain, [[-1e-3, 1.0], [0.0, -fast]])
            slow[k - 1, k] = 1.0
            yield f"lag {fast:g} before {k} integrators", before, k
            yield f"lag {fast:g} behind {k} integrators", behind, k
            yield f"{k} integrators behind a slow pole and one at {fast:g}", slow, k


def repeated_poles(n: int, pole: float = -1.0, coupling: float = 1.0) -> tuple[Array, Array]:
    """Return ``1 / (s - pole)^n`` as a chain and in companion form."""
    companion = np.eye(n, k=1)
    companion[-1] = -np.poly(np.full(n, pole))[:0:-1]
    return pole * np.eye(n) + coupling * np.eye(n, k=1), companion


def ladder(rng: np.random.Generator) -> Array:
    """Return a net of 2 to 5 capacitors, 1 pF to 10 mF, between resistors of 1 to 1e6 ohm."""
    n = int(rng.integers(2, 6))
    c, g = 10 ** rng.uniform(-12, -2, n), 10 ** -rng.uniform(0, 6, n + 1)
    return (np.diag(g[1:-1], 1) + np.diag(g[1:-1], -1) - np.diag(g[:-1] + g[1:])) / c[:, None]


def exact_poles(A: Array) -> Array:
    """Return the eigenvalues of a double matrix to 40 digits, rounded."""
    with mp.workdps(40):
        return np.array([complex(z) for z in mp.eig(mp.matrix(A.tolist()), left=False, right=False)])


def wrongly_kept(cases: Iterator[tuple[str, Array, int]], discrete: bool = False) -> list[str]:
    """Return the cases whose number of kept poles is not the right one."""
    return [f"{name}: kept {k}, right {right}" for name, A, right in cases if (k := form(A, discrete).kept) != right]


FAMILIES = {"masses": mass_chains, "servos": servos, "integrators": integrators}
# The lag at 1e12 puts the discrete twin of the slow pole at 1 - 1e-15.
DECIDABLE: Callable[[str], bool] = lambda name: "slow pole and one at 1e+12" not in name  # noqa: E731


@pytest.mark.parametrize("family", FAMILIES)
def test_marginal_poles_are_kept_and_no_others(family: str) -> None:
    assert not wrongly_kept(FAMILIES[family]())


@pytest.mark.parametrize("family", FAMILIES)
def test_marginal_poles_of_discrete_twins_are_kept_and_no_others(family: str) -> None:
    cases = (case for case in FAMILIES[family]() if DECIDABLE(case[0]))
    assert not wrongly_kept(((name, bilinear(A), right) for name, A, right in cases), discrete=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_marginal_poles_of_complex_twins_are_kept_and_no_others(family: str) -> None:
    rng = np.random.default_rng(1)
    turns = ((name, A, right, np.exp(1j * rng.uniform(0, 6, len(A)))) for name, A, right in FAMILIES[family]())
    assert not wrongly_kept((name, in_units(A, turn), right) for name, A, right, turn in turns)


def test_marginal_poles_do_not_depend_on_units() -> None:
    rng = np.random.default_rng(2)
    cases = [*mass_chains(), *servos()] * (4 if THOROUGH else 1)
    assert not wrongly_kept((name, in_units(A, powers(rng, len(A))), right) for name, A, right in cases)


def test_marginal_poles_do_not_depend_on_units_of_integrators() -> None:
    rng = np.random.default_rng(3)
    chains = ((f"{k} integrators", np.eye(k, k=1), k) for k in (1, 2, 3, 5) for _ in range(5))
    assert not wrongly_kept((name, in_units(A, powers(rng, len(A))), right) for name, A, right in chains)


def test_marginal_poles_do_not_depend_on_coordinates() -> None:
    rng = np.random.default_rng(4)
    assert not wrongly_kept((name, rotated(A, rng), right) for name, A, right in mass_chains())


@pytest.mark.parametrize("turning", [False, True])
def test_rigid_bodies_in_the_plane_have_4_or_6_marginal_poles(turning: bool) -> None:
    spin = np.eye(2, k=1) if turning else np.zeros((0, 0))
    cases = list(mass_chains())[:: 1 if THOROUGH else 7]
    assert not wrongly_kept((name, sla.block_diag(A, A, spin), 2 * right + len(spin)) for name, A, right in cases)


def test_rc_ladders_have_no_marginal_pole() -> None:
    rng = np.random.default_rng(5)
    assert not wrongly_kept((f"ladder {i}", ladder(rng), 0) for i in range(400))


def test_parts_of_a_difference_that_share_poles_are_judged_by_themselves() -> None:
    slow, vibration = np.array([[-1e-6]]), np.array([[-1e-6, 1.0], [-1.0, -1e-6]])
    cases = []
    for name, part in {"slow": slow, "vibration": vibration, "net": -np.array([[2e-6, 1e-6], [1e-6, 2e-6]])}.items():
        for copies in (2, 3):
            A = sla.block_diag(*[part] * copies, -1e11)
            k = np.random.default_rng(copies).permutation(len(A))
            cases.append((f"{name}, {copies} of them", A[np.ix_(k, k)], 0))
    assert not wrongly_kept(cases)
    defective = np.array([[-1e-6, 1e5], [0.0, -1e-6]])  # rounding beside 1e5 carries this double pole across
    assert ordered_schur(sla.block_diag(defective, -1e11), discrete=False).kept == 2


def test_poles_of_rc_ladders_have_seven_digits() -> None:
    rng = np.random.default_rng(5)
    nets = [ladder(rng) for _ in range(400)]
    for A in nets[:: 1 if THOROUGH else 10]:
        exact, got = np.sort(exact_poles(A).real), np.sort(form(A).poles.real)
        assert norm((got - exact) / exact, np.inf) < 1e-7  # rates over 16 decades; the worst of 400 was measured


def test_slow_pole_is_refined_where_the_schur_form_loses_it() -> None:
    A = np.array([[-1e-4, 0.0], [0.0, -1e12]]) @ np.array([[1.0, 0.5], [0.5, 1.0]])  # graded upwards: as it comes
    pole = ordered_schur(A, discrete=False).poles
    exact = exact_poles(A)
    assert abs(pole.real.max() - exact.real.max()) < 1e-14 * abs(exact.real.max())


def test_refined_schur_form_is_backward_stable() -> None:
    rng = np.random.default_rng(6)
    for _ in range(40):
        A = ladder(rng)
        A = apply_units(balanced_units(A, A[:, :1], A[:1]), A, A[:, :1], A[:1])[0]
        T, Z, poles, *_ = ordered_schur(A, discrete=False)
        assert norm(A - Z @ T @ Z.T) < BACKWARD * EPS * norm(A)
        assert np.array_equal(poles, schur_eigenvalues(T))


def test_poles_do_not_depend_on_units() -> None:
    rng = np.random.default_rng(7)
    for _ in range(60):
        A, w = rng.standard_normal((6, 6)), 10 ** rng.uniform(-10, 10, 6)
        right, got = np.sort_complex(np.linalg.eigvals(A)), np.sort_complex(form(in_units(A, w)).poles)
        assert norm(got - right) < 1e-12 * norm(right)  # 8e-15 measured, and the worst condition of 60 eigenvalues


@pytest.mark.parametrize("n", range(1, 15))
def test_repeated_stable_poles_are_not_marginal(n: int) -> None:
    rng = np.random.default_rng(n)
    chain, companion = repeated_poles(n)
    units = [in_units(A, powers(rng, n, 20)) for A in (chain, companion)]
    for A in (chain, companion, rotated(chain, rng), rotated(chain.astype(complex), rng), *units):
        assert form(A).kept == 0


@pytest.mark.parametrize("n", range(1, 13))  # from 13 on, the companion form's own rounding crosses the circle
def test_repeated_stable_poles_are_not_marginal_in_discrete_time(n: int) -> None:
    rng = np.random.default_rng(n)
    chain, companion = repeated_poles(n, 0.9, 0.1)
    for A in (chain, companion, rotated(chain, rng), bilinear(rotated(repeated_poles(n)[0], rng))):
        assert form(A, discrete=True).kept == 0


@pytest.mark.parametrize("n", range(1, 11))
@pytest.mark.parametrize("cutoff", [1.0, 1e3, 1e6])
def test_butterworth_filters_are_stable(n: int, cutoff: float) -> None:
    A = scipy.signal.tf2ss(*scipy.signal.butter(n, 2 * np.pi * cutoff, analog=True))[0]
    assert form(A).kept == 0


@pytest.mark.parametrize("pair", [[1e-7, -1e-7], [1e-7j, -1e-7j], [-1e-9 + 1e-7j, -1e-9 - 1e-7j]])
def test_scattered_double_pole_is_marginal(pair: list[complex]) -> None:
    A = np.zeros((3, 3))
    A[:2, :2] = [[0.0, 1.0], [-np.prod(pair).real, np.sum(pair).real]]
    A[1, 2], A[2, 2] = 1.0, -1.0
    assert ordered_schur(rotated(A, np.random.default_rng(0)), discrete=False).kept == 2


def test_bars_of_kept_poles_hold() -> None:
    rng = np.random.default_rng(8)
    for _ in range(200 if THOROUGH else 40):
        n, condition = int(rng.integers(2, 7)), 10 ** rng.uniform(0, 5)
        X = rotated(np.diag(np.geomspace(1, 1 / condition, n)), rng)
        A = X @ np.diag(np.r_[-(10 ** rng.uniform(-14, -10)), -(10 ** rng.uniform(-1, 1, n - 1))]) @ np.linalg.inv(X)
        exact, found = exact_poles(A), form(A)
        assert (exact.real >= 0).sum() <= found.kept
        for pole, bar in zip(found.poles[: found.kept], found.error[: found.kept], strict=True):
            assert np.abs(exact - pole).min() <= bar


def random_case(seed: int, n: int, kind: str, discrete: bool) -> Array:
    """Return a matrix with poles on both sides of the boundary."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n, n)) + (1j * rng.standard_normal((n, n)) if kind == "c" else 0)
    return A / np.sqrt(n) if discrete else A


@given(st.integers(0, 10**6), st.integers(0, 60), st.sampled_from("fc"), st.booleans())
def test_form_is_a_schur_form_with_kept_poles_first(seed: int, n: int, kind: str, discrete: bool) -> None:
    A = random_case(seed, n, kind, discrete)
    T, Z, poles, error, kept = ordered_schur(A, discrete)
    margin = 1 - np.abs(poles) if discrete else -poles.real
    assert (margin[:kept] <= error[:kept]).all()
    assert (margin[kept:] > error[kept:]).all()
    assert norm(A - Z @ T @ Z.conj().T) <= (BACKWARD + n) * EPS * norm(A)  # a pole is swapped up to n times
    assert not 0 < kept < n or T[kept, kept - 1] == 0  # no conjugate pair is separated


@given(st.integers(0, 10**6), st.floats(0.0, 0.5), st.booleans())
def test_poles_within_offset_are_kept(seed: int, offset: float, discrete: bool) -> None:
    A = random_case(seed, 12, "f", discrete)
    poles = np.linalg.eigvals(A)
    assert ordered_schur(A, discrete, offset).kept == ((1 - np.abs(poles) if discrete else -poles.real) <= offset).sum()


def test_input_is_unchanged() -> None:
    A = mass_chain(3, 100.0, "1e-5 K", True)
    copy = A.copy()
    form(A)
    ordered_schur(A, discrete=False)
    assert np.array_equal(A, copy)


@given(st.integers(0, 10**6), st.sampled_from("fc"))
def test_changing_units_is_exact(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 9))
    A, B, C = random_case(seed, n, kind, False), rng.standard_normal((n, 2)) * 2.0**40, rng.standard_normal((3, n))
    A = in_units(A * (10 ** rng.uniform(-9, 9, n))[:, None], powers(rng, n))
    units = balanced_units(A, B, C)
    w, order, gain = units.w, units.order, units.gain
    A_b, B_b, C_b = apply_units(units, A, B, C)
    W = np.diag(w)[:, order]
    assert np.array_equal(W @ A_b, A @ W)
    assert np.array_equal(W @ B_b, B * gain)
    assert np.array_equal(C_b * gain, C @ W)
    assert 0.5 <= np.abs(B_b).max() / np.abs(C_b).max() <= 2


def test_graded_states_are_sorted_and_others_are_not() -> None:
    b = np.ones((3, 1))
    assert balanced_units(np.diag([-1e-3, -1e5, -1.0]), b, b.T).order.tolist() == [1, 2, 0]
    assert balanced_units(np.diag([-1.0, -3.0, -2.0]), b, b.T).order.tolist() == [0, 1, 2]


@given(st.integers(0, 10**6), st.integers(0, 60), st.sampled_from("fc"), st.booleans())
def test_decoupling_makes_a_form_block_diagonal(seed: int, n: int, kind: str, discrete: bool) -> None:
    T, _, _, _, k = ordered_schur(random_case(seed, n, kind, discrete), discrete)
    Y = decouple(T, k)
    residual = T[:k, :k] @ Y - Y @ T[k:, k:] + T[:k, k:]
    assert norm(residual) <= n * EPS * norm(T) * (norm(Y) + 1)  # a backward stable triangular solve


@pytest.mark.parametrize("dtype", [float, complex])
def test_decoupling_a_multiple_pole_is_refused(dtype: type) -> None:
    with pytest.raises(NumericalError, match="offset"):
        decouple(np.array([[-1.0, 1.0], [0.0, -1.0 + EPS]], dtype), 1)
    with pytest.raises(NumericalError, match="offset"):
        decouple(np.array([[-1.0, 1.0], [0.0, -1.0]], dtype), 1)


def test_decoupling_solves_stiff_equations() -> None:
    assert decouple(np.array([[1e-6, 2e11], [0.0, -1e11]]), 1)[0, 0] == pytest.approx(-2.0, rel=4 * EPS)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("kind", "fc")
def test_inverse_norm_is_that_of_the_kronecker_form(discrete: bool, kind: str) -> None:
    rng = np.random.default_rng(9)
    for n in (1, 2, 5):
        A = random_case(int(rng.integers(99)), n, kind, True)
        A = A / (1.1 * np.abs(np.linalg.eigvals(A)).max()) if discrete else A - 2 * np.eye(n)
        T = sla.schur(A, output="complex" if kind == "c" else "real")[0]
        eye = np.eye(n)
        operator = np.kron(T, T.conj()) - np.eye(n * n) if discrete else np.kron(T, eye) + np.kron(eye, T.conj())
        for _ in range(5):  # no unitary right side may beat the identity
            U = np.linalg.qr(rng.standard_normal((n, n)))[0]
            assert norm(np.linalg.solve(operator, U.ravel()).reshape(n, n), 2) <= inverse_norm(T, discrete) * (
                1 + 1e-12
            )
        identity = np.linalg.solve(operator, eye.ravel()).reshape(n, n)
        assert inverse_norm(T, discrete) == pytest.approx(norm(identity, 2), rel=1e-11)  # |operator| |inverse| eps


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("n", [1, 5, 20, 60])
def test_norms_for_the_rounding_error_are_those_of_each_matrix(n: int, discrete: bool) -> None:
    rng = np.random.default_rng(n)
    whole = sla.schur(random_case(n, n, "f", True) - 2 * np.eye(n))[0] / (1e3 if discrete else 1)
    T, S, R = whole[n // 2 :, n // 2 :], rng.standard_normal((n, n)), rng.standard_normal((2, n))
    found = rounding_norms(whole, T, S, R, discrete)
    expected = norm_estimate(S) * norm_estimate(R), norm_estimate(whole), inverse_norm(T, discrete)
    np.testing.assert_allclose(found, expected, rtol=1e-2)  # power steps begin from a row of R, or from a column
    assert rounding_norms(whole, T, S[:, :0], R, discrete) == (0.0, *expected[1:])


def test_inverse_norm_overflows_to_infinity() -> None:
    for dtype in (float, complex):
        assert inverse_norm(np.array([[-1.0, 1e200], [0.0, -1.0]], dtype), discrete=False) == np.inf
        assert inverse_norm(np.zeros((1, 1), dtype), discrete=False) == np.inf


def test_no_states_are_no_special_case() -> None:
    A, B, C = np.zeros((0, 0)), np.zeros((0, 2)), np.zeros((3, 0))
    A_b, B_b, C_b = apply_units(balanced_units(A, B, C), A, B, C)
    found = ordered_schur(A_b, discrete=True)
    assert (B_b.shape, C_b.shape, found.kept, found.poles.size) == ((0, 2), (3, 0), 0, 0)
    assert decouple(found.T, 0).shape == (0, 0)
    assert inverse_norm(found.T, discrete=False) == 0.0
