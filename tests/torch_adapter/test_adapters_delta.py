"""Gated delta rules lose channels of their keys by selection, and by rotation where they have key maps."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import hankelred as hr
import hankelred_torch as ht
from hankelred_torch.adapters.add_maps import mapped_layers
from hankelred_torch.exchange import holding

from .delta_layers import ChannelDeltaNet, DeltaNet
from .selective_models import DELTA, LIVE, MAMBA2, TIED, language_model, make_inert, tokens

pytest.importorskip("transformers")

TO_EIGHT = ht.CompressionConfig(order=8)
EPS = torch.finfo(torch.float32).eps


def outputs(model, ids):
    with torch.no_grad():
        return model(ids)[0]


def first_layer(model):
    return next(iter(ht.find_ssm_layers(model).items()))


def own_error(model, ids):
    """Return what the outputs change when channels of the keys change places, which is rounding alone."""
    before, found = outputs(model, ids), EPS * outputs(model, ids).abs().max().item()
    adapter = first_layer(model)[1]
    for seed in range(3):
        places = np.random.default_rng(seed).permutation(adapter.states)
        moved = {
            name: adapter.tensor(name).index_select(axis, torch.as_tensor(adapter.entries(name, places)))
            for name, axis in adapter.state_axes.items()
        }
        with holding(adapter.layer, moved):
            found = max(found, (outputs(model, ids) - before).abs().max().item())
    return found


@pytest.mark.parametrize("name", DELTA | TIED)
def test_layers_compute_what_their_adapters_read(name):
    assert 0 < ht.adapters.check(first_layer(language_model(name))[1].layer) < 1e-5


@pytest.mark.parametrize("name", DELTA | TIED)
def test_inert_channels_go_without_a_trace(name):
    model, ids = make_inert(language_model(name)), tokens(length=20)
    before, most = outputs(model, ids), 4 * own_error(model, ids)
    report = ht.compress_(model, TO_EIGHT, batches=[ids])
    assert set(ht.state_sizes(model).values()) == {8}
    assert (outputs(model, ids) - before).abs().max() < most
    for layer in report.layers.values():
        np.testing.assert_array_equal(layer.reduction.core.kept, [LIVE] * len(layer.reduction.core.kept))


@pytest.mark.parametrize("name", [x for x in DELTA | TIED if x != "Glm5NextText"])
def test_generation_with_a_cache_is_that_without(name):
    model, ids = language_model(name), tokens(length=9)
    ht.compress_(model, TO_EIGHT, batches=[ids])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached, anew = (model.generate(ids, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, anew)


@pytest.mark.parametrize("name", DELTA | TIED)
def test_every_record_of_a_size_is_that_of_a_model_made_so_small(name):
    options = {"linear_key_head_dim": 8} if name in DELTA else {"linear_head_dim": 8, "head_dim": 8}
    model, small = language_model(name), language_model(name, **options)
    ht.compress_(model, TO_EIGHT, batches=[tokens()])
    adapter, twin = first_layer(model)[1], first_layer(small)[1]
    for path in adapter.sizes(8):
        (module, attribute), (other, _) = adapter.owner(path), twin.owner(path)
        if isinstance(getattr(module, attribute), int):
            assert getattr(module, attribute) == getattr(other, attribute), path
    shapes, wanted = ({x: tuple(y.shape) for x, y in z.layer.state_dict().items()} for z in (adapter, twin))
    bottleneck = {x for x in shapes if "f_a_proj" in x or "g_a_proj" in x or "f_b_proj" in x or "g_b_proj" in x}
    assert {x: shapes[x] for x in shapes.keys() - bottleneck} == {x: wanted[x] for x in wanted.keys() - bottleneck}


@pytest.mark.parametrize("name", DELTA | TIED)
def test_models_are_saved_and_loaded_exactly(name, tmp_path):
    model, ids = language_model(name), tokens()
    ht.compress_(model, ht.CompressionConfig(order=11, round_to=1), batches=[ids])
    fresh = language_model(name, seed=1)
    ht.resize_(fresh, model.state_dict())
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(outputs(fresh, ids), outputs(model, ids))
    if name != "Glm5NextText":
        ht.save_pretrained(model, tmp_path)
        assert torch.equal(outputs(ht.from_pretrained(tmp_path).eval(), ids), outputs(model, ids))


@pytest.mark.parametrize("name", DELTA | TIED)
def test_a_padded_model_computes_the_same(name):
    model, ids = language_model(name), tokens()
    ht.compress_(model, TO_EIGHT, batches=[ids])
    padded = ht.export_padded(model, 16)
    assert set(ht.state_sizes(padded).values()) == {16}
    wanted = outputs(model, ids)
    assert (outputs(padded, ids) - wanted).abs().max() < 30 * EPS * wanted.abs().max()


@pytest.mark.parametrize("name", ["Qwen3_5Text", "Qwen3Next", "KimiLinear"])
def test_padding_tells_the_statistics_nothing(name):
    model = language_model(name)
    mask = (torch.arange(24) >= 12).long()[None]
    adapter = first_layer(model)[1]
    u = torch.randn(1, 12, adapter.width)
    alone, beside = adapter.statistics(), adapter.statistics()
    adapter.observe(alone, u, None, None)
    adapter.observe(beside, torch.cat([torch.randn_like(u), u], dim=1), mask, None)
    np.testing.assert_allclose(beside.sums.output_form() * 24, alone.sums.output_form() * 12, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(beside.values, alone.values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["Qwen3_5Text", "OlmoHybrid", "KimiLinear"])
def test_selected_channels_make_less_error_than_channels_drawn_by_lot(name):
    model, ids, rng = language_model(name), tokens(batch=4, length=24), np.random.default_rng(0)
    path, adapter = first_layer(model)
    chosen = ht.plan(model, TO_EIGHT, [ids]).layers[path]
    maps = []
    for _ in range(12):
        kept = np.stack([np.sort(rng.choice(16, 8, replace=False)) for _ in range(adapter.groups)])
        Ti = np.eye(16)[kept]
        core = replace(chosen.reduction.core, T=Ti.transpose(0, 2, 1), Ti=Ti, kept=kept)
        values = None if chosen.reduction.values is None else np.sort(rng.choice(16, 8, replace=False))
        maps.append(replace(chosen.reduction, core=core, values=values))
    written = [partial(adapter.rewrite, adapter.values(), x) for x in maps]
    errors = ht.sampling.output_errors(model, {path: (adapter, written)}, ids)[path]
    assert chosen.output_error < np.median(errors)


def test_a_compressor_shrinks_a_delta_net_while_it_trains():
    model, ids = language_model("Qwen3_5Text"), tokens(batch=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    compressor = ht.InTrainingCompressor(
        model,
        optimizer,
        ht.CompressionConfig(fraction=0.5),
        ht.Schedule(total_steps=10, start_step=2, end_step=4, attempts=1),
    )
    for _ in range(10):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        compressor.step()
    assert set(ht.state_sizes(model).values()) == {8}


@pytest.mark.parametrize("name", TIED)
def test_decays_in_every_channel_admit_selection_only(name):
    model = language_model(name)
    assert ht.add_state_maps_(model) == ()
    with pytest.raises(hr.InputError, match="admit selection only"):
        ht.add_state_maps_(model, first_layer(model)[0])
    with pytest.raises(hr.InputError, match="rotation"):
        ht.plan(model, ht.CompressionConfig(order=8, method="rotation"), [tokens()])


@pytest.mark.parametrize("name", DELTA | MAMBA2)
def test_maps_change_nothing_until_they_are_cut(name):
    model, ids = language_model(name), tokens(length=20)
    before, sizes = outputs(model, ids), ht.state_sizes(model)
    assert ht.add_state_maps_(model) == tuple(sizes)
    assert ht.state_sizes(model) == sizes
    assert (outputs(model, ids) - before).abs().max() < 30 * EPS * before.abs().max()
    assert ht.adapters.check(first_layer(model)[1].layer) < 1e-5
    assert ht.add_state_maps_(model) == ()


@pytest.mark.parametrize("name", DELTA | MAMBA2)
def test_keys_in_a_subspace_are_rotated_into_it_without_a_trace(name):
    model, ids = language_model(name), tokens(length=20)
    ht.add_state_maps_(model)
    for adapter in ht.find_ssm_layers(model).values():
        for map_name in adapter.layer.map_names:
            rows = torch.linalg.qr(torch.randn(adapter.groups, 16, 16, dtype=torch.float64))[0]
            projected = rows[:, :, :6] @ rows[:, :, :6].mT  # of rank 6
            adapter.tensor(map_name).copy_(projected.flatten(0, 1))
    before = outputs(model, ids)
    report = ht.compress_(model, ht.CompressionConfig(order=8, method="rotation"), batches=[ids])
    assert set(ht.state_sizes(model).values()) == {8}
    assert all(layer.output_error < 1e-5 for layer in report.layers.values())
    assert (outputs(model, ids) - before).abs().max() < 1e-4 * before.abs().max()


def test_a_rotation_errs_less_than_a_selection_and_is_taken():
    model, ids = language_model("Qwen3_5Text"), tokens(batch=4, length=30)
    ht.add_state_maps_(model)
    (rotated,), (selected,), (taken,) = (
        ht.plan(model, ht.CompressionConfig(order=8, method=x), [ids]).layers.values()
        for x in ("rotation", "selection", "auto")
    )
    assert rotated.output_error < selected.output_error
    assert taken.output_error == rotated.output_error
    keys = taken.reduction.core.Ti
    np.testing.assert_allclose(keys @ keys.transpose(0, 2, 1), np.broadcast_to(np.eye(8), (2, 8, 8)), atol=1e-12)


@pytest.mark.parametrize("name", ["Qwen3_5Text", "Mamba2"])
def test_mapped_layers_are_copied_pickled_saved_and_generate(name, tmp_path):
    model, ids = language_model(name), tokens(length=9)
    ht.add_state_maps_(model)
    ht.compress_(model, ht.CompressionConfig(order=8, method="rotation"), batches=[ids])
    wanted = outputs(model, ids)
    ht.save_pretrained(model, tmp_path)
    fresh = language_model(name, seed=1)
    ht.resize_(fresh, model.state_dict())
    fresh.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), ht.from_pretrained(tmp_path).eval(), fresh):
        assert mapped_layers(other) == mapped_layers(model)
        assert torch.equal(outputs(other, ids), wanted)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached, anew = (model.generate(ids, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, anew)


@pytest.mark.parametrize("name", ["Qwen3_5Text", "Mamba2"])
def test_mapped_layers_are_cut_again_and_train(name):
    model, ids = language_model(name), tokens(batch=4)
    ht.add_state_maps_(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(9):
        if step in (3, 6):
            ht.compress_(
                model,
                ht.CompressionConfig(order=12 if step == 3 else 6, method="rotation", round_to=1),
                optimizer,
                batches=[ids],
            )
        loss = model(ids, labels=ids).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert set(ht.state_sizes(model).values()) == {6}
    assert losses[-1] < losses[0]


FLA = [
    lambda: DeltaNet(),
    lambda: DeltaNet(conv=False),
    lambda: DeltaNet(bias=True, gate=False),
    lambda: ChannelDeltaNet(),
    lambda: ChannelDeltaNet(bias=True),
]


@pytest.mark.parametrize("make", FLA)
def test_layers_by_the_names_of_flash_linear_attention_lose_inert_channels_without_a_trace(make):
    torch.manual_seed(0)
    layer, u = make().double(), torch.randn(2, 20, 12, dtype=torch.float64)
    assert ht.adapters.check(layer) < 1e-10
    with torch.no_grad():
        for convolution in (x for x in layer.modules() if isinstance(x, torch.nn.Conv1d) and x.bias is not None):
            convolution.bias.mul_(0.1)
    make_inert(layer)
    before = outputs_of(layer, u)
    ht.compress_(layer, TO_EIGHT, batches=[u])
    assert layer.head_k_dim == 8
    torch.testing.assert_close(outputs_of(layer, u), before, rtol=1e-10, atol=1e-12)


def outputs_of(layer, u):
    with torch.no_grad():
        return layer(u)


def test_keys_that_several_heads_of_values_share_with_decays_of_their_own_are_refused():
    layer = ChannelDeltaNet()
    layer.num_v_heads = 4
    assert "several heads of values" in ht.adapters.refusals(layer)[""]
    layer = DeltaNet()
    layer.activation = "gelu"
    assert "gelu" in ht.adapters.refusals(layer)[""]


@pytest.mark.parametrize("name", ["Qwen3_5Text", "Mamba2"])
def test_mapped_layers_compile_in_one_graph(name):
    model = language_model(name)
    ht.add_state_maps_(model)
    layer, u = first_layer(model)[1].layer, torch.randn(2, 9, 16)
    torch._dynamo.reset()
    with torch.no_grad():
        assert torch.equal(torch.compile(layer, backend="eager", fullgraph=True)(u), layer(u))


def test_a_forward_that_others_have_put_into_a_layer_gets_no_maps():
    model = language_model("Qwen3_5Text")
    layer = first_layer(model)[1].layer
    layer.forward = layer.forward
    assert ht.add_state_maps_(model) == ()
