"""Balancing of Riccati pairs: the equations, the bounds, what each pair keeps, and what is refused."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from classical import (
    DOMAINS,
    at_gain,
    chordal_distance,
    drawn,
    grid,
    in_other_units,
    least_resistance,
    passive,
    relative_error,
)
from sizes import sample

import hankelred as hr
from hankelred.feedback import reduce_controller
from hankelred.linalg.bilinear import continuous_image, discrete_image
from hankelred.linalg.riccati import filter_factor, passive_factor
from hankelred.weighting import LQG, BoundedReal, Coprime, PositiveReal, Stochastic

SEEDS = sample(range(200))
FEW = sample(range(60))


def case(name, seed, dt, gain=1.0):
    """Return a system and the weighting for it."""
    if name == "positive-real":
        return at_gain(passive(seed, dt), gain), PositiveReal()
    rng, G = drawn(seed, dt, unstable=name in ("LQG", "coprime") and seed % 4 < 2)
    G, level = at_gain(G, gain), float(rng.choice([1.001, 1.1, 3.0]))
    return G, {
        "LQG": lambda: LQG(),
        "coprime": lambda: Coprime(),
        "bounded-real": lambda: BoundedReal(level * hr.hinf_norm(G)),
        "stochastic": lambda: Stochastic(),
        "mixed": lambda: Stochastic(beta=0.3),
    }[name]()


def bounded_error(name, G, reduction, weighting):
    """Return the error that a bound is on, measured plainly, and whether the model has what theory says it has."""
    H = reduction.system
    if name in ("LQG", "coprime"):
        return chordal_distance(G, H), True
    if name == "bounded-real":
        return reduction.hinf_error(), hr.hinf_norm(H) <= weighting.gamma * (1 + 1e-9)
    if name == "positive-real":
        return reduction.hinf_error(), H.is_stable() and least_resistance(H) >= -1e-9
    return relative_error(G, H, weighting.beta), H.is_stable()


@pytest.mark.parametrize("dt", DOMAINS)
@pytest.mark.parametrize("name", ["LQG", "coprime", "bounded-real", "positive-real", "stochastic", "mixed"])
def test_no_bound_is_exceeded_and_every_model_keeps_the_property(name, dt):
    for seed in SEEDS:
        G, weighting = case(name, seed, dt)
        bal = hr.balance(G, weighting=weighting)
        for order in range(bal.rank):
            if order and bal.hsv[order - 1] - bal.hsv[order] < 1e-6:
                continue  # a repeated value, as 1 of several zeros in the right half plane, is not split
            reduction = bal.reduce(order)
            error, kept = bounded_error(name, G, reduction, weighting)
            assert error <= reduction.error_bound * (1 + 1e-9), (seed, order)
            assert kept, (seed, order)


@pytest.mark.parametrize("dt", DOMAINS)
@pytest.mark.parametrize("name", ["LQG", "coprime", "bounded-real", "positive-real", "stochastic"])
def test_bounds_hold_for_whole_systems_of_any_gain_and_add_little_for_rounding(name, dt):
    """With all states kept the error is what rounding makes of the Riccati solutions and of the projection."""
    refused = 0
    for seed in SEEDS:
        gain = 10.0 ** np.random.default_rng([41, seed]).uniform(-4, 4)
        G, weighting = case(name, seed, dt, gain)
        try:
            bal = hr.balance(G, weighting=weighting)
        except hr.StabilityError:  # of 200 factors one has a value that is 1 to rounding, of a gain of 4,000
            refused += 1
            continue
        norm = hr.hinf_norm(G) if name in ("bounded-real", "positive-real") else 1.0
        for order in range(max(0, bal.rank - 1), bal.rank + 1):
            if 0 < order < bal.rank and bal.hsv[order - 1] - bal.hsv[order] < 1e-6:
                continue  # zeros in the right half plane, which are not split
            reduction = bal.reduce(order)
            error = bounded_error(name, G, reduction, weighting)[0]
            assert error <= reduction.error_bound * (1 + 1e-9), (seed, order, gain)
        if bal.rank == G.n:
            mu = bal.hsv[0] if name == "LQG" else 0.0  # squares of large ones are lost beside small ones
            assert reduction.error_bound <= 1e-8 * norm * (1 + mu), (seed, gain)
    assert refused <= (name == "coprime")


def test_a_schur_form_that_cannot_be_reordered_is_one_of_the_reciprocals():
    """Rounding spoils an exchange of eigenvalues of this pencil, with the LAPACK it was found with."""
    G, weighting = case("LQG", 106, True, 9522.490944966112)
    bal = hr.balance(G, weighting=weighting)
    for order in range(1, bal.rank + 1):
        reduction = bal.reduce(order)
        assert bounded_error("LQG", G, reduction, weighting)[0] <= reduction.error_bound * (1 + 1e-9), order


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_discrete_stochastic_models_are_those_of_the_continuous_image(beta):
    """The bilinear map with z = -1 at infinity keeps values, models, and the bound that holds for continuous ones."""
    for seed in SEEDS:
        _, G = drawn(seed, True)
        image = hr.StateSpace(*continuous_image(G.A, G.B, G.C, G.D, 1.0))
        found, continuous = (hr.balance(x, weighting=Stochastic(beta)) for x in (G, image))
        np.testing.assert_allclose(found.hsv, continuous.hsv, atol=1e-9)
        for order in range(found.rank):
            if order and found.hsv[order - 1] - found.hsv[order] < 1e-6:
                continue
            ours, theirs = found.reduce(order), continuous.reduce(order)
            if theirs.error_bound < 1e3:  # a tail near 1 amplifies rounding
                np.testing.assert_allclose(ours.error_bound, theirs.error_bound, rtol=1e-4, atol=1e-9)
            back = hr.StateSpace(*discrete_image(*(getattr(theirs.system, x) for x in "ABCD"), 1.0), dt=True)
            expected = back.frequency_response(grid(True))
            scale = max(hr.hinf_norm(G), np.abs(expected).max())  # a model may have a slower pole than the system
            np.testing.assert_allclose(ours.system.frequency_response(grid(True)), expected, atol=1e-6 * scale)
            matched = found.reduce(order, match_dc=True)
            at = matched.system.frequency_response([0.0]), G.frequency_response([0.0])
            np.testing.assert_allclose(*at, atol=1e-7 * scale)
            assert relative_error(G, matched.system, beta) <= matched.error_bound * (1 + 1e-9)


@pytest.mark.filterwarnings("ignore::hankelred.AccuracyWarning")
@pytest.mark.parametrize("dt", DOMAINS)
@pytest.mark.parametrize("name", ["LQG", "coprime", "bounded-real", "positive-real", "stochastic", "mixed"])
def test_bounds_hold_for_models_in_single_precision_too(name, dt):
    """What rounding adds counts in the quantity that is bounded: alone, with everything kept, it is the error."""
    finite = 0
    for seed in SEEDS:
        G, weighting = case(name, seed, dt)
        G = G.with_(**{x: getattr(G, x).astype(np.complex64 if seed % 2 else np.float32) for x in "ABCD"})
        bal, double = hr.balance(G, weighting=weighting), 1e-11 * max(1.0, hr.hinf_norm(G, stable=False))
        for order in range(1, bal.rank + 1):
            if order < bal.rank and bal.hsv[order - 1] - bal.hsv[order] < 1e-6:
                continue
            reduction = bal.reduce(order)
            assert reduction.system.dtype == G.dtype
            error = bounded_error(name, G, reduction, weighting)[0]
            assert error <= reduction.error_bound * (1 + 1e-9) + double, (seed, order)
            finite += reduction.error_bound < (0.01 if order == bal.rank else np.inf)
    assert finite > len(SEEDS)


@pytest.mark.parametrize("dt", DOMAINS)
@pytest.mark.parametrize("name", ["LQG", "coprime", "bounded-real", "positive-real", "stochastic"])
def test_values_do_not_depend_on_units_of_the_states(name, dt):
    for seed in FEW:
        G, weighting = case(name, seed, dt)
        values = hr.hankel_singular_values(G, weighting)
        np.testing.assert_allclose(
            hr.hankel_singular_values(in_other_units(G), weighting), values, atol=1e-10 * values[0]
        )


@pytest.mark.parametrize("dt", DOMAINS)
@pytest.mark.parametrize("name", ["bounded-real", "positive-real", "stochastic"])
def test_values_follow_the_units_of_inputs_and_outputs(name, dt):
    """LQG values and those of coprime factors do not: there they are weights."""
    for seed in FEW:
        G, weighting = case(name, seed, dt)
        values = hr.hankel_singular_values(G, weighting)
        for gain in (1e-6, 1e6):
            H, unit = at_gain(G, gain), gain if name == "bounded-real" else 1.0
            other = BoundedReal(gain * weighting.gamma) if name == "bounded-real" else weighting
            np.testing.assert_allclose(hr.hankel_singular_values(H, other) / unit, values, atol=1e-10 * values[0])


@pytest.mark.parametrize("dt", DOMAINS)
def test_systems_at_the_edges_have_models_or_errors_of_this_library(dt):
    """No signal, no gain, a pole at -1, gains whose fourth powers overflow: these were errors of NumPy."""
    for m, p in ((0, 0), (0, 1), (1, 0), (1, 1)):
        G = hr.StateSpace([[-0.5]], np.zeros((1, m)), np.zeros((p, 1)), dt=dt)
        K = hr.StateSpace([[-0.3]], np.ones((1, p)), np.ones((m, 1)) / 9, dt=dt)
        for method in ("stability", "performance", "coprime"):
            assert reduce_controller(G, K, 1, method).margin <= 1
        if m == p == 1:
            with pytest.raises(hr.InputError, match="positive definite"):
                hr.balance(G, weighting=PositiveReal())
    large = hr.StateSpace([[-0.5]], [[1e70]], [[1e70]], [[1.0]], dt=dt)
    with pytest.raises(hr.NumericalError, match="below"):
        hr.balance(large, weighting=Stochastic())
    with suppress(hr.NumericalError):
        assert np.isfinite(hr.balance(large, weighting=LQG()).hsv).all()
    A = np.diag([0.0, -1.0, -5.0]) if dt == 0 else np.diag([1.0, -1.0, 0.5])
    kept = hr.balanced_truncation(hr.StateSpace(A, np.ones((3, 1)), np.ones((1, 3)), [[9.0]], dt=dt), order=2)
    assert kept.hinf_error() <= kept.error_bound


def test_a_gap_that_a_shifted_d_makes_is_in_the_bound():
    """A pole of 1e-6 beside one of 1e11 is certain to five digits; D makes up for that at zero frequency alone."""
    G = hr.StateSpace(np.diag([-1e-6, -1e11]), np.ones((2, 1)), np.ones((1, 2)), [[1.0]])
    with pytest.warns(hr.AccuracyWarning):
        bal = hr.balance(G, weighting=LQG())
    reduction = bal.reduce(1, match_dc=True)
    assert chordal_distance(G, reduction.system) <= reduction.error_bound


@pytest.mark.filterwarnings("ignore::hankelred.AccuracyWarning")
@pytest.mark.parametrize("dt", DOMAINS)
def test_weakly_damped_systems_have_relative_models(dt):
    """Gains of 20 beside 4e4: the coefficients of the equation differ by 1e8, and it was said to have no solution."""
    found = refused = 0
    for seed in FEW:
        _, G = drawn(seed, dt)
        poles = np.linalg.eigvals(G.A)
        A = G.A / np.abs(poles).max() * (1 - 1e-6) if dt else G.A - (poles.real.max() + 1e-6) * np.eye(G.n)
        try:
            bal = hr.balance(at_gain(G.with_(A=A), 1e3), weighting=Stochastic())
        except hr.InputError:  # of 60 two have gains of 163 and 4.5e9, 838 and 2.1e10: squares 1e15 apart
            refused += 1
            continue
        reduction = bal.reduce(bal.rank)
        found += relative_error(bal.system, reduction.system) <= reduction.error_bound * (1 + 1e-9)
    assert found + refused == len(FEW)
    assert refused <= 2


@pytest.mark.parametrize("dt", DOMAINS)
def test_factors_of_the_filter_satisfy_the_riccati_equation_and_stabilise(dt):
    for seed in FEW:
        _, G = drawn(seed, dt, unstable=bool(seed % 3))
        A, B, C, D = G.A, G.B, G.C, G.D
        S, K, _, _ = filter_factor(A, B, C, D, bool(dt))
        P = S @ S.conj().T
        F = np.hstack([B + K @ D, K])
        closed = A + K @ C
        terms = (closed @ P @ closed.conj().T, -P) if dt else (closed @ P, P @ closed.conj().T)
        size = sum(np.linalg.norm(term) for term in terms)
        assert np.linalg.norm(terms[0] + terms[1] + F @ F.conj().T) <= 1e-12 * size, seed
        R = np.eye(G.p) + D @ D.conj().T + (C @ P @ C.conj().T if dt else 0.0)
        cross = (A @ P if dt else P) @ C.conj().T + B @ D.conj().T
        assert np.linalg.norm(K @ R + cross) <= 1e-12 * np.linalg.norm(R) * np.linalg.norm(K), seed
        assert G.with_(A=closed).is_stable()


@pytest.mark.parametrize("dt", DOMAINS)
def test_storage_functions_satisfy_the_riccati_equation(dt):
    for seed in FEW:
        G = passive(seed, dt)
        A, B, C, D = G.A, G.B, G.C, G.D
        P, Q = hr.gramians(G, PositiveReal())
        for P, A, B, C, D in ((P, A, B, C, D), (Q, A.conj().T, C.conj().T, B.conj().T, D.conj().T)):  # noqa: B020
            R = D + D.conj().T - (C @ P @ C.conj().T if dt else 0.0)
            cross = B - (A @ P if dt else P) @ C.conj().T
            terms = (A @ P @ A.conj().T, -P) if dt else (A @ P, P @ A.conj().T)
            last = cross @ np.linalg.solve(R, cross.conj().T)
            size = sum(np.linalg.norm(term) for term in (*terms, last))
            assert np.linalg.norm(terms[0] + terms[1] + last) <= 1e-11 * size, seed


def test_small_values_keep_their_digits():
    """A lag 1e-9 times as strong as another beside it has the LQG value of its own equation, a scalar one."""
    a, b = np.array([1.0, 3.0]), np.array([1.0, 1e-9])
    G = hr.StateSpace(-np.diag(a), np.diag(b), np.eye(2))
    expected = (-a + np.sqrt(a**2 + b**2)) / b
    expected[1] = b[1] / (a[1] + np.sqrt(a[1] ** 2 + b[1] ** 2))  # without a difference
    np.testing.assert_allclose(hr.hankel_singular_values(G, LQG()), expected, rtol=1e-12)


def test_small_systems_have_the_riccati_solutions_of_the_quadratic_formula():
    a, f, gamma = 2.0, 3.0, 1.6
    found = passive_factor(*(np.array([[x]]) for x in (-a, f, 1.0, 0.0, gamma**2)), discrete=False)
    np.testing.assert_allclose(found.S**2, [[gamma**2 * (a - np.sqrt(a**2 - (f / gamma) ** 2))]], rtol=1e-13)


@pytest.mark.parametrize("dt", DOMAINS)
def test_lqg_and_coprime_balancing_have_the_same_models_and_bounds(dt):
    _, G = drawn(4, dt, unstable=True)
    mu, sigma = (hr.hankel_singular_values(G, w) for w in (LQG(), Coprime()))
    np.testing.assert_allclose(mu / np.hypot(1.0, mu), sigma, rtol=1e-9)
    one, other = (hr.balanced_truncation(G, order=2, weighting=w) for w in (LQG(), Coprime()))
    difference = one.system.frequency_response([0.3, 1.0]) - other.system.frequency_response([0.3, 1.0])
    assert np.abs(difference).max() < 1e-9
    np.testing.assert_allclose(one.error_bound, other.error_bound, rtol=1e-6)
    assert one.bounded == "gap metric"
    assert "gap metric bound" in one.summary()


def test_figures_of_another_error_are_not_taken_for_those_of_the_h_infinity_error():
    from hankelred.plotting import plot_error_bound
    from hankelred.testing import assert_error_bound

    _, G = drawn(4, 0)
    reduction = hr.balanced_truncation(G, order=1, weighting=Coprime())
    with pytest.raises(hr.InputError, match="gap metric"):
        assert_error_bound(G, reduction)
    for shown in (reduction, hr.balance(G, weighting=Coprime())):
        with pytest.raises(hr.InputError, match="gap metric"):
            plot_error_bound(shown)


def test_bounded_real_values_far_above_the_norm_are_hankel_singular_values():
    _, G = drawn(6, 0)
    values = hr.hankel_singular_values(G, BoundedReal(1e6 * hr.hinf_norm(G)))
    np.testing.assert_allclose(values, hr.hankel_singular_values(G), rtol=1e-9)


def test_zeros_in_the_right_half_plane_have_the_stochastic_value_one():
    G = hr.StateSpace([[-1.0, 0.3], [0.0, -4.0]], [[1.0], [1.0]], [[-6.0, 1.0]], [[2.0]])
    zeros = np.linalg.eigvals(G.A - G.B @ G.C / 2)
    values = hr.hankel_singular_values(G, Stochastic())
    assert np.count_nonzero(zeros.real > 0) == 1
    assert abs(values[0] - 1) < 1e-9
    assert values[1] < 1
    assert hr.balance(G, weighting=Stochastic()).error_bound(0) == np.inf


@pytest.mark.parametrize("weighting", [LQG(), Coprime(), PositiveReal(), Stochastic(), BoundedReal(100.0)])
@pytest.mark.parametrize("dt", DOMAINS)
def test_diagonal_systems_have_the_values_of_their_dense_form(dt, weighting):
    lam = np.array([0.9, 0.5 + 0.3j, -0.4j]) if dt else np.array([-0.1, -0.5 + 3j, -1.0 - 0.2j])
    B, C, D = np.array([[1.0], [0.5j], [1.0 + 1j]]), np.array([[0.3, 1.0j, 0.2]]), np.array([[8.0]])
    for G in (hr.DiagonalSystem(lam, B, C, D, dt=dt, output=output) for output in ("real", "complex")):
        found, dense = (hr.balance(x, weighting=weighting) for x in (G, G.dense()))
        np.testing.assert_allclose(found.hsv, dense.hsv, rtol=1e-8, atol=1e-12)
        assert np.isfinite(found.error_bound(2)) == np.isfinite(dense.error_bound(2))


def test_a_bound_may_be_asked_for():
    G = passive(2, 0)
    bal = hr.balance(G, weighting=PositiveReal())
    order = bal.rank - 1
    target = bal.error_bound(order) * 1.0001
    assert bal.order(max_error=target) == order
    assert hr.balanced_truncation(G, max_error=target, weighting=PositiveReal()).error_bound <= target
    with pytest.raises(hr.OrderError, match="max_error"):
        bal.order(max_error=1e-300)


def test_dc_is_matched_by_models_of_unstable_systems():
    _, G = drawn(8, 0, unstable=True)
    bal = hr.balance(G, weighting=Coprime())
    reduction = bal.reduce(G.n - 1, match_dc=True)
    np.testing.assert_allclose(reduction.system.frequency_response([0.0]), G.frequency_response([0.0]), rtol=1e-9)
    assert chordal_distance(G, reduction.system) <= reduction.error_bound


def test_marginal_poles_of_passive_systems_are_kept():
    G = hr.StateSpace(np.diag([0.0, -1.0, -5.0]), np.ones((3, 1)), np.ones((1, 3)), [[0.5]])
    reduction = hr.balanced_truncation(G, order=2, weighting=PositiveReal())
    assert reduction.unstable == 1
    assert reduction.hinf_error() <= reduction.error_bound < np.inf


@pytest.mark.parametrize("weighting", [LQG(), Coprime(), BoundedReal(1e200), PositiveReal(), Stochastic(1.0)])
def test_coefficients_that_overflow_are_said_to(weighting):
    with pytest.raises(hr.NumericalError, match=r"below 1e\+75"):
        hr.balance(hr.StateSpace([[-1.0]], [[1.0]], [[1.0]], [[1e200]]), weighting=weighting)


def test_failed_preconditions_are_named_with_the_figure_found():
    lag = hr.StateSpace([[-1.0]], [[1.0]], [[1.0]])
    with pytest.raises(hr.InputError, match=r"gamma must be above .* got 0\.5, and a gain of 1 at 0"):
        hr.balance(lag, weighting=BoundedReal(0.5))
    with pytest.raises(hr.InputError, match="gamma"):
        BoundedReal(-1.0)
    with pytest.raises(hr.InputError, match=r"least singular value of 0 in D"):
        hr.balance(lag, weighting=Stochastic())
    with pytest.raises(hr.InputError, match=r"least eigenvalue of -1 at 0"):
        hr.balance(hr.StateSpace([[-1.0]], [[1.0]], [[-1.0]], [[0.5]]), weighting=PositiveReal())
    with pytest.raises(hr.InputError, match="as many outputs as inputs"):
        hr.balance(hr.StateSpace([[-1.0]], [[1.0]], [[1.0], [1.0]]), weighting=PositiveReal())
    unstable = hr.StateSpace(np.diag([1.0, -1.0]), [[1.0], [1.0]], [[1.0, 1.0]], [[9.0]])
    for weighting in (BoundedReal(100.0), PositiveReal()):
        with pytest.raises(hr.StabilityError, match="pole"):
            hr.balance(unstable, weighting=weighting)
    for weighting in (LQG(), Coprime()):
        with pytest.raises(hr.StabilityError, match=r"pole at 1\+0j that is 0 away"):
            hr.balance(unstable.with_(B=[[0.0], [1.0]]), weighting=weighting)


@pytest.mark.parametrize("weighting", [LQG(), Coprime(), BoundedReal(5.0), PositiveReal(), Stochastic()])
def test_systems_without_states_and_single_precision_work(weighting):
    static = hr.StateSpace(np.zeros((0, 0)), np.zeros((0, 2)), np.zeros((2, 0)), np.eye(2))
    assert hr.balance(static, weighting=weighting).reduce(0).error_bound == 0
    G = hr.StateSpace(
        *(np.array(x, np.float32) for x in ([[-1.0, 0.0], [0.0, -3.0]], np.ones((2, 1)), np.ones((1, 2)), [[1.0]]))
    )
    reduction = hr.balanced_truncation(G, order=1, weighting=weighting)
    assert reduction.system.dtype == np.float32
