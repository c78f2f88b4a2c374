"""Layers grow by states that nothing goes into: outputs stay, training goes on, and a cut takes them away again."""

from __future__ import annotations

import pytest
import torch

import hankelred as hr
import hankelred_torch as ht

from .delta_layers import ChannelDeltaNet, DeltaNet
from .selective_models import GatedLinearAttention, inputs, language_model, mamba, tokens

LAYERS = {
    "LRU": lambda: ht.layers.LRU(3, 6),
    "S5": lambda: ht.layers.S5(3, 6),
    "S4D": lambda: ht.layers.S4D(3, 6),
    "Mamba": lambda: mamba(6, channels=3),
    "gated linear attention": lambda: GatedLinearAttention(3, key_dim=12, num_heads=1).double(),
    "delta net": lambda: DeltaNet(3, 6),
    "Kimi's": lambda: ChannelDeltaNet(hidden_size=3, head_dim=6),
}
UNREAD = ("delta net", "Kimi's")  # norms run over keys and queries
MODELS = {"Mamba": 16, "Mamba2": 16, "Bamba": 16, "Qwen3_5Text": 16, "KimiLinear": 16}
LARGE = 10


def made(name):
    torch.manual_seed(0)
    return LAYERS[name]().double()


def growing(layer, states=LARGE, optimizers=()):
    return ht.resize_(layer, {"": states}, optimizers, inert=True)


def squares(layer, u):
    return layer(u).square().mean()


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_grows_computes_what_it_did(name):
    layer, u = made(name), inputs(3, batches=1)[0]
    before, old = layer(u).detach(), ht.state_sizes(layer)[""]
    large = 2 * old + 3 if name == "LRU" else LARGE if old < LARGE else old + 4
    assert growing(layer, large) == {"": large}
    torch.testing.assert_close(layer(u), before, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", [x for x in LAYERS if x not in UNREAD])
def test_training_reaches_what_has_grown(name):
    layer, u = made(name), inputs(3, batches=1)[0]
    old = ht.state_sizes(layer)[""]
    growing(layer, old + 2)
    squares(layer, u).backward()
    adapter = ht.adapters.adapter_of(layer)
    reached = [
        x for x in adapter.state_axes if adapter.tensor(x).grad is not None and bool(_new(adapter, x, old).any())
    ]
    assert reached


def _new(adapter, name, old):
    """Return the gradient of the entries of new states."""
    gradient, axis = adapter.tensor(name).grad, adapter.state_axes[name]
    states = torch.arange(adapter.states).numpy()
    return gradient.index_select(axis, torch.as_tensor(adapter.entries(name, states[old:])))


@pytest.mark.parametrize("name", LAYERS)
def test_averages_of_what_was_there_go_on(name):
    layer, twin, u = made(name), made(name), inputs(3, batches=1)[0]
    optimizer, its = (torch.optim.Adam(x.parameters(), lr=1e-2) for x in (layer, twin))
    for k in range(4):
        if k == 2:
            growing(layer, ht.state_sizes(layer)[""] + 2, optimizer)
        for model, steps in ((layer, optimizer), (twin, its)):
            steps.zero_grad()
            squares(model, u).backward()
            if k < 3:  # one step behind the growth: afterwards what has grown takes part
                steps.step()
    for x, wanted in zip(layer.parameters(), twin.parameters(), strict=True):
        kept, mean = optimizer.state[x]["exp_avg"], its.state[wanted]["exp_avg"]
        if x.shape == wanted.shape:
            torch.testing.assert_close(kept, mean, rtol=1e-8, atol=1e-14)
        else:
            assert int(optimizer.state[x]["step"]) == 3
            assert bool((kept != 0).any())


@pytest.mark.parametrize("name", [x for x in LAYERS if x != "S4D"])
def test_a_cut_takes_away_what_has_grown(name):
    layer, u = made(name), inputs(3, batches=1)[0]
    before, old = layer(u).detach(), ht.state_sizes(layer)[""]
    growing(layer, old + 4)
    ht.compress_(layer, ht.CompressionConfig(order=old, round_to=1), batches=[u])
    torch.testing.assert_close(layer(u), before, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("name", "old"), MODELS.items())
def test_models_of_hugging_face_grow(name, old):
    model, ids = language_model(name), tokens(length=16)
    with torch.no_grad():
        before = model(ids).logits
        sizes = ht.resize_(model, dict.fromkeys(ht.state_sizes(model), old + 8), inert=True)
        assert set(sizes.values()) == {old + 8}
        after = model(ids).logits
    assert (after - before).abs().max() < 30 * torch.finfo(torch.float32).eps * before.abs().max()


def test_a_layer_does_not_grow_smaller():
    with pytest.raises(hr.InputError, match="compress_"):
        growing(made("LRU"), 4)
    with pytest.raises(hr.InputError, match="inert"):
        ht.resize_(made("LRU"), {"": 9}, inert="yes")
    model = language_model("Jamba")
    sizes = dict.fromkeys(ht.state_sizes(model), 20)
    with pytest.raises(hr.InputError, match="norm over its states"):
        ht.resize_(model, sizes, inert=True)
