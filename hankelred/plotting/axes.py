"""Axes and their one style: colours that the colour-blind tell apart, scales, labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import Array, check_integer, check_type
from ..errors import NumericalError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# One colour each through all pictures: blue, grey and vermilion, of a palette that every kind of colour vision tells
# apart; layers of a model take them all in turn. M. Okabe and K. Ito, "Color Universal Design", 2008.
KEPT, DROPPED, ERROR = "#0072B2", "0.55", "#D55E00"
CYCLE = (KEPT, ERROR, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "0.2")
DRAWABLE = 1e300  # the largest number that logarithmic axes take, with their margins
MOST_AXES = 100  # in a row or column: the largest picture of matplotlib has 2^16 pixels a side
BAND: dict[str, Any] = {"color": DROPPED, "alpha": 0.25, "linewidth": 0}


def new_axes(columns: int, rows: int = 1) -> list[Axes]:
    """Return axes side by side and below each other, of a new figure that pyplot does not know.

    Parameters
    ----------
    columns : int
        How many side by side.
    rows : int, default 1
        How many below each other.

    Returns
    -------
    list of matplotlib.axes.Axes
        Row by row, from left to right; ``axes[0].figure`` is the figure.

    Raises
    ------
    InputError
        If `columns` or `rows` is not an integer from 1 to 100.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> from hankelred.plotting import new_axes, plot_hsv
    >>> axes = new_axes(2)
    >>> ax = plot_hsv([1.0, 0.1], ax=axes[1])
    """
    columns = check_integer(columns, "columns", 1, MOST_AXES)
    rows = check_integer(rows, "rows", 1, MOST_AXES)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need matplotlib, which is missing. Run: pip install 'hankelred[plot]'") from error
    figure = Figure(figsize=(5.2 * columns + 1.2 / columns, 4.2 * rows), layout="constrained")
    return list(figure.subplots(rows, columns, squeeze=False).flat)


def as_axes(ax: Axes | None = None) -> Axes:
    """Return the axes given, or new ones.

    Parameters
    ----------
    ax : matplotlib.axes.Axes, optional
        None stands for new ones.

    Returns
    -------
    matplotlib.axes.Axes
        Where to draw.

    Raises
    ------
    InputError
        If `ax` are no axes.

    Examples
    --------
    >>> from hankelred.plotting import as_axes
    >>> axes = as_axes(None)
    >>> as_axes(axes) is axes
    True
    """
    if ax is None:
        return new_axes(1)[0]
    from matplotlib.axes import Axes

    return check_type(ax, "ax", Axes, "Pass one Axes of matplotlib, or leave ax out.")


def check_drawable(name: str, values: Array) -> None:
    """Raise `NumericalError` where axes around the values would overflow."""
    largest = float(np.abs(values).max(initial=0.0))
    if largest > DRAWABLE:
        raise NumericalError(f"{name} must be at most {DRAWABLE:g} to be drawn; got {largest:g}. Use other units.")


def logarithmic(ax: Axes, values: Array) -> float:
    """Make the y axis logarithmic around the positive values; return its lower end."""
    values = values[(values > 0) & (values < np.inf)]
    check_drawable("Gains and bounds", values)
    low, high = (values.min(), values.max()) if len(values) else (0.1, 10.0)
    low = max(low, 1e-20 * high)  # what is smaller is rounding, and would squeeze the rest
    margin = max((high / low) ** 0.06, 2.0)
    ax.set_yscale("log")
    ax.set_ylim(low / margin, high * margin)
    with_grid(ax)
    return float(low / margin)


def with_grid(ax: Axes) -> None:
    """Draw thin lines behind everything."""
    ax.grid(visible=True, color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)


def finish(ax: Axes, xlabel: str, ylabel: str, xlim: tuple[float, float] | None, whole: bool = False) -> Axes:
    """Label the axes; `whole` asks for whole numbers along x."""
    from matplotlib.ticker import MaxNLocator

    ax.set(xlabel=xlabel, ylabel=ylabel)
    if xlim is not None:
        ax.set_xlim(xlim)
    ax.legend(framealpha=0.85, edgecolor="none")  # readable on top of a curve
    if whole:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return ax
