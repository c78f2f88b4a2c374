"""Pictures of a model, and of a reduced one over it: magnitudes, step responses, poles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..checks import Array, check_indices, check_items, check_number, check_real_array
from ..errors import InputError
from ..reduction import Reduction
from ..systems import one_system
from .axes import DROPPED, KEPT, as_axes, check_drawable, finish, with_grid
from .grids import frequencies, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CHANNELS = 9  # drawn unless they are named: more curves than that tell nothing
RANGE = 1e3  # ratio of poles from which on axes are linear around zero and logarithmic beyond
ZERO = 1e-6  # poles below this share of the largest are drawn in the linear part, as rigid-body modes are
DEPTH = 240.0  # decibel below the peak, where axes end: less is rounding, and would squeeze the rest


def plot_bode(
    sys: Any,
    reduced: Any = None,
    omega: ArrayLike | None = None,
    channels: Sequence[tuple[int, int]] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the magnitudes of a system over frequency, in decibel, and of a reduced one over them.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        The full system.
    reduced : Reduction, or a system like `sys`, optional
        The reduced system.
    omega : (k,) array_like, optional
        Angular frequencies in rad per second (rad per sample for ``dt=True``); by default as in
        `plot_frequency_error`.
    channels : sequence of (int, int), optional
        Pairs of output and input, counted from 0; by default all, the first nine where there are more.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn into: wide grey curves of the full system, one for each channel, with the thin blue ones of the
        reduced system on them, to 240 dB below the peak. A gain of zero leaves a gap.

    Raises
    ------
    InputError
        If the systems do not fit, `omega` is no axis of finite frequencies, a channel does not exist, or `ax` are no
        axes.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> from hankelred.plotting import plot_bode
    >>> plant = hr.StateSpace(np.diag([-1.0, -2.0, -30.0]), np.ones((3, 1)), np.ones((1, 3)))
    >>> plot_bode(plant, hr.balanced_truncation(plant, order=2)).get_ylabel()
    'magnitude (dB)'
    """
    systems, dt = _systems(sys, reduced)
    pairs = _channels(channels, systems[0])
    grid = frequencies(systems[0], systems[-1], dt) if omega is None else _grid(omega)
    check_drawable("omega", grid)
    ax = as_axes(ax)
    for k, system in enumerate(systems):
        response = system.frequency_response(grid if system.dt is not True or dt is True else grid * dt)
        gains = np.abs(response[:, pairs[:, 0], pairs[:, 1]])
        gains[~((gains > 0) & (gains < np.inf))] = np.nan  # no place on a logarithmic axis
        _curves(ax, grid, 20 * np.log10(gains), k, f"{_WHAT[k]}, {system.n} states{_told(pairs, channels, system)}")
    if grid[0] > 0:
        ax.set_xscale("log")
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, high - DEPTH), high)
    unit = "sample" if dt is True else "second"
    with_grid(ax)
    return finish(ax, f"frequency (rad per {unit})", "magnitude (dB)", None)


def plot_step(
    sys: Any,
    reduced: Any = None,
    horizon: float | None = None,
    channels: Sequence[tuple[int, int]] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the step responses of a system, and of a reduced one over them.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        The full system, not sparse.
    reduced : Reduction, or a system like `sys`, optional
        The reduced system.
    horizon : float, optional
        Time to the end, in seconds (samples for ``dt=True``); by default five time constants of the slowest pole of
        the smaller system.
    channels : sequence of (int, int), optional
        Pairs of output and input, counted from 0; by default all, the first nine where there are more.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn into: wide grey curves of the full system, one for each channel, with the thin blue ones of the
        reduced system on them; real parts, where responses are complex. Each input in turn steps from 0 to 1.

    Raises
    ------
    InputError
        If the systems do not fit or are sparse, `horizon` is no time, a channel does not exist, or `ax` are no axes.

    Notes
    -----
    The response at the times drawn is exact to rounding: an input that is held is one exponential of
    ``[[A, B], [0, 0]]`` away from the next sample [1]_.

    References
    ----------
    .. [1] C. Van Loan, "Computing integrals involving the matrix exponential", IEEE Trans. Autom. Control 23, 1978,
       pp. 395-404.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> from hankelred.plotting import plot_step
    >>> lag = hr.StateSpace([[-1.0]], [[1.0]], [[1.0]])
    >>> t, y = plot_step(lag, horizon=2.0).get_lines()[0].get_data()
    >>> bool(np.allclose(y, 1 - np.exp(-t)))
    True
    """
    systems, dt = _systems(sys, reduced)
    if any(system.is_sparse for system in systems):
        raise InputError("sys must be dense to step; got sparse matrices. Draw plot_frequency_error instead.")
    if horizon is not None:
        horizon = check_number(horizon, "horizon", least=0.0)
        if horizon == 0:
            raise InputError("horizon must be positive; got 0. Leave it out for five time constants.")
    pairs = _channels(channels, systems[0])
    dense = [system.dense() for system in systems]
    dense = [system.with_(dt=dt) if system.dt is True else system for system in dense]
    step, count = times(min(dense, key=lambda system: system.n), horizon)
    time = step * np.arange(count + 1)
    ax = as_axes(ax)
    for k, system in enumerate(dense):
        label = f"{_WHAT[k]}, {systems[k].n} states{_told(pairs, channels, system)}"
        responses = _responses(system, step, count)[:, pairs[:, 0], pairs[:, 1]].real
        check_drawable("Responses", responses)
        _curves(ax, time, responses, k, label, drawstyle="steps-post" if system.is_discrete else "default")
    with_grid(ax)
    unit = "samples" if dt is True else "seconds"
    return finish(ax, f"time ({unit})", "step response (y per u)", (0.0, float(time[-1])))


def plot_poles(sys: Any, reduced: Any = None, ax: Axes | None = None) -> Axes:
    """Draw the poles of a system and those of a reduced one in the complex plane.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        The full system; of a sparse one the poles that Arnoldi's process finds first.
    reduced : Reduction, or a system like `sys`, optional
        The reduced system.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn into: grey crosses before, blue circles after, a line for the boundary of stability. Where the
        poles of a continuous system span many decades both axes are linear near zero and logarithmic beyond.

    Raises
    ------
    InputError
        If the systems do not fit, or `ax` are no axes.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> from hankelred.plotting import plot_poles
    >>> plant = hr.StateSpace(np.diag([-1.0, -2.0, -30.0]), np.ones((3, 1)), np.ones((1, 3)))
    >>> len(plot_poles(plant, hr.balanced_truncation(plant, order=2)).get_lines())
    3
    """
    systems, _ = _systems(sys, reduced)
    ax = as_axes(ax)
    found = [system.some_poles() if system.is_sparse else system.poles() for system in systems]
    check_drawable("Poles", np.concatenate(found))
    styles: tuple[dict[str, Any], ...] = (
        {"marker": "x", "color": DROPPED, "markersize": 7, "markeredgewidth": 2},
        {"marker": "o", "color": KEPT, "markersize": 7, "fillstyle": "none"},
    )
    for k, (system, poles) in enumerate(zip(systems, found, strict=True)):
        some = "some poles" if system.is_sparse else f"{len(poles)} poles"
        ax.plot(poles.real, poles.imag, linestyle="none", label=f"{_WHAT[k]}, {some}", zorder=3, **styles[k])
    edge: dict[str, Any] = {"color": "0.2", "linestyle": "--", "linewidth": 1, "label": "boundary of stability"}
    if systems[0].is_discrete:
        angle = np.linspace(0.0, 2 * np.pi, 181)
        ax.plot(np.cos(angle), np.sin(angle), **edge)
        ax.set_aspect("equal", "datalim")
    else:
        ax.axvline(0.0, **edge)
        sizes = np.abs(np.concatenate(found))
        sizes = sizes[sizes > ZERO * sizes.max(initial=0.0)]
        if len(sizes) and sizes.max() > RANGE * sizes.min():
            ax.set_xscale("symlog", linthresh=float(sizes.min()))
            ax.set_yscale("symlog", linthresh=float(sizes.min()))
    with_grid(ax)
    return finish(ax, "real part", "imaginary part", None)


_WHAT = ("full", "reduced")
_STYLES: tuple[dict[str, Any], ...] = ({"color": DROPPED, "linewidth": 3}, {"color": KEPT, "linewidth": 1.3})


def _systems(sys: Any, reduced: Any) -> tuple[list[Any], Any]:
    """Return one system or two that can be compared, and their common dt."""
    G = one_system(sys, "sys")
    if reduced is None:
        return [G], G.dt
    H = one_system(reduced.system if isinstance(reduced, Reduction) else reduced, "reduced")
    return [G, H], (G - H).dt  # refuses systems that cannot be compared


def _grid(omega: ArrayLike) -> Array:
    grid = np.sort(check_real_array(omega, "omega", 1))
    if len(grid) == 0:
        raise InputError("omega must hold a frequency; got none. Leave it out for frequencies around the poles.")
    return grid


def _channels(channels: Any, system: Any) -> Array:
    """Return pairs of output and input, checked, (count, 2)."""
    if system.m * system.p == 0:
        raise InputError(
            f"A system must have inputs and outputs to be drawn; got {system.m} inputs and {system.p} outputs."
        )
    if channels is None:
        return np.array([(i, j) for i in range(system.p) for j in range(system.m)][:MOST_CHANNELS])
    pairs = [check_items(pair, "Each pair in channels") for pair in check_items(channels, "channels")]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise InputError(f"channels must be pairs of output and input, at least one; got {channels!r}.")
    outputs = check_indices([pair[0] for pair in pairs], "Outputs in channels", system.p)
    return np.stack([outputs, check_indices([pair[1] for pair in pairs], "Inputs in channels", system.m)], axis=1)


def _told(pairs: Array, channels: Any, system: Any) -> str:
    """Return what a label says of channels that are left out without having been asked."""
    count = system.m * system.p
    return f", {len(pairs)} of {count} channels" if channels is None and len(pairs) < count else ""


def _curves(ax: Axes, x: Array, curves: Array, k: int, label: str, **style: Any) -> None:
    """Draw the columns in the style of system k, with one label."""
    for curve in curves.T:
        ax.plot(x, curve, label=label, zorder=2 + k, **_STYLES[k], **style)
        label = "_"  # one entry in the legend


def _responses(system: Any, step: float, count: int) -> Array:
    """Return the outputs after steps of every input, (count + 1, p, m)."""
    A, B = system.A, system.B
    if not system.is_discrete:
        from scipy.linalg import expm

        held = np.zeros((system.n + system.m,) * 2, dtype=np.result_type(A, B))
        held[: system.n] = np.hstack([A, B]) * step
        exponential = expm(held)
        A, B = exponential[: system.n, : system.n], exponential[: system.n, system.n :]
    x = np.zeros_like(B)
    states = []
    for _ in range(count + 1):
        states.append(x)
        x = A @ x + B
    found: Array = system.C @ np.stack(states) + system.D
    return found
