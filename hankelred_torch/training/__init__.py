"""Cuts in the course of a training: when, under which condition, and what was done."""

from ..guard import Guard as Guard
from ..guard import validation_loss as validation_loss
from .compressor import InTrainingCompressor as InTrainingCompressor
from .history import History as History
from .rewarm import Checkpoint as Checkpoint
from .rewarm import Rewarm as Rewarm
from .tracking import Tracker as Tracker
