"""Weighted balancing: which pair of matrices takes the place of the two Gramians.

White noise is what few plants and no layers receive. A `Weighting` says what counts instead: a horizon, bands of
frequencies, weights before and behind the system, or data. It makes a pair of factors; order, bases and the reduced
system follow from them as from any other.
"""

from .base import Weighting
from .covariance import StateCovariance
from .dissipative import BoundedReal, PositiveReal
from .frequency_limited import FrequencyLimited
from .frequency_weighted import FrequencyWeighted
from .in_loop import LQG, Coprime
from .sampled import Sampled
from .stochastic import Stochastic
from .time_limited import TimeLimited

__all__ = [
    "LQG",
    "BoundedReal",
    "Coprime",
    "FrequencyLimited",
    "FrequencyWeighted",
    "PositiveReal",
    "Sampled",
    "StateCovariance",
    "Stochastic",
    "TimeLimited",
    "Weighting",
]
