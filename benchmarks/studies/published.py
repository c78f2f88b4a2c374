"""Reductions of LRU layers by other methods, through the adapter that a user can register.

The method as published truncates the complex system, though the layer puts out its real part, and gives the optimizer
the first rows of its averages. Others keep states of the layer as they are, by a score of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.linalg as sla
import torch

import hankelred as hr
from hankelred.checks import Array
from hankelred_torch import find_ssm_layers, register_adapter
from hankelred_torch.adapters import LRUAdapter
from hankelred_torch.adapters.analysis import Analysis, LayerReduction, LinearAnalysis
from hankelred_torch.layers import LRU


@contextmanager
def served_by(adapter: type[LRUAdapter]) -> Iterator[None]:
    """Let an adapter serve LRU layers meanwhile."""
    register_adapter(LRU, adapter)
    try:
        yield
    finally:
        register_adapter(LRU, LRUAdapter)


class FirstStates:
    """Give the optimizer the first rows of the averages it had, whatever they mean after the cut."""

    def before(self, plan: Any, compressor: Any) -> None:
        self._old = [dict(compressor.optimizers[0].state[tensor]) for tensor, _ in self._tensors(compressor)]

    def after(self, plan: Any, compressor: Any) -> None:
        for (tensor, axis), old in zip(self._tensors(compressor), self._old, strict=True):
            first = {key: x.narrow(axis, 0, tensor.shape[axis]).clone() if x.ndim else x for key, x in old.items()}
            compressor.optimizers[0].state[tensor] = first

    def _tensors(self, compressor: Any) -> list[tuple[torch.Tensor, int]]:
        layers = find_ssm_layers(compressor.model).values()
        return [(layer.tensor(name), axis) for layer in layers for name, axis in layer.state_axes.items()]


class ComplexAdapter(LRUAdapter):
    """An adapter that truncates the complex system of a layer, as if its complex output were used."""

    def analyse(self, values: Mapping[str, Array], statistics: Any = None) -> LinearAnalysis:
        bank = self._stable_bank(values)

        def align(found: tuple[hr.Reduction, ...]) -> Any:
            small = found[0].system
            kept = hr.DiagonalSystem.from_rates(small.rates, small.B, small.C, small.D.real, dt=small.dt, output="real")
            T, Ti = (sla.block_diag(x, x.conj()) for x in (found[0].T, found[0].Ti))
            real = replace(
                found[0],
                system=kept,
                original=bank[0],
                order=2 * found[0].order,
                hsv=np.repeat(found[0].hsv, 2),
                T=T,
                Ti=Ti,
            )
            return self._aligned(bank, values, (real,))

        return LinearAnalysis(hr.DiagonalBank.from_rates(bank.rates, bank.B, bank.C, bank.D, dt=bank.dt), align)


Score = Callable[[hr.DiagonalSystem], Array]


def peak_gain(system: hr.DiagonalSystem) -> Array:
    """The H-infinity norm of each state's part of the complex output: what LAST ranks states by."""
    return _sizes(system) / (1.0 - np.abs(system.lam))


def energy(system: hr.DiagonalSystem) -> Array:
    """The H2 norm of each state's part of the complex output: what AIRE-Prune ranks states by."""
    return _sizes(system) / np.sqrt(1.0 - np.abs(system.lam) ** 2)


def chance(system: hr.DiagonalSystem) -> Array:
    """Numbers that know nothing of the states, other ones for other layers."""
    return np.random.default_rng(np.ascontiguousarray(system.lam).view(np.uint64)).random(system.n)


def _sizes(system: hr.DiagonalSystem) -> Array:
    return np.linalg.norm(system.B, axis=1) * np.linalg.norm(system.C, axis=0)


def keeping_by(score: Score) -> type[LRUAdapter]:
    """An adapter that keeps the states with the largest scores as they are, and drops the others."""

    class Keeping(LRUAdapter):
        def analyse(self, values: Mapping[str, Array], statistics: Any = None) -> Analysis:
            return _Kept(self._stable_bank(values)[0], score)

    return Keeping


class _Kept(Analysis):
    """The answers of a layer whose states are dropped one by one."""

    def __init__(self, system: hr.DiagonalSystem, score: Score) -> None:
        self._system, scores = system, score(system)
        self._ranking = np.argsort(-scores, kind="stable")
        self.n, self.hsv = system.n, scores[self._ranking]

    def tail(self, states: int) -> float:
        return float(self.hsv[states:].sum() / self.hsv.sum())

    def bound(self, states: int) -> float:
        return 0.0 if states >= self.n else np.inf

    def least_states(self, *, energy: float | None = None, max_error: float | None = None) -> tuple[int, str]:
        raise NotImplementedError("Scores say how to rank states, not how many to keep.")

    def reduce(self, states: int, *, prefer_larger: bool = False) -> LayerReduction:
        kept, full = self._ranking[:states], self._system
        small = hr.DiagonalSystem.from_rates(
            full.rates[kept], full.B[kept], full.C[:, kept], full.D, dt=full.dt, output="real"
        )
        E = np.eye(self.n)[:, kept].astype(complex)
        E = sla.block_diag(E, E)
        found = hr.Reduction(small, full, 2 * len(kept), np.repeat(self.hsv, 2), np.inf, E, E.T, method="states kept")
        return LayerReduction(len(kept), 2 * len(kept), self.hsv, 1.0 - self.tail(states), np.inf, found)
