"""Claims about the rise of learning rates after a cut."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

import hankelred as hr
from hankelred_torch.rewarm import Rewarmer

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


def rates_used(optimizer, schedule, steps, rewarmer=None, cut_at=None):
    """Return, for every step, the rate the parameters felt and the one that could be read afterwards."""
    felt, seen = [], []
    p = optimizer.param_groups[0]["params"][0]
    for k in range(steps):
        before = p.item()
        optimizer.step()
        felt.append(p.item() - before)
        seen.append(optimizer.param_groups[0]["lr"])
        schedule.step()
        if rewarmer is not None:
            rewarmer.count()
            if k == cut_at:
                rewarmer.start()
    return felt, seen


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_rise_to_those_of_the_schedule_which_stays_as_it_was(name):
    plain, warmed = sgd(), sgd()
    felt, seen = rates_used(plain, SCHEDULES[name](plain), 20)
    rewarmer = Rewarmer((warmed,), 4)
    felt_warmed, seen_warmed = rates_used(warmed, SCHEDULES[name](warmed), 20, rewarmer, cut_at=6)
    factors = [1.0] * 7 + [0.2, 0.4, 0.6, 0.8] + [1.0] * 9
    assert seen_warmed == seen
    assert felt_warmed == pytest.approx(
        [f * rate for f, rate in zip(factors, felt, strict=True)], abs=1e-12
    )  # sums of a few numbers near 1


def test_every_group_of_every_optimizer_is_scaled():
    first, second = sgd(lr=0.5), sgd(lr=0.25)
    rewarmer = Rewarmer((first, second), 1)
    rewarmer.start()
    for optimizer in (first, second):
        optimizer.step()
    felt = [group["params"][0].item() for x in (first, second) for group in x.param_groups]
    assert felt == [0.25, 0.5, 0.125, 0.25]


def test_rate_kept_in_a_tensor_is_put_back_as_the_same_tensor():
    rate = torch.tensor(0.5)
    p = torch.nn.Parameter(torch.zeros(()))
    p.grad = torch.tensor(-1.0)
    optimizer = torch.optim.Adam([p], lr=rate, capturable=False, foreach=False)
    rewarmer = Rewarmer((optimizer,), 1)
    rewarmer.start()
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate == 0.5
    assert p.item() == pytest.approx(0.25)


def test_step_that_raises_leaves_no_factor_behind():
    optimizer = sgd()
    rewarmer = Rewarmer((optimizer,), 3)
    rewarmer.start()

    def closure():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)
    for _ in range(3):
        rewarmer.count()
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_optimizer_without_hooks_is_refused():
    class Bare:
        param_groups = ()

    with pytest.raises(hr.InputError, match=r"needs optimizers with hooks around their steps; got .*Bare"):
        Rewarmer((Bare(),), 2)
    Rewarmer((Bare(),), 0)
