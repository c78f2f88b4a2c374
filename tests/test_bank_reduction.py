"""Balanced truncation of banks: every system must come out as it does alone."""

from __future__ import annotations

import numpy as np
import pytest

import hankelred as hr
from hankelred.errors import DiagonalisationError, OrderError


def bank(batch, n, m, p, *, dt, cplx=True, seed=0, slow=0.05):
    """Return lam, B, C of random stable systems, rates log-spread over two decades."""
    rng = np.random.default_rng(seed)
    rates = -slow * 10 ** rng.uniform(0, 2, (batch, n))
    B, C = rng.standard_normal((batch, n, m)), rng.standard_normal((batch, p, n))
    if cplx:
        rates = rates + 1j * rng.uniform(0.1, 3.0, (batch, n))
        B, C = B + 1j * rng.standard_normal(B.shape), C + 1j * rng.standard_normal(C.shape)
    return (np.exp(rates) if dt else rates), B, C


def response(reduction):
    return reduction.system.frequency_response(np.array([0.0, 0.1, 0.7, 2.5]))


CASES = [
    (dt, cplx, output, ports)
    for dt in (0, True)
    for cplx, output in ((False, "complex"), (True, "complex"), (True, "real"))
    for ports in ((1, 1), (2, 3))
]


@pytest.mark.parametrize(("dt", "cplx", "output", "ports"), CASES)
@pytest.mark.parametrize("criterion", [{"order": 4}, {"energy": 0.9}, {"rtol": 1e-2}, {"states": 3}])
def test_a_system_of_a_bank_is_reduced_as_it_is_alone(dt, cplx, output, ports, criterion):
    lam, B, C = bank(5, 8, *ports, dt=dt, cplx=cplx)
    found = hr.balanced_truncation(hr.DiagonalBank(lam, B, C, dt=dt, output=output), **criterion)
    for i in range(5):
        alone = hr.balanced_truncation(hr.DiagonalSystem(lam[i], B[i], C[i], dt=dt, output=output), **criterion)
        assert found.order[i] == alone.order
        assert found.states[i] == alone.system.n
        # what rediagonalising changes is bounded over all frequencies in a bank, at those of the poles for one alone
        np.testing.assert_allclose(found.error_bound[i], alone.error_bound, rtol=1e-9, atol=1e-10 * alone.hsv[0])
        size = np.abs(response(alone)).max()
        # two ways of rounding, through eigenvectors of condition below some hundreds
        np.testing.assert_allclose(response(found[i]), response(alone), atol=1e-11 * size)


@pytest.mark.parametrize(("dt", "cplx", "output", "ports"), CASES)
def test_bases_of_a_bank_make_the_reduced_systems(dt, cplx, output, ports):
    lam, B, C = bank(4, 7, *ports, dt=dt, cplx=cplx, seed=1)
    found = hr.balanced_truncation(hr.DiagonalBank(lam, B, C, dt=dt, output=output), order=4)
    for i in range(4):
        one = found[i]
        poles, inputs = lam[i], B[i]
        if output == "real":
            poles, inputs = np.concatenate([poles, poles.conj()]), np.vstack([inputs, inputs.conj()])
        A = one.Ti @ (poles[:, None] * one.T)
        np.testing.assert_allclose(one.Ti @ one.T, np.eye(one.order), atol=1e-12)
        np.testing.assert_allclose(A, np.diag(np.diag(A)), atol=1e-11 * np.abs(poles).max())
        stored = np.isin(np.round(np.diag(A), 9), np.round(one.system.lam, 9))
        assert stored.sum() == one.system.n
        np.testing.assert_allclose((one.Ti @ inputs)[stored], one.system.B, atol=1e-11 * np.abs(inputs).max())


def test_every_error_is_within_its_bound():
    lam, B, C = bank(6, 10, 1, 1, dt=True, seed=2)
    found = hr.balanced_truncation(hr.DiagonalBank(lam, B, C, dt=True, output="real"), energy=0.8)
    for i in range(6):
        assert found[i].hinf_error() <= found.error_bound[i]


def test_rates_keep_the_digits_of_poles_next_to_the_boundary():
    rates = np.array([[-1e-13 + 0.5j, -1e-3 + 1j, -0.3 + 2j, -1.0 + 3j]])
    B, C = np.ones((1, 4, 1)), np.ones((1, 1, 4))
    found = hr.balanced_truncation(hr.DiagonalBank.from_rates(rates, B, C, dt=True), order=1)
    assert found.rates is not None
    assert found.rates[0, 0].real == pytest.approx(-1e-13, rel=1e-4)  # other states move it by about 1e-13


def test_states_that_fill_up_are_zero_and_masked():
    lam, B, C = bank(8, 8, 1, 1, dt=0, seed=3)
    found = hr.balanced_truncation(hr.DiagonalBank(lam, B, C, dt=0), rtol=0.05)
    assert len(set(found.states)) > 1
    assert found.mask.sum() == found.states.sum()
    assert not found.lam[~found.mask].any()
    assert not found.B[~found.mask].any()


def test_inert_states_are_dropped_exactly():
    lam, B, C = bank(3, 6, 1, 1, dt=True, seed=4)
    B[:, 1], C[:, :, 4] = 0.0, 0.0
    found = hr.balanced_truncation(hr.DiagonalBank(lam, B, C, dt=True), order=4)
    for i in range(3):
        full = hr.DiagonalSystem(lam[i], B[i], C[i], dt=True).frequency_response(np.array([0.3]))
        np.testing.assert_allclose(found[i].system.frequency_response(np.array([0.3])), full, rtol=1e-10)


def test_real_poles_stored_as_halves_of_pairs_are_reduced_one_by_one():
    lam, B, C = bank(2, 5, 1, 1, dt=True, cplx=False, seed=5)
    found = hr.balanced_truncation(hr.DiagonalBank(lam + 0j, B, C, dt=True, output="real"), states=2)
    for i in range(2):
        assert found[i].hinf_error() <= found.error_bound[i]


@pytest.mark.parametrize("output", ["complex", "real"])
def test_full_order_and_order_zero_work(output):
    lam, B, C = bank(3, 4, 1, 1, dt=True, seed=6)
    size = {"states": 4}
    same = hr.balanced_truncation(hr.DiagonalBank(lam, B, C, dt=True, output=output), **size)
    np.testing.assert_array_equal(same.lam, lam)
    assert hr.balanced_truncation(hr.DiagonalBank(lam, B, C, dt=True, output=output), order=0).lam.shape == (3, 0)


def test_what_rediagonalising_slow_rates_changes_is_bounded_as_for_one_system():
    """Their distance from the unit circle was taken twice too large, and the bound came out four times too small."""
    bank = hr.DiagonalBank.from_rates([[-1e-4, -0.3, -0.9]], np.ones((1, 3, 1)), np.ones((1, 1, 3)), dt=True)
    bal = hr.balance(bank[0])
    alone, together = bal.reduce(1).error_bound, hr.balanced_truncation(bank, order=1).error_bound[0]
    np.testing.assert_allclose(together - bal.error_bound(1), alone - bal.error_bound(1), rtol=0.01)


def test_single_precision_comes_back_in_single_precision():
    lam, B, C = (x.astype(np.complex64) for x in bank(2, 5, 1, 1, dt=True, seed=7))
    found = hr.balanced_truncation(hr.DiagonalBank(lam, B, C, dt=True), order=2)
    assert found.lam.dtype == np.complex64
    assert found.hsv.dtype == np.float32


def test_more_than_one_criterion_is_refused():
    lam, B, C = bank(1, 3, 1, 1, dt=True)
    with pytest.raises(OrderError, match="Exactly one of"):
        hr.balanced_truncation(hr.DiagonalBank(lam, B, C, dt=True), order=1, rtol=0.1)


def test_systems_that_cannot_be_diagonalised_are_named(monkeypatch):
    # poles within 1 % of each other have eigenvectors of condition some hundreds after reduction, poles apart do not
    lam = np.array([[-1.0, -1.01, -1.02, -50.0], [-1.0, -5.0, -20.0, -50.0]])
    C = np.array([[[0.5e4, -1e4, 0.5e4, 1e-9]], [[1.0, 1.0, 1.0, 1e-9]]])
    hr.balanced_truncation(hr.DiagonalBank(lam, np.ones((2, 4, 1)), C, dt=0), order=3)
    monkeypatch.setattr("hankelred.reduction.bank.CONDITION_LIMIT", 100.0)
    with pytest.raises(DiagonalisationError, match="number 0") as caught:
        hr.balanced_truncation(hr.DiagonalBank(lam, np.ones((2, 4, 1)), C, dt=0), order=3)
    assert caught.value.systems == [0]
