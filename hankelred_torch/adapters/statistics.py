"""What selective layers do with sample batches: gathered by hooks while the model runs, in running sums.

Nothing but sums is kept of the activations. The inputs of the first batch are kept, to measure on them what a cut
changes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hankelred.checks import Array
from hankelred.errors import InputError
from hankelred.selective import SelectiveStatistics

if TYPE_CHECKING:
    from .base import Adapter

# Arguments by which a layer is handed what it remembers of earlier calls; a twin of the layer must not touch it.
CACHES = ("cache_params", "past_key_values", "inference_params", "cache", "use_cache")


class Sequences(NamedTuple):
    """What drives the states of a layer for one batch.

    Attributes
    ----------
    decay : Tensor
        Of Mamba the steps (batch, length, channels), with `rates`; else decays (batch, length, heads) or with the
        states as a fourth axis.
    B, C : Tensor
        Into and out of the states: (batch, length, n) of Mamba, else (batch, length, groups, n).
    u : Tensor
        Inputs: (batch, length, channels) of Mamba, else (batch, length, heads, head_dim).
    gate : Tensor or None
        What multiplies the outputs afterwards, as `u`.
    rates : Tensor or None
        ``A`` of Mamba, (channels, n).
    powers : tuple of Tensor or None
        Where norms run over the states of inputs and outputs, both (batch, length, n) before the norm.
    """

    decay: Tensor
    B: Tensor
    C: Tensor
    u: Tensor
    gate: Tensor | None = None
    rates: Tensor | None = None
    powers: tuple[Tensor, Tensor] | None = None


class LayerStatistics:
    """Running sums of one layer.

    Parameters
    ----------
    states : int
        Of each channel.
    groups : int
        Groups of channels with states of their own.

    Attributes
    ----------
    sums : SelectiveStatistics
        For the reductions of `hankelred`.
    powers : (2, n) ndarray
        Sums of the squares of inputs and outputs of every state, over their mean square at the same step, where norms
        run over the states.
    """

    def __init__(self, states: int, groups: int = 1) -> None:
        self.sums = SelectiveStatistics(states, groups)
        self.powers, self._count = np.zeros((2, states)), 0

    def update(self, data: Sequences) -> None:
        """Add the sequences of one call of the layer.

        Parameters
        ----------
        data : Sequences
            From `SelectiveAdapter.sequences`.
        """
        decay, B, C, u = (_on_cpu(x) for x in data[:4])
        gate = None if data.gate is None else _on_cpu(data.gate)
        if data.rates is None:
            self.sums.update_heads(decay, B, C, u, gate)
        else:
            self.sums.update_mamba(decay, _on_cpu(data.rates), B, C, u, gate)
        if data.powers is not None:
            squares = [x.double().flatten(0, 1).square() for x in data.powers]
            means = [x.mean(dim=1, keepdim=True) for x in squares]
            parts = [(x / m.where(m > 0, 1.0)).sum(dim=0) for x, m in zip(squares, means, strict=True)]
            self.powers += np.stack([_on_cpu(x) for x in parts])
            self._count += len(squares[0])

    def hankel_singular_values(self) -> Array:
        """Return what stands in for them, (n,), or (groups, n) where there are several groups."""
        found = self.sums.hankel_singular_values()
        return found[0] if len(found) == 1 else found

    def gains(self, kept: Array | None) -> tuple[float, float]:
        """Return the factors that give inputs and outputs of kept states the size they had under norms.

        Parameters
        ----------
        kept : (order,) int ndarray or None
            States that are kept; None where they are not selected.

        Returns
        -------
        tuple of float
            Root mean squares of the kept states over that of all, taken step by step; 1 without norms.
        """
        if kept is None or not self._count:
            return 1.0, 1.0
        shares = self.powers[:, kept].mean(axis=1) / self._count
        input_gain, output_gain = np.sqrt(np.where(shares > 0, shares, 1.0))
        return float(input_gain), float(output_gain)

    def merge(self, other: LayerStatistics) -> None:
        """Add what another has seen, as if this one had seen it.

        Parameters
        ----------
        other : LayerStatistics
            Of the same sizes.
        """
        self.sums.merge(other.sums)
        self.powers, self._count = self.powers + other.powers, self._count + other._count

    def to_dict(self) -> dict[str, Any]:
        """Return everything as integers and copies of arrays, for `from_dict`."""
        return {**self.sums.to_dict(), "powers": self.powers.copy(), "count": self._count}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> LayerStatistics:
        """Make statistics from what `to_dict` returned."""
        rest = dict(state)
        powers, count = np.array(rest.pop("powers")), int(rest.pop("count"))
        found = cls(powers.shape[1])
        found.sums, found.powers, found._count = SelectiveStatistics.from_dict(rest), powers, count
        return found


@dataclass(eq=False)
class SampleStatistics:
    """What the selective layers of a model did with sample batches; made by `collect_statistics`.

    It stands wherever `batches` are asked for. Ranks of a distributed run collect on their own batches and `merge`
    what they have: all of them then decide alike.

    Attributes
    ----------
    layers : dict of str to LayerStatistics
        By module name.
    probe : object or None
        Inputs of the first batch, on which changes of the output are measured.
    """

    layers: dict[str, LayerStatistics]
    probe: Any = field(default=None, repr=False)

    def merge(self, other: SampleStatistics) -> None:
        """Add what another has seen; the probe stays.

        Parameters
        ----------
        other : SampleStatistics
            Of the same model at the same sizes.

        Raises
        ------
        InputError
            If it is of other layers or sizes.
        """
        if set(self.layers) != set(other.layers):
            raise InputError(
                f"Statistics must be of the same layers to be merged; got {sorted(self.layers)} and "
                f"{sorted(other.layers)}."
            )
        for name, layer in self.layers.items():
            layer.merge(other.layers[name])

    def to_dict(self) -> dict[str, Any]:
        """Return the sums of all layers as integers and arrays; without the probe.

        Returns
        -------
        dict of str to dict
            For `from_dict`; sums over ranks are those of these arrays, entry by entry.
        """
        return {name: layer.to_dict() for name, layer in self.layers.items()}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], probe: Any = None) -> SampleStatistics:
        """Make statistics from what `to_dict` returned.

        Parameters
        ----------
        state : mapping of str to dict
            Sums by module name.
        probe : object, optional
            Inputs of the model to measure changes of the output on.

        Returns
        -------
        SampleStatistics
            With copies of the sums.
        """
        return cls({name: LayerStatistics.from_dict(layer) for name, layer in state.items()}, probe)


def gather(model: nn.Module, adapters: Mapping[str, Any], batches: Any) -> SampleStatistics:
    """Run a model on sample batches and return what its selective layers did with them.

    Parameters
    ----------
    model : torch.nn.Module
        Its modes, random generators and hooks are afterwards as before, whatever happens.
    adapters : mapping of str to Adapter
        Of its layers; those that are time-invariant are left out.
    batches : iterable or SampleStatistics or None
        Inputs as the model is called with: tensors, tuples of positional or mappings of keyword arguments. Statistics
        are returned as they are.

    Raises
    ------
    InputError
        If there are selective layers and no batches, or a layer was not called.
    """
    selective = {name: x for name, x in adapters.items() if x.kind == "selective"}
    check_batches(selective, batches)
    if isinstance(batches, SampleStatistics):
        _check_fits(batches, selective)
        return batches
    layers = {name: LayerStatistics(x.states, x.groups) for name, x in selective.items()}
    if not layers:
        return SampleStatistics({})

    normed: dict[str, Tensor] = {}

    def listener(name: str) -> Callable[..., None]:
        def listen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            data = selective[name].sequences(*call_inputs(args, kwargs), normed.pop(name, None))
            layers[name].update(data)

        return listen

    def norm_listener(name: str) -> Callable[..., None]:
        return lambda module, args: normed.update({name: args[0]})

    probe = None
    with running(model), ExitStack() as hooks:
        for name, adapter in selective.items():
            hooks.callback(adapter.layer.register_forward_hook(listener(name), with_kwargs=True).remove)
            if adapter.output_norm is not None:
                hooks.callback(adapter.output_norm.register_forward_pre_hook(norm_listener(name)).remove)
        for batch in batches:
            probe = batch if probe is None else probe
            call(model, batch)
    unseen = [name or "(model)" for name, layer in layers.items() if layer.sums.steps == 0]
    if unseen:
        raise InputError(
            f"batches must make the model call all of its selective layers; got none for {', '.join(unseen)}. "
            f"Pass inputs as in training, or leave the layers out by target_modules."
        )
    return SampleStatistics(layers, probe)


def output_errors(
    model: nn.Module, candidates: Mapping[str, tuple[nn.Module, list[nn.Module]]], probe: Any
) -> dict[str, list[float]]:
    """Measure how much the output of layers changes if twins of other sizes stand in for them.

    Parameters
    ----------
    model : torch.nn.Module
        The model, run once on the probe.
    candidates : mapping of str to (Module, list of Module)
        Layers with their twins, by name.
    probe : object
        Inputs of the model, as one of its batches.

    Returns
    -------
    dict of str to list of float
        Root mean square change of the output of every twin, relative to that of the layer.
    """
    squares = {name: np.zeros(len(twins) + 1) for name, (_, twins) in candidates.items()}

    def listener(name: str, twins: list[nn.Module]) -> Callable[..., None]:
        def listen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            kwargs = {key: value for key, value in kwargs.items() if key not in CACHES}
            y = _first(output).double()
            changes = [_first(twin(*args, **kwargs)).double() - y for twin in twins]
            squares[name] += [float(x.square().sum()) for x in (y, *changes)]

        return listen

    with running(model), ExitStack() as hooks:
        for name, (layer, twins) in candidates.items():
            handle = layer.register_forward_hook(listener(name, twins), with_kwargs=True)
            hooks.callback(handle.remove)
        call(model, probe)
    return {name: np.sqrt(x[1:] / max(x[0], np.finfo(float).tiny)).tolist() for name, x in squares.items()}


def check_batches(adapters: Mapping[str, Adapter], batches: Any) -> None:
    """Raise if there are selective layers and nothing to see them at work on."""
    selective = [name or type(x.layer).__qualname__ for name, x in adapters.items() if x.kind == "selective"]
    if selective and isinstance(batches, (Tensor, Mapping)):
        raise InputError(
            f"batches must be an iterable of inputs of the model; got one {type(batches).__name__}. Put it into a list."
        )
    if selective and batches is None:
        raise InputError(
            f"batches must be given for layers whose matrices depend on their input; got none for "
            f"{', '.join(selective)}. Pass a list of some sample inputs of the model, tensors or what else it is "
            f"called with; or leave these layers out by target_modules."
        )


def call(model: nn.Module, batch: Any) -> Any:
    """Call a model with one batch: a mapping of keyword arguments, a sequence of positional ones, or one argument."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def call_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Return the sequence a layer is called with, and the mask of its padding."""
    tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    mask = kwargs.get("attention_mask")
    return tensors[0], mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


@contextmanager
def running(model: nn.Module) -> Iterator[None]:
    """Run a model for measurements: evaluation mode, no gradients, no compiled code; put all back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 (the global state is what users' code draws from)
    devices = sorted({x.device.index or 0 for x in model.parameters() if x.device.type == "cuda"})
    compiled = any(getattr(module, "_compiled_call_impl", None) is not None for module, _ in modes)
    compiled = compiled or hasattr(model, "_orig_mod")
    with ExitStack() as stack:
        stack.callback(random.setstate, states[0])
        stack.callback(np.random.set_state, states[1])
        for module, mode in modes:
            stack.callback(setattr, module, "training", mode)
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(torch.no_grad())
        if compiled:  # hooks set after compilation would not run
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        model.eval()
        yield


def _check_fits(statistics: SampleStatistics, adapters: Mapping[str, Any]) -> None:
    for name, adapter in adapters.items():
        found = statistics.layers.get(name)
        if found is None or (found.sums.n, found.sums.groups) != (adapter.states, adapter.groups):
            raise InputError(
                f"Statistics must be of this model at its present sizes; got {found and found.sums!r} for layer "
                f"{name!r} with {adapter.states} states. Collect them anew after every cut."
            )


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, (tuple, list)) else output


def _on_cpu(x: Tensor) -> Array:
    """Return a tensor as an array in single precision at least."""
    wide = x.dtype if x.dtype == torch.float64 else torch.float32
    return x.detach().to("cpu", wide).numpy()
