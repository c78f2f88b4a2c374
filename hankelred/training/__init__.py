"""What a reduction does to what training keeps beside a system: moments of gradients, and averaged copies."""

from .following import follow
from .moments import Moments, align_states, carry_first_moments, carry_second_moments

__all__ = ["Moments", "align_states", "carry_first_moments", "carry_second_moments", "follow"]
