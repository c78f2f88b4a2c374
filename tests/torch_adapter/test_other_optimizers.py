"""Claims about optimizers of other packages: a cut of a state that does nothing is not felt, or it was said before."""

from __future__ import annotations

import collections
import warnings

import pytest
import torch
from sizes import is_long

import hankelred as hr
import hankelred_torch as ht
from hankelred_torch.surgery import as_optimizers, check_optimizers

from .adapter_models import assert_consistent, lru, train
from .other_optimizers import Run, change_by_a_lossless_cut, change_of, has, optimizers

# What they keep, in kinds: copies of the parameter, sums of gradients, counts by group, factors, bases, containers,
# numbers of four bits, and such in tables of their own.
DOZEN = "adabelief adashift aggmo came kron lookahead madgrad muon prodigy ranger schedulefreeadamw soap".split()
DOZEN += ["torchao.AdamW4bit", "bitsandbytes.AdamW8bit"]

# These do not train this model at all, without a cut: they want other parameters, or a group of processes.
NOT_HERE = "adalomo bsam demo distributedmuon lomo lorarite spectralsphere bitsandbytes.AdEMAMix32bit".split()
NOT_HERE += ["adahessian", "sophiah"]  # these differentiate twice, which the scan does not

# Refused when a compressor is made, and by a cut.
REFUSED = "lbfgs sara spam".split()


@pytest.mark.parametrize("name", [x for x in optimizers() if is_long() or x in DOZEN])
def test_lossless_cut_is_not_felt_or_was_warned_of(name):
    if name in NOT_HERE:
        pytest.skip(f"{name} does not train such a model")
    if name in REFUSED:
        with pytest.raises(hr.InputError, match="optimizers must"):
            change_of(name)
        return
    ratio, early, _ = change_of(name)
    assert ratio < 2 or early, f"losses change by a factor of {ratio:.3g}"


@pytest.mark.skipif(not has("schedulefree"), reason="schedulefree is not installed")
@pytest.mark.parametrize("name", ["AdamWScheduleFree", "SGDScheduleFree", "RAdamScheduleFree"])
def test_lossless_cut_is_not_felt_with_schedulefree(name):
    # history: the second moment was dropped, the count of its bias correction in the group was not: losses rose by 3e4
    import schedulefree

    ratio, early, late = change_by_a_lossless_cut(
        lambda model: getattr(schedulefree, name)(model.parameters(), lr=1e-2)
    )
    assert ratio < 1.2
    assert early == late == []


@pytest.mark.skipif(not has("pytorch_optimizer"), reason="pytorch_optimizer is not installed")
@pytest.mark.parametrize("name", ["Lookahead", "OrthoGrad"])
def test_wrapped_optimizers_go_on(name):
    import pytorch_optimizer

    def make(model):
        return getattr(pytorch_optimizer, name)(torch.optim.AdamW(model.parameters(), lr=1e-3))

    ratio, early, _ = change_by_a_lossless_cut(make)
    assert ratio < 2 or early


@pytest.mark.skipif(not has("pytorch_optimizer"), reason="pytorch_optimizer is not installed")
def test_wrapper_that_keeps_a_dict_by_parameter_is_refused():
    import pytorch_optimizer

    run = Run(lambda model: pytorch_optimizer.TRAC(torch.optim.AdamW(model.parameters(), lr=1e-3)))
    run.step()
    with pytest.raises(hr.InputError, match="a dict by parameter"):
        ht.compress_(run.model, ht.CompressionConfig(order=31, min_cut=0), run.optimizer)


def test_quantised_moments_are_carried():
    # history: .numpy() of a tensor subclass, at the first attempt of a long run; small tensors are not quantised
    optim = pytest.importorskip("torchao.optim", reason="torchao is not installed")
    layer = ht.layers.LRU(128, 64)
    optimizer = optim.AdamW8bit(layer.parameters())
    for p in layer.parameters():  # as its first step makes them; a step would compile
        optimizer.state[p] = {"step": torch.tensor(3.0)}
        for key, signed in (("exp_avg", True), ("exp_avg_sq", False)):
            optimizer.state[p][key] = optimizer._new_buffer(p, signed)
            optimizer.state[p][key].copy_(torch.rand(p.shape) * 1e-3)
    assert type(optimizer.state[layer.B_re]["exp_avg"]) is not torch.Tensor
    with warnings.catch_warnings():
        warnings.simplefilter("error", ht.OptimizerStateWarning)
        ht.compress_(layer, ht.CompressionConfig(order=32), optimizer)
    state = optimizer.state[layer.B_re]
    assert state["step"] == 3
    assert state["exp_avg"].shape == (32, 128)
    assert float(state["exp_avg_sq"].dequantize().mean() if hasattr(state["exp_avg_sq"], "codes") else 1) > 0


class Preconditioned(torch.optim.Optimizer):
    """The layout of SOAP: moments by name, and matrices by axis in a list, a dict or a deque."""

    def __init__(self, params, container):
        super().__init__(params, {"lr": 1e-3})
        self.container = container

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                state["exp_avg"], eyes = torch.zeros_like(p), [torch.eye(n, dtype=p.dtype) for n in p.shape]
                state["GG"] = dict(enumerate(eyes)) if self.container is dict else self.container(eyes)
            state["exp_avg"].lerp_(p.grad, 0.1)
            p.sub_(state["GG"][0] @ state["exp_avg"], alpha=1e-3)


@pytest.mark.parametrize("container", [list, tuple, dict, collections.deque])
def test_containers_of_tensors_are_no_scalars(container):
    layer = lru()
    optimizer = Preconditioned(layer.parameters(), container)
    with pytest.warns(ht.OptimizerStateWarning, match="Preconditioned: GG start anew") as early:
        check_optimizers(ht.find_ssm_layers(layer), (optimizer,))
    train(layer, optimizer, 2)
    with pytest.warns(ht.OptimizerStateWarning) as late:
        ht.compress_(layer, ht.CompressionConfig(order=4), optimizer)
    assert len(early) == len(late) == 1  # not one per tensor
    train(layer, optimizer, 2)


class Odd(torch.optim.SGD):
    """Keeps something that no copy of it shows the kind of."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("mystery", p.detach().abs() + 1).add_(p.grad.abs().sqrt())


def test_known_entries_are_carried_beside_unknown_ones(monkeypatch):
    from hankelred_torch.surgery import roles

    monkeypatch.setattr(roles, "TABLE", dict(roles.TABLE))
    layer = lru()
    optimizer = Odd(layer.parameters(), lr=1e-3, momentum=0.9)
    train(layer, optimizer, 3)
    with pytest.warns(ht.OptimizerStateWarning, match="Odd: mystery start anew, for nu_log"):
        ht.compress_(layer, ht.CompressionConfig(order=6), optimizer)
    assert optimizer.state[layer.B_re]["momentum_buffer"].abs().max() > 0
    assert optimizer.state[layer.B_re]["mystery"].shape == (6, 3)
    ht.register_optimizer_state(Odd, "mystery", "square")
    train(layer, optimizer, 1)
    ht.compress_(layer, ht.CompressionConfig(order=4), optimizer)  # no warning
    assert optimizer.state[layer.B_re]["mystery"].shape == (4, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, "x", "square"), "optimizer_class_or_name must be a class"),
        (("SOAP", "x", "square"), "its package and name joined by a dot"),
        ((None, 3, "square"), "key must be the name"),
        ((None, "x", "moment"), "role must be one of 'parameter', 'gradient'"),
    ],
)
def test_roles_of_another_kind_are_refused(arguments, message):
    with pytest.raises(hr.InputError, match=message):
        ht.register_optimizer_state(*arguments)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
def test_moments_that_are_not_finite_start_anew(value, key):
    layer = lru(dtype=torch.float32)
    optimizer = torch.optim.AdamW(layer.parameters())
    train(layer, optimizer, 3)
    optimizer.state[layer.B_re][key][0, 0] = value
    with pytest.warns(ht.OptimizerStateWarning, match=f"AdamW: {key} are not finite and start anew, for B_re"):
        ht.compress_(layer, ht.CompressionConfig(order=4), optimizer)
    assert layer.B_re not in optimizer.state
    assert optimizer.state[layer.C_re]["exp_avg"].abs().max() > 0
    train(layer, optimizer, 1)
    assert_consistent(layer, optimizer)


@pytest.mark.parametrize("key", ["row_var", "col_var"])
def test_factors_of_which_one_is_not_finite_start_anew_together(key):
    # history: the one that was left alone was an error, in the middle of a cut
    layer = lru(dtype=torch.float32)
    optimizer = torch.optim.Adafactor(layer.parameters())
    train(layer, optimizer, 2)
    optimizer.state[layer.B_re][key].flatten()[0] = float("inf")
    with pytest.warns(ht.OptimizerStateWarning, match="row_var, col_var are not finite and start anew, for B_re"):
        ht.compress_(layer, ht.CompressionConfig(order=4), optimizer)
    train(layer, optimizer, 1)


class Beside(torch.optim.SGD):
    """Keeps averages of the parameters beside the states, by group or all in one."""

    def __init__(self, params, place):
        super().__init__(params, lr=1e-3, momentum=0.9)
        self.place, self.flat = place, None

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups if self.place == "group" else ():
            averages = group.setdefault("averages", [torch.zeros_like(p) for p in group["params"]])
            for average, p in zip(averages, group["params"], strict=True):
                average.lerp_(p, 0.1)
        if self.place == "optimizer":
            flat = torch.cat([p.flatten() for group in self.param_groups for p in group["params"]])
            self.flat = flat if self.flat is None else self.flat.lerp(flat, 0.1)


@pytest.mark.parametrize("place", ["group", "optimizer"])
def test_tensors_beside_the_states_are_refused_before_training(place):
    # history: accepted, and a size mismatch at the step after the first cut
    layer = lru()
    with pytest.raises(hr.InputError, match="optimizers must be able to go on after a cut; got Beside"):
        check_optimizers(ht.find_ssm_layers(layer), (Beside(layer.parameters(), place),))


@pytest.mark.parametrize("family", [ht.layers.LRU, ht.layers.S4D, ht.layers.S5])
@pytest.mark.parametrize("order", [12, 20, 24])
def test_squares_stay_above_the_squares_of_averages(family, order):
    # history: a moment of 4e-3 beside a square of 0 moved a parameter by 2,497 at a learning rate of 1e-3
    torch.manual_seed(0)
    layer = family(4, 32)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    for _ in range(3):
        layer(torch.randn(4, 32, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def largest_ratio():
        states = [optimizer.state[p] for n, p in layer.named_parameters() if n != "D"]
        return max(
            float((s["exp_avg"].square() / s["exp_avg_sq"].clamp(min=1e-30))[s["exp_avg"].abs() > 1e-12].max())
            for s in states
        )

    before = largest_ratio()
    ht.compress_(layer, ht.CompressionConfig(order=order), optimizer)
    assert largest_ratio() < before * (1 + 1e-3)  # both rounded to float32
    values = [p.detach().clone() for p in layer.parameters()]
    (0 * layer(torch.randn(4, 32, 4))).sum().backward()
    optimizer.step()
    moved = max(float((p.detach() - x).abs().max()) for p, x in zip(layer.parameters(), values, strict=True))
    assert moved < 20e-3  # twenty learning rates; Adam's own bound is 7 after many steps


def test_accelerated_and_lightning_optimizers_are_seen_through():
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    inner = torch.optim.AdamW(lru().parameters())
    assert as_optimizers(accelerate.Accelerator(cpu=True).prepare_optimizer(inner)) == (inner,)
    optimizer = pytest.importorskip("lightning.pytorch.core.optimizer", reason="lightning is not installed")
    assert as_optimizers(optimizer.LightningOptimizer(inner)) == (inner,)


def test_checking_leaves_model_optimizer_and_random_numbers_alone():
    run = Run(lambda model: Odd(model.parameters(), lr=1e-3, momentum=0.9))
    run.step()
    values = [p.detach().clone() for p in run.model.parameters()]
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with pytest.warns(ht.OptimizerStateWarning):
        check_optimizers(ht.find_ssm_layers(run.model), (run.optimizer,))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(p, x) for p, x in zip(run.model.parameters(), values, strict=True))
    assert {*run.optimizer.state} <= {*run.model.parameters()}
