"""Averaged Gramians of one channel from its steps: against full matrices, fixed systems and long random sequences."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hankelred as hr
from hankelred import selective
from hankelred.selective import averages, states
from tests.reference_selective import backward_gramians
from tests.strategies import seeds

ROUNDING = 1e-12  # sums of some hundred products, no cancellation


def steps(seed, shape=(2, 20, 3), complex_data=False):
    rng = np.random.default_rng(seed)
    a = rng.uniform(-0.9, 0.95, shape)
    b, c = rng.standard_normal((2, *shape))
    if complex_data:
        a = a * np.exp(1j * rng.uniform(-np.pi, np.pi, shape))
        b, c = b + 1j * rng.standard_normal(shape), c + 1j * rng.standard_normal(shape)
    return a, b, c


@given(seeds, st.booleans(), st.integers(1, 4), st.integers(1, 6))
def test_exact_averages_are_those_of_full_matrices_and_a_pass_from_the_end(seed, complex_data, n, length):
    data = steps(seed, (2, length, n), complex_data)
    for found, expected in zip(selective.averaged_gramians(*data), backward_gramians(*data), strict=True):
        np.testing.assert_allclose(found, expected, rtol=ROUNDING, atol=ROUNDING * np.abs(expected).max())


def test_pieces_of_a_long_sequence_join(monkeypatch):
    data = steps(0, (2, 50, 3))
    whole = selective.averaged_gramians(*data)
    monkeypatch.setattr(states.pieces, "__defaults__", (7,))
    for method in ("exact", "second_moment"):
        expected = whole if method == "exact" else selective.averaged_gramians(*data, method=method)
        for found, matrix in zip(selective.averaged_gramians(*data, method=method), expected, strict=True):
            np.testing.assert_allclose(found, matrix, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("complex_data", [False, True])
def test_mean_gramians_of_fixed_steps_are_those_of_the_fixed_system(complex_data):
    a, b, c = (x[0, 0] for x in steps(1, complex_data=complex_data))
    P, Q = hr.gramians(hr.DiagonalSystem(a, b[:, None], c[None], dt=True))
    fixed = (np.broadcast_to(x, (2, 9, 3)) for x in (a, b, c))
    for found, expected in zip(selective.averaged_gramians(*fixed, method="mean"), (P, Q), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_exact_observability_of_fixed_steps_tends_to_that_of_the_fixed_system():
    a, b, c = (x[0, 0] for x in steps(1))
    _, Q = hr.gramians(hr.DiagonalSystem(a, b[:, None], c[None], dt=True))
    fixed = [np.broadcast_to(x, (1, 20000, 3)) for x in (a, b, c)]
    for method in ("exact", "second_moment"):
        found = selective.averaged_gramians(*fixed, method=method)[1]
        np.testing.assert_allclose(found, Q, rtol=2e-3)  # the last 1 / (1 - 0.95²) of 20,000 steps see less future


@pytest.mark.parametrize("complex_data", [False, True])
def test_second_moments_of_independent_steps_give_covariance_and_observability_also_for_inputs_with_a_mean(
    complex_data,
):
    rng = np.random.default_rng(2)
    a = rng.uniform(0.3, 0.95, (40, 3000, 3))
    b, c = rng.standard_normal((2, *a.shape)) + np.array([1.0, -1.0, 0.5])
    c = c * (1 - a)  # steps are independent of each other, not what they consist of
    if complex_data:
        a, b, c = (x * np.exp(1j * rng.uniform(-0.5, 0.5, 3)) for x in (a, b, c))
    statistics = selective.SelectiveStatistics(3)
    statistics.update(a, b, c)
    P, Q = selective.averaged_gramians(a, b, c, "second_moment")
    exact = selective.averaged_gramians(a, b, c)[1]
    # 120,000 steps, some dozen of them correlated
    assert np.linalg.norm(P - statistics.state_covariance()[0]) < 0.03 * np.linalg.norm(P)
    assert np.linalg.norm(Q - exact) < 0.03 * np.linalg.norm(Q)


def test_leading_axes_are_channels():
    a, b, c = steps(3, (2, 3, 4, 5, 2))
    P, Q = selective.averaged_gramians(a, b, c)
    one = selective.averaged_gramians(a[1, 2], b[1, 2], c[1, 2])
    assert P.shape == Q.shape == (2, 3, 2, 2)
    np.testing.assert_array_equal([P[1, 2], Q[1, 2]], one)


@pytest.mark.parametrize("method", averages.METHODS)
def test_single_precision_is_summed_in_double(method):
    data = [x.astype(np.float32) for x in steps(4, (2, 600, 3))]
    found = selective.averaged_gramians(*data, method=method)
    expected = selective.averaged_gramians(*(x.astype(np.float64) for x in data), method=method)
    for single, double in zip(found, expected, strict=True):
        assert single.dtype == np.float64
        np.testing.assert_allclose(single, double, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("method", averages.METHODS)
def test_gramians_are_hermitian_and_exact_ones_semidefinite(method):
    for matrix in selective.averaged_gramians(*steps(5, (3, 30, 4), True), method=method):
        np.testing.assert_allclose(matrix, matrix.conj().T, rtol=ROUNDING, atol=ROUNDING)
        if method == "exact":
            assert np.linalg.eigvalsh(matrix).min() > -ROUNDING


def test_exact_averages_exist_without_decay_and_others_say_that_they_do_not():
    a, b, c = np.ones((3, 1, 4, 1))
    P, Q = selective.averaged_gramians(a, b, c)
    assert P.item() == Q.item() == 2.5  # (1 + 2 + 3 + 4) / 4
    for method in ("second_moment", "mean"):
        with pytest.raises(hr.StabilityError, match="below 1"):
            selective.averaged_gramians(a, b, c, method)


def test_memory_of_the_exact_averages_does_not_grow_with_the_length():
    def peak(length):
        data = steps(6, (1, length, 4))
        selective.averaged_gramians(*data)
        tracemalloc.start()
        selective.averaged_gramians(*data)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most - data[0].size  # a byte per entry to look for NaN

    assert peak(20 * states.PIECE) < 1.1 * peak(2 * states.PIECE)


def test_arguments_stay_as_they_are():
    data = steps(7)
    copies = [x.copy() for x in data]
    for method in averages.METHODS:
        selective.averaged_gramians(*data, method=method)
    np.testing.assert_array_equal(data, copies)


def test_wrong_arguments_are_refused():
    a, b, c = steps(8)
    with pytest.raises(hr.HankelredError, match="one shape"):
        selective.averaged_gramians(a, b[:, :-1], c)
    with pytest.raises(hr.HankelredError, match="one shape"):
        selective.averaged_gramians(a[0], b[0], c[0])
    with pytest.raises(hr.HankelredError, match="method must be"):
        selective.averaged_gramians(a, b, c, "median")
    with pytest.raises(hr.HankelredError, match="b must be finite"):
        selective.averaged_gramians(a, np.where(b == b[0, 0, 0], np.nan, b), c)
    with pytest.raises(hr.HankelredError, match="real or complex"):
        selective.averaged_gramians(a.astype(str), b, c)
