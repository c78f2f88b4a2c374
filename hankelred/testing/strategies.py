"""Hypothesis strategies for stable systems made of simple numbers, so that a counterexample can be read.

Entries are small integers, poles are eighths: hypothesis shrinks both the sizes and the numbers, and the failing
system is printed as Python code. Stability margins are bounded from below, except where the name of a strategy says
otherwise, so that a failure means a wrong program and not an ill-conditioned question.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.linalg as sla
from numpy.typing import ArrayLike

from ..checks import Array, is_discrete
from ..systems import DiagonalBank, DiagonalSystem, StateSpace
from ._drawing import Draw, check_sizes, dense, draw_diagonal, kinds_of, prescribed, strategy
from .systems import check_prescribed

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

TIMES = (0, 0.1, True)


def stable_systems(
    *,
    max_states: int = 6,
    min_states: int = 1,
    max_inputs: int = 3,
    max_outputs: int = 3,
    dt: Any = TIMES,
    complex_data: bool | None = None,
) -> SearchStrategy[StateSpace]:
    """Draw stable dense systems.

    Parameters
    ----------
    max_states, min_states : int, default 6 and 1
        Range of the number of states; 0 is allowed.
    max_inputs, max_outputs : int, default 3
        Largest numbers of inputs and outputs, from 1.
    dt : float, bool or sequence of them, default (0, 0.1, True)
        Sampling times to choose from; 0 is continuous, True is discrete without a stated time.
    complex_data : bool, optional
        Whether matrices are complex; by default sometimes.

    Returns
    -------
    hypothesis strategy of StateSpace
        A is a matrix of integers shifted (continuous) until its poles are left of -1/2, or divided by a power of two
        (discrete) until they are within a radius of 7/8.

    Examples
    --------
    >>> from hankelred.testing import stable_systems
    >>> systems = stable_systems(max_states=4, dt=0)  # then @given(systems)
    """
    least, most = check_sizes(min_states, max_states, max_inputs, max_outputs)

    def build(draw: Draw) -> StateSpace:
        time, kind = draw.time(), draw.kind()
        return dense(draw, draw.sizes(most, least), most, time, kind)

    return strategy(build, dt, complex_data)


def diagonal_systems(
    *,
    max_states: int = 6,
    min_states: int = 1,
    max_inputs: int = 3,
    max_outputs: int = 3,
    dt: Any = TIMES,
    complex_data: bool | None = None,
    outputs: Iterable[str] = ("complex", "real"),
) -> SearchStrategy[DiagonalSystem]:
    """Draw stable diagonal systems, as state space layers are.

    Parameters
    ----------
    max_states, min_states, max_inputs, max_outputs, dt, complex_data : optional
        As for `stable_systems`.
    outputs : iterable of {"complex", "real"}, default both
        Kinds of output to choose from.

    Returns
    -------
    hypothesis strategy of DiagonalSystem
        Decay rates are multiples of 1/8, poles may repeat; some of the discrete systems are made by ``from_rates``.

    Examples
    --------
    >>> from hankelred.testing import diagonal_systems
    >>> layers = diagonal_systems(outputs=["real"], dt=True)  # then @given(layers)
    """
    kinds = kinds_of(outputs)
    least, most = check_sizes(min_states, max_states, max_inputs, max_outputs)

    def build(draw: Draw) -> DiagonalSystem:
        time, output, kind = draw.time(), draw.choice(kinds), draw.kind()
        return draw_diagonal(draw, draw.sizes(most, least), most, time, kind, output)

    return strategy(build, dt, complex_data)


def near_boundary_systems(
    *, max_digits: int = 12, max_states: int = 4, dt: Any = TIMES, complex_data: bool | None = None
) -> SearchStrategy[DiagonalSystem]:
    """Draw diagonal systems with poles next to the stability boundary.

    Parameters
    ----------
    max_digits : int, default 12
        The decay rates are powers of ten down to ``10**-max_digits``.
    max_states, dt, complex_data : optional
        As for `stable_systems`.

    Returns
    -------
    hypothesis strategy of DiagonalSystem
        With complex output; discrete ones are made of rates, which keep the digits of such poles.

    Examples
    --------
    >>> from hankelred.testing import near_boundary_systems
    >>> slow = near_boundary_systems(max_digits=6)  # then @given(slow)
    """

    def build(draw: Draw, max_digits: int, max_states: int) -> DiagonalSystem:
        time, kind, most = draw.time(), draw.kind(), (max_states, 2, 2)
        n, m, p = draw.sizes(most)
        z: Array = -(10.0 ** -draw.spread(n, max_states, max_digits + 1).astype(float))
        if kind:
            z = z + 1j * draw.integers(max_states, -7, 8)[:n] * (np.pi / 8 if is_discrete(time) else 1.0)
        make = DiagonalSystem.from_rates if is_discrete(time) else DiagonalSystem
        B, C = draw.matrix((n, m), (max_states, 2), kind), draw.matrix((p, n), (2, max_states), kind)
        return make(z, B, C, dt=time)

    return strategy(build, dt, complex_data, max_digits=(max_digits, 0), max_states=(max_states, 1))


def prescribed_systems(
    *, hsv: ArrayLike | None = None, max_states: int = 5, dt: Any = TIMES, complex_data: bool | None = None
) -> SearchStrategy[tuple[StateSpace, Array]]:
    """Draw systems whose Hankel singular values are known, together with these.

    Parameters
    ----------
    hsv : (n,) array_like, optional
        Values that all systems shall have, distinct and decreasing; by default powers of two are drawn.
    max_states, dt, complex_data : optional
        As for `stable_systems`.

    Returns
    -------
    hypothesis strategy of (StateSpace, (n,) ndarray)
        Single-input, single-output systems as made by `system_with_hsv`, and the values.

    Examples
    --------
    >>> from hankelred.testing import prescribed_systems
    >>> known = prescribed_systems(hsv=[4.0, 1.0])  # then @given(known)
    """
    values = None if hsv is None else check_prescribed(hsv)

    def build(draw: Draw, max_states: int) -> tuple[StateSpace, Array]:
        return prescribed(draw, values, max_states)

    return strategy(build, dt, complex_data, max_states=(max_states, 1))


def repeated_hsv_systems(
    *, max_states: int = 3, copies: int = 2, dt: Any = TIMES, complex_data: bool | None = None
) -> SearchStrategy[tuple[StateSpace, Array]]:
    """Draw systems in which every Hankel singular value occurs several times, together with these values.

    Parameters
    ----------
    max_states, copies : int, default 3 and 2
        Largest number of distinct values, and how often each occurs.
    dt, complex_data : optional
        As for `stable_systems`.

    Returns
    -------
    hypothesis strategy of (StateSpace, (copies n,) ndarray)
        Copies of a system of `prescribed_systems` side by side, one input and one output each, and all their values.

    Examples
    --------
    >>> from hankelred.testing import repeated_hsv_systems
    >>> triples = repeated_hsv_systems(copies=3)  # then @given(triples)
    """

    def build(draw: Draw, max_states: int, copies: int) -> tuple[StateSpace, Array]:
        system, hsv = prescribed(draw, None, max_states)
        A, B, C, D = (np.kron(np.eye(copies), x) for x in (system.A, system.B, system.C, system.D))
        return StateSpace(A, B, C, D, system.dt), np.repeat(hsv, copies)

    return strategy(build, dt, complex_data, max_states=(max_states, 1), copies=(copies, 1))


def non_minimal_systems(
    *, max_hidden: int = 3, max_states: int = 4, dt: Any = TIMES, complex_data: bool | None = None
) -> SearchStrategy[tuple[StateSpace, StateSpace]]:
    """Draw systems with states that link no input to any output, together with the systems without them.

    Parameters
    ----------
    max_hidden, max_states : int, default 3 and 4
        Largest numbers of such states and of the others, from 1.
    dt, complex_data : optional
        As for `stable_systems`.

    Returns
    -------
    hypothesis strategy of (StateSpace, StateSpace)
        Two systems with one transfer function. The hidden states of the first are not reached or not seen, and
        mixed with the others by whole numbers; it has as many more Hankel singular values, all of them 0.

    Examples
    --------
    >>> from hankelred.testing import non_minimal_systems
    >>> padded = non_minimal_systems(max_hidden=1)  # then @given(padded)
    """

    def build(draw: Draw, max_states: int, max_hidden: int) -> tuple[StateSpace, StateSpace]:
        time, kind = draw.time(), draw.kind()
        n, hidden, m, p = (draw.integer(1, most) for most in (max_states, max_hidden, 2, 2))
        core = dense(draw, (n, m, p), (max_states, 2, 2), time, kind)
        rest = dense(draw, (hidden, m, p), (max_hidden, 2, 2), time, kind)
        reached = draw.choice([False, True])  # and not seen; or seen and not reached
        A = sla.block_diag(core.A, rest.A)
        B, C = np.vstack([core.B, rest.B * reached]), np.hstack([core.C, rest.C * (not reached)])
        mixing = np.eye(n + hidden)
        mixing[n:, :n] = draw.matrix((hidden, n), (max_hidden, max_states), False, largest=1)
        inverse = 2 * np.eye(n + hidden) - mixing
        return StateSpace(mixing @ A @ inverse, mixing @ B, C @ inverse, core.D, time), core

    return strategy(build, dt, complex_data, max_states=(max_states, 1), max_hidden=(max_hidden, 1))


def ill_scaled_systems(
    *, max_exponent: int = 10, max_states: int = 5, dt: Any = TIMES, complex_data: bool | None = None
) -> SearchStrategy[tuple[StateSpace, StateSpace]]:
    """Draw systems in states of very different units, together with the same systems in sensible ones.

    Parameters
    ----------
    max_exponent : int, default 10
        Units are powers of two, from ``2**-max_exponent`` to ``2**max_exponent``: changing them is exact.
    max_states, dt, complex_data : optional
        As for `stable_systems`.

    Returns
    -------
    hypothesis strategy of (StateSpace, StateSpace)
        The badly and the well scaled system, with one transfer function.

    Examples
    --------
    >>> from hankelred.testing import ill_scaled_systems
    >>> scaled = ill_scaled_systems(max_exponent=20)  # then @given(scaled)
    """

    def build(draw: Draw, max_exponent: int, max_states: int) -> tuple[StateSpace, StateSpace]:
        time, kind, most = draw.time(), draw.kind(), (max_states, 2, 2)
        core = dense(draw, draw.sizes(most), most, time, kind)
        w = 2.0 ** draw.integers(max_states, -max_exponent, max_exponent)[: core.n]
        return StateSpace(core.A * w[:, None] / w, core.B * w[:, None], core.C / w, core.D, time), core

    return strategy(build, dt, complex_data, max_exponent=(max_exponent, 0), max_states=(max_states, 1))


def diagonal_banks(
    *, max_systems: int = 4, max_states: int = 5, dt: Any = TIMES, outputs: Iterable[str] = ("complex", "real")
) -> SearchStrategy[DiagonalBank]:
    """Draw banks of stable diagonal systems, as the channels of a layer are.

    Parameters
    ----------
    max_systems : int, default 4
        Largest number of systems, from 1.
    max_states, dt, outputs : optional
        As for `diagonal_systems`.

    Returns
    -------
    hypothesis strategy of DiagonalBank
        Decay rates are multiples of 1/8; discrete ones are sometimes made by ``from_rates``.

    Examples
    --------
    >>> from hankelred.testing import diagonal_banks
    >>> channels = diagonal_banks(outputs=["complex"])  # then @given(channels)
    """
    kinds = kinds_of(outputs)

    def build(draw: Draw, max_systems: int, max_states: int) -> DiagonalBank:
        time, kind, output, most = draw.time(), draw.kind(), draw.choice(kinds), (max_states, 2, 2)
        sizes, rates = draw.sizes(most), is_discrete(time) and draw.choice([False, True])
        one = [draw_diagonal(draw, sizes, most, time, kind, output, rates) for _ in range(draw.integer(1, max_systems))]
        arrays = zip(*((*g.spectrum.data.values(), g.B, g.C, g.D) for g in one), strict=True)
        make = DiagonalBank.from_rates if rates else DiagonalBank
        return make(*map(np.stack, arrays), dt=time, output=output)

    return strategy(build, dt, max_systems=(max_systems, 1), max_states=(max_states, 1))


def system_pairs(
    *, max_states: int = 5, dt: Any = TIMES, complex_data: bool | None = None
) -> SearchStrategy[tuple[StateSpace | DiagonalSystem, StateSpace | DiagonalSystem]]:
    """Draw two stable systems with the same inputs, outputs and dt, as `assert_weyl` and error systems need.

    Parameters
    ----------
    max_states, dt, complex_data : optional
        As for `stable_systems`.

    Returns
    -------
    hypothesis strategy of two systems
        Each dense or diagonal. Either they are independent, of any two orders, or the second is the first with B and
        C changed by a small step.

    Examples
    --------
    >>> from hankelred.testing import system_pairs
    >>> pairs = system_pairs(max_states=3)  # then @given(pairs)
    """

    def build(draw: Draw, max_states: int) -> tuple[StateSpace | DiagonalSystem, StateSpace | DiagonalSystem]:
        time, m, p = draw.time(), draw.integer(1, 2), draw.integer(1, 2)

        def one() -> StateSpace | DiagonalSystem:
            kind, form = draw.kind(), draw.choice(["dense", "complex", "real"])
            sizes, most = (draw.integer(1, max_states), m, p), (max_states, 2, 2)
            if form == "dense":
                return dense(draw, sizes, most, time, kind)
            return draw_diagonal(draw, sizes, most, time, kind, form)

        first = one()
        if draw.choice([True, False]):
            return first, one()
        step = 2.0 ** -draw.integer(1, 20)
        B = first.B + step * draw.matrix(first.B.shape, (max_states, 2), False, largest=1)
        C = first.C + step * draw.matrix(first.C.shape, (2, max_states), False, largest=1)
        return first, first.with_(B=B, C=C)

    return strategy(build, dt, complex_data, max_states=(max_states, 1))
