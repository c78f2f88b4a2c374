"""The states of time-invariant layers as real inputs drive them, in running sums, for sampled balancing."""

from __future__ import annotations

import torch
from torch import Tensor

from hankelred.weighting import StateCovariance

from .ops import linear_recurrence

# Numbers in a piece of states held at a time.
PIECE = 2**22


class StateStatistics:
    """Running sums over the states of one layer, one system or a bank of them, that balancing is weighed by.

    `sums` is their covariance; `reason` says why the sums tell nothing, if they do not; `calls` counts forward passes.
    """

    def __init__(self, states: int, systems: int) -> None:
        self.sums, self.reason, self.calls = StateCovariance(states, systems), "", 0

    @property
    def seen(self) -> bool:
        """Whether any state was seen, and nothing stood in the way."""
        return self.sums.count > 0 and not self.reason

    def update(self, rates: Tensor, B: Tensor, u: Tensor, mask: Tensor | None = None) -> None:
        """Add the states that inputs drive from rest.

        `rates` (b, n) and `B` (b, n, m) are those of the systems, `u` (batch, length, b m) what they receive side by
        side, and `mask` (batch, length) is zero where a step is padding.
        """
        systems, n, m = B.shape
        rows = max(1, PIECE // (u.shape[1] * systems * n))
        B = B.to(torch.complex128 if u.dtype == torch.float64 else torch.complex64)
        for start in range(0, len(u), rows):
            inputs = u[start : start + rows].detach().to(B.dtype).unflatten(2, (systems, m))
            states = linear_recurrence(rates.exp(), torch.einsum("btkm,knm->btkn", inputs, B))
            seen = states.flatten(0, 1) if mask is None else states[mask[start : start + rows] != 0]
            parts = torch.view_as_real(seen).double().movedim(-1, -2).flatten(-2).movedim(1, 0)  # (b, rows, 2n)
            sums = (parts.mT @ parts).cpu().numpy()
            found = {"n": n, "systems": systems, "count": len(seen), "sums": sums}
            self.sums.merge(StateCovariance.from_dict(found))

    def merge(self, other: StateStatistics) -> None:
        """Add what another of the same sizes has seen, as if this one had seen it."""
        self.sums.merge(other.sums)
        self.reason = self.reason or other.reason
