"""What both kinds of system share: names, sizes, time, and arrays that cannot be written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ._checks import Array, check_dt, is_discrete, readonly
from .errors import InputError


@dataclass(frozen=True)
class Labels:
    """Names a system carries along; None where there are none.

    Parameters
    ----------
    name : str, optional
        Of the system.
    inputs, outputs, states : tuple of str, optional
        Of its signals. A reduction keeps those of inputs and outputs; its states are new ones.

    Examples
    --------
    >>> import hankelred as hr
    >>> named = hr.StateSpace([[-1.0]], [[1.0]], [[1.0]], labels=hr.Labels("lag", inputs=("u",), outputs=("y",)))
    >>> named.labels.inputs
    ('u',)
    """

    name: str | None = None
    inputs: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None
    states: tuple[str, ...] | None = None


class System:
    """Sizes, time and dtype, read from the matrices."""

    B: Array
    C: Array
    D: Array
    dt: Any

    @property
    def n(self) -> int:
        """Number of states; of stored ones where the output of a diagonal system is real."""
        return int(self.B.shape[0])

    def __repr__(self) -> str:
        """Return the kind and sizes, not the matrices."""
        kind = "real, " if self.dtype.kind == "f" else "complex, "
        return f"{type(self).__name__}({kind}n={self.n}, m={self.m}, p={self.p}, dt={self.dt})"

    @property
    def m(self) -> int:
        """Number of inputs."""
        return int(self.B.shape[1])

    @property
    def p(self) -> int:
        """Number of outputs."""
        return int(self.C.shape[0])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Common dtype of the matrices."""
        return self.B.dtype

    @property
    def is_discrete(self) -> bool:
        """Whether the system is discrete in time."""
        return is_discrete(self.dt)


def freeze(system: Any, arrays: dict[str, Array], dt: Any, labels: Labels | None) -> None:
    """Set fresh arrays in one common dtype and read-only, dt and labels on a frozen system."""
    dtype = np.result_type(*(x.dtype for x in arrays.values()))
    for name, x in arrays.items():
        object.__setattr__(system, name, readonly(x.astype(dtype, copy=False)))
    object.__setattr__(system, "dt", check_dt(dt))
    object.__setattr__(system, "labels", labels or Labels())


def common_dt(G: System, H: System) -> Any:
    """Return the sampling time of a difference; True agrees with every discrete one."""
    if (G.m, G.p) != (H.m, H.p):
        raise InputError(
            f"Both systems must have the same inputs and outputs; got {G.m} inputs, {G.p} outputs and "
            f"{H.m} inputs, {H.p} outputs."
        )
    if G.dt is H.dt or G.dt == H.dt and True not in (G.dt is True, H.dt is True):
        return G.dt
    if G.is_discrete and H.is_discrete and True in (G.dt is True, H.dt is True):
        return H.dt if G.dt is True else G.dt
    raise InputError(f"Both systems must have the same dt; got {G.dt} and {H.dt}. Resample one of them first.")
