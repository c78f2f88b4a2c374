"""The linear recurrent unit: a diagonal state space layer in discrete time, all inputs to all outputs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hankelred.checks import check_number
from hankelred.errors import InputError

from ..ops.state_space import planar_ssm
from ._inputs import check_sequences, check_size, in_single
from ._mixing import Mixing


class LRU(Mixing):
    """Linear recurrent unit [1]_.

    ``x_t = lam x_{t-1} + gamma (B u_t)``, ``y_t = Re(C x_t) + D u_t``, elementwise in lam, gamma and D, with
    ``lam = exp(-exp(nu_log) + 1j exp(theta_log))`` and ``gamma = exp(gamma_log)``.

    Parameters
    ----------
    channels : int
        Inputs, and outputs, of the layer.
    states : int
        Complex states; the layer has no other size that depends on them.
    r_min, r_max : float, default 0.9 and 0.999
        The poles start uniformly distributed on the ring of these radii, ``0 <= r_min <= r_max <= 1``.
    max_phase : float, default 6.283
        Largest phase of a pole at the start, in rad per step.

    Attributes
    ----------
    nu_log, theta_log, gamma_log : (states,) Parameter
        Logarithms of decay rates, phases and input gains. The gain starts at ``sqrt(1 - |lam|^2)``, which gives
        every state unit variance on white input, and is free from then on.
    B_re, B_im : (states, channels) Parameter
        Input matrix before the gain.
    C_re, C_im : (channels, states) Parameter
        Output matrix.
    D : (channels,) Parameter
        Feedthrough.
    channels : int
        As given.

    Raises
    ------
    InputError
        If a size is not positive, or the ring or the phase is empty.

    Notes
    -----
    Nothing remembers the number of states but the shapes of the parameters: to shrink the layer, replace them.

    The parameters are read in double precision where they make rates, and the rates stay in it: the layer realises
    the poles that its stored parameters define, and nothing is lost next to the unit circle.

    References
    ----------
    .. [1] Orvieto, Smith, Gu, Fernando, Gulcehre, Pascanu, De, "Resurrecting recurrent neural networks for long
       sequences", ICML 2023.

    Examples
    --------
    >>> import torch
    >>> from hankelred_torch.layers import LRU
    >>> layer = LRU(channels=3, states=8)
    >>> layer(torch.randn(2, 100, 3)).shape
    torch.Size([2, 100, 3])
    """

    def __init__(
        self, channels: int, states: int, r_min: float = 0.9, r_max: float = 0.999, max_phase: float = 6.283
    ) -> None:
        super().__init__()
        channels, states = check_size(channels, "channels"), check_size(states, "states")
        r_min, r_max = (check_number(x, name) for x, name in ((r_min, "r_min"), (r_max, "r_max")))
        max_phase = check_number(max_phase, "max_phase", hint="Pass 6.283 for the whole circle.")
        if not (0 <= r_min <= r_max <= 1 and r_min < 1 and r_max > 0):
            raise InputError(
                f"r_min and r_max must bound a ring in the unit disk, 0 <= r_min <= r_max <= 1; got {r_min} and "
                f"{r_max}. The published values for long memory are 0.9 and 0.999."
            )
        if max_phase <= 0:
            raise InputError(f"max_phase must be positive; got {max_phase}. Pass 6.283 for the whole circle.")
        self.channels = channels
        self._ring = (r_min, r_max, max_phase)
        self.nu_log, self.theta_log, self.gamma_log = (nn.Parameter(torch.empty(states)) for _ in range(3))
        self.B_re, self.B_im = (nn.Parameter(torch.empty(states, channels)) for _ in range(2))
        self.C_re, self.C_im = (nn.Parameter(torch.empty(channels, states)) for _ in range(2))
        self.D = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters anew, as published: poles uniform on the ring, B and C normal of unit gain."""
        r_min, r_max, max_phase = self._ring
        area, phase = torch.rand(2, self.states, dtype=torch.float64, device=self.nu_log.device)
        nu = -0.5 * torch.log(r_min**2 + area * (r_max**2 - r_min**2))
        self.nu_log.copy_(nu.log())
        self.theta_log.copy_((max_phase * phase).log())
        # of the rounded nu_log; expm1 keeps the digits of 1 - |lam|^2 next to the circle
        self.gamma_log.copy_(0.5 * torch.log(-torch.expm1(-2 * self.nu_log.double().exp())))
        for weight in (self.B_re, self.B_im):
            weight.normal_(std=math.sqrt(0.5 / self.channels))
        for weight in (self.C_re, self.C_im):
            weight.normal_(std=math.sqrt(1 / self.states))
        self.D.normal_()

    @property
    def states(self) -> int:
        """Number of complex states, read from the parameters."""
        return self.nu_log.shape[0]

    def rates(self) -> Tensor:
        """Return ``log(lam)``, (states,) complex128: decay and phase per step."""
        return torch.complex(-self.nu_log.double().exp(), self.theta_log.double().exp())

    def system_matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the input matrix with the gain in it, the output matrix, both complex, and the feedthrough."""
        B_re, B_im, C_re, C_im, gamma_log, D = in_single(
            self.B_re, self.B_im, self.C_re, self.C_im, self.gamma_log, self.D
        )
        return torch.complex(B_re, B_im) * gamma_log.exp()[:, None], torch.complex(C_re, C_im), D

    def forward(self, u: Tensor) -> Tensor:
        """Apply the layer to sequences from rest.

        Parameters
        ----------
        u : (batch, length, channels) Tensor
            Real input sequences.

        Returns
        -------
        (batch, length, channels) Tensor
            Outputs, in the wider dtype of the parameters and `u`; under autocast in that of the parameters.

        Raises
        ------
        InputError
            If `u` is complex or has another shape.
        """
        check_sequences(u, self.channels, self.D)
        logs = self.nu_log, self.theta_log, self.gamma_log
        B_re, B_im, C_re, C_im, D = in_single(self.B_re, self.B_im, self.C_re, self.C_im, self.D)
        rates, B, C = _PlanarSystem.apply(*logs, B_re, B_im, C_re, C_im)
        dtype = torch.promote_types(u.dtype, D.dtype)
        y = planar_ssm(rates, *(x.to(dtype) for x in (B, C, u, D)))
        return y.to(torch.promote_types(self.D.dtype, u.dtype))


class _PlanarSystem(torch.autograd.Function):
    """The arguments of `planar_ssm` from the parameters, by hand: a dozen nodes of autograd cost more than small n."""

    @staticmethod
    def forward(
        ctx: Any,
        nu_log: Tensor,
        theta_log: Tensor,
        gamma_log: Tensor,
        B_re: Tensor,
        B_im: Tensor,
        C_re: Tensor,
        C_im: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        nu, theta = nu_log.double().exp(), theta_log.double().exp()
        gamma = gamma_log.to(B_re.dtype).exp()[:, None]
        B = torch.stack([B_re, B_im]) * gamma
        rates = torch.stack([-nu, theta])
        ctx.save_for_backward(rates, gamma_log, B)
        return rates, B, torch.stack([C_re, -C_im], dim=1)

    @staticmethod
    def backward(ctx: Any, g_rates: Tensor, gB: Tensor, gC: Tensor) -> tuple[Tensor, ...]:
        rates, gamma_log, B = ctx.saved_tensors
        g_logs = *(rates * g_rates), (gB * B).sum((0, 2))
        g_B_re, g_B_im = gB * gamma_log.to(gB.dtype).exp()[:, None]
        return *(g.to(gamma_log.dtype) for g in g_logs), g_B_re, g_B_im, gC[:, 0], -gC[:, 1]
