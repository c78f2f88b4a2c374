"""What the core says of whole families of systems is true of the stored numbers, by the judge of `many_digits`.

A seeded tenth runs by default, all of it with ``HANKELRED_LONG=1``.
"""

from __future__ import annotations

import itertools
import warnings

import families
import many_digits
import numpy as np
import pytest
from sizes import sample
from truth import EPS, KINDS, dense, judged, verdicts

import hankelred as hr

# Of the first value: what users may rely on in any units of the states.
HSV = 1e-12
NORMS = 1e-8
SEEDS = range(10)
# A third of the kinds also with match_dc, all of them in a long run.
BOTH = [(kind, False) for kind in KINDS] + [(kind, True) for kind in sample(list(KINDS), share=0.35)]


def _all_verdicts(kind: str, match_dc: bool = False):
    return [v for seed in sample(SEEDS) for v in judged(kind, seed, match_dc)]


@pytest.mark.parametrize(("kind", "match_dc"), BOTH)
def test_no_true_error_exceeds_its_bound(kind, match_dc):
    assert [v for v in _all_verdicts(kind, match_dc) if v.exceeded] == []


@pytest.mark.parametrize(("kind", "match_dc"), BOTH)
def test_measured_errors_are_the_true_ones(kind, match_dc):
    """To 1 % and the rounding of two solves: `truth.rounding`."""
    if kind == "free_chain":
        pytest.skip("the true error is measured beside the marginal poles, the said one without them")
    assert [v for v in _all_verdicts(kind, match_dc) if v.mismeasured] == []


@pytest.mark.parametrize("kind", list(KINDS))
def test_at_most_a_third_of_the_bounds_of_a_family_say_nothing(kind):
    found = _all_verdicts(kind)
    useless = [v for v in found if v.useless]
    assert len(useless) <= len(found) / 3, useless


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "free_chain"])
def test_hsv_are_right_to_the_floor_that_is_stated(kind):
    family, make = KINDS[kind]
    for seed in sample(SEEDS, share=0.2):
        system = make(families.FAMILIES[family](seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", hr.HankelredWarning)
            balancing = hr.balance(system, offset=0)
        right = many_digits.hsv(many_digits.matrices(system))
        off = np.abs(balancing.hsv - right).max()
        assert off <= max(balancing.floor, HSV * right[0]), f"{kind} {seed}: {off / right[0]:.1e} of the first"


IN_UNITS = sample(range(60))


@pytest.mark.parametrize("seed", IN_UNITS)
def test_hsv_of_six_states_in_any_units_are_right_to_twelve_digits_of_the_first(seed):
    case = families.random_in_units(seed)
    right = many_digits.hsv(case.matrices)
    np.testing.assert_allclose(hr.hankel_singular_values(dense(case)), right, rtol=0, atol=HSV * right[0])


@pytest.mark.parametrize("seed", IN_UNITS)
def test_h2_norms_of_six_states_in_any_units_are_right(seed):
    case = families.random_in_units(seed)
    np.testing.assert_allclose(hr.h2_norm(dense(case)), many_digits.h2_norm(case.matrices), rtol=NORMS)


@pytest.mark.parametrize("seed", IN_UNITS)
def test_hinf_norms_of_six_states_in_any_units_are_right(seed):
    case = families.random_in_units(seed)
    # the search stops within its rtol of 1e-8: twice that
    np.testing.assert_allclose(hr.hinf_norm(dense(case)), many_digits.peak_gain(case.matrices)[0], rtol=2 * NORMS)


@pytest.mark.parametrize("block", sample(range(40)))
def test_ladders_keep_their_bounds_and_measure_their_errors(block):
    """400 ladders in blocks of ten, all orders, truncated and matched in turn."""
    found = [
        v for seed in range(10 * block, 10 * block + 10) for v in verdicts(families.rc_ladder(seed), dense, seed % 2)
    ]
    assert [v for v in found if v.exceeded] == []
    assert [v for v in found if v.mismeasured] == []


CHAINS = list(itertools.product((2, 3, 5, 8, 12, 20), 10.0 ** np.arange(8), ("free", "clamped"), range(2)))


def test_there_are_192_chains():
    assert len(CHAINS) == 192


@pytest.mark.parametrize(("masses", "stiffness", "ends", "seed"), sample(CHAINS))
def test_chains_are_split_right(masses, stiffness, ends, seed):
    """Two marginal poles if free and none if clamped; the slowest vibration decays by 1e-5 per second or more."""
    case = families.mass_chain(seed, masses, stiffness, ends)
    system = dense(case)
    assert hr.balance(system).unstable == case.marginal
    assert system.is_stable() == (case.marginal == 0)


LAGS = sample(range(3, 15), share=0.25)


@pytest.mark.parametrize("n", LAGS)
def test_no_measured_error_of_matched_lags_is_below_a_sampled_one(n):
    for v in verdicts(families.lag_chain(n), dense, True):
        assert v.measured >= v.true * (1 - 2 * NORMS) - v.rounding, v


@pytest.mark.parametrize("seed", sample(range(40)))
def test_hsv_move_no_more_than_the_error_between_two_systems(seed):
    """Weyl's inequality: every value moves by at most the Hankel norm of the difference."""
    case, rng = families.random_in_units(seed), np.random.default_rng(seed)
    step = 10.0 ** rng.uniform(-12, 0)
    other = case._replace(C=case.C * (1 + step * rng.standard_normal(case.C.shape)))
    error = case._replace(C=other.C - case.C)  # A and B are shared
    moved = np.abs(hr.hankel_singular_values(dense(case)) - hr.hankel_singular_values(dense(other))).max()
    first = many_digits.hsv(case.matrices)[0]
    assert moved <= many_digits.hsv(error.matrices)[0] * (1 + 1e-9) + 2 * HSV * first


@pytest.mark.parametrize("what", ["states", "inputs", "outputs", "time"])
@pytest.mark.parametrize("name", ["random", "lags", "discrete"])
def test_units_change_no_result(name, what):
    """By powers of two, so that the other system is the same one exactly."""
    case = {
        "random": families.random_stable(0),
        "lags": families.lag_chain(6),
        "discrete": families.bilinear(families.random_stable(3)),
    }[name]
    n = len(case.A)
    w = 2.0 ** np.random.default_rng(7).integers(-33, 34, n) if what == "states" else np.ones(n)
    t, u, y = (2.0**30 if what == unit else 1.0 for unit in ("time", "inputs", "outputs"))
    rate, dt = (t, 0) if case.dt == 0 else (1.0, case.dt * t)
    A, B, C = case.A * rate * w[:, None] / w, case.B * rate * w[:, None] * u, case.C / w * y
    G, H = dense(case), hr.StateSpace(A, B, C, case.D * u * y, dt)
    gain = u * y
    hsv = hr.hankel_singular_values(G)
    np.testing.assert_allclose(hr.hankel_singular_values(H) / gain, hsv, rtol=0, atol=HSV * hsv[0])
    np.testing.assert_allclose(hr.hinf_norm(H) / gain, hr.hinf_norm(G), rtol=2 * NORMS)
    np.testing.assert_allclose(hr.h2_norm(H) / gain / np.sqrt(rate), hr.h2_norm(G), rtol=HSV)
    found, plain = hr.balance(H).reduce(2), hr.balance(G).reduce(2)
    np.testing.assert_allclose(
        found.hinf_error() / gain, plain.hinf_error(), rtol=2 * NORMS, atol=16 * n * EPS * hsv[0]
    )
