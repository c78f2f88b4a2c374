"""Modal truncation: poles stay, the bound is that of the terms left out, and nothing is torn apart."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg as sla
from classical import DOMAINS, drawn, in_other_units
from sizes import sample

import hankelred as hr

SEEDS = sample(range(200))


def orders(G, **how):
    """Yield the models of all orders that can be had."""
    for order in range(G.n + 1):
        try:
            yield order, hr.modal_truncation(G, order, **how)
        except hr.OrderError as error:
            assert "together" in str(error)  # noqa: PT017


@pytest.mark.parametrize("dt", DOMAINS)
def test_no_bound_is_exceeded_and_poles_stay_where_they_are(dt):
    tight = 0.0
    for seed in SEEDS:
        _, G = drawn(seed, dt)
        for match_dc in (False, True):
            for order, found in orders(G, match_dc=match_dc):
                error = found.hinf_error()
                assert error <= found.error_bound * (1 + 1e-9), (seed, order)
                assert found.system.n == found.order == order
                distance = np.abs(found.system.poles()[:, None] - G.poles()).min(axis=1)
                assert distance.max(initial=0.0) <= 1e-9
                if order < G.n:
                    tight = max(tight, error / found.error_bound)
                if match_dc:
                    given, ours = (x.frequency_response([0.0]) for x in (G, found.system))
                    np.testing.assert_allclose(ours, given, atol=1e-10 * np.abs(given).max())
                else:
                    np.testing.assert_allclose(found.Ti @ G.A @ found.T, found.system.A, atol=1e-12)
    assert tight > 0.99  # a single term attains it


@pytest.mark.parametrize("dt", DOMAINS)
def test_an_order_keeps_the_largest_terms_or_the_slowest_poles(dt):
    lam = np.array([0.9, -0.5, 0.2]) if dt else np.array([-1.0, -5.0, -8.0])
    margins = 1 - np.abs(lam) if dt else -lam
    gains = np.array([1.0, 2.0, 100.0]) * margins  # terms of 1, 2 and 100
    V = np.random.default_rng(0).standard_normal((3, 3))
    G = hr.StateSpace(V @ np.diag(lam) @ np.linalg.inv(V), V @ np.ones((3, 1)), gains @ np.linalg.inv(V)[None], dt=dt)
    by_size, by_rate = hr.modal_truncation(G, 1), hr.modal_truncation(G, 1, by="slowest")
    np.testing.assert_allclose(by_size.system.poles(), lam[2:], atol=1e-13)
    np.testing.assert_allclose(by_rate.system.poles(), lam[:1], atol=1e-13)
    np.testing.assert_allclose([by_size.error_bound, by_rate.error_bound], [3.0, 102.0], rtol=1e-9)
    chosen = hr.modal_truncation(G, keep=lambda poles: np.abs(poles - lam[1]) < 1e-6)
    np.testing.assert_allclose(chosen.system.poles(), lam[1:2], atol=1e-13)
    np.testing.assert_allclose(hr.modal_truncation(in_other_units(G), 1).error_bound, 3.0, rtol=1e-9)


@pytest.mark.parametrize("dt", DOMAINS)
def test_defective_poles_stay_together_and_have_a_finite_bound(dt):
    pole = 0.6 if dt else -1.0
    A = sla.block_diag(pole * np.eye(3) + np.eye(3, k=1), [[-0.3 if dt else -5.0]])
    Q = sla.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    G = hr.StateSpace(Q @ A @ Q.T, Q @ np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([[1.0, 0.0, 0.0, 1.0]]) @ Q.T)
    G = hr.StateSpace(G.A, G.B, G.C, dt=dt)
    assert [order for order, _ in orders(G)] == [0, 3, 4]
    alone = hr.modal_truncation(G, keep=lambda poles: np.abs(poles - pole) > 0.1)
    assert alone.hinf_error() <= alone.error_bound < 2 * hr.hankel_singular_values(G).sum() * 1.5
    with pytest.raises(hr.OrderError, match=r"got 1\. Choose 0 or 3"):
        hr.modal_truncation(G, 1)


def test_pairs_are_not_separated_and_unstable_poles_are_kept():
    A = sla.block_diag([[-1.0, 5.0], [-5.0, -1.0]], [[2.0]], [[0.0]], [[-3.0]])
    G = hr.StateSpace(A, np.ones((5, 1)), np.ones((1, 5)), name="plant")
    found = hr.modal_truncation(G, 4)
    assert (found.unstable, found.system.name) == (2, "plant")
    np.testing.assert_allclose(np.sort(found.system.poles().real), [-1.0, -1.0, 0.0, 2.0], atol=1e-12)
    assert found.hinf_error() <= found.error_bound * (1 + 1e-9)
    with pytest.raises(hr.OrderError, match="must not separate conjugate poles"):
        hr.modal_truncation(G, keep=lambda poles: poles.imag > 0)
    for wrong in (lambda poles: True, lambda poles: [2] * len(poles), lambda poles: ["a"] * len(poles), 3):
        with pytest.raises(hr.InputError, match="keep"):
            hr.modal_truncation(G, keep=wrong)
    with pytest.raises(hr.OrderError, match="Choose 2"):
        hr.modal_truncation(G, 1)
    with pytest.raises(hr.OrderError, match="Exactly one"):
        hr.modal_truncation(G)
    with pytest.raises(hr.InputError, match="by must be"):
        hr.modal_truncation(G, 2, by="size")


@pytest.mark.parametrize("output", ["complex", "real"])
@pytest.mark.parametrize("dt", DOMAINS)
def test_diagonal_systems_keep_some_of_their_states(dt, output):
    lam = np.array([0.9, 0.5 + 0.3j, -0.4j, 1.1]) if dt else np.array([-0.1, -0.5 + 3j, -1.0 - 0.2j, 0.3])
    B, C = np.array([[1.0], [0.5j], [1.0 + 1j], [1.0]]), np.array([[0.3, 1.0j, 0.2, 1.0]])
    G = hr.DiagonalSystem(lam, B, C, [[2.0]], dt=dt, output=output)
    copies = 2 if output == "real" else 1
    for match_dc in (False, True):
        for kept in range(1, 5):
            found = hr.modal_truncation(G, copies * kept, match_dc=match_dc)
            assert isinstance(found.system, hr.DiagonalSystem)
            assert (found.system.n, found.order, found.T.shape) == (kept, copies * kept, (copies * 4, copies * kept))
            assert np.isin(found.system.lam, lam).all()
            assert found.hinf_error() <= found.error_bound * (1 + 1e-9)
            np.testing.assert_array_equal(found.Ti @ found.T, np.eye(copies * kept))


def test_large_sparse_single_precision_and_static_systems_work():
    rng = np.random.default_rng(0)
    A = sla.block_diag(*[[[-0.01 * w, w], [-w, -0.01 * w]] for w in np.geomspace(1, 100, 170)])  # low-rank factors
    G = hr.StateSpace(A, rng.standard_normal((340, 1)), rng.standard_normal((1, 340)))
    found = hr.modal_truncation(G, keep=lambda poles: np.abs(poles) < 10)
    assert found.order == 170
    assert found.error_bound < np.inf
    half = hr.StateSpace(*(np.float32(x) for x in (np.diag([-1.0, -9.0]), np.ones((2, 1)), np.ones((1, 2)))))
    small = hr.modal_truncation(half, 1)
    assert small.system.dtype == np.float32
    assert small.hinf_error() <= small.error_bound
    static = hr.StateSpace(np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((1, 0)), [[2.0]])
    assert hr.modal_truncation(static, 0).error_bound == 0.0
