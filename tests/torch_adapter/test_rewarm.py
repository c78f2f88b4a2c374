"""Claims about the rise of learning rates after a cut."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

import hankelred as hr
import hankelred_torch as ht
from hankelred_torch.surgery import as_optimizers

SCHEDULES = {
    "lambda": lambda x: lr_scheduler.LambdaLR(x, lambda k: 1 / (1 + k)),
    "cosine": lambda x: lr_scheduler.CosineAnnealingLR(x, T_max=30),  # recursive: from the last rate
    "exponential": lambda x: lr_scheduler.ExponentialLR(x, 0.9),  # recursive too
    "one cycle": lambda x: lr_scheduler.OneCycleLR(x, max_lr=1.0, total_steps=30),
    "warm-up then cosine": lambda x: lr_scheduler.SequentialLR(
        x,
        [lr_scheduler.LinearLR(x, 0.1, total_iters=5), lr_scheduler.CosineAnnealingLR(x, T_max=25)],
        milestones=[5],
    ),
}


def sgd(lr=0.5, groups=2):
    """Return an optimizer whose step moves its parameters by the rate of their group."""
    parameters = [torch.nn.Parameter(torch.zeros((), dtype=torch.float64)) for _ in range(groups)]
    for p in parameters:
        p.grad = -torch.ones_like(p)
    return torch.optim.SGD([{"params": [p], "lr": lr * (k + 1)} for k, p in enumerate(parameters)], lr=lr)


class Cutting:
    """As much of a compressor as a hook asks for."""

    def __init__(self, *optimizers):
        self.optimizers = optimizers


def rewarm_of(steps, *optimizers):
    """Return a function that lets the rates of optimizers rise."""
    rewarm, compressor = ht.Rewarm(steps), Cutting(*optimizers)
    rewarm.attach(compressor)
    return lambda: rewarm.after(None, compressor)


def rates_used(optimizer, schedule, steps, start=None, cut_at=None):
    """Return, for every step, the rate the parameters felt and the one that could be read afterwards."""
    felt, seen = [], []
    p = optimizer.param_groups[0]["params"][0]
    for k in range(steps):
        before = p.item()
        optimizer.step()
        felt.append(p.item() - before)
        seen.append(optimizer.param_groups[0]["lr"])
        schedule.step()
        if k == cut_at:
            start()
    return felt, seen


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_rise_to_those_of_the_schedule_which_stays_as_it_was(name):
    plain, warmed = sgd(), sgd()
    felt, seen = rates_used(plain, SCHEDULES[name](plain), 20)
    start = rewarm_of(4, warmed)
    felt_warmed, seen_warmed = rates_used(warmed, SCHEDULES[name](warmed), 20, start, cut_at=6)
    factors = [1.0] * 7 + [0.2, 0.4, 0.6, 0.8] + [1.0] * 9
    assert seen_warmed == seen
    assert felt_warmed == pytest.approx(
        [f * rate for f, rate in zip(factors, felt, strict=True)], abs=1e-12
    )  # sums of a few numbers near 1


def test_every_group_of_every_optimizer_is_scaled():
    first, second = sgd(lr=0.5), sgd(lr=0.25)
    rewarm_of(1, first, second)()
    for optimizer in (first, second):
        optimizer.step()
    felt = [group["params"][0].item() for x in (first, second) for group in x.param_groups]
    assert felt == [0.25, 0.5, 0.125, 0.25]


def test_rise_of_an_optimizer_around_another_is_that_of_the_one_inside():
    # history: Lookahead has hooks for steps and none for states, which was an AttributeError
    pytorch_optimizer = pytest.importorskip("pytorch_optimizer")
    inner = sgd(lr=0.5)
    outer = pytorch_optimizer.Lookahead(inner)
    rewarm_of(1, *as_optimizers(outer))()
    outer.step()
    assert [group["params"][0].item() for group in inner.param_groups] == [0.25, 0.5]
    assert not inner._optimizer_step_pre_hooks


def test_rate_kept_in_a_tensor_is_put_back_as_the_same_tensor():
    rate = torch.tensor(0.5)
    p = torch.nn.Parameter(torch.zeros(()))
    p.grad = torch.tensor(-1.0)
    optimizer = torch.optim.Adam([p], lr=rate, capturable=False, foreach=False)
    rewarm_of(1, optimizer)()
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate == 0.5
    assert p.item() == pytest.approx(0.25)


@pytest.mark.parametrize("look", ["next step", "state_dict"])
def test_step_that_raises_leaves_no_factor_behind(look):
    optimizer = sgd()
    rewarm_of(3, optimizer)()

    def closure():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)
    if look == "state_dict":  # an emergency checkpoint
        assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.5
    for _ in range(3):
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] == 0.5


def test_rise_ends_by_the_steps_of_the_optimizer_and_leaves_no_hook():
    # it went on until somebody counted, and two of them put each other's rates back
    optimizer = sgd(groups=1)
    p = optimizer.param_groups[0]["params"][0]
    for start in (rewarm_of(3, optimizer), rewarm_of(1, optimizer)):
        start()  # the last one counts
    felt = []
    for _ in range(3):
        before = p.item()
        optimizer.step()
        felt.append(p.item() - before)
    assert felt == [0.25, 0.5, 0.5]
    assert optimizer.param_groups[0]["lr"] == 0.5
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    assert [len(x) for x in hooks] == [0, 0]


def test_two_compressors_on_one_optimizer_leave_the_rates_of_the_schedule():
    torch.manual_seed(0)
    model = torch.nn.Sequential(ht.layers.LRU(4, 32), ht.layers.LRU(4, 32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    compressors = [
        ht.InTrainingCompressor(
            model,
            optimizer,
            ht.CompressionConfig(order=8, target_modules=name),
            ht.Schedule(end_step=2, attempts=1, force=True),
            on_cut=ht.Rewarm(5),
        )
        for name in "01"
    ]
    for _ in range(12):
        model(torch.randn(2, 8, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        for compressor in compressors:
            compressor.step()
    assert ht.state_sizes(model) == {"0": 8, "1": 8}
    assert optimizer.param_groups[0]["lr"] == 1e-2


def test_rise_of_an_accelerated_optimizer_is_that_of_the_one_inside():
    accelerate = pytest.importorskip("accelerate")
    layer = ht.layers.LRU(4, 16)
    layer, optimizer = accelerate.Accelerator(cpu=True).prepare(layer, torch.optim.SGD(layer.parameters(), lr=0.5))
    config, schedule = ht.CompressionConfig(order=8), ht.Schedule(end_step=1, force=True)
    compressor = ht.InTrainingCompressor(layer, optimizer, config, schedule, on_cut=ht.Rewarm(1))
    felt = []
    for _ in range(3):
        layer(torch.randn(2, 8, 4)).square().mean().backward()
        before, gradient = layer.D.detach().clone(), layer.D.grad.clone()
        optimizer.step()
        optimizer.zero_grad()
        felt.append(((before - layer.D) / gradient).mean().item())
        compressor.step()
    assert felt == pytest.approx([0.5, 0.25, 0.5], rel=1e-4)  # a quotient of float32 numbers


def test_rise_of_an_optimizer_that_lightning_wraps_is_that_of_the_one_inside():
    wrappers = pytest.importorskip("lightning.pytorch.core.optimizer")
    layer = ht.layers.LRU(4, 16)
    inner = torch.optim.SGD(layer.parameters(), lr=0.5)
    wrapped, felt = wrappers.LightningOptimizer(inner), []
    config, schedule = ht.CompressionConfig(order=8), ht.Schedule(end_step=1, force=True)
    compressor = ht.InTrainingCompressor(layer, wrapped, config, schedule, on_cut=ht.Rewarm(1))
    inner.register_step_pre_hook(lambda x, *_: felt.append(x.param_groups[0]["lr"]))
    for _ in range(3):
        layer(torch.randn(2, 8, 4)).square().mean().backward()
        inner.step()
        inner.zero_grad()
        compressor.step()
    assert ht.state_sizes(layer) == {"": 8}
    assert inner.param_groups[0]["lr"] == 0.5
    assert felt[0] == felt[2] == 0.5


def test_optimizer_without_hooks_is_refused():
    class Bare:
        param_groups = ()

    with pytest.raises(hr.InputError, match=r"needs optimizers with hooks around their steps; got .*Bare"):
        rewarm_of(2, Bare())


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, None, "3"])
def test_rise_of_no_whole_number_of_steps_is_refused(steps):
    with pytest.raises(hr.InputError, match="steps must be"):
        ht.Rewarm(steps)
