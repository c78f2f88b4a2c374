"""Adapters of layers of heads with matrices as states: Mamba-2 and its relatives, and gated linear attention.

``H_t = decay_t H_{t-1} + x_t B_t^T``, ``y_t = H_t C_t`` in every head, B and C shared by the heads of a group. In
Mamba-2 both pass a convolution and SiLU behind the projection that makes them, so that no change of basis can be
written into it: states are selected, the same for B and C, in every group by itself.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, silu, softplus

from hankelred.errors import InputError

from ..layer_sums import Sequences
from .selective import SelectiveAdapter, wide
from .state_maps import Block, Layout


class Mamba2Adapter(SelectiveAdapter):
    """Adapter of Mamba-2 layers: of Hugging Face, mamba_ssm and flash-linear-attention.

    Of Hugging Face these are Mamba2, Bamba, Zamba2, NemotronH, FalconH1 and GraniteMoeHybrid.
    """

    # The fused convolution wants a number of channels that is a multiple of 8.
    round_to: ClassVar[int] = 8

    behind: ClassVar[tuple[str, ...]] = ("conv1d.weight",)
    others: ClassVar[tuple[str, ...]] = ("norm", "out_proj", "A_log", "D", "dt_bias")

    @classmethod
    def refusal(cls, layer: nn.Module) -> str:
        """Return whether the layer is split over devices, each of which has part of its rows."""
        return "rows that are split over devices" if getattr(layer, "process_group", None) is not None else ""

    def layout_of(self, layer: nn.Module) -> dict[str, Layout]:
        """Return the projection with rows [.. z, x, B, C, dt], the convolution over x, B and C, and their biases."""
        heads, _, inner = self._shape
        rows = (Block("fixed", 2 * inner), Block("input"), Block("output"), Block("fixed", heads))
        channels = (Block("fixed", self._width), Block("input"), Block("output"))
        constant = (Block("fixed", 2 * inner), Block("state"), Block("state"), Block("fixed", heads))
        layouts = {
            "in_proj.weight": Layout(0, rows),
            "in_proj.bias": Layout(0, rows),
            "conv1d.weight": Layout(0, channels),
            "conv1d.bias": Layout(0, channels),
            "mup_vector": Layout(2, constant),
        }
        return self._those_there(layouts)

    @property
    def groups(self) -> int:
        """Number of groups of heads that share B and C."""
        return int(first_of(self.layer, "n_groups", "ngroups"))

    def state_channels(self, states: int) -> int:
        """Return the channels of all heads."""
        return self._width

    def sizes(self, states: int) -> dict[str, Any]:
        """Return the sizes of the layer and of its projection and convolution."""
        heads, _, inner = self._shape
        channels = self._width + 2 * self.groups * states
        found = {
            "in_proj.out_features": 2 * inner + 2 * self.groups * states + heads,
            "conv1d.in_channels": channels,
            "conv1d.out_channels": channels,
            "conv1d.groups": channels,
        }
        optional: dict[str, Any] = {
            "ssm_state_size": states,
            "d_state": states,
            "conv_dim": channels,
            "groups_time_state_size": self.groups * states,
        }
        if self._has("mup_vector"):  # made from one size for all layers where it is not loaded
            optional["_non_persistent_buffers_set"] = self.layer._non_persistent_buffers_set - {"mup_vector"}
        return found | {name: size for name, size in optional.items() if hasattr(self.layer, name)}

    def sequences(self, inputs: Tensor, mask: Tensor | None, normed: Tensor | None = None) -> Sequences:
        """Return decays, B, C, inputs times their steps, and gates, by the layer's own projection and convolution."""
        layer: Any = self.layer
        heads, size, _ = self._shape
        kept = 1.0 if mask is None else mask[..., None].to(inputs.dtype)
        z, x, B, C, delta = self._projected(inputs, kept)
        decay = torch.exp(delta * -torch.exp(wide(layer.A_log)))
        gate = silu(z) * kept
        if normed is not None:
            gate = gate * self._norm_weights(normed.to(gate.dtype), gate)
        return Sequences(decay, B, C, x * delta[..., None], gate.unflatten(-1, (heads, size)))

    def output(self, inputs: Tensor, data: Sequences, y: Tensor) -> Tensor | None:
        """Return the sum of states and feedthrough, gated, normed and projected; None beside a perceptron."""
        layer: Any = self.layer
        heads, size, inner = self._shape
        if inner != heads * size:
            return None
        z, x, *_ = self._projected(inputs, 1.0)
        gate, y = silu(z), (y + layer.D.view(heads, -1) * x).flatten(2)
        weights = 1.0 if self.output_norm is None else self._norm_weights(y, gate)
        return layer.out_proj((y * gate * weights).to(layer.out_proj.weight.dtype))

    def _projected(self, inputs: Tensor, kept: Any) -> tuple[Tensor, ...]:
        """Return z, x, B, C and steps; `kept` is 0 at padding."""
        layer: Any = self.layer
        heads, size, _ = self._shape
        batch, length = inputs.shape[:2]
        projected = layer.in_proj(inputs * kept * getattr(layer, "ssm_in_multiplier", 1.0))
        projected = projected * getattr(layer, "mup_vector", 1.0)
        states = self.groups * self.made_states
        channels = self._width + 2 * states
        _, z, xBC, dt = projected.split(
            [projected.shape[-1] - self._width - channels - heads, self._width, channels, heads], dim=-1
        )
        xBC = layer.act(layer.conv1d(xBC.transpose(1, 2))[..., :length]).transpose(1, 2) * kept
        x, B, C = xBC.split([self._width, states, states], dim=-1)
        delta = softplus(wide(dt) + wide(layer.dt_bias)).clamp(*first_of(layer, "time_step_limit", "dt_limit"))
        B, C = (y.reshape(batch, length, self.groups, self.made_states) for y in (B, C))
        return z.to(delta.dtype), x.reshape(batch, length, heads, size).to(delta.dtype), *self.behind_maps(B, C), delta

    @property
    def output_norm(self) -> nn.Module | None:
        """The gated norm, where the layer has one."""
        norm = getattr(self.layer, "norm", None)
        return norm if isinstance(norm, nn.Module) and self._has("norm.weight") else None

    def _norm_weights(self, y: Tensor, gate: Tensor) -> Tensor:
        """Return what the gated norm multiplies outputs by beside the gate: its weight over their root mean square."""
        norm: Any = self.output_norm
        seen = y if getattr(norm, "norm_before_gate", False) else y * gate
        width = getattr(norm, "group_size", None) or y.shape[-1] // getattr(norm, "n_groups", 1)
        squares = seen.unflatten(-1, (-1, width)).square().mean(dim=-1)
        scale = torch.rsqrt(squares + first_of(norm, "variance_epsilon", "eps"))
        return scale.repeat_interleave(width, dim=-1) * norm.weight

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Return heads, channels of a head, and the width of z and x in the projection."""
        heads = int(first_of(self.layer, "num_heads", "nheads"))
        return (
            heads,
            int(first_of(self.layer, "head_dim", "headdim")),
            int(first_of(self.layer, "intermediate_size", "d_inner")),
        )

    @property
    def _width(self) -> int:
        """Return the channels that pass the state space model."""
        heads, size, _ = self._shape
        return heads * size


class GatedLinearAttentionAdapter(SelectiveAdapter):
    """Adapter of the gated linear attention of flash-linear-attention: its states are keys, with decays of their own.

    Keys are selected, in every head by itself. Queries are linear in the weights, so that kept keys can stand in for
    dropped ones, and take up what the scale ``key size ** -0.5`` changes.
    """

    others = ("v_proj", "o_proj", "g_proj", "gk_proj.0", "g_norm", "g_norm_swish_gate")

    @classmethod
    def refusal(cls, layer: nn.Module) -> str:
        """Return what stands between the projections and the states."""
        settings = {
            "a feature map": getattr(layer, "feature_map_fn", None) is not None,
            "a short convolution": bool(getattr(layer, "use_short_conv", False)),
            "keys shared by heads": getattr(layer, "num_kv_groups", 1) != 1,
        }
        return ", ".join(what for what, is_so in settings.items() if is_so)

    def layout_of(self, layer: nn.Module) -> dict[str, Layout]:
        """Return the projections to queries, keys and the logits of the decays."""
        return {
            "q_proj.weight": Layout(0, (Block("scaled_output"),)),
            "k_proj.weight": Layout(0, (Block("input"),)),
            "gk_proj.1.weight": Layout(0, (Block("state"),)),
            "gk_proj.1.bias": Layout(0, (Block("state"),)),
        }

    @property
    def folds(self) -> bool:
        """Queries are linear in their projection."""
        return True

    @property
    def groups(self) -> int:
        """Number of heads."""
        return int(first_of(self.layer, "num_heads"))

    def state_channels(self, states: int) -> int:
        """Return the channels of the values."""
        return self.tensor("v_proj.weight").shape[0]

    def sizes(self, states: int) -> dict[str, Any]:
        """Return the sizes of keys."""
        keys = self.groups * states
        names = ("key_dim", "key_dim_per_group", "q_proj.out_features", "k_proj.out_features", "gk_proj.1.out_features")
        return {"head_k_dim": states} | dict.fromkeys(names, keys)

    def sequences(self, inputs: Tensor, mask: Tensor | None, normed: Tensor | None = None) -> Sequences:
        """Return decays, keys, scaled queries and values."""
        layer: Any = self.layer
        shape = (*inputs.shape[:2], self.groups, -1)
        q, k, v, logits = (x(inputs).reshape(shape) for x in (layer.q_proj, layer.k_proj, layer.v_proj, layer.gk_proj))
        logarithms = logsigmoid(wide(logits)) / layer.gate_logit_normalizer
        if layer.clamp_min is not None:
            logarithms = logarithms.clamp_min(layer.clamp_min)
        kept = None if mask is None else mask[..., None, None].to(v.dtype).expand_as(v)
        return Sequences(torch.exp(logarithms), k, q * self.states**-0.5, v if kept is None else v * kept, kept)

    def output(self, inputs: Tensor, data: Sequences, y: Tensor) -> Tensor:
        """Return what the norm and the gate, where the layer has them, make of the states' outputs, projected."""
        layer: Any = self.layer
        gate = None if getattr(layer, "g_proj", None) is None else layer.g_proj(inputs).view_as(y)
        if hasattr(layer, "g_norm_swish_gate"):
            y = layer.g_norm_swish_gate(y, gate)
        elif hasattr(layer, "g_norm"):
            y = layer.g_norm(y) if gate is None else layer.g_norm(y) * layer.gate_fn(gate)
        return layer.o_proj(y.flatten(2).to(layer.o_proj.weight.dtype))


def first_of(layer: nn.Module, *names: str) -> Any:
    """Return the first attribute a layer has of those that libraries call by different names."""
    for name in names:
        if hasattr(layer, name):
            return getattr(layer, name)
    raise InputError(f"layer must have {' or '.join(names)}; got a {type(layer).__qualname__} with neither.")
