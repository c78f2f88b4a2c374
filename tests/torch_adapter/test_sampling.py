"""Statistics of selective layers: right, gathered by hooks that leave no trace, in constant memory, mergeable."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn

import hankelred as hr
import hankelred_torch as ht
from hankelred_torch.adapters import collect_statistics
from hankelred_torch.sampling import SampleStatistics

from .selective_models import inputs, language_model, mamba, tokens


class TwoInputs(nn.Module):
    """A model called with two tensors, with dropout and batch normalisation, whose modes matter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.dropout = nn.BatchNorm1d(6, dtype=torch.float64), nn.Dropout(0.5)
        self.layer = mamba()
        self.norm.eval()

    def forward(self, u, scale=1.0):
        return self.layer(self.dropout(self.norm((scale * u).flatten(0, 1)).view_as(u)))


def states_of(layer, u):
    """Return the states (batch, length, channels, n), outputs rows and gates of a layer, step by step."""
    u, z = layer.in_proj(u).chunk(2, dim=-1)
    u = nn.functional.silu(layer.conv1d(u.transpose(1, 2))[..., : u.shape[1]]).transpose(1, 2)
    dt, B, C = layer.x_proj(u).split([layer.dt_proj.weight.shape[1], layer.states, layer.states], dim=-1)
    delta = nn.functional.softplus(layer.dt_proj(dt))
    h, states = torch.zeros(len(u), *layer.A_log.shape, dtype=u.dtype), []
    for t in range(u.shape[1]):
        decay = torch.exp(-delta[:, t, :, None] * layer.A_log.exp())
        h = decay * h + (delta * u)[:, t, :, None] * B[:, t, None]
        states.append(h)
    return torch.stack(states, 1), C, nn.functional.silu(z)


@torch.no_grad()
def test_covariances_are_those_of_the_states_the_layer_runs_through():
    layer, batches = mamba(), inputs()
    sums = collect_statistics(layer, batches).layers[""].sums
    states, C, gate = (torch.cat(x).numpy() for x in zip(*(states_of(layer, u) for u in batches), strict=True))
    gated = gate[..., None] * states
    expected = np.einsum("btci,btcj->ij", gated, gated) / gated[..., 0].size
    # steps are computed in single precision, as the layers of all libraries do
    np.testing.assert_allclose(sums.state_covariance()[0], expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
    expected = np.einsum("bti,btj->ij", C, C) / C[..., 0].size
    np.testing.assert_allclose(sums.output_covariance()[0], expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


def test_hsv_are_the_roots_of_the_eigenvalues_of_both_covariances():
    layer, batches = mamba(), inputs()
    sums = collect_statistics(layer, batches).layers[""].sums
    P, Q = sums.gramians()
    expected = np.sort(np.sqrt(np.maximum(np.linalg.eigvals(P[0] @ Q[0]).real, 0)))[::-1]
    hsv = ht.hankel_singular_values(layer, batches)[""]
    np.testing.assert_allclose(hsv, expected, rtol=1e-6, atol=1e-7 * expected[0])


def test_groups_of_heads_have_hsv_of_their_own():
    pytest.importorskip("transformers")
    hsv = ht.hankel_singular_values(language_model("Mamba2"), [tokens()])
    assert {x.shape for x in hsv.values()} == {(2, 16)}


def test_parts_merge_into_the_whole():
    layer, batches = mamba(), inputs(batches=4)
    whole, first, second = (collect_statistics(layer, x) for x in (batches, batches[:1], batches[1:]))
    first.merge(second)
    for name, value in whole.layers[""].to_dict().items():
        np.testing.assert_allclose(first.layers[""].to_dict()[name], value, rtol=1e-12)


def test_parts_of_layers_with_norms_merge_into_the_whole():
    pytest.importorskip("transformers")
    model, batches = language_model("Jamba"), [tokens(seed=seed) for seed in (1, 2)]
    whole, first, second = (collect_statistics(model, x) for x in (batches, batches[:1], batches[1:]))
    first.merge(second)
    kept = np.array([0, 3, 5])
    for name, layer in whole.layers.items():
        assert first.layers[name].gains(kept) == pytest.approx(layer.gains(kept), rel=1e-12)


def test_merged_statistics_stand_for_batches():
    layer, batches = mamba(), inputs(batches=3)
    statistics = collect_statistics(layer, batches[:2])
    statistics.merge(collect_statistics(layer, batches[2:]))
    config = ht.CompressionConfig(order=6)
    assert ht.plan(layer, config, statistics).layers[""].hsv == pytest.approx(
        ht.plan(layer, config, batches).layers[""].hsv
    )


def test_statistics_survive_a_dictionary_and_then_measure_on_a_new_probe():
    layer, batches = mamba(), inputs()
    stored = pickle.loads(pickle.dumps(collect_statistics(layer, batches).to_dict()))
    config = ht.CompressionConfig(order=6, method="rotation")
    expected = ht.plan(layer, config, batches).layers[""].output_error
    assert ht.plan(layer, config, SampleStatistics.from_dict(stored, batches[0])).layers[""].output_error == expected
    blind = ht.plan(layer, config, SampleStatistics.from_dict(stored)).layers[""]
    assert blind.output_error is None
    assert blind.states == 6


def test_statistics_of_another_size_are_refused():
    layer, batches = mamba(), inputs()
    statistics = collect_statistics(layer, batches)
    ht.compress_(layer, ht.CompressionConfig(order=6), batches=statistics)
    with pytest.raises(hr.InputError, match="anew"):
        ht.plan(layer, ht.CompressionConfig(order=4), statistics)


def test_memory_grows_with_neither_length_nor_batches():
    layer = mamba()
    sizes = {
        len(pickle.dumps(collect_statistics(layer, inputs(batches=batches, length=length)).to_dict()))
        for batches, length in ((1, 20), (1, 300), (5, 20))
    }
    assert max(sizes) - min(sizes) < 50  # digits of counts


def test_batches_are_passed_as_the_model_is_called():
    model, u = TwoInputs(), inputs()[0]
    expected = collect_statistics(model, [2.0 * u]).to_dict()["layer"]["hh"]
    found = collect_statistics(model, [{"u": u, "scale": 2.0}]).to_dict()["layer"]["hh"]
    plain = [collect_statistics(model, [x]).to_dict()["layer"]["hh"] for x in (u, (u, "target"), [{"u": u}, None])]
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(plain[0], expected)
    assert all(np.array_equal(x, plain[0]) for x in plain)


def everything_about(model):
    hooks = [(len(x._forward_hooks), len(x._forward_pre_hooks)) for x in model.modules()]
    return hooks, [x.training for x in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002 (the global state is the claim)


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_for_statistics_leaves_no_trace(fails):
    model, u = TwoInputs(), inputs()[0]
    model.train()
    model.norm.eval()
    hooks, modes, tensors = everything_about(model)

    def batches():
        draws()
        yield u
        if fails:
            raise RuntimeError("no more data")

    seeds = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    expected = draws()
    random.setstate(seeds[0])
    np.random.set_state(seeds[1])  # noqa: NPY002
    torch.set_rng_state(seeds[2])
    if fails:
        with pytest.raises(RuntimeError, match="no more data"):
            collect_statistics(model, batches())
    else:
        ht.plan(model, ht.CompressionConfig(order=6), [u])
    assert draws() == expected
    assert everything_about(model)[:2] == (hooks, modes)
    assert all(torch.equal(x, tensors[name]) for name, x in model.state_dict().items())


def test_dropout_takes_no_part():
    model, u = TwoInputs().train(), inputs()[0]
    first, second = (collect_statistics(model, [u]).to_dict()["layer"]["hh"] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_padding_takes_no_part():
    pytest.importorskip("transformers")
    model, ids = language_model("Mamba", use_bias=True), tokens(length=12)
    mask = torch.ones_like(ids)
    mask[:, 8:] = 0
    padded = collect_statistics(model, [{"input_ids": ids, "attention_mask": mask}])
    short = collect_statistics(model, [ids[:, :8]])
    for name, layer in short.layers.items():
        found = padded.layers[name].sums
        np.testing.assert_allclose(
            found.state_covariance() * found.samples,
            layer.sums.state_covariance() * layer.sums.samples,
            rtol=1e-5,
            atol=1e-9,
        )


def test_models_that_were_compiled_are_seen_at_work():
    layer, batches = mamba(), inputs()
    expected = collect_statistics(layer, batches).to_dict()[""]["hh"]
    compiled = torch.compile(layer, backend="eager")
    compiled(batches[0])
    found = collect_statistics(compiled, batches).to_dict()
    np.testing.assert_array_equal(next(iter(found.values()))["hh"], expected)


def test_without_batches_the_error_says_what_to_pass():
    layer = mamba()
    optimizer = torch.optim.SGD(layer.parameters())
    config = ht.CompressionConfig(order=6, end_step=4)
    for ask in (
        lambda: ht.plan(layer, config),
        lambda: ht.hankel_singular_values(layer),
        lambda: ht.compress_(layer, config, optimizer),
        lambda: ht.InTrainingCompressor(layer, optimizer, config),
    ):
        with pytest.raises(hr.InputError, match="sample inputs of the model"):
            ask()


def test_models_without_selective_layers_need_no_batches():
    model = nn.Sequential(ht.layers.LRU(4, 16), mamba(channels=4))
    with pytest.raises(hr.InputError, match="target_modules"):
        ht.plan(model, ht.CompressionConfig(order=8))
    assert ht.plan(model, ht.CompressionConfig(order=8, target_modules=["0"])).sizes == {"0": 8}


def test_a_single_tensor_is_no_iterable_of_batches():
    with pytest.raises(hr.InputError, match="list"):
        ht.plan(mamba(), ht.CompressionConfig(order=6), inputs()[0])


def test_layers_that_are_not_called_are_named():
    model = TwoInputs()
    model.spare = mamba()
    with pytest.raises(hr.InputError, match="spare"):
        ht.plan(model, ht.CompressionConfig(order=6), inputs())
    with pytest.raises(hr.InputError, match=r"called|call"):
        collect_statistics(mamba(), [])


def test_diverged_activations_are_refused():
    layer = mamba()
    with torch.no_grad():
        layer.x_proj.weight[3, 0] = np.nan
    with pytest.raises(hr.InputError, match="finite"):
        collect_statistics(layer, inputs())
