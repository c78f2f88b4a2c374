"""State maps: small matrices between what a layer makes of its input and its states, behind which these can be rotated.

A convolution and an activation, and in delta rules a norm, stand between the weights of a layer and what goes into its
states and comes out of them, so that no change of basis can be written into the weights. It goes into maps of its own:
the layer calls the kernel it always calls, with what the maps make of its arguments. Nothing else of it changes, and
nothing of its module: its class becomes a subclass, whose forward is the same code with other names in reach.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from types import CellType, FunctionType
from typing import Any, ClassVar

import torch
from torch import Tensor

from hankelred.checks import Array
from hankelred.errors import OrderError
from hankelred.selective import SelectiveReduction, project

from ..layer_sums import LayerStatistics
from .delta import GatedDeltaAdapter, KimiDeltaAdapter, unit
from .mamba2 import Mamba2Adapter
from .selective import SelectiveAdapter, wide
from .state_maps import Block, Layout, Role

Kernel = Callable[..., Any]
_ROLES: tuple[Role, Role] = ("input", "output")
_MAPPED: dict[type, Any] = {}  # by class, the subclass with maps


class StateMapped:
    """What a layer with state maps is beside its own class; `add_state_maps_` makes layers so."""

    map_names: tuple[str, ...]
    _own_forward: Kernel  # that of the class, with kernels behind maps

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run as the class does, with the maps at hand where its kernels are called."""
        return self._own_forward(*args, state_maps=tuple(getattr(self, x) for x in self.map_names), **kwargs)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle as an object of the class that it is derived from, with maps: there is no name to find this one by."""
        return _unpickled, (own_class(type(self)),), self.__dict__


class KeyMapped(StateMapped):
    """A delta rule with a map for keys, orthonormal because keys both write and forget, and one for queries."""

    map_names = ("key_map", "query_map")


class ScanMapped(StateMapped):
    """A scan of heads with one map for what goes into the states, and one for what comes out."""

    map_names = ("input_map", "output_map")


class StateMappedAdapter(SelectiveAdapter):
    """What adapters of layers with state maps share: a cut changes the maps, and nothing else."""

    others: ClassVar[tuple[str, ...]] = (
        *GatedDeltaAdapter.others,
        *Mamba2Adapter.others,
        *("in_proj", "in_proj_qkv", "in_proj_qkvz", "q_proj", "k_proj", "conv1d", "mup_vector"),
    )

    def layout_of(self, layer: Any) -> dict[str, Layout]:
        """Return the maps."""
        return {name: Layout(0, (Block(role),)) for name, role in zip(layer.map_names, _ROLES, strict=True)}

    @property
    def rotates(self) -> bool:
        """Rotations go into the maps."""
        return True

    @property
    def folds(self) -> bool:
        """What kept states tell of others goes into the map of outputs."""
        return True

    @property
    def maps(self) -> list[Tensor]:
        """The maps of what goes into the states, and of what comes out."""
        return [self.tensor(name) for name in self.layouts]

    @property
    def made_states(self) -> int:
        """States that the layer makes inputs and outputs of, before the maps."""
        return self.maps[0].shape[1]

    def sizes(self, states: int) -> dict[str, Any]:
        """Return nothing: kernels read sizes from tensors."""
        return {}

    def behind_maps(self, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and outputs of the states as the kernel gets them."""
        into, out = self.maps
        return mapped_states(B, into), mapped_states(C, out)

    def rotations(
        self, values: Mapping[str, Array], statistics: LayerStatistics, states: int
    ) -> list[SelectiveReduction]:
        """Return the balanced projection, or where fewer states link inputs to outputs, an orthonormal one."""
        try:
            return [project(statistics.sums, states)]
        except OrderError:
            return [project(statistics.sums, states, orthogonal=True)]


class MappedDeltaAdapter(StateMappedAdapter, GatedDeltaAdapter):
    """Adapter of gated delta nets with key maps."""


class MappedMamba2Adapter(StateMappedAdapter, Mamba2Adapter):
    """Adapter of Mamba-2 layers with maps."""


def maps_of(adapter: Any) -> tuple[str, ...]:
    """Return the names of the maps that a layer can be given; none if it has them, or cannot have any."""
    layer = adapter.layer
    if isinstance(layer, StateMapped) or isinstance(adapter, KimiDeltaAdapter):  # decays in every channel
        return ()
    if "forward" in vars(layer) or own_kernels(type(layer)) is None:  # a forward that others have put there
        return ()
    found: tuple[str, ...] = mapped_class(type(layer)).map_names
    return found


def give_maps(adapter: Any) -> None:
    """Make a layer one of the mapped subclass of its class, with maps that change nothing."""
    layer, names = adapter.layer, maps_of(adapter)
    like, own = next(layer.parameters()), type(layer)
    dtype = torch.promote_types(like.dtype, torch.float32)
    eye = torch.eye(adapter.states, dtype=dtype, device=like.device).repeat(adapter.groups, 1)
    for name in names:
        layer.register_buffer(name, eye.clone())
    layer.__class__ = mapped_class(own)


def take_maps(layer: Any) -> None:
    """Make a layer one of its own class again, without maps."""
    for name in layer.map_names:
        delattr(layer, name)
    layer.__class__ = own_class(type(layer))


def own_class(layer_class: type) -> Any:
    """Return the class that a mapped one is derived from."""
    return layer_class.__mro__[layer_class.__mro__.index(StateMapped) + 1]


def mapped_class(layer_class: Any) -> Any:
    """Return the subclass of a layer class whose kernels run behind maps; the same one every time."""
    if layer_class not in _MAPPED:
        kernels = own_kernels(layer_class) or {}
        kind = KeyMapped if "torch_chunk_gated_delta_rule" in kernels else ScanMapped
        members = {"_own_forward": _with_globals(layer_class.forward, kernels), "__module__": __name__}
        _MAPPED[layer_class] = type(f"Mapped{layer_class.__name__}", (kind, layer_class), members)
    return _MAPPED[layer_class]


def own_kernels(layer_class: Any) -> dict[str, Kernel] | None:
    """Return by name what the forward of a class calls, behind maps; None if one of its kernels is not known."""
    forward = layer_class.forward
    while hasattr(forward, "__wrapped__"):
        forward = forward.__wrapped__
    names = set(getattr(getattr(forward, "__code__", None), "co_names", ()))
    if not any(names >= x for x in _COMPLETE):
        return None
    return {name: wrap(forward.__globals__[name]) for name, wrap in _BEHIND_MAPS.items() if name in names}


def _with_globals(function: Any, names: Mapping[str, Any]) -> Any:
    """Return a function with other globals, reached through the decorators around it."""
    inner = getattr(function, "__wrapped__", None)
    if inner is None:
        scope = {**function.__globals__, **names}
        scope.pop("__name__", None)  # by which torch.compile would look names up in the module that it is not
        return _copied(function, scope, function.__closure__)
    replaced = _with_globals(inner, names)
    cells = tuple(CellType(replaced) if x.cell_contents is inner else x for x in function.__closure__ or ())
    return _copied(function, function.__globals__, cells)


def _copied(function: Any, names: dict[str, Any], closure: Any) -> Any:
    new = FunctionType(function.__code__, names, function.__name__, function.__defaults__, closure)
    new.__kwdefaults__, new.__module__ = function.__kwdefaults__, function.__module__
    return new


def _unpickled(layer_class: Any) -> Any:
    return mapped_class(layer_class).__new__(mapped_class(layer_class))


def _without_maps(kernel: Kernel) -> Kernel:
    """Return a kernel that is not told of maps."""

    @wraps(kernel)
    def run(*args: Any, state_maps: Any = None, **kwargs: Any) -> Any:
        return kernel(*args, **kwargs)

    return run


def _no_fusion(kernel: Kernel) -> Kernel:
    """Return what says of a fused kernel, which maps cannot be put into, that it is not there."""
    return lambda *args, **kwargs: None


def _delta_rule(kernel: Kernel) -> Kernel:
    """Return a delta rule whose keys and queries pass their norms, and then their maps; scaled as before them."""

    @wraps(kernel)
    def run(query: Tensor, key: Tensor, *args: Any, state_maps: tuple[Tensor, Tensor], **kwargs: Any) -> Any:
        key_map, query_map = state_maps
        groups, n = key.shape[2:]
        scale = (len(key_map) / groups / n) ** 0.5  # the kernel divides by the root of the channels that it sees
        query, key = (mapped_states(unit(wide(x)), y).to(x.dtype) for x, y in ((query, query_map), (key, key_map)))
        return kernel(query * scale, key, *args, **{**kwargs, "use_qk_l2norm_in_kernel": False})

    return run


def _scan(kernel: Kernel) -> Kernel:
    """Return a scan of Mamba-2 behind maps."""

    @wraps(kernel)
    def run(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *args: Any, state_maps: Any, **kwargs: Any) -> Any:
        B, C = (mapped_states(y, z) for y, z in zip((B, C), state_maps, strict=True))
        return kernel(x, dt, A, B, C, *args, **kwargs)

    return run


def _update(kernel: Kernel) -> Kernel:
    """Return a single step of Mamba-2 behind maps, with rates for as many states as are left."""

    @wraps(kernel)
    def run(
        state: Any, x: Any, dt: Any, A: Tensor, B: Tensor, C: Tensor, *args: Any, state_maps: Any, **kwargs: Any
    ) -> Any:
        B, C = (mapped_states(y, z) for y, z in zip((B, C), state_maps, strict=True))
        return kernel(state, x, dt, A[..., : B.shape[-1]], B, C, *args, **kwargs)

    return run


def mapped_states(x: Tensor, rows: Tensor) -> Tensor:
    """Return vectors (..., groups, n) mapped by the rows (groups * r, n) of a map, (..., groups, r)."""
    return torch.einsum("...gn,grn->...gr", x, rows.to(x.dtype).unflatten(0, (x.shape[-2], -1)))


_BEHIND_MAPS: dict[str, Callable[[Kernel], Kernel]] = {
    "causal_conv1d_fn": _without_maps,
    "causal_conv1d_update": _without_maps,
    "torch_chunk_gated_delta_rule": _delta_rule,
    "torch_recurrent_gated_delta_rule": _delta_rule,
    "mamba2_split_conv1d_scan_combined": _no_fusion,
    "mamba2_chunk_scan": _scan,
    "mamba2_selective_state_update": _update,
}
_COMPLETE = (  # kernels of a forward that nothing of the states gets past
    {"causal_conv1d_fn", "causal_conv1d_update", "torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"},
    {"mamba2_split_conv1d_scan_combined", "mamba2_chunk_scan", "mamba2_selective_state_update"},
)
