"""Systems with any state matrix, ``E x' = A x + B u, y = C x + D u``, or ``E x+ = ...`` in discrete time."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg as sla
from numpy.typing import ArrayLike

from ..checks import (
    B_HINT,
    C_HINT,
    SINGLE,
    Array,
    as_dense,
    check_array,
    check_dt,
    check_feedthrough,
    check_result,
    check_square,
    double,
    is_sparse,
)
from ..errors import InputError
from ..linalg.descriptor import standard_form
from ..linalg.response import boundary_points, dense_response
from ..linalg.schur import apply_units, balanced_units, ordered_schur
from ..linalg.threads import one_blas_thread
from .base import LinearSystem


class StateSpace(LinearSystem):
    """A linear system ``E x' = A x + B u, y = C x + D u``, or ``E x+ = ...`` in discrete time.

    Parameters
    ----------
    A : (n, n) array_like or sparse matrix
        State matrix, real or complex. A matrix of scipy.sparse stays sparse: see Notes.
    B : (n, m) array_like
        Input matrix.
    C : (p, n) array_like
        Output matrix.
    D : (p, m) array_like, optional
        Feedthrough; zero by default. A scalar is accepted for one input and one output, and 0 always.
    dt : float or bool, default 0
        Sampling time in seconds; 0 is continuous, True is discrete without a stated time.
    E : (n, n) array_like or sparse matrix, optional
        Descriptor matrix; the identity by default. It may be singular if the pencil has index 1: the algebraic
        variables are then eliminated where the system is analysed, and the order is less than n.
    name : str, optional
        Name of the system.
    inputs, outputs, states : sequence of str, optional
        Names of its signals. A reduction keeps those of inputs and outputs; its states are new ones.

    Attributes
    ----------
    A, B, C, D, E : ndarray
        Read-only copies in one common dtype; E is None where it is the identity.
    n, m, p : int
        Numbers of states, inputs and outputs.
    order : int
        Number of Hankel singular values: n, less where E is singular.

    Raises
    ------
    InputError
        If shapes disagree, an entry is not finite, `dt` is None or negative, a number of names is wrong, or the
        pencil of A and E is singular or has an index above 1.

    Notes
    -----
    With a sparse A the system is a `SparseStateSpace`, of as many states as the memory has room for. Norms, Hankel
    singular values, responses and reductions come from sparse factorisations of ``A + p E``; what needs dense
    matrices is done up to 5000 states. B and C are dense inside, however they come.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> plant = hr.StateSpace([[-1.0, 0.5], [0.0, -3.0]], [[1.0], [1.0]], [[1.0, 0.0]])
    >>> plant.n, plant.m, plant.p, plant.is_stable()
    (2, 1, 1, True)
    """

    A: Array
    E: Array | None = None
    _standard: StateSpace | None = None

    def __new__(cls, A: Any = None, *_: Any, **__: Any) -> StateSpace:
        """Make a system of the kind that fits A."""
        if cls is StateSpace and is_sparse(A):
            from .sparse import SparseStateSpace as cls
        return object.__new__(cls)

    def __init__(
        self,
        A: ArrayLike,
        B: ArrayLike,
        C: ArrayLike,
        D: ArrayLike | None = None,
        dt: Any = 0,
        E: ArrayLike | None = None,
        *,
        name: str | None = None,
        inputs: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
        states: Sequence[str] | None = None,
    ) -> None:
        A, B, C = self._square(A, "A"), self._thin(B, "B", B_HINT), self._thin(C, "C", C_HINT)
        n = A.shape[0]
        if len(B) != n:
            hint = " Did you pass B transposed?" if B.shape[1] == n else ""
            raise InputError(f"B must have as many rows as A; got A {A.shape} and B {B.shape}.{hint}")
        if C.shape[1] != n:
            hint = " Did you pass C transposed?" if len(C) == n else ""
            raise InputError(f"C must have as many columns as A; got A {A.shape} and C {C.shape}.{hint}")
        arrays = {"A": A, "B": B, "C": C, "D": check_feedthrough(D, len(C), B.shape[1])}
        if E is not None:
            arrays["E"] = self._square(E, "E")
            if arrays["E"].shape[0] != n:
                raise InputError(f"E must have the shape of A; got A {A.shape} and E {arrays['E'].shape}.")
        names = {"name": name, "inputs": inputs, "outputs": outputs, "states": states}
        self._build(check_dt(dt), {}, **arrays)
        vars(self).update(self._checked_names(names))

    @staticmethod
    def _square(A: Any, name: str) -> Array:
        """Return a checked state or descriptor matrix."""
        return check_square(as_dense(A), name)

    @staticmethod
    def _thin(x: Any, name: str, hint: str) -> Array:
        """Return a checked matrix of inputs or outputs."""
        return check_array(as_dense(x), name, 2, hint)

    def _build(self, dt: Any, names: dict[str, Any], **arrays: Array) -> None:
        """Set checked arrays; a standard form is found at once, so that what cannot be analysed is not made."""
        self._set(dt, names, **arrays)
        if self.E is not None:
            with one_blas_thread(self.n):
                found = standard_form(*(double(x) for x in (self.A, self.B, self.C, self.D, self.E)))
            check_result("The system without E", *found[:4], hint="Scale its rows or states.")
            vars(self)["_standard"] = StateSpace.trusted(found.A, found.B, found.C, found.D, dt)

    @classmethod
    def trusted(
        cls, A: Any, B: Array, C: Array, D: Array, dt: Any, names: dict[str, Any] | None = None, **more: Any
    ) -> Any:
        """Make a system of fresh arrays that need no checks.

        Parameters
        ----------
        A : (n, n) ndarray or sparse array
            Dynamics.
        B : (n, m) ndarray
            Inputs.
        C : (p, n) ndarray
            Outputs.
        D : (p, m) ndarray
            Feedthrough.
        dt : float or True
            0 in continuous time.
        names : dict, optional
            Of states, inputs and outputs.
        **more : arrays
            What a class has besides, such as E.

        Returns
        -------
        the class
            That keeps the arrays as they are.
        """
        system = cls.__new__(cls)
        system._build(dt, names or {}, A=A, B=B, C=C, D=D, **more)
        return system

    def _arguments(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in "A B C D dt E name inputs outputs states".split()}

    @property
    def order(self) -> int:
        """Number of Hankel singular values: n, less where E is singular."""
        return self.n if self._standard is None else self._standard.n

    def dense(self) -> StateSpace:
        """Return the same system in double precision without E: ``(E^-1 A, E^-1 B, C, D)``."""
        G = self._standard or self
        if G is self and self.dtype not in SINGLE:
            return self
        names = {**self.outer_names, "states": self.states if G.n == self.n else None}
        A, B, C, D = (double(x) for x in (G.A, G.B, G.C, G.D))
        return StateSpace.trusted(A, B, C, D, self.dt, names)

    def poles(self) -> Array:
        """Return the eigenvalues of A, the finite ones of the pencil (A, E) where E is given, as (n,) complex array."""
        A = self._in_balanced_units()
        with one_blas_thread(len(A)):
            poles = sla.eigvals(A, check_finite=False) if len(A) else np.empty(0)
        check_result("Poles", poles, hint="Scale time.")
        return poles.astype(np.complex128)

    def is_stable(self) -> bool:
        """Tell whether every pole lies inside the stability region by more than its own rounding error."""
        A = self._in_balanced_units()
        with one_blas_thread(len(A)):
            return ordered_schur(A, self.is_discrete).kept == 0 or self._has_stable_blocks(A)

    def _has_stable_blocks(self, A: Array) -> bool:
        """Tell whether A falls into blocks along its diagonal, as of an error system, each of them stable by itself.

        Rounding of the Schur form of the whole is relative to its largest block, and may drown the poles of another.
        """
        n = len(A)
        coupled = (A != 0) | (A != 0).T | np.eye(n, dtype=bool)
        reach = np.maximum.accumulate(n - 1 - np.argmax(coupled[:, ::-1], axis=1))
        ends = np.flatnonzero(reach == np.arange(n)) + 1
        blocks = [A[i:k, i:k] for i, k in zip([0, *ends], ends, strict=False)]
        return len(blocks) > 1 and all(ordered_schur(block.copy(), self.is_discrete).kept == 0 for block in blocks)

    def _in_balanced_units(self) -> Array:
        """Return A with its states in balanced units."""
        G = self.dense()
        with one_blas_thread(G.n):
            A = apply_units(balanced_units(G.A, G.B, G.C), G.A, G.B, G.C)[0]
        check_result("A in balanced units", A, hint="Scale time.")
        return A

    def _response(self, omega: Array) -> Array:
        G = self.dense()
        return dense_response(G.A, G.B, G.C, G.D, boundary_points(omega, self.is_discrete))

    def _minus(self, other: Any, dt: Any) -> StateSpace:
        G, H = self.dense(), other.dense()
        A = sla.block_diag(G.A, H.A).reshape(G.n + H.n, G.n + H.n)
        return StateSpace.trusted(A, np.vstack([G.B, H.B]), np.hstack([G.C, -H.C]), G.D - H.D, dt)


# What `inspect` would otherwise take from __new__.
_parameters = list(inspect.signature(StateSpace.__init__).parameters.values())[1:]
StateSpace.__signature__ = inspect.Signature(_parameters)  # type: ignore[attr-defined]
