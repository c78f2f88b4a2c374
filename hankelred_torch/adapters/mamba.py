"""Adapters of Mamba layers: rates per channel and state, B and C shared by the channels and made by one projection.

``h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t``, ``y_t = C_t . h_t + D u_t`` with ``A = -exp(A_log)``, (channels, n);
the rows of `x_proj` are those of delta, B and C. A change of basis common to all channels goes into the rows; in the
rates it is exact up to their spread over channels. Where B and C are normalised over the states it cannot: there,
states are selected.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu, softplus

from ..layer_sums import Sequences
from .selective import SelectiveAdapter, wide
from .state_maps import Block, Layout

# Norms over the states of B and of C, as Hugging Face and mambapy call them.
NORMS = (("b_layernorm", "c_layernorm"), ("B_layernorm", "C_layernorm"))

# Attributes that hold the number of states: Hugging Face and flash-linear-attention, mamba_ssm.
SIZES = ("ssm_state_size", "d_state")


class MambaAdapter(SelectiveAdapter):
    """Adapter of `hankelred_torch.layers.Mamba` and of all Mamba blocks with the published names.

    Those of Hugging Face (Mamba, FalconMamba, Jamba), mambapy, mamba_ssm and flash-linear-attention are.

    Norms over the states of B and C see fewer of them after a selection. What that does to their size on average is
    made up for: in the weights of the norms, or, where they have none that lasts, in `out_proj` and D.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> adapter = ht.find_ssm_layers(ht.layers.Mamba(channels=2, states=8))[""]
    >>> type(adapter) is ht.adapters.MambaAdapter, adapter.states
    (True, 8)
    """

    others = ("in_proj", "conv1d", "dt_proj", "out_proj", "D", "dt_layernorm")

    def layout_of(self, layer: nn.Module) -> dict[str, Layout]:
        """Return the rates, the projection to delta, B and C, and the weights of norms."""
        rank = self.tensor("dt_proj.weight").shape[1]
        layouts = {
            "A_log": Layout(1, (Block("rate"),)),
            "x_proj.weight": Layout(0, (Block("fixed", rank), Block("input"), Block("output"))),
        }
        gains = (Block("input_gain"), Block("output_gain"))
        for path, gain in zip(self._norm_names(), gains, strict=False):
            weight = getattr(layer.get_submodule(path), "weight", None)
            if isinstance(weight, nn.Parameter):
                layouts[f"{path}.weight"] = Layout(0, (gain,))
            elif isinstance(weight, Tensor):  # only for the look of it: the norm does not multiply by it
                layouts[f"{path}.weight"] = Layout(0, (Block("state"),))
        return layouts

    @property
    def rotates(self) -> bool:
        """Whether B and C reach the states as `x_proj` makes them."""
        return not self._norm_names()

    @property
    def folds(self) -> bool:
        """The same."""
        return not self._norm_names()

    @property
    def rescaled(self) -> Mapping[str, int]:
        """Where norms have no weights that last: the output grows by the product of gains, and D shrinks for it."""
        roles = {block.role for layout in self.layouts.values() for block in layout.blocks}
        return {} if "input_gain" in roles or not self._norm_names() else {"out_proj.weight": 1, "D": -1}

    def state_channels(self, states: int) -> int:
        """Return the channels that pass the state space model."""
        return self.tensor("A_log").shape[0]

    def sizes(self, states: int) -> dict[str, Any]:
        """Return the sizes, and the constants that norms over fewer states need beside their mean squares."""
        layer, norms = self.layer, self._norm_names()
        found: dict[str, Any] = {"x_proj.out_features": self.tensor("dt_proj.weight").shape[1] + 2 * states}
        found |= {name: states for name in SIZES if hasattr(layer, name)}
        old = next((getattr(layer, name) for name in SIZES if hasattr(layer, name)), None)
        config: Any = getattr(layer, "config", None)
        if hasattr(config, "d_state"):  # mambapy: one object for all blocks, which forward reads
            old = config.d_state
            found["config"] = copy.copy(config)
            found["config"].d_state = states
        for path in norms:
            norm = layer.get_submodule(path)
            name = "variance_epsilon" if hasattr(norm, "variance_epsilon") else "eps"
            found[f"{path}.{name}"] = getattr(norm, name) * old / states
        return found

    def sequences(self, inputs: Tensor, mask: Tensor | None, normed: Tensor | None = None) -> Sequences:
        """Return steps, B, C, inputs and gates, by the layer's own projections, convolution and norms."""
        layer: Any = self.layer
        act: Callable[[Tensor], Tensor] = getattr(layer, "act", silu)
        kept = 1.0 if mask is None else mask[..., None].to(inputs.dtype)
        u, z = layer.in_proj(inputs * kept).chunk(2, dim=-1)
        u = act(layer.conv1d(u.transpose(1, 2))[..., : u.shape[1]]).transpose(1, 2) * kept
        rank, n = layer.dt_proj.weight.shape[1], self.states
        dt, B, C = layer.x_proj(u).split([rank, n, n], dim=-1)
        powers, C = None, C * kept
        if self._norm_names():
            powers = B * kept, C
            B, C = (layer.get_submodule(path)(x) for path, x in zip(self._norm_names(), (B, C), strict=True))
        if getattr(layer, "dt_layernorm", None) is not None:
            dt = layer.dt_layernorm(dt)
        delta = softplus(wide(linear(dt, layer.dt_proj.weight)) + wide(layer.dt_proj.bias))
        return Sequences(delta, B, C, u, silu(z) * kept, -torch.exp(wide(layer.A_log)), powers)

    def output(self, inputs: Tensor, data: Sequences, y: Tensor) -> Tensor:
        """Return the gated sum of states and feedthrough, projected."""
        layer: Any = self.layer
        return layer.out_proj(((y + layer.D * data.u) * data.gate).to(layer.out_proj.weight.dtype))

    def _norm_names(self) -> tuple[str, ...]:
        """Return the paths of the norms over the states of B and C, if there are any."""
        for names in NORMS:
            if getattr(self.layer, names[0], None) is not None:
                return names
        return ()
