"""Values of layers that are spread over ranks, and what follows from them, one layer at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hankelred.checks import Array

from ..adapters import Adapter
from ..adapters.analysis import Analysis, LayerReduction
from ..sharding import is_spread


class OneLayer:
    """Gathers the tensors of spread layers where they are asked for, and keeps those of the last layer only."""

    def __init__(self) -> None:
        self._layer: Any = None
        self._values: dict[str, Array] = {}
        self._analysis: Analysis | None = None

    def of(self, adapter: Adapter) -> Mapping[str, Array]:
        """Return the values of a layer: at once if they are here, or as they are asked for."""
        spread = any(is_spread(x) for *_, x in adapter.places((*adapter.state_axes, *adapter.constants)).values())
        return _Gathered(self, adapter) if spread else adapter.values()

    def values(self, adapter: Adapter) -> dict[str, Array]:
        """Return the values of a layer, from the ranks if it is another than last time."""
        if adapter.layer is not self._layer:
            self._layer, self._values, self._analysis = None, {}, None
            self._values, self._layer = adapter.values(), adapter.layer
        return self._values

    def analysis(
        self, adapter: Adapter, values: Mapping[str, Array], make: Callable[[Mapping[str, Array]], Analysis]
    ) -> Analysis:
        """Return what a cut could lose, made of the values of a layer: of a spread linear one anew when asked for."""
        anew = adapter.kind == "lti" and is_gathered(values)
        return _MadeAnew(self, adapter, make) if anew else make(values)

    def made(self, adapter: Adapter, make: Callable[[Mapping[str, Array]], Analysis]) -> Analysis:
        """Return the analysis of a layer, made anew if it is another than last time."""
        values = self.values(adapter)
        if self._analysis is None:
            self._analysis = make(values)
        return self._analysis


class _MadeAnew(Analysis):
    """What a cut of one layer could lose, without the systems that tell, which are as large as the layer."""

    def __init__(self, shelf: OneLayer, adapter: Adapter, make: Callable[[Mapping[str, Array]], Analysis]) -> None:
        self._shelf, self._adapter, self._make = shelf, adapter, make
        found = self._found()
        self.n, self.hsv = found.n, found.hsv
        self._tails, self._bounds = ([of(k) for k in range(1, self.n + 1)] for of in (found.tail, found.bound))

    def tail(self, states: int) -> float:
        return self._tails[states - 1]

    def bound(self, states: int) -> float:
        return self._bounds[states - 1]

    def least_states(self, *, energy: float | None = None, max_error: float | None = None) -> tuple[int, str]:
        return self._found().least_states(energy=energy, max_error=max_error)

    def reduce(self, states: int, *, prefer_larger: bool = False) -> LayerReduction:
        return self._found().reduce(states, prefer_larger=prefer_larger)

    def _found(self) -> Analysis:
        return self._shelf.made(self._adapter, self._make)


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


def mark_of(values: Mapping[str, Array]) -> str:
    """Return a hash of values, which tells later whether they are still the same."""
    found = hashlib.sha256()
    for name, x in values.items():
        found.update(f"{name} {x.shape}".encode() + x.tobytes())
    return found.hexdigest()
