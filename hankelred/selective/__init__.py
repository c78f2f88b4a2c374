"""Models whose matrices change at every step: averaged Gramians, statistics of data, and reductions by them."""

from .averages import averaged_gramians
from .delta import delta_inputs, delta_outputs
from .projection import project
from .result import SelectiveReduction
from .rotation import rotate
from .selection import SelectionReport, select, select_states, selection_report
from .statistics import SelectiveStatistics

__all__ = [
    "SelectionReport",
    "SelectiveReduction",
    "SelectiveStatistics",
    "averaged_gramians",
    "delta_inputs",
    "delta_outputs",
    "project",
    "rotate",
    "select",
    "select_states",
    "selection_report",
]
