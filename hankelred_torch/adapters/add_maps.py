"""Giving layers state maps: of a model as it is, or as a saved one was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from hankelred.errors import InputError

from ..config import checked_modules, is_named
from .registry import find_ssm_layers, plain_name, unwrapped
from .state_mapping import StateMapped, give_maps, maps_of, take_maps


def add_state_maps_(model: nn.Module, target_modules: str | Sequence[str] | None = None) -> tuple[str, ...]:
    """Give layers whose states cannot be rotated maps in front of their states, so that they can.

    The maps are identities at first: outputs stay what they were. A cut by ``method="rotation"``, or by ``"auto"``
    where it errs less, makes them the bases it keeps, n rows into r. They cost r n multiplications per head and step,
    and are buffers: training leaves them as the cut has made them. Call it before a compressor is made.

    Parameters
    ----------
    model : torch.nn.Module
        A model or a layer; changed in place. Layers of gated delta nets with one decay per head, and Mamba-2 layers of
        Hugging Face, get maps; all others stay.
    target_modules : str or sequence of str, optional
        An expression that names of layers match, or names and their endings, as in `CompressionConfig`; by default all
        that can have maps.

    Returns
    -------
    tuple of str
        Names of the layers that have got maps.

    Raises
    ------
    InputError
        If a layer that is named is none of these, or has maps already.

    Examples
    --------
    >>> from transformers import Mamba2Config, Mamba2Model
    >>> import hankelred_torch as ht
    >>> config = Mamba2Config(hidden_size=8, num_heads=2, head_dim=8, state_size=16, num_hidden_layers=1, vocab_size=9)
    >>> model = Mamba2Model(config)
    >>> ht.add_state_maps_(model)
    ('layers.0.mixer',)
    >>> model.layers[0].mixer.input_map.shape
    torch.Size([128, 16])
    """
    adapters = find_ssm_layers(unwrapped(model))
    able = {name: x for name, x in adapters.items() if maps_of(x)}
    modules = checked_modules(target_modules, "target_modules")
    names = tuple(name for name in able if modules is None or is_named(name, modules))
    wanted = [modules] if isinstance(modules, str) else modules or ()
    if unable := [x for x in wanted if not any(is_named(name, x if x is modules else [x]) for name in able)]:
        raise InputError(
            f"target_modules must name layers that state maps are known for, {sorted(able)}; got {', '.join(unable)}. "
            f"Layers with decays of their own for every state admit selection only, and a forward that another library "
            f"has put into a layer would pass maps by: give maps before it does."
        )
    for name in names:
        give_maps(able[name])
    return names


def mapped_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers that have maps."""
    return [plain_name(name) for name, x in unwrapped(model).named_modules() if isinstance(x, StateMapped)]


@contextmanager
def maps_as_saved(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Give layers maps where names of saved tensors say that they had some; take them away if the block raises."""
    saved, before = (
        {x.rpartition(".")[0] for x in names if x.endswith((".key_map", ".input_map"))},
        mapped_layers(model),
    )
    missing = [x for x in find_ssm_layers(model) if x in saved and x not in before] if saved - set(before) else []
    if not missing:
        yield
        return
    try:
        add_state_maps_(model, missing)
        yield
    except BaseException:
        for name, x in unwrapped(model).named_modules():
            if isinstance(x, StateMapped) and plain_name(name) not in before:
                take_maps(x)
        raise
