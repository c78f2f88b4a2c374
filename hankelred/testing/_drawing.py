"""How the strategies draw: simple numbers, and stable systems made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..checks import Array, check_choice, check_dt, check_flag, check_integer, is_discrete
from ..errors import InputError
from ..systems import DiagonalSystem, LinearSystem, StateSpace, real_output
from .systems import system_code, system_with_hsv

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

LARGEST = 4  # of the integers that matrices are made of
MOST = 1000  # states, inputs, outputs or systems to draw
NUMBERS = 4000  # to draw for one example: hypothesis gives up at some 8000

T = TypeVar("T")
Shape = tuple[int, int]
Sizes = tuple[int, int, int]  # states, inputs, outputs


class Draw:
    """Simple numbers drawn one after the other, while one example is built."""

    def __init__(self, draw: DrawFn, strategies: Any, times: tuple[Any, ...], complex_data: bool | None) -> None:
        self._draw, self._strategies = draw, strategies
        self._times, self._kinds = times, [False, True] if complex_data is None else [complex_data]
        self._drawn = 0

    def integer(self, low: int, high: int) -> int:
        return int(self._draw(self._strategies.integers(low, high)))

    def sizes(self, most: Sizes, least: int = 1) -> Sizes:
        """Return numbers of states, inputs and outputs."""
        return self.integer(least, most[0]), self.integer(1, most[1]), self.integer(1, most[2])

    def integers(self, count: int, low: int, high: int) -> Array:
        """Return integers that shrink towards 0."""
        self._drawn += count
        if self._drawn > NUMBERS:
            raise InputError(
                f"The sizes to draw up to (max_states, max_inputs, ...) must take at most {NUMBERS} numbers together; "
                f"got more. Ask for smaller systems."
            )
        one = self._strategies.integers(low, high)
        return np.array(self._draw(self._strategies.lists(one, min_size=count, max_size=count)), dtype=int)

    def spread(self, count: int, room: int, period: int) -> Array:
        """Return integers from 0 to below the period, of `room` that are drawn, that shrink towards 0, 1, 2, ..."""
        return (self.integers(room, 0, period - 1) + np.arange(room))[:count] % period

    def choice(self, options: Sequence[T]) -> T:
        """Return one of the options, the first if it will do."""
        found: T = self._draw(self._strategies.sampled_from(options))
        return found

    def time(self) -> Any:
        """Return a sampling time."""
        return self.choice(self._times)

    def kind(self) -> bool:
        """Return whether matrices are complex."""
        return self.choice(self._kinds)

    def matrix(self, shape: Shape, room: Shape, complex_data: bool, largest: int = LARGEST) -> Array:
        """Return a matrix of small integers, real or complex, the corner of a larger one.

        The larger one is drawn whole: where the number of draws depended on the sizes, hypothesis could not shrink
        the sizes without changing every number that comes after.
        """
        (rows, columns), (most_rows, most_columns) = shape, room
        count = most_rows * most_columns
        x: Array = self.integers(count, -largest, largest).astype(float)
        if complex_data:
            x = x + 1j * self.integers(count, -largest, largest)
        return x.reshape(room)[:rows, :columns]


def strategy(
    build: Callable[..., T], dt: Any, complex_data: Any = None, **counts: tuple[Any, int]
) -> SearchStrategy[T]:
    """Return the strategy that draws what `build` builds, and prints the systems of a failing example as code.

    Checked first is what strategies have in common, `counts` together with the least they may be: `build` gets them by
    name, as Python integers, which alone hypothesis takes.
    """
    if complex_data is not None:
        check_flag(complex_data, "complex_data")
    sizes = {name: check_integer(count, name, least, MOST) for name, (count, least) in counts.items()}
    times = tuple(check_dt(time) for time in (dt if isinstance(dt, (tuple, list)) else [dt]))
    if not times:
        raise InputError("dt must be a sampling time or some to choose from; got none.")
    try:
        import hypothesis
    except ImportError as error:
        raise ImportError(
            "hankelred.testing draws systems with hypothesis, which is not installed: pip install hankelred[testing]. "
            "The assertions work without it."
        ) from error

    @hypothesis.strategies.composite
    def drawn(draw: DrawFn) -> T:
        found = build(Draw(draw, hypothesis.strategies, times, complex_data), **sizes)
        for system in found if isinstance(found, tuple) else [found]:
            if isinstance(system, LinearSystem):
                hypothesis.note(system_code(system))
        return found

    return drawn()


def check_sizes(min_states: Any, max_states: Any, max_inputs: Any, max_outputs: Any) -> tuple[int, Sizes]:
    """Return the least number of states and the largest sizes to draw."""
    least = check_integer(min_states, "min_states", 0)
    most = check_integer(max_states, "max_states", least, MOST, hint="It must not be less than min_states.")
    inputs = check_integer(max_inputs, "max_inputs", 1, MOST)
    return least, (most, inputs, check_integer(max_outputs, "max_outputs", 1, MOST))


def kinds_of(outputs: Any) -> tuple[str, ...]:
    """Return the kinds of output to choose from."""
    if isinstance(outputs, str) or not isinstance(outputs, Iterable):
        raise InputError(f'outputs must be a list of kinds; got {outputs!r}. Write outputs=["real"].')
    kinds = tuple(check_choice(kind, "outputs", real_output.OUTPUTS) for kind in outputs)
    if not kinds:
        raise InputError("outputs must hold a kind of output to choose from; got none.")
    return kinds


def dense(draw: Draw, sizes: Sizes, most: Sizes, dt: Any, kind: bool) -> StateSpace:
    """Return a stable dense system of the given states, inputs and outputs, of `most` that there could be."""
    A, B, C, D = (draw.matrix(*shapes, kind) for shapes in zip(_shapes(sizes), _shapes(most), strict=True))
    return StateSpace(_stabilised(A, dt), B, C, D, dt)


def _shapes(sizes: Sizes) -> list[Shape]:
    n, m, p = sizes
    return [(n, n), (n, m), (p, n), (p, m)]


def _stabilised(integers: Array, dt: Any) -> Array:
    """Return a matrix of integers with its diagonal spread, shifted or divided by a simple number until it is stable.

    Spread, because a matrix of zeros would make n equal poles, a special case that simple examples should not be.
    """
    spread = np.diag(np.arange(float(len(integers))))
    if is_discrete(dt):
        A = integers + spread
        radius = float(np.max(np.abs(np.linalg.eigvals(A)), initial=0.0))
        return A * 2.0 ** -max(0.0, np.ceil(np.log2(max(radius, 1e-9) * 8 / 7)))
    A = integers - spread
    abscissa = float(np.max(np.linalg.eigvals(A).real, initial=0.0))
    return A - (np.ceil(2 * abscissa) / 2 + 0.5) * np.eye(len(A))


def draw_diagonal(
    draw: Draw, sizes: Sizes, most: Sizes, dt: Any, kind: bool, output: Any, by_rates: bool | None = None
) -> DiagonalSystem:
    """Return a stable diagonal system of the given sizes, of `most` that there could be."""
    n, room = sizes[0], most[0]
    (_, *shapes), (_, *rooms) = _shapes(sizes), _shapes(most)
    kinds = kind, kind, kind and output == "complex"
    B, C, D = (draw.matrix(*corner) for corner in zip(shapes, rooms, kinds, strict=True))
    decay = (draw.spread(n, room, 16) + 1) / 8
    eighths = draw.integers(room, -7, 8)[:n]
    if not is_discrete(dt):
        return DiagonalSystem(-decay + 1j * eighths if kind else -decay, B, C, D, dt=dt, output=output)
    if draw.choice([False, True]) if by_rates is None else by_rates:
        z = -decay + 1j * np.pi * eighths / 8 if kind else -decay
        return DiagonalSystem.from_rates(z, B, C, D, dt=dt, output=output)
    lam: Array = ((draw.spread(n, room, 11) + 5) % 11 - 5) / 8  # with the imaginary parts up to the radius 0.81
    if kind:
        lam = lam + 1j * draw.integers(room, -4, 4)[:n] / 8
    return DiagonalSystem(lam, B, C, D, dt=dt, output=output)


def prescribed(draw: Draw, hsv: Array | None, max_states: int) -> tuple[StateSpace, Array]:
    """Return a system with the given Hankel singular values, or with drawn ones, and these."""
    time, kind = draw.time(), draw.kind()
    room = max_states if hsv is None else len(hsv)
    n = draw.integer(1, room) if hsv is None else room
    values = 2.0 ** (4 - np.cumsum(draw.integers(room, 1, 4)))[:n] if hsv is None else hsv
    signs = 1 - 2 * draw.integers(room, 0, 1)[:n]
    system = system_with_hsv(values, signs=signs, gains=draw.integers(room, 1, LARGEST)[:n], dt=time)
    if kind:
        turn = np.array([1, 1j, -1, -1j])[draw.integers(room, 0, 3)[:n]]  # quarter turns of the states, which are exact
        A, B, C = system.A * turn[:, None] / turn, system.B * turn[:, None], system.C / turn
        system = StateSpace(A, B, C, system.D, time)
    return system, values
