"""Systems with a diagonal state matrix, one at a time or a bank of them; poles are stored as values or as rates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from ..checks import B_HINT, C_HINT, Array, check_array, check_dt, check_feedthrough, check_indices, double, readonly
from ..errors import InputError
from . import real_output
from .base import LinearSystem
from .poles import Poles
from .state_space import StateSpace

# Responses of many states are computed some frequencies at a time, in arrays of about this many entries.
PIECE = 2**21

S = TypeVar("S", bound="Diagonal")


class Diagonal(LinearSystem):
    """What one diagonal system and a bank of them have in common: every array may have leading axes."""

    is_diagonal = True
    spectrum: Poles
    output: str
    _AXES: tuple[str, ...] = ()
    _POLES = ("lam", "rates")

    def __init__(
        self,
        lam: ArrayLike,
        B: ArrayLike,
        C: ArrayLike,
        D: ArrayLike | None = None,
        *,
        dt: Any,
        output: str = "complex",
        name: str | None = None,
        inputs: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
        states: Sequence[str] | None = None,
    ) -> None:
        names = {"name": name, "inputs": inputs, "outputs": outputs, "states": states}
        self._checked("lam", lam, B, C, D, dt, output, names)

    def _checked(
        self, name: str, poles: Any, B: Any, C: Any, D: Any, dt: Any, output: Any, names: dict[str, Any]
    ) -> None:
        """Check all arguments and set them."""
        axes, dt = len(self._AXES), check_dt(dt)
        if name == "rates" and dt == 0:
            raise InputError(
                "from_rates is for discrete systems, lam = exp(z); got dt=0. A continuous system's lam are rates "
                "already: pass them as lam."
            )
        values = check_array(poles, name, 1 + axes, self._hint("n"))
        B, C = check_array(B, "B", 2 + axes, self._hint("n, m")), check_array(C, "C", 2 + axes, self._hint("p, n"))
        lead, n = values.shape[:axes], values.shape[-1]
        if B.shape[:-1] != (*lead, n):
            raise InputError(f"B must have one row per pole; got poles {values.shape} and B {B.shape}. {B_HINT}")
        if C.shape[:axes] != lead or C.shape[-1] != n:
            raise InputError(f"C must have one column per pole; got poles {values.shape} and C {C.shape}. {C_HINT}")
        D = check_feedthrough(D, C.shape[-2], B.shape[-1], lead)
        output = real_output.check_output(output, D)
        self._build({name: values}, B, C, D, dt, output, {})
        if not np.isfinite(self.spectrum.lam).all():
            largest = values.real.max()
            raise InputError(
                f"{name} must be logarithms of finite poles; got a real part of {largest:.6g}. Pass poles as lam."
            )
        vars(self).update(self._checked_names(names))

    def _hint(self, shape: str) -> str:
        return f"It is ({', '.join((*self._AXES, shape))})."

    def _build(
        self, poles: dict[str, Array], B: Array, C: Array, D: Array, dt: Any, output: str, names: dict[str, Any]
    ) -> None:
        """Set checked arrays."""
        real = real_output.is_real(output)
        arrays = {**poles, "B": B, "C": C} if real else {**poles, "B": B, "C": C, "D": D}
        self._set(dt, names, **arrays)
        spectrum = Poles.of(**{name: vars(self).pop(name) for name in poles})
        readonly(spectrum.lam)
        vars(self).update(spectrum=spectrum, output=output)
        if real:
            vars(self)["D"] = readonly(D.astype(self.B.real.dtype, copy=False))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what was copied or unpickled, its arrays read-only again."""
        super().__setstate__(state)
        for x in self.spectrum.data.values():
            readonly(x)
        readonly(self.spectrum.lam)

    @classmethod
    def trusted(
        cls: type[S],
        poles: Poles,
        B: Array,
        C: Array,
        D: Array,
        dt: Any,
        output: str,
        names: dict[str, Any] | None = None,
    ) -> S:
        """Make a system of fresh arrays that need no checks.

        Parameters
        ----------
        poles : Poles
            n of them.
        B : (n, m) ndarray
            Inputs.
        C : (p, n) ndarray
            Outputs.
        D : (p, m) ndarray
            Feedthrough.
        dt : float or True
            0 in continuous time.
        output : str
            What the output is of the complex one.
        names : dict, optional
            Of inputs and outputs.

        Returns
        -------
        the class
            That keeps the arrays as they are.
        """
        system = cls.__new__(cls)
        system._build(poles.data, B, C, D, dt, output, names or {})
        return system

    def _arguments(self) -> dict[str, Any]:
        return {
            **self.spectrum.data,
            **{k: getattr(self, k) for k in "B C D dt output name inputs outputs states".split()},
        }

    @classmethod
    def _made(cls: type[S], arguments: dict[str, Any]) -> S:
        if "rates" in arguments:
            return cls.from_rates(arguments.pop("rates"), **arguments)
        return cls(**arguments)

    @classmethod
    def from_rates(
        cls: type[S],
        z: ArrayLike,
        B: ArrayLike,
        C: ArrayLike,
        D: ArrayLike | None = None,
        *,
        dt: Any,
        output: str = "complex",
        name: str | None = None,
        inputs: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
        states: Sequence[str] | None = None,
    ) -> S:
        """Build a discrete system from rates, ``lam = exp(z)``.

        Poles within 1e-13 of the unit circle keep all their digits this way, because ``1 - |lam|`` is computed
        from ``Re z`` and not from the rounded ``lam``.

        Parameters
        ----------
        z : (n,) or (batch, n) array_like
            Logarithms of the poles; the real parts are decay rates per sample, negative if stable.
        B, C, D, dt, output, name, inputs, outputs, states
            As for the constructor.

        Returns
        -------
        same class
            With ``lam = exp(z)`` and ``rates = z``.

        Raises
        ------
        InputError
            As for the constructor, and for ``dt=0``: the poles of a continuous system are rates already.
        """
        system = cls.__new__(cls)
        names = {"name": name, "inputs": inputs, "outputs": outputs, "states": states}
        system._checked("rates", z, B, C, D, dt, output, names)
        return system

    @property
    def lam(self) -> Array:
        """Poles of the stored states, (..., n)."""
        return self.spectrum.lam

    @property
    def rates(self) -> Array | None:
        """``z`` with ``lam = exp(z)`` where the system was made by `from_rates`."""
        return self.spectrum.rates

    @property
    def has_real_output(self) -> bool:
        """Whether the output is ``Re(C x)``, so that stored states stand for their conjugates too."""
        return real_output.is_real(self.output)

    @property
    def order(self) -> int:
        """Number of Hankel singular values: n, or 2n where the output is real."""
        return 2 * self.n if self.has_real_output else self.n

    @property
    def stores_pairs(self) -> bool:
        """Whether stored states are complex and stand for themselves and their conjugates."""
        return self.has_real_output and self.dtype.kind == "c"

    def double_matrices(self) -> tuple[Array, Array, Array]:
        """Return B, C and D in double precision."""
        return double(self.B), double(self.C), double(self.D)

    def _response(self, omega: Array) -> Array:
        with np.errstate(all="ignore"):  # a pole on the grid, and what overflows, gives infinity
            response = self._complex_response(omega)
            if self.has_real_output:  # the mean of the response and its mirror image conj(H(conj(s)))
                response = (response + self._complex_response(-omega).conj()) / 2
            response[..., np.isinf(omega), :, :] = 0.0
            response = response + double(self.D)[..., None, :, :]
        response[~np.isfinite(response).all(axis=(-2, -1))] = np.inf
        return response

    def _complex_response(self, omega: Array) -> Array:
        B, C, _ = self.double_matrices()
        response = np.empty((*B.shape[:-2], len(omega), self.p, self.m), dtype=np.complex128)
        step = max(1, PIECE // max(1, self.n * self.p * int(np.prod(B.shape[:-2]))))
        for start in range(0, len(omega), step):
            piece = slice(start, start + step)
            inverse = 1.0 / self.spectrum.distance(omega[piece], self.is_discrete)
            response[..., piece, :, :] = (C[..., None, :, :] * inverse[..., None, :]) @ B[..., None, :, :]
        return response

    def _same_kind(self, other: Any) -> bool:
        return type(other) is type(self) and other.output == self.output

    def _minus(self, other: Any, dt: Any) -> Any:
        if not self._same_kind(other):
            return super()._minus(other, dt)
        (B, C, D), (B2, C2, D2) = self.double_matrices(), other.double_matrices()
        B, C = np.concatenate([B, B2], axis=-2), np.concatenate([C, -C2], axis=-1)
        return type(self).trusted(self.spectrum.joined(other.spectrum), B, C, D - D2, dt, self.output)


class DiagonalSystem(Diagonal):
    """A linear system with diagonal state matrix, ``x' = lam x + B u`` or ``x+ = lam x + B u``.

    The output is ``y = C x + D u``, or ``y = Re(C x) + D u`` with ``output="real"``, the form of LRU and S5
    layers: there the inputs are real, every stored complex state stands for itself and its conjugate, and the
    system has 2n Hankel singular values.

    Parameters
    ----------
    lam : (n,) array_like
        Diagonal of the state matrix, real or complex.
    B : (n, m) array_like
        Input matrix.
    C : (p, n) array_like
        Output matrix.
    D : (p, m) array_like, optional
        Feedthrough, zero by default; real if the output is.
    dt : float or bool
        Sampling time in seconds; 0 is continuous, True is discrete without a stated time. There is no default.
    output : {"complex", "real"}, default "complex"
        Whether the output is ``C x`` or its real part.
    name : str, optional
        Name of the system.
    inputs, outputs, states : sequence of str, optional
        Names of its signals.

    Attributes
    ----------
    lam, B, C, D : ndarray
        Read-only copies in one common dtype.
    rates : (n,) ndarray or None
        ``z`` with ``lam = exp(z)`` where the system was made by `from_rates`.
    n, m, p : int
        Numbers of stored states, inputs and outputs.

    Raises
    ------
    InputError
        If shapes disagree, an entry is not finite, `dt` is None or negative, or a number of names is wrong.

    Examples
    --------
    >>> import hankelred as hr
    >>> hr.DiagonalSystem([0.9, -0.5], [[1.0], [1.0]], [[1.0, 2.0]], dt=True).is_stable()
    True
    """

    def poles(self) -> Array:
        """Return the poles in double precision: lam, and the conjugates of the complex ones for real output."""
        lam = self.spectrum.values().astype(np.complex128)
        return np.concatenate([lam, lam[lam.imag != 0].conj()]) if self.has_real_output else lam

    def is_stable(self) -> bool:
        """Tell whether every pole lies strictly inside the stability region."""
        return bool(np.all(self.spectrum.excess(self.is_discrete) < 0))

    def take(self, states: ArrayLike) -> DiagonalSystem:
        """Return the system that keeps only the given states.

        Parameters
        ----------
        states : (k,) array_like of int, or (n,) of bool
            Which to keep, by index in the order wanted, or by a truth value for each.

        Returns
        -------
        DiagonalSystem
            With k states.

        Raises
        ------
        InputError
            If an index is not one of a state, or stands there twice.
        """
        states = check_indices(states, "states", self.n)
        poles = self.spectrum.map(lambda x: x[states])
        B, C = self.B[states], self.C[:, states]
        return DiagonalSystem.trusted(poles, B, C, self.D, self.dt, self.output, self.outer_names)

    def dense(self) -> StateSpace:
        """Return the same system with a matrix A, in double precision.

        With real output the 2n states are the real and imaginary parts times the square root of two, so that
        the change of coordinates from ``[x, conj(x)]`` is unitary and everything is real.
        """
        lam, (B, C, D) = self.spectrum.values(), self.double_matrices()
        if not self.has_real_output:
            names = {**self.outer_names, "states": self.states}
            return StateSpace.trusted(np.diag(lam), B, C, D, self.dt, names)
        A = real_output.real_state_matrix(lam)
        return StateSpace.trusted(A, *real_output.real_matrices(B, C), D, self.dt, self.outer_names)


class DiagonalBank(Diagonal):
    """Many diagonal systems of one size, analysed and reduced without a Python loop over them.

    Parameters
    ----------
    lam : (batch, n) array_like
        Poles of each system.
    B : (batch, n, m) array_like
        Input matrices.
    C : (batch, p, n) array_like
        Output matrices.
    D : (batch, p, m) array_like, optional
        Feedthrough, zero by default; real if the output is.
    dt, output, name, inputs, outputs, states
        As for `DiagonalSystem`, the same for all.

    Attributes
    ----------
    lam, B, C, D : ndarray
        Read-only copies in one common dtype.
    rates : (batch, n) ndarray or None
        ``z`` with ``lam = exp(z)`` where the bank was made by `from_rates`.
    n, m, p : int
        Numbers of stored states, inputs and outputs of each system.

    Raises
    ------
    InputError
        As for `DiagonalSystem`.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> lam = -np.arange(1.0, 5.0) * np.ones((1000, 1))  # a thousand times four poles
    >>> bank = hr.DiagonalBank(lam, np.ones((1000, 4, 1)), np.ones((1000, 1, 4)), dt=0)
    >>> len(bank), bank[7].n, f"{hr.hankel_singular_values(bank)[999, 0]:.6f}"
    (1000, 4, '0.977556')
    """

    is_bank = True
    _AXES = ("batch",)

    def __len__(self) -> int:
        """Return the number of systems."""
        return len(self.B)

    def __getitem__(self, i: int) -> DiagonalSystem:
        """Return one of the systems."""
        if isinstance(i, (bool, np.bool_)) or not isinstance(i, (int, np.integer)):
            raise InputError(f"A bank is indexed by an integer; got {i!r}.")
        if not -len(self) <= i < len(self):
            raise IndexError(f"A bank of {len(self)} systems has no number {i}.")
        poles = self.spectrum.map(lambda x: x[i])
        names = {**self.outer_names, "states": self.states}
        return DiagonalSystem.trusted(poles, self.B[i], self.C[i], self.D[i], self.dt, self.output, names)

    def __iter__(self) -> Iterator[DiagonalSystem]:
        """Return the systems one by one."""
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        """Return the number of systems and what each is."""
        return f"{len(self)} x {super().__repr__()}"

    def poles(self) -> Array:
        """Return the poles in double precision, (batch, n); with their conjugates, (batch, 2n), for real output."""
        lam = self.spectrum.values().astype(np.complex128)
        return real_output.with_conjugates(lam) if self.has_real_output else lam

    def is_stable(self) -> Array:
        """Tell of each system whether every pole lies strictly inside the stability region, (batch,) bool."""
        return np.all(self.spectrum.excess(self.is_discrete) < 0, axis=-1)

    def dense(self) -> list[StateSpace]:
        """Return each system with a matrix A, as `DiagonalSystem.dense` does."""
        return [system.dense() for system in self]

    def to_control(self) -> list[Any]:
        """Return each system as a ``control.StateSpace``."""
        return [system.to_control() for system in self]

    def to_scipy(self) -> list[Any]:
        """Return each system as a ``scipy.signal.StateSpace``."""
        return [system.to_scipy() for system in self]

    def _minus(self, other: Any, dt: Any) -> Any:
        if not self._same_kind(other) or len(other) != len(self):
            raise InputError(f"A bank is compared with a bank of as many systems and its output; got {other!r}.")
        return super()._minus(other, dt)
