"""Smaller controllers: reduction of K for what it does in the loop with G, with the loop checked afterwards."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .. import norms
from ..checks import check_choice
from ..errors import InputError, StabilityError
from ..linalg.threads import one_blas_thread
from ..reduction import Reduction, balance
from ..systems import StateSpace, one_system
from ..systems.base import same_dt
from ..weighting import Coprime, FrequencyWeighted
from .graph import nu_gap

METHODS = ("stability", "performance", "coprime")


@dataclass(frozen=True, eq=False, repr=False)
class ControllerReduction(Reduction):
    """A reduced controller with what was measured in the loop; everything else is as in `Reduction`.

    Attributes
    ----------
    margin : float
        Stability margin of the loop with the controller given, ``1 / |[G; I] (I + K G)^-1 [I, K]|`` in the
        H-infinity norm, from 0 to 1. A controller within a nu-gap of so much stabilises the plant.
    nu_gap : float
        Between the controller and its model.
    loop_change : float
        H-infinity norm of the change of the closed loop, from disturbances at both plant input and output to both
        plant output and input.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> from hankelred.feedback import reduce_controller
    >>> plant = hr.StateSpace([[0.0]], [[1.0]], [[1.0]])
    >>> controller = hr.StateSpace(np.diag([-1.0, -50.0]), np.ones((2, 1)), np.ones((1, 2)), [[1.0]])
    >>> smaller = reduce_controller(plant, controller, order=1)
    >>> smaller.system.n, bool(smaller.nu_gap < smaller.margin)
    (1, True)
    """

    margin: float = 0.0
    nu_gap: float = 1.0
    loop_change: float = np.inf

    def summary(self) -> str:
        """Return one paragraph for people: orders, bound, and what the loop says.

        Returns
        -------
        str
            A few lines of text.
        """
        return f"{super().summary()}\nclosed loop stable; nu-gap {self.nu_gap:.3g}, margin {self.margin:.3g}"


def reduce_controller(G: Any, K: Any, order: int, method: str = "stability") -> ControllerReduction:
    """Reduce a controller so that it still does in the loop what it was made for.

    The loop is ``y = G u, u = -K y``, negative feedback as that of ``control.feedback``.

    Parameters
    ----------
    G, K : system
        Plant (p outputs, m inputs) and controller (m outputs, p inputs), anything `as_system` accepts, with one dt,
        stable or not; K must stabilise G.
    order : int
        States of the smaller controller, those of its unstable poles included.
    method : {"stability", "performance", "coprime"}, default "stability"
        "stability" makes ``(K - Kr) (I + G K)^-1 G`` small [1]_: below 1, the loop stays stable. "performance" makes
        the change of the loop small, ``(I + G K)^-1 G (K - Kr) (I + G K)^-1``. "coprime" makes the gap between K and
        Kr small, by its normalised coprime factors, whatever the plant, and may move unstable poles.

    Returns
    -------
    ControllerReduction
        With the controller in `system`, its margin, nu-gap and the change of the closed loop.

    Raises
    ------
    InputError
        If sizes or sampling times do not fit or the loop is not well-posed.
    StabilityError
        If the loop is not stable, with K or with the reduced controller; the message names the pole.
    OrderError
        If the order is out of its range.

    References
    ----------
    .. [1] B. D. O. Anderson, Y. Liu, "Controller reduction: concepts and approaches", IEEE Trans. Automatic Control
       34, 1989, pp. 802-812.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> from hankelred.feedback import reduce_controller
    >>> plant = hr.StateSpace([[0.5]], [[1.0]], [[1.0]])
    >>> controller = hr.StateSpace(np.diag([-4.0, -30.0]), np.ones((2, 1)), [[9.0, 5.0]])
    >>> smaller = reduce_controller(plant, controller, order=1)
    >>> smaller.system.n, smaller.nu_gap < smaller.margin
    (1, True)
    """
    check_choice(method, "method", METHODS)
    plant, controller = one_system(G, "G").dense(), one_system(K, "K").dense()
    with one_blas_thread(plant.n + controller.n):
        loop = closed_loop(plant, controller)
        if not loop.is_stable():
            raise StabilityError(
                f"K must stabilise G with u = -K y; got a closed loop with a pole at {_outermost(loop):.6g}. For "
                f"positive feedback pass the controller with the opposite sign."
            )
        found = balance(K, weighting=_weighting(plant, loop, method)).reduce(order)
        reduced = one_system(found.system).dense()
        smaller = closed_loop(plant, reduced)
        if not smaller.is_stable():
            raise StabilityError(
                f"The closed loop must be stable with the reduced controller; got a pole at {_outermost(smaller):.6g} "
                f'with order={found.order} and method="{method}". Choose a higher order or another method.'
            )
        margin, change = 1.0 / max(1.0, norms.hinf_norm(loop)), norms.hinf_norm(loop - smaller)
        values = {field.name: getattr(found, field.name) for field in fields(found)}
        return ControllerReduction(**values, margin=margin, nu_gap=nu_gap(controller, reduced), loop_change=change)


def _weighting(plant: StateSpace, loop: StateSpace, method: str) -> Any:
    """Return the weighting of a method, made of parts of the closed loop."""
    if method == "coprime":
        return Coprime()
    p, m, C = plant.p, plant.m, loop.C[: plant.p]
    inside = loop.with_(B=loop.B[:, :m], C=C, D=loop.D[:p, :m])  # (I + G K)^-1 G
    if method == "stability":
        return FrequencyWeighted(input=inside)
    return FrequencyWeighted(input=loop.with_(B=loop.B[:, m:], C=C, D=np.eye(p) + loop.D[:p, m:]), output=inside)


def closed_loop(G: StateSpace, K: StateSpace) -> StateSpace:
    """Return ``[G; I] (I + K G)^-1 [I, -K]``: from w1 and w2 to y and u, where ``y = G u, u = w1 - K (y + w2)``."""
    if (K.p, K.m) != (G.m, G.p):
        raise InputError(
            f"K must have as many inputs as G has outputs, and outputs as G has inputs; got G with {G.m} inputs, {G.p} "
            f"outputs and K with {K.m} inputs, {K.p} outputs."
        )
    dt = same_dt(G, K)
    E = np.eye(G.p) + G.D @ K.D
    if len(E) and np.linalg.cond(E) > 1e12:
        raise InputError("The loop must be well-posed, I + D_G D_K regular; got a singular one. Change a feedthrough.")
    y = np.linalg.solve(E, np.hstack([G.C, -G.D @ K.C, G.D, -G.D @ K.D]))
    measured = y.copy()
    measured[:, y.shape[1] - G.p :] += np.eye(G.p)  # y + w2
    u = np.hstack([np.zeros((G.m, G.n)), -K.C, np.eye(G.m), np.zeros((G.m, G.p))]) - K.D @ measured
    states = np.vstack([G.B @ u, K.B @ measured])
    n = G.n + K.n
    states[: G.n, : G.n] += G.A
    states[G.n :, G.n : n] += K.A
    both = np.vstack([y, u])
    return StateSpace.trusted(states[:, :n].copy(), states[:, n:].copy(), both[:, :n].copy(), both[:, n:].copy(), dt)


def _outermost(G: StateSpace) -> complex:
    poles = G.poles()
    return complex(poles[np.argmax(np.abs(poles) if G.is_discrete else poles.real)])
