"""Pictures of a reduction: Hankel singular values, error bounds, errors over frequency, a metric over the states."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..checks import Array, check_integer, check_real_array, check_type, double
from ..errors import InputError, OrderError
from ..order import error_bound
from ..reduction import Balancing, Reduction
from ..systems import one_system
from ..weighting.base import HINF
from .axes import BAND, DRAWABLE, DROPPED, ERROR, KEPT, as_axes, check_drawable, finish, logarithmic
from .grids import frequencies

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_hsv(hsv: Balancing | Reduction | ArrayLike, order: int | None = None, ax: Axes | None = None) -> Axes:
    """Draw Hankel singular values and where they are cut.

    Parameters
    ----------
    hsv : Balancing, Reduction or (n,) array_like
        Hankel singular values, decreasing; infinite ones (kept unstable poles) are drawn at the upper edge, zeros
        and those below 1e-20 of the largest at the lower one.
    order : int, optional
        States kept; that of a `Reduction` by default, otherwise no cut is drawn.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn into.

    Raises
    ------
    OrderError
        If `order` is not from 0 to n.
    InputError
        If `hsv` are no Hankel singular values, or `ax` are no axes.

    Examples
    --------
    >>> from hankelred.plotting import plot_hsv
    >>> ax = plot_hsv([10.0, 1.0, 0.1, 1e-4], order=2)
    >>> ax.figure.savefig("hsv.png")  # doctest: +SKIP
    """
    if order is None and isinstance(hsv, Reduction):
        order = hsv.order
    values = _values(hsv)
    if order is not None:
        order = check_integer(order, "order", 0, len(values), f"There are {len(values)} hsv.", OrderError)
    ax = as_axes(ax)
    number = np.arange(1, len(values) + 1)
    unstable = np.isinf(values)
    tiny = values < logarithmic(ax, values[~unstable])
    kept = number <= (len(values) if order is None else order)
    edge = ax.get_xaxis_transform()  # x in states, y as a share of the height
    style: dict[str, Any] = {"linestyle": "none", "markersize": 5 if len(values) <= 60 else 3, "zorder": 3}
    for part, colour, what in ((kept, KEPT, "kept"), (~kept, DROPPED, "dropped")):
        style["color"] = colour
        for which, y, marker, label, transform in (
            (~unstable & ~tiny, values, "o", what, ax.transData),
            (unstable, np.full(len(values), 0.97), "^", f"unstable, {what}", edge),
            (tiny, np.full(len(values), 0.03), "v", f"zero or below the axis, {what}", edge),
        ):
            points = part & which
            if np.any(points):
                ax.plot(number[points], y[points], marker=marker, label=label, transform=transform, **style)
    if order is not None:
        ax.axvline(order + 0.5, color="0.2", linestyle="--", linewidth=1, label=f"cut at order {order}")
    return finish(ax, "state", "Hankel singular value (y per u)", (0.5, len(values) + 0.5), whole=True)


def plot_error_bound(
    hsv: Balancing | Reduction | ArrayLike, reductions: Sequence[Reduction] = (), ax: Axes | None = None
) -> Axes:
    """Draw the H-infinity error bound over the order, and measured errors.

    Parameters
    ----------
    hsv : Balancing, Reduction or (n,) array_like
        Hankel singular values, decreasing, of which the first infinite ones are always kept.
    reductions : sequence of Reduction, optional
        Reductions of the same system, whose errors are measured by ``hinf_error()`` and drawn as points.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn into. Under the shaded line, ``hsv[order]``, lies no model of that order: it is the least
        error any method could reach. Values of a weighting do not say that, and nothing is shaded.

    Raises
    ------
    InputError
        If `hsv` are no Hankel singular values, or weighted ones without a bound, `reductions` no reductions, or `ax`
        are no axes.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> from hankelred.plotting import plot_error_bound
    >>> bal = hr.balance(hr.StateSpace(np.diag([-1.0, -2.0, -30.0]), np.ones((3, 1)), np.ones((1, 3))))
    >>> ax = plot_error_bound(bal, [bal.reduce(order=1), bal.reduce(order=2)])
    """
    values = _values(hsv)
    if not isinstance(reductions, (list, tuple)):
        raise InputError(f"reductions must be a list; got {type(reductions).__name__}. Write reductions=[reduction].")
    for reduction in reductions:
        check_type(reduction, "reductions[...]", Reduction)
    bounded = getattr(hsv._found if isinstance(hsv, Balancing) else hsv, "bounded", HINF)
    if bounded != HINF:
        raise InputError(f"hsv must bound the {HINF}, which is drawn; got a bound on the {bounded}. Draw bal.hsv.")
    orders = np.arange(int(np.isinf(values).sum()), len(values) + 1)
    bound = hsv.error_bound if isinstance(hsv, Balancing) else partial(error_bound, values)
    bounds = np.array([bound(int(order)) for order in orders])
    stands_alone = isinstance(hsv, Reduction) and (np.isinf(hsv.error_bound) or "guaranteed form" in hsv.method)
    if np.isinf(bounds[0]) or stands_alone:
        raise InputError(
            "hsv must be values that bound an error; got those of a weighting. Pass balance(..., weighting=...) with "
            "guaranteed=True, or draw the errors with plot_frequency_error."
        )
    ax = as_axes(ax)
    errors = np.array([reduction.hinf_error() for reduction in reductions])
    informative = bounds > 2 * bounds[-1]  # the full order is exact to rounding, which would squeeze the rest
    floor = logarithmic(ax, np.concatenate([bounds[informative], errors]))
    ax.plot(orders, bounds, color=KEPT, marker="." if len(orders) <= 60 else None, label="bound")
    if len(errors):
        at = [reduction.order for reduction in reductions]
        ax.plot(at, errors, color=ERROR, marker="x", linestyle="none", label="measured", zorder=3)
    limits = np.maximum(np.append(values, 0.0)[orders], floor)
    if not (isinstance(hsv, Balancing) and hsv._found.weighting):
        ax.fill_between(orders, limits, floor, step="mid", label="out of reach", **BAND)
    xlim = (orders[0], max(len(values), orders[0] + 1))
    return finish(ax, "order", "H-infinity error (y per u)", xlim, whole=True)


def plot_frequency_error(sys: Any, reduced: Any, omega: ArrayLike | None = None, ax: Axes | None = None) -> Axes:
    """Draw the gains of a system, of a reduced one and of their difference over frequency.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        The full system.
    reduced : Reduction, or a system like `sys`
        The reduced system; a `Reduction` brings its error bound, drawn as a line.
    omega : (k,) array_like, optional
        Angular frequencies in rad per second (rad per sample for ``dt=True``). By default they cover the poles
        of both systems, close together around resonances; on a logarithmic axis for real systems, on a linear one
        with both signs for complex systems.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn into: largest singular values as lines, the smaller ones of the full system as a band.

    Raises
    ------
    InputError
        If inputs, outputs or dt of the two systems differ, `omega` is no axis of finite frequencies, or `ax` are no
        axes.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> from hankelred.plotting import plot_frequency_error
    >>> plant = hr.StateSpace(np.diag([-1.0, -2.0, -30.0]), np.ones((3, 1)), np.ones((1, 3)))
    >>> ax = plot_frequency_error(plant, hr.balanced_truncation(plant, order=2))
    """
    bound = reduced.error_bound if isinstance(reduced, Reduction) and reduced.bounded == HINF else None
    G, H = one_system(sys, "sys"), one_system(reduced.system if isinstance(reduced, Reduction) else reduced, "reduced")
    dt = (G - H).dt  # refuses systems that cannot be compared
    grid = frequencies(G, H, dt) if omega is None else np.sort(check_real_array(omega, "omega", 1))
    check_drawable("omega", grid)
    if len(grid) == 0:
        raise InputError("omega must hold a frequency; got none. Leave it out for frequencies around the poles.")
    full, small = (x.frequency_response(grid if x.dt is not True or dt is True else grid * dt) for x in (G, H))
    if full.size == 0:
        raise InputError(f"A system must have inputs and outputs to be drawn; got {G.m} inputs and {G.p} outputs.")
    gains, gains_small, errors = (np.linalg.svd(x, compute_uv=False) for x in (full, small, full - small))
    ax = as_axes(ax)
    heights = np.concatenate([gains[:, 0], errors[:, 0], [bound or 0.0]])
    logarithmic(ax, heights[np.isfinite(heights)])
    ax.plot(grid, gains[:, 0], color=DROPPED, linewidth=3, label=f"full, {G.n} states")
    if gains.shape[1] > 1:
        ax.fill_between(grid, gains[:, -1], gains[:, 0], label="full, other directions", **BAND)
    ax.plot(grid, gains_small[:, 0], color=KEPT, linewidth=1.3, label=f"reduced, {H.n} states")
    ax.plot(grid, errors[:, 0], color=ERROR, linewidth=1.3, label="error")
    if bound is not None and 0 < bound < np.inf:
        ax.axhline(bound, color=ERROR, linestyle="--", linewidth=1, label="error bound")
    xlim = (grid[0], grid[-1]) if grid[0] < grid[-1] else None
    if xlim:  # before the scale, whose own limits would overflow
        ax.set_xlim(xlim)
    if grid[0] > 0:
        ax.set_xscale("log")
    unit = "sample" if dt is True else "second"
    return finish(ax, f"frequency (rad per {unit})", "gain (y per u)", xlim)


def plot_tradeoff(trials: ArrayLike, kept: int | None = None, ax: Axes | None = None) -> Axes:
    """Draw what a search for the smallest model tried: a metric over the number of states.

    Parameters
    ----------
    trials : (k, 2) array_like
        Pairs of states and metric, such as `trials` of a plan that `hankelred_torch.compress_` carried out by a metric.
    kept : int, optional
        States that were decided on.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn into. Of equal numbers of states the line joins the last.

    Raises
    ------
    InputError
        If `trials` are no pairs of numbers, or none, or `kept` is not a number of states that was tried.

    Examples
    --------
    >>> from hankelred.plotting import plot_tradeoff
    >>> ax = plot_tradeoff([(4, 0.31), (8, 0.12), (8, 0.1), (16, 0.09)], kept=8)
    """
    pairs = double(check_real_array(trials, "trials", 2, "They are pairs of states and metric."))
    if pairs.shape[1] != 2 or not len(pairs) or np.abs(pairs).max() > DRAWABLE:
        raise InputError(f"trials must be pairs of states and metric, at least one; got shape {pairs.shape}.")
    states, metric = pairs[np.argsort(pairs[:, 0], kind="stable")].T
    ax = as_axes(ax)
    last = np.append(states[1:] != states[:-1], True)
    ax.plot(states[last], metric[last], color=DROPPED, linewidth=1)
    ax.plot(states, metric, color=DROPPED, marker="o", linestyle="none", label="tried")
    if kept is not None:
        kept = check_integer(kept, "kept", 0, hint="It is one of the numbers of states that were tried.")
        if kept not in states:
            raise InputError(
                f"kept must be one of the states in trials, {states.min():g} to {states.max():g}; got {kept}."
            )
        ax.axvline(kept, color=KEPT, linestyle="--", linewidth=1, label=f"{kept} states kept")
    return finish(ax, "states", "metric", None, whole=True)


def _values(hsv: Balancing | Reduction | ArrayLike) -> Array:
    """Return Hankel singular values as a checked array."""
    given = hsv.hsv if isinstance(hsv, (Balancing, Reduction)) else hsv
    values = check_real_array(given, "hsv", 1, "Pass the result of balance, or an array.", finite=False)
    if len(values) == 0 or not np.all(values >= 0):
        got = values.tolist()[:5]
        raise InputError(f"hsv must be numbers, none negative or NaN; got {got}. Pass the result of balance.")
    check_drawable("hsv", values[np.isfinite(values)])
    return values.astype(np.float64)
