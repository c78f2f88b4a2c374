"""Tests of somebody's python-control models, to copy from: `pytest test_control_models.py`."""

from __future__ import annotations

import control
import pytest
from hypothesis import given, settings

import hankelred as hr
from hankelred.testing import assert_error_bound, assert_hsv_close, assert_weyl, prescribed_systems, stable_systems

PLANT = control.ss([[1.0, -2.0], [3.0, -4.0]], [[5.0], [7.0]], [[6.0, 8.0]], [[9.0]])
RETUNED = control.ss([[1.0, -2.0], [3.0, -4.2]], [[5.0], [7.0]], [[6.0, 8.0]], [[9.0]])
COMPILED = settings(deadline=None)  # the first example takes a second: kernels are compiled


# Two lines validate a claim about a model:
def test_plant_has_the_values_of_its_data_sheet():
    assert_hsv_close(PLANT, [24.42686, 0.5731395], rtol=1e-6)


# A program is tested on systems whose values are known, and on systems that nobody has thought of:
@COMPILED
@given(prescribed_systems(max_states=4, dt=0, complex_data=False))
def test_python_control_finds_prescribed_values(known):
    system, hsv = known
    assert_hsv_close(system, control.hankel_singular_values(system.to_control()), atol=1e-7 * hsv[0])


@COMPILED
@given(stable_systems(max_states=3, dt=0, complex_data=False))
def test_python_control_agrees_to_half_of_the_digits(system):
    S, R = hr.gramian_factors(system)
    size = float((S**2).sum() * (R**2).sum()) ** 0.5  # roots of the eigenvalues of P Q lose the other half, of this
    assert_hsv_close(system.to_control(), control.hankel_singular_values, atol=1e-7 * size)


# No values have to be known for this one: two models cannot differ by less than their values do.
def test_retuning_moves_no_value_further_than_the_model():
    assert_weyl(PLANT, RETUNED, hsv=control.hankel_singular_values)


def test_reduction_by_slycot_keeps_its_promise():
    pytest.importorskip("slycot", reason="control.balred needs Slycot")
    assert_error_bound(PLANT, control.balred(PLANT, 1, method="truncate"))
