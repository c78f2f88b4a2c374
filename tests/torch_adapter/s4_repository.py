"""Kernels with the tensors, names and formulas of the repository state-spaces/s4, which is no package to install.

Written from its documented parametrisation: what is stored and how the impulse response follows from it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class S4DKernel(nn.Module):
    """The minimal diagonal kernel: one input weight of 1 and one output per channel, `N` counts conjugates too."""

    def __init__(self, d_model: int, N: int = 64, dt_min: float = 0.001, dt_max: float = 0.1) -> None:
        super().__init__()
        states = N // 2
        self.log_dt = nn.Parameter(torch.rand(d_model) * math.log(dt_max / dt_min) + math.log(dt_min))
        self.C = nn.Parameter(torch.view_as_real(torch.randn(d_model, states, dtype=torch.cfloat)))
        self.log_A_real = nn.Parameter(torch.full((d_model, states), math.log(0.5)))
        self.A_imag = nn.Parameter(math.pi * torch.arange(states).repeat(d_model, 1))

    def forward(self, L: int) -> Tensor:
        """Return the impulse responses, (d_model, L)."""
        A = torch.complex(-self.log_A_real.exp(), self.A_imag)
        rates = A * self.log_dt.exp()[:, None]
        C = torch.view_as_complex(self.C) * (rates.exp() - 1) / A
        powers = torch.exp(rates[..., None] * torch.arange(L, device=A.device))
        return 2 * torch.einsum("hn,hnl->hl", C, powers).real


class SSMKernelDiag(nn.Module):
    """The diagonal kernel with input matrix and several outputs per channel; `N` counts stored states."""

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        channels: int = 1,
        n_ssm: int | None = None,
        *,
        disc: str = "zoh",
        real_transform: str = "exp",
        imag_transform: str = "none",
        dt_transform: str = "exp",
        bandlimit: float | None = None,
        dt_tie: bool = True,
    ) -> None:
        super().__init__()
        self.H, self.N, self.channels, self.n_ssm = d_model, d_state // 2, channels, n_ssm or d_model
        self.repeat = self.H // self.n_ssm
        self.disc, self.bandlimit, self.dt_fast, self.is_real = disc, bandlimit, False, False
        self.real_transform, self.imag_transform, self.dt_transform = real_transform, imag_transform, dt_transform
        step = torch.rand(self.H, 1 if dt_tie else self.N) * math.log(100) + math.log(0.001)
        self.inv_dt = nn.Parameter(step if dt_transform == "exp" else torch.log(torch.expm1(step.exp())))
        decay = torch.full((self.n_ssm, self.N), 0.5)
        self.A_real = nn.Parameter(decay.log() if real_transform == "exp" else decay)
        self.A_imag = nn.Parameter(math.pi * torch.arange(self.N).repeat(self.n_ssm, 1).float())
        self.B = nn.Parameter(torch.view_as_real(torch.ones(1, self.n_ssm, self.N, dtype=torch.cfloat)))
        self.C = nn.Parameter(torch.view_as_real(torch.randn(channels, self.H, self.N, dtype=torch.cfloat)))

    def forward(self, L: int) -> Tensor:
        """Return the impulse responses, (channels, H, L)."""
        decay = self.A_real.exp() if self.real_transform == "exp" else self.A_real
        step = self.inv_dt.exp() if self.dt_transform == "exp" else nn.functional.softplus(self.inv_dt)
        A = torch.complex(-decay, -self.A_imag).repeat(self.repeat, 1)
        B, C = torch.view_as_complex(self.B).repeat(1, self.repeat, 1), torch.view_as_complex(self.C)
        rates = step * A
        C = (B[:, None] * C).view(-1, self.H, self.N) * (rates.exp() - 1) / A
        powers = torch.exp(rates[..., None] * torch.arange(L, device=A.device))
        return 2 * torch.einsum("chn,hnl->chl", C, powers).real
