"""Balanced truncation of linear systems, dense or diagonal, with a proof of what was lost.

NumPy in, NumPy out. The companion package ``hankelred_torch`` applies it to state space layers in training.
"""

from ._system_base import Labels
from .averaged import averaged_gramians
from .control_names import balred, dlyap, gram, hsvd, lyap
from .diagonal import diagonal_factor
from .diagonal_banks import batched_hankel_singular_values
from .errors import (
    AccuracyWarning,
    DiagonalisationError,
    HankelredError,
    HankelredWarning,
    InputError,
    NonMinimalWarning,
    NumericalError,
    OrderError,
    RepeatedHsvWarning,
    StabilityError,
)
from .gramians import gramian_factors, gramians, hankel_singular_values
from .interop import as_system, load_system, save_system, to_control, to_scipy
from .lyapunov import lyapunov_factor, solve_lyapunov
from .norms import h2_norm, hankel_norm, hinf_norm
from .reduction import (
    Balancing,
    BankReduction,
    Reduction,
    SelectionReport,
    SelectiveReduction,
    balance,
    balanced_truncation,
    batched_balanced_truncation,
    reduce_by_projection,
    reduce_by_rotation,
    reduce_by_selection,
    select_states,
    selection_report,
)
from .selective import SelectiveStatistics
from .stability import (
    AccumulatedDrift,
    DriftBound,
    OrderCertificate,
    accumulated_drift,
    certify_order,
    hsv_drift_bound,
    match_hsv,
)
from .systems import DiagonalSystem, StateSpace

__version__ = "0.1.0.dev0"

__all__ = [
    "AccumulatedDrift",
    "AccuracyWarning",
    "Balancing",
    "BankReduction",
    "DiagonalSystem",
    "DiagonalisationError",
    "DriftBound",
    "HankelredError",
    "HankelredWarning",
    "InputError",
    "Labels",
    "NonMinimalWarning",
    "NumericalError",
    "OrderCertificate",
    "OrderError",
    "Reduction",
    "RepeatedHsvWarning",
    "SelectionReport",
    "SelectiveReduction",
    "SelectiveStatistics",
    "StabilityError",
    "StateSpace",
    "accumulated_drift",
    "as_system",
    "averaged_gramians",
    "balance",
    "balanced_truncation",
    "balred",
    "batched_balanced_truncation",
    "batched_hankel_singular_values",
    "certify_order",
    "diagonal_factor",
    "dlyap",
    "gram",
    "gramian_factors",
    "gramians",
    "h2_norm",
    "hankel_norm",
    "hankel_singular_values",
    "hinf_norm",
    "hsv_drift_bound",
    "hsvd",
    "load_system",
    "lyap",
    "lyapunov_factor",
    "match_hsv",
    "reduce_by_projection",
    "reduce_by_rotation",
    "reduce_by_selection",
    "save_system",
    "select_states",
    "selection_report",
    "solve_lyapunov",
    "to_control",
    "to_scipy",
]
