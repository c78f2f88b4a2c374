"""How far training moves Hankel singular values: two moments of a layer compared, and a whole run followed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hankelred import DiagonalBank, DiagonalSystem
from hankelred.checks import Array, check_integer
from hankelred.drift import DriftBound, drift_bound, match_hsv
from hankelred.errors import HankelredError, InputError

from ..adapters import Adapter
from ..adapters.registry import unwrapped
from ..config import CompressionConfig
from ..convert import to_array
from ..errors import reading
from ..planning import LayerCut, target_layers
from .history import History

Values = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class LayerDrift:
    """What training changed in one layer, for every system of it.

    Attributes
    ----------
    bounds : tuple of DriftBound
        From the layer as it is now to what it was: certificates judge the gaps of today.
    matches : tuple of (k,) int ndarray
        Where each value of before is now, as from `match_hsv`.
    """

    bounds: tuple[DriftBound, ...]
    matches: tuple[Array, ...]

    def figures(self) -> dict[str, Any]:
        """Give what a `LayerCut` keeps of it; of a bank the largest, and what holds for all of its systems."""
        fixed = [x.fixed_coordinates + x.floor for x in self.bounds if x.fixed_coordinates is not None]
        certified = reduce(np.intersect1d, [x.certified_orders for x in self.bounds])
        return {
            "drift": max(x.hankel_norm + x.floor for x in self.bounds),
            "fixed_drift": max(fixed, default=None),
            "moved": max(float(x.drift.max(initial=0.0)) for x in self.bounds),
            "certified_orders": certified.tolist(),
            "matches": [x.tolist() for x in self.matches],
        }


def compare(adapter: Adapter, before: Values, now: Values) -> LayerDrift:
    """Bound how far the hsv of a layer have moved between tensors of these values, and follow them."""
    old, new = _systems(adapter, before), _systems(adapter, now)
    bounds = tuple(drift_bound(*pair) for pair in zip(new, old, strict=True))
    matches = tuple(match_hsv(*pair)[0] for pair in zip(old, new, strict=True))
    return LayerDrift(bounds, matches)


class Tracker:
    """Follow the Hankel singular values of a model along its training, without changing anything.

    Every time-invariant layer is measured when the tracker is made, as step 0, and then at equal distances. Each
    measurement is compared with the one before: a bound on how far values can have moved, how far they did, which value
    continues which, and the orders whose kept subspaces provably stayed in the lead. `History` draws it, and says since
    when nothing has crossed a cut.

    Parameters
    ----------
    model : torch.nn.Module
        The model in training, wrapped or not; it may be cut meanwhile.
    every : int
        Steps between measurements.
    target_modules : str or sequence of str, optional
        Layers to follow, as in `CompressionConfig`; all by default.

    Attributes
    ----------
    history : History
        One `LayerCut` per layer and moment; of a layer that cannot be measured, as with an unstable pole, the reason.

    Raises
    ------
    InputError
        If the model has no time-invariant state space layers, a tensor of one is not finite, or `every` is no
        positive integer.

    Notes
    -----
    A layer of 64 complex states with 16 inputs and outputs takes about 0.1 s of a core to measure, and every channel
    of a bank with as many states about half of that; the history keeps the matches of all of them. Choose `every`
    accordingly.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> _ = torch.manual_seed(0)
    >>> layer = ht.layers.LRU(channels=2, states=8)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=1e-5)
    >>> tracker = ht.Tracker(layer, every=2)
    >>> for _ in range(6):
    ...     layer(torch.randn(2, 16, 2)).square().mean().backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    ...     new = tracker.step()
    >>> [record.step for record in tracker.history]
    [0, 2, 4, 6]
    >>> all(record.moved <= record.drift for record in tracker.history[1:])
    True
    >>> tracker.history.settled(4)  # such small steps change nothing that an order of 4 keeps
    0
    """

    def __init__(self, model: nn.Module, every: int, target_modules: str | Sequence[str] | None = None) -> None:
        self._model, self._every = unwrapped(model), check_integer(every, "every", 1, hint="It counts optimizer steps.")
        self._config = CompressionConfig(target_modules=target_modules)
        self._steps = 0
        self._measured: dict[str, dict[str, Array]] = {}
        self.history = History()
        if not self._layers():
            raise InputError(
                "model must have a time-invariant state space layer to be tracked; got selective ones only, whose "
                "matrices depend on their input. Follow hankel_singular_values on fixed batches instead."
            )
        self._measure()

    def step(self) -> list[LayerCut]:
        """Count one optimizer step, and measure when it is time.

        Returns
        -------
        list of LayerCut
            One per layer, also added to the history; empty between measurements.

        Raises
        ------
        InputError
            If a tensor of a layer is not finite, because training has diverged.
        """
        self._steps += 1
        return self._measure() if self._steps % self._every == 0 else []

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on, as plain values and tensors.

        Returns
        -------
        dict of str to object
            Steps counted, history, and the layers at the last measurement.
        """
        return {"steps": self._steps, "history": self.history.to_list(), "measured": to_tensors(self._measured)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another tracker stopped.

        Parameters
        ----------
        state : mapping of str to object
            From `state_dict`.

        Raises
        ------
        InputError
            If it is none of a tracker, or of one that followed other layers.
        """
        with reading("state", "that of a tracker, from state_dict"):
            steps, measured = check_integer(state["steps"], "state steps", 0), from_tensors(state["measured"])
            history = History.from_list(state["history"])
        here, there = (list(dict.fromkeys(x.layer for x in y)) for y in (self.history, history))
        if here != there:
            raise InputError(
                f"state must be of a tracker of the same layers, {', '.join(map(repr, here))}; got "
                f"{', '.join(map(repr, there))}. Pass the same model and target_modules."
            )
        self._steps, self._measured, self.history = steps, measured, history

    def _layers(self) -> dict[str, Adapter]:
        found = target_layers(self._model, self._config)
        return {name: adapter for name, adapter in found.items() if adapter.kind == "lti"}

    def _measure(self) -> list[LayerCut]:
        """Measure every layer, and compare it with what it was."""
        started = time.perf_counter()
        now: dict[str, dict[str, Array]] = {}
        found: list[tuple[str, dict[str, Any]]] = []
        for name, adapter in self._layers().items():
            n = adapter.states
            figures: dict[str, Any] = {"n": n, "states": n, "kept_energy": 1.0, "error_bound": 0.0}
            try:
                values = adapter.values()
                hsv = adapter.hankel_singular_values(values)
                hsv = hsv.reshape(-1, hsv.shape[-1]).max(axis=0)  # of a bank, at every place the largest
                if name in self._measured:
                    figures |= compare(adapter, self._measured[name], values).figures()
                now[name] = values
            except HankelredError as error:  # measured again next time
                hsv, figures["reason"] = np.empty(0), f"cannot be measured now: {error}"
            found.append((name, {"order": len(hsv), "hsv": hsv} | figures))
        seconds = time.perf_counter() - started
        records = [LayerCut(layer=x, step=self._steps, seconds=seconds, **figures) for x, figures in found]
        self._measured = now
        self.history += records
        return records


def to_tensors(measured: Mapping[str, Values]) -> dict[str, dict[str, Tensor]]:
    """Return the values of layers as tensors, for a checkpoint."""
    return {
        layer: {name: torch.from_numpy(x.copy()) for name, x in values.items()} for layer, values in measured.items()
    }


def from_tensors(state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Array]]:
    """Return the values of layers from `to_tensors`."""
    return {layer: {name: to_array(x) for name, x in values.items()} for layer, values in state.items()}


def _systems(adapter: Adapter, values: Values) -> tuple[DiagonalSystem, ...]:
    found: Any = adapter.read(values)
    return tuple(found) if isinstance(found, DiagonalBank) else (found,)
