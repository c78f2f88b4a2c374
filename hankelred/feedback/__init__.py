"""Models for loops: distances that feedback sees, and smaller controllers."""

from .controllers import ControllerReduction, reduce_controller
from .graph import nu_gap

__all__ = ["ControllerReduction", "nu_gap", "reduce_controller"]
