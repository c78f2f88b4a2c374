"""Watching a model run, or running it on samples: what its layers do, what they receive, and what a cut changes."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hankelred.checks import check_type
from hankelred.errors import HankelredError, InputError, NumericalError

from .convert import first
from .drawing import Spare, check_batches, drawn_by_all, on_device, put_back
from .exchange import holding
from .layer_sums import NOT_HEARD, SampleStatistics, Statistics
from .sharding import everyone, reshard, units

if TYPE_CHECKING:
    from .adapters.base import Adapter

MOST_BATCHES = 8  # drawn of what is given, or seen of what a layer is called with: enough for n² averages

# Arguments by which a layer is handed what it remembers of earlier calls; a second run must not touch it.
CACHES = ("cache_params", "past_key_values", "inference_params", "cache", "use_cache")

# Arguments that say where documents begin that are packed into one sequence: cumulative lengths, and others.
LENGTHS = ("cu_seqlens", "cu_seq_lens", "cu_seq_lens_q", "cu_seqlens_q")


class Watch(AbstractContextManager["Watch"]):
    """What the layers of a model do while others run it, until `remove` or the end of a with block.

    Only the first `MOST_BATCHES` calls of a layer with gradients count, no evaluations. What goes wrong is the reason
    in that layer's statistics and never reaches the forward pass.
    """

    def __init__(self, model: nn.Module, adapters: Mapping[str, Adapter]) -> None:
        self._layers, self._calls = _empty(adapters), dict[str, Call]()
        layers = {x.layer for x in adapters.values()}
        ancestors = {name for name, x in model.named_modules() if not layers.isdisjoint(x.modules())}
        with ExitStack() as stack:  # all hooks or none
            if self._layers:
                stack.enter_context(_Uncompiled())
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
    probe: bool = False,
    patient: bool = False,
) -> SampleStatistics:
    """Run a model on at most so many batches and return what its layers did; statistics go as they are.

    Where no layer is to be seen it does not run, or on the first batch if a probe is asked for, on which the changes of
    cuts are measured. Where patient, a layer whose sums fail has the reason in its statistics.

    Raises
    ------
    InputError
        If there are selective layers and no batches or one of them is not called, or the model cannot be called.
    NumericalError
        If what a layer gets or puts out is not finite, or its sums overflow; with the name of the first.
    """
    check_batches(adapters, batches)
    layers = _empty(adapters)
    if batches is None or not layers and not probe:
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
    lazy = [name for name, x in model.named_parameters() if is_lazy(x)]
    if lazy:
        raise InputError(
            f"model must have all its parameters to be run on batches; got {', '.join(lazy[:3])}, which wait for a "
            f"first forward pass. Call the model once."
        )
    counting, together = [True], len(everyone(None)) > 1
    with _passes(model), ExitStack() as stack:
        drawn = drawn_by_all(batches, most if layers else 1)
        # of ranks in step none stops in a pass on which the others wait for it
        _listen(stack, adapters, layers, patient=patient or together, counts=lambda: counting[0])
        device = next((x.device for x in model.parameters()), torch.device("cpu"))
        for k, (batch, counts) in enumerate(drawn):
            counting[0], drawn[k] = counts, (on_device(device, batch), counts)
            try:
                call(model, drawn[k][0])
            except NumericalError:
                raise
            except Exception as error:
                if patient and not together:
                    for layer in layers.values():
                        layer.reason = f"the model could not be called with batches: {type(error).__name__}: {error}"
                    drawn = drawn[:k]
                    break
                raise InputError(
                    f"batches must hold inputs of the model: tensors, dicts of its keyword arguments, or tuples that "
                    f"begin with one; got a {type(batch).__name__}, and from the model {type(error).__name__}: {error}"
                ) from error
    layers = _of_all(layers)
    selective = {name: layer for name, layer in layers.items() if adapters[name].kind == "selective"}
    unseen = [name or "(model)" for name, layer in selective.items() if not layer.seen and not layer.reason]
    failed = [f"Layer {name or '(model)'}: {layer.reason}" for name, layer in layers.items() if layer.reason]
    if failed and together and not patient:
        raise NumericalError(failed[0])
    if unseen:
        raise InputError(
            f"batches must make the model call all of its selective layers; got none for {', '.join(unseen)} in "
            f"{len(drawn)} batches. Pass inputs as in training, or leave the layers out by target_modules."
        )
    first_one: Any = None if not drawn else drawn[0][0] if drawn[0][1] else Spare(drawn[0][0])
    return SampleStatistics(layers, first_one)


def _of_all(layers: dict[str, Any]) -> dict[str, Any]:
    """Return the sums over all ranks in step."""
    total, *others = (SampleStatistics(x) for x in everyone(layers))
    for other in others:
        total.merge(other)
    return total.layers


def layer_inputs(model: nn.Module, adapters: Mapping[str, Adapter], probe: Any) -> dict[str, Tensor]:
    """Return what layers receive on one batch of the model, (batch, length, channels), of those that tell."""
    found: dict[str, Tensor] = {}

    def listen(name: str, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with suppress(InputError):
            u = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
            found.setdefault(name, adapters[name].sequence(u, _named(layer, args, kwargs)).detach())

    with _passes(model), ExitStack() as stack:
        for name, adapter in adapters.items():
            handle = adapter.layer.register_forward_pre_hook(partial(listen, name), with_kwargs=True)
            stack.callback(handle.remove)
        call(model, probe)
    return found


def output_errors(
    model: nn.Module, candidates: Mapping[str, tuple[Any, Sequence[Callable[[], Any]]]], probe: Any
) -> dict[str, list[float]]:
    """Measure how much the output of layers changes with every one of several cuts, in the layers themselves.

    Candidates are adapters, each with functions that return what its tensors would be. These and the new sizes stand
    in the layer while its own forward runs again, compiled, patched or not, on the arguments of a call by the model;
    what comes before and behind the layer, its own hooks included, is left out.
    Returned are root mean squares relative to that of the output, of those layers that the model called.
    """
    squares = {name: np.zeros(1 + len(ways)) for name, (_, ways) in candidates.items()}

    def listen(name: str, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        adapter, ways = candidates[name]
        given = {key: value for key, value in kwargs.items() if key not in CACHES}
        hooked = layer._forward_pre_hooks or len(layer._forward_hooks) > 1  # by others
        outputs = [output if given.keys() == kwargs.keys() and not hooked else layer.forward(*args, **given)]
        for way in ways:
            with holding(layer, *adapter.after(way())):
                outputs.append(layer.forward(*args, **given))
        before, *after = (first(x).double() for x in outputs)
        squares[name] += [float(x.square().sum()) for x in (before, *(x - before for x in after))]

    with _passes(model), ExitStack() as stack:
        for name, (adapter, _) in candidates.items():
            layer = adapter.layer
            handle = layer.register_forward_hook(partial(listen, name), with_kwargs=True, prepend=_is_unit(layer))
            stack.callback(handle.remove)
        call(model, probe.batch if isinstance(probe, Spare) else probe)
    if isinstance(probe, Spare):
        squares = {name: 0 * x for name, x in squares.items()}
    ranks = everyone(squares)
    squares = {name: sum((x[name] for x in ranks), np.zeros_like(y)) for name, y in squares.items()}
    return {name: np.sqrt(x[1:] / x[0]).tolist() for name, x in squares.items() if x[0] > 0}


@contextmanager
def _passes(model: nn.Module) -> Iterator[None]:
    """Run a model as `running` does, whose tensors may be spread."""
    reshard(model)
    with running(model):
        try:
            yield
        finally:
            reshard(model)


def _is_unit(layer: nn.Module) -> bool:
    """Tell whether a layer gathers its own tensors for a pass: behind its own hooks they are gone again."""
    return any(x is layer for x in units(layer))


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
    counts: Callable[[], bool] = lambda: True,
) -> None:
    """Register the hooks that fill statistics while calls count, and on a stack, how they are removed."""

    def listen(name: str, normed: list[Tensor], _: Any, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
        layer, seen = layers[name], normed.pop() if normed else None
        if layer.reason or not counts() or watched and (layer.calls == MOST_BATCHES or not torch.is_grad_enabled()):
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
        layer, hook = adapters[name].layer, partial(listen, name, normed)
        handle = layer.register_forward_hook(hook, with_kwargs=True, prepend=_is_unit(layer))
        stack.callback(handle.remove)
        if (norm := getattr(adapters[name], "output_norm", None)) is not None:
            keep = partial(lambda normed, module, args: normed.__setitem__(slice(None), args[:1]), normed)
            stack.callback(norm.register_forward_pre_hook(keep).remove)


def _add(
    layer: Statistics, adapter: Any, args: tuple[Any, ...], kwargs: dict[str, Any], normed: Any, output: Tensor
) -> None:
    """Add one call of a layer, document by document where several are packed into a sequence."""
    named = _named(adapter.layer, args, kwargs)
    u = adapter.sequence(next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None), named)
    for what, x, source in (("inputs", u, "what comes before it"), ("outputs", output, "finite inputs")):
        if not bool(torch.isfinite(x).all()):
            raise NumericalError(f"its {what} must be finite; got NaN or infinity from {source}.")
    mask = named.get("attention_mask")
    mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
    with running(adapter.layer):
        for place in _documents(named, u) if u.numel() else ():
            seen: Any = (None if x is None else x.detach()[place] for x in (u, mask, normed))
            adapter.observe(layer, *seen)


class Call(NamedTuple):
    """A call that was seen: whom, and with what."""

    module: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]  # as it was seen


def call(model: nn.Module, batch: Any) -> None:
    """Call a model with one batch: keywords, an argument, or a tuple that begins with these; or as was seen."""
    if isinstance(batch, list) and batch and isinstance(batch[0], Call):
        for module, args, kwargs in batch:
            module(*args, **kwargs)
    elif isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, (tuple, list)) and batch:
        call(model, batch[0])
    else:
        model(batch)


@contextmanager
def running(model: nn.Module) -> Iterator[None]:
    """Run a model as it is evaluated, uncompiled; modes, random states, buffers and attributes come back."""
    devices = sorted({x.device.index or 0 for x in model.parameters() if x.device.type == "cuda"})
    with ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002 (what users' code draws from)
        for context in (torch.random.fork_rng(devices), torch.no_grad(), _Uncompiled()):
            stack.enter_context(context)
        dicts = [x for module in model.modules() for x in (vars(module), module._parameters, module._buffers)]
        stack.callback(put_back, [(x, dict(x)) for x in dicts])
        for buffer in model.buffers():
            if not (buffer.is_meta or buffer.is_inference()):
                stack.callback(_restore, buffer, buffer._version, buffer.clone())
        for module in model.modules():  # not by eval(), which classes override
            module.training = False
        yield


class _Uncompiled(AbstractContextManager[None]):
    """Run compiled modules as they were before: hooks set after compilation would not be called.

    Those who listen to models begin and end in any order, so the first who asks switches, and the last switches back.
    """

    _asking = 0
    _stance: Any = None

    def __enter__(self) -> None:
        _Uncompiled._asking += 1
        if _Uncompiled._stance is None and "torch._dynamo" in sys.modules:
            _Uncompiled._stance = torch.compiler.set_stance("force_eager")

    def __exit__(self, *_: object) -> None:
        _Uncompiled._asking -= 1
        if _Uncompiled._asking == 0 and _Uncompiled._stance is not None:
            stance, _Uncompiled._stance = _Uncompiled._stance, None
            stance.__exit__(None, None, None)


def _restore(buffer: Tensor, version: int, value: Tensor) -> None:
    """Put a buffer back if it was written to; others are not touched, for the sake of backward passes to come."""
    if buffer._version != version:
        buffer.resize_(value.shape).copy_(value)


def _named(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name, as far as the signature tells."""
    try:
        return {**inspect.signature(layer.forward).bind_partial(*args, **kwargs).arguments, **kwargs}
    except (TypeError, ValueError):
        return kwargs


def _documents(named: Mapping[str, Any], u: Tensor) -> list[tuple[slice, slice]]:
    """Return where the sequences of a call lie that the layer begins anew with, (rows, steps)."""
    rows, length = u.shape[:2]
    borders = torch.zeros(rows, length, dtype=torch.bool)
    for key, value in named.items():
        if key not in ("seq_idx", "position_ids", *LENGTHS) or not isinstance(value, Tensor):
            continue
        found, known = value.detach().cpu(), value.shape in ((1, length), (rows, length))
        if key in LENGTHS and rows == 1 and found.ndim == 1 and found[-1] <= length:
            borders[0, found[found < length].long()] = True
        elif key not in LENGTHS and known:
            after, before = found[:, 1:], found[:, :-1]
            borders[:, 1:] |= after != before if key == "seq_idx" else after <= before
        else:
            raise InputError(
                f"{key} must be (1, length), (batch, length) or lengths of documents in one row, to be told where the "
                f"layer begins anew; got {tuple(value.shape)} for {rows} rows of {length}. Pass sequences unpacked."
            )
    borders[:, 0] = False
    if not borders.any():
        return [(slice(None), slice(None))]
    places = []
    for row in range(rows):
        cuts = [0, *torch.nonzero(borders[row]).flatten().tolist(), length]
        places += [(slice(row, row + 1), slice(a, b)) for a, b in pairwise(cuts)]
    return places
