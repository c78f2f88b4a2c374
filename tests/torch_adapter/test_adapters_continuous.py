"""Claims about reading, cutting and writing layers in continuous time: S5, S4D and the kernels they came from."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import hankelred as hr
import hankelred_torch as ht
from hankelred_torch.adapters import adapter_of

from .adapter_models import assert_consistent, assert_unchanged, snapshot
from .continuous_layers import (
    BANKS,
    CHANNELS,
    FAMILIES,
    STATES,
    SYSTEMS,
    assert_same_states,
    inputs,
    made,
    make_inert,
    run,
    s4d,
    s5,
    s5_both_directions,
    s5_pytorch,
    ssm_kernel,
    ssm_kernel_with_shared_poles,
)

OMEGA = np.linspace(0, np.pi, 65)


def as_tuple(systems):
    return tuple(systems) if isinstance(systems, (tuple, hr.DiagonalBank)) else (systems,)


def simulated(system, u):
    """Return the output of one diagonal system with real output, step by step in double precision."""
    x, y = np.zeros((len(u), system.n), dtype=complex), []
    for t in range(u.shape[1]):
        x = x * system.lam + u[:, t] @ system.B.T
        y.append((x @ system.C.T).real + u[:, t] @ system.D.T)
    return np.stack(y, axis=1)


def response(layer, u):
    """Return the output that the systems read from a layer have, in the order in which the layer has its outputs."""
    systems, u = ht.read_system(layer), u.numpy()
    if isinstance(systems, hr.DiagonalBank):
        each = [simulated(system, u[..., k : k + 1]) for k, system in enumerate(systems)]
        return np.stack(each, axis=3).reshape(*u.shape[:2], -1)
    y = simulated(systems, u)
    if getattr(layer, "bidir", False):
        channels = u.shape[2]
        return y[..., :channels] + simulated(systems, u[:, ::-1])[:, ::-1, channels:]
    return y


def relative(y, expected):
    y, expected = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x) for x in (y, expected))
    return np.abs(y - expected).max() / np.abs(expected).max()


def distance(G, H):
    """Return the largest difference of two frequency responses, relative to the first."""
    G, H = G.frequency_response(OMEGA), H.frequency_response(OMEGA)
    return np.abs(G - H).max() / np.abs(G).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_system_read_computes_what_the_layer_computes(family):
    layer, u = made(family), inputs()
    assert relative(response(layer, u), run(layer, u)) < 1e-10  # (exp(z) - 1) / lambda of the peers loses digits


@pytest.mark.parametrize("family", FAMILIES)
def test_inert_states_are_removed_and_the_output_stays(family):
    layer, u = make_inert(made(family), live=5), inputs()
    before = run(layer, u)
    report = ht.compress_(layer, ht.CompressionConfig(tau=0.0))
    assert report.sizes == {"": 5}
    assert relative(run(layer, u), before) < 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_output_changes_by_no_more_than_the_bound(family):
    layer, u = made(family), inputs(400)
    u[:, 200:] = 0  # all of the response is seen
    before = run(layer, u)
    report = ht.compress_(layer, ht.CompressionConfig(order=4))
    change = (run(layer, u) - before).detach().norm(dim=(1, 2)) / u.norm(dim=(1, 2))
    directions = np.sqrt(2) if family is s5_both_directions else 1.0
    outputs = np.sqrt(2) if family.__name__.endswith("two_outputs") else 1.0
    bound = directions * outputs * report.layers[""].error_bound
    assert report.layers[""].states == 4
    assert 0 < change.max() <= bound


@pytest.mark.parametrize("family", FAMILIES)
def test_states_kept_as_they_are_keep_their_parameters(family):
    layer = make_inert(made(family), live=5)
    adapter = adapter_of(layer)
    values = adapter.values()
    new = adapter.rewrite(values, adapter.analyse(values).reduce(5).reduction)
    assert_same_states(layer, new, values, values, live=5, rtol=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_reduced_layer_is_the_reduced_system(family):
    layer = made(family)
    adapter = adapter_of(layer)
    values = adapter.values()
    reduction = adapter.analyse(values).reduce(4).reduction
    new = adapter.read(adapter.rewrite(values, reduction) | {x: values[x] for x in adapter.constants})
    for written, each in zip(as_tuple(new), as_tuple(reduction), strict=True):
        assert distance(each.system, written) < 1e-9


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_for_penalties_are_the_system_read(family):
    layer = made(family)
    adapter = adapter_of(layer)
    system = adapter.tensors_of_system()
    read = as_tuple(adapter.read(adapter.values()))
    for name, part in (("rates", "rates"), ("B", "B"), ("C", "C")):
        expected = np.stack([getattr(x, part) for x in read])
        found = getattr(system, name)
        assert relative(found if found.ndim == expected.ndim else found[None], expected) < 1e-12, name
    total = system.rates.abs().sum() + system.B.abs().sum() + system.C.abs().sum()
    total.backward()
    assert all(layer.get_parameter(name).grad is not None for name in adapter.state_axes)


@pytest.mark.parametrize("family", [s5, s4d, s5_pytorch])
def test_penalty_falls_when_training_follows_it(family):
    layer = made(family)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-4)
    before = ht.penalty.hankel_penalty(layer)
    before.backward()
    optimizer.step()
    assert ht.penalty.hankel_penalty(layer) < before


@pytest.mark.parametrize("family", [*SYSTEMS, s4d])
def test_written_system_is_read_back(family):
    source, target = made(family), made(family, seed=1)
    ht.write_system(target, ht.read_system(source))
    for G, H in zip(as_tuple(ht.read_system(source)), as_tuple(ht.read_system(target)), strict=True):
        assert distance(G, H) < 1e-10


@pytest.mark.parametrize("family", [*SYSTEMS, s4d])
def test_system_of_another_size_is_written(family):
    layer = made(family)
    reduced = tuple(hr.balanced_truncation(x, states=3).system for x in as_tuple(ht.read_system(layer)))
    ht.write_system(layer, reduced if family in BANKS else reduced[0])
    assert ht.state_sizes(layer) == {"": max(x.n for x in reduced)}
    for G, H in zip(reduced, as_tuple(ht.read_system(layer)), strict=True):
        assert distance(G, H) < 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_training_goes_on_after_a_cut(family):
    layer, u = made(family), inputs(30)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    for _ in range(2):
        run(layer, u).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    ht.compress_(layer, ht.CompressionConfig(order=4), optimizer)
    assert_consistent(layer, optimizer)
    before = [p.detach().clone() for p in layer.parameters()]
    run(layer, u).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(layer.parameters(), before, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_planning_changes_nothing(family):
    layer = made(family)
    before = snapshot(layer)
    ht.plan(layer, ht.CompressionConfig(order=4))
    ht.hankel_singular_values(layer)
    assert_unchanged(before, layer)


@pytest.mark.parametrize("family", FAMILIES)
def test_averaged_copy_that_equals_the_layer_is_cut_as_the_layer(family):
    layer = made(family)
    twin = copy.deepcopy(layer)
    ht.compress_(layer, ht.CompressionConfig(order=4), ema=twin)
    for name, p in layer.named_parameters():
        assert relative(twin.get_parameter(name), p) < 1e-8, name


def test_kernel_records_its_new_size():
    layer = made(ssm_kernel)
    ht.compress_(layer, ht.CompressionConfig(order=3))
    assert layer.N == 3
    assert layer(20).shape == (1, CHANNELS, 20)


def test_channels_that_share_poles_are_one_system_in_continuous_time():
    layer = made(ssm_kernel_with_shared_poles)
    systems, steps = ht.read_system(layer), layer.inv_dt.exp().detach().numpy()
    assert [(x.n, x.p, x.dt) for x in systems] == [(STATES, 4, 0)] * CHANNELS  # two channels of two outputs each
    K = np.zeros((2, 2 * CHANNELS, 30))
    for k, system in enumerate(systems):
        C = system.C.reshape(2, 2, -1)  # copies, outputs
        for turn in range(2):
            channel = turn * CHANNELS + k
            rates = system.lam * steps[channel]
            held = np.expm1(rates) / system.lam * system.B[:, 0]
            K[:, channel] = (C[turn] @ (held[:, None] * np.exp(rates[:, None] * np.arange(30)))).real
    assert relative(K, layer(30)) < 1e-10


def test_inert_states_of_channels_that_share_poles_are_removed_exactly():
    layer, u = make_inert(made(ssm_kernel_with_shared_poles), live=5), inputs(channels=2 * CHANNELS)
    before = run(layer, u)
    assert ht.compress_(layer, ht.CompressionConfig(tau=0.0)).sizes == {"": 5}
    assert relative(run(layer, u), before) < 1e-10
    assert layer.A_real.shape == (CHANNELS, 5)


def test_penalty_of_channels_that_share_poles_is_that_of_their_systems():
    layer = made(ssm_kernel_with_shared_poles)
    expected = sum(hr.hankel_singular_values(x).sum() for x in ht.read_system(layer))
    assert ht.penalty.hankel_penalty(layer).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("family", BANKS)
def test_bank_keeps_what_its_most_demanding_channel_needs(family):
    layer, u = made(family), inputs()
    with torch.no_grad():
        C = layer.C.unflatten(0, (-1, CHANNELS)) if layer.C.ndim == 3 else layer.C
        for channel, live in enumerate((5, 2, 0)):
            C[:, channel, live:] = 0
    before = run(layer, u)
    report = ht.compress_(layer, ht.CompressionConfig(tau=0.0))
    assert report.sizes == {"": 5}
    assert relative(run(layer, u), before) < 1e-10


def test_states_that_fill_up_a_channel_can_be_trained():
    layer = make_inert(made(s4d), live=5)
    with torch.no_grad():
        layer.C[1, 2:] = 0
    ht.compress_(layer, ht.CompressionConfig(tau=0.0))
    assert int((layer.C[1].abs().sum(-1) == 0).sum()) == 3
    layer(inputs()).square().sum().backward()
    assert torch.all(layer.C.grad[1] != 0)
    assert torch.isfinite(layer.A_imag.grad).all()


def test_bank_reports_the_energy_of_all_channels_and_the_largest_bound():
    layer = made(s4d)
    plan = ht.plan(layer, ht.CompressionConfig(order=4)).layers[""]
    hsv = ht.hankel_singular_values(layer)[""]
    kept = sum(row[: x.order].sum() for row, x in zip(hsv, plan.reduction, strict=True))
    assert hsv.shape == (CHANNELS, 2 * STATES)
    assert plan.kept_energy == pytest.approx(kept / hsv.sum(), rel=1e-12)
    assert plan.error_bound == max(x.error_bound for x in plan.reduction)
    assert plan.error_bound >= max(x.hinf_error() for x in plan.reduction)


def test_every_channel_of_a_bank_meets_the_criterion():
    layer = made(s4d)
    plan = ht.plan(layer, ht.CompressionConfig(tau=0.1, min_cut=0.0)).layers[""]
    for reduction in plan.reduction:
        assert reduction.hsv[: reduction.order].sum() >= 0.9 * reduction.hsv.sum() * (1 - 1e-12)


@pytest.mark.parametrize("family", [s5, s5_pytorch])
def test_unstable_poles_are_refused_with_what_to_do(family):
    layer = made(family)
    with torch.no_grad():
        if family is s5:
            layer.Lambda_re[2] = 0.01
        else:
            layer.Lambda[2] = 0.01
    for ask in (ht.hankel_singular_values, lambda x: ht.plan(x, ht.CompressionConfig())):
        with pytest.raises(
            hr.StabilityError, match=r"got 1 of 8 without, .* beyond the boundary\. Nothing .* lower the learning"
        ):
            ask(layer)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("liquid", True, "liquid=True, whose poles move"),
        ("bcInit", "factorized", "whose B and C are products"),
        ("degree", 2, "raises the entries of B"),
    ],
)
def test_variants_of_s5_pytorch_that_are_no_fixed_diagonal_system_are_refused(setting, value, message):
    layer = made(s5_pytorch)
    setattr(layer, setting, value)
    assert ht.find_ssm_layers(layer) == {}
    with pytest.raises(hr.InputError, match=f"S5SSM must be a fixed diagonal system .*{message}"):
        ht.read_system(layer)
    with pytest.raises(hr.InputError, match=message):
        ht.plan(layer, ht.CompressionConfig())


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("disc", "bilinear", 'disc other than "zoh"'),
        ("disc", "dss", 'disc other than "zoh"'),
        ("bandlimit", 0.5, "a bandlimit"),
        ("imag_transform", "exp", "imag_transform"),
        ("is_real", True, "states are real"),
    ],
)
def test_variants_of_the_kernel_that_are_no_plain_bank_are_refused(setting, value, message):
    layer = made(ssm_kernel)
    setattr(layer, setting, value)
    with pytest.raises(hr.InputError, match=message):
        ht.read_system(layer)


def test_gated_unit_whose_states_are_its_channels_is_refused():
    from_transformers = pytest.importorskip("transformers.models.recurrent_gemma")
    config = from_transformers.RecurrentGemmaConfig(hidden_size=8, lru_width=8, num_attention_heads=2)
    layer = from_transformers.modeling_recurrent_gemma.RecurrentGemmaRglru(config)
    assert ht.find_ssm_layers(layer) == {}
    for ask in (ht.read_system, lambda x: ht.plan(x, ht.CompressionConfig())):
        with pytest.raises(hr.InputError, match="every channel is its own state behind gates"):
            ask(layer)


@pytest.mark.parametrize("name", ["SSMKernelDPLR", "LSSL", "DSSKernel"])
def test_kernels_that_are_not_diagonal_are_refused_with_the_reason(name):
    layer = type(name, (nn.Module,), {})()
    with pytest.raises(hr.InputError, match=f"{name} must be (diagonal|one system for all lengths) to be reduced"):
        ht.read_system(layer)


@pytest.mark.parametrize(
    ("systems", "message"),
    [
        (lambda x: tuple(x)[:2], "holds 3 systems, one per channel"),
        (lambda x: x[0], "holds 3 systems, one per channel"),
        (
            lambda x: (*tuple(x)[:2], hr.DiagonalSystem([1.5 + 0j], [[1]], [[1]], dt=True, output="real")),
            "stable discrete systems .* in channel 2",
        ),
    ],
)
def test_systems_a_bank_cannot_hold_are_refused_and_change_nothing(systems, message):
    layer = made(s4d)
    before = snapshot(layer)
    with pytest.raises(hr.InputError, match=message):
        ht.write_system(layer, systems(ht.read_system(layer)))
    assert_unchanged(before, layer)


def test_model_with_several_families_is_cut_as_one():
    torch.manual_seed(0)
    model = nn.Sequential(ht.layers.LRU(4, 12), ht.layers.S5(4, 12), ht.layers.S4D(4, 12))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 40, 4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    report = ht.compress_(model, ht.CompressionConfig(order=6), optimizer)
    assert report.sizes == {"0": 6, "1": 6, "2": 6}
    assert_consistent(model, optimizer)
