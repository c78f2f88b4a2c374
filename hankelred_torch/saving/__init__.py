"""Models whose layers were cut: written down, read back, resized and handed over."""

from .checkpoint import load_checkpoint, save_checkpoint
from .export import export_form
from .pretrained import export_padded, from_pretrained, save_pretrained
from .resize import resize_

__all__ = [
    "export_form",
    "export_padded",
    "from_pretrained",
    "load_checkpoint",
    "resize_",
    "save_checkpoint",
    "save_pretrained",
]
