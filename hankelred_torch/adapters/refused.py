"""Layers with states that cannot be reduced, and why: by class name, so that no package has to be imported."""

from __future__ import annotations

import re

_DENSE = (
    "must be diagonal to be reduced; it has a state matrix of a structure that no reduced system has again. Pass its "
    "matrices in discrete time to hankelred_torch.adapters.diagonal_layer, which makes an S4D layer of them."
)

# By the whole name of a class, a pattern.
REFUSED = {
    "RecurrentGemmaRglru": (
        "must have states apart from its channels to be reduced; got an RG-LRU, in which every channel is its own "
        "state behind gates that mix channels. Removing one is width pruning of the whole block."
    ),
    "SSMKernelDPLR|SSMKernelDense|LSSL": _DENSE,
    "DSSKernel": (
        "must be one system for all lengths to be reduced; got a kernel that is normalised over the length of the "
        "sequence, a different system for each. Use the exponential variant, which is S4DKernel."
    ),
    "ZambaMambaMixer": (
        "must have B and C that its heads share to be reduced; got the mixer of the first Zamba, whose heads have an "
        "x_proj of their own each. No adapter knows it; Zamba2 has one."
    ),
    r"\w*Delta(Net|Attention|Rule)\w*|KDA": (
        "must be a delta rule that an adapter knows to be reduced; got another of that name. GatedDeltaAdapter serves "
        "those of the published layout: try register_adapter."
    ),
    r"xLSTM(Layer|Block)|\w*mLSTM(Layer|Block|Cell)": (
        "must read its states linearly to be reduced; got an xLSTM, which divides by a normaliser of them. No adapter "
        "knows it."
    ),
    r"Mamba3\w*|Rwkv\w*Attention|RWKV\w*|(?!KimiLinear)\w*(Lightning|Linear)Attention": (
        "must have an adapter to be reduced; no one has written one for it yet."
    ),
}


def refused(layer_class: type) -> str:
    """Return why layers of a class cannot be reduced, in a sentence; empty if nothing is known against them."""
    for base in layer_class.__mro__:
        for pattern, why in REFUSED.items():
            if re.fullmatch(pattern, base.__name__):
                return f"{base.__name__} {why}"
    return ""
