"""Tiny models with selective layers, shared by the tests of their adapters; those of Hugging Face by name."""

from __future__ import annotations

import torch
from torch import nn

import hankelred_torch as ht

VOCABULARY = 32
LIVE = (1, 2, 5, 6, 7, 11, 12, 15)  # of 16 states, those that `make_inert` leaves alone

_SHARED = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2}
_ATTENTION = _SHARED | {"intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
_HEADS = {"mamba_d_state": 16, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}

MAMBA = {
    "Mamba": _SHARED | {"state_size": 16, "time_step_rank": 4},
    "FalconMamba": _SHARED | {"state_size": 16, "time_step_rank": 4},
    "Jamba": _ATTENTION
    | {"mamba_d_state": 16, "mamba_dt_rank": 4, "num_experts": 2, "num_experts_per_tok": 1}
    | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
}
MAMBA2 = {
    "Mamba2": _SHARED | {"state_size": 16, "num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
    "Bamba": _ATTENTION | _HEADS | {"attn_layer_indices": [1]},
    "Zamba2": _ATTENTION
    | {"num_key_value_heads": 2, "mamba_d_state": 16, "n_mamba_heads": 4, "mamba_headdim": 8, "mamba_ngroups": 1}
    | {"chunk_size": 8, "layers_block_type": ["mamba", "hybrid"], "num_mem_blocks": 1, "adapter_rank": 4},
    "NemotronH": _ATTENTION
    | {"head_dim": 8, "ssm_state_size": 16, "mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 2, "chunk_size": 8}
    | {"hybrid_override_pattern": "M*"},
    "FalconH1": _ATTENTION
    | _HEADS
    | {"head_dim": 8, "mamba_d_ssm": 32, "ssm_multipliers": [0.5, 0.7, 1.2, 0.8, 0.9], "mamba_conv_bias": True},
    "GraniteMoeHybrid": _ATTENTION
    | _HEADS
    | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 32, "num_local_experts": 0},
}

_DELTA = _ATTENTION | {"head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}
_KEYS = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 8}
_EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
_EXPERTS |= {"shared_expert_intermediate_size": 16}
_INDEXED = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 64}
_TIED = _DELTA | {"num_key_value_heads": 2, "linear_num_heads": 2, "linear_head_dim": 16, "pad_token_id": 0}
_TIED |= {"bos_token_id": None, "eos_token_id": None, "mlp_layer_types": ["dense"] * 2, "kv_lora_rank": 8}
_TIED |= {"qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
_OF_GLM = {"qk_rope_head_dim": 0, "q_lora_rank": 8, "index_head_dim": 8, "index_n_heads": 2, "index_topk": 64}

DELTA = {  # one decay per head, keys of a size of their own
    "Qwen3_5Text": _DELTA | _KEYS,
    "Qwen3_5MoeText": _DELTA | _KEYS | _EXPERTS,
    "Qwen3Next": _DELTA | _KEYS | _EXPERTS,
    "Qwen4ExpText": _DELTA
    | (_KEYS | _EXPERTS | _INDEXED)
    | {"hc_lowrank": 4, "ple_layer_ids": [], "indexer_compress_ratio": 4},
    "OlmoHybrid": _DELTA | _KEYS | {"pad_token_id": 0, "eos_token_id": 1},
}
TIED = {  # decays in every channel, keys and values of one size
    "KimiLinear": _TIED,
    "Glm5NextText": {x: y for x, y in (_TIED | _OF_GLM | {"index_kpool": 2}).items() if x != "head_dim"},
    "BailingHybrid": _TIED | {"head_dim": 16},
}


def language_model(name, *, seed=0, **options):
    """Return a causal language model of Hugging Face with weights as large as if it were trained."""
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**(MAMBA | MAMBA2 | DELTA | TIED)[name] | options)
    if name == "Glm5NextText":  # has no language model without a picture's
        return enlarged(transformers.AutoModel.from_config(config).eval(), seed=seed)
    return enlarged(transformers.AutoModelForCausalLM.from_config(config).eval(), seed=seed)


def enlarged(model, *, seed=0):
    """Draw all weights but those of steps anew, so large that the states matter for the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
            if "A_log" in name or "norm" in name:
                parameter.add_(0.2 * noise)
            elif "dt" not in name and name.rpartition(".")[2] != "D":
                parameter.copy_(0.4 * noise)
    return model


def make_inert(model, live=LIVE):
    """Unlink all states but the live ones, in every selective layer and group: nothing goes in or comes out."""
    with torch.no_grad():
        for adapter in ht.find_ssm_layers(model).values():
            dead = [i for i in range(adapter.states) if i not in live]
            for name, layout in adapter.layouts.items():
                moved = adapter.tensor(name).movedim(layout.axis, 0)
                for block, places in layout.places(adapter.groups, adapter.states):
                    if block.role in ("input", "output", "scaled_output", "value"):
                        moved[places[:, dead].ravel()] = 0
    return model


def tokens(*, batch=2, length=12, seed=1):
    """Return token numbers (batch, length)."""
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def mamba(states=16, channels=6, *, seed=0, dtype=torch.float64, expand=2):
    """Return a Mamba layer of this library that uses its states; its rates differ from channel to channel."""
    torch.manual_seed(seed)
    layer = enlarged(ht.layers.Mamba(channels, states, expand=expand).to(dtype), seed=seed)
    with torch.no_grad():
        layer.dt_proj.bias.add_(1.0)
    return layer


def inputs(channels=6, *, batches=2, batch=3, length=40, seed=2, dtype=torch.float64):
    """Return sample batches (batch, length, channels) that are correlated in time."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batches, batch, length, channels, generator=generator, dtype=torch.float64)
    return list((noise + 0.7 * noise.roll(1, dims=2)).to(dtype))


class GatedLinearAttention(nn.Module):
    """Gated linear attention step by step, with the parameter names of flash-linear-attention; no output gate."""

    def __init__(self, hidden_size=8, key_dim=16, num_heads=2, *, rank=4, dtype=torch.float64):
        super().__init__()
        self.num_heads, self.num_kv_groups, self.clamp_min = num_heads, 1, None
        self.key_dim = self.key_dim_per_group = key_dim
        self.head_k_dim, self.gate_logit_normalizer = key_dim // num_heads, 4
        self.feature_map_fn, self.use_short_conv = None, False
        self.q_proj = nn.Linear(hidden_size, key_dim, bias=False, dtype=dtype)
        self.k_proj = nn.Linear(hidden_size, key_dim, bias=False, dtype=dtype)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False, dtype=dtype)
        low_rank = nn.Linear(hidden_size, rank, bias=False, dtype=dtype)
        self.gk_proj = nn.Sequential(low_rank, nn.Linear(rank, key_dim, dtype=dtype))
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False, dtype=dtype)

    def forward(self, hidden_states):
        return self.o_proj(self.attended(hidden_states).flatten(2))

    def attended(self, hidden_states):
        shape = (*hidden_states.shape[:2], self.num_heads, -1)
        q, k, gk = (
            f(hidden_states).view(*shape[:3], self.head_k_dim) for f in (self.q_proj, self.k_proj, self.gk_proj)
        )
        v = self.v_proj(hidden_states).view(shape)
        decay = torch.exp(nn.functional.logsigmoid(gk) / self.gate_logit_normalizer)
        state, outputs = v.new_zeros(len(v), self.num_heads, self.head_k_dim, v.shape[-1]), []
        for t in range(v.shape[1]):
            state = decay[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
            outputs.append((self.head_k_dim**-0.5 * q[:, t, :, :, None] * state).sum(2))
        return torch.stack(outputs, 1)


class GatedOutput(GatedLinearAttention):
    """The same with the norm and the gate that flash-linear-attention has by default, as modules of their own."""

    def __init__(self, hidden_size=8, **options):
        super().__init__(hidden_size, **options)
        self.g_proj = nn.Linear(hidden_size, hidden_size, bias=False, dtype=torch.float64)
        self.g_norm = nn.RMSNorm(hidden_size // self.num_heads, dtype=torch.float64)
        self.gate_fn = nn.functional.silu

    def forward(self, hidden_states):
        normed = self.g_norm(self.attended(hidden_states)).flatten(2)
        return self.o_proj(normed * self.gate_fn(self.g_proj(hidden_states)))


ht.register_adapter(GatedLinearAttention, ht.adapters.GatedLinearAttentionAdapter)
