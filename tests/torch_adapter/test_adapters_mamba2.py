"""Layers of heads lose states by selection: Mamba-2 and its relatives of Hugging Face, and gated linear attention."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import hankelred as hr
import hankelred_torch as ht
from hankelred_torch.adapters.selective import StateMap
from hankelred_torch.sampling import output_errors

from .selective_models import (
    LIVE,
    MAMBA2,
    GatedLinearAttention,
    enlarged,
    inputs,
    language_model,
    make_inert,
    tokens,
)

pytest.importorskip("transformers")


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def first_layer(model):
    return next(iter(ht.find_ssm_layers(model).items()))


@pytest.mark.parametrize("name", MAMBA2)
def test_inert_states_go_without_a_trace(name):
    model, ids = make_inert(language_model(name)), tokens()
    before = logits(model, ids)
    report = ht.compress_(model, ht.CompressionConfig(order=8), batches=[ids])
    assert set(ht.state_sizes(model).values()) == {8}
    assert torch.max(torch.abs(logits(model, ids) - before)) < 1e-5  # of logits up to 6
    for layer in report.layers.values():
        np.testing.assert_array_equal(layer.reduction.core.kept, [LIVE] * len(layer.reduction.core.kept))
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    cached, anew = (model.generate(ids, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, anew)


@pytest.mark.parametrize("name", MAMBA2)
def test_layers_are_resized_one_by_one_and_loaded_exactly(name):
    model, ids = language_model(name), tokens()
    sizes = dict(zip(ht.state_sizes(model), (6, 11), strict=False))
    ht.compress_(model, ht.CompressionConfig(order=sizes, round_to=1), batches=[ids])
    fresh = language_model(name, seed=1)
    assert ht.resize_(fresh, model.state_dict()) == sizes
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(logits(fresh, ids), logits(model, ids))


@pytest.mark.parametrize("name", MAMBA2)
def test_every_record_of_a_size_is_that_of_a_model_made_so_small(name):
    model, small = language_model(name), language_model(name)
    for adapter in ht.find_ssm_layers(small).values():
        for path, size in adapter.sizes(16).items():
            module, attribute = adapter.owner(path)
            if not attribute.startswith("_"):
                assert getattr(module, attribute) == size  # nothing but what the model itself says
    ht.compress_(model, ht.CompressionConfig(order=8), batches=[tokens()])
    layer = first_layer(model)[1].layer
    channels = layer.conv1d.weight.shape[0]
    assert layer.conv1d.in_channels == layer.conv1d.out_channels == layer.conv1d.groups == layer.conv_dim == channels
    assert layer.in_proj.out_features == layer.in_proj.weight.shape[0]
    assert layer.ssm_state_size == 8


@pytest.mark.parametrize("name", MAMBA2)
def test_selected_states_make_less_error_than_states_drawn_by_lot(name):
    model, ids, rng = language_model(name), tokens(batch=4, length=24), np.random.default_rng(0)
    path, adapter = first_layer(model)
    chosen = ht.plan(model, ht.CompressionConfig(order=8), [ids]).layers[path]
    maps = []
    for _ in range(8):
        kept = np.stack([np.sort(rng.choice(16, 8, replace=False)) for _ in range(adapter.groups)])
        Ti = np.eye(16)[kept]
        core = replace(chosen.reduction.core, T=Ti.transpose(0, 2, 1), Ti=Ti, kept=kept)
        maps.append(StateMap(core))
    written = [partial(adapter.rewrite, adapter.values(), x) for x in maps]
    errors = output_errors(model, {path: (adapter, written)}, ids)[path]
    assert chosen.output_error < np.median(errors)


@pytest.mark.parametrize("name", MAMBA2)
@torch.no_grad()
def test_the_recurrence_of_what_is_gathered_is_that_of_the_layer(name):
    model = language_model(name, **({"mamba_rms_norm": True} if name == "FalconH1" else {}))
    adapter = first_layer(model)[1]
    u, seen = torch.randn(2, 7, 16), []
    adapter.layer.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    adapter.layer.D.zero_()
    adapter.layer(u)
    decay, B, C, x = adapter.sequences(u, None)[:4]
    B, C = (y.repeat_interleave(x.shape[2] // B.shape[2], dim=2) for y in (B, C))
    h, outputs = torch.zeros(*x[:, 0].shape, 16), []
    for t in range(7):
        h = decay[:, t, :, None, None] * h + x[:, t, ..., None] * B[:, t, :, None]
        outputs.append((h * C[:, t, :, None]).sum(-1))
    torch.testing.assert_close(torch.stack(outputs, 1).flatten(2), seen[0].flatten(2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["Mamba2", "FalconH1", "Bamba"])
def test_outputs_are_weighted_as_the_gated_norm_multiplies_them(name):
    model = language_model(name, **({"mamba_rms_norm": True} if name == "FalconH1" else {}))
    adapter = first_layer(model)[1]
    u, seen = torch.randn(2, 5, 16), []
    adapter.layer.norm.register_forward_hook(lambda module, args, output: seen.append((*args, output)))
    with torch.no_grad():
        adapter.layer(u)
        y, _, output = seen[0]
        weights = adapter.sequences(u, None, y).gate.flatten(2)
    torch.testing.assert_close(weights * y.view_as(weights), output.view_as(weights), rtol=1e-4, atol=1e-5)


def test_groups_keep_states_of_their_own():
    model, ids = language_model("Mamba2"), tokens(batch=4, length=24)
    path, adapter = first_layer(model)
    plan = ht.plan(model, ht.CompressionConfig(order=8), [ids])
    kept = plan.layers[path].reduction.core.kept
    assert kept.shape == (2, 8)
    assert not np.array_equal(kept[0], kept[1])
    rows = adapter.layer.in_proj.weight.detach().numpy()
    ht.compress_(model, plan)
    B = adapter.layer.in_proj.weight.detach().numpy()[64 : 64 + 16]  # behind z and x, 32 rows each
    np.testing.assert_array_equal(B, np.concatenate([rows[64 + kept[0]], rows[64 + 16 + kept[1]]]))


def test_the_scales_of_a_falcon_h1_layer_stay_with_their_blocks():
    model = language_model("FalconH1")
    adapter = first_layer(model)[1]
    before = adapter.layer.mup_vector.flatten()
    ht.compress_(model, ht.CompressionConfig(order=8), batches=[tokens()])
    after = adapter.layer.mup_vector.flatten()
    blocks = [32, 32, 8, 8, 4]
    assert [part.unique().tolist() for part in after.split(blocks)] == [
        part.unique().tolist() for part in before.split([32, 32, 16, 16, 4])
    ]


def test_sizes_are_multiples_of_eight_unless_told_otherwise():
    model, ids = language_model("Mamba2"), tokens()
    assert set(ht.plan(model, ht.CompressionConfig(order=5), [ids]).sizes.values()) == {8}
    assert set(ht.plan(model, ht.CompressionConfig(order=5, round_to=1), [ids]).sizes.values()) == {5}


def test_a_layer_behind_a_convolution_cannot_be_rotated_nor_folded():
    model, ids = language_model("Bamba"), tokens()
    with pytest.raises(hr.InputError, match="rotation"):
        ht.plan(model, ht.CompressionConfig(order=8, method="rotation"), [ids])
    plan = ht.plan(model, ht.CompressionConfig(order=8, method="selection"), [ids])
    assert {layer.method for layer in plan.layers.values()} == {"selection"}


@pytest.mark.parametrize("name", MAMBA2)
def test_models_with_layers_of_their_own_sizes_are_saved_and_loaded_exactly(name, tmp_path):
    model, ids = language_model(name), tokens()
    sizes = dict(zip(ht.state_sizes(model), (6, 11), strict=False))
    ht.compress_(model, ht.CompressionConfig(order=sizes, round_to=1), batches=[ids])
    ht.save_pretrained(model, tmp_path)
    loaded = ht.from_pretrained(tmp_path).eval()
    assert ht.state_sizes(loaded) == sizes
    assert torch.equal(logits(loaded, ids), logits(model, ids))


@pytest.mark.parametrize("name", MAMBA2)
def test_a_padded_model_computes_the_same_in_layers_of_one_size(name):
    model, ids = language_model(name), tokens()
    sizes = dict(zip(ht.state_sizes(model), (6, 11), strict=False))
    ht.compress_(model, ht.CompressionConfig(order=sizes, round_to=1), batches=[ids])
    padded = ht.export_padded(model, 12)
    assert set(ht.state_sizes(padded).values()) == {12}
    wanted, found = logits(model, ids), logits(padded, ids)
    # relative to the largest logit, of float32 through all layers: 1 to 15 eps were seen
    assert (found - wanted).abs().max().item() < 30 * torch.finfo(wanted.dtype).eps * wanted.abs().max().item()


@pytest.mark.parametrize("name", ["Mamba2", "Qwen3_5Text", "KimiLinear"])
def test_training_goes_on_with_a_consistent_optimizer(name):
    model, ids = language_model(name), tokens(batch=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(8):
        if step == 4:
            ht.compress_(model, ht.CompressionConfig(order=8), optimizer, batches=[ids])
        loss = model(ids, labels=ids).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    layer = first_layer(model)[1].layer
    assert losses[-1] < losses[4]
    assert optimizer.state[layer.conv1d.weight]["exp_avg_sq"].shape == layer.conv1d.weight.shape


def attention(**options):
    torch.manual_seed(0)
    return enlarged(GatedLinearAttention(**options))


@pytest.mark.parametrize("method", ["selection", "selection_without_fold"])
def test_inert_keys_go_without_a_trace(method):
    layer, u = attention(), inputs(channels=8)[0]
    with torch.no_grad():
        for weight in (layer.q_proj.weight, layer.k_proj.weight):
            weight[[1, 4, 8, 15]] = 0  # two keys of each head
        before = layer(u)
        ht.compress_(layer, ht.CompressionConfig(order=6, method=method), batches=[u])
        # the fold is a least-squares solution, resolved to 1e-3 of its largest direction
        assert torch.linalg.norm(layer(u) - before) < 1e-6 * torch.linalg.norm(before)
    assert (layer.head_k_dim, layer.key_dim, layer.q_proj.out_features) == (6, 12, 12)


def test_folded_queries_make_less_error_than_those_of_kept_keys_alone():
    layer, batches = attention(), inputs(channels=8)
    errors = [
        ht.plan(layer, ht.CompressionConfig(order=5, method=method), batches).layers[""].output_error
        for method in ("selection", "selection_without_fold")
    ]
    assert errors[0] < errors[1]


def test_keys_that_pad_attention_change_nothing():
    layer, u = attention(key_dim=10), inputs(channels=8)[0]
    adapter, before = ht.adapters.adapter_of(layer), layer(u)
    wide = attention(key_dim=14)
    padded = {name: torch.from_numpy(x) for name, x in adapter.pad(adapter.values(), 7).items()}
    wide.load_state_dict({**layer.state_dict(), **padded})
    torch.testing.assert_close(wide(u), before, rtol=1e-10, atol=1e-10)


def test_moments_of_queries_shrink_as_their_weights_grow():
    layer, u = attention(), inputs(channels=8)[0]
    adapter = ht.adapters.adapter_of(layer)
    reduction = ht.plan(layer, ht.CompressionConfig(order=5, method="selection_without_fold"), [u]).layers[""].reduction
    values, kept = adapter.values(), reduction.core.kept
    rows = np.concatenate([kept[0], 8 + kept[1]])
    gain = (5 / 8) ** 0.5
    np.testing.assert_allclose(
        adapter.rewrite(values, reduction)["q_proj.weight"], gain * values["q_proj.weight"][rows]
    )
    carried = adapter.carry_first(values, reduction, values)  # any numbers of these shapes
    np.testing.assert_allclose(carried["q_proj.weight"], values["q_proj.weight"][rows] / gain)


def test_attention_with_something_before_its_states_is_refused():
    layer = attention()
    layer.use_short_conv = True
    assert not ht.find_ssm_layers(layer)
    with pytest.raises(hr.InputError, match="short convolution"):
        ht.adapters.adapter_of(layer)


def test_layers_split_over_devices_are_refused():
    layer = first_layer(language_model("Mamba2"))[1].layer
    layer.process_group = object()
    with pytest.raises(hr.InputError, match="split over devices"):
        ht.adapters.adapter_of(layer)
