"""Watching a model run, or running it on samples: what its layers do, what they receive, and what a cut changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hankelred.checks import check_type
from hankelred.errors import HankelredError, InputError, NumericalError

from .convert import first
from .layer_sums import SampleStatistics, Statistics
from .running import Call, call, documents, drawn_from, holding, named_arguments, on_device, running, uncompiled

if TYPE_CHECKING:
    from .adapters.base import Adapter

MOST_BATCHES = 8  # drawn of what is given, or seen of what a layer is called with: enough for n² averages

# Arguments by which a layer is handed what it remembers of earlier calls; a second run must not touch it.
CACHES = ("cache_params", "past_key_values", "inference_params", "cache", "use_cache")

NOT_HEARD = "no forward pass with gradients called it while the training was watched"


class Watch(AbstractContextManager["Watch"]):
    """What the layers of a model do while others run it, until `remove` or the end of a with block.

    Only the first `MOST_BATCHES` calls of a layer with gradients count, no evaluations. What goes wrong is the reason
    in that layer's statistics and never reaches the forward pass.
    """

    def __init__(self, model: nn.Module, adapters: Mapping[str, Adapter]) -> None:
        self._layers, self._calls = _empty(adapters), dict[str, Call]()
        names = [name for name, _ in model.named_modules()]
        ancestors = {name for name in names for x in self._layers if not name or f"{x}.".startswith(f"{name}.")}
        with ExitStack() as stack:  # all hooks or none
            if self._layers:
                stack.enter_context(uncompiled())
            for name in ancestors:
                module = model.get_submodule(name)
                stack.callback(module.register_forward_pre_hook(partial(self._keep, name), with_kwargs=True).remove)
            _listen(stack, adapters, self._layers, watched=True, patient=True)
            self._stack = stack.pop_all()

    def statistics(self) -> SampleStatistics:
        """Return what was seen until now; a layer that saw nothing has the reason why."""
        for layer in self._layers.values():
            if not layer.seen and not layer.reason:
                layer.reason = NOT_HEARD
        return SampleStatistics(dict(self._layers), list(self._calls.values()) or None)

    def remove(self, *_: object) -> None:
        """Take all hooks away; a second call does nothing."""
        self._stack.close()

    __exit__ = remove

    def _keep(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the first call of a module, unless one around it has been kept."""
        if torch.is_grad_enabled() and not any(not x or f"{name}.".startswith(f"{x}.") for x in self._calls):
            self._calls[name] = Call(module, args, kwargs)


def watch(model: nn.Module, adapters: Mapping[str, Adapter]) -> Watch:
    """Arm hooks in a model without wrappers: `statistics` of the result stand for `batches`, `remove` ends it."""
    check_type(model, "model", nn.Module)
    if not isinstance(adapters, Mapping) or not all(hasattr(x, "state_axes") for x in adapters.values()):
        raise InputError(f"adapters must be those of find_ssm_layers, by name; got {type(adapters).__name__}.")
    return Watch(model, adapters)


def gather(
    model: nn.Module,
    adapters: Mapping[str, Adapter],
    batches: Any,
    *,
    most: int = MOST_BATCHES,
    patient: bool = False,
) -> SampleStatistics:
    """Run a model on at most so many batches and return what its layers did; statistics go as they are.

    Where patient, a layer whose sums fail has the reason in its statistics.

    Raises
    ------
    InputError
        If there are selective layers and no batches or one of them is not called, or the model cannot be called.
    NumericalError
        If what a layer gets or puts out is not finite, or its sums overflow; with the name of the first.
    """
    check_batches(adapters, batches)
    layers, drawn = _empty(adapters), []
    if not layers or batches is None:
        return SampleStatistics({})
    if isinstance(batches, SampleStatistics):
        for name, new in layers.items():
            found = batches.layers.get(name)
            if found is None and adapters[name].kind == "lti":
                continue
            if found is None or _sizes(found) != _sizes(new):
                raise InputError(
                    f"Statistics must be of this model at its present sizes; got {found and found.sums!r} for layer "
                    f"{name!r} with {new.sums.n} states. Collect them anew after every cut."
                )
        return batches
    with running(model), ExitStack() as stack:
        _listen(stack, adapters, layers, patient=patient)
        device = next((x.device for x in model.parameters()), torch.device("cpu"))
        for batch in drawn_from(batches, most):
            drawn.append(on_device(device, batch))
            try:
                call(model, drawn[-1])
            except NumericalError:
                raise
            except Exception as error:
                if patient:
                    for layer in layers.values():
                        layer.reason = f"the model could not be called with batches: {type(error).__name__}: {error}"
                    break
                raise InputError(
                    f"batches must hold inputs of the model: tensors, dicts of its keyword arguments, or tuples that "
                    f"begin with one; got a {type(batch).__name__}, and from the model {type(error).__name__}: {error}"
                ) from error
    selective = {name: layer for name, layer in layers.items() if adapters[name].kind == "selective"}
    unseen = [name or "(model)" for name, layer in selective.items() if not layer.seen and not layer.reason]
    if unseen:
        raise InputError(
            f"batches must make the model call all of its selective layers; got none for {', '.join(unseen)} in "
            f"{len(drawn)} batches. Pass inputs as in training, or leave the layers out by target_modules."
        )
    return SampleStatistics(layers, drawn[0])


def layer_inputs(model: nn.Module, adapters: Mapping[str, Adapter], probe: Any) -> dict[str, Tensor]:
    """Return what layers receive on one batch of the model, (batch, length, channels), of those that tell."""
    found: dict[str, Tensor] = {}

    def listen(name: str, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with suppress(InputError):
            u = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
            found.setdefault(name, adapters[name].sequence(u, named_arguments(layer, args, kwargs)).detach())

    with running(model), ExitStack() as stack:
        for name, adapter in adapters.items():
            handle = adapter.layer.register_forward_pre_hook(partial(listen, name), with_kwargs=True)
            stack.callback(handle.remove)
        call(model, probe)
    return found


def output_errors(
    model: nn.Module, candidates: Mapping[str, tuple[Any, Iterable[Any]]], probe: Any
) -> dict[str, list[float]]:
    """Measure how much the output of layers changes with every one of several cuts, in the layers themselves.

    Candidates are adapters, each with what its tensors would be. These and the new sizes stand in the layer while its
    own forward runs again, compiled, patched or not, on the arguments of a call by the model; what comes before and
    behind the layer, its own hooks included, is left out.
    Returned are root mean squares relative to that of the output, of those layers that the model called.
    """
    cuts = {name: [({}, {}), *(adapter.after(x) for x in written)] for name, (adapter, written) in candidates.items()}
    squares = {name: np.zeros(len(x)) for name, x in cuts.items()}

    def listen(name: str, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        kwargs, outputs = {key: value for key, value in kwargs.items() if key not in CACHES}, []
        for tensors, sizes in cuts[name]:
            with holding(layer, tensors, sizes):
                outputs.append(first(layer.forward(*args, **kwargs)).double())
        squares[name] += [float(x.square().sum()) for x in (outputs[0], *(x - outputs[0] for x in outputs[1:]))]

    with running(model), ExitStack() as stack:
        for name, (adapter, _) in candidates.items():
            handle = adapter.layer.register_forward_hook(partial(listen, name), with_kwargs=True)
            stack.callback(handle.remove)
        call(model, probe)
    return {name: np.sqrt(x[1:] / x[0]).tolist() for name, x in squares.items() if x[0] > 0}


def check_batches(adapters: Mapping[str, Adapter], batches: Any) -> None:
    """Raise if there are selective layers and nothing to see them at work on."""
    selective = [name or type(x.layer).__qualname__ for name, x in adapters.items() if x.kind == "selective"]
    if not selective or isinstance(batches, SampleStatistics):
        return
    if batches is None:
        raise InputError(
            f"batches must be given for layers whose matrices depend on their input; got none for "
            f"{', '.join(selective)}. Pass a list of some sample inputs of the model, tensors or what else it is "
            f"called with; or leave these layers out by target_modules."
        )
    if isinstance(batches, (Tensor, np.ndarray, Mapping, str, bytes)) or not hasattr(batches, "__iter__"):
        raise InputError(
            f"batches must be an iterable of inputs of the model; got one {type(batches).__name__}. Put it into a list."
        )


def _empty(adapters: Mapping[str, Any]) -> dict[str, Statistics]:
    """Return empty sums for the layers that can be seen at work."""
    found = {name: x.statistics() for name, x in adapters.items()}
    return {name: x for name, x in found.items() if x is not None}


def _sizes(statistics: Any) -> tuple[Any, ...]:
    sums = statistics.sums
    return type(sums), sums.n, getattr(sums, "groups", None), getattr(sums, "systems", None)


def _listen(
    stack: ExitStack,
    adapters: Mapping[str, Any],
    layers: Mapping[str, Any],
    *,
    watched: bool = False,
    patient: bool = False,
) -> None:
    """Register the hooks that fill statistics, and on a stack, how they are removed."""

    def listen(name: str, normed: list[Tensor], _: Any, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
        layer, seen = layers[name], normed.pop() if normed else None
        if layer.reason or watched and (layer.calls == MOST_BATCHES or not torch.is_grad_enabled()):
            return
        layer.calls += 1
        try:
            _add(layer, adapters[name], args, kwargs, seen, first(output))
        except Exception as error:  # whatever it is, it is no reason to end a training
            if patient:
                layer.reason = f"what it does could not be added up: {type(error).__name__}: {error}"
            elif isinstance(error, HankelredError):
                raise type(error)(f"Layer {name or '(model)'}: {error}") from error
            else:
                raise

    for name in layers:
        normed: list[Tensor] = []
        handle = adapters[name].layer.register_forward_hook(partial(listen, name, normed), with_kwargs=True)
        stack.callback(handle.remove)
        if (norm := getattr(adapters[name], "output_norm", None)) is not None:
            keep = partial(lambda normed, module, args: normed.__setitem__(slice(None), args[:1]), normed)
            stack.callback(norm.register_forward_pre_hook(keep).remove)


def _add(
    layer: Statistics, adapter: Any, args: tuple[Any, ...], kwargs: dict[str, Any], normed: Any, output: Tensor
) -> None:
    """Add one call of a layer, document by document where several are packed into a sequence."""
    named = named_arguments(adapter.layer, args, kwargs)
    u = adapter.sequence(next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None), named)
    for what, x, source in (("inputs", u, "what comes before it"), ("outputs", output, "finite inputs")):
        if not bool(torch.isfinite(x).all()):
            raise NumericalError(f"its {what} must be finite; got NaN or infinity from {source}.")
    mask = named.get("attention_mask")
    mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
    with running(adapter.layer):
        for place in documents(named, u) if u.numel() else ():
            seen: Any = (None if x is None else x.detach()[place] for x in (u, mask, normed))
            adapter.observe(layer, *seen)
