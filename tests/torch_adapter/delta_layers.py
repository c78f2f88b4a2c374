"""Delta nets step by step, with the names of flash-linear-attention, whose kernels need a GPU."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import sigmoid, silu, softplus

import hankelred_torch as ht


class GatedNorm(nn.Module):
    """A root mean square norm with a gate behind it."""

    def __init__(self, size, gate, eps=1e-5):
        super().__init__()
        self.weight, self.eps, self.gate = nn.Parameter(torch.ones(size)), eps, gate

    def forward(self, x, z):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight * self.gate(z)


class ShortConvolution(nn.Conv1d):
    def __init__(self, channels, bias=False):
        super().__init__(channels, channels, 4, groups=channels, padding=3, bias=bias)
        self.hidden_size = channels

    def forward(self, x):
        return silu(super().forward(x.mT)[..., : x.shape[1]].mT)


class DeltaNet(nn.Module):
    """One decay per head; values of two heads, or of one, to every key."""

    per_channel = False

    def __init__(self, hidden_size=12, head_dim=16, num_heads=2, num_v_heads=4, *, conv=True, bias=False, gate=True):
        super().__init__()
        self.num_heads, self.num_v_heads, self.head_dim, self.head_k_dim = num_heads, num_v_heads, head_dim, head_dim
        self.head_v_dim, self.allow_neg_eigval, self.use_short_conv = 6, True, conv
        self.key_dim, self.value_dim = num_heads * head_dim, num_v_heads * self.head_v_dim
        for name, size in (("q", self.key_dim), ("k", self.key_dim), ("v", self.value_dim)):
            setattr(self, f"{name}_proj", nn.Linear(hidden_size, size, bias=False))
            if conv:
                setattr(self, f"{name}_conv1d", ShortConvolution(size, bias))
        self.b_proj = nn.Linear(hidden_size, num_v_heads, bias=False)
        self.A_log = nn.Parameter(torch.rand(num_v_heads))
        self.decays(hidden_size)
        if gate:
            self.g_proj = nn.Linear(hidden_size, self.value_dim, bias=False)
            self.o_norm = GatedNorm(self.head_v_dim, silu)
        else:
            self.o_norm = nn.RMSNorm(self.head_v_dim, eps=1e-5)
        self.o_proj = nn.Linear(self.value_dim, hidden_size, bias=False)

    def decays(self, hidden_size):
        self.a_proj = nn.Linear(hidden_size, self.num_v_heads, bias=False)
        self.dt_bias = nn.Parameter(torch.rand(self.num_v_heads))

    def decay(self, u):  # (batch, length, heads, 1)
        return torch.exp(-self.A_log.exp() * softplus(self.a_proj(u) + self.dt_bias))[..., None]

    def forward(self, hidden_states):
        u, repeats = hidden_states, self.num_v_heads // self.num_heads
        made = {x: getattr(self, f"{x}_proj")(u) for x in "qkv"}
        q, k, v = (getattr(self, f"{x}_conv1d")(y) if self.use_short_conv else silu(y) for x, y in made.items())
        q, k = (x.unflatten(-1, (self.num_heads, self.head_k_dim)).repeat_interleave(repeats, 2) for x in (q, k))
        q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
        v, beta, decay = v.unflatten(-1, (self.num_v_heads, -1)), 2 * sigmoid(self.b_proj(u)), self.decay(u)
        S, outputs = v.new_zeros(len(u), self.num_v_heads, self.head_k_dim, v.shape[-1]), []
        for t in range(u.shape[1]):
            S = decay[:, t, ..., None] * S
            written = beta[:, t, :, None] * (v[:, t] - (S * k[:, t, ..., None]).sum(2))
            S = S + k[:, t, ..., None] * written[:, :, None]
            outputs.append((S * q[:, t, ..., None]).sum(2) * self.head_k_dim**-0.5)
        y = torch.stack(outputs, 1)
        gate = (self.g_proj(u).view_as(y),) if hasattr(self, "g_proj") else ()
        return self.o_proj(self.o_norm(y, *gate).flatten(2))


class ChannelDeltaNet(DeltaNet):
    """Decays in every channel of the keys."""

    def __init__(self, **options):
        super().__init__(num_v_heads=2, **options)

    def decays(self, hidden_size):
        self.f_proj = nn.Sequential(nn.Linear(hidden_size, 6, bias=False), nn.Linear(6, self.key_dim, bias=False))
        self.dt_bias = nn.Parameter(torch.rand(self.key_dim))

    def decay(self, u):
        logits = (self.f_proj(u) + self.dt_bias).unflatten(-1, (self.num_heads, -1))
        return torch.exp(-self.A_log.exp()[:, None] * softplus(logits))


ht.register_adapter(DeltaNet, ht.adapters.GatedDeltaAdapter)
ht.register_adapter(ChannelDeltaNet, ht.adapters.KimiDeltaAdapter)
