"""Adapters of gated delta rules: matrices as states, which forget what they hold under a key before they are written.

``S_t = D_t S_{t-1} + beta_t k_t (v_t - (D_t S_{t-1})^T k_t)^T``, ``y_t = S_t^T q_t`` in every head, keys and queries
divided by their norms, shared by the heads of a group. The states are the channels of the keys. They pass a
convolution and an activation behind the projections that make them: channels are selected, the same of keys and
queries, in every group by itself. Layers with state maps (`add_state_maps_`) can have them rotated.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, silu, softplus

from hankelred.checks import Array
from hankelred.selective import delta_outputs, select_states

from ..layer_sums import LayerStatistics, Sequences, on_cpu
from .mamba2 import first_of
from .selective import SelectiveAdapter, wide
from .state_maps import Block, Layout, StateMap

_KEYS = (Block("output"), Block("input"))  # queries read, keys write

# Attributes that hold channels of the keys of all heads, and modules with that many outputs.
_KEY_SIZES = ("key_dim", "q_proj.out_features", "k_proj.out_features")


class GatedDeltaAdapter(SelectiveAdapter):
    """Adapter of gated delta nets with one decay per head, whose keys have a size of their own.

    Those of Hugging Face (Qwen3.5, its mixture of experts, Qwen4-exp, Qwen3-Next, OLMo-hybrid) and of
    flash-linear-attention are.

    The scale of the queries follows the number of channels; the norm behind the states takes it out again, but for what
    it adds to mean squares, which a cut rescales.
    """

    reads_apart: ClassVar[bool] = False

    # The fused convolution wants a number of channels that is a multiple of 8.
    round_to: ClassVar[int] = 8

    others: ClassVar[tuple[str, ...]] = (
        *("norm", "o_norm", "out_proj", "o_proj", "A_log", "dt_bias", "v_proj", "v_conv1d", "a_proj", "b_proj"),
        *("g_proj", "in_proj_z", "in_proj_a", "in_proj_b", "in_proj_ba"),
    )

    @classmethod
    def refusal(cls, layer: nn.Module) -> str:
        """Return an activation behind the convolutions that is not known, or heads that share rates of writing."""
        activation = getattr(layer, "activation", "silu")
        return "" if activation in ("silu", "swish") else f"the activation {activation!r} behind its convolutions"

    def layout_of(self, layer: nn.Module) -> dict[str, Layout]:
        """Return the projections to queries and keys and the convolutions over them, joint or apart."""
        values = int(first_of(layer, "value_dim"))
        joint = Layout(0, (*_KEYS, Block("fixed", values)))
        interleaved = Layout(0, (*_KEYS, Block("fixed", 2 * values // self.groups)), interleaved=True)
        return self._there({"in_proj_qkv": joint, "in_proj_qkvz": interleaved, "conv1d": joint} | _APART)

    def _there(self, layouts: Mapping[str, Layout]) -> dict[str, Layout]:
        """Return the layouts of weights and biases that the layer has, by name."""
        return self._those_there({f"{path}.{x}": y for path, y in layouts.items() for x in ("weight", "bias")})

    @property
    def groups(self) -> int:
        """Number of heads of keys, each with one or more heads of values."""
        return int(first_of(self.layer, "num_k_heads", "num_heads"))

    @property
    def width(self) -> int:
        """Return the channels of the layer's input."""
        layer: Any = self.layer
        return int(first_of(layer, "in_proj_qkv", "in_proj_qkvz", "q_proj").in_features)

    def state_channels(self, states: int) -> int:
        """Return the channels of the values."""
        return int(first_of(self.layer, "value_dim"))

    def sizes(self, states: int) -> dict[str, Any]:
        """Return the sizes of keys and convolutions, and what the norm adds to smaller mean squares."""
        keys, old = self.groups * states, self.states
        values = int(first_of(self.layer, "value_dim"))  # the joint convolution runs over them, too
        found = {"head_k_dim": states, "head_dim": states} | dict.fromkeys(_KEY_SIZES, keys)
        found |= {"conv_dim": 2 * keys + values, "in_proj_qkv.out_features": 2 * keys + values}
        found |= {"in_proj_qkvz.out_features": 2 * keys + 2 * values}
        found |= _channels("conv1d", 2 * keys + values) | _channels("q_conv1d", keys) | _channels("k_conv1d", keys)
        return self._present(found) | self._norm_constant(old / states)

    def _present(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        """Return those sizes that the layer has attributes for."""
        return {path: size for path, size in sizes.items() if _has_path(self.layer, path)}

    def _norm_constant(self, factor: float) -> dict[str, float]:
        """Return what the norm adds to mean squares that change by a factor."""
        name = "norm" if hasattr(self.layer, "norm") else "o_norm"
        eps = "variance_epsilon" if hasattr(self._norm, "variance_epsilon") else "eps"
        return {f"{name}.{eps}": getattr(self._norm, eps) * factor}

    def statistics(self) -> LayerStatistics:
        """Return empty sums over what the layer does."""
        return LayerStatistics(self.states, self.groups, delta=True)

    def sequences(self, inputs: Tensor, mask: Tensor | None, normed: Tensor | None = None) -> Sequences:
        """Return decays, keys, scaled queries, values, gates and rates of writing, by the layer's own projections."""
        kept = inputs.new_ones(inputs.shape[:2]) if mask is None else mask.to(inputs.dtype)
        mixed, z, b, log_decay = self._projected(inputs * kept[..., None])
        values = mixed.shape[-1] - 2 * self.groups * self.made_states
        q, k, v = wide(silu(self._convolved(mixed))).split([self.groups * self.made_states] * 2 + [values], dim=-1)
        q, k = (unit(x.unflatten(-1, (self.groups, -1))) for x in (q, k))
        k, q = self.behind_maps(k, q * self.made_states**-0.5)
        beta = wide(b).sigmoid() * (2.0 if getattr(self.layer, "allow_neg_eigval", False) else 1.0)
        data = Sequences(
            torch.exp(log_decay), k, q, v.unflatten(-1, (-1, self._value_channels)), beta=beta * kept[..., None]
        )
        y = self._outputs(data)
        return data._replace(gate=self._norm_weights(y, z) * kept[..., None, None], outputs=y)

    def _outputs(self, data: Sequences) -> Tensor:
        """Return what the states put out, (batch, length, heads, channels)."""
        given = (on_cpu(x) for x in (data.decay, data.beta, data.B, data.C, data.u) if x is not None)
        return torch.from_numpy(delta_outputs(*given)).to(data.u.device, data.u.dtype)

    def output(self, inputs: Tensor, data: Sequences, y: Tensor) -> Tensor:
        """Return what the norm and the gate make of the states' outputs, projected."""
        projection: Any = first_of(self.layer, "out_proj", "o_proj")
        return projection(self._normed(y, self._projected(inputs)[1]).flatten(2).to(projection.weight.dtype))

    def _projected(self, inputs: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Return queries, keys and values side by side, what gates the norm, logits of beta, and log decays."""
        layer: Any = self.layer
        if hasattr(layer, "in_proj_qkvz"):  # rows by heads of keys
            n, per = self.made_states, layer.value_dim // self.groups
            *mixed, z = layer.in_proj_qkvz(inputs).unflatten(-1, (self.groups, -1)).split([n, n, per, per], dim=-1)
            b, a = (x.flatten(2) for x in layer.in_proj_ba(inputs).unflatten(-1, (self.groups, -1)).chunk(2, dim=-1))
            return torch.cat([x.flatten(2) for x in mixed], dim=-1), z.flatten(2), b, self._log_decay(a)
        if hasattr(layer, "in_proj_qkv"):
            z, b, a = (x(inputs) for x in (layer.in_proj_z, layer.in_proj_b, layer.in_proj_a))
            return layer.in_proj_qkv(inputs), z, b, self._log_decay(a)
        gate = None if getattr(layer, "g_proj", None) is None else layer.g_proj(inputs)
        logits = (layer.f_proj if hasattr(layer, "f_proj") else layer.a_proj)(inputs)
        return self._side_by_side(inputs), gate, layer.b_proj(inputs), self._log_decay(logits)

    def _side_by_side(self, inputs: Tensor) -> Tensor:
        layer: Any = self.layer
        return torch.cat([layer.q_proj(inputs), layer.k_proj(inputs), layer.v_proj(inputs)], dim=-1)

    def _convolved(self, mixed: Tensor) -> Tensor:
        layer: Any = self.layer
        found = [getattr(layer, x) for x in ("conv1d", "q_conv1d", "k_conv1d", "v_conv1d") if hasattr(layer, x)]
        if not found:
            return mixed
        weight = torch.cat([x.weight for x in found])
        bias = None if found[0].bias is None else torch.cat([x.bias for x in found])
        padded = conv1d(mixed.mT, weight, bias, padding=weight.shape[-1] - 1, groups=len(weight))
        return padded[..., : mixed.shape[1]].mT

    def _log_decay(self, logits: Tensor) -> Tensor:
        """Return logarithms of decays, (heads)."""
        layer: Any = self.layer
        return -wide(layer.A_log).exp() * softplus(wide(logits) + wide(layer.dt_bias))

    @property
    def _value_channels(self) -> int:
        return int(first_of(self.layer, "head_v_dim", "head_dim"))

    @property
    def _norm(self) -> Any:
        return first_of(self.layer, "norm", "o_norm")

    def _normed(self, y: Tensor, z: Tensor | None) -> Tensor:
        """Return what the layer's norm makes of outputs, rows by themselves as the layer passes them."""
        rows = y.reshape(-1, y.shape[-1])
        return (self._norm(rows) if z is None else self._norm(rows, z.reshape(rows.shape))).view(y.shape)

    def _norm_weights(self, y: Tensor, z: Tensor | None) -> Tensor:
        """Return what the norm and its gate multiply outputs by: for ones of mean square 1, and by their size."""
        eps = next(iter(self._norm_constant(1.0).values()))
        weights = self._normed(torch.ones_like(y), z) * (1.0 + eps) ** 0.5
        return weights * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + eps)


class KimiDeltaAdapter(GatedDeltaAdapter):
    """Adapter of Kimi's delta attention of flash-linear-attention: one decay for every channel of the keys."""

    others: ClassVar[tuple[str, ...]] = (*GatedDeltaAdapter.others, "f_proj.0")

    @classmethod
    def refusal(cls, layer: nn.Module) -> str:
        """Return what stands in the way: several heads of values to one of keys, or an unknown activation."""
        if getattr(layer, "num_v_heads", 0) > getattr(layer, "num_heads", 0):
            return "several heads of values to one of keys"
        return super().refusal(layer)

    def layout_of(self, layer: nn.Module) -> dict[str, Layout]:
        """Return the projections to queries, keys and logits of decays, and the convolutions."""
        decays = Layout(0, (Block("state"),))
        return self._there(_APART | {"f_proj.1": decays}) | {"dt_bias": decays}

    def sizes(self, states: int) -> dict[str, Any]:
        """Return those of keys, and of the logits of the decays."""
        return super().sizes(states) | {"f_proj.1.out_features": self.groups * states}

    def _log_decay(self, logits: Tensor) -> Tensor:
        """Return logarithms of decays, (heads, n)."""
        layer: Any = self.layer
        shifted = (wide(logits) + wide(layer.dt_bias)).unflatten(-1, (self.groups, -1))
        return -wide(layer.A_log).exp().view(-1, 1) * softplus(shifted)


class TiedDeltaAdapter(KimiDeltaAdapter):
    """Adapter of Kimi's delta attention where keys and values have one size: Kimi-linear, GLM 5 next, Bailing hybrid.

    Channels of the values go with those of the keys, the same in all heads, because the weights of the norm behind
    them are shared: those whose loss changes the output of the layer least.
    """

    others: ClassVar[tuple[str, ...]] = ("A_log", "forget_gate.A_log", "forget_gate.f_a_proj", "b_proj", "g_a_proj")

    def layout_of(self, layer: nn.Module) -> dict[str, Layout]:
        """Return all projections, the convolution, and the norm's weights."""
        decays, values = Layout(0, (Block("state"),)), Layout(0, (Block("value"),))
        found = self._there(
            {"q_proj": Layout(0, (Block("output"),)), "k_proj": Layout(0, (Block("input"),)), "v_proj": values}
            | {"conv1d": Layout(0, (*_KEYS, Block("value"))), "g_proj": values, "g_b_proj": values}
            | {"forget_gate.f_proj": decays, "forget_gate.f_b_proj": decays}
        )
        found["forget_gate.dt_bias"] = decays
        return found | {
            "o_norm.weight": Layout(0, (Block("value_gain"),)),
            "o_proj.weight": Layout(1, (Block("value"),)),
        }

    def state_channels(self, states: int) -> int:
        """Return the channels of the values, which go with the states."""
        return self.groups * states

    def sizes(self, states: int) -> dict[str, Any]:
        """Return the sizes of keys and values, and what the norm adds to mean squares over fewer channels."""
        keys, ratio = self.groups * states, self.states / states
        projections = ("q_proj", "k_proj", "v_proj", "g_proj", "g_b_proj", "forget_gate.f_proj", "forget_gate.f_b_proj")
        found = {"head_dim": states, "forget_gate.head_dim": states, "qkv_dim": keys, "forget_gate.qkv_dim": keys}
        found |= {f"{x}.out_features": keys for x in projections} | {"o_proj.in_features": keys, "conv_dim": 3 * keys}
        return self._present(found | _channels("conv1d", 3 * keys)) | self._norm_constant(ratio**2)

    def _observed(self, statistics: LayerStatistics, data: Sequences) -> None:
        """Add what the values put out."""
        y: Any = data.outputs
        statistics.update_values(y, y * data.gate, self.tensor("o_proj.weight"))

    def _reduced(
        self, ways: tuple[str, ...], values: Mapping[str, Array], statistics: LayerStatistics, states: int
    ) -> tuple[StateMap, ...]:
        kept = select_states(statistics.values, states)
        gain = statistics.gains(kept)[1]
        return tuple(StateMap(x.core, (1.0, gain), kept) for x in super()._reduced(ways, values, statistics, states))

    def _projected(self, inputs: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        layer: Any = self.layer
        z = layer.g_b_proj(layer.g_a_proj(inputs)) if hasattr(layer, "g_b_proj") else layer.g_proj(inputs)
        return self._side_by_side(inputs), z, layer.b_proj(inputs), wide(layer.forget_gate(inputs))


_APART = {
    "q_proj": Layout(0, (Block("output"),)),
    "k_proj": Layout(0, (Block("input"),)),
    "q_conv1d": Layout(0, (Block("output"),)),
    "k_conv1d": Layout(0, (Block("input"),)),
}


def unit(x: Tensor) -> Tensor:
    """Return vectors divided by their norms, as all of these layers do it."""
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + 1e-6)


def _channels(path: str, count: int) -> dict[str, int]:
    """Return the sizes of a convolution channel by channel."""
    return dict.fromkeys((f"{path}.{x}" for x in ("in_channels", "out_channels", "groups", "hidden_size")), count)


def _has_path(layer: nn.Module, path: str) -> bool:
    try:
        attrgetter(path)(layer)
    except AttributeError:
        return False
    return True
