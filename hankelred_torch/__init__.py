"""Shrinking state space layers while they train: balanced truncation of models and their optimizers in place.

Tensors in, tensors out; the mathematics is that of `hankelred`.
"""

from . import adapters, layers
from .adapters import find_ssm_layers, read_system, register_adapter, state_sizes, write_system
from .compressor import History, InTrainingCompressor, Measurement
from .config import CompressionConfig
from .errors import OptimizerStateWarning, SurgeryError
from .plan import CompressionPlan, LayerPlan, hankel_singular_values, plan
from .report import CompressionReport
from .surgery import compress_

__all__ = [
    "CompressionConfig",
    "CompressionPlan",
    "CompressionReport",
    "History",
    "InTrainingCompressor",
    "LayerPlan",
    "Measurement",
    "OptimizerStateWarning",
    "SurgeryError",
    "adapters",
    "compress_",
    "find_ssm_layers",
    "hankel_singular_values",
    "layers",
    "plan",
    "read_system",
    "register_adapter",
    "state_sizes",
    "write_system",
]
