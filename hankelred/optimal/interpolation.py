"""H2-optimal models by two-sided iteration, from the balanced model on: each step solves two Sylvester equations."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import scipy.linalg as sla

from .. import norms
from ..checks import Array, check_number
from ..errors import AccuracyWarning, InputError, NumericalError, StabilityError
from ..linalg.equations import stein, sylvester
from ..linalg.threads import one_blas_thread
from ..reduction import Reduction, balance
from ..systems import StateSpace, as_container, one_system
from ..weighting.base import HINF

# Steps at most: where the iteration converges at all, it is within some tens of steps.
STEPS = 200

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
    """

    residual: float = np.inf
    iterations: int = 0


def h2_optimal(sys: Any, order: int, rtol: float = 1e-6, progress: Progress | None = None) -> H2Reduction:
    """Reduce a stable system so that the H2 norm of the error has a (local) minimum [1]_ [2]_.

    The iteration begins with the balanced model, and whatever it finds, no model with a larger H2 error is returned.

    Parameters
    ----------
    sys : StateSpace or anything `as_system` accepts
        Continuous or discrete, real or complex, and stable. The model of a diagonal system is a `StateSpace`.
    order : int
        States of the model, from 1 to the numerical rank.
    rtol : float, default 1e-6
        Residual of the optimality conditions at which the iteration ends, from 1e-12 to below 1.
    progress : callable, optional
        Called with the number of steps, the H2 error and the residual after each; what is true ends the iteration with
        the best model so far.

    Returns
    -------
    H2Reduction
        Stable, with T and Ti of its projection, the residual of the optimality conditions and no H-infinity bound.

    Raises
    ------
    InputError
        If `rtol` is out of its range or `progress` no function.
    StabilityError
        If the system is not stable.
    OrderError
        If the order is out of its range.

    Warns
    -----
    AccuracyWarning
        If the iteration ends before the residual is within `rtol`.

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
    G = system.dense()
    if not G.is_stable():
        raise StabilityError(f"sys must be stable for an H2 norm; got {G!r}. Split it, or use balance.")
    start = balance(G).reduce(order)
    if order in (0, G.n):
        return _result(start, start.system, start.T, start.Ti, sys, system, 0.0, 0)
    with one_blas_thread(G.n):
        T, Ti = start.T, start.Ti
        best, residual = (start.system, T, Ti, _h2_error(G, start.system)), _residual(G, start.system)
        found, closest, steps = best, residual, 0
        while residual > rtol and steps < STEPS:
            steps += 1
            try:
                model, T, Ti = _projected(G, found[0])
            except (NumericalError, np.linalg.LinAlgError):
                break
            if not model.is_stable():
                break
            found, residual = (model, T, Ti, _h2_error(G, model)), _residual(G, model)
            if found[3] <= best[3] * (1 + 1e-12):
                best, closest = found, residual
            if progress is not None and progress(steps, found[3], residual):
                break
    if closest > rtol:
        warnings.warn(
            f"The optimality conditions are met to {closest:.2g} after {steps} steps, and rtol={rtol:.2g} was asked "
            f"for: the best model found is returned.",
            AccuracyWarning,
            stacklevel=2,
        )
    return _result(start, *best[:3], sys, system, closest, steps)


def _result(
    start: Reduction, model: StateSpace, T: Array, Ti: Array, sys: Any, system: Any, residual: float, steps: int
) -> H2Reduction:
    values = {field.name: getattr(start, field.name) for field in fields(start)}
    values.update(system=as_container(model, sys), original=system, T=T, Ti=Ti, _reduced=model)
    values.update(method="H2-optimal approximation", error_bound=np.inf, bounded=HINF)
    return H2Reduction(**values, residual=residual, iterations=steps)


def _projected(G: StateSpace, model: StateSpace) -> tuple[StateSpace, Array, Array]:
    """Return the projection on the solutions of ``A V + V Ar^H + B Br^H = 0`` and its dual, or those of Stein."""
    A, B, C, Ar, Br, Cr = G.A, G.B, G.C, model.A, model.B, model.C
    if G.is_discrete:
        V, W = stein(A, Ar, B @ Br.conj().T), stein(A.conj().T, Ar.conj().T, C.conj().T @ Cr)
    else:
        V, W = sylvester(A, Ar.conj().T, B @ Br.conj().T), sylvester(A.conj().T, Ar, C.conj().T @ Cr)
    V, W = (sla.qr(x, mode="economic")[0] for x in (V, W))
    Ti = np.linalg.solve(W.conj().T @ V, W.conj().T)
    return StateSpace.trusted(Ti @ A @ V, Ti @ B, C @ V, G.D.copy(), G.dt, G.outer_names), V, Ti


def _h2_error(G: StateSpace, model: StateSpace) -> float:
    return float(norms.h2_norm(G - model))


def _residual(G: StateSpace, model: StateSpace) -> float:
    """Return the relative error of tangential Hermite interpolation at the mirror images of the poles [1]_."""
    poles, X = np.linalg.eig(model.A)
    b, c = np.linalg.solve(X, model.B).conj(), (model.C @ X).conj()
    points = 1 / poles.conj() if G.is_discrete else -poles.conj()
    worst = 0.0
    for i, s in enumerate(points):
        if not np.isfinite(s):
            continue
        values = [_moments(H, s, b[i], c[:, i]) for H in (G, model)]
        worst = max(worst, *(_distance(x, y) for x, y in zip(*values, strict=True)))
    return worst


def _moments(G: StateSpace, s: complex, b: Array, c: Array) -> tuple[Array, Array, Array]:
    """Return ``(G - D) b``, ``c^T (G - D)`` and ``c^T G' b`` at s."""
    shifted = s * np.eye(G.n) - G.A
    right, left = np.linalg.solve(shifted, G.B @ b), np.linalg.solve(shifted.T, G.C.T @ c)
    return G.C @ right, G.B.T @ left, np.atleast_1d(left @ right)


def _distance(x: Array, y: Array) -> float:
    size = float(np.linalg.norm(x))
    return float(np.linalg.norm(x - y)) / size if size else 0.0
