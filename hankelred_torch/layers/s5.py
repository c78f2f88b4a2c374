"""S5: a diagonal state space layer in continuous time, all inputs to all outputs, run by a zero-order hold."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from hankelred.checks import Array
from hankelred.errors import InputError

from ..ops.state_space import planar_ssm
from ._continuous import DT_MAX, DT_MIN, held_input
from ._inputs import check_sequences, check_size, in_single
from ._mixing import Mixing


class S5(Mixing):
    """Simplified structured state space layer [1]_.

    ``x' = Lambda x + B u``, ``y = 2 Re(C x) + D u``, elementwise in Lambda and D, with u held for a step
    ``exp(log_step)`` that every state has of its own. A stored complex state stands for itself and its conjugate.

    Parameters
    ----------
    channels : int
        Inputs, and outputs, of the layer.
    states : int
        Complex states; the layer has no other size that depends on them. The state size of [1]_ is twice as large.
    blocks : int, default 1
        The poles start as this many copies of those of a smaller HiPPO matrix; divides `states`.

    Attributes
    ----------
    Lambda_re, Lambda_im : (states,) Parameter
        Poles in continuous time. Nothing keeps them in the left half plane but training.
    log_step : (states,) Parameter
        Logarithms of the steps.
    B : (states, channels, 2) Parameter
        Real and imaginary parts of the input matrix.
    C : (channels, states, 2) Parameter
        Those of the output matrix.
    D : (channels,) Parameter
        Feedthrough.
    channels : int
        As given.

    Raises
    ------
    InputError
        If a size is not positive, or `blocks` does not divide `states`.

    Notes
    -----
    As published, the poles start as half of the eigenvalues of the normal part of HiPPO-LegS, of each conjugate pair
    the one below the real axis; B and C as real matrices in its eigenvectors' coordinates; the steps log-uniform
    from 0.001 to 0.1.

    Nothing remembers the number of states but the shapes of the parameters: to shrink the layer, replace them.

    References
    ----------
    .. [1] Smith, Warrington, Linderman, "Simplified state space layers for sequence modeling", ICLR 2023,
       arXiv 2208.04933.

    Examples
    --------
    >>> import torch
    >>> from hankelred_torch.layers import S5
    >>> layer = S5(channels=3, states=8)
    >>> layer(torch.randn(2, 100, 3)).shape
    torch.Size([2, 100, 3])
    """

    def __init__(self, channels: int, states: int, blocks: int = 1) -> None:
        super().__init__()
        channels, states = check_size(channels, "channels"), check_size(states, "states")
        blocks = check_size(blocks, "blocks")
        if states % blocks:
            raise InputError(f"blocks must divide the states; got {blocks} blocks of {states} states.")
        self.channels = channels
        self._blocks = blocks
        self.Lambda_re, self.Lambda_im, self.log_step = (nn.Parameter(torch.empty(states)) for _ in range(3))
        self.B = nn.Parameter(torch.empty(states, channels, 2))
        self.C = nn.Parameter(torch.empty(channels, states, 2))
        self.D = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters anew, as published."""
        states, blocks = self.states, self._blocks
        size = 2 * states // blocks  # of one block, conjugates included
        poles, V = (torch.from_numpy(x).to(self.D.device) for x in hippo_normal(size))
        self.Lambda_re.copy_(poles.real.repeat(blocks))
        self.Lambda_im.copy_(poles.imag.repeat(blocks))
        B = _lecun_normal((blocks, size, self.channels), 2 * states, V)
        C_re, C_im = (_lecun_normal((self.channels, blocks, size), 2 * states, V) for _ in range(2))
        self.B.copy_(torch.view_as_real((V.mH @ B.to(V.dtype)).reshape(states, self.channels)))
        self.C.copy_(torch.view_as_real((torch.complex(C_re, C_im) @ V).reshape(self.channels, states)))
        self.log_step.uniform_(math.log(DT_MIN), math.log(DT_MAX))
        self.D.normal_()

    @property
    def states(self) -> int:
        """Number of complex states, read from the parameters."""
        return self.Lambda_re.shape[0]

    def rates(self) -> Tensor:
        """Return the logarithms of the poles in discrete time, (states,) complex128: Lambda times the step."""
        return self._poles() * self.log_step.double().exp()

    def system_matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return input and output matrix in discrete time, complex, the factor 2 in the latter, and feedthrough."""
        B, C, D = in_single(self.B, self.C, self.D)
        hold = held_input(self._poles(), self.rates()).to(torch.promote_types(B.dtype, torch.complex64))
        return torch.view_as_complex(B) * hold[:, None], 2 * torch.view_as_complex(C), D

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
        B, C, D = self.system_matrices()
        rates = torch.view_as_real(self.rates()).T
        B, C = torch.view_as_real(B).movedim(2, 0), torch.stack([C.real, -C.imag], dim=1)
        dtype = torch.promote_types(u.dtype, D.dtype)
        y = planar_ssm(rates, B.to(dtype), C.to(dtype), u.to(dtype), D.to(dtype))
        return y.to(torch.promote_types(self.D.dtype, u.dtype))

    def _poles(self) -> Tensor:
        return torch.complex(self.Lambda_re.double(), self.Lambda_im.double())


def hippo_normal(size: int) -> tuple[Array, Array]:
    """Return the eigenvalues of the normal part of HiPPO-LegS below the real axis, and their eigenvectors.

    HiPPO-LegS is ``A_ij = -sqrt((2i+1)(2j+1))`` for i > j and ``-(i+1)`` on the diagonal; adding ``p p^T`` with
    ``p_i = sqrt(i + 1/2)`` makes it normal, -1/2 plus a skew-symmetric matrix.

    Parameters
    ----------
    size : int
        Size of the matrix, even.

    Returns
    -------
    poles : (size / 2,) complex ndarray
        All with real part -1/2.
    V : (size, size / 2) complex ndarray
        Orthonormal columns.
    """
    p = np.sqrt(np.arange(size) + 0.5)
    skew = np.tril(-np.outer(p, p), -1)  # half of the off-diagonal: the other half is minus its transpose
    frequencies, V = np.linalg.eigh(-1j * (skew - skew.T))
    half = size // 2
    return -0.5 + 1j * frequencies[:half], V[:, :half]


def _lecun_normal(shape: tuple[int, ...], fan_in: int, like: Tensor) -> Tensor:
    """Return normal numbers of variance ``1 / fan_in`` before they are cut off at two deviations and scaled back."""
    deviation = math.sqrt(1 / fan_in) / 0.87962566103423978  # of a unit normal cut off at 2
    weight = torch.empty(shape, dtype=torch.float64, device=like.device)
    return nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)
