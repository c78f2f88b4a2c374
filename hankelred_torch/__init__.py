"""Shrinking state space layers while they train: balanced truncation of models and their optimizers in place.

Tensors in, tensors out; the mathematics is that of `hankelred`.
"""

from . import adapters, integrations, layers, ops
from .adapters import find_ssm_layers, read_system, register_adapter, state_sizes, write_system
from .checkpoint import load_checkpoint, resize_like, save_checkpoint
from .compressor import InTrainingCompressor
from .config import CompressionConfig
from .distributed import refresh_ddp_
from .errors import OptimizerStateWarning, RefusedCutWarning, SurgeryError
from .guard import Guard, validation_loss
from .history import History, Measurement
from .penalty import hankel_penalty
from .plan import CompressionPlan, LayerPlan, hankel_singular_values, plan
from .pretrained import export_padded, from_pretrained, save_pretrained
from .report import CompressionReport
from .surgery import compress_
from .tracking import Tracker

__all__ = [
    "CompressionConfig",
    "CompressionPlan",
    "CompressionReport",
    "Guard",
    "History",
    "InTrainingCompressor",
    "LayerPlan",
    "Measurement",
    "OptimizerStateWarning",
    "RefusedCutWarning",
    "SurgeryError",
    "Tracker",
    "adapters",
    "compress_",
    "export_padded",
    "find_ssm_layers",
    "from_pretrained",
    "hankel_penalty",
    "hankel_singular_values",
    "integrations",
    "layers",
    "load_checkpoint",
    "ops",
    "plan",
    "read_system",
    "refresh_ddp_",
    "register_adapter",
    "resize_like",
    "save_checkpoint",
    "save_pretrained",
    "state_sizes",
    "validation_loss",
    "write_system",
]
