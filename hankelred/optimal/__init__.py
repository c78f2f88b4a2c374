"""Models that are optimal in a norm, of the order asked for."""

from .all_pass import hankel_norm_approximation

__all__ = ["hankel_norm_approximation"]
