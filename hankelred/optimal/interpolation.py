"""H2-optimal models by two-sided iteration, from the balanced model on: each step takes shifted solves alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg as sla

from .. import norms
from ..checks import EPS, Array, check_flag, check_number
from ..errors import AccuracyWarning, InputError, NumericalError, StabilityError
from ..linalg.hessenberg import HessenbergForm, HessenbergPencil
from ..linalg.pencils import Dense
from ..linalg.threads import one_blas_thread
from ..parts import InBalancedUnits
from ..reduction import Balancing, Reduction, balance
from ..reduction.bases import matching_feedthrough
from ..systems import StateSpace, as_container, one_system
from ..weighting.base import HINF

# Steps at most: where the iteration converges at all, it is within some tens of steps.
STEPS = 200
# Roundings of the terms of a squared H2 error, relative to the squared norm.
ROUNDINGS = 100

Progress = Callable[[int, float, float], Any]


@dataclass(frozen=True, eq=False, repr=False)
class H2Reduction(Reduction):
    """A model that satisfies the optimality conditions in H2; everything else is as in `Reduction`.

    Attributes
    ----------
    residual : float
        How far the model is from the first-order conditions: the largest relative error of ``G(s) b``, ``c^H G(s)`` and
        ``c^H G'(s) b`` at the mirror images s of its poles, b and c the residues' directions.
    iterations : int
        Steps taken.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> from hankelred.optimal import h2_optimal
    >>> plant = hr.StateSpace(np.diag([-1.0, -2.0, -30.0]), np.ones((3, 1)), np.ones((1, 3)))
    >>> found = h2_optimal(plant, order=1)
    >>> found.residual < 1e-6, found.h2_error() <= hr.balanced_truncation(plant, order=1).h2_error()
    (True, True)
    """

    residual: float = np.inf
    iterations: int = 0


def h2_optimal(
    sys: Any, order: int, rtol: float = 1e-6, progress: Progress | None = None, match_dc: bool = False
) -> H2Reduction:
    """Reduce a stable system so that the H2 norm of the error has a (local) minimum [1]_ [2]_.

    The iteration begins with the balanced model, and whatever it finds, no model with a larger H2 error is returned.

    Parameters
    ----------
    sys : StateSpace or anything `as_system` accepts
        Continuous or discrete, real or complex, dense or sparse, and stable. The model of a diagonal system is a
        `StateSpace`.
    order : int
        States of the model, from 1 to the numerical rank.
    rtol : float, default 1e-6
        Residual of the optimality conditions at which the iteration ends, from 1e-12 to below 1.
    progress : callable, optional
        Called with the number of steps, the H2 error and the residual after each; what is true ends the iteration with
        the best model so far. Of a sparse system the error is certain to 1e-8 of the norm of the system.
    match_dc : bool, default False
        In discrete time, choose D so that the gain at z = 1 is that of the system; it adds to the H2 error what it is
        changed by. A continuous system with other feedthrough has an infinite H2 error.

    Returns
    -------
    H2Reduction
        Stable, with T and Ti of its projection, the residual of the optimality conditions and no H-infinity bound.

    Raises
    ------
    InputError
        If `rtol` is out of its range, `progress` no function, or `match_dc` asked for in continuous time.
    StabilityError
        If the system is not stable.
    OrderError
        If the order is out of its range.

    Warns
    -----
    AccuracyWarning
        If the iteration ends before the residual is within `rtol`.

    Notes
    -----
    A model of order r costs r / 2 factorisations of ``A - s E`` per step if the system is real, and r otherwise; dense
    systems have a Hessenberg form for them. Of sparse systems the model returned and the balanced one are compared in
    the end by low-rank Gramians of the error.

    References
    ----------
    .. [1] S. Gugercin, A. C. Antoulas, C. Beattie, "H2 model reduction for large-scale linear dynamical systems",
       SIAM J. Matrix Anal. Appl. 30, 2008, pp. 609-638.
    .. [2] Y. Xu, T. Zeng, "Optimal H2 model reduction for large scale MIMO systems via tangential interpolation",
       Int. J. Numer. Anal. Model. 8, 2011, pp. 174-188.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> from hankelred.optimal import h2_optimal
    >>> plant = hr.StateSpace(np.diag([-1.0, -2.0, -30.0]), np.ones((3, 1)), np.ones((1, 3)))
    >>> best, balanced = h2_optimal(plant, order=1), hr.balanced_truncation(plant, order=1)
    >>> best.residual <= 1e-6, best.h2_error() < balanced.h2_error()
    (True, True)
    """
    rtol = check_number(rtol, "rtol", least=1e-12, below=1.0)
    if not (progress is None or callable(progress)):
        raise InputError(f"progress must be a function of steps, error and residual, or None; got {progress!r}.")
    system = one_system(sys)
    if check_flag(match_dc, "match_dc") and not system.is_discrete:
        raise InputError(
            "match_dc needs discrete time: in continuous time a model with another feedthrough has an infinite H2 "
            "error. Use balanced_truncation or hankel_norm_approximation with match_dc=True."
        )
    if not system.is_stable():
        raise StabilityError(f"sys must be stable for an H2 norm; got {system!r}. Split it, or use balance.")
    G = system if system.is_sparse else system.dense()
    bal = balance(G)
    start = bal.reduce(order)
    with one_blas_thread(G.n):
        if order in (0, G.n):
            found, closest, steps = _Model(start.system, start.T, start.Ti), 0.0, 0
        else:
            found, closest, steps = _iterated(_solver(bal), start, rtol, progress)
        if closest > rtol:
            warnings.warn(
                f"The optimality conditions are met to {closest:.2g} after {steps} steps, and rtol={rtol:.2g} was "
                f"asked for: the best model found is returned.",
                AccuracyWarning,
                stacklevel=2,
            )
        model = found.model
        if match_dc:
            one = np.zeros(1)
            model = model.with_(D=matching_feedthrough(model.D, system._response(one), model._response(one)))
    values = {field.name: getattr(start, field.name) for field in fields(start)}
    values.update(system=as_container(model, sys), original=system, T=found.T, Ti=found.Ti, _reduced=model)
    values.update(method="H2-optimal approximation", error_bound=np.inf, bounded=HINF)
    return H2Reduction(**values, residual=closest, iterations=steps)


class _Model(NamedTuple):
    """A model and its bases."""

    model: Any
    T: Array
    Ti: Array


def _iterated(solver: _Mirror, start: Reduction, rtol: float, progress: Progress | None) -> tuple[_Model, float, int]:
    """Return the best model of the iteration, its residual and the number of steps."""
    first = best = _Model(start.system, start.T, start.Ti)
    try:
        bases, least, residual = solver.at_mirror_images(first.model)
    except np.linalg.LinAlgError as failure:
        raise NumericalError(
            f"The iteration must have finite solutions; got {failure} Scale inputs or outputs."
        ) from failure
    closest, steps = residual, 0
    while residual > rtol and steps < STEPS:
        try:
            found = solver.projected(*bases)
            bases, error, residual = solver.at_mirror_images(found.model)
        except (NumericalError, np.linalg.LinAlgError):
            break
        steps += 1
        if error <= np.hypot(least * (1 + 1e-12), solver.rounding):
            best, least, closest = found, error, residual
        if progress is not None and progress(steps, error, residual):
            break
    if (
        best is not first
        and solver.estimates
        and norms.h2_norm(solver.system - best.model) > norms.h2_norm(solver.system - first.model)
    ):
        return first, solver.at_mirror_images(first.model)[2], steps
    return best, closest, steps


class _Mirror:
    """A system by solves at the mirror images of the poles of its models."""

    def __init__(self, system: Any, pencil: Any, B: Array, C: Array, norm: float = np.inf) -> None:
        self.system, self._pencil, self._B, self._C = system, pencil, B, C
        self._norm = norm  # of the system, from which errors are estimated; infinite where they are computed
        self.estimates = norm < np.inf
        self.rounding = np.sqrt(ROUNDINGS * EPS) * norm if self.estimates else 0.0

    def at_mirror_images(self, model: Any) -> tuple[tuple[Array, Array], float, float]:
        """Return bases of what the next model needs, the H2 error of this one, and its residual.

        With ``Gr = sum c_i b_i^H / (s - lam_i)`` the columns ``(s_i E - A)^-1 B b_i`` and ``(s_i E - A)^-H C^H c_i``,
        in discrete time times ``s_i``; their products with C, B and E are what the model has to interpolate.
        """
        poles, X = np.linalg.eig(model.A)
        b, c = np.linalg.solve(X, model.B).conj(), (model.C @ X).conj()
        real = self._pencil.real and not any(x.dtype.kind == "c" for x in (self._B, self._C, model.A))
        own, columns, rows, product, worst = _Mirror(model, Dense(model.A), model.B, model.C), [], [], 0.0, 0.0
        for i in np.flatnonzero(poles.imag >= 0) if real else range(len(poles)):
            v, w = self._solved(poles[i], b[i], c[:, i])
            x, y = own._solved(poles[i], b[i], c[:, i])
            pairs = (
                (self._C @ v, model.C @ x),
                (w.conj() @ self._B, y.conj() @ model.B),
                (np.atleast_1d(w.conj() @ self._pencil.E(v[:, None])[:, 0]), np.atleast_1d(y.conj() @ x)),
            )
            worst = max(worst, *(_distance(*pair) for pair in pairs))
            twice = real and poles[i].imag > 0
            product += (1 + twice) * float((c[:, i] @ pairs[0][0]).real)
            columns += [v.real, v.imag] if twice else [v.real] if real else [v]
            rows += [w.real, w.imag] if twice else [w.real] if real else [w]
        bases = np.column_stack(columns), np.column_stack(rows)
        return (bases, self._error(model, product), worst) if model.is_stable() else (bases, np.inf, np.inf)

    def _solved(self, pole: complex, b: Array, c: Array) -> tuple[Array, Array]:
        """Return both columns of a pole."""
        B, C = (self._B @ b)[:, None], (self._C.conj().T @ c.conj())[:, None]
        s, weight = _mirror(pole, self.system.is_discrete)
        if not np.isfinite(s):  # s (s E - A)^-1 at infinity
            mass = self.system.mass_solver() if self.system.is_sparse else None
            return (B[:, 0], C[:, 0]) if mass is None else (mass.solve(B)[:, 0], mass.solve_adjoint(C)[:, 0])
        real = s.imag == 0 and self._pencil.real
        B, C = (x.real if real and not x.imag.any() else x for x in (B, C))
        solver = self._pencil.factor(-s.real if real else -s)
        return -weight * solver.solve(B)[:, 0], -np.conj(weight) * solver.solve_adjoint(C)[:, 0]

    def _error(self, model: Any, product: float) -> float:
        if not self.estimates:
            return float(norms.h2_norm(self.system - model))
        own = norms.h2_norm(model.with_(D=0 * model.D))
        share = own / self._norm, product / self._norm / self._norm
        return self._norm * float(np.sqrt(max(1 + share[0] * share[0] - 2 * share[1], 0.0)))

    def projected(self, V: Array, W: Array) -> _Model:
        """Return the model in these bases."""
        V, W = (sla.qr(x, mode="economic")[0] for x in (V, W))
        E = W.conj().T @ self._pencil.E(V)
        left = np.linalg.solve(E, W.conj().T)
        A, B, C = left @ self._pencil.A(V), left @ self._B, self._C @ V
        return self._whole(V, self._pencil.E(left.conj().T, adjoint=True).conj().T, A, B, C)

    def _whole(self, T: Array, Ti: Array, A: Array, B: Array, C: Array) -> _Model:
        G = self.system
        return _Model(StateSpace.trusted(A, B, C, G.ports[2].copy(), G.dt, G.outer_names), T, Ti)


class _DenseMirror(_Mirror):
    """A dense system, in the coordinates of a Hessenberg form."""

    def __init__(self, system: StateSpace) -> None:
        self._given = InBalancedUnits(system)
        A, B, C = self._given.matrices()
        self._form = form = HessenbergForm(A)
        inner = form.rotated(B, adjoint=True), form.rotated(C.conj().T, adjoint=True).conj().T
        super().__init__(system, HessenbergPencil(form), *inner)

    def _whole(self, T: Array, Ti: Array, *_: Array) -> _Model:
        T = self._given.out(self._form.rotated(T))
        Ti = self._given.rows_out(self._form.rotated(Ti.conj().T).conj().T)
        A, B, C, D = self._given.in_bases(T, Ti)[:4]
        return _Model(StateSpace.trusted(A, B, C, D.copy(), self.system.dt, self.system.outer_names), T, Ti)


def _solver(bal: Balancing) -> _Mirror:
    """Return the solver of a system; one whose Gramians have no factors of low rank is small enough to be dense."""
    parts = bal._found.parts
    if not parts.is_low_rank:
        return _DenseMirror(bal.system.dense())
    B, C, _ = bal.system.ports
    return _Mirror(bal.system, bal.system.pencil, B, C, float(np.linalg.norm(C @ parts.factors[0])))


def _mirror(pole: complex, discrete: bool) -> tuple[complex, complex]:
    """Return the mirror image of a pole at the boundary, an unstable pole as it is, and the weight of its columns."""
    if not discrete:
        return -pole.conjugate() if pole.real < 0 else pole, 1.0
    image = np.inf if pole == 0 else 1 / pole.conjugate() if abs(pole) < 1 else pole
    return image, image


def _distance(x: Array, y: Array) -> float:
    size = float(np.linalg.norm(x))
    return float(np.linalg.norm(x - y)) / size if size else 0.0
