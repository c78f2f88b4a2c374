"""For the tests of other projects: systems to draw with hypothesis, and assertions that explain their failures.

Strategies need hypothesis (``pip install hankelred[testing]``); assertions, `system_with_hsv` and `delta_layer` do not.
"""

from .assertions import assert_balanced, assert_error_bound, assert_factors, assert_hsv_close, assert_weyl
from .layers import DeltaLayer, delta_layer, delta_layers
from .strategies import (
    diagonal_banks,
    diagonal_systems,
    ill_scaled_systems,
    near_boundary_systems,
    non_minimal_systems,
    prescribed_systems,
    repeated_hsv_systems,
    stable_systems,
    system_pairs,
)
from .systems import system_code, system_with_hsv

__all__ = [
    "DeltaLayer",
    "assert_balanced",
    "assert_error_bound",
    "assert_factors",
    "assert_hsv_close",
    "assert_weyl",
    "delta_layer",
    "delta_layers",
    "diagonal_banks",
    "diagonal_systems",
    "ill_scaled_systems",
    "near_boundary_systems",
    "non_minimal_systems",
    "prescribed_systems",
    "repeated_hsv_systems",
    "stable_systems",
    "system_code",
    "system_pairs",
    "system_with_hsv",
]
