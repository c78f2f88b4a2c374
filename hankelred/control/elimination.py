"""Leaving out given states, inputs and outputs of models of python-control."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg as sla

from ..checks import EPS, check_choice, check_flag, check_integer, in_family
from ..errors import HankelredWarning, InputError, NumericalError
from ..linalg.descriptor import equilibrated
from ..reduction.bases import without_delay
from ..systems import StateSpace, as_container, as_system
from ._errors import caught_as_both

METHODS = ("truncate", "matchdc")


def modred(
    sys: Any,
    elim_states: Any = None,
    method: str = "matchdc",
    elim_inputs: Any = None,
    elim_outputs: Any = None,
    keep_states: Any = None,
    keep_inputs: Any = None,
    keep_outputs: Any = None,
    warn_unstable: bool = True,
) -> Any:
    """Leave out given states, inputs and outputs, like ``control.modred``.

    Parameters
    ----------
    sys : control.StateSpace, scipy.signal.StateSpace, StateSpace or tuple
        Continuous or discrete, real or complex.
    elim_states : int, str, slice or sequence of them, optional
        States to leave out, by number or name.
    method : {"matchdc", "truncate"}, default "matchdc"
        Let the states left out follow the others without delay, which keeps the gain at s = 0 or z = 1, or drop them.
    elim_inputs, elim_outputs : int, str, slice or sequence of them, optional
        Inputs and outputs to leave out.
    keep_states, keep_inputs, keep_outputs : int, str, slice or sequence of them, optional
        What is not to be left out, instead of what is.
    warn_unstable : bool, default True
        Warn if the system is not stable.

    Returns
    -------
    system
        In the class of `sys`, with its dt and the names of what is left.

    Raises
    ------
    InputError
        If `sys` is no state space model (a TypeError too), a name or number is unknown (an IndexError too if it is a
        number), or both ways to choose are used.
    NumericalError
        If the states left out have a pole at s = 0 or z = 1 and cannot follow.

    Warns
    -----
    HankelredWarning
        If the system is not stable: the reduced model says little about it.

    Examples
    --------
    >>> import hankelred as hr
    >>> from hankelred.control import modred
    >>> motor = hr.StateSpace([[-1.0, 2.0], [-1.0, -50.0]], [[0.0], [1.0]], [[1.0, 0.0]], states=["speed", "current"])
    >>> print(modred(motor, "current").A)
    [[-1.04]]
    """
    check_choice(method, "method", METHODS)
    check_flag(warn_unstable, "warn_unstable")
    try:
        system = as_system(sys)
    except InputError as error:
        raise caught_as_both(InputError, TypeError)(str(error)) from None
    if (
        not isinstance(system, StateSpace)
        or hasattr(sys, "zeros")
        and not hasattr(sys, "A")
        or system.order != system.n
    ):
        raise caught_as_both(InputError, TypeError)(
            f"sys must have states of its own; got {type(sys).__qualname__}. Pass a state space model with regular E."
        )
    G = system.dense()
    kept, left_out = _chosen("states", elim_states, keep_states, G.states, G.n)
    inputs, _ = _chosen("inputs", elim_inputs, keep_inputs, G.inputs, G.m)
    outputs, _ = _chosen("outputs", elim_outputs, keep_outputs, G.outputs, G.p)
    if warn_unstable and not G.is_stable():
        warnings.warn(
            "The system is not stable, and a model with fewer states may say nothing about it. Use balred, which keeps "
            "unstable poles, or pass warn_unstable=False.",
            HankelredWarning,
            stacklevel=2,
        )
    if method == "matchdc" and left_out:
        fast = G.A[np.ix_(left_out, left_out)] - G.is_discrete * np.eye(len(left_out))
        rows, columns = equilibrated(fast)
        sizes = sla.svdvals(fast * rows[:, None] * columns)
        if sizes[-1] <= EPS * len(fast) * sizes[0]:
            place = "z = 1" if G.is_discrete else "s = 0"
            raise NumericalError(
                f"The states left out must have no pole at {place}; got one, with which they follow no other state. "
                f'Keep one of them, or use method="truncate".'
            )
        A, B, C, D = without_delay(G.A, G.B, G.C, G.D, kept, left_out, 1.0 if G.is_discrete else 0.0)
    else:
        A, B, C, D = G.A[np.ix_(kept, kept)], G.B[kept], G.C[:, kept], G.D
    A, B, C, D = (in_family(x, system.dtype) for x in (A, B[:, inputs], C[outputs], D[np.ix_(outputs, inputs)]))
    names: dict[str, Any] = {"name": G.name}
    for key, places in (("states", kept), ("inputs", inputs), ("outputs", outputs)):
        given = getattr(G, key)
        names[key] = None if given is None else tuple(given[i] for i in places)
    return as_container(StateSpace.trusted(A, B, C, D, G.dt, names), sys)


def _chosen(what: str, elim: Any, keep: Any, names: Sequence[str] | None, count: int) -> tuple[list[int], list[int]]:
    """Return the places of what is kept and of what is left out."""
    left_out, kept = (set(_places(what, key, names, count)) for key in (elim, keep))
    if left_out and kept:
        raise InputError(f"elim_{what} and keep_{what} must not be given together; got both. Pass one of them.")
    left_out = set(range(count)) - kept if kept else left_out
    return sorted(set(range(count)) - left_out), sorted(left_out)


def _places(what: str, key: Any, names: Sequence[str] | None, count: int) -> list[int]:
    """Return the places that numbers, names and slices stand for."""
    if key is None:
        return []
    if isinstance(key, str):
        if names is None or key not in names:
            known = ", ".join(names or ()) or "none"
            raise InputError(
                f"elim_{what} or keep_{what} must be {what} by number or by a name they have; got {key!r}. "
                f"Names: {known}."
            )
        return [names.index(key)]
    if isinstance(key, slice):
        return list(range(count)[key])
    if is_list(key):
        return [place for one in key for place in _places(what, one, names, count)]
    try:
        return [check_integer(key, f"elim_{what} or keep_{what}", -count, count - 1) % count]
    except InputError as error:
        raise caught_as_both(InputError, IndexError)(str(error)) from None


def is_list(value: Any) -> bool:
    """Tell whether a value is a sequence, ragged ones among them, and no text."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
