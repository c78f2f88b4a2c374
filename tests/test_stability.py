"""How far Hankel singular values move: Weyl bounds, certificates, sums along a path, matches through crossings."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scipy.linalg as sla
from hypothesis import given, settings
from hypothesis import strategies as st

import hankelred as hr
from hankelred.drift import drift_along, drift_bound, match_hsv
from hankelred.testing import ill_scaled_systems, stable_systems, system_pairs, system_with_hsv

BEFORE = hr.StateSpace(np.diag([-1.0, -4.0]), np.diag([2.0, 1.0]), np.diag([2.0, 1.0]))  # hsv 2 and 1/8


def hankel_matrix(system: hr.StateSpace | hr.DiagonalSystem, steps: int = 80) -> np.ndarray:
    """Return the Hankel operator of a discrete system as a matrix, cut off where its impulse response has died out."""
    G = system.dense()
    powers = [np.linalg.matrix_power(G.A, k) for k in range(steps)]
    outputs, inputs = np.vstack([G.C @ x for x in powers]), np.hstack([x @ G.B for x in powers])
    return outputs @ inputs


def fast_pair(seed: int, step: float) -> tuple[hr.DiagonalSystem, hr.DiagonalSystem]:
    """Return two discrete systems with poles within 0.6 and a distance in proportion to the step."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)

    lam = 0.6 * rng.uniform(0.3, 1, 4) * np.exp(2j * np.pi * rng.random(4))
    B, C, dB, dC = draw(4, 2), draw(2, 4), draw(4, 2), draw(2, 4)
    moved = lam * (1 - step * rng.random(4))
    return hr.DiagonalSystem(lam, B, C, dt=True), hr.DiagonalSystem(moved, B + step * dB, C + step * dC, dt=True)


@given(system_pairs())
@settings(max_examples=100)
def test_no_value_moves_by_more_than_the_bound(pair):
    drift = drift_bound(*pair)
    assert np.all(drift.drift <= drift.bound)
    assert drift.ratio <= 1


@given(system_pairs())
def test_every_value_lies_in_its_interval(pair):
    drift = drift_bound(*pair)
    assert np.all(drift.lower <= drift.hsv_after)
    assert np.all(drift.hsv_after <= drift.upper)


@given(system_pairs())
def test_intervals_are_no_wider_than_the_bound(pair):
    drift = drift_bound(*pair)
    rounding = 1e-15 * (drift.hsv + drift.bound)  # of the subtraction itself
    assert np.all(drift.upper - drift.hsv <= drift.bound + rounding)
    assert np.all(drift.hsv - drift.lower <= drift.bound + rounding)


@given(system_pairs())
def test_tails_are_within_their_bounds(pair):
    drift = drift_bound(*pair)
    for order in range(len(drift.hsv) + 1):
        assert drift.hsv_after[order:].sum() <= drift.tail_bound(order)


@given(system_pairs())
def test_tail_bounds_are_no_worse_than_one_bound_a_value(pair):
    drift = drift_bound(*pair)
    for order in range(len(drift.hsv) + 1):
        plain = drift.hsv[order:].sum() + (len(drift.hsv) - order) * drift.bound
        assert drift.tail_bound(order) <= plain * (1 + 1e-14)


@given(system_pairs())
def test_hankel_norm_is_that_of_the_difference(pair):
    drift = drift_bound(*pair)
    assert drift.hankel_norm == pytest.approx(hr.hankel_norm(pair[0] - pair[1]), rel=1e-9, abs=drift.floor)


def test_bound_is_attained_when_a_system_is_amplified():
    louder = hr.StateSpace(BEFORE.A, BEFORE.B, 1.5 * BEFORE.C)
    drift = drift_bound(BEFORE, louder)
    assert drift.drift[0] == pytest.approx(1.0)
    assert drift.ratio == pytest.approx(1.0)


@given(stable_systems(max_states=4), st.integers(0, 2**32 - 1))
def test_bound_in_fixed_coordinates_is_that_of_the_formula(system, seed):
    """``max |eig((P'^1/2 Q' P'^1/2)^1/2 - (P^1/2 Q P^1/2)^1/2)|``, with square roots of matrices formed."""

    def root(X: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh((X + X.conj().T) / 2)
        return vectors * np.sqrt(np.maximum(values, 0)) @ vectors.conj().T

    step = np.random.default_rng(seed).standard_normal(system.B.shape)
    moved = hr.StateSpace(system.A, system.B + 0.1 * step, system.C, system.D, system.dt)
    roots = [root(root(P) @ Q @ root(P)) for P, Q in map(hr.gramians, (system, moved))]
    expected = np.abs(np.linalg.eigvalsh(roots[1] - roots[0])).max()
    scale = hr.hankel_norm(system) + hr.hankel_norm(moved)
    sizes = [np.linalg.norm(S) * np.linalg.norm(R) for S, R in map(hr.gramian_factors, (system, moved))]
    # The formula takes the root of a number with the rounding error eps |P| |Q|: half of the digits are lost.
    assert drift_bound(system, moved).fixed_coordinates == pytest.approx(expected, abs=1e-7 * (scale + sum(sizes)))


def test_bound_in_fixed_coordinates_is_given_for_equal_orders_only():
    smaller = hr.balanced_truncation(BEFORE, order=1)
    drift = drift_bound(BEFORE, smaller.system)
    assert drift.fixed_coordinates is None
    assert "orders differ" in str(drift)


def test_missing_values_of_a_smaller_system_count_as_zeros():
    drift = drift_bound(BEFORE, hr.balanced_truncation(BEFORE, order=1).system)
    np.testing.assert_allclose(drift.drift, [0, 0.125], atol=1e-15)
    assert drift.bound == pytest.approx(0.125)  # the dropped part is all of the difference


def test_feedthrough_moves_no_value():
    fed = hr.StateSpace(BEFORE.A, BEFORE.B, BEFORE.C, np.ones((2, 2)))
    assert drift_bound(BEFORE, fed).hankel_norm < 1e-15


@given(ill_scaled_systems(max_exponent=14))
def test_units_of_the_states_do_not_matter(pair):
    """Two states in units 1e9 apart: without scaling, rounding is a ten-millionth of the largest entry of A."""
    drift = drift_bound(*pair)
    assert drift.hankel_norm <= drift.floor
    assert drift.floor <= 1e-8 * max(drift.hsv[0], 1e-300)


UNITS = [1.0, 1e6, 1e9, 2.0**60, 2.0**100, 1e140]
AMPLIFIED = hr.StateSpace([[-2.0, 1, 0], [-1, -3, 1], [0, -1, -4]], [[1.0, 0], [0, 1], [1, 1]], [[1.0, 0, 1]])


@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("seed", range(4))
def test_units_of_inputs_and_outputs_do_not_matter(dt, seed):
    """With B and C times 2^100 the states were spread over 2^100, and the bound was 1e29 times the Hankel norm."""
    rng, n = np.random.default_rng(seed), 3 + 4 * seed
    A = AMPLIFIED.A if seed == 0 else rng.standard_normal((n, n)) - 2 * np.sqrt(n) * np.eye(n)
    A = A / (4 * np.linalg.norm(A, 2)) if dt else A
    n, B, C = len(A), np.zeros((len(A), 1)), np.zeros((1, len(A)))
    B[0], C[0, -1] = 1.0, 1.0  # in at the first state, out at the last: units could be pushed through all of them
    moved = C + 0.1 * rng.standard_normal(C.shape)
    pair = [hr.StateSpace(A, B, x, dt=dt) for x in (C, moved)]
    plain = drift_bound(*pair)
    for into in UNITS:
        for out in (1.0, into, 1 / into):
            scaled, scale = [hr.StateSpace(A, B * into, x * out, dt=dt) for x in (C, moved)], into * out
            drift = drift_bound(*scaled)
            for name in ("bound", "hankel_norm", "fixed_coordinates"):
                assert getattr(drift, name) / scale == pytest.approx(getattr(plain, name), rel=1e-10)
            assert drift.floor / scale <= 1.1 * plain.floor  # an estimate from rounding errors
            np.testing.assert_array_equal(match_hsv(*scaled)[0], match_hsv(*pair)[0])


@pytest.mark.parametrize("dt", [0, True])
def test_real_output_is_compared_as_the_real_system_it_is(dt):
    lam = np.array([-0.3 + 0.5j, -0.6 + 0.1j]) + (0.0 if dt == 0 and dt is not True else 0.2)
    B, C = np.array([[1.0], [2.0 - 1j]]), np.array([[1.0 + 1j, 0.5]])
    pair = [hr.DiagonalSystem(lam, B, C * scale, dt=dt, output="real") for scale in (1.0, 1.1)]
    structured = drift_bound(*pair)
    dense = drift_bound(*(system.dense() for system in pair))
    assert len(structured.hsv) == 4
    assert structured.hankel_norm == pytest.approx(dense.hankel_norm, rel=1e-12)
    assert structured.fixed_coordinates == pytest.approx(dense.fixed_coordinates, rel=1e-10)


def test_large_diagonal_systems_are_compared_without_square_matrices():
    n = 10_000
    rates = -np.geomspace(1e-2, 1e2, n)
    pair = [hr.DiagonalSystem(rates * stretch, np.ones((n, 1)), np.ones((1, n)), dt=0) for stretch in (1.0, 1.01)]
    drift_bound(*pair)  # kernels are compiled outside the measurement
    tracemalloc.start()
    drift = drift_bound(*pair)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert drift.fixed_coordinates is None
    assert "not formed" in str(drift)
    assert peak < 8 * n**2 / 4


def test_systems_in_single_precision_are_compared_in_double():
    pair = [hr.StateSpace(*(x.astype(np.float32) for x in (BEFORE.A, BEFORE.B, gain * BEFORE.C))) for gain in (1, 2)]
    assert drift_bound(*pair).floor < 1e-11  # in single precision it is 1e-5


def test_systems_without_states_do_not_drift():
    static = hr.StateSpace(np.zeros((0, 0)), np.zeros((0, 2)), np.zeros((2, 0)), np.eye(2))
    assert float(drift_bound(static, static)) == 0
    assert float(drift_bound(BEFORE, static)) == pytest.approx(2.0)


def test_unstable_systems_are_refused():
    with pytest.raises(hr.StabilityError, match="must be stable"):
        drift_bound(BEFORE, hr.StateSpace(-BEFORE.A, BEFORE.B, BEFORE.C))


def test_systems_of_different_sampling_time_are_refused():
    with pytest.raises(hr.InputError, match="same dt"):
        drift_bound(BEFORE, hr.StateSpace(BEFORE.A / 8, BEFORE.B, BEFORE.C, dt=0.1))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("step", [1e-3, 3e-2])
def test_kept_subspaces_turn_by_no_more_than_certified(seed, step):
    pair = fast_pair(seed, step)
    drift = drift_bound(*pair)
    (U, _, Vh), (U_after, _, Vh_after) = (sla.svd(hankel_matrix(system)) for system in pair)
    for order in range(1, 5):
        measured = max(
            np.sin(sla.subspace_angles(U[:, :order], U_after[:, :order])[0]),
            np.sin(sla.subspace_angles(Vh[:order].conj().T, Vh_after[:order].conj().T)[0]),
        )
        assert measured <= drift.certify(order).sine + 1e-12  # 0.6^80 of the response is cut off


@pytest.mark.parametrize("seed", range(8))
def test_no_value_crosses_a_certified_cut_on_the_straight_path(seed):
    pair = fast_pair(seed, 0.05)
    first, last = (hankel_matrix(system) for system in pair)
    orders = drift_bound(*pair).certified_orders
    for share in np.linspace(0, 1, 11):
        values = np.append(sla.svdvals((1 - share) * first + share * last), 0)
        assert np.all(values[orders - 1] > values[orders])


@given(system_pairs())
def test_certified_orders_are_those_that_are_certified(pair):
    drift = drift_bound(*pair)
    certified = [order for order in range(1, len(drift.hsv) + 1) if drift.certify(order)]
    assert certified == drift.certified_orders.tolist()


def test_crossing_values_are_not_certified():
    crossed = hr.StateSpace(BEFORE.A, np.diag([2.0, 8.0]), np.diag([2.0, 8.0]))  # hsv 8 and 2
    certificate = drift_bound(BEFORE, crossed).certify(1)
    assert not certificate
    assert certificate.margin < 0
    assert certificate.sine == 1
    assert "Certified orders: none" in str(certificate)


def test_certificate_says_why():
    louder = hr.StateSpace(BEFORE.A, BEFORE.B, 1.01 * BEFORE.C)
    text = str(drift_bound(BEFORE, louder).certify(1))
    assert "the gap 1.875 after hsv 1 exceeds twice the drift 0.02" in text
    assert "degrees" in text


@pytest.mark.parametrize("order", [0, 3, -1, True, 1.0])
def test_orders_out_of_range_are_refused(order):
    with pytest.raises(hr.OrderError, match=r"order must be"):
        drift_bound(BEFORE, BEFORE).certify(order)


def test_drifts_add_up_along_training_and_cuts():
    full = system_with_hsv([4.0, 2.0, 0.5, 0.25], signs=[1, -1, 1, -1])
    trained = hr.StateSpace(full.A * 1.02, full.B, full.C * 0.98)
    cut = hr.balanced_truncation(trained, order=2).system
    again = hr.StateSpace(cut.A, cut.B * 1.01, cut.C)
    path = drift_along([full, trained, cut, again])
    assert np.all(path.drift <= path.bound)
    assert np.all(np.diff(path.bounds) > 0)
    assert path.bound == pytest.approx(sum(float(step) for step in path.steps))
    np.testing.assert_allclose(path.drift[2:], [0.5, 0.25], rtol=1e-12)  # cut off on the way


def test_kept_set_settles_after_the_last_uncertain_step():
    gains = [1.0, 3.0, 5.0, 5.01, 5.02]
    path = drift_along([hr.StateSpace(BEFORE.A, np.diag([2.0, g]), np.diag([2.0, g])) for g in gains])
    assert [bool(step.certify(1)) for step in path.steps] == [False, False, True, True]
    assert path.settled(1) == 2


def test_kept_set_that_may_still_change_has_not_settled():
    gains = [5.0, 5.01, 3.0]
    path = drift_along([hr.StateSpace(BEFORE.A, np.diag([2.0, g]), np.diag([2.0, g])) for g in gains])
    assert path.settled(1) is None


BANK = hr.DiagonalBank([[0.5], [0.4]], np.ones((2, 1, 1)), np.ones((2, 1, 1)), dt=True)


@pytest.mark.parametrize("call", [drift_bound, match_hsv, lambda G, H: drift_along([G, H])])
@pytest.mark.parametrize("wrong", [None, "a", 1.0, [[1.0]], BANK, object()])
def test_what_is_no_single_system_is_refused(call, wrong):
    for pair in ((BEFORE, wrong), (wrong, BEFORE)):
        with pytest.raises(hr.InputError):
            call(*pair)


@pytest.mark.parametrize("wrong", [None, 3, BEFORE, BANK])
def test_a_path_is_a_sequence_of_systems(wrong):
    with pytest.raises(hr.InputError, match="systems must be a sequence"):
        drift_along(wrong)


def test_one_system_makes_no_path():
    with pytest.raises(hr.InputError, match="two systems or more; got 1"):
        drift_along([BEFORE])


@pytest.mark.parametrize("output", ["complex", "real"])
def test_values_that_cross_are_followed(output):
    """Two channels with nothing in common, of which the weaker becomes the stronger: each value keeps its channel."""
    lam, eye = [0.5 + 0.3j, 0.6j], np.eye(2)
    pair, places = [], []
    for gain in (0.5, 2.0):
        pair.append(hr.DiagonalSystem(lam, eye, np.diag([1.0, gain]), dt=True, output=output))
        channels = [
            hr.DiagonalSystem(lam[k : k + 1], [[1.0]], [[c]], dt=True, output=output) for k, c in [(0, 1), (1, gain)]
        ]
        values = np.concatenate([hr.hankel_singular_values(channel) for channel in channels])
        places.append(np.argsort(np.argsort(-values)))  # where each value of each channel stands in the joint list
    match, overlap = match_hsv(*pair)
    assert not np.array_equal(*places)
    np.testing.assert_array_equal(match[places[0]], places[1])
    np.testing.assert_allclose(overlap, 1.0, rtol=1e-12)


@given(stable_systems(max_states=4))
def test_a_system_matches_itself(system):
    match, overlap = match_hsv(system, system)
    kept = hr.hankel_singular_values(system)[: len(match)]
    distinct = np.all(kept[:-1] - kept[1:] > 1e-4 * kept[:-1]) and (len(kept) == 0 or kept[-1] > 1e-4 * kept[0])
    if distinct:  # vectors of values closer than that turn by more than rounding / gap
        np.testing.assert_array_equal(match, np.arange(len(match)))
        np.testing.assert_allclose(overlap, 1.0, atol=1e-6)


def test_values_of_dropped_states_have_no_match():
    match, _ = match_hsv(BEFORE, hr.balanced_truncation(BEFORE, order=1).system)
    np.testing.assert_array_equal(match, [0, -1])
