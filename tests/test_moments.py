"""Claims about how moments of gradients follow a reduction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hankelred as hr
from hankelred.training import Moments, align_states, carry_first_moments, carry_second_moments
from tests.reference_moments import gradient

PAIRS_APART = 0.05  # closest poles of the random systems: the off-diagonal formula divides by the distance


def random_system(seed, n, m, p, output, *, dead=0, real_states=0, rates=True):
    """Return a random stable discrete system with well separated poles; `dead` states have no input or no output."""
    rng = np.random.default_rng(seed)
    radius = rng.uniform(0.5, 0.95, n)
    angle = np.pi * (np.arange(n) + rng.uniform(0.3, 0.7, n)) / n * rng.choice([1, -1], n)
    z = np.log(radius) + 1j * angle
    B = rng.standard_normal((n, m)) + 1j * rng.standard_normal((n, m))
    C = rng.standard_normal((p, n)) + 1j * rng.standard_normal((p, n))
    for i in range(real_states):
        z[i], B[i], C[:, i] = z[i].real + 1j * np.pi * (i % 2), B[i].real, C[:, i].real
    B[n - dead :][::2] = 0
    C[:, n - dead :][:, 1::2] = 0
    if not rates:
        return hr.DiagonalSystem(np.exp(z), B, C, dt=True, output=output)
    return hr.DiagonalSystem.from_rates(z, B, C, dt=True, output=output)


def doubled(system):
    """Return dense matrices of the system, in [x; conj(x)] where the output is real."""
    lam, B, C = system.lam, system.B, system.C
    if system.output == "complex":
        return np.diag(lam), B, C
    return np.diag(np.r_[lam, lam.conj()]), np.vstack([B, B.conj()]), np.hstack([C, C.conj()]) / 2


def data(system, seed=1, length=40):
    rng = np.random.default_rng(seed)
    real = system.output == "real"
    shapes = ((length, system.m), (length, system.p))
    u, y = (rng.standard_normal(s) + 1j * (not real) * rng.standard_normal(s) for s in shapes)
    return (u.real, y.real) if real else (u, y)


def gradient_of(system, u, target):
    """Differentiate with respect to the rates, B and C of a diagonal system, by the dense twin on the stored states."""
    real = system.output == "real"
    g = gradient(np.diag(system.lam), system.B, system.C, u, target, real=real)
    return Moments(system.lam.conj() * np.diag(g.A), g.B, g.C)


def dense_image(system, reduction, u, target):
    """Carry the true gradient of the dense layer: ``diag(Rb^H M_A Lb^H)`` with M_A simulated, not derived."""
    A, B, C = doubled(system)
    M = gradient(A, B, C, u, target, real=system.output == "real").A
    poles = np.diag(reduction.T.conj().T @ M @ reduction.Ti.conj().T)
    new = reduction.system
    if system.output == "complex":
        return new.lam.conj() * poles
    pairs = reduction.order - new.n
    poles = np.r_[2 * poles[:pairs], poles[2 * pairs :].real]  # stored: once for a pair and its conjugate
    return new.lam.conj() * poles


def carry_gradient(system, reduction, gradient):
    """Carry a gradient at the current parameters over: the formula holds to rounding."""
    return carry_first_moments(system, reduction, gradient, staleness=0.0)


def relative(x, y):
    return np.linalg.norm(x - y) / np.linalg.norm(y)


@pytest.mark.parametrize("output", ["complex", "real"])
@pytest.mark.parametrize("rates", [True, False])
def test_pole_moments_equal_the_image_of_the_dense_gradient(output, rates):
    system = random_system(3, n=8, m=2, p=3, output=output, rates=rates)
    reduction = hr.balance(system).reduce(states=4)
    u, target = data(system)
    carried = carry_gradient(system, reduction, gradient_of(system, u, target))
    # the off-diagonal divides rounding errors by pole distances of about 0.2
    assert relative(carried.rates, dense_image(system, reduction, u, target)) < 1e-11


@pytest.mark.parametrize("output", ["complex", "real"])
@pytest.mark.parametrize("dead", [2, 3])
def test_moments_are_exact_when_dropped_states_are_inert(output, dead):
    system = random_system(5, n=7, m=2, p=2, output=output, dead=dead)
    reduction = hr.balance(system).reduce(states=7 - dead)
    u, target = data(system)
    carried = carry_gradient(system, reduction, gradient_of(system, u, target))
    truth = gradient_of(reduction.system, u, target)
    for got, wanted in zip(carried, truth, strict=True):
        assert relative(got, wanted) < 1e-11  # the bases hold rounding errors of the balancing


def test_second_reduction_is_exact_on_the_real_poles_of_the_first():
    # a real pole coincides with its own conjugate in the doubled coordinates, where the formula divides by 0
    system = random_system(11, n=6, m=2, p=2, output="real", real_states=3, dead=2)
    reduction = hr.balance(system).reduce(states=4)
    assert reduction.order < 2 * reduction.system.n  # some of the states kept are real poles
    u, target = data(system)
    carried = carry_gradient(system, reduction, gradient_of(system, u, target))
    for got, wanted in zip(carried, gradient_of(reduction.system, u, target), strict=True):
        assert relative(got, wanted) < 1e-10


def test_gradient_of_real_poles_stays_real():
    system = random_system(2, n=6, m=1, p=1, output="real")
    reduction = hr.balance(system).reduce(order=5)
    pairs = reduction.order - reduction.system.n
    carried = carry_gradient(system, reduction, gradient_of(system, *data(system)))
    assert pairs < reduction.system.n
    assert np.all(carried.B[pairs:].imag == 0)
    assert np.all(carried.C[:, pairs:].imag == 0)
    assert np.all(carried.rates[pairs:].imag == 0)


def test_carried_gradient_points_along_the_gradient_of_the_reduced_system():
    # an estimate where states are lost for good; the median cosine found for 16 -> 8 states is .98 to .99
    cosines = []
    for seed in range(9):
        system = random_system(seed, n=16, m=2, p=2, output="real")
        reduction = hr.balance(system).reduce(states=10)
        u, target = data(system, length=200)
        carried = carry_gradient(system, reduction, gradient_of(system, u, target))
        truth = gradient_of(reduction.system, u, target)
        cosines.append(
            [np.vdot(x, y).real / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(carried, truth, strict=True)]
        )
    assert np.median(cosines, axis=0).min() > 0.95


def test_staleness_changes_only_what_stands_between_close_poles():
    system = random_system(3, n=6, m=2, p=2, output="complex")
    reduction = hr.balance(system).reduce(states=3)
    moments = gradient_of(system, *data(system))
    exact, blurred = (carry_first_moments(system, reduction, moments, staleness=s) for s in (0.0, 1e-3))
    assert relative(blurred.rates, exact.rates) < 1e-3  # poles are .2 apart: (1e-3 / .2)^2
    assert np.array_equal(blurred.B, exact.B)


def test_averages_of_many_steps_are_not_blown_up_by_close_poles():
    # m_B and m_C of different steps break the invariance that the formula divides by the distance of the poles
    z = np.array([-0.1 + 1.0j, -0.1 + 1.0j + 1e-9, -0.5 + 0.2j])
    B, C = np.array([[1.0], [1.1], [1.0]]), np.array([[1.0, 0.9, 0.5], [0.3, 1.0, 1.0]])
    system = hr.DiagonalSystem.from_rates(z, B, C, dt=True)
    reduction = hr.balance(system).reduce(order=2)
    moments = Moments(np.ones(3), np.ones((3, 1)), np.ones((2, 3)))
    assert np.abs(carry_gradient(system, reduction, moments).rates).max() > 1e7
    assert np.abs(carry_first_moments(system, reduction, moments).rates).max() < 1e2


def test_equal_poles_of_one_input_share_their_dense_moment():
    # two copies of one pole: x_2 = (b_2 / b_1) x_1, so M_12 is known although the formula divides 0 by 0
    z = np.log([0.9, 0.9, 0.5]) + 0j
    B, C = np.array([[1.0], [2.0j], [1.0]]), np.array([[1.0, 0.5j, -2.0], [0.3, 1.0, 1.0]])
    system = hr.DiagonalSystem.from_rates(z, B, C, dt=True)
    reduction = hr.balance(system).reduce(order=2)
    u, target = data(system)
    carried = carry_gradient(system, reduction, gradient_of(system, u, target))
    assert relative(carried.rates, dense_image(system, reduction, u, target)) < 1e-10


@pytest.mark.parametrize("output", ["complex", "real"])
def test_aligned_states_are_the_old_states_where_the_rest_is_inert(output):
    system = random_system(7, n=6, m=2, p=2, output=output, dead=2)
    reduction = align_states(system, hr.balance(system).reduce(states=4))
    order = [int(np.argmin(np.abs(system.spectrum.rates - z))) for z in reduction.system.spectrum.rates]
    assert sorted(order) == [0, 1, 2, 3]
    assert relative(reduction.system.B, system.B[order]) < 1e-12
    assert relative(reduction.system.C, system.C[:, order]) < 1e-12


def test_alignment_keeps_the_input_output_map():
    system = random_system(7, n=8, m=2, p=3, output="real", real_states=2)
    plain = hr.balance(system).reduce(states=5)
    aligned = align_states(system, plain)
    omega = np.linspace(0, np.pi, 50)
    plain, aligned = plain.system.frequency_response(omega), aligned.system.frequency_response(omega)
    assert np.abs(plain - aligned).max() < 1e-12 * np.abs(plain).max()


@given(seed=st.integers(0, 10_000), states=st.integers(1, 7), output=st.sampled_from(["complex", "real"]))
def test_aligned_bases_belong_to_the_aligned_system(seed, states, output):
    system = random_system(seed, n=8, m=2, p=2, output=output, real_states=2)
    reduction = align_states(system, hr.balance(system).reduce(states=states))
    A, B, C = doubled(system)
    T, Ti, new = reduction.T, reduction.Ti, reduction.system
    pairs = reduction.order - new.n if output == "real" else 0
    stored = np.r_[np.arange(pairs), np.arange(2 * pairs, reduction.order)] if output == "real" else slice(None)
    small = Ti @ A @ T
    # cond(X) eps, and X is refused beyond 1e8; random systems stay far below
    tolerance = 1e-8 * max(1.0, np.abs(T).max() * np.abs(Ti).max())
    assert np.abs(Ti @ T - np.eye(reduction.order)).max() < tolerance
    assert np.abs(small[stored][:, stored] - np.diag(new.lam)).max() < tolerance
    assert np.abs((Ti @ B)[stored] - new.B).max() < tolerance
    doubling = np.where(np.arange(new.n) < pairs, 2.0, 1.0)
    assert np.abs((C @ T)[:, stored] * doubling - new.C).max() < tolerance


@pytest.mark.parametrize("output", ["complex", "real"])
def test_second_moments_are_exact_where_states_are_selected(output):
    system = random_system(7, n=6, m=2, p=2, output=output, dead=2)
    reduction = align_states(system, hr.balance(system).reduce(states=4))
    order = [int(np.argmin(np.abs(system.spectrum.rates - z))) for z in reduction.system.spectrum.rates]
    rng = np.random.default_rng(0)
    second = Moments(*(rng.uniform(size=s) + 1j * rng.uniform(size=s) for s in [(6,), (6, 2), (2, 6)]))
    second.rates[4:] = second.C[:, 4] = second.B[5] = 0  # state 4 is never driven, state 5 never seen
    carried = carry_second_moments(system, reduction, second)
    assert relative(carried.rates, second.rates[order]) < 1e-10
    assert relative(carried.B, second.B[order]) < 1e-10
    assert relative(carried.C, second.C[:, order]) < 1e-10


@pytest.mark.parametrize("output", ["complex", "real"])
@pytest.mark.parametrize("name", ["rates", "B", "C"])
def test_second_moments_sum_the_squares_of_the_coefficients_of_first_moments(output, name):
    system = random_system(4, n=4, m=1, p=1, output=output)
    slow = hr.DiagonalSystem.from_rates(  # close to the real axis, where states mix with their conjugates
        system.spectrum.rates.real + 0.1j * system.spectrum.rates.imag, system.B, system.C, dt=True, output=output
    )
    reduction = hr.balance(slow).reduce(order=3)
    zeros = Moments(np.zeros(4, complex), np.zeros((4, 1), complex), np.zeros((1, 4), complex))
    second = np.random.default_rng(0).uniform(size=(4, 2))

    def image(k, unit):
        probe = getattr(zeros, name).copy()
        probe.flat[k] = unit
        return getattr(carry_gradient(slow, reduction, zeros._replace(**{name: probe})), name).ravel()

    expected = sum(
        second[k, part] * (x.real**2 + 1j * x.imag**2)
        for k in range(4)
        for part, x in enumerate((image(k, 1.0), image(k, 1.0j)))
    )
    moments = (second[:, 0] + 1j * second[:, 1]).reshape(getattr(zeros, name).shape)
    carried = getattr(carry_second_moments(slow, reduction, zeros._replace(**{name: moments})), name)
    assert relative(carried.ravel(), expected) < 1e-12


@given(seed=st.integers(0, 10_000), states=st.integers(1, 6), output=st.sampled_from(["complex", "real"]))
def test_second_moments_are_not_negative(seed, states, output):
    system = random_system(seed, n=7, m=2, p=2, output=output, real_states=1)
    reduction = align_states(system, hr.balance(system).reduce(states=states))
    rng = np.random.default_rng(seed)
    second = Moments(*(rng.uniform(size=s) + 1j * rng.uniform(size=s) for s in [(7,), (7, 2), (2, 7)]))
    for x in carry_second_moments(system, reduction, second):
        assert x.real.min() >= 0
        assert x.imag.min() >= 0


def test_continuous_time_uses_the_poles_as_rates():
    # lam_c = -1 + i etc.: g_lam itself is carried; the image of a system reduced to all of its live states is exact
    lam = np.array([-1.0 + 2j, -0.5 - 1j, -3.0 + 0.5j])
    B, C = np.array([[1.0], [1.0 + 1j], [0.0]]), np.array([[1.0, 2.0 - 1j, 1.0]])
    system = hr.DiagonalSystem(lam, B, C, dt=0)
    reduction = align_states(system, hr.balance(system).reduce(order=2))
    order = [int(np.argmin(np.abs(lam - x))) for x in reduction.system.lam]
    moments = Moments(np.array([1.0 + 1j, -2.0, 0.0]), np.array([[1.0], [2j], [0.3]]), np.array([[1.0, -1j, 0.0]]))
    carried = carry_first_moments(system, reduction, moments)
    assert relative(carried.rates, moments.rates[order]) < 1e-12
    assert relative(carried.B, moments.B[order]) < 1e-12


def test_moments_of_another_shape_are_refused():
    system = random_system(3, n=4, m=2, p=1, output="real")
    reduction = hr.balance(system).reduce(states=2)
    moments = Moments(np.zeros(4), np.zeros((4, 1)), np.zeros((1, 4)))
    for carry in (carry_first_moments, carry_second_moments):
        with pytest.raises(hr.InputError, match=r"moments.B must have shape \(4, 2\).*got \(4, 1\)"):
            carry(system, reduction, moments)


def test_inputs_are_unchanged():
    system = random_system(3, n=4, m=2, p=1, output="real")
    reduction = hr.balance(system).reduce(states=2)
    moments = gradient_of(system, *data(system))
    squared = Moments(*(x.real**2 + 1j * x.imag**2 for x in moments))
    before = [x.copy() for x in (*moments, *squared, reduction.T, reduction.Ti, reduction.system.B)]
    align_states(system, reduction)
    carry_first_moments(system, reduction, moments)
    carry_second_moments(system, reduction, squared)
    after = (*moments, *squared, reduction.T, reduction.Ti, reduction.system.B)
    assert all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))
