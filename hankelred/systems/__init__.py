"""What a linear system is, and how it comes in and goes out. Nothing is solved here."""

from .base import LinearSystem
from .convert import as_container, as_system, one_system
from .diagonal import DiagonalBank, DiagonalSystem
from .files import load_system, save_system
from .poles import Poles
from .second_order import SecondOrderSystem
from .state_space import StateSpace

__all__ = [
    "DiagonalBank",
    "DiagonalSystem",
    "LinearSystem",
    "Poles",
    "SecondOrderSystem",
    "StateSpace",
    "as_container",
    "as_system",
    "load_system",
    "one_system",
    "save_system",
]
