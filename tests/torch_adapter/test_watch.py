"""A training that is watched for the data of its selective layers: the same sums, no trace, nothing that ends it."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import hankelred_torch as ht
from hankelred_torch.adapters import collect_statistics
from hankelred_torch.sampling import MOST_BATCHES, watch

from .selective_models import inputs, language_model, mamba, tokens
from .test_sampling import Packed, packed_documents


def model_and_adapters(**options):
    model = nn.Sequential(mamba(**options), nn.Dropout(0.5), nn.Linear(6, 6, dtype=torch.float64), mamba(seed=1))
    model[1].eval()
    return model, ht.find_ssm_layers(model)


def watched(model, adapters, run):
    with watch(model, adapters) as seen:
        run()
    return seen.statistics()


def assert_same_sums(a, b, rtol=1e-12):
    assert a.keys() == b.keys()
    for name, layer in a.items():
        assert (layer.counts == b[name].counts).all()
        np.testing.assert_allclose(layer.powers, b[name].powers, rtol=rtol, atol=1e-12)
        for key, value in layer.sums.to_dict().items():
            np.testing.assert_allclose(value, b[name].sums.to_dict()[key], rtol=rtol, atol=1e-12, err_msg=key)


def test_the_sums_are_those_of_a_run_on_the_same_batches():
    model, adapters = model_and_adapters()
    batches = inputs(batches=3)
    found = watched(model, adapters, lambda: [model(u).sum().backward() for u in batches])
    assert_same_sums(found.layers, collect_statistics(model, batches).layers)


def test_they_stand_for_batches_and_the_error_is_measured():
    model, adapters = model_and_adapters()
    u = inputs()[0]
    found = watched(model, adapters, lambda: model(u))
    a, b = (ht.plan(model, ht.CompressionConfig(order=6), x) for x in (found, [u]))
    assert [x.output_error for x in a.layers.values()] == [x.output_error for x in b.layers.values()]


def test_a_model_that_is_never_called_as_a_whole_is_measured_by_its_parts():
    model, adapters = model_and_adapters()  # as the module of Lightning, whose training_step calls what it likes
    u = inputs()[0]
    found = watched(model, adapters, lambda: model[3](model[2](model[0](u))))
    assert all(x.output_error > 0 for x in ht.plan(model, ht.CompressionConfig(order=6), found).layers.values())


def step(model, optimizer, u):
    model(u).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_training_is_bit_for_bit_that_without_a_watch():
    runs = []
    for arm in (False, True):
        model = nn.Sequential(nn.Dropout(0.2), mamba(), nn.Dropout(0.2))
        model[1].register_buffer("seen", torch.zeros(()))
        model[1].in_proj.register_forward_hook(lambda m, i, o: nn.functional.dropout(o, 0.1, m.training))
        optimizer, adapters = torch.optim.AdamW(model.parameters(), lr=1e-2), ht.find_ssm_layers(model)
        torch.manual_seed(3)
        for u in inputs(batches=4):
            seen = watch(model, adapters) if arm else None
            step(model, optimizer, u)
            if seen is not None:
                assert seen.statistics().layers["1"].sums.steps > 0
                seen.remove()
                seen.remove()
        assert model.training
        hooks = [len(x._forward_hooks) + len(x._forward_pre_hooks) for x in model.modules()]
        runs.append((hooks, torch.rand(3).tolist(), [x.tolist() for x in model.parameters()]))
    assert runs[0] == runs[1]


def test_evaluations_do_not_count_nor_more_than_so_many_calls():
    model, adapters = model_and_adapters()
    u = inputs()[0]
    with torch.no_grad():
        nothing = watched(model, adapters, lambda: model(u))
    assert all(x.sums.steps == 0 and "no forward pass" in x.reason for x in nothing.layers.values())
    many = watched(model, adapters, lambda: [model(u) for _ in range(MOST_BATCHES + 3)])
    assert {x.sums.steps for x in many.layers.values()} == {MOST_BATCHES * u.shape[0] * u.shape[1]}


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_are_seen(reentrant):
    model, adapters = model_and_adapters()
    u = inputs()[0].requires_grad_()
    run = lambda: checkpoint(model, u, use_reentrant=reentrant).sum().backward()  # noqa: E731
    hsv = watched(model, adapters, run).layers["0"].hankel_singular_values()
    expected = collect_statistics(model, [u.detach()]).layers["0"].hankel_singular_values()
    np.testing.assert_allclose(hsv, expected, rtol=1e-10, atol=1e-12 * expected[0])


@pytest.mark.parametrize("part", ["model", "layer", "forward"])
def test_compiled_training_is_seen(part):
    model, adapters = model_and_adapters()
    u, run = inputs()[0], model
    if part == "model":
        run = torch.compile(model, backend="eager")
    elif part == "layer":
        model[0].compile(backend="eager")
    else:
        model[0].forward = torch.compile(model[0].forward, backend="eager")
    run(u)
    expected = collect_statistics(model, [u])
    assert_same_sums(watched(model, adapters, lambda: run(u)).layers, expected.layers)


def test_padding_is_left_out():
    pytest.importorskip("transformers")
    model, ids = language_model("Jamba").train(), tokens()
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids}
    found = watched(model, ht.find_ssm_layers(model), lambda: model(**batch).loss.backward())
    assert_same_sums(found.layers, collect_statistics(model, [batch]).layers, rtol=1e-5)


def test_packed_documents_are_seen_one_by_one():
    layer, (packed, documents) = Packed(8, 16), packed_documents()
    adapters = ht.find_ssm_layers(layer)
    one_by_one = watched(layer, adapters, lambda: layer(documents))
    assert_same_sums(watched(layer, adapters, lambda: layer(**packed)).layers, one_by_one.layers, rtol=1e-5)


@pytest.mark.parametrize("fault", ["not called", "not finite", "packed otherwise", "silent"])
def test_what_goes_wrong_leaves_the_layer_alone_with_the_reason(fault):
    model = nn.Sequential(Packed(6, 16), mamba(dtype=torch.float32))
    adapters, u = ht.find_ssm_layers(model), inputs(dtype=torch.float32)[0]
    if fault == "not finite":
        model[0].x_proj.weight.data[3, 0] = np.nan

    def run():
        if fault != "not called":
            model[0](0 * u if fault == "silent" else u, torch.zeros(7, 7) if "packed" in fault else None)
        model[1](u)

    found = watched(model, adapters, run)
    if fault == "not finite":
        torch.nn.init.normal_(model[0].x_proj.weight)
    plan = ht.plan(model, ht.CompressionConfig(order=6), found)
    assert plan.sizes == {"0": 16, "1": 6}
    expected = {"not called": "called", "not finite": "finite", "packed otherwise": "seq_idx", "silent": "no signal"}
    assert expected[fault] in plan.layers["0"].reason


def test_layers_that_are_not_weighed_by_data_get_no_hooks():
    model = nn.Sequential(ht.layers.LRU(4, 8))
    with watch(model, {}) as seen:
        assert not any(x._forward_hooks or x._forward_pre_hooks for x in model.modules())
    assert seen.statistics().layers == {}
    for weighting, hooks in (("auto", 1), ("white", 0)):
        optimizer, schedule = torch.optim.SGD(model.parameters(), lr=0.1), ht.Schedule(end_step=1, attempts=1)
        compressor = ht.InTrainingCompressor(model, optimizer, ht.CompressionConfig(weighting=weighting), schedule)
        assert len(model[0]._forward_hooks) == hooks, compressor
        del compressor
        gc.collect()
        assert not model[0]._forward_hooks
