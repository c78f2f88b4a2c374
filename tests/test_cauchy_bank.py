"""Banks of diagonal systems: the same numbers as one system at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hankelred as hr
from hankelred import DiagonalSystem
from tests.strategies import seeds, time_steps
from tests.test_cauchy import EVERY_HSV, normal, structured_hsv


def bank_hsv(lam, B, C, **options):
    return hr.hankel_singular_values(hr.DiagonalBank(lam, B, C, **options))


@given(
    seeds,
    time_steps,
    st.booleans(),
    st.sampled_from(["complex", "real"]),
    st.integers(1, 6),
    st.sampled_from([(1, 1), (2, 2), (1, 3), (8, 1)]),
)
def test_every_system_of_a_bank_has_the_hsv_it_has_alone(seed, dt, complex_data, output, n, ports):
    rng = np.random.default_rng(seed)
    m, p = ports
    rates = -(10 ** rng.uniform(-2, 0.5, (5, n))) + 1j * rng.uniform(-np.pi, np.pi, (5, n))
    B, C = normal(rng, 5, n, m), normal(rng, 5, p, n)
    if not complex_data:
        rates, B, C = rates.real, B.real, C.real
    lam = rates if dt == 0 else np.exp(rates)
    hsv = bank_hsv(lam, B, C, dt=dt, output=output)
    alone = [structured_hsv(DiagonalSystem(*data, dt=dt, output=output)) for data in zip(lam, B, C, strict=True)]
    np.testing.assert_allclose(hsv, alone, rtol=EVERY_HSV, atol=1e-15 * hsv.max())  # zeros: real poles, real output


def test_small_hsv_of_a_bank_keep_their_digits():
    lam = -0.05 * np.arange(1, 17) * np.linspace(1, 2, 3)[:, None]
    hsv = bank_hsv(lam, np.ones((3, 16, 1)), np.ones((3, 1, 16)), dt=0)
    first = structured_hsv(DiagonalSystem(lam[0], np.ones((16, 1)), np.ones((1, 16)), dt=0))
    assert hsv[0, -1] < 1e-22 * hsv[0, 0]
    np.testing.assert_allclose(hsv, first / np.linspace(1, 2, 3)[:, None], rtol=EVERY_HSV)  # time scaling


def test_nearly_real_poles_in_some_systems_cost_no_digits():
    lam = np.linspace(0.2, 0.9, 6) * np.exp(1j * np.array([[1e-9], [0.5], [2e-3]]) * np.linspace(0.5, 1, 6))
    B, C = np.ones((3, 6, 1)), np.ones((3, 1, 6))
    hsv = bank_hsv(lam, B, C, dt=True, output="real")
    alone = [structured_hsv(DiagonalSystem(x, B[0], C[0], dt=True, output="real")) for x in lam]
    np.testing.assert_allclose(hsv, alone, rtol=EVERY_HSV)


def test_rates_next_to_the_circle_keep_their_digits():
    rates = np.array([[-1e-15, -3e-15], [-1e-15, -1.0]])
    hsv = hr.hankel_singular_values(hr.DiagonalBank.from_rates(rates, np.ones((2, 2, 1)), np.ones((2, 1, 2)), dt=True))
    alone = [structured_hsv(DiagonalSystem.from_rates(z, np.ones((2, 1)), np.ones((1, 2)), dt=True)) for z in rates]
    np.testing.assert_allclose(hsv, alone, rtol=EVERY_HSV)


@pytest.mark.parametrize("output", ["complex", "real"])
@pytest.mark.parametrize("m", [1, 2])
def test_states_that_link_no_input_to_an_output_add_zeros(m, output):
    rng = np.random.default_rng(0)
    lam, B, C = np.array([[0.5j, 0.3, 0.9 + 0.1j]]), normal(rng, 1, 3, m), normal(rng, 1, m, 3)
    B[:, 0] = 0
    hsv = bank_hsv(lam, B, C, dt=True, output=output)[0]
    alone = structured_hsv(DiagonalSystem(lam[0, 1:], B[0, 1:], C[0, :, 1:], dt=True, output=output))
    np.testing.assert_allclose(hsv, np.append(alone, np.zeros(len(hsv) - len(alone))), rtol=EVERY_HSV, atol=1e-16)


@pytest.mark.parametrize("m", [1, 2])
def test_scale_of_states_and_inputs_does_not_change_the_hsv(m):
    rng = np.random.default_rng(3)
    lam, B, C = rng.uniform(0.1, 0.9, (2, 5)), rng.standard_normal((2, 5, m)), rng.standard_normal((2, m, 5))
    plain = bank_hsv(lam, B, C, dt=True)
    scale = 10.0 ** np.array([-60, 30, 0, 8, -8])
    scaled = bank_hsv(lam, scale[:, None] * B, C / scale, dt=True)
    small = bank_hsv(lam, 1e-170 * B, 1e170 * C, dt=True)
    np.testing.assert_allclose(scaled, plain, rtol=EVERY_HSV)
    np.testing.assert_allclose(small, plain, rtol=EVERY_HSV)


@pytest.mark.parametrize("shape", [(0, 3, 1, 1), (2, 0, 1, 1), (2, 3, 0, 1), (2, 3, 1, 0)])
def test_empty_banks_systems_and_ports_work(shape):
    batch, n, m, p = shape
    hsv = bank_hsv(-np.ones((batch, n)), np.ones((batch, n, m)), np.ones((batch, p, n)), dt=0)
    assert hsv.shape == (batch, n)
    assert not hsv.any()


def test_single_precision_comes_back_in_single_precision():
    data = [np.full(shape, 0.5, np.float32) for shape in [(2, 3), (2, 3, 1), (2, 1, 3)]]
    assert bank_hsv(*data, dt=True).dtype == np.float32


def test_arguments_are_left_as_they_were():
    rng = np.random.default_rng(2)
    data = rng.uniform(0.1, 0.9, (4, 3)), rng.standard_normal((4, 3, 2)), rng.standard_normal((4, 2, 3))
    copies = [x.copy() for x in data]
    bank_hsv(*data, dt=True)
    for x, copy in zip(data, copies, strict=True):
        np.testing.assert_array_equal(x, copy)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lam": np.full((2, 3), 1.0)}, hr.StabilityError, "stable"),
        ({"lam": np.full((3, 3), 0.5)}, hr.InputError, r"\(3, 3\)"),
        ({"lam": np.full(3, 0.5)}, hr.InputError, "lam must have 2 axes"),
        ({"B": np.full((2, 3, 1), np.nan)}, hr.InputError, "finite"),
        ({"dt": None}, hr.InputError, "dt"),
        ({"output": "imaginary"}, hr.InputError, "imaginary"),
        ({"C": np.ones((3, 1, 3))}, hr.InputError, "one column per pole"),
        ({"D": np.ones((2, 2, 1))}, hr.InputError, r"D must be \(2, 1, 1\)"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    right = {"lam": np.full((2, 3), 0.5), "B": np.ones((2, 3, 1)), "C": np.ones((2, 1, 3)), "dt": True}
    with pytest.raises(error, match=message):
        bank_hsv(**{**right, **arguments})


def test_rates_of_a_continuous_bank_are_refused():
    with pytest.raises(hr.InputError, match="from_rates is for discrete systems"):
        hr.DiagonalBank.from_rates(np.full((2, 3), -1.0), np.ones((2, 3, 1)), np.ones((2, 1, 3)), dt=0)
