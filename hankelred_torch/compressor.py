"""When to cut: the reduction window of a training run, its attempts and their history. No Gramians here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from hankelred.errors import InputError

from .adapters import state_sizes
from .config import CompressionConfig
from .plan import plan, target_layers
from .report import CompressionReport
from .surgery import as_optimizers, check_trained, compress_


@dataclass(frozen=True)
class Measurement:
    """One layer at one attempt: what was measured, what was decided and why.

    Attributes
    ----------
    step : int
        Optimizer steps made so far.
    layer : str
        Module name.
    n : int
        States stored before.
    states : int
        States stored afterwards.
    order : int
        Hankel singular values kept.
    kept_energy : float
        Share of their sum that is kept.
    error_bound : float
        Bound on the H-infinity norm of the difference the cut made; 0 without a cut.
    hsv : list of float
        All Hankel singular values before the cut, decreasing.
    cut : bool
        Whether the layer lost states.
    reason : str
        Why it did not, or why the order is not the one asked for; empty otherwise.
    seconds : float
        Wall-clock time of the whole attempt, all layers.
    """

    step: int
    layer: str
    n: int
    states: int
    order: int
    kept_energy: float
    error_bound: float
    hsv: list[float]
    cut: bool
    reason: str
    seconds: float


class History(list[Measurement]):
    """All measurements of a run, in order; a list that knows its way to JSON.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> ht.History().to_list()
    []
    """

    def to_list(self) -> list[dict[str, Any]]:
        """Return the measurements as plain values, ready for JSON.

        Returns
        -------
        list of dict
            One entry per measurement.
        """
        return [asdict(measurement) for measurement in self]


class InTrainingCompressor:
    """Shrink a model while it trains: measure a few times in an early window, cut what carries little.

    Parameters
    ----------
    model : torch.nn.Module
        The model in training.
    optimizers : torch.optim.Optimizer or iterable of them
        Every optimizer that trains a parameter of the model.
    config : CompressionConfig
        Criterion and window; one of `total_steps` and `end_step` must be given.

    Attributes
    ----------
    history : History
        One `Measurement` per attempt and layer.

    Raises
    ------
    InputError
        If the model has no state space layers, the optimizers miss a trainable parameter of one, or the window is
        not given.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> _ = torch.manual_seed(0)
    >>> layer = ht.layers.LRU(channels=4, states=32)
    >>> optimizer = torch.optim.Adam(layer.parameters())
    >>> compressor = ht.InTrainingCompressor(layer, optimizer, ht.CompressionConfig(tau=0.1, total_steps=20))
    >>> for _ in range(20):
    ...     layer(torch.randn(2, 16, 4)).square().mean().backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    ...     report = compressor.step()
    >>> ht.state_sizes(layer)[""] < 32, [record.step for record in compressor.history]
    (True, [1, 2])
    """

    def __init__(self, model: nn.Module, optimizers: Any, config: CompressionConfig) -> None:
        self._model = model
        self._optimizers = as_optimizers(optimizers)
        if not self._optimizers:
            raise InputError("optimizers must hold at least one optimizer; got none. Outside training use compress_.")
        self._config = config
        self._attempts = frozenset(config.attempt_steps())
        self._steps = 0
        self.history = History()
        for name, adapter in target_layers(model, config).items():
            check_trained(adapter, name, self._optimizers)

    def step(self) -> CompressionReport | None:
        """Count one optimizer step; at an attempt measure, plan and cut.

        Call it once per optimizer step, after ``optimizer.step()`` and ``zero_grad()``.

        Returns
        -------
        CompressionReport or None
            What was cut; None if nothing was. The history tells what was measured.

        Raises
        ------
        InputError
            If a tensor of a layer is not finite: training has diverged.
        """
        self._steps += 1
        if self._steps not in self._attempts:
            return None
        started = time.perf_counter()
        todo = plan(self._model, self._config_now())
        report = compress_(self._model, todo, self._optimizers) if todo.is_cut else None
        seconds = time.perf_counter() - started
        for layer in (report or todo).layers.values():
            figures = layer.to_dict()
            self.history.append(Measurement(step=self._steps, layer=figures.pop("name"), seconds=seconds, **figures))
        return None if report is None else replace(report, step=self._steps, seconds=seconds)

    def _config_now(self) -> CompressionConfig:
        """Return the configuration of this attempt: on the way to a given order all cuts take an equal ratio."""
        if self._config.order is None:
            return self._config
        left = sum(step >= self._steps for step in self._attempts)
        wanted = self._config.order
        orders = {}
        for name, n in state_sizes(self._model).items():
            order = wanted.get(name) if isinstance(wanted, Mapping) else wanted
            if order is not None:
                orders[name] = round(n * min(order / n, 1.0) ** (1 / left))
        return replace(self._config, order=orders)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on, as plain values.

        Returns
        -------
        dict of str to object
            Steps counted, layer sizes, configuration and history.
        """
        return {
            "steps": self._steps,
            "sizes": state_sizes(self._model),
            "config": self._config.to_dict(),
            "history": self.history.to_list(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another compressor stopped.

        Parameters
        ----------
        state : mapping of str to object
            From `state_dict`; its configuration is for the record, the one given to this compressor counts.

        Raises
        ------
        InputError
            If the layers have not the sizes they had then: resize and load the model first.
        """
        sizes = state_sizes(self._model)
        if sizes != state["sizes"]:
            raise InputError(
                f"The layers must have the sizes they had when the state was saved, {dict(state['sizes'])}; got "
                f"{sizes}. Resize the model and load its weights first."
            )
        self._steps = int(state["steps"])
        self.history = History(Measurement(**record) for record in state["history"])
