"""Values of layers that are spread over ranks, one layer at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hankelred.checks import Array

from ..adapters import Adapter
from ..sharding import is_spread


class OneLayer:
    """Gathers the tensors of spread layers where they are asked for, and keeps those of the last layer only."""

    def __init__(self) -> None:
        self._layer: Any = None
        self._values: dict[str, Array] = {}

    def of(self, adapter: Adapter) -> Mapping[str, Array]:
        """Return the values of a layer: at once if they are here, or as they are asked for."""
        spread = any(is_spread(x) for *_, x in adapter.places((*adapter.state_axes, *adapter.constants)).values())
        return _Gathered(self, adapter) if spread else adapter.values()

    def values(self, adapter: Adapter) -> dict[str, Array]:
        """Return the values of a layer, from the ranks if it is another than last time."""
        if adapter.layer is not self._layer:
            self._layer, self._values = None, {}
            self._values, self._layer = adapter.values(), adapter.layer
        return self._values


class _Gathered(Mapping[str, Array]):
    def __init__(self, shelf: OneLayer, adapter: Adapter) -> None:
        self._shelf, self._adapter = shelf, adapter

    def __getitem__(self, name: str) -> Array:
        return self._shelf.values(self._adapter)[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*self._adapter.state_axes, *self._adapter.constants))

    def __len__(self) -> int:
        return len([*self])


def is_gathered(values: Any) -> bool:
    """Tell whether values are gathered as they are asked for."""
    return isinstance(values, _Gathered)
