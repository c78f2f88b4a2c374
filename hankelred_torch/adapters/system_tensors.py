"""What a layer computes: linear systems of arrays, or of tensors that pass gradients on."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from hankelred import DiagonalSystem

Systems = DiagonalSystem | tuple[DiagonalSystem, ...]


class SystemTensors(NamedTuple):
    """The system of a layer as tensors that the layer's parameters get gradients through, in double precision.

    Attributes
    ----------
    rates : (..., n) Tensor
        Logarithms of the poles; one leading axis where the layer is a bank of systems.
    B, C : (..., n, m) and (..., p, n) Tensor
        Input and output matrices.
    dt : float or bool
        Sampling time, as of the system that `Adapter.read` returns.
    output : {"complex", "real"}
        Whether the outputs are ``C x`` or their real parts.
    """

    rates: Tensor
    B: Tensor
    C: Tensor
    dt: float | bool
    output: Literal["complex", "real"]
