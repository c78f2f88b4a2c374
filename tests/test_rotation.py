"""Changes of basis of selective layers: rotations that keep rates real, projections whose error is known."""

from __future__ import annotations

import numpy as np
import pytest

import hankelred as hr
from hankelred import selective
from tests.reference_selective import (
    HeadsLayer,
    MambaLayer,
    balanced_bases,
    projected_outputs,
    states,
    steps_of_channel,
)


def statistics_of(data, gate=None, **options):
    statistics = selective.SelectiveStatistics(data.A.shape[1], **options)
    statistics.update_mamba(*data, gate)
    return statistics


def heads_statistics(data, **options):
    statistics = selective.SelectiveStatistics(data.B.shape[3], **options)
    statistics.update_heads(*data)
    return statistics


@pytest.mark.parametrize("method", ["covariance", "exact", "second_moment", "mean"])
@pytest.mark.parametrize("order", [1, 5, 12])
def test_rotated_rates_stay_within_those_of_their_channel(method, order):
    layer = MambaLayer(12, 16, spread=0.5)
    reduction = selective.rotate(
        statistics_of(layer.data(2, 60), moments=True, exact=True), layer.A, order, method=method
    )
    np.testing.assert_allclose(reduction.Ti[0] @ reduction.T[0], np.eye(order), atol=1e-12)
    slack = 1 + 1e-12
    assert np.all(reduction.rates <= layer.A.max(axis=1, keepdims=True) / slack)
    assert np.all(reduction.rates >= layer.A.min(axis=1, keepdims=True) * slack)


def test_scaled_states_have_one_diagonal_in_both_gramians():
    layer = MambaLayer(6, 16)
    statistics = statistics_of(layer.data(2, 60))
    reduction = selective.rotate(statistics, layer.A, 6)
    T, Ti = reduction.T[0], reduction.Ti[0]
    d2 = np.diag(T @ T.T)  # T = diag(d) V with orthogonal V
    np.testing.assert_allclose(T @ T.T, np.diag(d2), atol=1e-12 * d2.max())
    np.testing.assert_allclose(Ti.T @ Ti, np.diag(1 / d2), atol=1e-12 / d2.min())
    P, Q = (x[0] for x in statistics.gramians())
    np.testing.assert_allclose(np.diag(P) / d2, np.diag(Q) * d2, rtol=1e-12)


def test_units_of_the_states_do_not_matter():
    layer = MambaLayer(8, 16, spread=0.2)
    data = layer.data(2, 60)
    units = 10 ** np.linspace(-2, 2, 8)
    scaled = data._replace(B=data.B * units, C=data.C / units)
    one, other = (selective.rotate(statistics_of(x), layer.A, 3) for x in (data, scaled))
    np.testing.assert_allclose(other.rates, one.rates, rtol=1e-9)
    np.testing.assert_allclose(other.mamba_error(*scaled), one.mamba_error(*data), rtol=1e-9)


def test_a_full_rotation_is_exact_where_channels_differ_by_a_factor():
    layer = MambaLayer(6, 16, spread=0.0)
    data = layer.data(2, 60)
    data = data._replace(A=data.A * np.linspace(0.5, 2.0, 16)[:, None])
    reduction = selective.rotate(statistics_of(data), data.A, 6)
    assert reduction.neglected < 1e-7  # a difference of squares
    assert reduction.spread > 0.3
    assert reduction.mamba_error(*data) < 1e-12


def test_neglected_is_the_share_of_rates_off_the_diagonals():
    layer = MambaLayer(6, 16, spread=0.3)
    reduction = selective.rotate(statistics_of(layer.data(2, 60)), layer.A, 4)
    T, Ti = reduction.T[0], reduction.Ti[0]
    rotated = np.stack([Ti @ np.diag(row) @ T for row in layer.A])
    np.testing.assert_allclose(np.diagonal(rotated, axis1=1, axis2=2), reduction.rates, rtol=1e-10)
    rest = rotated * (1 - np.eye(4))
    np.testing.assert_allclose(reduction.neglected, np.linalg.norm(rest) / np.linalg.norm(rotated), rtol=1e-8)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6, 1e9])
def test_states_without_input_or_output_are_left_out_without_error_in_any_unit(unit):
    """A state that is never reached had a scale of its own: read by an output in small units, it brought rounding."""
    layer = MambaLayer(6, 16, spread=0.0)
    data = layer.data(2, 60)
    B, C = data.B.copy(), data.C.copy()
    B[..., [1, 4]], C[..., 2] = 0.0, 0.0
    B[..., 2] *= unit
    C[..., 4] *= unit
    data = data._replace(B=B, C=C)
    reduction = selective.rotate(statistics_of(data), data.A, 3)
    assert reduction.mamba_error(*data) < 1e-12
    everything = selective.rotate(statistics_of(data), data.A, 6)
    assert everything.mamba_error(*data) < 1e-12


def test_spread_is_that_of_the_rates_over_channels_and_can_be_refused():
    layer = MambaLayer(8, 200, spread=0.1)
    statistics = statistics_of(layer.data(1, 20))
    spread = selective.rotate(statistics, layer.A, 3).spread
    assert 0.09 < spread < 0.11
    with pytest.raises(hr.HankelredError, match="Select states instead"):
        selective.rotate(statistics, layer.A, 3, max_spread=0.05)


def test_gates_turn_the_rotation_towards_what_they_let_through():
    layer = MambaLayer(8, 16)
    data = layer.data(2, 100)
    gate = np.zeros(data.u.shape)
    gate[:, :, :2] = 1.0
    gated = selective.rotate(statistics_of(data, gate), layer.A, 2)
    plain = selective.rotate(statistics_of(data), layer.A, 2)
    assert gated.mamba_error(*data, gate) < plain.mamba_error(*data, gate)


def output_error(data, bases, channels):
    """Return the error of projected channels, relative to their outputs; bases maps a channel to T, Ti."""
    error = power = 0.0
    for k in channels:
        a, b, c = steps_of_channel(data, k)
        y = np.sum(c * states(a, b), axis=2)
        error += np.sum((y - projected_outputs(a, b, c, *bases(k))) ** 2)
        power += np.sum(y**2)
    return np.sqrt(error / power)


def test_other_covariances_have_a_third_of_the_error_of_mean_dynamics():
    """Balanced truncation of 16 states to 4 with bases from one batch, measured on another; root mean squares."""
    squares = dict.fromkeys(("mean", "second_moment", "covariance"), 0.0)
    for seed in range(4):
        layer = MambaLayer(16, 16, seed=seed)
        statistics, fresh = statistics_of(layer.data(), moments=True), layer.data(seed=1)
        for method in squares:
            P, Q = statistics.gramians(method)
            bases = balanced_bases(P[0], Q[0], 4)
            squares[method] += output_error(fresh, lambda k, bases=bases: bases, range(0, 16, 4)) ** 2
    assert squares["second_moment"] < squares["mean"] / 3**2
    assert squares["covariance"] < squares["mean"] / 3**2


def test_second_moments_of_each_channel_have_a_third_of_the_error_of_its_mean_dynamics():
    squares = dict.fromkeys(("mean", "second_moment"), 0.0)
    for seed in range(4):
        layer = MambaLayer(16, 16, seed=seed)
        apart, fresh = statistics_of(layer.data(), groups=16, moments=True), layer.data(seed=1)
        for method in squares:
            P, Q = apart.gramians(method)
            error = output_error(fresh, lambda k, P=P, Q=Q: balanced_bases(P[k], Q[k], 4), range(0, 16, 4))
            squares[method] += error**2
    assert squares["second_moment"] < squares["mean"] / 3**2


def test_rotations_beat_selections_on_fresh_data():
    rotated, selected = [], []
    for seed in range(4):
        layer = MambaLayer(16, 16, seed=seed)
        statistics, fresh = statistics_of(layer.data()), layer.data(seed=1)
        rotated.append(selective.rotate(statistics, layer.A, 4).mamba_error(*fresh))
        selected.append(selective.select(statistics, 4, fold=False).mamba_error(*fresh))
    assert np.sqrt(np.mean(np.square(rotated))) < 0.8 * np.sqrt(np.mean(np.square(selected)))  # 0.68 measured


def test_a_projection_of_heads_errs_by_what_it_leaves_out_at_each_step():
    data = HeadsLayer(n=6, heads=2, head_dim=3).data(2, 30)
    reduction = selective.project(heads_statistics(data), 3)
    E = np.eye(6) - reduction.T[0] @ reduction.Ti[0]
    error = power = 0.0
    for head, channel in np.ndindex(2, 3):
        a = np.repeat(data.decay[:, :, head, None], 6, axis=2)
        h = states(a, data.x[:, :, head, channel, None] * data.B[:, :, 0])
        error += np.sum(np.einsum("bti,ij,btj->bt", data.C[:, :, 0], E, h) ** 2)
        power += np.sum((data.C[:, :, 0] * h).sum(axis=2) ** 2)
    np.testing.assert_allclose(reduction.heads_error(*data), np.sqrt(error / power), rtol=1e-9)


def test_the_predicted_error_of_a_projection_is_the_tail_of_squared_hsv():
    statistics = heads_statistics(HeadsLayer(n=8).data())
    reduction = selective.project(statistics, 3)
    power = statistics.output_form().sum() * statistics.steps / statistics.samples
    np.testing.assert_allclose(reduction.predicted_error**2 * power, np.sum(reduction.hsv[0, 3:] ** 2), rtol=1e-9)


@pytest.mark.parametrize("order", [2, 4, 8])
def test_the_tail_of_squared_hsv_is_the_error_within_a_tenth_for_independent_outputs(order):
    layer = HeadsLayer(n=16)
    reduction = selective.project(heads_statistics(layer.data(independent=True, batch=32)), order)
    measured = reduction.heads_error(*layer.data(independent=True, batch=32, seed=1))
    assert abs(measured**2 / reduction.predicted_error**2 - 1) < 0.1


def test_bases_of_groups_are_their_own():
    layer = HeadsLayer(n=5, heads=4, head_dim=2)
    one, other = layer.data(2, 50), layer.data(2, 50, seed=1)
    B, C = (np.concatenate([x, y], axis=2) for x, y in zip(one[1:3], other[1:3], strict=True))
    both = one._replace(B=B, C=C)
    reduction = selective.project(heads_statistics(both, groups=2), 2)
    half = one._replace(decay=one.decay[:, :, :2], x=one.x[:, :, :2])
    alone = selective.project(heads_statistics(half), 2)
    np.testing.assert_allclose(reduction.T[0] @ reduction.Ti[0], alone.T[0] @ alone.Ti[0], atol=1e-9)
    assert reduction.heads_error(*both) < 0.5


def test_orders_past_the_rank_name_the_rank():
    data = HeadsLayer(n=5).data(2, 50)
    B = data.B.copy()
    B[..., 3:] = 0.0
    with pytest.raises(hr.OrderError, match="at most 3"):
        selective.project(heads_statistics(data._replace(B=B)), 4)


def test_reductions_refuse_layers_they_do_not_fit():
    layer = MambaLayer(5, 4)
    data = layer.data(1, 10)
    statistics = statistics_of(data)
    rotation = selective.rotate(statistics, layer.A, 2)
    heads = HeadsLayer(n=5).data(1, 20)
    projection = selective.project(heads_statistics(heads), 2)
    with pytest.raises(hr.HankelredError, match="pooled"):
        selective.rotate(statistics_of(data, groups=4), layer.A, 2)
    with pytest.raises(hr.HankelredError, match="A must be"):
        selective.rotate(statistics, layer.A[:, :3], 2)
    with pytest.raises(hr.HankelredError, match="channels that were rotated"):
        rotation.mamba_error(data.delta[..., :2], layer.A[:2], data.B, data.C, data.u[..., :2])
    with pytest.raises(hr.HankelredError, match="heads_error"):
        projection.mamba_error(*data)
    with pytest.raises(hr.HankelredError, match="selection only"):
        projection.heads_error(np.repeat(heads.decay[..., None], 5, axis=3), *heads[1:])
    for order in (0, 6, 2.0):
        with pytest.raises(hr.OrderError, match="order must be"):
            selective.rotate(statistics, layer.A, order)
