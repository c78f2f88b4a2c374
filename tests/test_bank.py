"""Banks of diagonal systems: every answer has the leading axis and is the one that each system gets alone."""

from __future__ import annotations

import numpy as np
import pytest

import hankelred as hr

OMEGA = [0.0, 0.2, -1.5]
NAMES = {"name": "heads", "inputs": ("a", "b"), "outputs": ("y", "z", "w"), "states": ("1", "2", "3", "4")}


def bank(
    kind: str = "complex", seed: int = 0, batch: int = 5, dt: object = True, dtype: object = None
) -> hr.DiagonalBank:
    """A bank of systems of four states: complex or real data, output of either kind, values or rates."""
    rng = np.random.default_rng(seed)
    shapes = (batch, 4), (batch, 4, 2), (batch, 3, 4)
    lam, B, C = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape) for shape in shapes)
    lam = -(10 ** rng.uniform(-2, 0, lam.shape)) + 1j * lam.imag
    D = rng.standard_normal((batch, 3, 2)) if dt else None
    if kind == "real data":
        lam, B, C = lam.real, B.real, C.real
    output = "real" if kind == "real output" else "complex"
    if kind == "rates":
        return hr.DiagonalBank.from_rates(lam, B, C, D, dt=dt, **NAMES)
    if dt:
        lam = np.exp(lam)
    if dtype is not None:
        lam, B, C = (x.astype(dtype) for x in (lam, B, C))
        D = None if D is None else D.astype(np.float32)
    return hr.DiagonalBank(lam, B, C, D, dt=dt, output=output, **NAMES)


BANKS = {
    **{kind: bank(kind) for kind in ("complex", "real data", "real output", "rates")},
    "continuous": bank(dt=0),
    "continuous real output": bank("real output", dt=0),
    "seconds": bank(dt=0.1),
}
EVERY_BANK = pytest.mark.parametrize("found", BANKS.values(), ids=BANKS)


def close(found, alone):
    """Compare with one answer per system: two ways to add the same few products."""
    alone = np.array(alone)
    assert found.shape == alone.shape
    assert found.dtype == alone.dtype
    np.testing.assert_allclose(
        found, alone, rtol=1e-12, atol=1e-13 * np.abs(alone[np.isfinite(alone)]).max(initial=0.0)
    )


@EVERY_BANK
def test_items_are_the_systems_of_the_bank(found):
    assert len(found) == 5
    for i, one in enumerate(found):
        assert isinstance(one, hr.DiagonalSystem)
        assert (one.dt, one.output, one.order, one.dtype) == (found.dt, found.output, found.order, found.dtype)
        assert all(getattr(one, key) == value for key, value in NAMES.items())
        for key in ("lam", "B", "C", "D"):
            np.testing.assert_array_equal(getattr(one, key), getattr(found, key)[i])
        assert (one.rates is None) == (found.rates is None)
        if found.rates is not None:
            np.testing.assert_array_equal(one.rates, found.rates[i])
    np.testing.assert_array_equal(found[-1].lam, found.lam[4])


@pytest.mark.parametrize("index", [5, -6])
def test_there_is_no_system_past_the_ends(index):
    with pytest.raises(IndexError, match="no number"):
        BANKS["complex"][index]


@pytest.mark.parametrize("index", [True, slice(2), 1.0, "0"])
def test_a_bank_is_indexed_by_integers_only(index):
    with pytest.raises(hr.InputError, match="indexed by an integer"):
        BANKS["complex"][index]


@EVERY_BANK
@pytest.mark.parametrize("function", [hr.hankel_singular_values, hr.h2_norm, hr.hinf_norm, hr.hankel_norm])
def test_analyses_have_the_leading_axis(found, function):
    close(function(found), [function(one) for one in found])


@EVERY_BANK
def test_peaks_have_the_leading_axis(found):
    norms, peaks = hr.hinf_norm(found, return_peak=True)
    for one, norm, peak in zip(found, norms, peaks, strict=True):
        assert (norm, peak) == hr.hinf_norm(one, return_peak=True)


@EVERY_BANK
@pytest.mark.parametrize("function", [hr.gramians, hr.gramian_factors])
def test_gramians_and_their_factors_have_the_leading_axis(found, function):
    first, second = function(found)
    order = found.order
    assert (len(first), len(second), first.shape[1], second.shape[2]) == (5, 5, order, order)
    for P, Q, one in zip(first, second, found, strict=True):
        if function is hr.gramian_factors:
            P, Q = P @ P.conj().T, Q.conj().T @ Q
        expected = hr.gramians(one)
        np.testing.assert_allclose(P, expected[0], atol=1e-14 * np.abs(expected[0]).max())
        np.testing.assert_allclose(Q, expected[1], atol=1e-14 * np.abs(expected[1]).max())


@EVERY_BANK
def test_responses_have_the_leading_axis(found):
    close(found.frequency_response(OMEGA), [one.frequency_response(OMEGA) for one in found])


@EVERY_BANK
def test_poles_have_the_leading_axis(found):
    for row, one in zip(found.poles(), found, strict=True):
        assert set(row) == set(one.poles())


def test_stability_is_told_of_each_system():
    found = hr.DiagonalBank([[0.5, 0.9], [0.5, 1.0], [1.1, 0.0]], np.ones((3, 2, 1)), np.ones((3, 1, 2)), dt=True)
    np.testing.assert_array_equal(found.is_stable(), [True, False, False])
    for norm in (hr.h2_norm, hr.hinf_norm, hr.hankel_norm):
        np.testing.assert_array_equal(np.isinf(norm(found)), [False, True, True])


@pytest.mark.parametrize(
    "function",
    [hr.hankel_singular_values, hr.gramians, hr.gramian_factors, lambda found: hr.balanced_truncation(found, 1)],
)
def test_a_bank_with_an_unstable_system_is_refused(function):
    found = hr.DiagonalBank([[0.5, 0.9], [0.5, 1.0]], np.ones((2, 2, 1)), np.ones((2, 1, 2)), dt=True)
    with pytest.raises(hr.StabilityError, match="stable"):
        function(found)


@EVERY_BANK
def test_differences_are_banks_with_the_difference_of_the_responses(found):
    other = found.with_(C=2 * found.C)
    error = found - other
    assert isinstance(error, hr.DiagonalBank)
    assert len(error) == 5
    expected = found.frequency_response(OMEGA) - other.frequency_response(OMEGA)
    np.testing.assert_allclose(error.frequency_response(OMEGA), expected, atol=1e-13 * np.abs(expected).max())
    zero = np.zeros(5)
    np.testing.assert_allclose(hr.hankel_norm(found - found), zero, atol=1e-13 * hr.hankel_norm(found).max())


def test_banks_of_other_lengths_and_single_systems_are_not_compared():
    found = BANKS["complex"]
    for other in (bank(batch=2), found[0], found[0].dense()):
        with pytest.raises(hr.InputError, match="a bank of as many systems"):
            found - other


@pytest.mark.parametrize("kind", ["real data", "real output", "continuous real output"])
def test_models_of_python_control_come_as_a_list(kind):
    found = BANKS[kind]
    models = found.to_control()
    assert isinstance(models, list)
    for model, one in zip(models, found, strict=True):
        assert (model.dt, model.name, model.input_labels) == (found.dt, "heads", ["a", "b"])
        back = hr.as_system(model)
        np.testing.assert_allclose(back.frequency_response(OMEGA), one.frequency_response(OMEGA), rtol=1e-10)


@EVERY_BANK
def test_dense_systems_and_models_of_scipy_come_as_lists(found):
    for dense, model, one in zip(found.dense(), found.to_scipy(), found, strict=True):
        np.testing.assert_array_equal(dense.A, one.dense().A)
        np.testing.assert_array_equal(model.A, dense.A)
        assert dense.dt == found.dt


@pytest.mark.parametrize("function", [hr.balance, hr.minimal, hr.balanced_realization])
def test_what_is_for_one_system_refuses_a_bank_and_says_how(function):
    with pytest.raises(hr.InputError, match=r"one system; got a bank of 5.*bank\[i\]"):
        function(BANKS["complex"])


@pytest.mark.parametrize("options", [{"match_dc": True}, {"offset": 0.1}])
def test_options_for_one_system_are_refused_for_a_bank(options):
    with pytest.raises(hr.InputError, match="for one system; got a bank"):
        hr.balanced_truncation(BANKS["complex"], 2, **options)


@EVERY_BANK
def test_reductions_of_a_bank_are_measured_against_its_systems(found):
    reductions = hr.balanced_truncation(found, 2)
    assert reductions.original is found
    for i in range(5):
        one = reductions[i]
        np.testing.assert_array_equal(one.original.lam, found.lam[i])
        assert (one.system.name, one.system.inputs, one.system.states) == ("heads", ("a", "b"), None)
        assert one.hsv[2] * (1 - 1e-9) <= one.hankel_error() <= one.hinf_error() * (1 + 1e-9)
        assert one.hinf_error() <= one.error_bound
        assert hr.hinf_norm(found[i] - one.system) <= one.error_bound


@pytest.mark.parametrize("kind", ["complex", "real output", "real data"])
@pytest.mark.parametrize("lost", [1, 2])
def test_bounds_of_a_single_precision_bank_contain_its_rounding(kind, lost):
    dtype = np.float32 if kind == "real data" else np.complex64
    found = bank(kind, dtype=dtype)
    found = found.with_(B=found.B * np.array([1, 1, 1, 1e-12], np.float32)[:, None])  # dropping it costs nothing
    reductions = hr.balanced_truncation(found, states=4 - lost)
    assert hr.hankel_singular_values(found).dtype == reductions.hsv.dtype == np.float32
    assert {x.dtype for x in (reductions.lam, reductions.B, reductions.C)} <= {np.dtype(dtype), np.dtype(np.complex64)}
    for i in range(5):
        assert hr.hinf_norm(found[i] - reductions[i].system) <= reductions.error_bound[i]


@pytest.mark.parametrize("output", ["complex", "real"])
def test_an_empty_bank_has_empty_answers(output):
    found = hr.DiagonalBank(np.zeros((0, 3)), np.zeros((0, 3, 1)), np.zeros((0, 2, 3)), dt=True, output=output)
    order = found.order
    assert hr.hankel_singular_values(found).shape == (0, order)
    assert [x.shape for x in hr.gramians(found)] == [(0, order, order)] * 2
    assert hr.hinf_norm(found).shape == hr.h2_norm(found).shape == hr.hankel_norm(found).shape == (0,)
    assert found.frequency_response(OMEGA).shape == (0, 3, 2, 1)
    assert found.is_stable().shape == (0,)
    assert (found.dense(), found.to_control()) == ([], [])
    assert len(hr.balanced_truncation(found, 1)) == 0


def test_a_bank_prints_its_length_and_what_each_system_is():
    assert repr(BANKS["rates"]) == "5 x DiagonalBank('heads', complex, n=4, m=2, p=3, dt=True)"
