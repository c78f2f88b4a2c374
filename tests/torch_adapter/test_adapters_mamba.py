"""Mamba layers lose states by a rotation or a selection: this library's own, of Hugging Face and of mambapy."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import silu, softplus

import hankelred as hr
import hankelred_torch as ht
from hankelred.selective import rotate
from hankelred_torch.layer_sums import LayerStatistics
from hankelred_torch.sampling import output_errors

from .selective_models import MAMBA, inputs, language_model, make_inert, mamba, tokens

METHODS = ("rotation", "selection", "selection_without_fold")


def planned(layer, method, order=6, batches=None):
    return ht.plan(layer, ht.CompressionConfig(order=order, method=method), batches or inputs())


def relative(a, b):
    return (torch.linalg.norm(a - b) / torch.linalg.norm(b)).item()


def output_of_recurrence(layer, u, reduction):
    """Return what the layer computes with folded matrices in place of its own, the recurrence step by step."""
    x, z = layer.in_proj(u).chunk(2, dim=-1)
    x = silu(layer.conv1d(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
    dt, B, C = layer.x_proj(x).split([layer.dt_proj.weight.shape[1], layer.states, layer.states], dim=-1)
    delta, T, Ti = softplus(layer.dt_proj(dt)), *(torch.from_numpy(y[0]) for y in (reduction.T, reduction.Ti))
    A = -torch.exp(layer.A_log)
    A = torch.from_numpy(reduction.rates) if reduction.kept is None else A[:, reduction.kept[0]]
    B, C = B @ Ti.T, C @ T
    h, outputs = torch.zeros(len(u), *A.shape, dtype=u.dtype), []
    for t in range(u.shape[1]):
        h = torch.exp(delta[:, t, :, None] * A) * h + (delta * x)[:, t, :, None] * B[:, t, None]
        outputs.append((h * C[:, t, None]).sum(-1) + layer.D * x[:, t])
    return layer.out_proj(torch.stack(outputs, 1) * silu(z))


@pytest.mark.parametrize("method", METHODS)
def test_a_cut_layer_computes_the_recurrence_with_the_matrices_of_the_core(method):
    layer, u = mamba(), inputs()[0]
    plan = planned(layer, method)
    with torch.no_grad():
        expected = output_of_recurrence(layer, u, plan.layers[""].reduction.core)
        ht.compress_(layer, plan)
        assert relative(layer(u), expected) < 1e-10  # double precision


@pytest.mark.parametrize("method", METHODS)
def test_the_error_reported_is_that_of_the_output_on_the_first_batch(method):
    layer, batches = mamba(), inputs()
    before = copy.deepcopy(layer)
    report = ht.compress_(layer, planned(layer, method, batches=batches))
    with torch.no_grad():
        change = relative(layer(batches[0]), before(batches[0]))
    assert report.layers[""].output_error == pytest.approx(change, rel=1e-9)


def test_the_way_with_the_least_measured_error_is_taken():
    layer = mamba()
    errors = {method: planned(layer, method).layers[""].output_error for method in METHODS[:2]}
    assert planned(layer, "auto").layers[""].output_error == pytest.approx(min(errors.values()), rel=1e-12)
    assert min(errors.values()) < max(errors.values())


def test_rotated_rates_stay_in_the_range_of_their_channel():
    layer = mamba()
    old = layer.A_log.detach().clone()
    ht.compress_(layer, planned(layer, "rotation"))
    low, high = (f(old, dim=1).values[:, None] for f in (torch.min, torch.max))
    assert torch.all(layer.A_log >= low - 1e-12)
    assert torch.all(layer.A_log <= high + 1e-12)


def test_selected_rates_are_those_of_the_layer_bit_for_bit():
    layer = mamba(dtype=torch.float32)
    plan = ht.plan(layer, ht.CompressionConfig(order=6, method="selection"), inputs(dtype=torch.float32))
    expected = layer.A_log.detach()[:, plan.layers[""].reduction.core.kept[0]].clone()
    ht.compress_(layer, plan)
    assert torch.equal(layer.A_log, expected)


def test_a_layer_whose_channels_share_rates_up_to_a_factor_loses_nothing_by_a_full_rotation():
    layer = mamba(states=4)
    with torch.no_grad():  # one rate per channel: every rotation commutes with it
        layer.A_log.copy_(torch.randn(len(layer.A_log), 1, dtype=torch.float64))
    adapter, u = ht.adapters.adapter_of(layer), inputs()[0]
    values, statistics = adapter.values(), ht.adapters.collect_statistics(layer, [u]).layers[""]
    core = rotate(statistics.sums, -np.exp(values["A_log"]), 4)
    before = layer(u)
    rewritten = adapter.rewrite(values, ht.adapters.selective.StateMap(core))
    layer.load_state_dict({name: torch.from_numpy(x) for name, x in rewritten.items()}, strict=False)
    assert relative(layer(u), before) < 1e-10
    assert not np.allclose(rewritten["x_proj.weight"], values["x_proj.weight"])


@pytest.mark.parametrize("method", METHODS)
def test_inert_states_go_without_a_trace(method):
    layer, u = make_inert(mamba()), inputs()[0]
    with torch.no_grad():
        if method == "rotation":  # exact where channels share their rates
            layer.A_log.copy_(layer.A_log[:1].expand_as(layer.A_log))
        before = layer(u)
        ht.compress_(layer, planned(layer, method, order=8))
        assert relative(layer(u), before) < 1e-6  # eigenvectors of covariances summed from single precision


def test_first_moments_of_a_selection_are_those_of_the_selected_entries():
    layer = mamba()
    adapter, plan = ht.adapters.adapter_of(layer), planned(layer, "selection_without_fold")
    moments = {name: np.random.default_rng(0).standard_normal(x.shape) for name, x in adapter.values().items()}
    reduction = plan.layers[""].reduction
    kept, rank = reduction.core.kept[0], layer.dt_proj.weight.shape[1]
    carried = adapter.carry_first(adapter.values(), reduction, moments)
    rows = np.concatenate([np.arange(rank), rank + kept, rank + 16 + kept])
    np.testing.assert_array_equal(carried["x_proj.weight"], moments["x_proj.weight"][rows])
    np.testing.assert_array_equal(carried["A_log"], moments["A_log"][:, kept])
    squares = {name: x**2 for name, x in moments.items()}
    carried = adapter.carry_second(adapter.values(), reduction, squares)
    np.testing.assert_array_equal(carried["x_proj.weight"], squares["x_proj.weight"][rows])


def gradients(layer, u):
    layer.zero_grad()
    layer(u).square().mean().backward()
    return {name: layer.get_parameter(name).grad.numpy().copy() for name in ("A_log", "x_proj.weight")}


def test_gradients_pass_a_rotation_as_those_of_the_rotated_layer():
    layer = mamba(states=4)
    with torch.no_grad():
        layer.A_log.copy_(torch.randn(len(layer.A_log), 1, dtype=torch.float64))
    adapter, u = ht.adapters.adapter_of(layer), inputs()[0]
    values, statistics = adapter.values(), ht.adapters.collect_statistics(layer, [u]).layers[""]
    reduction = ht.adapters.selective.StateMap(rotate(statistics.sums, -np.exp(values["A_log"]), 4))
    carried = adapter.carry_first(values, reduction, gradients(layer, u))
    rewritten = adapter.rewrite(values, reduction)
    layer.load_state_dict({name: torch.from_numpy(x) for name, x in rewritten.items()}, strict=False)
    expected = gradients(layer, u)["x_proj.weight"]
    np.testing.assert_allclose(carried["x_proj.weight"], expected, rtol=1e-8, atol=1e-10 * np.abs(expected).max())


def test_first_moments_of_mixed_rates_obey_the_chain_rule_along_the_mixture():
    layer = mamba()
    adapter, values = ht.adapters.adapter_of(layer), ht.adapters.adapter_of(layer).values()
    reduction, rng = planned(layer, "rotation").layers[""].reduction, np.random.default_rng(1)
    new = adapter.rewrite(values, reduction)["A_log"]
    moments, direction = rng.standard_normal((2, *new.shape))
    # <carried(g), w> = <g, w pulled back>: the transposed map, found by finite differences of the rates in A
    given = rng.standard_normal(values["A_log"].shape)
    carried = adapter.carry_first(values, reduction, {"A_log": given})["A_log"]
    step = 1e-6 * rng.standard_normal(values["A_log"].shape)
    old_rates, new_rates = np.exp(values["A_log"]), np.exp(new)
    pulled = (direction * new_rates) @ reduction.mixing().T / old_rates
    assert np.sum(carried * direction) == pytest.approx(np.sum(given * pulled), rel=1e-10)
    moved = adapter.rewrite({**values, "A_log": values["A_log"] + step}, reduction)["A_log"]
    assert np.sum((moved - new) * moments) == pytest.approx(
        np.sum(step * old_rates * ((moments / new_rates) @ reduction.mixing().T)), rel=1e-3
    )


@pytest.mark.parametrize("policy", ["transport", "reset"])
@pytest.mark.parametrize("method", ["rotation", "selection"])
def test_training_goes_on_with_a_consistent_optimizer(method, policy):
    layer, batches = mamba(dtype=torch.float32), inputs(dtype=torch.float32)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    losses = []
    for step in range(8):
        if step == 4:
            config = ht.CompressionConfig(order=6, method=method, optimizer_state=policy)
            ht.compress_(layer, config, optimizer, batches=batches)
        loss = (layer(batches[0]) - batches[0]).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[4]
    assert optimizer.state[layer.A_log]["exp_avg"].shape == layer.A_log.shape == (12, 6)


def test_an_averaged_copy_follows_by_the_same_map():
    layer, batches = mamba(), inputs()
    average = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(1.01)
    expected = {name: x.detach().clone() for name, x in average.named_parameters()}
    plan = planned(layer, "rotation", batches=batches)
    ht.compress_(layer, plan, ema=average)
    reduction, rank = plan.layers[""].reduction.core, layer.dt_proj.weight.shape[1]
    B = torch.from_numpy(reduction.Ti[0]) @ expected["x_proj.weight"][rank : rank + 16]
    torch.testing.assert_close(average.x_proj.weight[rank : rank + 6], B, rtol=1e-12, atol=1e-12)


def test_a_plan_made_before_a_training_step_cuts_the_layer_as_it_is_now():
    layer, u = mamba(), inputs()[0]
    plan = planned(layer, "selection")
    with torch.no_grad():
        layer.A_log.add_(0.01)
    expected = layer.A_log.detach()[:, plan.layers[""].reduction.core.kept[0]].clone()
    ht.compress_(layer, plan)
    assert torch.equal(layer.A_log, expected)
    assert torch.isfinite(layer(u)).all()


@pytest.mark.parametrize("name", MAMBA)
def test_models_of_hugging_face_lose_inert_states_without_a_trace(name):
    pytest.importorskip("transformers")
    model, ids = make_inert(language_model(name)), tokens()
    with torch.no_grad():
        before = model(ids).logits
        ht.compress_(model, ht.CompressionConfig(order=8, method="selection"), batches=[ids])
        assert set(ht.state_sizes(model).values()) == {8}
        assert torch.max(torch.abs(model(ids).logits - before)) < 1e-5  # of logits up to 6
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    cached, anew = (model.generate(ids, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, anew)


@pytest.mark.parametrize(("name", "option"), [("FalconMamba", "mixer_rms_eps"), ("Jamba", "rms_norm_eps")])
def test_what_norms_add_to_mean_squares_shrinks_with_them(name, option):
    pytest.importorskip("transformers")
    model, ids = make_inert(language_model(name, **{option: 0.5})), tokens()
    with torch.no_grad():
        before = model(ids).logits
        ht.compress_(model, ht.CompressionConfig(order=8, method="selection"), batches=[ids])
        assert torch.max(torch.abs(model(ids).logits - before)) < 1e-5  # of logits up to 6


@pytest.mark.parametrize("name", MAMBA)
def test_models_of_hugging_face_are_resized_and_loaded_exactly(name):
    pytest.importorskip("transformers")
    model, ids = language_model(name), tokens()
    sizes = dict(zip(ht.state_sizes(model), (5, 9), strict=False))
    ht.compress_(model, ht.CompressionConfig(order=sizes), batches=[ids])
    fresh = language_model(name, seed=1)
    assert ht.resize_(fresh, model.state_dict()) == sizes
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", ["FalconMamba", "Jamba"])
def test_states_under_norms_are_never_rotated(name):
    pytest.importorskip("transformers")
    model = language_model(name)
    plan = ht.plan(model, ht.CompressionConfig(order=6), [tokens()])
    assert {layer.method for layer in plan.layers.values()} == {"selection"}
    with pytest.raises(hr.InputError, match="rotation"):
        ht.plan(model, ht.CompressionConfig(order=6, method="rotation"), [tokens()])


@pytest.mark.parametrize("name", ["FalconMamba", "Jamba"])
def test_gains_make_up_for_what_a_selection_does_to_norms(name, monkeypatch):
    pytest.importorskip("transformers")
    model, ids = language_model(name), tokens(batch=4, length=24)
    path = next(iter(ht.state_sizes(model)))
    adapter = ht.find_ssm_layers(model)[path]
    errors = []
    for _ in range(2):
        statistics = ht.adapters.collect_statistics(model, [ids])
        maps = adapter.analyse(adapter.values(), statistics.layers[path], "selection").reduce(4).reduction
        way = partial(adapter.rewrite, adapter.values(), maps[0])
        errors.append(output_errors(model, {path: (adapter, [way])}, ids)[path][0])
        monkeypatch.setattr(LayerStatistics, "gains", lambda *_: (1.0, 1.0))
    assert errors[0] < errors[1]


def test_moments_of_rescaled_tensors_shrink_as_their_tensors_grow():
    pytest.importorskip("transformers")
    model, ids = make_inert(language_model("FalconMamba")), tokens()
    path = next(iter(ht.state_sizes(model)))
    layer = model.get_submodule(path)
    optimizer = torch.optim.Adam(model.parameters())
    model(ids).logits.square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    make_inert(model)
    weight, moment = (x.clone() for x in (layer.out_proj.weight, optimizer.state[layer.out_proj.weight]["exp_avg"]))
    ht.compress_(model, ht.CompressionConfig(order=8, method="selection"), optimizer, batches=[ids])
    torch.testing.assert_close(layer.out_proj.weight, 2 * weight)  # 16 states to 8, in both norms
    torch.testing.assert_close(optimizer.state[layer.out_proj.weight]["exp_avg"], moment / 2)


def mambapy_model(**options):
    mambapy = pytest.importorskip("mambapy.mamba")
    torch.manual_seed(0)
    from .selective_models import enlarged

    return enlarged(mambapy.Mamba(mambapy.MambaConfig(d_model=6, n_layers=2, d_state=16, **options)))


@pytest.mark.parametrize("options", [{}, {"inner_layernorms": True}, {"inner_layernorms": True, "mup": True}], ids=str)
def test_blocks_of_mambapy_lose_inert_states_without_a_trace_and_step_as_they_run(options):
    model, u = make_inert(mambapy_model(**options)), inputs(dtype=torch.float32)[0][:, :16]  # length a power of two
    with torch.no_grad():
        before = model(u)
        sizes = {"layers.0.mixer": 8, "layers.1.mixer": 12}
        ht.compress_(model, ht.CompressionConfig(order=sizes, method="selection"), batches=[u])
        assert ht.state_sizes(model) == sizes
        assert relative(model(u), before) < 1e-5
        caches = [(None, torch.zeros(len(u), 12, 3)) for _ in range(2)]
        for t in range(u.shape[1]):
            y, caches = model.step(u[:, t], caches)
        assert relative(y, model(u)[:, -1]) < 1e-5


def test_a_block_of_mambapy_gets_a_configuration_of_its_own():
    model = mambapy_model()
    shared = model.config
    config = ht.CompressionConfig(order=5, target_modules=["layers.0.mixer"])
    ht.compress_(model, config, batches=inputs(dtype=torch.float32))
    assert (model.layers[0].mixer.config.d_state, model.layers[1].mixer.config.d_state, shared.d_state) == (5, 16, 16)
    assert model.layers[1].mixer.config is shared


def test_states_that_pad_a_layer_change_nothing():
    layer, u = mamba(states=5), inputs()[0]
    adapter, before = ht.adapters.adapter_of(layer), layer(u)
    padded = adapter.pad(adapter.values(), 9)
    wide = mamba(states=9)
    wide.load_state_dict({**layer.state_dict(), **{name: torch.from_numpy(x) for name, x in padded.items()}})
    assert relative(wide(u), before) < 1e-12


@pytest.mark.parametrize("name", MAMBA)
def test_models_of_hugging_face_are_saved_and_loaded_exactly(name, tmp_path):
    pytest.importorskip("transformers")
    model, ids = language_model(name), tokens()
    sizes = dict(zip(ht.state_sizes(model), (5, 9), strict=False))
    ht.compress_(model, ht.CompressionConfig(order=sizes), batches=[ids])
    ht.save_pretrained(model, tmp_path)
    loaded = ht.from_pretrained(tmp_path).eval()
    assert ht.state_sizes(loaded) == sizes
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_a_padded_mamba_model_is_loaded_by_its_own_class(tmp_path):
    transformers = pytest.importorskip("transformers")
    model, ids = language_model("Mamba"), tokens()
    sizes = dict(zip(ht.state_sizes(model), (5, 9), strict=True))
    ht.compress_(model, ht.CompressionConfig(order=sizes), batches=[ids])
    ht.export_padded(model).save_pretrained(tmp_path)
    loaded = transformers.MambaForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.max(torch.abs(loaded(ids).logits - model(ids).logits)) < 1e-5  # of logits up to 6


@pytest.mark.parametrize("name", ["FalconMamba", "Jamba"])
def test_layers_with_norms_over_their_states_are_not_padded(name):
    pytest.importorskip("transformers")
    with pytest.raises(hr.InputError, match="norm"):
        ht.export_padded(language_model(name), 20)


def test_energy_decides_on_the_size_where_no_order_is_given():
    layer, batches = mamba(), inputs()
    hsv = ht.hankel_singular_values(layer, batches)[""]
    plan = ht.plan(layer, ht.CompressionConfig(tau=0.1), batches).layers[""]
    shares = np.cumsum(hsv) / hsv.sum()
    assert plan.states == np.argmax(shares >= 0.9) + 1
    assert plan.kept_energy == pytest.approx(shares[plan.states - 1])


def test_an_error_bound_is_not_promised():
    layer, batches = mamba(), inputs()
    plan = ht.plan(layer, ht.CompressionConfig(max_error=0.1), batches).layers[""]
    assert not plan.cut
    assert "no error bound" in plan.reason
    cut = planned(layer, "auto").layers[""]
    assert cut.error_bound == np.inf
    assert cut.to_dict()["error_bound"] is None


def test_balanced_truncation_is_refused():
    with pytest.raises(hr.InputError, match="balanced_truncation"):
        planned(mamba(), "balanced_truncation")


def test_a_selective_layer_is_no_linear_system():
    layer = mamba()
    with pytest.raises(hr.InputError, match="time-invariant"):
        ht.read_system(layer)


def test_a_parametrized_projection_is_refused_with_the_way_out():
    layer = mamba()
    torch.nn.utils.parametrizations.weight_norm(layer.x_proj)
    with pytest.raises(hr.InputError, match="remove_parametrizations"):
        planned(layer, "auto")


def test_a_compressor_shrinks_a_layer_while_it_trains():
    layer, batches = mamba(dtype=torch.float32), inputs(dtype=torch.float32)
    optimizer = torch.optim.AdamW(layer.parameters())
    config, schedule = ht.CompressionConfig(order=4), ht.Schedule(end_step=4, attempts=2, force=True)
    compressor = ht.InTrainingCompressor(layer, optimizer, config, schedule, batches=batches)
    for _ in range(5):
        layer(batches[0]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        compressor.step()
    assert [(record.n, record.states) for record in compressor.history] == [(16, 8), (8, 4)]
    assert all(record.output_error is not None for record in compressor.history)
    assert ht.History.from_list(compressor.history.to_list()) == compressor.history
