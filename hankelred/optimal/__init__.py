"""Models that are optimal in a norm, of the order asked for."""

from .all_pass import hankel_norm_approximation
from .interpolation import H2Reduction, h2_optimal

__all__ = ["H2Reduction", "h2_optimal", "hankel_norm_approximation"]
