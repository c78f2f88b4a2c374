"""Short causal convolutions against torch's, and the dispatch to causal_conv1d by a stand-in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv1d, silu

from hankelred.errors import InputError
from hankelred_torch import ops
from hankelred_torch.layers import Mamba
from hankelred_torch.ops.taps import short_convolution

from .kernel_cases import DEVICE, assert_equal, draw, gradients, largest, stand_in


def definition(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y = conv1d(x.mT, weight[:, None], bias, padding=weight.shape[1] - 1, groups=len(weight))
    return silu(y[..., : x.shape[1]]).mT


def tensors(channels: int, taps: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    found = draw(2, 9, channels, seed=1), draw(channels, taps, seed=2), draw(channels, seed=3)
    return [x.detach().to(dtype).requires_grad_() for x in found]


@pytest.mark.parametrize("taps", [1, 2, 4, 5, 12])
def test_short_convolution_and_its_gradients_are_those_of_torch(taps):
    assert_equal(short_convolution, definition, tensors(3, taps))


@pytest.fixture
def calls(monkeypatch):
    found = []

    def causal_conv1d_fn(
        x,
        weight,
        bias=None,
        seq_idx=None,
        initial_states=None,
        return_final_states=False,
        final_states_out=None,
        activation=None,
    ):
        """As in causal_conv1d: x (batch, channels, length), weight (channels, taps); it refuses what that refuses."""
        half_and_single = torch.float16, torch.bfloat16, torch.float32
        assert x.dtype in half_and_single
        assert bias.dtype == weight.dtype in half_and_single
        assert 2 <= weight.shape[1] <= 4
        assert 1 in x.stride()[1:]
        if x.stride(1) == 1 and x.stride(2) > 1:  # channels last
            assert not any(k % 8 for k in (x.shape[1], x.stride(0), x.stride(2)))
        assert activation in (None, "silu", "swish")
        found.append((x.dtype, tuple(x.stride())))
        y = conv1d(x.to(weight.dtype), weight[:, None], bias, padding=weight.shape[1] - 1, groups=len(weight))
        y = y[..., : x.shape[2]]
        return (y if activation is None else silu(y)).to(x.dtype)

    stand_in(monkeypatch, "causal_conv1d", causal_conv1d_fn)
    return found


@pytest.mark.parametrize("channels", [8, 3])
@pytest.mark.parametrize("taps", [2, 3, 4])
def test_kernels_of_causal_conv1d_are_used_where_they_fit(calls, channels, taps):
    a = tensors(channels, taps, torch.float32)
    expected = gradients(short_convolution, a)
    assert not calls
    with ops.use_backend("causal_conv1d"):
        found = gradients(short_convolution, a)
    assert [dtype for dtype, _ in calls] == [torch.float32]
    for f, e in zip(found, expected, strict=True):
        assert largest(f, e) < 1e-6  # sums of up to 18 terms in another order


@pytest.mark.parametrize(
    ("taps", "dtype", "length"),
    [(1, torch.float32, 9), (5, torch.float32, 9), (4, torch.float64, 9), (4, torch.float32, 0)],
    ids=["one tap", "five taps", "double precision", "no steps"],
)
def test_what_does_not_fit_causal_conv1d_runs_as_before(calls, taps, dtype, length):
    x, weight, bias = tensors(8, taps, dtype)
    x = x[:, :length]
    expected = short_convolution(x, weight, bias)
    with ops.use_backend("causal_conv1d"):
        assert torch.equal(short_convolution(x, weight, bias), expected)
    assert not calls


def test_half_of_a_projection_goes_to_causal_conv1d_without_a_copy(calls):
    both = draw(2, 9, 16, dtype=torch.float32).detach()
    with ops.use_backend("causal_conv1d"):
        short_convolution(both[..., :8], *tensors(8, 4, torch.float32)[1:])
        short_convolution(both[..., 1:9], *tensors(8, 4, torch.float32)[1:])
        short_convolution(both[..., :7], *tensors(7, 4, torch.float32)[1:])
    assert [strides for _, strides in calls] == [(144, 1, 16), (144, 1, 16), (63, 9, 1)]


def test_inputs_in_half_precision_and_parameters_in_single_give_single(calls):
    x, weight, bias = tensors(8, 4, torch.float32)
    x = x.to(torch.bfloat16)
    expected = short_convolution(x, weight, bias)
    with ops.use_backend("causal_conv1d"):
        found = short_convolution(x, weight, bias)
    assert found.dtype == expected.dtype == torch.float32
    assert largest(found, expected) < 2**-7  # rounded to bfloat16 on the way


def test_a_mamba_layer_runs_on_causal_conv1d_without_a_change(calls):
    torch.manual_seed(0)
    layer, u = Mamba(channels=4, states=3).to(DEVICE), draw(2, 9, 4, dtype=torch.float32)
    leaves = [u, *layer.parameters()]
    expected = gradients(lambda *_: layer(u), leaves)
    with ops.use_backend("causal_conv1d"):
        found = gradients(lambda *_: layer(u), leaves)
        assert len(calls) == 1
        layer.step(u[:, 0], layer.initial_state(batch=2))  # a step is no sequence
        for other in ("torch", "cpu") if DEVICE == "cpu" else ("torch",):
            with ops.use_backend(other):
                layer(u)
    assert len(calls) == 1
    for f, e in zip(found, expected, strict=True):
        assert largest(f, e) < 1e-5


def test_short_convolution_has_a_line_of_its_own_in_the_table(calls):
    def line() -> ops._backends.Backend:
        return next(row for row in ops.backends() if row.operation == "short_convolution")

    assert line().backend == "cpu"
    assert (
        line().why
        == "a sum over the taps on the CPU; on CUDA causal_conv1d where it fits; elsewhere a sum over the taps"
    )
    with ops.use_backend("causal_conv1d"):
        assert (line().backend, line().why) == ("causal_conv1d", "chosen: causal_conv1d where it fits")
        assert {row.backend for row in ops.backends() if row != line()} == {"cpu"}
    with ops.use_backend("torch"):
        assert line().backend == "torch"


def test_causal_conv1d_cannot_be_chosen_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(ops._backends, "_installed", lambda package: False)
    with pytest.raises(InputError, match="The package causal_conv1d must be installed"):
        ops.use_backend("causal_conv1d")
