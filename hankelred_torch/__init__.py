"""Shrinking state space layers while they train: balanced truncation of models and their optimizers in place.

Tensors in, tensors out; the mathematics is that of `hankelred`.
"""

try:
    import torch as _torch  # noqa: F401  before anything needs it, so that its absence is said once and clearly
except ModuleNotFoundError as error:
    if error.name != "torch":  # torch is there, and something that it needs is not
        raise
    raise ModuleNotFoundError(
        "hankelred_torch needs torch, which is not installed. Run: pip install 'hankelred[torch]'", name="torch"
    ) from error

from . import adapters, integrations, layers, ops
from .adapters import add_state_maps_, find_ssm_layers, read_system, register_adapter, state_sizes
from .config import CompressionConfig, Schedule
from .errors import OptimizerStateWarning, RefusedCutWarning, SurgeryError
from .penalty import hankel_penalty
from .planning import LayerCut, Plan, hankel_singular_values, plan
from .saving import (
    export_form,
    export_padded,
    from_pretrained,
    load_checkpoint,
    resize_,
    save_checkpoint,
    save_pretrained,
)
from .surgery import compress_, refresh_ddp_, register_optimizer_state, write_system
from .training import Checkpoint, Guard, History, InTrainingCompressor, Rewarm, Tracker, validation_loss

__all__ = [
    "Checkpoint",
    "CompressionConfig",
    "Guard",
    "History",
    "InTrainingCompressor",
    "LayerCut",
    "OptimizerStateWarning",
    "Plan",
    "RefusedCutWarning",
    "Rewarm",
    "Schedule",
    "SurgeryError",
    "Tracker",
    "adapters",
    "add_state_maps_",
    "compress_",
    "export_form",
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
    "register_optimizer_state",
    "resize_",
    "save_checkpoint",
    "save_pretrained",
    "state_sizes",
    "validation_loss",
    "write_system",
]
