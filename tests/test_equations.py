"""Matrix equations in balanced units: what must be solved, what must be refused, in families."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from hankelred.errors import InputError, NumericalError
from hankelred.linalg.equations import generalised, lyapunov_solution, stein, sylvester
from tests.reference import gramian_by_kronecker
from tests.reference_lyapunov import exact_gramian

domains = pytest.mark.parametrize("discrete", [False, True])
kinds = pytest.mark.parametrize("complex_data", [False, True])


def random(rng, shape, complex_data=False):
    x = rng.standard_normal(shape)
    return x + 1j * rng.standard_normal(shape) if complex_data else x


def similar(rng, D, condition=100.0, complex_data=False):
    """Return D in other coordinates, with a transformation of the given condition."""
    n = len(D)
    left, right = (np.linalg.qr(random(rng, (n, n), complex_data))[0] for _ in range(2))
    T = left * np.geomspace(1, condition, n) @ right
    return T @ D @ np.linalg.inv(T)


def in_units(rng, A, decades=9):
    u = 10.0 ** rng.uniform(-decades, decades, len(A))
    return A * u[:, None] / u


def forbidden_pair(rng, discrete):
    """Return a real 2 x 2 block, or diagonal, whose two eigenvalues make a Lyapunov equation singular."""
    a = 10.0 ** rng.uniform(-1, 1)
    if rng.integers(2):
        return np.diag([a, 1 / a]) if discrete else np.diag([a, -a])
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.cos(a) * np.eye(2) + np.sin(a) * turn if discrete else a * turn


def right_side(rng, A, discrete, kind):
    """Return a Hermitian right side: the identity, one of rank one, or one that a singular equation admits."""
    n = len(A)
    if kind == "identity":
        return np.eye(n)
    b = random(rng, (n, 1 if kind == "rank one" else n))
    X = b @ b.T
    if kind == "rank one":
        return X
    Q = X - A @ X @ A.conj().T if discrete else -(A @ X + X @ A.conj().T)
    return (Q + Q.conj().T) / 2


@domains
@kinds
@pytest.mark.parametrize("kind", ["identity", "rank one", "consistent"])
def test_singular_lyapunov_equations_are_refused_in_all_coordinates(kind, complex_data, discrete):
    rng = np.random.default_rng(1)
    for trial in range(25):
        n = int(rng.choice([2, 3, 4, 6, 10, 30]))
        rates = 10.0 ** rng.uniform(-2, 1, n)
        D = np.diag(np.exp(-rates) if discrete else -rates)
        D[:2, :2] = forbidden_pair(rng, discrete)
        A = similar(rng, D, 10 ** rng.uniform(0, 3), complex_data)
        A = in_units(rng, A) if trial % 2 else A
        with pytest.raises(NumericalError, match="singular"):
            lyapunov_solution(A, right_side(rng, A, discrete, kind), discrete)


def test_singular_sylvester_and_stein_equations_are_refused():
    rng = np.random.default_rng(2)
    for trial in range(60):
        n = int(rng.choice([2, 3, 5, 20]))
        A = random(rng, (n, n), trial % 2 == 0)
        C = random(rng, (n, n))
        Q = similar(rng, -A if trial % 3 else -A.T, 10)
        with pytest.raises(NumericalError, match=r"lam_i \+ mu_j = 0"):
            sylvester(A, Q, C)
        with pytest.raises(NumericalError, match=r"lam_i conj\(mu_j\) = 1"):
            stein(A, np.linalg.inv(-Q).conj().T if trial % 3 else np.linalg.inv(-Q).conj(), C)


@pytest.mark.parametrize("gap", [0.0, 1e-17, 1e-16, 3e-16])
def test_gaps_within_rounding_are_singular(gap):
    A = np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 10]])
    with pytest.raises(NumericalError, match="singular"):
        sylvester(A, -A * (1 + gap), np.eye(3))
    with pytest.raises(NumericalError, match="singular"):
        lyapunov_solution(np.diag([1.0, -1.0 - gap]), np.ones((2, 2)), False)


def test_gap_that_leaves_digits_is_solved():
    gap = 2.0**-40  # relative error eps / gap = 2e-4
    X = lyapunov_solution(np.diag([1.0, -1.0 - gap]), np.ones((2, 2)), False)
    assert X[0, 1] == 1 / gap


def test_named_eigenvalues_are_those_that_break_the_rule():
    with pytest.raises(NumericalError, match=r"got 3\S* and -3\S*, .*Remove"):
        sylvester(np.diag([1.0, 3.0, 7.0]), np.diag([-3.0, 5.0]), np.ones((3, 2)))


def ladder(rng, n):
    """Return a net of resistors and grounded capacitors with rates over many decades."""
    G, c = 10.0 ** -rng.uniform(0, 6, n + 1), 10.0 ** rng.uniform(-12, -2, n)
    return (np.diag(G[1:-1], 1) + np.diag(G[1:-1], -1) - np.diag(G[:-1] + G[1:])) / c[:, None]


def cascade(rng, n):
    rates = 10.0 ** rng.uniform(-6, 8, n)
    return np.diag(-rates) + np.diag(rates[:-1], -1)


def graded(rng, n):
    """Return a matrix whose rows and columns fall over twelve decades."""
    d = 10.0 ** rng.uniform(-6, 6, n)
    return np.sqrt(d)[:, None] * (random(rng, (n, n)) / n - 2 * np.eye(n)) * np.sqrt(d)


def two_capacitors(rng, n):
    return np.array([[-0.02, 0.01], [1e6, -1.00001e11]])


def rates(rng, n):
    return np.diag([-1e-6, -1e11, *-(10.0 ** rng.uniform(-8, 12, n - 2))])


@pytest.mark.parametrize(
    ("family", "digits"),
    # A ladder that is nearly cut off from ground has a slow rate that the entries of A know to 1e-10 only.
    [(ladder, 1e-9), (cascade, 1e-12), (graded, 1e-12), (two_capacitors, 1e-14), (rates, 1e-14)],
)
def test_stiff_equations_are_solved_in_any_units_and_order(family, digits):
    rng = np.random.default_rng(3)
    for trial in range(12):
        A = family(rng, int(rng.integers(2, 5)))
        n = len(A)
        order, u = rng.permutation(n), 2.0 ** (rng.integers(-30, 30, n) if trial % 2 else np.zeros(n))
        A = A[np.ix_(order, order)] * u[:, None] / u
        F = np.round(random(rng, (n, n)) * 64) * u[:, None]  # F F^T is exact
        X = lyapunov_solution(A, F @ F.T, False)
        exact = exact_gramian(A, F, False)
        for i in range(n):
            for j in range(n):
                natural = mpmath.sqrt(exact[i, i] * exact[j, j])
                assert abs(X[i, j] - exact[i, j]) <= digits * natural


@domains
def test_every_entry_has_a_small_residual(discrete):
    rng = np.random.default_rng(4)
    for _ in range(20):
        A = ladder(rng, 12)
        if discrete:  # eigenvalues from 1e-10 to 0.9, states of one size
            A = np.sign(A) * np.sqrt(abs(A * A.T))
            A *= 0.9 / abs(np.linalg.eigvals(A)).max()
        X = lyapunov_solution(A, np.eye(12), discrete)
        residual = A @ X @ A.T - X if discrete else A @ X + X @ A.T
        terms = abs(A) @ abs(X) @ abs(A).T + abs(X) if discrete else abs(A) @ abs(X) + abs(X) @ abs(A).T
        # 12 eps, and as much for this product; entries below its square next to the largest are rounding
        assert np.all(abs(residual + np.eye(12)) <= 1e-14 * (terms + np.eye(12)) + 1e-26 * terms.max())


@domains
@kinds
def test_hermitian_right_sides_have_exactly_hermitian_solutions(complex_data, discrete):
    rng = np.random.default_rng(5)
    for n in (1, 2, 7, 60):
        A, Q = random(rng, (n, n), complex_data), random(rng, (n, n), complex_data)
        E = random(rng, (n, n), complex_data)
        for X in (lyapunov_solution(A, Q + Q.conj().T, discrete), generalised(A, Q + Q.conj().T, E, discrete)):
            np.testing.assert_array_equal(X, X.conj().T)


def test_real_and_complex_coefficients_mix():
    rng = np.random.default_rng(6)
    for trial in range(8):
        A, Q, C = (random(rng, s, bool(trial >> k & 1)) for k, s in enumerate([(5, 5), (3, 3), (5, 3)]))
        X, Y = sylvester(A, Q, C), stein(A, Q, C)
        assert X.dtype == np.result_type(A, Q, C)
        np.testing.assert_allclose(A @ X + X @ Q, -C, atol=1e-12)  # the condition of 5 random states, 1e3 at most
        np.testing.assert_allclose(Y - A @ Y @ Q.conj().T, C, atol=1e-12)


@domains
def test_units_on_both_sides_change_no_sylvester_solution(discrete):
    rng = np.random.default_rng(7)
    solve = stein if discrete else sylvester
    for _ in range(20):
        A, Q, C = random(rng, (5, 5)), random(rng, (3, 3)), random(rng, (5, 3))
        u, v = 10.0 ** rng.uniform(-9, 9, 5), 10.0 ** rng.uniform(-9, 9, 3)
        X = solve(A, Q, C)
        scaled = Q * v[:, None] / v if discrete else Q / v[:, None] * v
        Y = solve(A * u[:, None] / u, scaled, C * u[:, None] * v) / u[:, None] / v
        np.testing.assert_allclose(Y, X, rtol=0, atol=1e-11 * abs(X).max())  # condition 1e4 at most


@domains
@kinds
def test_generalised_solution_is_that_of_the_equation_without_E(complex_data, discrete):
    rng = np.random.default_rng(8)
    for _ in range(15):
        n = int(rng.integers(1, 7))
        G, F = random(rng, (n, n), complex_data), random(rng, (n, n), complex_data)
        E = random(rng, (n, n), complex_data) + 4 * np.eye(n)
        X = gramian_by_kronecker(G, F @ F.conj().T, int(discrete))
        u, v = 10.0 ** rng.uniform(-9, 9, (2, n))
        A, E, F = E @ G * v[:, None] * u, E * v[:, None] * u, E @ F * v[:, None]
        Y = generalised(A, F @ F.conj().T, E, discrete) * u[:, None] * u
        np.testing.assert_allclose(Y, X, rtol=0, atol=1e-10 * abs(X).max())  # conditions of equation and E


def test_descriptor_in_units_is_not_singular():
    X = generalised(np.diag([-1e6, -1e-12]), np.eye(2), np.diag([1e6, 1e-12]), False)
    np.testing.assert_allclose(X.diagonal(), [0.5e-12, 0.5e24], rtol=1e-15)


def test_singular_descriptor_is_refused():
    with pytest.raises(InputError, match="rank 1 of 2"):
        generalised(-np.eye(2), np.eye(2), np.array([[1e-9, 1e9], [1e-12, 1e6]]), False)


def test_solution_that_overflows_in_the_units_of_the_caller_is_an_error():
    u = np.array([1e160, 1.0])
    A = np.array([[-1.0, 0.5], [0.5, -1.0]]) * u[:, None] / u
    with np.errstate(over="ignore"), pytest.raises(NumericalError, match="overflow"):
        lyapunov_solution(A, np.diag([0.0, 1.0]), False)
