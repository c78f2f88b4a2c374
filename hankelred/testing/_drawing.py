"""How the strategies draw: simple numbers, and stable systems made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .._checks import Array, check_dt, is_discrete
from ..systems import DiagonalSystem, StateSpace
from .systems import system_code, system_with_hsv

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

LARGEST = 4  # of the integers that matrices are made of

T = TypeVar("T")


class Draw:
    """Simple numbers drawn one after the other, while one example is built."""

    def __init__(self, draw: DrawFn, strategies: Any) -> None:
        self._draw, self._strategies = draw, strategies

    def integer(self, low: int, high: int) -> int:
        return int(self._draw(self._strategies.integers(low, high)))

    def integers(self, count: int, low: int, high: int) -> Array:
        """Return integers that shrink towards 0."""
        one = self._strategies.integers(low, high)
        return np.array(self._draw(self._strategies.lists(one, min_size=count, max_size=count)), dtype=int)

    def choice(self, options: Sequence[T]) -> T:
        """Return one of the options, the first if it will do."""
        found: T = self._draw(self._strategies.sampled_from(options))
        return found

    def kind(self, complex_data: bool | None) -> bool:
        return self.choice([False, True]) if complex_data is None else complex_data

    def matrix(self, shape: tuple[int, ...], complex_data: bool, largest: int = LARGEST) -> Array:
        """Return a matrix of small integers, real or complex."""
        count = int(np.prod(shape))
        x: Array = self.integers(count, -largest, largest).astype(float)
        if complex_data:
            x = x + 1j * self.integers(count, -largest, largest)
        return x.reshape(shape)


def strategy(build: Callable[[Draw], T]) -> SearchStrategy[T]:
    """Return the strategy that draws what `build` builds, and prints the systems of a failing example as code."""
    try:
        import hypothesis
    except ImportError as error:
        raise ImportError(
            "hankelred.testing draws systems with hypothesis, which is not installed: pip install hankelred[testing]. "
            "The assertions work without it."
        ) from error

    @hypothesis.strategies.composite
    def drawn(draw: DrawFn) -> T:
        found = build(Draw(draw, hypothesis.strategies))
        for system in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(system, (StateSpace, DiagonalSystem)):
                hypothesis.note(system_code(system))
        return found

    return drawn()


def times_of(dt: Any) -> tuple[Any, ...]:
    """Return the sampling times to choose from."""
    return tuple(check_dt(time) for time in (dt if isinstance(dt, (tuple, list)) else [dt]))


def dense(draw: Draw, n: int, m: int, p: int, dt: Any, kind: bool) -> StateSpace:
    A, B, C, D = (draw.matrix(shape, kind) for shape in ((n, n), (n, m), (p, n), (p, m)))
    return StateSpace(_stabilised(A, dt), B, C, D, dt)


def _stabilised(A: Array, dt: Any) -> Array:
    """Shift or divide a matrix by a simple number that leaves a margin of stability."""
    poles = np.linalg.eigvals(A)
    if is_discrete(dt):
        radius = float(np.max(np.abs(poles), initial=0.0))
        return A * 2.0 ** -max(0.0, np.ceil(np.log2(max(radius, 1e-9) * 8 / 7)))
    return A - (np.ceil(2 * float(np.max(poles.real, initial=0.0))) / 2 + 0.5) * np.eye(len(A))


def diagonal(
    draw: Draw, n: int, m: int, p: int, dt: Any, kind: bool, output: Any, rates: bool | None = None
) -> DiagonalSystem:
    B, C, D = draw.matrix((n, m), kind), draw.matrix((p, n), kind), draw.matrix((p, m), kind and output == "complex")
    decay = draw.integers(n, 1, 16) / 8
    eighths = draw.integers(n, -7, 8) if kind else np.zeros(n)
    if not is_discrete(dt):
        return DiagonalSystem(-decay + 1j * eighths if kind else -decay, B, C, D, dt=dt, output=output)
    z = -decay + 1j * np.pi * eighths / 8 if kind else -decay
    if draw.kind(rates):
        return DiagonalSystem.from_rates(z, B, C, D, dt=dt, output=output)
    lam: Array = draw.integers(n, -5, 5) / 8
    if kind:
        lam = lam + 1j * draw.integers(n, -4, 4) / 8  # up to the radius 0.81
    return DiagonalSystem(lam, B, C, D, dt=dt, output=output)


def prescribed(draw: Draw, hsv: Array | None, max_states: int, dt: Any, kind: bool) -> tuple[StateSpace, Array]:
    values = 2.0 ** (4 - np.cumsum(draw.integers(draw.integer(1, max_states), 1, 4))) if hsv is None else hsv
    n = len(values)
    signs = 1 - 2 * draw.integers(n, 0, 1)
    system = system_with_hsv(values, signs=signs, gains=draw.integers(n, 1, LARGEST), dt=dt)
    if kind:
        turn = np.array([1, 1j, -1, -1j])[draw.integers(n, 0, 3)]  # quarter turns of the states, which are exact
        A, B, C = system.A * turn[:, None] / turn, system.B * turn[:, None], system.C / turn
        system = StateSpace(A, B, C, system.D, dt)
    return system, values
