"""From Hankel singular values to an order."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hankelred import order as orders
from hankelred.errors import OrderError, RepeatedHsvWarning

HSV = np.array([8.0, 4.0, 2.0, 1.0])

decreasing = st.lists(st.floats(1e-12, 1e6), min_size=1, max_size=12).map(lambda x: np.sort(np.array(x))[::-1])


def test_error_bound_is_twice_the_tail_up_to_the_floor():
    assert orders.error_bound(HSV, 2) == pytest.approx(2 * 3.0, rel=1e-14)


def test_equal_values_count_once_in_the_bound():
    assert orders.error_bound(np.ones(5), 0) == pytest.approx(2.0, rel=1e-12)


def test_equal_values_behind_a_larger_one_count_once():
    assert orders.error_bound(np.array([3.0, 1.0, 1.0, 0.5]), 1) == pytest.approx(3.0, rel=1e-12)


def test_bound_is_infinite_where_an_unstable_pole_is_dropped():
    assert orders.error_bound(np.array([np.inf, 2.0]), 0) == np.inf


def test_bound_of_the_full_order_is_twice_the_rounding_floor():
    assert orders.error_bound(HSV, 4) == 2 * 4 * np.finfo(float).eps * 8.0


@pytest.mark.parametrize(("rtol", "order"), [(0.6, 1), (0.5, 1), (0.4, 2), (0.2, 3), (0.0, 4)])
def test_rtol_drops_values_up_to_that_share_of_the_largest(rtol, order):
    assert orders.least_order(HSV, 4, rtol=rtol) == order


@pytest.mark.parametrize(("energy", "order"), [(0.5, 1), (8 / 15, 1), (0.6, 2), (12 / 15, 2), (0.9, 3), (1.0, 4)])
def test_energy_keeps_the_least_order_with_that_share_of_the_sum(energy, order):
    assert orders.least_order(HSV, 4, energy=energy) == order


@given(decreasing, st.floats(0.01, 1.0))
def test_energy_is_met_and_one_order_less_misses_it(hsv, energy):
    order = orders.least_order(hsv, len(hsv), energy=energy)
    slack = 1e-12 * hsv.sum()  # the two sums are rounded differently
    assert hsv[:order].sum() >= energy * hsv.sum() - slack
    assert order == 0 or hsv[: order - 1].sum() <= energy * hsv.sum() + slack


@given(decreasing, st.floats(1e-6, 1e7))
def test_max_error_is_met_and_one_order_less_misses_it(hsv, max_error):
    order = orders.least_order(hsv, len(hsv), max_error=max_error)
    assert orders.error_bound(hsv, order) <= max_error
    assert order == 0 or orders.error_bound(hsv, order - 1) > max_error


@given(decreasing)
def test_bound_falls_with_the_order(hsv):
    bounds = [orders.error_bound(hsv, order) for order in range(len(hsv) + 1)]
    assert all(a >= b for a, b in itertools.pairwise(bounds))


def test_tolerances_keep_every_unstable_pole():
    hsv = np.array([np.inf, np.inf, 1.0, 1e-9])
    assert [orders.least_order(hsv, 4, rtol=0.5), orders.least_order(hsv, 4, energy=0.9)] == [3, 3]


def test_zero_system_needs_no_state():
    hsv = np.zeros(3)
    assert [orders.least_order(hsv, 0, rtol=0.1), orders.least_order(hsv, 0, energy=1.0)] == [0, 0]


def test_unattainable_max_error_names_the_best():
    with pytest.raises(OrderError, match=r"max_error=1e-20 cannot be met.*rounding floor 1\.42e-14"):
        orders.least_order(HSV, 4, max_error=1e-20)


@pytest.mark.parametrize(
    "bad",
    [
        {"rtol": 1.0},
        {"rtol": -0.1},
        {"energy": 0.0},
        {"energy": 1.5},
        {"max_error": -1.0},
        {"max_error": np.nan},
        {"rtol": np.nan},
    ],
)
def test_tolerances_outside_their_range_are_refused(bad):
    with pytest.raises(OrderError, match="got"):
        orders.least_order(HSV, 4, **bad)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (-1, "from 0 to 4"),
        (5, "from 0 to 4"),
        (3, "at most 2, the numerical rank"),
        (1.5, "integer"),
        (True, "integer"),
    ],
)
def test_orders_no_model_has_are_refused(order, message):
    with pytest.raises(OrderError, match=message):
        orders.check_order(order, np.array([2.0, 1.0, 1e-18, 0.0]), rank=2)


def test_orders_below_the_unstable_poles_are_refused():
    with pytest.raises(OrderError, match="at least 1, the number of unstable"):
        orders.check_order(0, np.array([np.inf, 1.0]), rank=2)


def test_splitting_a_repeated_value_warns():
    with pytest.warns(RepeatedHsvWarning, match="order 1 splits a repeated"):
        orders.check_order(1, np.array([1.0, 1.0, 0.1]), rank=3)


def test_cutting_between_distinct_values_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert orders.check_order(2, np.array([1.0, 1.0, 0.1]), rank=3) == 2
