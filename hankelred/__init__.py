"""Balanced truncation of linear systems, dense, sparse or diagonal, with a stated bound and a measured error.

NumPy in, NumPy out. The companion package ``hankelred_torch`` applies it to state space layers in training.
"""

# systems
# errors
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

# analysis
from .hankel import gramian_factors, gramians, hankel_singular_values

# equations
from .lyapunov import lyapunov_factor, solve_lyapunov
from .norms import h2_norm, hankel_norm, hinf_norm

# reduction
from .reduction import (
    Balancing,
    BankReduction,
    Reduction,
    balance,
    balanced_realization,
    balanced_truncation,
    minimal,
    modal_truncation,
)
from .systems import (
    DiagonalBank,
    DiagonalSystem,
    SecondOrderSystem,
    StateSpace,
    as_system,
    load_system,
    save_system,
)

__version__ = "0.2.0.dev0"

__all__ = [
    "AccuracyWarning",
    "Balancing",
    "BankReduction",
    "DiagonalBank",
    "DiagonalSystem",
    "DiagonalisationError",
    "HankelredError",
    "HankelredWarning",
    "InputError",
    "NonMinimalWarning",
    "NumericalError",
    "OrderError",
    "Reduction",
    "RepeatedHsvWarning",
    "SecondOrderSystem",
    "StabilityError",
    "StateSpace",
    "as_system",
    "balance",
    "balanced_realization",
    "balanced_truncation",
    "gramian_factors",
    "gramians",
    "h2_norm",
    "hankel_norm",
    "hankel_singular_values",
    "hinf_norm",
    "load_system",
    "lyapunov_factor",
    "minimal",
    "modal_truncation",
    "save_system",
    "solve_lyapunov",
]
