"""What LRU and S5 share: states that all inputs drive and all outputs read, one step at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._inputs import check_size, check_step


class Mixing(nn.Module):
    """A diagonal layer from all channels to all channels, with feedthrough D of the channels' number."""

    channels: int
    D: nn.Parameter

    @property
    def states(self) -> int:
        """Number of complex states, read from the parameters."""
        raise NotImplementedError

    def rates(self) -> Tensor:
        """Return the logarithms of the poles in discrete time, (states,) complex128."""
        raise NotImplementedError

    def system_matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return input and output matrix in discrete time, complex, and the feedthrough."""
        raise NotImplementedError

    def initial_state(self, batch: int) -> Tensor:
        """Return the state of rest for `step`.

        Parameters
        ----------
        batch : int
            How many sequences go on side by side.

        Returns
        -------
        (batch, states) torch.Tensor
            complex128.
        """
        return torch.zeros(check_size(batch, "batch", 0), self.states, dtype=torch.complex128, device=self.D.device)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by one time step, as in generation.

        Parameters
        ----------
        u : (batch, channels) Tensor
            Inputs of this step.
        state : (batch, states) complex Tensor
            What the step before returned, or `initial_state`.

        Returns
        -------
        y : (batch, channels) Tensor
            Outputs, as `forward` gives them at this step.
        state : (batch, states) complex Tensor
            The new state.

        Raises
        ------
        InputError
            If shapes do not fit the layer, such as a state from before the layer was reduced.

        Examples
        --------
        >>> import torch
        >>> from hankelred_torch.layers import LRU
        >>> layer, u = LRU(channels=2, states=4), torch.randn(1, 3, 2)
        >>> state = layer.initial_state(batch=1)
        >>> for t in range(3):
        ...     y, state = layer.step(u[:, t], state)
        >>> torch.allclose(y, layer(u)[:, -1], atol=1e-5)
        True
        """
        check_step(u, state, self.channels, (self.states,), "states", self.D)
        B, C, D = self.system_matrices()
        state = self.rates().exp() * state + u.to(B.dtype) @ B.T
        y = (state.to(C.dtype) @ C.T).real + D * u
        return y.to(torch.promote_types(self.D.dtype, u.dtype)), state

    def extra_repr(self) -> str:
        """Return the sizes for `repr`."""
        return f"channels={self.channels}, states={self.states}"
