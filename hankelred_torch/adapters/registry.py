"""Which layers are known, and how they are recognised: by class, by all of their tensors, and by what they compute."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from itertools import product
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hankelred.checks import check_type
from hankelred.errors import InputError, NumericalError, StabilityError

from ..sharding import is_spread, own_class, units, whole
from .base import Adapter
from .check import RTOL, RunsWithAllStatesOnly, difference
from .delta import GatedDeltaAdapter, KimiDeltaAdapter, TiedDeltaAdapter
from .lru import LRUAdapter
from .mamba import MambaAdapter
from .mamba2 import GatedLinearAttentionAdapter, Mamba2Adapter
from .refused import refused
from .s4_kernel import SSMKernelDiagAdapter
from .s4d import S4DAdapter, S4DKernelAdapter
from .s5 import S5Adapter, S5PytorchAdapter
from .state_mapping import MappedDeltaAdapter, MappedMamba2Adapter

_HF = "transformers.models"

# By qualified class name, so that no package has to be imported to be known. These were compared with their adapters.
_KNOWN: dict[str, type[Adapter]] = {
    "hankelred_torch.layers.lru.LRU": LRUAdapter,
    "hankelred_torch.layers.s5.S5": S5Adapter,
    "s5.s5_model.S5SSM": S5PytorchAdapter,
    "hankelred_torch.layers.s4d.S4D": S4DAdapter,
    "hankelred_torch.layers.mamba.Mamba": MambaAdapter,
    f"{_HF}.mamba.modeling_mamba.MambaMixer": MambaAdapter,
    f"{_HF}.falcon_mamba.modeling_falcon_mamba.FalconMambaMixer": MambaAdapter,
    f"{_HF}.jamba.modeling_jamba.JambaMambaMixer": MambaAdapter,
    "mambapy.mamba.MambaBlock": MambaAdapter,
    "mamba_ssm.modules.mamba_simple.Mamba": MambaAdapter,
    "fla.layers.mamba.Mamba": MambaAdapter,
    f"{_HF}.mamba2.modeling_mamba2.Mamba2Mixer": Mamba2Adapter,
    f"{_HF}.bamba.modeling_bamba.BambaMixer": Mamba2Adapter,
    f"{_HF}.zamba2.modeling_zamba2.Zamba2MambaMixer": Mamba2Adapter,
    f"{_HF}.nemotron_h.modeling_nemotron_h.NemotronHMamba2Mixer": Mamba2Adapter,
    f"{_HF}.falcon_h1.modeling_falcon_h1.FalconH1Mixer": Mamba2Adapter,
    f"{_HF}.granitemoehybrid.modeling_granitemoehybrid.GraniteMoeHybridMambaLayer": Mamba2Adapter,
    "mamba_ssm.modules.mamba2.Mamba2": Mamba2Adapter,
    "fla.layers.mamba2.Mamba2": Mamba2Adapter,
    "fla.layers.gla.GatedLinearAttention": GatedLinearAttentionAdapter,
    f"{_HF}.qwen3_next.modeling_qwen3_next.Qwen3NextGatedDeltaNet": GatedDeltaAdapter,
    f"{_HF}.qwen3_5.modeling_qwen3_5.Qwen3_5GatedDeltaNet": GatedDeltaAdapter,
    f"{_HF}.qwen3_5_moe.modeling_qwen3_5_moe.Qwen3_5MoeGatedDeltaNet": GatedDeltaAdapter,
    f"{_HF}.qwen4_exp.modeling_qwen4_exp.Qwen4ExpTextGatedDeltaNet": GatedDeltaAdapter,
    f"{_HF}.olmo_hybrid.modeling_olmo_hybrid.OlmoHybridGatedDeltaNet": GatedDeltaAdapter,
    "hankelred_torch.adapters.state_mapping.KeyMapped": MappedDeltaAdapter,
    "hankelred_torch.adapters.state_mapping.ScanMapped": MappedMamba2Adapter,
    "fla.layers.gated_deltanet.GatedDeltaNet": GatedDeltaAdapter,
    "fla.layers.kda.KimiDeltaAttention": KimiDeltaAdapter,
    f"{_HF}.kimi_linear.modeling_kimi_linear.KimiLinearDeltaAttention": TiedDeltaAdapter,
    f"{_HF}.glm5_next.modeling_glm5_next.Glm5NextTextLinearAttention": TiedDeltaAdapter,
    f"{_HF}.bailing_hybrid.modeling_bailing_hybrid.BailingHybridDeltaAttention": TiedDeltaAdapter,
}

# By class name alone: classes of repositories that are no packages, whose modules people copy to where they like.
_BY_NAME: dict[str, type[Adapter]] = {"S4DKernel": S4DKernelAdapter, "SSMKernelDiag": SSMKernelDiagAdapter}

# What torch.compile and activation checkpointing put into the names of modules that they wrap.
INSIDE = ("_orig_mod", "_checkpoint_wrapped_module")

_REGISTERED: dict[str, type[Adapter]] = {}  # by users, whose word goes first

# By class, or by layer where its forward is its own: what was found against layers of one adapter and form.
# What torch writes into a layer and no forward pass asks for: modules of their own, `fully_shard` where it shards them.
_OF_TORCH = frozenset({*vars(nn.Module()), "_is_fsdp_managed_module", "_fsdp_use_orig_params"})
_VERDICTS: WeakKeyDictionary[Any, dict[Any, str]] = WeakKeyDictionary()


def register_adapter(class_or_qualified_name: type[nn.Module] | str, adapter: type[Adapter]) -> None:
    """Make a layer class known, so that its layers are found, planned for and cut.

    The first layer that is seen is compared with what the adapter reads, as by `check`, and refused where they differ.

    Parameters
    ----------
    class_or_qualified_name : type or str
        The layer class, or its module and name joined by a dot, which imports nothing. Subclasses are covered,
        unless they are registered themselves. The last registration counts.
    adapter : type
        Subclass of `Adapter` for layers of that class.

    Raises
    ------
    InputError
        If an argument is not of its kind.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> class MyLRU(ht.layers.LRU): ...
    >>> ht.register_adapter(MyLRU, ht.adapters.LRUAdapter)
    """
    if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
        raise InputError(f"adapter must be a subclass of hankelred_torch.adapters.Adapter; got {adapter!r}.")
    if isinstance(class_or_qualified_name, type) and issubclass(class_or_qualified_name, nn.Module):
        class_or_qualified_name = _qualified_name(class_or_qualified_name)
    if not isinstance(class_or_qualified_name, str) or "." not in class_or_qualified_name:
        raise InputError(
            f"class_or_qualified_name must be a module class, or its module and name joined by a dot; "
            f"got {class_or_qualified_name!r}."
        )
    _REGISTERED[class_or_qualified_name] = adapter


def find_ssm_layers(model: nn.Module) -> dict[str, Adapter]:
    """Find the state space layers of a model.

    Parameters
    ----------
    model : torch.nn.Module
        A model, or a single layer, whose name is then the empty string. Of a compiled or data-parallel model, names are
        those of the model inside; blocks that are compiled or checkpointed one by one add nothing to them.

    Returns
    -------
    dict of str to Adapter
        By module name, in the order of ``model.named_modules()``, without those that `refusals` names; a layer used
        twice appears once. Empty if the model has none.

    Raises
    ------
    InputError
        If a layer's tensors do not fit its adapter.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), ht.layers.LRU(4, 16))
    >>> {name: adapter.states for name, adapter in ht.find_ssm_layers(model).items()}
    {'1': 16}
    """
    known = {plain_name(name): x for name, x in unwrapped(model).named_modules() if _adapter_class(type(x)) is not None}
    return {name: adapter for name, x in known.items() if isinstance(adapter := _recognised(x, name), Adapter)}


def refusals(model: nn.Module) -> dict[str, str]:
    """Say which layers of a model have states that cannot be reduced, and why.

    Parameters
    ----------
    model : torch.nn.Module
        A model or a single layer.

    Returns
    -------
    dict of str to str
        A sentence by module name; for layers of unknown classes whose tensors fit an adapter, how to register them.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> class NewLRU(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         for name, tensor in ht.layers.LRU(4, 16).named_parameters():
    ...             self.register_parameter(name, tensor)
    >>> ht.adapters.refusals(NewLRU())
    {'': 'NewLRU has the tensors of LRUAdapter: try register_adapter(NewLRU, hankelred_torch.adapters.LRUAdapter).'}
    """
    named = {plain_name(name): x for name, x in unwrapped(model).named_modules()}
    found = {name: _recognised(x, name) or _hint(x) for name, x in named.items()}
    return {name: why for name, why in found.items() if why and isinstance(why, str)}


def state_sizes(model: nn.Module) -> dict[str, int]:
    """Return how many states every state space layer stores.

    Parameters
    ----------
    model : torch.nn.Module
        A model or a single layer.

    Returns
    -------
    dict of str to int
        By module name.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> ht.state_sizes(ht.layers.LRU(channels=4, states=16))
    {'': 16}
    """
    return {name: adapter.states for name, adapter in find_ssm_layers(model).items()}


def check(layer: nn.Module) -> float:
    """Compare a layer with what is read from it: run both on a random sequence, in double precision.

    The layer runs on copies of its tensors, moved by a hundredth, with all states and with fewer. Of a selective layer
    whose recurrence its adapter does not know, the states change places, which must not change the output. The first
    layer of a class that a user registers, that is known by its bare name, or derived from a known one, is checked
    without being asked for.

    Parameters
    ----------
    layer : torch.nn.Module
        A layer of a class with an adapter, which can be called with a sequence (batch, length, channels) or, if it is
        a kernel, with a length.

    Returns
    -------
    float
        The relative difference of the outputs, 1e-4 at most.

    Raises
    ------
    InputError
        If it is larger, the class has no adapter, or the layer cannot be run by itself.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> ht.adapters.check(ht.layers.LRU(channels=4, states=16)) < 1e-10
    True
    """
    adapter = _bound(unwrapped(layer))
    why = adapter.unfit() or _about(adapter, found := difference(adapter))
    if why:
        raise InputError(why)
    return found


def adapter_of(layer: nn.Module) -> Adapter:
    """Return the adapter of one layer, or say why it has none.

    Parameters
    ----------
    layer : torch.nn.Module
        A layer of a registered class.

    Returns
    -------
    Adapter
        Bound to the layer.

    Raises
    ------
    InputError
        If the class is not registered, or the layer is refused.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> ht.adapters.adapter_of(ht.layers.LRU(channels=4, states=16)).kind
    'lti'
    """
    found = _recognised(unwrapped(layer))
    if isinstance(found, str):
        raise InputError(found)
    return _bound(layer) if found is None else found


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside `torch.compile` and data parallel wrappers, in whatever order they were applied."""
    check_type(model, "model", nn.Module)
    while True:
        if isinstance(model, (DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # compiled
            model = inner
        else:
            return model


def plain_name(name: str) -> str:
    """Return the name that a module has in a model without what `torch.compile` and checkpointing wrap."""
    return ".".join(x for x in name.split(".") if x not in INSIDE)


def module_types(model: nn.Module) -> str:
    """Return the classes of a model's modules with their counts, for messages about what was not found."""
    counts = Counter(type(module).__qualname__ for module in model.modules())
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def refuse_averages(adapters: Mapping[str, Adapter]) -> None:
    """Raise if one layer is a frozen average of another, as the teacher of a student: each would get its own states."""
    frozen = {name for name, x in adapters.items() if not any(p.requires_grad for p in x.layer.parameters())}
    for teacher, student in product(frozen, adapters.keys() - frozen):
        if are_near(adapters[student], adapters[teacher]):
            raise InputError(
                f"A layer and its averaged copy must be cut by one map; got {student!r} in training and {teacher!r}, "
                f"frozen and nearly equal, as layers of one model. Pass the module with {student!r} as the model and "
                f"that with {teacher!r} as ema=, or leave {teacher!r} out by target_modules if it is no average."
            )


def are_near(a: Adapter, b: Adapter) -> bool:
    """Tell whether all tensors of the states of two layers point the same way; independent ones are at right angles."""
    if own_class(a.layer) is not own_class(b.layer) or a.states != b.states:
        return False
    for name in a.state_axes:
        x, y = whole(a.tensor(name)).detach(), whole(b.tensor(name)).detach()
        if not bool((x - y.to(x.device)).norm() <= 0.7 * torch.maximum(x.norm(), y.norm().to(x.device))):
            return False
    return True


def _recognised(layer: nn.Module, name: str = "") -> Adapter | str | None:
    """Return the adapter of a layer, or in a sentence why it cannot be reduced; None if its class is unknown."""
    adapter_class, holder = _adapter_class(type(layer)), type(layer).__qualname__
    if adapter_class is None:
        return refused(type(layer)) or None
    if re.search(r"(^|\.)(original_module|modules_to_save\.\w+)(\.|$)", name):
        return (
            f"{name} must be the only one in its place to be reduced; got one of two that PEFT keeps for "
            f"modules_to_save. Call merge_and_unload() first, or reduce the model before it is wrapped."
        )
    if what := adapter_class.refusal(layer):
        return f"{holder} must be a fixed diagonal system to be reduced; got one with {what}."
    try:
        adapter = adapter_class(layer)
    except InputError as error:
        if _known_by_name(type(layer)):
            return str(error)
        raise
    return adapter.unfit() or _about_behaviour(adapter) or adapter


def _bound(layer: nn.Module) -> Adapter:
    """Return the adapter of a layer, without asking whether it is refused."""
    adapter = _adapter_class(type(layer))
    if adapter is None:
        hint = _hint(layer) or "Write an adapter for it and name both to register_adapter."
        raise InputError(f"layer must be of a class with an adapter; got {_qualified_name(type(layer))}. {hint}")
    return adapter(layer)


def _about_behaviour(adapter: Adapter) -> str:
    """Return how a layer differs from what is read, found out once for its class and form."""
    layer = adapter.layer
    if _is_trusted(layer):
        return ""
    found = _VERDICTS.setdefault(layer if "forward" in vars(layer) else own_class(layer), {})
    plain = {key: x for key, x in vars(layer).items() if isinstance(x, (str, bool)) and key not in _OF_TORCH}
    form = (type(adapter), tuple(sorted(plain.items())), tuple(adapter.state_axes))
    if form not in found:
        if units(layer) or any(map(is_spread, layer.parameters())):
            return (
                f"{own_class(layer).__qualname__} must be compared with {type(adapter).__name__} before it is sharded, "
                f"since a shard cannot be run; got one that nobody has asked for yet. Call find_ssm_layers(model) "
                f"before fully_shard."
            )
        if any(x.is_meta or not bool(torch.isfinite(x).all()) for x in layer.parameters()):
            return ""  # tells nothing of the class, and is refused where it is read
        try:
            found[form] = _about(adapter, difference(adapter))
        except (StabilityError, NumericalError):
            return ""
        except InputError as error:  # not to be run by itself, which is held against a bare name only
            held = _known_by_name(type(layer)) or isinstance(error, RunsWithAllStatesOnly)
            found[form] = str(error) if held else ""
    return found[form]


def _about(adapter: Adapter, error: float) -> str:
    """Return what a difference says about a layer; nothing if it is small."""
    if error <= RTOL:
        return ""
    return (
        f"{type(adapter.layer).__qualname__} must compute what {type(adapter).__name__} reads from its tensors; got "
        f"outputs on a random sequence that differ by {error:.2g} of their size. It is another formula with the same "
        f"names: write an adapter for it and name both to register_adapter."
    )


def _is_trusted(layer: nn.Module) -> bool:
    """Tell whether a layer is of a class that was compared with its adapter, with the forward it came with."""
    name, forward = _qualified_name(own_class(layer)), type(layer).forward
    own = f"{forward.__module__}.{forward.__qualname__}" == f"{name}.forward"
    return name in _KNOWN and name not in _REGISTERED and own and "forward" not in vars(layer)


def _hint(layer: nn.Module) -> str:
    """Return which adapter the tensors of a layer of an unknown class fit, and the line to write; empty if none."""
    names = {name for name, _ in (*layer.named_parameters(), *layer.named_buffers())}
    if not names:
        return ""
    for adapter_class in dict.fromkeys((*_BY_NAME.values(), *_KNOWN.values())):
        try:
            adapter = adapter_class(layer)
            fits = not adapter_class.refusal(layer) and not adapter.unfit()
        except Exception:  # tensors of other names and shapes
            continue
        if fits and names.issuperset((*adapter.state_axes, *adapter.constants)):
            known, mine = adapter_class.__name__, type(layer).__qualname__
            return f"{mine} has the tensors of {known}: try register_adapter({mine}, hankelred_torch.adapters.{known})."
    return ""


def _adapter_class(layer_class: type) -> type[Adapter] | None:
    """Return the adapter of the nearest registered base class, or of the nearest one known by its name alone."""
    for base in layer_class.__mro__:
        name = _qualified_name(base)
        if name in _REGISTERED or name in _KNOWN:
            return _REGISTERED.get(name) or _KNOWN[name]
    return next((_BY_NAME[x.__name__] for x in layer_class.__mro__ if x.__name__ in _BY_NAME), None)


def _known_by_name(layer_class: type) -> bool:
    return not any(_qualified_name(x) in _REGISTERED or _qualified_name(x) in _KNOWN for x in layer_class.__mro__)


def _qualified_name(layer_class: type) -> str:
    return f"{layer_class.__module__}.{layer_class.__qualname__}"
