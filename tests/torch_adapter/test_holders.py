"""Claims about whoever holds parameters and was not given: found, and refused or told of."""

from __future__ import annotations

import gc
import warnings
import weakref

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import hankelred as hr
import hankelred_torch as ht

from .adapter_models import assert_unchanged, lru, snapshot

CONFIG = ht.CompressionConfig(order=4)


def adam(model):
    return torch.optim.AdamW(model.parameters())


def test_layer_outside_that_shares_a_parameter_is_named():
    # history: the sharing ended without a word, and the other layer was never trained again
    outside = torch.nn.Sequential(lru(), lru())
    outside[1].nu_log = outside[0].nu_log
    optimizer, before = adam(outside), snapshot(outside)
    with pytest.raises(
        hr.InputError, match=r"outside of the model that was given, LRU, which holds nu_log of layer ''"
    ):
        ht.compress_(outside[0], CONFIG, optimizer)
    assert_unchanged(before, outside)


def test_module_outside_that_watches_a_parameter_is_named():
    outside = torch.nn.Linear(1, 1)
    layer = lru()
    outside.watched = layer.C_re
    with pytest.raises(hr.InputError, match="outside of the model that was given, Linear, which holds C_re"):
        ht.compress_(layer, CONFIG)


def test_buffer_held_outside_is_found():
    layer, outside = lru(), torch.nn.Linear(1, 1)
    value = layer.nu_log.detach()
    del layer.nu_log
    layer.register_buffer("nu_log", value)
    outside.register_buffer("copied", value)
    with pytest.raises(hr.InputError, match="outside of the model that was given, Linear, which holds nu_log"):
        ht.compress_(layer, CONFIG)


def test_optimizer_that_was_not_given_is_refused_in_training_and_told_of_outside():
    layer = lru()
    first, second = (torch.optim.SGD([p for p in layer.parameters() if p.ndim == k], lr=0.1) for k in (1, 2))
    third = adam(layer)
    with pytest.raises(hr.InputError, match="an optimizer that was not given"):
        ht.compress_(layer, CONFIG, [first, second])
    with pytest.warns(hr.HankelredWarning, match="an optimizer that was not given"):
        ht.compress_(layer, CONFIG)
    assert third is not None


def test_optimizers_kept_by_parameter_are_refused():
    # as in PyTorch's tutorial of steps in the backward pass: KeyError at the next one
    layer = lru()
    optimizers = {p: torch.optim.AdamW([p], foreach=False) for p in layer.parameters()}
    with pytest.raises(hr.InputError, match="a dict by parameter"):
        ht.compress_(layer, CONFIG, optimizers.values())


class Average:
    """The layout of torch_ema: weak references."""

    def __init__(self, parameters):
        self.references = [weakref.ref(p) for p in parameters]


class Owner:
    def __init__(self, kept):
        self.kept = kept


@pytest.mark.parametrize(
    ("hold", "message"),
    [
        (lambda x: [list(x.parameters())], "a list of 8 parameters"),
        (lambda x: Average(x.parameters()), "a list of 8 parameters called 'references'"),
        (lambda x: {p: 1.0 for p in x.parameters()}, "a dict by parameter"),
        (lambda x: {"clipped": [x.B_re, x.B_im]}, "a list of 2 parameters called 'clipped', which holds B_re"),
        (lambda x: Owner(set(x.parameters())), "a set of 8 parameters called 'kept'"),
        (lambda x: Owner(dict(x.named_parameters())), "a dict of 8 parameters called 'kept'"),
    ],
)
def test_containers_made_before_the_cut_are_told_of(hold, message):
    # history: clip_grad_norm_ of such a list left a norm of 1.4e6; sets and dicts by name were not looked at
    layer = lru()
    held = hold(layer)
    with pytest.warns(hr.HankelredWarning, match=message):
        ht.compress_(layer, CONFIG, adam(layer))
    assert held is not None


PARAMETERS = []


def test_container_that_is_only_a_variable_is_nobodys():
    layer = lru()
    parameters = list(layer.parameters())  # as an optimizer was made of it
    others = dict(layer.named_parameters()), set(parameters)
    globals()["PARAMETERS"] = list(layer.parameters())
    optimizer = torch.optim.AdamW(parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ht.compress_(layer, CONFIG, optimizer)
    assert {len(parameters), len(PARAMETERS), *map(len, others)} == {8}


def drifted(layer, optimizer, average, steps=5):
    for _ in range(steps):
        layer(torch.randn(2, 8, 3, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            average.update_parameters(layer)


def test_forgotten_average_is_told_of():
    layer = lru()
    optimizer, average = adam(layer), AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    drifted(layer, optimizer, average)
    with pytest.warns(hr.HankelredWarning, match="AveragedModel, which averages this one and does not follow"):
        ht.compress_(layer, CONFIG, optimizer)


class Averaged(AveragedModel):
    """A wrapper of the user's own."""


def test_forgotten_average_of_a_derived_class_in_a_larger_model_is_told_of():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), lru(dtype=torch.float32))
    average = Averaged(model)
    with pytest.warns(hr.HankelredWarning, match="Averaged, which averages this one"):
        ht.compress_(model, CONFIG)
    assert average is not None


def test_average_that_nothing_refers_to_is_not_told_of():
    layer = lru()
    average = AveragedModel(layer)
    average.module.within = [average]
    del average  # a cycle: it stays until it is collected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ht.compress_(layer, CONFIG)


def test_forgotten_average_of_ema_pytorch_is_told_of():
    ema_pytorch = pytest.importorskip("ema_pytorch", reason="ema-pytorch is not installed")
    layer, other = lru(), lru()
    average = ema_pytorch.EMA(layer, update_every=1)
    with pytest.warns(hr.HankelredWarning, match="EMA, which averages this one"):
        ht.compress_(layer, CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ht.compress_(other, CONFIG)  # equal to the other, but not the one it knows
    assert average is not None


@pytest.mark.parametrize("seed", [0, 1])
def test_averages_of_other_models_are_not_told_of(seed):
    # history: averages of other models of the class that were alive were taken for forgotten ones
    layer, other = lru(seed=0), lru(seed=seed)
    average = AveragedModel(other, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    drifted(other, adam(other), average, steps=20)
    drifted(layer, adam(layer), None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ht.compress_(layer, CONFIG)


def test_average_that_was_given_and_one_already_left_behind_are_not_told_of():
    layer = lru()
    average = AveragedModel(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ht.compress_(layer, CONFIG, ema=average)
        del average
        left = AveragedModel(lru(8))  # of the sizes before
        ht.compress_(layer, ht.CompressionConfig(order=2))
    assert left is not None


def test_average_of_a_compiled_model_that_was_given_is_not_told_of():
    # history: what was given was compared in its wrapper, what is alive without it
    layer = torch.compile(lru(), backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error", hr.HankelredWarning)
        ht.compress_(layer, CONFIG, adam(layer), ema=AveragedModel(layer))


def test_average_of_ema_pytorch_is_cut():
    ema_pytorch = pytest.importorskip("ema_pytorch", reason="ema-pytorch is not installed")
    layer = lru()
    optimizer, average = adam(layer), ema_pytorch.EMA(layer, update_every=1)
    average.update()
    ht.compress_(layer, CONFIG, optimizer, ema=average)
    average.update()
    assert ht.state_sizes(average.ema_model) == {"": 4}


@pytest.mark.parametrize(("order", "walks"), [(4, 1), (8, 0)])
def test_cut_walks_at_most_once_through_all_objects(order, walks, monkeypatch):
    # history: 1 to 3 walks and one per average that was alive, each as long as there are objects in the process
    layer, other, found = lru(), lru(seed=1), []
    optimizer, averages = adam(layer), [AveragedModel(x) for x in (layer, other)]
    schedulers = [torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)]
    referrers = gc.get_referrers
    monkeypatch.setattr(gc, "get_referrers", lambda *objects: found.append(objects) or referrers(*objects))
    guard, schedule = ht.Guard(lambda: 1.0, 0.1, "max"), ht.Schedule(end_step=1, attempts=1, force=True)
    config = ht.CompressionConfig(order=order)
    rest = {"guard": guard, "ema": averages[0], "restore": schedulers}
    ht.InTrainingCompressor(layer, optimizer, config, schedule, **rest).step()
    assert ht.state_sizes(layer) == {"": order}
    assert len(found) == walks


def test_meta_tensors_are_named():
    with pytest.raises(hr.InputError, match="LRU must hold its data"):
        ht.plan(ht.layers.LRU(4, 16).to("meta"), CONFIG)


@pytest.mark.parametrize("where", ["host", "disk"])
def test_offloaded_layers_are_named(where, tmp_path):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    model = torch.nn.Sequential(ht.layers.LRU(4, 16))
    if where == "host":
        accelerate.cpu_offload(model, execution_device="cpu")
    else:
        accelerate.disk_offload(model, str(tmp_path), execution_device="cpu")
    with pytest.raises(hr.InputError, match="remove_hook_from_submodules"):
        ht.plan(model, CONFIG)


@pytest.mark.parametrize(
    "how", [{"target_modules": ["x_proj"]}, {"target_modules": ["in_proj"], "modules_to_save": ["x_proj"]}]
)
def test_modules_that_peft_wraps_are_named(how):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = torch.nn.Sequential(ht.layers.Mamba(8, 16))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, **how))
    with pytest.raises(
        hr.InputError, match=r"x_proj.weight of Mamba .* wrapped by PEFT. Call merge_and_unload\(\) first"
    ):
        ht.compress_(wrapped, CONFIG, batches=[torch.randn(2, 12, 8)])


def test_quantised_tensors_are_named():
    layer = lru()
    del layer.B_re
    layer.register_buffer("B_re", torch.zeros(8, 3, dtype=torch.int8))
    with pytest.raises(hr.InputError, match=r"B_re of LRU must be floating point .* dequantize\(\)"):
        ht.compress_(layer, CONFIG)
