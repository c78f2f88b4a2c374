"""What to cut and by how much: decides only; nothing in the model changes here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from threadpoolctl import threadpool_limits
from torch import nn

import hankelred as hr
from hankelred._checks import Array
from hankelred.errors import DiagonalisationError, InputError

from .adapters import Adapter, find_ssm_layers, module_types
from .config import CompressionConfig


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """What was decided for one layer, and why.

    Attributes
    ----------
    name : str
        Module name of the layer.
    n : int
        States it stores.
    states : int
        States it is to store; n where it is left alone.
    order : int
        Hankel singular values kept: a stored complex state of a layer with real output counts twice.
    kept_energy : float
        Share of the sum of Hankel singular values that is kept.
    error_bound : float
        Bound on the H-infinity norm of the difference the cut makes, in units of output per unit of input; 0 where
        nothing is cut.
    hsv : (k,) ndarray
        Hankel singular values, decreasing, in the same units.
    reason : str
        Why the layer is left alone, or why the order is not the one asked for; empty otherwise.
    reduction : Reduction or None
        The reduction behind the plan, which can measure its true error; None where nothing is cut.
    """

    name: str
    n: int
    states: int
    order: int
    kept_energy: float
    error_bound: float
    hsv: Array = field(repr=False)
    reason: str = ""
    reduction: hr.Reduction | None = field(default=None, repr=False)
    _values: Mapping[str, Array] = field(default_factory=dict, repr=False)

    @property
    def is_cut(self) -> bool:
        """Whether the layer loses states."""
        return self.states < self.n

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the reduction as plain values, ready for JSON.

        Returns
        -------
        dict of str to object
            One entry per attribute.
        """
        names = ("name", "n", "states", "order", "kept_energy", "error_bound", "reason")
        return {name: getattr(self, name) for name in names} | {"hsv": self.hsv.tolist(), "cut": self.is_cut}

    def fits(self, values: Mapping[str, Array]) -> bool:
        """Tell whether the layer still has the values it was planned for.

        Parameters
        ----------
        values : mapping of str to ndarray
            The values of the layer's tensors now.

        Returns
        -------
        bool
            False for the slightest change.
        """
        return all(np.array_equal(values[name], x) for name, x in self._values.items())


@dataclass(frozen=True, eq=False)
class CompressionPlan:
    """What is to be cut in every layer; made by `plan`, printed as a table, carried out by `compress_`.

    Attributes
    ----------
    layers : dict of str to LayerPlan
        By module name.
    config : CompressionConfig
        The configuration behind it.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> _ = torch.manual_seed(0)
    >>> plan = ht.plan(torch.nn.Sequential(ht.layers.LRU(4, 16)), ht.CompressionConfig(order=8))
    >>> plan.sizes
    {'0': 8}
    """

    layers: dict[str, LayerPlan]
    config: CompressionConfig

    @property
    def sizes(self) -> dict[str, int]:
        """States every layer is to store, by module name."""
        return {name: layer.states for name, layer in self.layers.items()}

    @property
    def is_cut(self) -> bool:
        """Whether any layer loses states."""
        return any(layer.is_cut for layer in self.layers.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, ready for JSON.

        Returns
        -------
        dict of str to object
            The configuration and one entry per layer.
        """
        return {"config": self.config.to_dict(), "layers": [layer.to_dict() for layer in self.layers.values()]}

    def scalars(self, prefix: str = "hankelred") -> dict[str, float]:
        """Return the figures of the plan for a logger.

        Parameters
        ----------
        prefix : str, default "hankelred"
            First part of every name.

        Returns
        -------
        dict of str to float
            ``prefix/layer/states``, ``.../kept_energy`` and ``.../error_bound``.
        """
        return layer_scalars(self.layers, prefix)

    def __str__(self) -> str:
        """Return the plan as a table, one line per layer."""
        return layer_table(self.layers)


def layer_scalars(layers: Mapping[str, LayerPlan], prefix: str) -> dict[str, float]:
    """Return the figures of layers for a logger."""
    return {
        f"{prefix}/{name or 'model'}/{figure}": float(getattr(layer, figure))
        for name, layer in layers.items()
        for figure in ("states", "kept_energy", "error_bound")
    }


def layer_table(layers: Mapping[str, LayerPlan]) -> str:
    """Return the figures of layers as a table for people."""
    rows = [("layer", "states", "kept energy", "error bound", "")]
    for layer in layers.values():
        states = f"{layer.n} -> {layer.states}" if layer.is_cut else f"{layer.n}"
        bound = f"{layer.error_bound:.3g}" if layer.is_cut else ""
        rows.append((layer.name or "(model)", states, f"{layer.kept_energy:.2%}", bound, layer.reason))
    widths = [max(len(row[k]) for row in rows) for k in range(5)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def plan(model: nn.Module, config: CompressionConfig) -> CompressionPlan:
    """Decide how many states every state space layer keeps; change nothing.

    Parameters
    ----------
    model : torch.nn.Module
        A model or a single layer.
    config : CompressionConfig
        Criterion and limits.

    Returns
    -------
    CompressionPlan
        One entry per layer, also for those that are left alone, with the reason.

    Raises
    ------
    InputError
        If the model has no state space layers, `config` names one it has not, or a tensor is not finite.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(ht.layers.LRU(4, 32))
    >>> layer = ht.plan(model, ht.CompressionConfig(tau=0.1)).layers["0"]
    >>> layer.states < 32, layer.kept_energy >= 0.9
    (True, True)
    """
    adapters = target_layers(model, config)
    with one_blas_thread():
        return CompressionPlan({name: _plan_layer(name, x, config) for name, x in adapters.items()}, config)


def hankel_singular_values(model_or_layer: nn.Module) -> dict[str, Array]:
    """Compute the Hankel singular values of every state space layer.

    Parameters
    ----------
    model_or_layer : torch.nn.Module
        A model, or a single layer, whose name is then the empty string.

    Returns
    -------
    dict of str to (k,) ndarray
        Decreasing, in units of output per unit of input, by module name; two per stored state where the output is
        the real part of complex states. In double precision, relative to the stored parameters.

    Raises
    ------
    InputError
        If the model has no state space layers or a tensor is not finite.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> ht.hankel_singular_values(ht.layers.LRU(channels=4, states=16))[""].shape
    (32,)
    """
    adapters = _ssm_layers(model_or_layer)
    with one_blas_thread():
        return {name: hr.hankel_singular_values(x.read(x.values())) for name, x in adapters.items()}


def target_layers(model: nn.Module, config: CompressionConfig) -> dict[str, Adapter]:
    """Return the adapters of the layers a configuration allows to be cut."""
    adapters = _ssm_layers(model)
    if isinstance(config.order, Mapping):
        unknown = sorted(set(config.order) - set(adapters))
        if unknown:
            raise InputError(f"order must name state space layers ({', '.join(adapters)}); got {unknown}.")
        adapters = {name: x for name, x in adapters.items() if name in config.order}
    if config.target_modules is None:
        return adapters
    targets = config.target_modules
    if isinstance(targets, str):
        chosen = {name: x for name, x in adapters.items() if re.fullmatch(targets, name)}
    else:
        chosen = {name: x for name, x in adapters.items() if any(name == t or name.endswith(f".{t}") for t in targets)}
    if not chosen:
        raise InputError(f"target_modules must match a layer of {', '.join(adapters)}; got {targets!r}.")
    return chosen


def reduce_layer(adapter: Adapter, values: Mapping[str, Array], states: int) -> hr.Reduction:
    """Return the reduction of one layer to at most so many stored states, in the layer's coordinates."""
    system = adapter.read(values)
    return adapter.align(system, hr.balance(system).reduce(states=states))


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Run the linear algebra in one thread: small matrices on several stall each other on a busy machine."""
    with threadpool_limits(limits=1, user_api="blas"):
        yield


def _plan_layer(name: str, adapter: Adapter, config: CompressionConfig) -> LayerPlan:
    values = adapter.values()
    system = adapter.read(values)
    balancing, n = hr.balance(system), system.n
    try:
        wanted, detour = _wanted_states(balancing, _fixed_order(name, config), config)
        wanted = min(_rounded(wanted, config), n)
        limit = (1 - config.min_cut) * n
        if not wanted < limit:
            reason = f"{wanted} of {n} states are needed; a cut keeps fewer than {limit:.4g}"
            return _unchanged(name, balancing, n, reason)
        reduction, second_detour = _reduce(balancing, prefer_larger=config.order is None, states=wanted)
    except DiagonalisationError as error:
        return _unchanged(name, balancing, n, str(error))
    states = reduction.system.n
    if not states < limit:
        reason = f"the next order that can be diagonalised takes {states} of {n} states"
        return _unchanged(name, balancing, n, reason)
    if states < min(config.min_order, wanted):
        reason = f"only {states} states link inputs to outputs, fewer than min_order={config.min_order}"
        return _unchanged(name, balancing, n, reason)
    return LayerPlan(
        name=name,
        n=n,
        states=states,
        order=reduction.order,
        kept_energy=_kept_energy(balancing.hsv, reduction.order),
        error_bound=reduction.error_bound,
        hsv=balancing.hsv,
        reason=second_detour or detour,
        reduction=adapter.align(system, reduction),
        _values=values,
    )


def _unchanged(name: str, balancing: hr.Balancing, n: int, reason: str) -> LayerPlan:
    return LayerPlan(name, n, n, len(balancing.hsv), 1.0, 0.0, balancing.hsv, reason)


def _fixed_order(name: str, config: CompressionConfig) -> int | None:
    """Return the states asked for by number, for one layer."""
    return config.order[name] if isinstance(config.order, Mapping) else config.order


def _wanted_states(balancing: hr.Balancing, order: int | None, config: CompressionConfig) -> tuple[int, str]:
    """Return the stored states that the criterion asks for, and the detour on the way there if there was one."""
    if order is not None:
        return order, ""
    least, detour = _reduce(balancing, prefer_larger=True, order=balancing.order(energy=1 - config.tau))
    return least.system.n, detour


def _rounded(states: int, config: CompressionConfig) -> int:
    """Return the states rounded up, and at least the fewest allowed."""
    if config.round_to is not None:
        states = -(-states // config.round_to) * config.round_to
    return max(states, config.min_order)


def _reduce(balancing: hr.Balancing, *, prefer_larger: bool, **criterion: Any) -> tuple[hr.Reduction, str]:
    """Reduce by one criterion, or to the nearest order that can be diagonalised, and say so then."""
    try:
        return balancing.reduce(**criterion), ""
    except DiagonalisationError as error:
        orders = sorted(cast(Any, error).orders, reverse=prefer_larger)
        if not orders:
            raise
        wanted = criterion["order"] if "order" in criterion else balancing.order(**criterion)
        return balancing.reduce(order=orders[0]), f"order {wanted} cannot be diagonalised, {orders[0]} can"


def _kept_energy(hsv: Array, order: int) -> float:
    """Return the share of the sum of finite values that the first `order` carry."""
    finite = np.where(np.isfinite(hsv), hsv, 0.0)
    total = float(finite.sum())
    return float(finite[:order].sum()) / total if total > 0 else 1.0


def _ssm_layers(model: nn.Module) -> dict[str, Adapter]:
    adapters = find_ssm_layers(model)
    if not adapters:
        raise InputError(
            f"model must contain a state space layer with an adapter; got {module_types(model)}. "
            f"Name your layer class to hankelred_torch.register_adapter."
        )
    return adapters
