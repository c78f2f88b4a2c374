"""Models with gated delta nets, whose states are matrices: the layer of Qwen3.5, alone and beside full attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..tasks import Task
from .settings import Settings

VALUES = 16  # channels of the values of a head
STEPS = 1e-3, 0.1  # least and largest decay of a head in one step at the start: memories of 10 to 1,000 positions


def delta_net(channels: int, states: int) -> nn.Module:
    """A gated delta net with one head, whose keys have so many channels."""
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

    return with_long_memory(Qwen3_5GatedDeltaNet(_config(channels, 1, states, 1), 0))


class Hybrid(nn.Module):
    """The language model of Qwen3.5: blocks with a gated delta net, the last with full attention instead.

    `states` are the channels of the keys, one number for each block; the last one's keeps nothing of it.
    """

    def __init__(self, task: Task, settings: Settings, states: Sequence[int]) -> None:
        super().__init__()
        from transformers import Qwen3_5ForCausalLM

        config = _config(settings.channels, len(states), states[0], 2)
        config.vocab_size = task.features
        self.language_model = with_long_memory(Qwen3_5ForCausalLM(config))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (batch, length) to scores (batch, length, classes)."""
        return self.language_model(tokens, use_cache=False).logits


def _config(channels: int, blocks: int, states: int, heads: int) -> Any:
    from transformers import Qwen3_5TextConfig

    return Qwen3_5TextConfig(
        hidden_size=channels,
        intermediate_size=2 * channels,
        num_hidden_layers=blocks,
        layer_types=["linear_attention"] * max(1, blocks - 1) + ["full_attention"] * (blocks > 1),
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=max(8, channels // 2),
        linear_num_key_heads=heads,
        linear_num_value_heads=heads,
        linear_key_head_dim=states,
        linear_value_head_dim=VALUES,
    )


@torch.no_grad()
def with_long_memory(model: nn.Module) -> nn.Module:
    """Let heads begin with decays that a short sequence does not end; as published most forget in a step or two."""
    least, largest = map(math.log, STEPS)
    modules: list[Any] = [x for x in model.modules() if hasattr(x, "dt_bias") and hasattr(x, "A_log")]
    for module in modules:
        steps = torch.exp(least + (largest - least) * torch.rand(module.dt_bias.shape))
        module.dt_bias.copy_(steps + torch.log(-torch.expm1(-steps)))
        module.A_log.zero_()
    return model
