"""Frequency responses are solves with the matrices given, and no sampled gain exceeds the largest gain."""

import warnings

import mpmath as mp
import numpy as np
import pytest
import scipy.linalg as sla

import hankelred as hr
from hankelred.linalg import gain as gain_module
from hankelred.linalg import response as response_module
from hankelred.linalg.gain import gain_function, largest_singular_values, peak_gain
from hankelred.linalg.response import dense_response

EPS = np.finfo(float).eps


def random_stable(rng, n, m=2, p=2, margin=0.1, complex_=False):
    """Return A with spectral abscissa ``-margin``, and B, C, D."""
    draw = lambda *shape: rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if complex_ else 0)  # noqa: E731
    A = draw(n, n)
    A = A - (np.linalg.eigvals(A).real.max() + margin) * np.eye(n)
    return A, draw(n, m), draw(p, n), draw(p, m)


def resonators(frequencies, zeta, gains):
    """Return the sum of ``gains * w^2 / (s^2 + 2 zeta w s + w^2)``."""
    w = np.asarray(frequencies, dtype=float)
    A = sla.block_diag(*([[0.0, f], [-f, -2 * zeta * f]] for f in w))
    B = np.ravel([[0.0, f] for f in w])[:, None]
    return A, B, np.ravel([[g, 0.0] for g in gains])[None], np.zeros((1, 1))


def ladder(rng, n, decades):
    """Return an RC ladder driven at one end and read at the other: time constants over twice as many decades."""
    R = 10 ** rng.uniform(-decades / 2, decades / 2, n + 1)
    c = 10 ** rng.uniform(-12, -12 + decades, n)
    A = -np.diag((1 / R[:-1] + 1 / R[1:]) / c)
    A += np.diag(1 / R[1:-1] / c[:-1], 1) + np.diag(1 / R[1:-1] / c[1:], -1)
    return A, np.eye(n)[:, :1] / R[0] / c[0], np.eye(n)[-1:], np.zeros((1, 1))


def exact_response(A, B, C, D, s):
    """Return ``C (s I - A)^-1 B + D`` of a system with one input and one output, from 60 digits."""
    with mp.workdps(60):
        M = mp.matrix((-A).tolist()) + mp.mpmathify(s) * mp.eye(len(A))
        return complex((mp.matrix(C.tolist()) * mp.lu_solve(M, mp.matrix(B.tolist())))[0] + D[0, 0])


def rounding_of_a_solve(A, B, C, D, s):
    """Return what entries of relative error eps in A, s and B can change, ``eps |C| |M^-1| (|M| |x| + |b|)``."""
    M = s * np.eye(len(A)) - A
    X = np.linalg.solve(M, B)
    parts = np.abs(s) * np.abs(X) + np.abs(A) @ np.abs(X) + np.abs(B)
    return EPS * (np.abs(C) @ np.abs(np.linalg.inv(M)) @ parts + np.abs(D))[0, 0]


def bilinear(A, B, C, D, h):
    """Return the discrete system with the response at ``z = (1 + h s) / (1 - h s)``, which has the same norm."""
    W = np.linalg.inv(np.eye(len(A)) - h * A)
    return W @ (np.eye(len(A)) + h * A), np.sqrt(2 * h) * W @ B, np.sqrt(2 * h) * C @ W, D + h * C @ W @ B


def highest_sample(system, omega, discrete=False):
    return gain_function(*system, discrete)(omega).max()


@pytest.fixture(params=["factors of each point", "one Schur form", "one Hessenberg form"])
def way(request, monkeypatch):
    """Make small systems take the way of large ones too."""
    if request.param != "factors of each point":
        monkeypatch.setattr(response_module, "SCHUR_FROM", 1)
        monkeypatch.setattr(response_module, "POINTS_PER_SCHUR", 0)
    if request.param == "one Hessenberg form":
        monkeypatch.setattr(response_module, "HESSENBERG_FROM", 1)
        monkeypatch.setattr(response_module, "HESSENBERG_POINTS", range(10**9))


def test_error_of_a_stiff_response_is_that_of_a_solve_with_the_given_matrices(way):
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 8, 11):
        system = ladder(rng, n, decades=8)  # rates over 16 decades
        for s, value in zip(
            points := 1j * np.array([0, 1e-2, 1e4, 1e11]), dense_response(*system, points), strict=True
        ):
            assert abs(value[0, 0] - exact_response(*system, s)) <= 50 * rounding_of_a_solve(*system, s)


def test_units_of_states_do_not_change_a_response(way):
    for seed in range(100, 104):
        rng = np.random.default_rng(seed)
        A, B, C = rng.standard_normal((8, 8)) - 3 * np.eye(8), rng.standard_normal((8, 1)), rng.standard_normal((1, 8))
        A, D = A * (np.arange(8)[:, None] // 2 >= np.arange(8) // 2), np.zeros((1, 1))  # pairs in a chain
        u = 2.0 ** rng.integers(-100, 101, 8)
        for s in (0.0, 0.7j):
            value = dense_response(A * u / u[:, None], B / u[:, None], C * u, D, [s])[0, 0, 0]
            assert abs(value - exact_response(A, B, C, D, s)) <= 2 * rounding_of_a_solve(A, B, C, D, s)


def test_units_of_inputs_and_outputs_change_no_digit_of_a_response(way):
    A, B, C, D = random_stable(np.random.default_rng(2), 5)
    points, inputs, outputs = 1j * np.arange(4.0), 2.0 ** np.array([500, -490]), 2.0 ** np.array([480, -500])
    scaled = dense_response(A, B * inputs, C * outputs[:, None], 0 * D, points)
    assert np.array_equal(scaled, dense_response(A, B, C, 0 * D, points) * inputs * outputs[:, None])


def test_real_systems_have_a_real_response_at_real_points(way):
    rng = np.random.default_rng(3)
    for n in (1, 4, 9):
        assert np.all(dense_response(*random_stable(rng, n), [0.0, 1.0, -1.0, 2.5]).imag == 0)


def test_response_is_infinite_at_a_pole_and_the_feedthrough_at_infinity(way):
    A, D = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 0]]), np.array([[1.0, 2.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = dense_response(A, np.ones((3, 2)), np.ones((1, 3)), D, [0.0, 1j, np.inf, 1j * np.inf, 1.0])
    assert np.all(np.isinf(value[:2]))
    assert not np.any(np.isnan(value))
    assert np.array_equal(value[2:4], np.stack([D, D]))
    assert np.all(np.isfinite(value[4]))


def test_empty_systems_have_a_response():
    for n, m, p in ((0, 2, 3), (2, 0, 3), (2, 3, 0)):
        D = np.ones((p, m))
        value = dense_response(-np.eye(n), np.ones((n, m)), np.ones((p, n)), D, [0.0, 1j, np.inf])
        assert value.shape == (3, p, m)
        assert np.all(value[2] == D)
        assert dense_response(-np.eye(n), np.ones((n, m)), np.ones((p, n)), D, []).shape == (0, p, m)


def test_refined_solutions_of_a_benign_system_need_no_factors_at_single_points(monkeypatch):
    monkeypatch.delattr(response_module._ShiftedSolver, "_lu")
    for complex_ in (False, True):
        A, B, C, D = random_stable(np.random.default_rng(19), 60, complex_=complex_)
        assert np.all(np.isfinite(dense_response(A, B, C, D, 1j * np.linspace(0.1, 9, 100))))


def test_many_points_of_a_large_system_cost_no_digits():
    rng = np.random.default_rng(4)
    for complex_ in (False, True):
        A, B, C, D = random_stable(rng, 60, margin=1e-8, complex_=complex_)
        poles = np.linalg.eigvals(A)
        points = 1j * np.append(np.linspace(-3, 3, 80), poles[np.argmax(poles.real)].imag)
        value = dense_response(A, B, C, D, points)
        for s, one in zip(points, value, strict=True):
            plain = C @ np.linalg.solve(s * np.eye(60) - A, B) + D
            cond = np.linalg.cond(s * np.eye(60) - A)
            assert np.abs(one - plain).max() <= 10 * EPS * cond * np.abs(plain).max()  # the plain solve errs by as much


def test_peak_of_two_states_is_that_of_symbolic_algebra():
    A, B = np.array([[-4.0, 0.0], [2.0, -3.0]]), np.array([[1.0], [0.0]])
    norm, omega = peak_gain(A, B, np.array([[3.0, 5.0]]), np.array([[-2.0]]), discrete=False)
    assert abs(norm - 2.00011091193) <= 1e-10
    assert np.isfinite(omega)


@pytest.mark.parametrize("n", [4, 8, 13])  # history: 17 of the 90 of n = 3 .. 14 were too small, by up to 8 %
def test_gain_of_errors_that_vanish_at_zero_is_never_below_a_sample(n):
    G = hr.StateSpace(-np.eye(n) + np.eye(n, k=1), np.eye(n)[:, -1:], np.eye(n)[:1])
    balancing, omega = hr.balance(G), np.append(np.geomspace(1e-2, 1e4, 1500), np.inf)
    for order in range(1, n):
        error = G - balancing.reduce(order, match_dc=True).system
        system = error.A, error.B, error.C, error.D
        norm, _ = peak_gain(*system, discrete=False)
        assert norm >= highest_sample(system, omega) * (1 - 1e-8)


def test_gain_of_filters_with_finite_impulse_response_is_that_of_a_fine_grid():
    rng = np.random.default_rng(5)
    for taps in (5, 11, 21, 40):
        h = rng.standard_normal(taps)
        n, grid = taps - 1, np.exp(1j * np.linspace(0, np.pi, 400 * taps))
        norm, _ = peak_gain(np.eye(n, k=-1), np.eye(n)[:, :1], h[None, 1:], h[:1, None], discrete=True)
        seen = np.abs(np.polyval(h[::-1], 1 / grid)).max()
        # next to the peak the gain falls by at most n^2 h^2 / 2 of the sum of taps (Bernstein), h half a grid step
        assert -1e-9 * seen <= norm - seen <= (n * np.pi / (800 * taps)) ** 2 / 2 * np.abs(h).sum()


@pytest.mark.parametrize("share", [1e-1, 1e-4, 1e-7])
def test_peaks_beside_the_gain_at_infinity_are_found(share):
    rng = np.random.default_rng(6)
    for n, ports in ((2, 1), (4, 2), (15, 2)):
        A, B, C, D = random_stable(rng, n, ports, ports)
        system = A, B, share * C, D / np.linalg.norm(D, 2)
        omega = np.append(np.geomspace(1e-3, 1e4, 3000), [0.0, np.inf])
        norm, _ = peak_gain(*system, discrete=False)
        assert norm >= highest_sample(system, omega) * (1 - 1e-9)
        # between samples 0.5 % apart, what varies by share |h| varies by less than a hundredth of it
        assert norm <= highest_sample(system, omega) + 0.01 * highest_sample((A, B, share * C, 0 * D), omega)


def test_gain_of_all_passes_is_one():
    rng = np.random.default_rng(7)
    for n in (1, 3, 8, 20):  # A + A^T = -B B^T, C = B^T, D = -I: G^H G = I
        B = rng.standard_normal((n, 2))
        K = rng.standard_normal((n, n))
        A = -B @ B.T / 2 + K - K.T
        for discrete, system in ((False, (A, B, B.T, -np.eye(2))), (True, bilinear(A, B, B.T, -np.eye(2), 0.1))):
            assert abs(peak_gain(*system, discrete)[0] - 1) <= 1e-9


def test_peaks_of_light_damping_are_found():
    for zeta in (1e-2, 1e-6, 1e-9):
        for discrete in (False, True):
            system = resonators([3.0], zeta, [1.0])
            norm, omega = peak_gain(*(bilinear(*system, 0.2) if discrete else system), discrete)
            # closed form; the bilinear map rounds a damping zeta by eps / zeta
            assert abs(norm * 2 * zeta * np.sqrt(1 - zeta**2) - 1) <= 1e-9 + 20 * EPS / zeta * discrete
            assert abs(omega - (2 * np.arctan(0.6) if discrete else 3.0)) <= 1e-3


def test_the_higher_of_two_close_resonances_is_found():
    for distance in (1e-1, 1e-4, 3e-6):
        for pair in ((1.0, 1.01), (1.01, 1.0), (1.0, -1.01)):
            system = resonators([1.0, 1.0 + distance], 1e-6, pair)
            omega = np.concatenate([f + 1e-6 * np.linspace(-3, 3, 6001) for f in (1.0, 1.0 + distance)])
            norm, _ = peak_gain(*system, discrete=False)
            assert abs(norm / highest_sample(system, omega) - 1) <= 1e-6  # samples 1e-3 half widths apart


def test_many_light_resonances_leave_no_peak_behind():
    rng = np.random.default_rng(8)
    for n, discrete in ((8, False), (30, False), (30, True), (60, False)):
        A, B, C, D = resonators(10 ** rng.uniform(-1, 2, n // 2), 1e-4, rng.standard_normal(n // 2))
        Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
        system = Q @ A @ Q.T, Q @ B, C @ Q.T, D
        poles = np.linalg.eigvals(A)
        omega = np.ravel(poles.imag[:, None] + np.abs(poles.real)[:, None] * np.linspace(-2, 2, 41))
        seen = highest_sample(system, omega)
        norm, _ = peak_gain(*(bilinear(*system, 0.05) if discrete else system), discrete)
        assert seen * (1 - 1e-8) <= norm <= 1.01 * seen


def test_complex_systems_have_peaks_at_negative_frequencies():
    rng = np.random.default_rng(9)
    for n in (2, 5, 25):
        for _ in range(3):
            A, B, C, D = random_stable(rng, n)
            norm, _ = peak_gain(A, B, C, D, discrete=False)
            shifted, where = peak_gain(A - 100j * np.eye(n), B, C, D, discrete=False)
            assert abs(shifted - norm) <= 1e-8 * norm
            assert where < 0
            assert abs(gain_function(A, B, C, D, False)(np.array([where + 100]))[0] - norm) <= 1e-8 * norm
            turned, _ = peak_gain(*bilinear(A - 1j * np.eye(n), B, C, D, 0.3), discrete=True)
            assert abs(turned - norm) <= 1e-8 * norm


def test_continuous_and_discrete_twins_have_one_norm():
    rng = np.random.default_rng(10)
    for n in (1, 3, 6, 14):
        for h in (1e-3, 0.5):
            system = random_stable(rng, n, m=1 + n % 3, margin=10 ** rng.uniform(-6, 0))
            norm, _ = peak_gain(*system, discrete=False)
            assert abs(peak_gain(*bilinear(*system, h), discrete=True)[0] - norm) <= 1e-8 * norm


def test_units_of_states_do_not_change_the_largest_gain():
    rng = np.random.default_rng(11)
    for trial in range(12):
        A, B, C, D = random_stable(rng, 6)
        if trial % 3 == 0:  # decoupled states: A alone says nothing about their units
            A = np.diag(np.diag(A) - np.diag(A).max() - 0.1)
        u = 10 ** rng.uniform(-10, 10, 6)
        norm, _ = peak_gain(A, B, C, D, discrete=False)
        assert abs(peak_gain(A * u / u[:, None], B / u[:, None], C * u, D, False)[0] - norm) <= 1e-8 * norm


def test_gain_of_ladders_is_the_true_gain_at_the_frequency_returned():
    rng = np.random.default_rng(12)
    for n in (3, 6, 10):
        A, B, _, D = ladder(rng, n, decades=8)
        system = A, B, np.eye(n)[n // 2 : n // 2 + 1], D - rng.uniform(0, 1)
        norm, omega = peak_gain(*system, discrete=False)
        if np.isfinite(omega):
            true = abs(exact_response(*system, 1j * omega))
            assert abs(norm - true) <= 50 * rounding_of_a_solve(*system, 1j * omega)
        assert norm >= highest_sample(system, np.append(np.geomspace(1e-6, 1e14, 2000), [0.0, np.inf])) * (1 - 1e-8)


def test_a_slow_resonance_is_found_behind_fast_rates():
    rng = np.random.default_rng(13)
    for fast in (1e6, 1e10, 1e13):
        broad, narrow = resonators([1e-3], 1e-2, [1.0]), resonators([1.37e-3], 1e-7, [2e-5])  # peaks 50 and 100
        A, B, C = (
            sla.block_diag(broad[0], narrow[0]),
            np.vstack([broad[1], narrow[1]]),
            np.hstack([broad[2], narrow[2]]),
        )
        V = rng.standard_normal((4, 4)) / 4
        # the fast states follow the slow ones and act on them: at low frequencies the sum is the two resonances
        A = np.block([[A - 1e-3 * V, 1e-3 * np.eye(4)], [fast * V, -fast * np.eye(4)]])
        system = A, np.vstack([B, 0 * B]), np.hstack([C, 0 * C]), np.zeros((1, 1))
        norm, _ = peak_gain(*system, discrete=False)
        near = 1.37e-3 * (1 + 1e-7 * np.linspace(-3, 3, 2001))
        assert norm >= highest_sample(system, near) * (1 - 1e-8)


def test_norms_of_any_size_are_right():
    for discrete in (False, True):
        system = random_stable(np.random.default_rng(14), 4)
        A, B, C, D = bilinear(*system, 0.3) if discrete else system
        norm, omega = peak_gain(A, B, C, D, discrete)
        for b, c in ((500, 0), (-500, 0), (0, 500), (-250, -250), (500, -500)):
            assert peak_gain(A, B * 2.0**b, C * 2.0**c, D * 2.0 ** (b + c), discrete) == pytest.approx(
                (norm * 2.0 ** (b + c), omega), rel=1e-8, abs=0
            )


def test_units_of_time_do_not_change_the_largest_gain():
    A, B, C, D = random_stable(np.random.default_rng(15), 5)
    norm, _ = peak_gain(A, B, C, D, discrete=False)
    for e in (-300, -40, 40, 300):
        assert abs(peak_gain(A * 2.0**e, B * 2.0**e, C, D, False)[0] - norm) <= 1e-8 * norm


def test_systems_without_states_or_ports_have_a_gain():
    empty, D = np.zeros((0, 0)), np.diag([1.0, -3.0])
    assert peak_gain(empty, np.zeros((0, 2)), np.zeros((2, 0)), D, False)[0] == 3.0
    assert peak_gain(-np.eye(2), np.zeros((2, 0)), np.eye(2), np.zeros((2, 0)), False) == (0.0, 0.0)
    assert peak_gain(-np.eye(2), np.eye(2), np.zeros((0, 2)), np.zeros((0, 2)), False) == (0.0, 0.0)
    assert peak_gain(-np.eye(2), 0 * np.eye(2), np.eye(2), np.zeros((2, 2)), False)[0] == 0.0


def test_every_value_is_that_of_the_evaluator_given():
    A, B, C, D = random_stable(np.random.default_rng(16), 6)
    own = gain_function(A, B, C, D, False)
    seen = []

    def gain(omega):
        seen.append(own(omega))
        return seen[-1]

    norm, omega = peak_gain(A * (1 + 1e-12), B, C, D, False, gain=gain)
    assert norm == np.concatenate(seen).max()
    assert abs(own(np.array([omega]))[0] - norm) <= 4 * EPS * norm


def test_largest_singular_values_neither_overflow_nor_stop_at_a_pole():
    rng = np.random.default_rng(17)
    X = rng.standard_normal((3, 2, 3)) * 2.0 ** np.array([600, 0, -600])[:, None, None]
    X = np.concatenate([X, np.full((1, 2, 3), np.inf)])
    expected = [float(np.linalg.norm(x * 2.0**-e, 2)) * 2.0**e for x, e in zip(X, (600, 0, -600), strict=False)]
    assert largest_singular_values(X + 0j)[:3] == pytest.approx(expected, rel=1e-14, abs=0)
    assert largest_singular_values(X + 0j)[3] == np.inf


@pytest.mark.parametrize("qz_up_to", [0, 10**6])
def test_both_eigenvalue_solvers_find_the_crossings(monkeypatch, qz_up_to):
    monkeypatch.setattr(gain_module, "QZ_UP_TO", qz_up_to)
    rng = np.random.default_rng(18)
    for discrete in (False, True):
        A, B, C, D = random_stable(rng, 12, complex_=discrete)
        system = bilinear(A, B, C, D, 0.3) if discrete else (A, B, C, D)
        norm, _ = peak_gain(*system, discrete)
        level = 0.9 * norm
        pencil = gain_module._Pencil(*system, level, discrete)
        gain = gain_function(*system, discrete)(pencil.crossings(level))
        omega = np.linspace(-np.pi, np.pi, 40001) if discrete else np.linspace(-50, 50, 40001)
        above = gain_function(*system, discrete)(omega) > level
        assert np.sum(np.abs(gain / level - 1) <= 1e-9) >= np.sum(above[1:] != above[:-1]) >= 2


def test_crossings_are_found_in_any_units_of_states_that_are_not_coupled():
    rng = np.random.default_rng(20)
    for _ in range(10):
        A, B, C = np.diag(-(10 ** rng.uniform(-1, 1, 5))), rng.standard_normal((5, 2)), rng.standard_normal((2, 5))
        u = 10 ** rng.uniform(-10, 10, 5)
        system = A, B / u[:, None], C * u, np.zeros((2, 2))
        norm, _ = peak_gain(*system, discrete=False)
        crossings = gain_module._Pencil(*system, norm, False).crossings(0.9 * norm)
        assert np.abs(gain_function(*system, False)(crossings) / (0.9 * norm) - 1).min() <= 1e-9
