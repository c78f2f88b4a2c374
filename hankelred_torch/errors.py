"""Exceptions and warnings of the adapter: classes only, on top of those of `hankelred.errors`."""

from __future__ import annotations

from hankelred.errors import HankelredError, HankelredWarning


class SurgeryError(HankelredError, RuntimeError):
    """A cut left the model or an optimizer inconsistent, and everything was put back."""


class OptimizerStateWarning(HankelredWarning):
    """What an optimizer keeps for a parameter is not carried through a cut: it is of an unknown kind, or not finite."""


class RefusedCutWarning(HankelredWarning):
    """A layer was not cut to the order that was given, because it would have lost too much."""
