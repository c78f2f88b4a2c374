"""S4D: a bank of diagonal state space models, one per channel, run as one convolution."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from hankelred.checks import check_choice

from ..ops.convolution import channel_convolution, product, without_autocast
from ._continuous import DT_MAX, DT_MIN, held_input
from ._inputs import check_sequences, check_size, check_step, in_single

# Steps of the finer table of powers in `_impulse_responses`. Fixed, so that a compiled graph fits every length.
SHORT = 64


class S4D(nn.Module):
    """Bank of diagonal state space models, one with one input and one output per channel [1]_.

    ``x' = A x + u``, ``y = 2 Re(C x) + D u`` for every channel, elementwise in A, with u held for a step
    ``exp(log_dt)`` of the channel. A stored complex state stands for itself and its conjugate. The input matrix is
    1: only its product with C counts.

    Parameters
    ----------
    channels : int
        Inputs, and outputs, of the layer.
    states : int
        Complex states of every channel; the layer has no other size that depends on them. The state size of [1]_ is
        twice as large.
    init : {"lin", "inv"}, default "lin"
        Where the poles start: ``-1/2 + 1j pi k`` or ``-1/2 + 1j (N / pi) (N / (2 k + 1) - 1)`` with ``N`` twice the
        states, for k from 0 to ``states - 1``.

    Attributes
    ----------
    log_A_real, A_imag : (channels, states) Parameter
        Logarithms of the decay rates and angular frequencies of the poles in continuous time.
    log_dt : (channels,) Parameter
        Logarithms of the steps.
    C : (channels, states, 2) Parameter
        Real and imaginary parts of the output matrix.
    D : (channels,) Parameter
        Feedthrough.
    channels : int
        As given.

    Raises
    ------
    InputError
        If a size is not positive, or `init` is unknown.

    Notes
    -----
    As published, C starts as standard complex normal numbers, the steps log-uniform from 0.001 to 0.1.

    The impulse responses are products of two short tables of powers, ``exp(t0 A dt) exp(t1 A dt)``, in double
    precision until they are rounded; their time goes with channels, states and length, that of the convolution with
    channels and length alone.

    Nothing remembers the number of states but the shapes of the parameters: to shrink the layer, replace them.

    References
    ----------
    .. [1] Gu, Gupta, Goel, Ré, "On the parameterization and initialization of diagonal state space models",
       NeurIPS 2022, arXiv 2206.11893.

    Examples
    --------
    >>> import torch
    >>> from hankelred_torch.layers import S4D
    >>> layer = S4D(channels=3, states=8, init="inv")
    >>> layer(torch.randn(2, 100, 3)).shape
    torch.Size([2, 100, 3])
    """

    def __init__(self, channels: int, states: int, init: Literal["lin", "inv"] = "lin") -> None:
        super().__init__()
        channels, states = check_size(channels, "channels"), check_size(states, "states")
        self.channels = channels
        self._init = check_choice(init, "init", ("lin", "inv"))
        self.log_A_real, self.A_imag = (nn.Parameter(torch.empty(channels, states)) for _ in range(2))
        self.log_dt, self.D = (nn.Parameter(torch.empty(channels)) for _ in range(2))
        self.C = nn.Parameter(torch.empty(channels, states, 2))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters anew, as published."""
        k = torch.arange(self.states, dtype=torch.float64, device=self.D.device)
        size = 2 * self.states
        frequencies = math.pi * k if self._init == "lin" else size / math.pi * (size / (2 * k + 1) - 1)
        self.log_A_real.fill_(math.log(0.5))
        self.A_imag.copy_(frequencies.expand(self.channels, -1))
        self.log_dt.uniform_(math.log(DT_MIN), math.log(DT_MAX))
        self.C.normal_(std=math.sqrt(0.5))
        self.D.normal_()

    @property
    def states(self) -> int:
        """Number of complex states of every channel, read from the parameters."""
        return self.C.shape[1]

    def rates(self) -> Tensor:
        """Return the logarithms of the poles in discrete time, (channels, states) complex128: A times the step."""
        return self._poles() * self.log_dt.double().exp()[:, None]

    def output_matrix(self) -> Tensor:
        """Return the output matrix in discrete time for an input matrix of 1, (channels, states) complex."""
        (C,) = in_single(self.C)
        hold = 2 * held_input(self._poles(), self.rates())
        return torch.view_as_complex(C) * hold.to(torch.promote_types(C.dtype, torch.complex64))

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
        (D,) = in_single(self.D)
        dtype = torch.promote_types(u.dtype, D.dtype)
        with without_autocast(u):
            K = _impulse_responses(self.rates(), self.output_matrix(), u.shape[1])
            y = channel_convolution(u.to(dtype), K.to(dtype))
            y = torch.addcmul(y, u.to(dtype), D.to(dtype))
        return y.to(torch.promote_types(self.D.dtype, u.dtype))

    def initial_state(self, batch: int) -> Tensor:
        """Return the state of rest for `step`.

        Parameters
        ----------
        batch : int
            How many sequences go on side by side.

        Returns
        -------
        (batch, channels, states) torch.Tensor
            complex128.
        """
        shape = check_size(batch, "batch", 0), self.channels, self.states
        return torch.zeros(shape, dtype=torch.complex128, device=self.D.device)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by one time step, as in generation.

        Parameters
        ----------
        u : (batch, channels) Tensor
            Inputs of this step.
        state : (batch, channels, states) complex Tensor
            What the step before returned, or `initial_state`.

        Returns
        -------
        y : (batch, channels) Tensor
            Outputs, as `forward` gives them at this step.
        state : (batch, channels, states) complex Tensor
            The new state.

        Raises
        ------
        InputError
            If shapes do not fit the layer, such as a state from before the layer was reduced.

        Examples
        --------
        >>> import torch
        >>> from hankelred_torch.layers import S4D
        >>> layer, u = S4D(channels=2, states=4), torch.randn(1, 3, 2)
        >>> state = layer.initial_state(batch=1)
        >>> for t in range(3):
        ...     y, state = layer.step(u[:, t], state)
        >>> torch.allclose(y, layer(u)[:, -1], atol=1e-5)
        True
        """
        check_step(u, state, self.channels, (self.channels, self.states), "channels, states", self.D)
        (D,) = in_single(self.D)
        state = self.rates().exp() * state + u[:, :, None]
        C = self.output_matrix()
        y = (state.to(C.dtype) * C).sum(-1).real + D * u
        return y.to(torch.promote_types(self.D.dtype, u.dtype)), state

    def extra_repr(self) -> str:
        """Return the sizes for `repr`."""
        return f"channels={self.channels}, states={self.states}"

    def _poles(self) -> Tensor:
        return torch.complex(-self.log_A_real.double().exp(), self.A_imag.double())


def _impulse_responses(rates: Tensor, C: Tensor, length: int) -> Tensor:
    """Return ``Re(sum_n C_n exp(t rates_n))`` of every channel for t below `length`, (channels, length).

    ``Re(a b)`` of two tables is a product of real matrices, (short, 2 states) and (2 states, short) per channel.
    """
    fine = torch.arange(SHORT, device=rates.device, dtype=torch.float64)
    coarse = torch.arange(0, length + SHORT, SHORT, device=rates.device, dtype=torch.float64)
    fine, coarse = (torch.exp(rates[:, None, :] * t[:, None]).to(C.dtype) for t in (fine, coarse))
    left = torch.view_as_real(coarse * C[:, None, :]).flatten(2)
    right = torch.view_as_real(fine.conj().resolve_conj()).flatten(2)
    return product(left, right.mT).flatten(1)[:, :length]
