"""Small models with LRU layers, shared by the tests of the adapter."""

from __future__ import annotations

import torch
from torch import nn

import hankelred_torch as ht

STATE_TENSORS = ("nu_log", "theta_log", "gamma_log", "B_re", "B_im", "C_re", "C_im")


def lru(states=8, channels=3, *, seed=0, dtype=torch.float64, r_min=0.5, r_max=0.95):
    """Return an LRU with poles well inside the circle and gains as if training had moved them."""
    torch.manual_seed(seed)
    layer = ht.layers.LRU(channels, states, r_min=r_min, r_max=r_max).to(dtype)
    with torch.no_grad():
        layer.gamma_log.add_(0.3 * torch.randn(states))
    return layer


def make_inert(layer, live):
    """Unlink all states after the first `live`: no input and no output."""
    with torch.no_grad():
        for weight in (layer.B_re, layer.B_im):
            weight[live:] = 0
        for weight in (layer.C_re, layer.C_im):
            weight[:, live:] = 0
    return layer


class Stack(nn.Module):
    """Two LRU layers of different sizes between linear maps, as in a sequence model."""

    def __init__(self, sizes=(12, 8), channels=3, *, seed=0, dtype=torch.float64):
        super().__init__()
        self.first = lru(sizes[0], channels, seed=seed, dtype=dtype)
        self.second = lru(sizes[1], channels, seed=seed + 1, dtype=dtype)
        self.head = nn.Linear(channels, 2, dtype=dtype)

    def forward(self, u):
        x = u + torch.tanh(self.first(u))
        return self.head(x + torch.tanh(self.second(x)))


def train(model, optimizer, steps, *, seed=0, channels=3, length=20):
    """Take optimizer steps on a fixed sequence of random batches; the loss pulls the output to a moving sum."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    optimizers = optimizer if isinstance(optimizer, (list, tuple)) else [optimizer]
    for _ in range(steps):
        u = torch.randn(4, length, channels, generator=generator, dtype=torch.float64).to(dtype)
        y = model(u)
        loss = (y - u.cumsum(1)[..., : y.shape[-1]]).square().mean()
        loss.backward()
        for x in optimizers:
            x.step()
        for x in optimizers:
            x.zero_grad()
    return loss.detach()


def inputs(channels=3, length=64, *, seed=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, length, channels, generator=generator, dtype=torch.float64).to(dtype)


def snapshot(model, *optimizers):
    """Return everything a failed cut must leave as it was: objects by identity, values by copy."""
    tensors = [(name, p, p.detach().clone()) for name, p in [*model.named_parameters(), *model.named_buffers()]]
    # tuples: lists of parameters and dicts by them are held to be in use
    groups = [[tuple(group["params"]) for group in x.param_groups] for x in optimizers]
    states = [
        tuple(
            (p, {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in s.items()}) for p, s in x.state.items()
        )
        for x in optimizers
    ]
    return tensors, groups, states


def assert_unchanged(before, model, *optimizers):
    tensors, groups, states = before
    now = [*model.named_parameters(), *model.named_buffers()]
    assert [name for name, _ in now] == [name for name, _, _ in tensors]
    for (name, p), (_, old, value) in zip(now, tensors, strict=True):
        assert p is old, name
        assert torch.equal(p, value), name
    for x, old_groups, old_states in zip(optimizers, groups, states, strict=True):
        for group, params in zip(x.param_groups, old_groups, strict=True):
            assert all(p is q for p, q in zip(group["params"], params, strict=True))
        assert set(x.state) == {p for p, _ in old_states}
        for p, state in old_states:
            assert list(x.state[p]) == list(state)
            for key, value in state.items():
                same = (
                    torch.equal(x.state[p][key], value) if isinstance(value, torch.Tensor) else x.state[p][key] == value
                )
                assert same, key


def assert_consistent(model, *optimizers):
    """Check by hand what every cut promises: parameters known to optimizers, states of the right shape."""
    held = [p for x in optimizers for group in x.param_groups for p in group["params"]]
    assert len({id(p) for p in held}) == len(held)
    parameters = {id(p) for p in model.parameters() if p.requires_grad}
    assert parameters == {id(p) for p in held}
    for x in optimizers:
        assert {id(p) for p in x.state} <= {id(p) for p in held}
        for p, state in x.state.items():
            for key, value in state.items():
                if isinstance(value, torch.Tensor) and value.ndim:
                    assert all(a in (1, b) for a, b in zip(value.shape, p.shape, strict=True)), key
