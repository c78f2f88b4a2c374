"""The Mamba block: a selective state space layer between a short convolution and a gate."""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from hankelred.errors import InputError

from ..ops import selective_scan
from ..ops._operator import described
from ..ops.taps import convolved, short_convolution
from ._inputs import check_sequences, check_size, check_step, in_single

# Range of the steps at the start, log-uniform, in the layer's unit of time; as published.
STEP_MIN, STEP_MAX = 1e-3, 1e-1


class Mamba(nn.Module):
    """Mamba block, first generation [1]_, without normalisation or residual connection.

    ``x, z = in_proj(u)``; x passes a causal depthwise convolution and SiLU; ``dt, B, C = x_proj(x)``,
    ``delta = softplus(dt_proj(dt))``; then ``h_t = exp(delta_t A) h_{t-1} + delta_t x_t B_t``,
    ``y_t = C_t . h_t + D x_t`` for every inner channel, with ``A = -exp(A_log)``; the output is
    ``out_proj(y silu(z))``. Names and shapes of the parameters are those of the published code: weights move between
    both by `load_state_dict`.

    Parameters
    ----------
    channels : int
        Inputs, and outputs, of the layer.
    states : int
        Real states of each inner channel.
    expand : int, default 2
        Inner channels per channel.
    conv : int, default 4
        Steps that the convolution sees.
    dt_rank : int or "auto", default "auto"
        Rank of the map to the steps; a sixteenth of the channels, rounded up, by default.

    Attributes
    ----------
    in_proj : torch.nn.Linear
        To x and z, (2 inner, channels), no bias.
    conv1d : torch.nn.Conv1d
        Weight (inner, 1, conv) and bias (inner,).
    x_proj : torch.nn.Linear
        To dt, B and C, (dt_rank + 2 states, inner), no bias.
    dt_proj : torch.nn.Linear
        To the steps before the softplus, weight (inner, dt_rank) and bias (inner,).
    A_log : (inner, states) Parameter
        Logarithms of the decay rates.
    D : (inner,) Parameter
        Feedthrough.
    out_proj : torch.nn.Linear
        (channels, inner), no bias.
    channels : int
        As given.

    Raises
    ------
    InputError
        If a size is not positive.

    Notes
    -----
    As published, the rates start as 1 to n in every channel, D as one, the steps log-uniform from 0.001 to 0.1 on
    zero input, `dt_proj.weight` uniform within ``dt_rank^-1/2``, all else as torch starts it. `A_log` and `D` carry
    the mark ``_no_weight_decay`` that the published training code reads.

    To shrink the layer, replace `A_log` and `x_proj.weight`. The layer reads its sizes from shapes; the only number
    that depends on the states is `x_proj.out_features`, which torch prints and does not compute with: set it, too.

    References
    ----------
    .. [1] Gu, Dao, "Mamba: linear-time sequence modeling with selective state spaces", arXiv:2312.00752, 2023;
       module ``mamba_ssm.Mamba`` of its code.

    Examples
    --------
    >>> import torch
    >>> from hankelred_torch.layers import Mamba
    >>> layer = Mamba(channels=8, states=16)
    >>> layer(torch.randn(2, 100, 8)).shape
    torch.Size([2, 100, 8])
    """

    def __init__(
        self, channels: int, states: int, expand: int = 2, conv: int = 4, dt_rank: int | Literal["auto"] = "auto"
    ) -> None:
        super().__init__()
        channels, states = check_size(channels, "channels"), check_size(states, "states")
        expand, conv = check_size(expand, "expand"), check_size(conv, "conv")
        is_auto = isinstance(dt_rank, str) and dt_rank == "auto"
        rank = math.ceil(channels / 16) if is_auto else check_size(dt_rank, "dt_rank")
        inner = expand * channels
        self.channels = channels
        # registered in the published order, which the states of optimizers go by
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, conv, groups=inner, padding=conv - 1)
        self.x_proj = nn.Linear(inner, rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log, self.D = nn.Parameter(torch.empty(inner, states)), nn.Parameter(torch.empty(inner))
        self.out_proj = nn.Linear(inner, channels, bias=False)
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self._start()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters anew, as published."""
        for layer in (self.in_proj, self.conv1d, self.x_proj, self.dt_proj, self.out_proj):
            layer.reset_parameters()
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Set what does not start as torch starts it."""
        bound = self.dt_proj.weight.shape[1] ** -0.5
        self.dt_proj.weight.uniform_(-bound, bound)
        share = torch.rand(len(self.D), dtype=torch.float64, device=self.D.device)
        step = STEP_MIN * (STEP_MAX / STEP_MIN) ** share
        self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
        self.A_log.copy_(torch.arange(1, self.states + 1, dtype=torch.float64, device=self.D.device).log())
        self.D.fill_(1)

    @property
    def states(self) -> int:
        """Number of states of each inner channel, read from the parameters."""
        return self.A_log.shape[1]

    def forward(self, u: Tensor) -> Tensor:
        """Apply the layer to sequences from rest.

        Parameters
        ----------
        u : (batch, length, channels) Tensor
            Real input sequences.

        Returns
        -------
        (batch, length, channels) Tensor
            Outputs, in the dtype that the parameters and torch's autocast make of `u`.

        Raises
        ------
        InputError
            If `u` is complex or has another shape.
        """
        check_sequences(u, self.channels, self.D)
        self._check_dtype(u)
        x, z = self.in_proj(u).chunk(2, dim=-1)
        x = short_convolution(x, *self._taps())
        y = selective_scan(x, *self._selected(x), *in_single(self.D))
        return self.out_proj(y.to(z.dtype) * silu(z))

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return the state of rest for `step`: inputs of the convolution (batch, conv - 1, inner), states.

        Parameters
        ----------
        batch : int
            Sequences that are generated at once.

        Returns
        -------
        inputs : (batch, conv - 1, inner) Tensor
            What the convolution remembers.
        h : (batch, inner, states) Tensor
            States, in float32 at least.
        """
        inner, _, conv = self.conv1d.weight.shape
        batch = check_size(batch, "batch", 0)
        inputs = self.in_proj.weight.new_zeros(batch, conv - 1, inner)
        return inputs, in_single(self.A_log)[0].new_zeros(batch, *self.A_log.shape)

    def step(self, u: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Advance by one time step, as in generation.

        Parameters
        ----------
        u : (batch, channels) Tensor
            Inputs of this step.
        state : tuple of Tensor
            What the step before returned, or `initial_state`.

        Returns
        -------
        y : (batch, channels) Tensor
            Outputs, as `forward` gives them at this step.
        state : tuple of Tensor
            The new state.

        Raises
        ------
        InputError
            If shapes do not fit the layer, such as a state from before the layer was reduced.

        Examples
        --------
        >>> import torch
        >>> from hankelred_torch.layers import Mamba
        >>> layer, u = Mamba(channels=2, states=4), torch.randn(1, 6, 2)
        >>> state = layer.initial_state(batch=1)
        >>> for t in range(6):
        ...     y, state = layer.step(u[:, t], state)
        >>> torch.allclose(y, layer(u)[:, -1], atol=1e-5)
        True
        """
        inner, _, conv = self.conv1d.weight.shape
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise InputError(f"state must be a pair, as from initial_state; got {described(state)}.")
        inputs, h = state
        check_step(u, h, self.channels, tuple(self.A_log.shape), "inner, states", self.D)
        check_step(u, inputs, self.channels, (conv - 1, inner), "conv - 1, inner", self.D)
        self._check_dtype(u)
        x, z = self.in_proj(u).chunk(2, dim=-1)
        inputs = torch.cat([inputs.to(x.dtype), x[:, None]], dim=1)
        x = convolved(inputs, *self._taps())[:, 0]
        delta, A, B, C = in_single(*self._selected(x))
        h = torch.exp(delta[..., None] * A) * h + (delta * x)[..., None] * B[:, None]
        y = (h * C[:, None]).sum(-1) + self.D * x
        return self.out_proj(y.to(z.dtype) * silu(z)), (inputs[:, 1:], h)

    def _check_dtype(self, u: Tensor) -> None:
        """Raise where torch would fail on the first product; what stands in for a linear map may cast."""
        dtype = self.in_proj.weight.dtype
        if u.dtype != dtype and type(self.in_proj) is nn.Linear and not torch.is_autocast_enabled(u.device.type):
            raise InputError(f"u must be of the dtype of the layer, {dtype}; got {u.dtype}. Convert it by u.to.")

    def extra_repr(self) -> str:
        """Return the sizes for `repr`."""
        return f"channels={self.channels}, states={self.states}"

    def _taps(self) -> tuple[Tensor, Tensor]:
        """Return weight (inner, conv) and bias of the convolution."""
        return self.conv1d.weight[:, 0], cast(Tensor, self.conv1d.bias)

    def _selected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return delta, A, B and C for the inputs of the state space model."""
        n = self.states
        dt, B, C = self.x_proj(x).split([self.dt_proj.weight.shape[1], n, n], dim=-1)
        return softplus(self.dt_proj(dt)), -torch.exp(in_single(self.A_log)[0]), B, C
