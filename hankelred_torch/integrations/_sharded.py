"""What frameworks cannot save of a compressor whose model is spread over ranks: refused before the training."""

from __future__ import annotations

from hankelred.errors import InputError

from ..training import InTrainingCompressor


def is_sharded(compressor: InTrainingCompressor) -> bool:
    """Tell whether the tensors of the model are spread over ranks."""
    return compressor.ranks is not None and compressor.ranks.ddp is None


def check_saved_by_one_rank(compressor: InTrainingCompressor) -> None:
    """Refuse a guard that takes its time: of the moment it can go back to, every rank holds its own shards."""
    guard = compressor._guard
    if is_sharded(compressor) and guard is not None and guard.settle_steps:
        raise InputError(
            f"A guard must decide at once where rank 0 alone saves the compressor of a sharded model; got "
            f"settle_steps={guard.settle_steps}, in which every rank keeps shards to roll back to. Leave settle_steps "
            f"out, or train in a loop of your own with save_checkpoint."
        )
