"""Fitting again what a time-invariant layer reads from the states that a cut has left, by ridge regression.

A truncation keeps the states and the outputs that go with them. With the poles and inputs of the reduced states given,
the outputs of the layer before are closest to those of some other C and D, on the inputs that the layer really gets;
D as far as the layer can hold one, entry by entry.

Where D is fitted, it can take over what the states answer to an input in its own step, and states that do little else
need not be kept. So outputs are fitted to the poles and inputs of a second reduction as well, for which outputs count
from the next step on, with ``C A`` in the place of C.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hankelred import Reduction
from hankelred.checks import Array
from hankelred.errors import DiagonalisationError

from ..adapters import Adapter
from ..adapters.transport import as_tuple, held_feedthrough
from ..ops import linear_recurrence
from ..sampling import layer_inputs
from .cuts import LayerCut

# Ridge, in shares of the mean square of a state.
RIDGE = 1e-8

# Steps of the sample that are used, half of them to judge by.
MOST_STEPS = 2**16


def refitted(
    model: nn.Module, adapters: Mapping[str, Adapter], layers: Mapping[str, LayerCut], probe: Any
) -> dict[str, tuple[Any, str]]:
    """Fit the outputs of the cuts of time-invariant layers on one half of a sample; give those best on the other.

    The sample is a batch of the model, `probe`; halves are those of its sequences, or of its steps if there is one.

    Returns
    -------
    dict of str to tuple
        Reduction and method, of the layers whose outputs come closer than without a fit.
    """
    cut: dict[str, Any] = {name: adapters[name] for name, x in layers.items() if x.cut and adapters[name].kind == "lti"}
    cut = {name: x for name, x in cut.items() if "C" in x.parts and x.output == "real" and x.dt != 0}
    inputs = layer_inputs(model, cut, probe) if probe is not None else {}
    found = {}
    for name, u in inputs.items():
        adapter, layer = cut[name], layers[name]
        held = held_feedthrough(adapter)
        ways = {layer.method or "balanced truncation": as_tuple(layer.reduction)}
        if held.any():
            ways |= _from_next_step(adapter, layer)
        if any(x.system.n == 0 for reductions in ways.values() for x in reductions):
            continue
        tried = [_fitted(x, held, f"{way}, outputs fitted again", u) for way, x in ways.items()]
        (_, before, _), (fitted, _, after) = tried[0], min(tried, key=lambda x: x[2])
        if after < before:
            found[name] = fitted if adapter.is_bank else fitted[0], fitted[0].method
    return found


def _from_next_step(adapter: Any, layer: LayerCut) -> dict[str, tuple[Reduction, ...]]:
    """Return the second reduction by its method; none where it takes more states."""
    try:
        found = adapter.analyse(layer._values, layer._statistics, from_next_step=True).reduce(layer.states)
    except DiagonalisationError:
        return {}
    if found.reduction is None or found.states > layer.states:
        return {}
    reductions = zip(as_tuple(found.reduction), tuple(adapter.bank(layer._values)), strict=True)
    method = f"{found.method or 'balanced truncation'} from the next step on"
    return {method: tuple(replace(x, original=whole) for x, whole in reductions)}


def _fitted(
    reductions: tuple[Reduction, ...], held: Array, method: str, u: Tensor
) -> tuple[tuple[Reduction, ...], float, float]:
    """Fit C and D of every system of a layer; give the square errors of the other half before and after."""
    u = u.double().cpu()
    u = u[: max(1, MOST_STEPS // u.shape[1])]
    middle = (u.shape[1] if len(u) == 1 else len(u)) // 2
    first, second = slice(middle), slice(middle, None)
    seen, judged = ((slice(None), first), (slice(None), second)) if len(u) == 1 else ((first,), (second,))
    before = after = 0.0
    new = []
    for k, reduction in enumerate(reductions):
        system, m = reduction.system, reduction.original.m
        own = u[..., k * m : (k + 1) * m]
        target, rows = _outputs(reduction.original, own), _regressors(system, own)
        old = np.hstack([system.C.real, -system.C.imag, system.D.real])
        free = np.hstack([np.ones((system.p, 2 * system.n), bool), held[k]])
        fitted, n = _ridge(rows[seen], target[seen], old, free), system.n
        before += _error(rows[judged], target[judged], old)
        after += _error(rows[judged], target[judged], fitted)
        system = system.with_(C=fitted[:, :n] - 1j * fitted[:, n : 2 * n], D=fitted[:, 2 * n :])
        new.append(replace(reduction, system=system, _reduced=system, error_bound=np.inf, method=method))
    return tuple(new), before, after


def _states(system: Any, u: Tensor) -> Tensor:
    """Return the states that inputs (batch, length, m) drive from rest, (batch, length, n)."""
    lam, B = (torch.from_numpy(np.array(x, dtype=complex)) for x in (system.lam, system.B))
    return linear_recurrence(lam, u.to(B.dtype) @ B.mT)


def _outputs(system: Any, u: Tensor) -> Array:
    """Return what a system puts out."""
    C, D = (torch.from_numpy(np.array(x, dtype=complex)) for x in (system.C, system.D))
    return (_states(system, u) @ C.mT + u.to(D.dtype) @ D.mT).real.numpy()


def _regressors(system: Any, u: Tensor) -> Array:
    """Return real and imaginary parts of the states, and inputs: ``[Re C, -Im C, D]`` times these are the outputs."""
    x = _states(system, u)
    return torch.cat([x.real, x.imag, u], dim=-1).numpy()


def _ridge(rows: Array, target: Array, old: Array, free: Array) -> Array:
    """Return the matrix that makes the target of the rows, (p, k), where it is free, and the old one elsewhere."""
    Z, Y = rows.reshape(-1, rows.shape[-1]), target.reshape(-1, target.shape[-1])
    new = np.where(free, 0.0, old)
    G, right = Z.T @ Z, Z.T @ (Y - Z @ new.T)
    n = free.all(axis=0).sum()
    G[np.diag_indices(len(G))] += RIDGE * np.trace(G[:n, :n]) / n + np.finfo(float).tiny
    for pattern in np.unique(free, axis=0):  # outputs that may use the same columns, together
        outputs = (free == pattern).all(axis=1)
        new[np.ix_(outputs, pattern)] = np.linalg.solve(G[np.ix_(pattern, pattern)], right[np.ix_(pattern, outputs)]).T
    return new


def _error(rows: Array, target: Array, C: Array) -> float:
    return float(np.square(target - rows @ C.T).sum())
