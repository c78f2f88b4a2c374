"""Running statistics of selective layers: against one channel at a time, and independent of how data are cut."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import hankelred as hr
from hankelred import selective
from hankelred.selective import states as room
from tests.reference_selective import HeadsLayer, MambaLayer, states, steps_of_channel

ROUNDING = 1e-12  # relative to the largest entry: sums of a thousand products
NAMES = ("state_covariance", "output_covariance", "output_form")


def mamba_data(n=3, channels=6, batch=2, length=40, seed=0):
    return MambaLayer(n, channels, seed=seed).data(batch, length, seed)


def mamba_statistics(data, gate=None, **options):
    statistics = selective.SelectiveStatistics(data.A.shape[1], **options)
    statistics.update_mamba(*data, gate)
    return statistics


def covariances(h, c, gate=1.0):
    """Return the three matrices of one channel from its states (batch, length, n)."""
    h = gate * h
    count = h.shape[0] * h.shape[1]
    h, c = h.reshape(count, -1), np.broadcast_to(c, h.shape).reshape(count, -1)
    return h.T @ h.conj() / count, c.conj().T @ c / count, (c * h).conj().T @ (c * h) / count


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING * np.abs(expected).max())


def assert_same(one, other):
    """Claim that two objects hold the same counts, and the same sums up to rounding."""
    one, other = one.to_dict(), other.to_dict()
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert_close(value, other[name])


@pytest.mark.parametrize("gated", [False, True])
def test_mamba_statistics_are_those_of_its_channels_one_by_one(gated):
    data = mamba_data()
    gate = np.random.default_rng(0).standard_normal(data.u.shape) if gated else None
    pooled, apart = mamba_statistics(data, gate), mamba_statistics(data, gate, groups=6)
    parts = []
    for k in range(6):
        a, b, c = steps_of_channel(data, k)
        parts.append(covariances(states(a, b), c, gate[:, :, k, None] if gated else 1.0))
    for name, expected in zip(NAMES, map(np.array, zip(*parts, strict=True)), strict=True):
        assert_close(getattr(apart, name)(), expected)
        whole = expected.sum(axis=0) if name == "output_form" else expected.mean(axis=0)
        assert_close(getattr(pooled, name)()[0], whole)


def test_gramians_of_mamba_channels_are_those_of_their_steps():
    data = mamba_data()
    apart = mamba_statistics(data, groups=6, moments=True, exact=True)
    for method in ("exact", "second_moment"):
        P, Q = apart.gramians(method)
        for k in range(6):
            for found, expected in zip(
                (P[k], Q[k]), selective.averaged_gramians(*steps_of_channel(data, k), method=method), strict=True
            ):
                np.testing.assert_allclose(found, expected, rtol=1e-10)  # 1 - E[a a] cancels three digits


def test_mean_dynamics_take_increments_without_the_input():
    data = mamba_data()
    P, Q = mamba_statistics(data, groups=6).gramians("mean")
    a, _, c = steps_of_channel(data, 2)
    expected = selective.averaged_gramians(a, data.delta[:, :, 2, None] * data.B, c, "mean")
    np.testing.assert_allclose([P[2], Q[2]], expected, rtol=1e-10)


@pytest.mark.parametrize("options", [{}, {"moments": True, "exact": True}, {"every": 4}], ids=str)
def test_steps_of_a_channel_given_one_by_one_are_those_of_the_layer(options):
    data = mamba_data(channels=1)
    by_steps = selective.SelectiveStatistics(3, **options)
    by_steps.update(*steps_of_channel(data, 0))
    layer, given = mamba_statistics(data, **options).to_dict(), by_steps.to_dict()
    del layer["B"], given["B"]  # of one channel, the increments themselves
    for name, value in layer.items():
        assert_close(value, given[name])


def test_complex_steps_have_hermitian_statistics():
    rng = np.random.default_rng(0)
    a, b, c = rng.uniform(-0.6, 0.6, (3, 2, 30, 4)) + 1j * rng.uniform(-0.6, 0.6, (3, 2, 30, 4))
    statistics = selective.SelectiveStatistics(4)
    statistics.update(a, b, c)
    for name, expected in zip(NAMES, covariances(states(a, b), c), strict=True):
        assert_close(getattr(statistics, name)()[0], expected)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("by_state", [False, True])
def test_statistics_of_heads_are_those_of_their_channels_one_by_one(by_state, every):
    layer = HeadsLayer(n=3, heads=4, head_dim=2)
    data, other = layer.data(2, 20), layer.data(2, 20, seed=1)
    B, C = (np.concatenate([x, y], axis=2) for x, y in zip(data[1:3], other[1:3], strict=True))  # two groups
    decay = data.decay[..., None] ** np.array([1.0, 0.5, 2.0]) if by_state else data.decay
    statistics = selective.SelectiveStatistics(3, groups=2, every=every)
    statistics.update_heads(decay, B, C, data.x)
    for group in range(2):
        parts = []
        for head, channel in np.ndindex(2, 2):
            k = 2 * group + head
            a = decay[:, :, k] if by_state else np.repeat(decay[:, :, k, None], 3, axis=2)
            h = states(a, data.x[:, :, k, channel, None] * B[:, :, group])
            parts.append(covariances(h[:, every - 1 :: every], C[:, every - 1 :: every, group]))
        for name, expected in zip(NAMES, map(np.array, zip(*parts, strict=True)), strict=True):
            whole = expected.sum(axis=0) if name == "output_form" else expected.mean(axis=0)
            assert_close(getattr(statistics, name)()[group], whole)


@pytest.mark.parametrize("options", [{"moments": True}, {"every": 3}, {"groups": 3}], ids=str)
def test_pieces_of_sequences_and_blocks_of_channels_join(monkeypatch, options):
    data = mamba_data()
    gate = np.random.default_rng(0).standard_normal(data.u.shape)
    whole = mamba_statistics(data, gate, **options)
    monkeypatch.setattr(room, "PIECE_STATES", 45)  # 5 steps of 3 states of 3 channels
    monkeypatch.setattr(room, "WIDTH", 3)
    assert_same(mamba_statistics(data, gate, **options), whole)


def test_blocks_of_channels_that_cut_a_head_join(monkeypatch):
    data = HeadsLayer(n=3, heads=3, head_dim=4).data(2, 20)
    whole, parts = selective.SelectiveStatistics(3), selective.SelectiveStatistics(3)
    whole.update_heads(*data)
    monkeypatch.setattr(room, "WIDTH", 5)
    parts.update_heads(*data)
    assert_same(parts, whole)


@pytest.mark.parametrize("options", [{}, {"moments": True, "exact": True, "groups": 3}, {"every": 3}], ids=str)
def test_merged_statistics_are_those_of_one_pass(options):
    first, second = mamba_data(seed=0), mamba_data(seed=0, length=30)
    whole, left, right = (selective.SelectiveStatistics(3, **options) for _ in range(3))
    for part, data in ((left, first), (right, second)):
        part.update_mamba(*data)
        whole.update_mamba(*data)
    left.merge(right)
    assert_same(left, whole)


def test_ranks_may_add_the_arrays_themselves():
    parts = [mamba_statistics(mamba_data(length=length), moments=True) for length in (30, 40)]
    one, other = (part.to_dict() for part in parts)
    fixed = {name: one[name] for name in ("n", "groups", "every")}
    added = selective.SelectiveStatistics.from_dict({**{name: one[name] + other[name] for name in one}, **fixed})
    parts[0].merge(parts[1])
    assert_same(added, parts[0])


def test_stored_statistics_come_back_and_are_no_view():
    statistics = mamba_statistics(mamba_data(), moments=True, exact=True)
    stored = statistics.to_dict()
    restored = selective.SelectiveStatistics.from_dict(stored)
    statistics.update_mamba(*mamba_data())
    before = {name: np.copy(value) for name, value in stored.items()}
    for name, value in restored.to_dict().items():
        np.testing.assert_array_equal(value, before[name])
    restored.update_mamba(*mamba_data())
    assert all(np.array_equal(value, before[name]) for name, value in stored.items())


def test_pooled_groups_are_one_group():
    data = mamba_data()
    apart = mamba_statistics(data, groups=6, moments=True, exact=True)
    assert_same(apart.pooled(), mamba_statistics(data, moments=True, exact=True))


def test_statistics_take_the_same_memory_after_any_number_of_batches_of_any_length():
    def size(statistics):
        return sum(np.asarray(x).nbytes for x in statistics.to_dict().values())

    empty = selective.SelectiveStatistics(3, moments=True)
    seen = selective.SelectiveStatistics(3, moments=True)
    for length in (10, 100, 1000):
        seen.update_mamba(*mamba_data(length=length))
    assert size(seen) == size(empty)


def test_an_update_makes_no_array_of_all_states_and_channels():
    data = mamba_data(n=64, channels=16, batch=1, length=4000)
    mamba_statistics(data)
    tracemalloc.start()
    mamba_statistics(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.25 * data.u.nbytes * 64


def test_single_precision_data_have_the_statistics_of_double_ones_to_single_precision():
    data = mamba_data()
    single = mamba_statistics(type(data)(*(x.astype(np.float32) for x in data)), moments=True).to_dict()
    for name, value in mamba_statistics(data, moments=True).to_dict().items():
        assert np.asarray(single[name]).dtype == np.asarray(value).dtype
        np.testing.assert_allclose(single[name], value, rtol=0, atol=1e-5 * np.abs(value).max())


def test_outputs_that_gates_close_do_not_count():
    data = mamba_data(length=40)
    gate = np.ones(data.u.shape)
    gate[:, 20:] = 0.0
    short = type(data)(*(x if x is data.A else x[:, :20] for x in data))
    np.testing.assert_allclose(
        mamba_statistics(data, gate).output_form(), mamba_statistics(short).output_form() / 2, rtol=1e-12
    )


def test_a_refused_update_changes_nothing():
    statistics = mamba_statistics(mamba_data())
    before = statistics.to_dict()
    data = mamba_data()
    for wrong in (
        data._replace(u=np.where(data.u == data.u[0, 0, 0], np.nan, data.u)),
        data._replace(B=data.B[:, :-1]),
        data._replace(A=-data.A),
        data._replace(C=data.C[..., :2], B=data.B[..., :2], A=data.A[:, :2]),
        data._replace(u=data.u + 0j),
    ):
        with pytest.raises(hr.HankelredError):
            statistics.update_mamba(*wrong)
    with pytest.raises(hr.HankelredError, match="gate must"):
        statistics.update_mamba(*data, gate=np.ones(3))
    with pytest.raises(hr.HankelredError, match="Pass exp"):
        statistics.update_heads(
            2 * np.ones((1, 2, 1)), np.ones((1, 2, 1, 3)), np.ones((1, 2, 1, 3)), np.ones((1, 2, 1, 1))
        )
    after = statistics.to_dict()
    assert all(np.array_equal(value, after[name]) for name, value in before.items())


def test_what_was_not_summed_is_named():
    empty = selective.SelectiveStatistics(3)
    with pytest.raises(hr.HankelredError, match="update methods"):
        empty.gramians()
    seen = mamba_statistics(mamba_data())
    for method, flag in (("exact", "exact=True"), ("second_moment", "moments=True"), ("median", "method must")):
        with pytest.raises(hr.HankelredError, match=flag):
            seen.gramians(method)
    with pytest.raises(hr.HankelredError, match="same sizes"):
        seen.merge(selective.SelectiveStatistics(3, every=2))
    with pytest.raises(hr.HankelredError, match="to_dict"):
        selective.SelectiveStatistics.from_dict({"n": 3})
    with pytest.raises(hr.HankelredError, match="every"):
        selective.SelectiveStatistics(3, exact=True, every=2)


def test_hsv_of_covariances_are_the_roots_of_the_eigenvalues_of_their_product():
    statistics = mamba_statistics(mamba_data())
    P, Q = statistics.gramians()
    expected = np.sqrt(np.sort(np.linalg.eigvals(P[0] @ Q[0]).real)[::-1])
    np.testing.assert_allclose(statistics.hankel_singular_values()[0], expected, rtol=1e-8)


def test_hsv_do_not_depend_on_the_units_of_the_states():
    data, units = mamba_data(), np.array([1e-9, 1.0, 1e9])
    scaled = data._replace(B=data.B * units, C=data.C / units)
    one, other = (mamba_statistics(x).hankel_singular_values() for x in (data, scaled))
    np.testing.assert_allclose(other, one, rtol=1e-9)


@pytest.mark.parametrize(("name", "value"), [("n", 2**70), ("groups", np.uint8(255))])
def test_stored_sizes_that_the_sums_have_not_are_refused_by_name(name, value):
    state = selective.SelectiveStatistics(3).to_dict() | {name: value}
    with pytest.raises(hr.InputError, match=f"{name}={value}"):
        selective.SelectiveStatistics.from_dict(state)


def test_sums_beyond_all_memory_are_refused():
    with pytest.raises(hr.InputError, match="n and groups"):
        selective.SelectiveStatistics(2**70)
