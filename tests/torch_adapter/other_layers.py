"""Layers as other people write them, in layouts that no adapter of the package has, with the adapters they need."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

import hankelred_torch as ht

INPUTS, OUTPUTS = 2, 3


class ComplexLRU(nn.Module):
    """Complex B and C, a dense D, inputs and outputs of different numbers, a plain attribute of the state's size."""

    def __init__(self, states, dtype=torch.float64):
        super().__init__()
        decay = 0.05 + 0.5 * torch.rand(states, dtype=dtype)
        cdtype = torch.promote_types(dtype, torch.complex64)
        self.nu_log = nn.Parameter(decay.log())
        self.theta_log = nn.Parameter((0.1 + 2 * torch.rand(states, dtype=dtype)).log())
        self.gamma_log = nn.Parameter((1 - (-2 * decay).exp()).sqrt().log())
        self.B = nn.Parameter(torch.randn(states, INPUTS, dtype=cdtype))
        self.C = nn.Parameter(torch.randn(OUTPUTS, states, dtype=cdtype))
        self.D = nn.Parameter(torch.randn(OUTPUTS, INPUTS, dtype=dtype))
        self.state = torch.zeros(states, dtype=cdtype)

    def system(self):
        rates = torch.complex(-self.nu_log.exp(), self.theta_log.exp())
        return rates, self.gamma_log.exp()[:, None] * self.B, self.C

    def forward(self, u):
        rates, B, C = self.system()
        x, y = self.state.expand(len(u), -1), []
        for step in u.unbind(1):
            x = rates.exp() * x + step.to(B.dtype) @ B.T
            y.append((x @ C.T).real + step @ self.D.T)
        return torch.stack(y, 1)


class ComplexLRUAdapter(ht.adapters.LinearAdapter):
    state_axes: ClassVar = {"nu_log": 0, "theta_log": 0, "gamma_log": 0, "B": 0, "C": 1}
    parts: ClassVar = {"rates": ("nu_log", "theta_log"), "B": ("B",), "C": ("C",)}
    constants = ("D",)

    def system(self, t):
        rates = torch.complex(-t["nu_log"].exp(), t["theta_log"].exp())
        return rates[None], (t["gamma_log"].exp()[:, None] * t["B"])[None], t["C"][None], t["D"][None]

    def tensors(self, rates, B, C, like):
        phase = torch.where(rates.imag < 0, rates.imag % (2 * torch.pi), rates.imag).clamp(min=1e-12)
        B = B[0] / like["gamma_log"].exp()[:, None]
        return {"nu_log": (-rates[0].real).log(), "theta_log": phase[0].log(), "B": B, "C": C[0]}

    def sizes(self, states):
        return {"state": torch.zeros(states, dtype=self.layer.state.dtype)}


class PairedLRU(ComplexLRU):
    """The same with B and C in pairs of real numbers, C with its states first, and no gain."""

    def __init__(self, states, dtype=torch.float64):
        super().__init__(states, dtype)
        self.B = nn.Parameter(torch.view_as_real(self.B.detach()).clone())
        self.C = nn.Parameter(torch.view_as_real(self.C.detach()).transpose(0, 1).contiguous())
        del self.gamma_log

    def system(self):
        rates = torch.complex(-self.nu_log.exp(), self.theta_log.exp())
        return rates, torch.view_as_complex(self.B), torch.view_as_complex(self.C).T


class PairedLRUAdapter(ComplexLRUAdapter):
    state_axes: ClassVar = {"nu_log": 0, "theta_log": 0, "B": 0, "C": 0}

    def system(self, t):
        rates = torch.complex(-t["nu_log"].exp(), t["theta_log"].exp())
        B, C = (torch.view_as_complex(t[x].contiguous()) for x in ("B", "C"))
        return rates[None], B[None], C.T[None], t["D"][None]

    def tensors(self, rates, B, C, like):
        made = super().tensors(rates, B, C, {"gamma_log": rates[0].real * 0})
        return made | {"B": torch.view_as_real(B[0]), "C": torch.view_as_real(C[0].T.contiguous())}


class DecayBank(nn.Module):
    """Exponential averages of every channel in a submodule, real poles and weights, a feedthrough times two."""

    def __init__(self, states, dtype=torch.float64):
        super().__init__()
        self.inner = nn.Module()
        self.inner.decay = nn.Parameter(torch.rand(INPUTS, states, dtype=dtype) - 2)
        self.inner.weight = nn.Parameter(torch.randn(INPUTS, states, dtype=dtype))
        self.skip = nn.Parameter(torch.randn(INPUTS, dtype=dtype))

    def forward(self, u):
        lam = torch.exp(-self.inner.decay.exp())
        x, y = torch.zeros(len(u), *lam.shape, dtype=lam.dtype), []
        for step in u.unbind(1):
            x = lam * x + step[:, :, None]
            y.append((x * self.inner.weight).sum(-1) + 2 * self.skip * step)
        return torch.stack(y, 1)


class DecayBankAdapter(ht.adapters.LinearAdapter):
    state_axes: ClassVar = {"inner.decay": 1, "inner.weight": 1}
    parts: ClassVar = {"rates": ("inner.decay",), "C": ("inner.weight",)}
    constants = ("skip",)
    is_bank = True

    def system(self, t):
        rates = -t["inner.decay"].exp()
        return rates, torch.ones_like(rates)[..., None], t["inner.weight"][:, None], 2 * t["skip"][:, None, None]

    def tensors(self, rates, B, C, like):
        return {"inner.decay": (-rates.real).log(), "inner.weight": (B[:, :, 0] * C[:, 0]).real}


LAYERS = {ComplexLRU: ComplexLRUAdapter, PairedLRU: PairedLRUAdapter, DecayBank: DecayBankAdapter}
