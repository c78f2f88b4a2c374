"""A differentiable penalty on Hankel singular values: training that wants fewer states.

The penalty is the sum of powers of all Hankel singular values of every state space layer, each from both Gramians of
the system that the layer is: with the conjugates where they belong, and for layers whose output is a real part, of the
real system with twice the states.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hankelred.checks import check_number
from hankelred.errors import InputError

from .adapters import find_ssm_layers
from .adapters.registry import module_types
from .ops import hankel_singular_values
from .sharding import is_spread


def hankel_penalty(model: nn.Module, p: float = 1) -> Tensor:
    """Compute the sum over all state space layers of ``sum(hsv**p)``, with a gradient to their parameters.

    Parameters
    ----------
    model : torch.nn.Module
        A model or a single layer; every state space layer in it must be time-invariant.
    p : float, default 1
        Power, at least 1. With 1, the nuclear norm of the Hankel operator: small values are pressed as hard as large
        ones, and many of them vanish. Below 1 the derivative at zero would be infinite.

    Returns
    -------
    () Tensor
        Differentiable, and finite where values vanish or repeat; computed in double precision, returned in the widest
        precision of the layers' parameters.

    Raises
    ------
    InputError
        If `p` is below 1, the model has no state space layer, or one whose system depends on its input, or that is
        spread over ranks.
    StabilityError
        If a layer is not stable.

    Notes
    -----
    Its time does not depend on batch and length but grows with the cube of the states. Added on every k-th step only,
    k times as strong, it has the same mean.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> model = torch.nn.Sequential(ht.layers.LRU(4, 16), torch.nn.Linear(4, 2))
    >>> loss = model(torch.randn(3, 50, 4)).square().mean() + 1e-3 * ht.hankel_penalty(model)
    >>> loss.backward()
    >>> bool(torch.isfinite(model[0].nu_log.grad).all())
    True
    """
    p = check_number(p, "p", least=1.0, hint="With p=1 the penalty is the sum of the hsv.")
    layers = find_ssm_layers(model)
    if not layers:
        raise InputError(
            f"model must contain a state space layer with an adapter; got {module_types(model)}. "
            f"Name your layer class to hankelred_torch.register_adapter."
        )
    terms, dtype = [], torch.float32
    for name, adapter in layers.items():
        if any(is_spread(x) for *_, x in adapter.places().values()):
            raise InputError(
                f"model must have its layers whole on this rank for a penalty with a gradient; got shards in "
                f"{name or '(model)'}. Leave them out of the sharding by ignored_params, or cut without the penalty."
            )
        system = adapter.tensors_of_system()
        poles, rates = (system.rates, None) if system.dt == 0 else (None, system.rates)
        hsv = hankel_singular_values(poles, system.B, system.C, dt=system.dt, output=system.output, rates=rates)
        terms.append((hsv if p == 1 else hsv**p).sum())
        for name in adapter.state_axes:
            dtype = torch.promote_types(dtype, adapter.tensor(name).abs().dtype)
    return torch.stack([term.to(terms[0].device) for term in terms]).sum().to(dtype)
