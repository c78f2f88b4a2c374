"""Layers for systems whose state matrix is not diagonal: S4 with its diagonal plus low rank, LSSL, and others."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

import hankelred as hr
from hankelred import DiagonalSystem, StateSpace
from hankelred.checks import check_integer, check_items
from hankelred.errors import InputError
from hankelred.reduction.rediagonalise import diagonalised
from hankelred.rounding import Matrices

from ..convert import to_tensor
from ..layers import S4D, S5
from .base import Adapter
from .s4d import S4DAdapter
from .s5 import S5Adapter


def diagonal_layer(systems: Any, *, states: int | None = None) -> nn.Module:
    """Make a layer that computes what systems with dense state matrices compute, in diagonal form.

    Kernels such as S4's, diagonal plus low rank, or LSSL's store a structure that no reduced system has again. Their
    matrices do reduce: by balanced truncation of the dense system, whose eigenvectors then make it diagonal.

    Parameters
    ----------
    systems : StateSpace or sequence of them
        Real, discrete, stable. One system with as many outputs as inputs makes an `S5` layer; a sequence of systems
        with one input and one output each, one per channel, makes an `S4D` layer.
    states : int, optional
        Most complex states to store, for every channel; a conjugate pair of poles takes one, a real pole one. By
        default as many as the systems have.

    Returns
    -------
    S5 or S4D
        In the default dtype of torch, with random generators left as they were.

    Raises
    ------
    InputError
        If a system is continuous, complex or unstable, or has other inputs and outputs.
    DiagonalisationError
        If a system cannot be made diagonal, such as one with a Jordan block.

    Examples
    --------
    >>> import numpy as np, hankelred as hr, hankelred_torch as ht
    >>> A = np.array([[0.9, 0.2, 0.0], [-0.2, 0.9, 0.1], [0.0, 0.0, 0.5]])
    >>> system = hr.StateSpace(A, np.eye(3)[:, :1], np.ones((1, 3)), dt=True)
    >>> layer = ht.adapters.diagonal_layer([system])
    >>> layer
    S4D(channels=1, states=2)
    """
    states = None if states is None else check_integer(states, "states", 1)
    if isinstance(systems, StateSpace):
        system = _diagonal(systems, states)
        with torch.random.fork_rng(devices=[]):
            layer: nn.Module = S5(system.m, max(system.n, 1))
        return _filled(layer, S5Adapter(layer), "log_step", system)
    bank = tuple(_diagonal(system, states) for system in check_items(systems, "systems"))
    if not bank:
        raise InputError("systems must hold at least one system; got none. Pass one per channel.")
    with torch.random.fork_rng(devices=[]):
        layer = S4D(len(bank), max(1, *(system.n for system in bank)))
    return _filled(layer, S4DAdapter(layer), "log_dt", bank)


def _diagonal(system: Any, states: int | None) -> DiagonalSystem:
    """Return a dense system, reduced to so many stored states, as a diagonal one with real output."""
    if not isinstance(system, StateSpace):
        raise InputError(f"systems must be StateSpace, one or several; got {type(system).__name__}.")
    if not system.is_discrete or system.dtype.kind == "c" or not system.is_stable():
        largest = np.abs(system.poles()).max(initial=0.0)
        raise InputError(
            f"A system must be real, discrete and stable to become a layer; got {system.dtype} matrices, "
            f"dt={system.dt!r} and poles up to |lam| = {largest:.6g}. Discretise it with the step of the layer first."
        )
    if states is None:
        return _rediagonalised(system.dense())
    balancing = hr.balance(system)
    for order in range(min(2 * states, balancing.rank), -1, -1):
        reduced = balancing.reduce(order=order).system
        if np.sum(reduced.poles().imag >= 0) <= states:
            break
    return _rediagonalised(reduced.dense())


def _rediagonalised(system: StateSpace) -> DiagonalSystem:
    one_pole = np.array([-1.0 + 0j])
    like = DiagonalSystem.from_rates(
        one_pole, np.zeros((1, system.m)), np.zeros((system.p, 1)), dt=system.dt, output="real"
    )
    return diagonalised(Matrices(system.A, system.B, system.C, system.D), like).system


def _filled(layer: nn.Module, adapter: Adapter, step: str, systems: Any) -> nn.Module:
    """Write systems into a layer whose unit of time is its own step."""
    with torch.no_grad():
        adapter.tensor(step).zero_()
        for name, value in adapter.write(systems).items():
            tensor = adapter.tensor(name)
            tensor.copy_(to_tensor(value, tensor))
    return layer
