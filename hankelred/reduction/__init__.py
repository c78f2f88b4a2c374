"""Model reduction: one file per step of the way from factors to a reduced system."""

from .balanced import Balancing, balance, balanced_truncation
from .bank import BankReduction, batched_balanced_truncation
from .result import Reduction
from .rotation import reduce_by_projection, reduce_by_rotation
from .selection import SelectionReport, reduce_by_selection, select_states, selection_report
from .selective import SelectiveReduction

__all__ = [
    "Balancing",
    "BankReduction",
    "Reduction",
    "SelectionReport",
    "SelectiveReduction",
    "balance",
    "balanced_truncation",
    "batched_balanced_truncation",
    "reduce_by_projection",
    "reduce_by_rotation",
    "reduce_by_selection",
    "select_states",
    "selection_report",
]
