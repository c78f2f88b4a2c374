"""The Mamba block: the published one with the same weights, the same step by step, shrunk by replacing parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from hankelred.errors import InputError
from hankelred_torch.layers import Mamba


def layer(channels: int = 8, states: int = 6, seed: int = 0, **sizes) -> Mamba:
    """Return a layer whose parameters have moved from where they start, so that none is simple."""
    torch.manual_seed(seed)
    block = Mamba(channels, states, **sizes)
    with torch.no_grad():
        for p in block.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return block


def sequences(batch: int = 2, length: int = 30, channels: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, length, channels, generator=torch.Generator().manual_seed(5)).to(dtype)


def relative(y: Tensor, expected: Tensor) -> float:
    return float((y - expected).detach().abs().max() / expected.detach().abs().max())


def shrink(block: Mamba, keep: Tensor) -> Mamba:
    """Keep some states, by replacing the two parameters that know them and the number that prints them."""
    rank, n = block.dt_proj.weight.shape[1], block.states
    rows = torch.cat([torch.arange(rank), rank + keep, rank + n + keep])
    block.A_log = nn.Parameter(block.A_log.detach()[:, keep])
    block.x_proj.weight = nn.Parameter(block.x_proj.weight.detach()[rows])
    block.x_proj.out_features = len(rows)
    return block


def mambapy_block(block: Mamba) -> nn.Module:
    peer = pytest.importorskip("mambapy.mamba")
    inner, _, conv = block.conv1d.weight.shape
    config = peer.MambaConfig(
        d_model=block.channels,
        n_layers=1,
        d_state=block.states,
        expand_factor=inner // block.channels,
        d_conv=conv,
        dt_rank=block.dt_proj.weight.shape[1],
    )
    return peer.MambaBlock(config)


def transformers_mixer(block: Mamba) -> nn.Module:
    peer = pytest.importorskip("transformers.models.mamba.modeling_mamba")
    inner, _, conv = block.conv1d.weight.shape
    config = peer.MambaConfig(
        hidden_size=block.channels,
        num_hidden_layers=1,
        state_size=block.states,
        expand=inner // block.channels,
        conv_kernel=conv,
        time_step_rank=block.dt_proj.weight.shape[1],
    )
    return peer.MambaMixer(config, layer_idx=0)


PEERS = [mambapy_block, transformers_mixer]


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("sizes", [{}, {"channels": 40, "states": 5, "expand": 1, "conv": 2}, {"dt_rank": 3}], ids=str)
def test_output_and_gradients_are_those_of_the_published_block(peer, sizes):
    block = layer(**sizes).double()
    other = peer(block).double()
    other.load_state_dict(block.state_dict())  # strict: the same names and shapes
    u = sequences(channels=block.channels, dtype=torch.float64)
    y, expected = block(u), other(u)
    # both peers make rates of A_log in float32
    assert relative(y, expected) < 1e-6
    y.square().sum().backward()
    expected.square().sum().backward()
    right = dict(other.named_parameters())
    for name, p in block.named_parameters():
        assert relative(p.grad, right[name].grad) < 2e-6, name


@pytest.mark.parametrize("peer", PEERS)
def test_weights_of_the_published_block_fit_the_layer(peer):
    block = layer()
    other = peer(block)
    Mamba(8, 6).load_state_dict(other.state_dict())
    for name, p in other.named_parameters():
        assert p.shape == dict(block.named_parameters())[name].shape


def test_parameters_start_as_published():
    torch.manual_seed(0)
    block = Mamba(channels=512, states=7)
    block.requires_grad_(False)
    step = softplus(block.dt_proj.bias.double())
    # half the steps under the geometric mean: 1024 draws, standard deviation 16 of them
    assert float((step < 1e-2).double().mean()) == pytest.approx(0.5, abs=0.08)
    assert 0.999e-3 < float(step.min()) < 1.1e-3
    assert 0.9e-1 < float(step.max()) < 1.001e-1
    assert torch.equal(block.A_log, torch.arange(1, 8).double().log().float().expand(1024, 7))
    assert torch.equal(block.D, torch.ones(1024))
    bound = 32**-0.5  # the rank is 512 / 16
    assert block.dt_proj.weight.shape == (1024, 32)
    assert 0.99 * bound < float(block.dt_proj.weight.abs().max()) <= bound
    assert [name for name, p in block.named_parameters() if hasattr(p, "_no_weight_decay")] == ["A_log", "D"]


@pytest.mark.parametrize(("channels", "rank"), [(1, 1), (16, 1), (17, 2), (64, 4)])
def test_rank_of_the_steps_is_a_sixteenth_of_the_channels_rounded_up(channels, rank):
    assert Mamba(channels, 4).dt_proj.in_features == rank


@pytest.mark.parametrize("conv", [1, 2, 4])
def test_steps_give_the_output_of_the_sequence(conv):
    block, u = layer(conv=conv), sequences()
    state, outputs = block.initial_state(2), []
    for t in range(u.shape[1]):
        y, state = block.step(u[:, t], state)
        outputs.append(y)
    assert relative(torch.stack(outputs, 1), block(u)) < 1e-5  # of float32


def test_later_inputs_change_no_earlier_output():
    block, u = layer(), sequences()
    changed = u.clone()
    changed[:, 20:] += 1
    y, z = block(u), block(changed)
    assert torch.equal(y[:, :20], z[:, :20])
    assert not torch.allclose(y[:, 20:], z[:, 20:])


def test_states_that_nothing_enters_can_be_cut_without_a_trace():
    block, u = layer(states=6), sequences()
    rank = block.dt_proj.weight.shape[1]
    with torch.no_grad():
        block.x_proj.weight[[rank + 1, rank + 4]] = 0  # rows of B
    expected = block(u).detach()
    shrink(block, torch.tensor([0, 2, 3, 5]))
    assert block.states == 4
    assert relative(block(u), expected) < 1e-6
    y, _ = block.step(u[:, 0], block.initial_state(2))
    assert relative(y, expected[:, 0]) < 1e-5


def test_nothing_but_shapes_and_one_number_of_a_linear_map_remembers_the_states():
    # 6 and 13 states and a rank of 1 share no number with other sizes of 32 channels
    block = layer(channels=32, states=13, conv=3, dt_rank=1)
    numbers = {
        f"{name}.{key}".strip("."): value
        for name, module in block.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, int) and value in (13, 1 + 2 * 13)
    }
    assert numbers == {"x_proj.out_features": 27}


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_stays_near_single_precision(autocast):
    block, u = layer(), sequences()
    expected = block(u).detach()
    if autocast:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = block(u)
    else:
        block, u = block.bfloat16(), u.bfloat16()
        y = block(u)
        step, _ = block.step(u[:, 0], block.initial_state(2))
        assert step.dtype == torch.bfloat16
        assert relative(step.float(), expected[:, 0]) < 0.05
    assert y.dtype == torch.bfloat16
    assert relative(y.float(), expected) < 0.05  # roundings of 0.4 % in five maps
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


def test_layer_on_the_meta_device_gets_its_values_later():
    with torch.device("meta"):
        block = Mamba(8, 6)
    block.to_empty(device="cpu")
    block.reset_parameters()
    assert torch.equal(block.A_log, Mamba(8, 6).A_log)
    assert block(sequences()).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0, "states": 4}, "channels must be at least 1; got 0"),
        ({"channels": 4, "states": 0}, "must be at least 1"),
        ({"channels": 4, "states": 4, "conv": 0}, "must be at least 1"),
        ({"channels": 4, "states": 4, "expand": 0}, "must be at least 1"),
        ({"channels": 4, "states": 4, "dt_rank": 0}, "dt_rank must be at least 1"),
        ({"channels": 4, "states": 4, "dt_rank": "half"}, "dt_rank must be an integer"),
    ],
)
def test_empty_sizes_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Mamba(**arguments)
