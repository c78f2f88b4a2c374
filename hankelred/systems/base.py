"""What all kinds of systems share: sizes, time, names, frozen arrays, and the response on the stability boundary."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from ..checks import Array, check_frequencies, check_names, is_discrete, readonly
from ..errors import InputError
from ..linalg.threads import one_blas_thread
from ..markup import html_table

if TYPE_CHECKING:
    from .state_space import StateSpace

NAMES = ("name", "inputs", "outputs", "states")

S = TypeVar("S", bound="LinearSystem")


class LinearSystem:
    """A linear time-invariant system with m inputs, p outputs and a sampling time; frozen once it is made.

    Attributes
    ----------
    B, C, D : ndarray
        Input, output and feedthrough matrix, read-only, in one common dtype.
    dt : float or True
        0 is continuous, otherwise the sampling time in seconds, True if that is unknown.
    name : str or None
        Name of the system.
    inputs, outputs, states : tuple of str or None
        Names of its signals.
    """

    is_bank = False
    is_diagonal = False
    is_sparse = False
    _POLES: tuple[str, ...] = ()  # arguments of which one gives the poles

    B: Array
    C: Array
    D: Array
    dt: Any
    name: str | None = None
    inputs: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None
    states: tuple[str, ...] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse: what was factored or measured must stay what it was."""
        raise FrozenInstanceError(f"A system must not be changed; got a new {name}. Use with_({name}=...).")

    def __delattr__(self, name: str) -> None:
        """Refuse, as `__setattr__` does."""
        raise FrozenInstanceError(f"A system must not be changed; got a deletion of {name}.")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what was copied or unpickled, its arrays read-only again."""
        for value in state.values():
            for x in value if isinstance(value, tuple) else (value,):
                if isinstance(x, np.ndarray):
                    readonly(x)
        vars(self).update(state)

    def _set(self, dt: Any, names: dict[str, Any], **arrays: Array) -> None:
        """Set fresh arrays in one common dtype and read-only, dt and names."""
        dtypes = [x.dtype for x in arrays.values()]
        if dtypes.count(dtypes[0]) < len(dtypes):
            dtype = np.result_type(*dtypes)
            arrays = {name: x.astype(dtype, copy=False) for name, x in arrays.items()}
        for x in arrays.values():
            x.flags.writeable = False
        vars(self).update(arrays, dt=dt, **names)

    def _checked_names(self, names: dict[str, Any]) -> dict[str, Any]:
        """Return names that fit the sizes of the arrays."""
        name = names.get("name")
        if not (name is None or isinstance(name, str)):
            raise InputError(f"name must be a string; got {name!r}.")
        counts = {"inputs": self.m, "outputs": self.p, "states": self.n}
        return {"name": name, **{key: check_names(names.get(key), key, count) for key, count in counts.items()}}

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments that would make this system again."""
        raise NotImplementedError

    def with_(self: S, **changes: Any) -> S:
        """Return the system with some of its arguments changed.

        Parameters
        ----------
        **changes
            Arguments of the constructor by name; ``lam`` or ``rates`` replaces the poles of diagonal systems.

        Returns
        -------
        same class
            A new system, checked as the constructor does.

        Raises
        ------
        InputError
            If a name is unknown, or the changed system is none.

        Examples
        --------
        >>> import hankelred as hr
        >>> hr.StateSpace([[-1.0]], [[1.0]], [[1.0]]).with_(name="lag", inputs=["u"]).inputs
        ('u',)
        """
        arguments, poles = self._arguments(), changes.keys() & set(self._POLES)
        if poles:
            arguments = {k: v for k, v in arguments.items() if k not in self._POLES}
        if len(poles) > 1 or changes.keys() - arguments.keys() - poles:
            takes = f"{' or '.join(self._POLES)}, " if poles else ""
            raise InputError(f"with_ takes {takes}{', '.join(arguments)}; got {', '.join(sorted(changes))}.")
        return self._made({**arguments, **changes})

    @classmethod
    def _made(cls: type[S], arguments: dict[str, Any]) -> S:
        """Make a system of arguments of constructors."""
        return cls(**arguments)

    @property
    def n(self) -> int:
        """Number of states; of stored ones where the output of a diagonal system is real."""
        return int(self.B.shape[-2])

    @property
    def m(self) -> int:
        """Number of inputs."""
        return int(self.B.shape[-1])

    @property
    def p(self) -> int:
        """Number of outputs."""
        return int(self.C.shape[-2])

    @property
    def order(self) -> int:
        """Number of Hankel singular values."""
        return self.n

    @property
    def dtype(self) -> np.dtype[Any]:
        """Common dtype of the matrices."""
        return self.B.dtype

    @property
    def outer_names(self) -> dict[str, Any]:
        """Names of the system, its inputs and outputs, which outlast a change of states."""
        return {"name": self.name, "inputs": self.inputs, "outputs": self.outputs}

    @property
    def is_discrete(self) -> bool:
        """Whether the system is discrete in time."""
        return is_discrete(self.dt)

    def __repr__(self) -> str:
        """Return the kind and sizes, not the matrices."""
        name = "" if self.name is None else f"{self.name!r}, "
        kind = "real" if self.dtype.kind == "f" else "complex"
        return f"{type(self).__name__}({name}{kind}, n={self.n}, m={self.m}, p={self.p}, dt={self.dt})"

    def _repr_html_(self) -> str:
        """Return sizes, time and names of the signals for notebooks."""
        signals = ((self.n, self.states), (self.m, self.inputs), (self.p, self.outputs))
        told = [f"{count}" if names is None else f"{count}: {', '.join(names)}" for count, names in signals]
        rows = list(zip(("states", "inputs", "outputs"), told, strict=True))
        time = "unspecified" if self.dt is True else f"{self.dt:g} s"
        return html_table(
            [*rows, ("time", f"discrete, {time}" if self.is_discrete else "continuous")], caption=repr(self)
        )

    def poles(self) -> Array:
        """Return the poles in double precision, (n,)."""
        raise NotImplementedError

    def is_stable(self) -> bool | Array:
        """Tell whether every pole lies inside the stability region by more than its own rounding error."""
        raise NotImplementedError

    def dense(self) -> Any:
        """Return the same system as a `StateSpace` in double precision, ``x' = A x + B u`` without E."""
        raise NotImplementedError

    def frequency_response(self, omega: ArrayLike) -> Array:
        """Return the transfer function on the stability boundary.

        Parameters
        ----------
        omega : (k,) array_like
            Angular frequencies in rad per second (rad per sample for ``dt=True``); infinity is one in continuous
            time, and gives D.

        Returns
        -------
        (k, p, m) ndarray
            ``C (s - A)^-1 B + D`` at ``s = 1j omega``, or at ``z = exp(1j omega dt)``; infinite at a pole. A bank has
            its axis before these.

        Raises
        ------
        InputError
            If `omega` is not one axis of real frequencies, or infinite in discrete time.

        Examples
        --------
        >>> import hankelred as hr
        >>> print(hr.StateSpace([[-2.0]], [[1.0]], [[4.0]]).frequency_response([0.0])[0, 0, 0])
        (2+0j)
        """
        grid = check_frequencies(omega, self.is_discrete)
        with one_blas_thread(self.n):
            angles = grid if self.dt is True or not self.is_discrete else grid * self.dt
            if self.is_discrete and not np.isfinite(angles).all():
                largest = np.abs(grid).max()
                raise InputError(f"omega * dt must be finite; got omega up to {largest:.3g} and dt={self.dt:.3g}.")
            return self._response(angles)

    def _response(self, omega: Array) -> Array:
        """Return the response at checked frequencies, in rad per sample if discrete."""
        raise NotImplementedError

    def to_control(self) -> Any:
        """Return the system as a ``control.StateSpace`` with its sampling time and names.

        Returns
        -------
        control.StateSpace
            In double precision, E absorbed.

        Raises
        ------
        InputError
            If the system is complex, for python-control would drop the imaginary parts; or without inputs or outputs.
        ImportError
            If python-control is not installed.
        """
        from .convert import control_model

        return control_model(self.dense())

    def to_scipy(self) -> Any:
        """Return the system as a ``scipy.signal.StateSpace`` with its sampling time.

        Returns
        -------
        scipy.signal.StateSpace
            ``lti`` for ``dt=0`` and ``dlti`` otherwise, in double precision, E absorbed. It has no names.
        """
        from .convert import scipy_model

        return scipy_model(self.dense())

    def __sub__(self, other: Any) -> Any:
        """Return the error system, whose transfer function is the difference of the two."""
        if not isinstance(other, LinearSystem):
            return NotImplemented
        dt = common_dt(self, other)
        if self.is_sparse or other.is_sparse:
            from .sparse import difference

            return difference(self, other, dt)
        return self._minus(other, dt)

    def _minus(self, other: Any, dt: Any) -> StateSpace:
        """Return the error system of two systems that fit, by their dense forms."""
        difference: StateSpace = self.dense()._minus(other.dense(), dt)
        return difference


def common_dt(G: LinearSystem, H: LinearSystem) -> Any:
    """Return the sampling time of a difference; True agrees with every discrete one."""
    if (G.m, G.p) != (H.m, H.p):
        raise InputError(
            f"Both systems must have the same inputs and outputs; got {G.m} inputs, {G.p} outputs and "
            f"{H.m} inputs, {H.p} outputs."
        )
    return same_dt(G, H)


def same_dt(G: LinearSystem, H: LinearSystem) -> Any:
    """Return the sampling time of two systems that are joined; True agrees with every discrete one."""
    if G.dt is H.dt or (True not in (G.dt is True, H.dt is True) and G.dt == H.dt):
        return G.dt
    if G.is_discrete and H.is_discrete and True in (G.dt is True, H.dt is True):
        return H.dt if G.dt is True else G.dt
    raise InputError(f"Both systems must have the same dt; got {G.dt} and {H.dt}. Resample one of them first.")
