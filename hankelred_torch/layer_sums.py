"""Running sums over what the layers of a model do with data, one object for each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hankelred.checks import Array, check_type
from hankelred.errors import InputError
from hankelred.selective import SelectiveStatistics
from hankelred.weighting import StateCovariance

from .ops import linear_recurrence

NOT_HEARD = "no forward pass with gradients called it while the training was watched"

# States held at a time, for a small part of the memory that a training step takes.
PIECE = 2**15


class Sequences(NamedTuple):
    """What drives the states of a layer for one batch, axes (batch, length, ...).

    `decay` are the steps (channels) of Mamba, with `rates` (channels, n), else decays (heads), or (heads, n). B and C
    go into and out of the states: (n) of Mamba, else (groups, n). `u` are the inputs, (channels) or (heads, head_dim),
    and `gate` multiplies the outputs. `powers` are inputs and outputs of the states, (n), before norms over the states.
    `beta` (heads) are the rates of writing of a delta rule, whose keys, queries and values are B, C and u;
    `outputs` (heads, head_dim) are what the states put out, where that was computed on the way.
    """

    decay: Tensor
    B: Tensor
    C: Tensor
    u: Tensor
    gate: Tensor | None = None
    rates: Tensor | None = None
    powers: tuple[Tensor, Tensor] | None = None
    beta: Tensor | None = None
    outputs: Tensor | None = None


class LayerStatistics:
    """Running sums of one layer: `sums` for the reductions of `hankelred`, the rest for norms over the states.

    `powers` (2, n) sums the squares of inputs and outputs of every state, over their mean at the same step, at the
    `counts` (2,) of steps that had any. `values` (n, n) is the form of what the output loses with channels of values.
    `reason` says why the sums tell nothing, if they do not.
    """

    def __init__(self, states: int, groups: int = 1, *, delta: bool = False) -> None:
        self.sums, self.powers = SelectiveStatistics(states, groups, delta=delta), np.zeros((2, states))
        self.counts, self.reason, self.calls = np.zeros(2, dtype=int), "", 0
        self.values = np.zeros((states, states))

    def update(self, data: Sequences) -> None:
        """Add the sequences of one call of the layer, as from `SelectiveAdapter.sequences`."""
        decay, B, C, u = (on_cpu(x) for x in data[:4])
        gate = None if data.gate is None else on_cpu(data.gate)
        if data.beta is not None:
            self.sums.update_delta(decay, on_cpu(data.beta), B, C, u, gate)
        elif data.rates is None:
            self.sums.update_heads(decay, B, C, u, gate)
        else:
            self.sums.update_mamba(decay, on_cpu(data.rates), B, C, u, gate)
        for k, x in enumerate(data.powers or ()):
            self._add_powers(k, x.flatten(0, 1))

    def update_values(self, y: Tensor, gated: Tensor, weight: Tensor) -> None:
        """Add outputs of the states (batch, length, heads, n), and what a matrix projects of them, normed and gated."""
        self._add_powers(1, y.flatten(0, 2))
        columns = weight.to(gated.dtype).unflatten(1, gated.shape[2:])  # (channels, heads, n)
        for some in gated.flatten(0, 1).split(PIECE // columns[:, 0].numel() + 1):
            parts = torch.einsum("thj,dhj->jtd", some, columns).flatten(1).double()
            self.values += on_cpu(parts @ parts.T)

    def _add_powers(self, k: int, x: Tensor) -> None:
        squares = x.double().square()
        means = squares.mean(dim=1, keepdim=True)
        self.powers[k] += on_cpu((squares / means.where(means > 0, 1.0)).sum(dim=0))
        self.counts[k] += int((means > 0).sum())

    @property
    def seen(self) -> bool:
        """Whether any step was seen."""
        return self.sums.steps > 0

    def hankel_singular_values(self) -> Array:
        """Return what stands in for them, (n,), or (groups, n) of several groups; all zero where nothing was seen."""
        found = self.sums.hankel_singular_values() if self.seen else np.zeros((self.sums.groups, self.sums.n))
        return found[0] if len(found) == 1 else found

    def gains(self, kept: Array | None) -> tuple[float, float]:
        """Return the root mean squares of kept inputs and outputs over that of all, by step; 1 without norms."""
        if kept is None:
            return 1.0, 1.0
        shares = self.powers[:, kept].mean(axis=1) / np.maximum(self.counts, 1)
        input_gain, output_gain = np.sqrt(np.where(shares > 0, shares, 1.0))
        return float(input_gain), float(output_gain)

    def merge(self, other: LayerStatistics) -> None:
        """Add what another of the same sizes has seen, as if this one had seen it."""
        self.sums.merge(other.sums)
        self.powers, self.counts = self.powers + other.powers, self.counts + other.counts
        self.values = self.values + other.values
        self.reason = _reason_of_both(self, other)


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
        steps = min(u.shape[1], max(1, PIECE // n))
        together = max(1, min(systems, PIECE // (n * steps)))
        rows = max(1, PIECE // (n * steps * together))
        poles, B = rates.exp(), B.to(torch.complex128 if u.dtype == torch.float64 else torch.complex64)
        sums, count = np.zeros((systems, 2 * n, 2 * n)), 0
        for start in range(0, len(u), rows):
            inputs = u[start : start + rows].detach().unflatten(2, (systems, m))
            seen = None if mask is None else mask[start : start + rows] != 0
            count += inputs.shape[0] * inputs.shape[1] if seen is None else int(seen.sum())
            for first in range(0, systems, together):
                own = slice(first, first + together)
                sums[own] += _products(poles[own], B[own], inputs[:, :, own], seen, steps)
        self.sums.merge(StateCovariance.from_dict({"n": n, "systems": systems, "count": count, "sums": sums}))

    def merge(self, other: StateStatistics) -> None:
        """Add what another of the same sizes has seen, as if this one had seen it."""
        self.sums.merge(other.sums)
        self.reason = _reason_of_both(self, other)


def _reason_of_both(one: Any, other: Any) -> str:
    """Return why the sums of two together tell nothing: that one was not called is no reason if the other was."""
    reasons = [one.reason, other.reason]
    return next((x for x in reasons if x not in ("", NOT_HEARD)), "" if "" in reasons else NOT_HEARD)


def _products(poles: Tensor, B: Tensor, inputs: Tensor, seen: Tensor | None, most: int) -> Array:
    """Return the sums of products of real and imaginary parts of states, (b, 2n, 2n), some steps at a time.

    `poles` (b, n) and `B` (b, n, m) belong to `inputs` (rows, length, b, m); `seen` (rows, length) marks what counts.
    """
    sums = torch.zeros(len(poles), 2 * poles.shape[1], 2 * poles.shape[1], dtype=torch.float64, device=B.device)
    last = torch.zeros(1, dtype=B.dtype, device=B.device)
    for start in range(0, inputs.shape[1], most):
        driven = torch.einsum("btkm,knm->btkn", inputs[:, start : start + most].to(B.dtype), B)
        driven[:, 0] += poles * last
        states = linear_recurrence(poles, driven)
        last = states[:, -1]
        states = states.flatten(0, 1) if seen is None else states[seen[:, start : start + most]]
        parts = torch.view_as_real(states).double().movedim(-1, -2).flatten(-2).movedim(1, 0)  # (b, steps, 2n)
        sums += parts.mT @ parts
    return sums.cpu().numpy()


Statistics = LayerStatistics | StateStatistics


@dataclass(eq=False)
class SampleStatistics:
    """What the layers of a model did with sample batches; made by `collect_statistics`.

    It stands wherever `batches` are asked for, until the next cut. Ranks of a distributed run collect on their own
    batches, pass the objects to each other, and `merge` what they have: all of them then decide alike.

    Attributes
    ----------
    layers : dict of str to LayerStatistics or StateStatistics
        By module name; of time-invariant layers the covariance of their states.
    probe : object or None
        Inputs of the first batch, on which changes of the output are measured.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> model = torch.nn.Sequential(ht.layers.Mamba(channels=4, states=8))
    >>> found = ht.adapters.collect_statistics(model, [torch.randn(2, 16, 4)])
    >>> list(found.layers), ht.plan(model, ht.CompressionConfig(order=4), found).sizes
    (['0'], {'0': 4})
    """

    layers: dict[str, Statistics]
    probe: Any = field(default=None, repr=False)

    def merge(self, other: SampleStatistics) -> None:
        """Add what another of the same model at the same sizes has seen; the probe stays.

        Parameters
        ----------
        other : SampleStatistics
            Of the same layers; read only.

        Raises
        ------
        InputError
            If layers or their sizes differ.
        """
        check_type(other, "other", SampleStatistics)
        if set(self.layers) != set(other.layers):
            raise InputError(
                f"Statistics must be of the same layers to be merged; got {sorted(self.layers)} and "
                f"{sorted(other.layers)}. Collect both on the same model, between the same cuts."
            )
        for name, layer in self.layers.items():
            layer.merge(other.layers[name])  # type: ignore[arg-type]


def on_cpu(x: Tensor) -> Array:
    """Return a tensor as an array in single precision at least."""
    return x.detach().to("cpu", torch.float64 if x.dtype == torch.float64 else torch.float32).numpy()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return arrays as tensors, and what has sums of its own as a dict."""
    found = {key: x.to_dict() if hasattr(x, "to_dict") else x for key, x in values.items()}
    return {
        key: _plain(x) if isinstance(x, Mapping) else torch.from_numpy(x) if isinstance(x, np.ndarray) else x
        for key, x in found.items()
    }


def as_plain(statistics: SampleStatistics) -> dict[str, Any]:
    """Return the sums of all layers as plain values and tensors, without the probe."""
    return {name: _plain(vars(layer)) for name, layer in statistics.layers.items()}


def of_plain(state: Mapping[str, Any]) -> dict[str, Statistics]:
    """Return the sums of all layers from what `as_plain` returned."""
    found: dict[str, Statistics] = {}
    for name, saved in state.items():
        values = {key: x.numpy() if isinstance(x, Tensor) else x for key, x in saved["sums"].items()}
        layer: Any = object.__new__(LayerStatistics if "powers" in saved else StateStatistics)
        vars(layer).update({key: x.numpy() if isinstance(x, Tensor) else x for key, x in saved.items()})
        layer.sums = (SelectiveStatistics if "powers" in saved else StateCovariance).from_dict(values)
        found[name] = layer
    return found
