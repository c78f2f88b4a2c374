"""Layers with states that cannot be reduced, and why: by class name, so that no package has to be imported."""

from __future__ import annotations

_DENSE = (
    "has a state matrix of a structure that no reduced system has again. Pass its matrices in discrete time to "
    "hankelred_torch.adapters.diagonal_layer, which makes an S4D layer of them"
)

REFUSED = {
    "RecurrentGemmaRglru": (
        "RecurrentGemmaRglru must have states apart from its channels to be reduced; got an RG-LRU, in which every "
        "channel is its own state behind gates that mix channels. Removing one is width pruning of the whole block."
    ),
    "SSMKernelDPLR": f"SSMKernelDPLR must be diagonal to be reduced; it {_DENSE}.",
    "SSMKernelDense": f"SSMKernelDense must be diagonal to be reduced; it {_DENSE}.",
    "LSSL": f"LSSL must be diagonal to be reduced; it {_DENSE}.",
    "DSSKernel": (
        "DSSKernel must be one system for all lengths to be reduced; got a kernel that is normalised over the length "
        "of the sequence, a different system for each. Use the exponential variant, which is S4DKernel."
    ),
}
