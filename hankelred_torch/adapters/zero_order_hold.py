"""Layers that store a diagonal system in continuous time and run it by a zero-order hold: the chain rule both ways.

With poles Lambda and a step Delta of its own, every state has ``rate = Lambda Delta`` (``lam = exp(rate)`` in discrete
time), and its input weights are multiplied by ``hold = expm1(rate) / Lambda``. Arrays may have leading axes, one
system each.

Gradients follow the convention of `hankelred.training`, ``g = dL/dRe + i dL/dIm``; second moments hold the mean
squares of both parts the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hankelred import DiagonalSystem
from hankelred.checks import Array

from .systems import rates_of

# Below this |rate| the derivative of the hold is taken from its series: the formula subtracts equal leading terms.
SLOW = 1e-4


@dataclass(frozen=True, eq=False)
class ZeroOrderHold:
    """Poles in continuous time with their steps.

    Attributes
    ----------
    poles : (..., n) ndarray
        Lambda, complex.
    step : (..., n) ndarray
        Delta, positive.
    """

    poles: Array
    step: Array

    @cached_property
    def rates(self) -> Array:
        """Logarithms of the poles in discrete time."""
        return self.poles * self.step

    @cached_property
    def hold(self) -> Array:
        """The factor on the input weights, `step` for a pole at 0."""
        still = self.poles == 0
        return np.where(still, self.step, np.expm1(self.rates) / np.where(still, 1.0, self.poles))

    @cached_property
    def _hold_by_pole(self) -> Array:
        """Derivative of the hold by the pole at a fixed step."""
        z, slow = self.rates, np.abs(self.rates) < SLOW
        exact = (z * np.exp(z) - np.expm1(z)) / np.where(slow, 1.0, z) ** 2
        return self.step**2 * np.where(slow, 0.5 + z / 3 + z**2 / 8, exact)

    def system_gradient(self, poles: Array, weights: Array, held: Array) -> tuple[Array, Array]:
        """Return the gradient by rates and held weights from that by poles and weights.

        Parameters
        ----------
        poles : (..., n) ndarray
            Gradient by Lambda at fixed weights.
        weights : (..., n, m) ndarray
            Gradient by the weights.
        held : (..., n, m) ndarray
            The weights as the system has them, multiplied by the hold.
        """
        weights = weights / self.hold.conj()[..., None]
        return (poles - self._through_hold(self._hold_by_pole, weights, held)) / self.step, weights

    def pole_gradient(self, rates: Array, weights: Array, held: Array) -> tuple[Array, Array]:
        """Return the gradient by poles and weights from that by rates and held weights, the inverse."""
        poles = self.step * rates + self._through_hold(self._hold_by_pole, weights, held)
        return poles, self.hold.conj()[..., None] * weights

    def step_gradient(self, rates: Array, weights: Array, held: Array) -> Array:
        """Return the gradient by the logarithm of the step, from that by rates and held weights; real."""
        by_step = self.step * np.exp(self.rates)  # of the hold
        through = self._through_hold(by_step, weights, held)
        return np.real(self.rates.conj() * rates + through)

    def system_squares(self, poles: Array, weights: Array) -> tuple[Array, Array]:
        """Return second moments of rates and held weights.

        What poles do through the hold counts as theirs, and the phase of the hold is left out: on the way back both
        return to where they came from, to the states that are kept exactly.
        """
        return poles / self.step**2, weights / np.abs(self.hold[..., None]) ** 2

    def pole_squares(self, rates: Array, weights: Array) -> tuple[Array, Array]:
        """Return second moments of poles and weights, the inverse."""
        return rates * self.step**2, weights * np.abs(self.hold[..., None]) ** 2

    def step_squares(self, rates: Array, weights: Array, held: Array) -> Array:
        """Return the mean square of the gradient by the logarithm of the step for uncorrelated terms."""
        factor = (self.step * np.exp(self.rates) / self.hold)[..., None] * held
        through = np.sum(scaled_squares(factor.conj(), weights).real, axis=-1)
        return scaled_squares(self.rates.conj(), rates).real + through

    def _through_hold(self, derivative: Array, weights: Array, held: Array) -> Array:
        """Return the part of a gradient that passes through the hold, by its derivative."""
        return (derivative / self.hold).conj() * np.sum(held.conj() * weights, axis=-1)


class NoHold(ZeroOrderHold):
    """A system that is taken in continuous time: its poles are its rates, its weights are what is stored."""

    def __init__(self, poles: Array) -> None:
        super().__init__(poles, np.ones(poles.shape))

    @cached_property
    def rates(self) -> Array:
        """The poles themselves."""
        return self.poles

    @cached_property
    def hold(self) -> Array:
        """No factor on the input weights."""
        return np.ones(self.poles.shape)

    @cached_property
    def _hold_by_pole(self) -> Array:
        return np.zeros(self.poles.shape)


def scaled_squares(factor: Array, second: Array) -> Array:
    """Return second moments of ``factor * g`` for uncorrelated parts of g."""
    re, im = factor.real**2, factor.imag**2
    return re * second.real + im * second.imag + 1j * (im * second.real + re * second.imag)


def unwrapped(rates: Array, phases: Array) -> Array:
    """Return the rates with whole turns added that bring their phases next to given ones.

    A pole that turns by more than half a circle per step is one with a slower one in discrete time; its parameters in
    continuous time are not.
    """
    return rates + 2j * np.pi * np.round((phases - rates.imag) / (2 * np.pi))


def without_hold(system: DiagonalSystem) -> Array:
    """Return the factor by which B without the hold is larger, for one step: steps are kept along with states."""
    rates = unwrapped(rates_of(system), np.zeros(system.n))
    return 1 / np.abs(ZeroOrderHold(rates, np.ones(system.n)).hold)


def as_complex(x: Array) -> Array:
    """Return an array of pairs as complex numbers."""
    return x[..., 0] + 1j * x[..., 1]


def as_real(x: Array) -> Array:
    """Return complex numbers as an array of pairs."""
    return np.stack([x.real, x.imag], axis=-1)
