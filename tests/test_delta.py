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
from hankelred.testing import delta_layer, delta_layers
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


def by_sevens(length):
    return (slice(i, min(i + 7, length)) for i in range(0, length, 7))


def test_long_sequences_are_carried_from_piece_to_piece(monkeypatch):
    data = delta_data(length=30)
    whole = selective.delta_inputs(data.decay, data.beta, data.B, data.x)
    statistics = delta_statistics(data, data.x)
    for room in ("delta", "feedback"):
        monkeypatch.setattr(f"hankelred.selective.{room}.pieces", by_sevens)
    np.testing.assert_array_equal(selective.delta_inputs(data.decay, data.beta, data.B, data.x), whole)
    assert_same(delta_statistics(data, data.x), statistics)


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


def derivatives(data, group, i, step=1e-4):
    """Return the derivative of the outputs by the square of a scale that a key channel has in keys and queries."""
    sides = []
    for t in (1 + step, 1 - step):
        B, C = data.B.copy(), data.C.copy()
        B[:, :, group, i] *= np.sqrt(t)
        C[:, :, group, i] *= np.sqrt(t)
        sides.append(slow_delta_rule(data._replace(B=B, C=C))[0])
    return (sides[0] - sides[1]) / (2 * step)


@pytest.mark.parametrize(("by_state", "every"), [(False, 1), (True, 1), (False, 3)])
def test_the_error_form_holds_products_of_derivatives_by_squared_scales(by_state, every):
    data = delta_data(n=3, length=12, by_state=by_state)
    gate = np.random.default_rng(1).standard_normal(data.x.shape)
    found = delta_statistics(data, gate, every=every).error_form()
    for group in range(2):
        e = np.array([gate * derivatives(data, group, i) for i in range(3)])[:, :, every - 1 :: every]
        expected = np.einsum("ibthc,jbthc->ij", e, e) / e[0, :, :, 0, 0].size
        np.testing.assert_allclose(found[group], expected, atol=1e-6 * np.abs(expected).max())  # the step, squared


def test_error_forms_of_few_columns_are_those_of_all_where_columns_are_alike(monkeypatch):
    data = delta_data(size=5)
    data = data._replace(x=np.repeat(data.x[..., :1], 5, axis=3))
    whole = delta_statistics(data)
    monkeypatch.setattr("hankelred.selective.feedback.ANSWERS", 40)  # two columns
    assert_same(delta_statistics(data), whole)


def test_few_columns_are_other_ones_in_every_head(monkeypatch):
    data = delta_data(size=4, batch=1)
    data.x[..., 1:] = 0.0
    monkeypatch.setattr("hankelred.selective.feedback.ANSWERS", 1)
    found = delta_statistics(data).error_form()
    assert found[0].any()  # head 0 takes the column that is left
    assert not found[1].any()  # heads 2 and 3 take others


def test_feedback_is_what_keys_read_and_what_states_make_of_each_unit_value():
    data = delta_data(length=7, by_state=True)
    gate = np.random.default_rng(1).standard_normal(data.x.shape)
    K, R, N = delta_statistics(data, gate).feedback()
    _, S = slow_delta_rule(data)
    before = np.concatenate([np.zeros_like(S[:, :1]), S[:, :-1]], axis=1) * data.decay[..., None]
    noise = np.zeros((2, 7, 4, 4, 4))
    for s in range(7):  # the state is linear in the values
        x = np.zeros_like(data.x)
        x[:, s, :, 0] = 1.0
        h = slow_delta_rule(data._replace(x=x))[1][..., 0]
        noise += h[..., None] * h[..., None, :]
    for group in range(2):
        heads = slice(2 * group, 2 * group + 2)
        b2, k, h = data.beta[:, :, heads] ** 2, data.B[:, :, group], before[:, :, heads]
        assert_close(K[group], np.einsum("bth,bti,btj->ij", b2, k, k) / b2.sum())
        assert_close(R[group], np.einsum("bth,bthic,bthjc->ij", b2, h, h) / (3 * b2.sum()))
        weighted = noise[:, :, heads] * np.mean(gate[:, :, heads] ** 2, axis=3)[..., None, None]
        assert_close(N[group], weighted.mean(axis=(0, 1, 2)))


def reduced_slowly(data, T, Ti, renormalise=False):
    """Return the relative change of outputs, from full matrices step by step."""
    B, C = np.einsum("gri,btgi->btgr", Ti, data.B), np.einsum("gir,btgi->btgr", T, data.C)
    if renormalise:
        B = unit(B) * np.linalg.norm(data.B, axis=3, keepdims=True)
        C = unit(C) * np.linalg.norm(data.C, axis=3, keepdims=True)
    y, _ = slow_delta_rule(data)
    return np.linalg.norm(y - slow_delta_rule(data._replace(B=B, C=C))[0]) / np.linalg.norm(y)


@pytest.mark.parametrize("renormalise", [False, True])
def test_measured_errors_are_those_of_full_matrices(renormalise):
    data = delta_data()
    statistics = delta_statistics(data)
    for reduction in (selective.project(statistics, 2, orthogonal=True), selective.select(statistics, 2, fold=False)):
        expected = reduced_slowly(data, reduction.T, reduction.Ti, renormalise)
        np.testing.assert_allclose(reduction.delta_error(*data, renormalise=renormalise), expected, rtol=1e-10)


def test_measured_errors_of_selections_take_the_decays_of_what_is_kept():
    data = delta_data(by_state=True)
    reduction = selective.select(delta_statistics(data), 2, fold=False)
    decay = np.stack([data.decay[:, :, h][:, :, reduction.kept[h // 2]] for h in range(4)], axis=2)
    B, C = (np.take_along_axis(x, reduction.kept[None, None], axis=3) for x in (data.B, data.C))
    y, small = slow_delta_rule(data)[0], slow_delta_rule(DeltaData(decay, data.beta, B, C, data.x))[0]
    np.testing.assert_allclose(reduction.delta_error(*data), np.linalg.norm(y - small) / np.linalg.norm(y), rtol=1e-10)


def random_selections(statistics, order, count=60):
    rng = np.random.default_rng(0)
    for _ in range(count):
        kept = np.stack([np.sort(rng.permutation(statistics.n)[:order]) for _ in range(statistics.groups)])
        yield selective.select(statistics, order, fold=False, kept=kept)


@pytest.mark.parametrize("order", [5, 6, 7, 8])
def test_keys_in_a_subspace_lose_a_fifth_by_a_rotation_of_what_the_best_selection_loses(order):
    data = DeltaData(*delta_layer().data)
    statistics = delta_statistics(data)
    rotated = selective.project(statistics, order, orthogonal=True).delta_error(*data)
    selections = [selective.select(statistics, order, fold=False), *random_selections(statistics, order)]
    assert rotated < min(reduction.delta_error(*data) for reduction in selections) / 5  # a twentieth measured


LAYERS = {
    "plain": {},
    "grouped": {"groups": 2, "heads": 4},
    "learned": {"follow": 0.5},
    "noisy": {"noise": 0.3},
    "flat": {"rank": 16},
    "long keys": {"n": 24, "rank": 8},
}


@pytest.mark.parametrize("order", [5, 6, 8, 12])
@pytest.mark.parametrize("name", LAYERS)
def test_errors_of_rotations_are_predicted_within_a_tenth(name, order):
    data = DeltaData(*delta_layer(**LAYERS[name], length=400).data)
    reduction = selective.project(delta_statistics(data), order, orthogonal=True)
    assert abs(reduction.predicted_error / reduction.delta_error(*data) - 1) < 0.1


def test_predictions_know_what_is_written_amiss():
    """What reads less writes more: at beta up to 2 the read-out is less than three quarters of the error."""
    data = DeltaData(*delta_layer(length=400).data)
    data = data._replace(beta=np.random.default_rng(0).uniform(0, 2, data.beta.shape))
    statistics = delta_statistics(data)
    reduction = selective.project(statistics, 6, orthogonal=True)
    measured = reduction.delta_error(*data)
    (P,), (Q,), E = *statistics.gramians(), np.eye(16) - reduction.T[0] @ reduction.Ti[0]
    power = statistics.output_form().sum() * statistics.steps / statistics.samples
    assert np.sqrt(np.trace(Q @ E @ P @ E) / power) < 0.75 * measured
    assert abs(reduction.predicted_error / measured - 1) < 0.1


@pytest.mark.parametrize("order", [5, 6, 8, 12])
@pytest.mark.parametrize("by_channel", [False, True])
def test_errors_of_selections_are_predicted_within_a_tenth_for_white_values(by_channel, order):
    data = DeltaData(*delta_layer(by_channel=by_channel, length=400).data)
    reduction = selective.select(delta_statistics(data), order, fold=False)
    assert abs(reduction.predicted_error / reduction.delta_error(*data) - 1) < 0.1


def test_errors_of_selections_are_exact_to_first_order():
    ratios = []
    for size in (1.0, 0.3, 0.1, 0.03):
        data = DeltaData(*delta_layer(follow=0.5).data)
        data.B[..., 8:] *= size
        data.C[..., 8:] *= size
        reduction = selective.select(delta_statistics(data), 8, fold=False, kept=np.arange(8))
        ratios.append(reduction.predicted_error / reduction.delta_error(*data))
    errors = np.abs(np.array(ratios) - 1)
    assert errors[-1] < 2e-3  # squares of the scale
    assert np.all(np.diff(errors) < 0)


@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize("renormalise", [False, True])
def test_inert_channels_go_without_error(by_channel, renormalise):
    layer = delta_layer(inert=6, groups=2, by_channel=by_channel)
    data = DeltaData(*layer.data)
    reduction = selective.select(delta_statistics(data), 10, fold=False)
    for kept, inert in zip(reduction.kept, layer.inert, strict=True):
        assert set(kept) | set(inert) == set(range(16))
    assert reduction.predicted_error == 0.0
    assert reduction.delta_error(*data, renormalise=renormalise) < 1e-13


@given(delta_layers())
def test_drawn_layers_are_what_they_say(layer):
    data = DeltaData(*layer.data)
    groups, n, rank = layer.basis.shape
    for group in range(groups):
        W, k = layer.basis[group], data.B[:, :, group]
        np.testing.assert_allclose(W.T @ W, np.eye(rank), atol=1e-12)
        assert not data.B[:, :, group, layer.inert[group]].any()
        assert not data.C[:, :, group, layer.inert[group]].any()
        outside = np.linalg.norm(k - k @ W @ W.T)
        assert outside < np.linalg.norm(k)
    np.testing.assert_allclose(np.linalg.norm(data.B, axis=3), 1.0)
    np.testing.assert_allclose(np.linalg.norm(data.C, axis=3), n**-0.5)


@given(delta_layers())
def test_no_state_is_lost_that_is_written_and_read(layer):
    data, statistics = DeltaData(*layer.data), delta_statistics(DeltaData(*layer.data))
    alive = statistics.n - layer.inert.shape[1]
    assert selective.select(statistics, alive, fold=False).delta_error(*data) < 1e-12
    if data.decay.ndim == 3:
        k, W = data.B.swapaxes(1, 2), layer.basis
        order = W.shape[2] if np.allclose(k @ W @ W.swapaxes(1, 2), k, atol=1e-12) else alive
        turned = selective.project(statistics, order, orthogonal=True)
        assert turned.delta_error(*data) < 1e-12


def test_single_precision_sums_are_right_to_single_precision():
    data = DeltaData(*delta_layer(length=300).data)
    single = delta_statistics(DeltaData(*(x.astype(np.float32) for x in data)))
    double = delta_statistics(data)
    # sums of 16 products, in states that remember some twenty steps
    bound = 16 * np.sqrt(20) * np.finfo(np.float32).eps
    for x, y in zip((single.error_form(), *single.feedback()), (double.error_form(), *double.feedback()), strict=True):
        assert np.linalg.norm(x - y) < bound * np.linalg.norm(y)


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
    by_state = delta_data(by_state=True)
    with pytest.raises(hr.HankelredError, match="selection only"):
        selective.project(statistics, 2, orthogonal=True).delta_error(*by_state)
    with pytest.raises(hr.HankelredError, match="groups and states"):
        selective.select(statistics, 2).delta_error(*delta_data(n=3))
    heads.update_heads(data.decay, *data[2:])
    with pytest.raises(hr.HankelredError, match="delta=True"):
        heads.feedback()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("order", [3, 8, 15])
def test_queries_of_their_own_basis_read_more_and_keys_stay_orthonormal(seed, order):
    rng = np.random.default_rng(seed)
    U, W = (np.linalg.qr(rng.standard_normal((16, 16)))[0] for _ in range(2))
    k, q = (rng.standard_normal((2, 300, 1, 16)) * decay ** np.arange(16) @ X.T for decay, X in ((0.8, U), (0.6, W)))
    k, q = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (k, q))
    heads = rng.uniform(0.9, 1, (2, 300, 2)), rng.uniform(0.2, 0.9, (2, 300, 2))
    data = *heads, k, q, rng.standard_normal((2, 300, 2, 8))
    statistics = selective.SelectiveStatistics(16, delta=True)
    statistics.update_delta(*data)
    one, apart = (selective.project(statistics, order, orthogonal=x) for x in (True, False))
    for Ti, T in ((apart.Ti, one.T), (apart.Ti, apart.T)):
        np.testing.assert_allclose(apart.Ti @ apart.Ti.swapaxes(1, 2), [np.eye(order)], atol=1e-12)
        assert Ti.shape == T.swapaxes(1, 2).shape
    np.testing.assert_allclose(apart.Ti @ apart.T, [np.eye(order)], atol=1e-9)
    assert apart.predicted_error <= one.predicted_error * (1 + 1e-9)
    assert apart.delta_error(*data) < one.delta_error(*data)
