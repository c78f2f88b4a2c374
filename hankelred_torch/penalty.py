"""A differentiable penalty on Hankel singular values: training that wants fewer states.

The penalty is the sum of powers of all Hankel singular values of every state space layer, each from both Gramians of
the system that the layer is: with the conjugates where they belong, and for layers whose output is a real part, of the
real system with twice the states.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hankelred.errors import InputError

from .adapters import find_ssm_layers, module_types
from .ops import hankel_singular_values


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
        If `p` is below 1, the model has no state space layer, or one whose system depends on its input.
    StabilityError
        If a layer is not stable.

    See Also
    --------
    HankelPenalty : The same times a strength, on every k-th step only.

    Notes
    -----
    Its time does not depend on batch and length but grows with the cube of the states: the `every` of `HankelPenalty`
    is for that.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> model = torch.nn.Sequential(ht.layers.LRU(4, 16), torch.nn.Linear(4, 2))
    >>> loss = model(torch.randn(3, 50, 4)).square().mean() + 1e-3 * ht.hankel_penalty(model)
    >>> loss.backward()
    >>> bool(torch.isfinite(model[0].nu_log.grad).all())
    True
    """
    if isinstance(p, bool) or not isinstance(p, (int, float)) or not 1 <= p < math.inf:
        raise InputError(f"p must be a number of at least 1; got {p!r}. With p=1 the penalty is the sum of the hsv.")
    layers = find_ssm_layers(model)
    if not layers:
        raise InputError(
            f"model must contain a state space layer with an adapter; got {module_types(model)}. "
            f"Name your layer class to hankelred_torch.register_adapter."
        )
    terms, dtype = [], torch.float32
    for adapter in layers.values():
        system = adapter.tensors_of_system()
        poles, rates = (system.rates, None) if system.dt == 0 else (None, system.rates)
        hsv = hankel_singular_values(poles, system.B, system.C, dt=system.dt, output=system.output, rates=rates)
        terms.append((hsv if p == 1 else hsv**p).sum())
        for name in adapter.state_axes:
            dtype = torch.promote_types(dtype, adapter.tensor(name).abs().dtype)
    return torch.stack([term.to(terms[0].device) for term in terms]).sum().to(dtype)


class HankelPenalty:
    """A penalty for a training loop: `hankel_penalty` times a strength, on every k-th step and zero on the others.

    Parameters
    ----------
    model : torch.nn.Module
        As for `hankel_penalty`. Layers may be cut while training goes on.
    strength : float
        Factor on the penalty; 0 or more.
    p : float, default 1
        Power, at least 1.
    every : int, default 10
        Steps from one evaluation to the next. Those it is evaluated on count so many times, so that the mean over
        steps stays what it is.

    Attributes
    ----------
    model, strength, p, every
        As given.
    calls : int
        Steps so far.

    Raises
    ------
    InputError
        If an argument is out of range.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> model = ht.layers.LRU(channels=4, states=16)
    >>> penalty = ht.HankelPenalty(model, strength=1e-3, every=4)
    >>> [bool(penalty() > 0) for step in range(6)]
    [True, False, False, False, True, False]
    """

    def __init__(self, model: nn.Module, strength: float, p: float = 1, every: int = 10) -> None:
        if not 0 <= strength < math.inf:
            raise InputError(f"strength must be 0 or more; got {strength!r}.")
        if not 1 <= p < math.inf:
            raise InputError(f"p must be a number of at least 1; got {p!r}.")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise InputError(f"every must be a number of steps, 1 or more; got {every!r}.")
        self.model, self.strength, self.p, self.every = model, strength, p, every
        self.calls = 0

    def __call__(self) -> Tensor:
        """Return what to add to the loss of this step, and count the step."""
        due, self.calls = self.calls % self.every == 0, self.calls + 1
        if due and self.strength > 0:
            return self.strength * self.every * hankel_penalty(self.model, self.p)
        return torch.zeros((), device=next(self.model.parameters()).device)

    def state_dict(self) -> dict[str, Any]:
        """Return the steps counted, for a checkpoint.

        Returns
        -------
        dict
            For `load_state_dict`.
        """
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting where a checkpoint stopped.

        Parameters
        ----------
        state : dict
            From `state_dict`.
        """
        self.calls = int(state["calls"])
