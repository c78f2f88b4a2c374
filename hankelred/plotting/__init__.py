"""Pictures of models and reductions, in one style that the colour-blind can read.

Every function draws into the matplotlib Axes it is given and returns them; without Axes it makes a figure of its
own, ``ax.figure``, that pyplot does not know and that needs no display.
"""

from .axes import CYCLE, DROPPED, ERROR, KEPT, as_axes, new_axes
from .models import plot_bode, plot_poles, plot_step
from .reductions import plot_error_bound, plot_frequency_error, plot_hsv, plot_tradeoff

__all__ = [
    "CYCLE",
    "DROPPED",
    "ERROR",
    "KEPT",
    "as_axes",
    "new_axes",
    "plot_bode",
    "plot_error_bound",
    "plot_frequency_error",
    "plot_hsv",
    "plot_poles",
    "plot_step",
    "plot_tradeoff",
]
