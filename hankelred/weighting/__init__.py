"""Weighted balancing: which pair of matrices takes the place of the two Gramians.

White noise is what few plants and no layers receive. A `Weighting` says what counts instead: a horizon, bands of
frequencies, weights before and behind the system, or data. It makes a pair of factors; order, bases and the reduced
system follow from them as from any other.
"""

from .base import Weighting
from .covariance import StateCovariance
from .frequency_limited import FrequencyLimited
from .frequency_weighted import FrequencyWeighted
from .sampled import Sampled
from .time_limited import TimeLimited

__all__ = ["FrequencyLimited", "FrequencyWeighted", "Sampled", "StateCovariance", "TimeLimited", "Weighting"]
