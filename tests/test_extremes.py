"""At the ends of the range: numbers that nearly overflow, systems without signals, indices, empty banks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import hankelred as hr
from hankelred.checks import check_indices
from hankelred.control import balred

LAM, B, C = np.array([-1.0 + 0.5j, -0.8]), np.array([[0.5, -1.0], [0.2, -0.25j]]), np.array([[1.0, -0.375]])


@pytest.mark.parametrize("exponent", [-1020, -520, 0, 520, 1000])
def test_hsv_of_diagonal_systems_do_not_depend_on_the_unit_of_time(exponent: int) -> None:
    unit = 2.0**exponent  # hsv are those of unit 1 over it, exactly
    system = hr.DiagonalSystem(LAM * unit, B * 2.0 ** (exponent // 2), C * 2.0 ** (exponent // 2), dt=0)
    expected = hr.hankel_singular_values(hr.DiagonalSystem(LAM, B, C, dt=0))
    bank = hr.DiagonalBank(system.lam[None], system.B[None], system.C[None], dt=0)
    assert hr.hankel_singular_values(system).tolist() == expected.tolist()
    assert hr.hankel_singular_values(bank)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("faint", [1e-140, 1e-160, 1e-200, 1e-310])
@pytest.mark.parametrize("shape", [(2, 1), (1, 1)])
def test_gramians_of_a_state_that_is_hardly_seen_are_right(faint: float, shape: tuple[int, int]) -> None:
    lam, B = np.array([0.21875, 0.75]), np.array([[-0.5, -0.625], [0.875, 0.875]])[:, : shape[0]]
    P, _ = hr.gramians(hr.DiagonalSystem(lam, B, [[-1.125, faint]], dt=True))
    np.testing.assert_allclose(P, B @ B.T / (1 - np.outer(lam, lam)), rtol=1e-13)


@pytest.mark.parametrize("kind", [float, complex])
@pytest.mark.parametrize("exponent", [-1050, -1000, 900])
def test_hsv_of_a_bank_scale_with_its_outputs(exponent: int, kind: type) -> None:
    lam, B, C = np.array([[-1.0, -2.0]]), np.ones((1, 2, 1), kind), np.array([[[1.0, -0.5]]])
    plain = hr.hankel_singular_values(hr.DiagonalBank(lam, B, C, dt=0))
    scaled = hr.hankel_singular_values(hr.DiagonalBank(lam, B, C * 2.0**exponent, dt=0))
    assert scaled[0, 0] == pytest.approx(plain[0, 0] * 2.0**exponent, rel=1e-6)  # 24 bits are left of 2**-1050


@pytest.mark.parametrize("function", [hr.hankel_singular_values, hr.gramians, hr.h2_norm, hr.hankel_norm, hr.balance])
def test_what_overflows_is_an_error_of_the_result_and_no_warning(function: Any) -> None:
    with pytest.raises(hr.NumericalError, match="must be finite"):
        function(hr.StateSpace([[-1.0, 0.5], [0.0, -2.0]], [[1e250], [1e250]], [[1e250, 1e250]]))


def test_a_bank_of_poles_beyond_the_range_of_squares_is_refused() -> None:
    with pytest.raises(hr.NumericalError, match="unit of time"):
        hr.balanced_truncation(hr.DiagonalBank([[-1e200, -2e200]], np.ones((1, 2, 1)), np.ones((1, 1, 2)), dt=0), 1)


@pytest.mark.parametrize("rates", [[1e200], [1000.0], np.array([100.0], np.float32)])
def test_rates_of_poles_that_overflow_are_refused(rates: Any) -> None:
    one = np.ones((1, 1), np.float32)
    with pytest.raises(hr.InputError, match="rates must be logarithms of finite poles"):
        hr.DiagonalSystem.from_rates(rates, one, one, dt=True)


def test_a_pole_at_zero_but_for_rounding_has_no_rate() -> None:
    rates = np.array([-2e199 + 1e199j, -6e199, -4e199, -1e199])
    system = hr.DiagonalSystem.from_rates(rates, np.ones((4, 1)), [[1.0, 2.0, 3.0, 4.0]], dt=0.1)  # all poles are 0
    reduced = hr.minimal(system).system
    assert reduced.n == 1
    assert np.isfinite(reduced.lam).all()


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0)])
def test_a_system_without_inputs_or_outputs_is_not_given_to_python_control(sizes: tuple[int, int]) -> None:
    pytest.importorskip("control")
    m, p = sizes
    with pytest.raises(hr.InputError, match="must have inputs and outputs"):
        hr.StateSpace([[-1.0]], np.ones((1, m)), np.ones((p, 1))).to_control()


@pytest.mark.parametrize("states", [[3], [-4], 1, [0.0], [True], None, "01", [[0]], [[0], [1, 2]], np.True_])
def test_states_that_are_none_are_refused(states: Any) -> None:
    with pytest.raises(hr.InputError, match="states must"):
        hr.DiagonalSystem([0.1, 0.2, 0.3], np.ones((3, 1)), np.ones((1, 3)), dt=True).take(states)


def test_indices_are_counted_from_either_end_or_told_by_truth_values() -> None:
    assert [check_indices(x, "x", 3).tolist() for x in ([-1, 0], (2,), [], [True, False, True])] == [
        [2, 0],
        [2],
        [],
        [0, 2],
    ]


@pytest.mark.parametrize("names", [np.ma.masked, 3, "ab", b"ab", np.array("a"), ["a"], ["a", 1]])
def test_names_that_are_none_are_refused(names: Any) -> None:
    with pytest.raises(hr.InputError, match="states must be a sequence"):
        hr.StateSpace(-np.eye(2), np.ones((2, 1)), np.ones((1, 2)), states=names)


def test_an_empty_bank_has_an_empty_reduction() -> None:
    bank = hr.DiagonalBank(np.empty((0, 2)), np.empty((0, 2, 1)), np.empty((0, 1, 2)), dt=True)
    assert [len(hr.balanced_truncation(bank, order)) for order in (0, 1, 2)] == [0, 0, 0]


def test_whole_floats_are_orders_in_the_names_of_python_control_only() -> None:
    plant = hr.StateSpace(np.diag([-1.0, -2.0, -30.0]), np.ones((3, 1)), np.ones((1, 3)))
    assert balred(plant, 2.0).n == balred(plant, np.array(2.0)).n == 2
    for order in (1.5, np.nan, [1.5], "2", None, {"a"}):
        with pytest.raises(hr.InputError, match="order"):
            balred(plant, order)
    with pytest.raises(hr.OrderError, match="order must be an integer"):
        hr.balanced_truncation(plant, 2.0)
