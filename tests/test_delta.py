"""Gated delta rules: against full matrices step by step, as layers of heads, and cut by orthonormal bases."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hankelred as hr
from hankelred import selective
from hankelred.selective.orthogonal import orthonormal_basis
from tests.strategies import seeds
from tests.test_selective_statistics import assert_close, assert_same


class DeltaData(NamedTuple):
    """What a layer computes, in the order of `SelectiveStatistics.update_delta`."""

    decay: np.ndarray
    beta: np.ndarray
    B: np.ndarray
    C: np.ndarray
    x: np.ndarray


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def delta_data(n=4, groups=2, heads=4, size=3, batch=2, length=20, by_state=False, seed=0):
    rng = np.random.default_rng(seed)
    B, C = (unit(rng.standard_normal((batch, length, groups, n))) for _ in range(2))
    shape = (batch, length, heads)
    decay = rng.uniform(0.7, 1.0, (*shape, n) if by_state else shape)
    return DeltaData(decay, rng.uniform(0, 1, shape), B, C, rng.standard_normal((*shape, size)))


def delta_statistics(data, gate=None, **options):
    statistics = selective.SelectiveStatistics(data.B.shape[3], data.B.shape[2], delta=True, **options)
    statistics.update_delta(*data, gate)
    return statistics


def slow_delta_rule(data):
    """Return the outputs and states (batch, length, heads, n, size) of full matrices, step by step."""
    batch, length, heads, size = data.x.shape
    (groups, n), (y, S) = (
        data.B.shape[2:],
        (np.zeros_like(data.x), np.zeros((batch, length, heads, data.B.shape[3], size))),
    )
    for row, head in np.ndindex(batch, heads):
        state = np.zeros((n, size))
        for t in range(length):
            k, q = (v[row, t, head * groups // heads] for v in (data.B, data.C))
            b, a = data.beta[row, t, head], data.decay[row, t, head] * np.ones(n)
            state = (np.eye(n) - b * np.outer(k, k)) @ np.diag(a) @ state + b * np.outer(k, data.x[row, t, head])
            S[row, t, head], y[row, t, head] = state, state.T @ q
    return y, S


@pytest.mark.parametrize("by_state", [False, True])
def test_outputs_are_those_of_full_matrices(by_state):
    data = delta_data(by_state=by_state)
    assert_close(selective.delta_outputs(*data), slow_delta_rule(data)[0])


def test_outputs_in_single_precision_are_right_to_single_precision():
    data = delta_data(n=16, length=300)
    single = selective.delta_outputs(*(x.astype(np.float32) for x in data))
    assert single.dtype == np.float32
    y = selective.delta_outputs(*data)
    # every step rounds n products, in states that no step makes larger: 300 steps of decay .7 to 1 remember 7 of them
    assert np.linalg.norm(single - y) < 16 * np.finfo(np.float32).eps * np.linalg.norm(y)


def test_heads_with_the_inputs_of_a_delta_rule_have_its_outputs_and_statistics():
    data = delta_data(by_state=True)
    u = selective.delta_inputs(data.decay, data.beta, data.B, data.x)
    as_heads = selective.SelectiveStatistics(4, 2)
    as_heads.update_heads(data.decay, data.B, data.C, u)
    found = delta_statistics(data)
    for name in ("state_covariance", "output_covariance", "output_form"):
        np.testing.assert_array_equal(getattr(found, name)(), getattr(as_heads, name)())


@pytest.mark.parametrize("by_state", [False, True])
def test_statistics_are_those_of_the_states_one_by_one(by_state):
    data = delta_data(by_state=by_state)
    gate = np.random.default_rng(1).standard_normal(data.x.shape)
    statistics, (_, S) = delta_statistics(data, gate), slow_delta_rule(data)
    seen = S * gate[..., None, :]
    for group in range(2):
        h, c = (seen[:, :, 2 * group : 2 * group + 2], data.C[:, :, group])
        assert_close(statistics.state_covariance()[group], np.einsum("bthic,bthjc->ij", h, h) / h[..., 0, :].size)
        form = np.einsum("bti,btj,bthic,bthjc->ij", c, c, h, h) / c[..., 0].size
        assert_close(statistics.output_form()[group], form)


def test_long_sequences_are_carried_from_piece_to_piece(monkeypatch):
    data = delta_data(length=30)
    whole = selective.delta_inputs(data.decay, data.beta, data.B, data.x)
    monkeypatch.setattr("hankelred.selective.states.PIECE", 7)
    monkeypatch.setattr(
        "hankelred.selective.delta.pieces", lambda length: (slice(i, i + 7) for i in range(0, length, 7))
    )
    np.testing.assert_array_equal(selective.delta_inputs(data.decay, data.beta, data.B, data.x), whole)


def test_padded_steps_add_nothing_to_states():
    data, short = delta_data(length=20), delta_data(length=20)
    gate = np.ones(data.x.shape)
    data.beta[:, 12:], gate[:, 12:] = 0.0, 0.0
    found = delta_statistics(data, gate)
    expected = delta_statistics(DeltaData(*(x[:, :12] for x in short)))
    assert_close(found.output_form() * found.steps, expected.output_form() * expected.steps)
    assert_close(found.state_covariance() * found.samples, expected.state_covariance() * expected.samples)


def test_merged_and_stored_statistics_are_those_of_one_pass():
    one, other = delta_data(seed=1), delta_data(seed=2, length=13)
    whole, left, right = delta_statistics(one), delta_statistics(one), delta_statistics(other)
    whole.update_delta(*other)
    left.merge(selective.SelectiveStatistics.from_dict(right.to_dict()))
    assert_same(left, whole)
    assert selective.SelectiveStatistics.from_dict(whole.to_dict()).delta


def test_pooled_statistics_are_those_of_one_group():
    data = delta_data(groups=1)
    twice = DeltaData(*(np.concatenate([x, x], axis=2) for x in data))
    pooled, alone = (delta_statistics(x).pooled() for x in (twice, data))
    assert pooled.delta
    for name in ("state_covariance", "output_covariance"):
        assert_close(getattr(pooled, name)(), getattr(alone, name)())
    assert_close(pooled.output_form(), 2 * alone.output_form())


def lossy(seed, n, rank):
    rng = np.random.default_rng(seed)
    return [X.T @ X for X in rng.standard_normal((2, rank, n)) * 2.0 ** -np.arange(n)]


def loss(P, Q, V):
    E = np.eye(len(P)) - V @ V.T
    return np.trace(Q @ E @ P @ E)


@given(seeds, st.integers(1, 9), st.data())
def test_bases_are_orthonormal_and_lose_no_more_than_any_simple_one(seed, n, draw):
    order, rank = draw.draw(st.integers(1, n)), draw.draw(st.integers(0, n))
    P, Q = lossy(seed, n, rank)
    V = orthonormal_basis([(P, Q)], order)
    assert V.shape == (n, order)
    np.testing.assert_allclose(V.T @ V, np.eye(order), atol=1e-12)
    simple = [np.linalg.eigh(X)[1][:, n - order :] for X in (P, Q, P @ Q + Q @ P)] + [np.eye(n)[:, :order]]
    floor = 1e-12 * np.abs(P).max() * np.abs(Q).max()
    assert loss(P, Q, V) <= min(loss(P, Q, W) for W in simple) + floor


@given(seeds, st.integers(2, 7), st.data())
def test_no_small_turn_of_a_basis_loses_less(seed, n, draw):
    order = draw.draw(st.integers(1, n - 1))
    P, Q = lossy(seed, n, n)
    V = orthonormal_basis([(P, Q)], order)
    rng = np.random.default_rng(seed)
    least = loss(P, Q, V)
    for _ in range(20):
        turned = np.linalg.qr(V + 1e-3 * rng.standard_normal(V.shape))[0]
        assert loss(P, Q, turned) > least * (1 - 1e-6) - 1e-14


def test_planes_of_two_states_are_the_best_of_all_angles():
    for seed in range(10):
        P, Q = lossy(seed, 2, 2)
        angles = np.linspace(0, np.pi, 10_000)
        best = min(loss(P, Q, np.array([[np.cos(x)], [np.sin(x)]])) for x in angles)
        assert loss(P, Q, orthonormal_basis([(P, Q)], 1)) <= best * (1 + 1e-9)


def test_bases_do_not_depend_on_the_units_of_outputs_or_inputs():
    P, Q = lossy(0, 6, 6)
    scaled = orthonormal_basis([(2.0**40 * P, 2.0**-30 * Q)], 3)
    np.testing.assert_array_equal(scaled, orthonormal_basis([(P, Q)], 3))  # powers of two round nothing


@pytest.mark.parametrize("order", [2, 3, 4])
def test_states_of_low_rank_are_kept_whole_at_every_order_from_the_rank_on(order):
    data = delta_data(groups=1, n=4)
    to_plane = unit(np.random.default_rng(0).standard_normal((2, 4)))
    flat = data._replace(B=unit(data.B[..., :2] @ np.linalg.qr(to_plane.T)[0].T))
    reduction = selective.project(delta_statistics(flat), order, orthogonal=True)
    np.testing.assert_array_equal(reduction.Ti, reduction.T.swapaxes(1, 2))
    assert reduction.predicted_error < 1e-7  # the root of rounding
    again = selective.project(delta_statistics(flat), order, orthogonal=True)
    np.testing.assert_array_equal(again.T, reduction.T)


def test_delta_statistics_refuse_what_does_not_fit():
    data = delta_data()
    statistics, heads = delta_statistics(data), selective.SelectiveStatistics(4, 2)
    with pytest.raises(hr.HankelredError, match="orthogonal=True"):
        selective.project(statistics, 2)
    with pytest.raises(hr.HankelredError, match="delta=True"):
        heads.update_delta(*data)
    with pytest.raises(hr.HankelredError, match="delta=False"):
        statistics.update_heads(data.decay, *data[2:])
    with pytest.raises(hr.HankelredError, match="same sizes and sums"):
        statistics.merge(heads)
    with pytest.raises(hr.HankelredError, match="Drop them"):
        selective.SelectiveStatistics(4, delta=True, exact=True)
    with pytest.raises(hr.HankelredError, match="beta must be"):
        statistics.update_delta(*data._replace(beta=data.beta[:, :, :2]))
    with pytest.raises(hr.StabilityError, match="after their norm"):
        statistics.update_delta(*data._replace(B=9 * data.B))
    with pytest.raises(hr.StabilityError, match="from 0 to 2"):
        statistics.update_delta(*data._replace(beta=-data.beta))
    assert statistics.steps == 40
