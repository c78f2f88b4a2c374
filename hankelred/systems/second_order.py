"""Second-order models ``M q'' + E q' + K q = B u``, as finite elements give them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..checks import B_HINT, Array, as_dense, check_array, check_feedthrough, double
from ..errors import InputError
from ..linalg.pencils import Solver
from .sparse import ByShiftedSolves, SparseStateSpace, check_sparse, freeze
from .state_space import StateSpace


class SecondOrderSystem(ByShiftedSolves):
    """A second-order model ``M q'' + E q' + K q = B u, y = Cp q + Cv q' + D u``, continuous in time.

    Its states are ``[q; q']``, 2k of them for k positions; reductions are first-order models, `StateSpace`. Solves have
    the size of q, and the matrices of the first-order form are never made.

    Parameters
    ----------
    M, E, K : (k, k) array_like or sparse matrix
        Mass, damping and stiffness; M regular.
    B : (k, m) array_like
        Input matrix: forces per unit of u.
    Cp : (p, k) array_like
        Output matrix of the positions.
    Cv : (p, k) array_like, optional
        Output matrix of the velocities; zero by default.
    D : (p, m) array_like, optional
        Feedthrough; zero by default.
    name : str, optional
        Name of the system.
    inputs, outputs, states : sequence of str, optional
        Names of its signals; of states there are 2k.

    Attributes
    ----------
    M, E, K : csc_array
        Read-only.
    B, C, D : ndarray
        Those of the first-order form: ``B = [0; B]`` and ``C = [Cp, Cv]``.
    n, m, p : int
        Numbers of states, inputs and outputs.

    Raises
    ------
    InputError
        If shapes disagree or an entry is not finite.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> oscillator = hr.SecondOrderSystem([[1.0]], [[0.2]], [[4.0]], B=[[1.0]], Cp=[[1.0]])
    >>> oscillator.n, oscillator.is_stable()
    (2, True)
    >>> print(f"{hr.hankel_norm(oscillator):.6f}")  # (sqrt(1 + z^2) + z) / (4 z k), z = 0.05, k = 4
    1.314062
    """

    M: Any
    E: Any
    K: Any

    def __init__(
        self,
        M: Any,
        E: Any,
        K: Any,
        B: Any,
        Cp: Any,
        Cv: Any = None,
        D: Any = None,
        *,
        name: str | None = None,
        inputs: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
        states: Sequence[str] | None = None,
    ) -> None:
        square = {key: check_sparse(x, key) for key, x in (("M", M), ("E", E), ("K", K))}
        k = square["M"].shape[0]
        B, Cp = check_array(as_dense(B), "B", 2, B_HINT), check_array(as_dense(Cp), "Cp", 2)
        Cv = np.zeros_like(Cp) if Cv is None else check_array(as_dense(Cv), "Cv", 2)
        sizes = {key: x.shape for key, x in square.items()}
        if set(sizes.values()) != {(k, k)} or len(B) != k or Cp.shape[1] != k or Cv.shape != Cp.shape:
            raise InputError(
                f"M, E and K must be of one size, B have as many rows, Cp and Cv as many columns; got {sizes}, B "
                f"{B.shape}, Cp {Cp.shape} and Cv {Cv.shape}."
            )
        arrays = {"B": np.vstack([np.zeros_like(B), B]), "C": np.hstack([Cp, Cv])}
        arrays["D"] = check_feedthrough(D, len(Cp), B.shape[1])
        dtype = np.result_type(*(x.dtype for x in (*square.values(), *arrays.values())))
        square = {key: x.astype(dtype, copy=False) for key, x in square.items()}
        self._set(0, {}, **{key: x.astype(dtype, copy=False) for key, x in arrays.items()})
        for x in square.values():
            freeze(x)
        vars(self).update(square)
        names = {"name": name, "inputs": inputs, "outputs": outputs, "states": states}
        vars(self).update(self._checked_names(names))

    def _arguments(self) -> dict[str, Any]:
        k = self.n // 2
        matrices = {"M": self.M, "E": self.E, "K": self.K, "B": self.B[k:], "Cp": self.C[:, :k], "Cv": self.C[:, k:]}
        return {**matrices, "D": self.D, **self.outer_names, "states": self.states}

    @cached_property
    def pencil(self) -> Any:
        """The matrices of the first-order form, as what they do to columns."""
        from ..linalg.sparse import SecondOrderPencil

        return SecondOrderPencil(double(self.M), double(self.E), double(self.K))

    @property
    def ports(self) -> tuple[Array, Array, Array]:
        """B, C and D of the first-order form, in double precision."""
        return double(self.B), double(self.C), double(self.D)

    def mass_solver(self) -> Solver:
        """Factor the mass matrix beside the identity."""
        solver: Solver = self.pencil.mass_solver()
        return solver

    def certainly_stable(self, offset: float) -> bool:
        """Tell whether M, E and K are Hermitian and definite, and the spectrum keeps away from the imaginary axis.

        A pole p with its shape q has ``p^2 m + p e + k = 0`` for positive m, e and k, so its real part is negative; it
        is at most ``-offset`` where ``E - 2 offset M`` and ``K - offset E + offset^2 M`` are definite as well.

        Parameters
        ----------
        offset : float
            How far, at least 0.

        Returns
        -------
        bool
            False says nothing.
        """
        from ..linalg.definite import all_definite

        M, E, K = (double(x) for x in (self.M, self.E, self.K))
        return all_definite(M, E - 2 * offset * M, K - offset * E + offset**2 * M)

    def first_order(self) -> SparseStateSpace:
        """Return the first-order form with sparse matrices.

        Returns
        -------
        SparseStateSpace
            ``diag(I, M) x' = [[0, I], [-K, -E]] x + [0; B] u``, with the same states and names.

        Examples
        --------
        >>> import hankelred as hr
        >>> hr.SecondOrderSystem([[1.0]], [[0.2]], [[4.0]], [[1.0]], [[1.0]]).first_order().A.toarray()
        array([[ 0. ,  1. ],
               [-4. , -0.2]])
        """
        import scipy.sparse as sp

        one = sp.eye_array(self.n // 2, dtype=self.dtype, format="csc")
        A: Any = sp.block_array([[None, one], [-self.K, -self.E]], format="csc")
        E: Any = sp.block_diag([one, self.M], format="csc")
        names = {**self.outer_names, "states": self.states}
        return SparseStateSpace(A, self.B, self.C, self.D, 0, E, **names)

    def dense(self) -> StateSpace:
        """Return the first-order form as dense matrices in double precision, without M; of up to 5000 states."""
        return self.first_order().dense()
