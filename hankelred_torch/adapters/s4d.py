"""Adapters of S4D layers: a bank of systems, one per channel, whose input matrix is 1 or shared with the output's.

Only the product of a state's input and output weight counts for its channel. Here all of it is stored in C, the
zero-order hold included, and the systems that are read have an input matrix of 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from hankelred import DiagonalBank, Reduction
from hankelred.checks import Array
from hankelred.errors import InputError
from hankelred.training import Moments, carry_first_moments, carry_second_moments

from ..layers._continuous import held_input
from .banks import BankAdapter, FilledUp, check_bank
from .base import SystemTensors
from .systems import STALENESS, rates_of
from .zero_order_hold import ZeroOrderHold, as_complex, as_real, scaled_squares, unwrapped

Reductions = tuple[Reduction, ...]


class S4DKernelAdapter(BankAdapter):
    """Adapter of ``S4DKernel`` of the repository state-spaces/s4 and of layers with the same tensors.

    ``y = 2 Re(C x)`` with ``x' = A x + u`` and ``A = -exp(log_A_real) + 1j A_imag``; u is held for ``exp(log_dt)``.
    """

    state_axes: ClassVar[Mapping[str, int]] = {"log_A_real": 1, "A_imag": 1, "C": 1}
    constants: ClassVar[tuple[str, ...]] = ("log_dt",)

    def bank(self, values: Mapping[str, Array]) -> DiagonalBank:
        """Return the channels in discrete time, the hold in C."""
        hold, C = _hold(values), as_complex(values["C"])
        D = values.get("D", np.zeros(len(C)))[:, None, None]
        B, C = np.ones((*C.shape, 1)), (2 * hold.hold * C)[:, None, :]
        return DiagonalBank.from_rates(hold.rates, B, C, D, dt=True, output="real")

    def tensors_of_system(self) -> SystemTensors:
        """Return rates and matrices of all channels as in `bank`, differentiable."""
        decay, frequency, log_dt, C = (self.tensor(x).double() for x in ("log_A_real", "A_imag", "log_dt", "C"))
        poles = torch.complex(-decay.exp(), frequency)
        rates = poles * log_dt.exp()[:, None]
        C = 2 * held_input(poles, rates) * torch.view_as_complex(C.contiguous())
        return SystemTensors(rates, torch.ones_like(C)[:, :, None], C[:, None, :], True, "real")

    def write(self, system: Any) -> dict[str, Array]:
        """Return the tensors of a bank of systems, at the steps the layer has."""
        systems = check_bank(system, len(self.tensor("log_dt")), 1, type(self.layer).__qualname__)
        D = np.array([x.D[0, 0] for x in systems])
        if "D" not in self.constants and np.any(D):
            raise InputError(f"{type(self.layer).__qualname__} has no feedthrough; got systems with D up to {D.max()}.")
        states = max(x.n for x in systems)
        rates = np.stack([_filled(unwrapped(rates_of(x), np.zeros(x.n)), states, -1.0) for x in systems])
        product = np.stack([_filled(x.B[:, 0] * x.C[0], states, 0.0) for x in systems])
        written = _tensors(rates, product, self.values())
        return written | ({"D": D} if "D" in self.constants else {})

    def rewrite(self, values: Mapping[str, Array], reduction: Reductions) -> dict[str, Array]:
        """Return the tensors after a reduction, with phases per step of the states they came from."""
        filled = FilledUp(self.read(values), reduction)
        return _tensors(*_rates_and_product(filled, values), values)

    def carry_first(
        self, values: Mapping[str, Array], reduction: Reductions, moments: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return first moments through the chain rule of the hold and the map of the bases."""
        systems, filled = self.read(values), FilledUp(self.read(values), reduction)
        given, decay = self._completed(moments, values), np.exp(values["log_A_real"])
        held = _held(values)
        poles = -given["log_A_real"] / decay + 1j * given["A_imag"]
        rates, weights = _hold(values).system_gradient(poles, as_complex(given["C"])[..., None] / 2, held)
        B = held.conj() * weights  # only the products with an input of 1 count
        carried = [
            carry_first_moments(system, each, Moments(z, b, w.T), staleness=STALENESS)
            for system, each, z, b, w in zip(systems, reduction, rates, B, weights, strict=True)
        ]
        new = {**values, **self.rewrite(values, reduction)}
        rates = filled.stack_arrays([x.rates for x in carried])
        weights = filled.stack_arrays([x.C.T / y.system.B.conj() for x, y in zip(carried, reduction, strict=True)])
        poles, weights = _hold(new).pole_gradient(rates, weights, _held(new))
        return {
            "log_A_real": -np.exp(new["log_A_real"]) * poles.real,
            "A_imag": poles.imag,
            "C": as_real(2 * weights[..., 0]),
        }

    def carry_second(
        self, values: Mapping[str, Array], reduction: Reductions, moments: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return second moments by squared coefficients and squared derivatives."""
        systems, filled = self.read(values), FilledUp(self.read(values), reduction)
        given, decay = self._completed(moments, values), np.exp(values["log_A_real"])
        poles = given["log_A_real"] / decay**2 + 1j * given["A_imag"]
        rates, weights = _hold(values).system_squares(poles, as_complex(given["C"])[..., None] / 4)
        B = scaled_squares(_held(values).conj(), weights)
        carried = [
            carry_second_moments(system, each, Moments(z, b, w.T))
            for system, each, z, b, w in zip(systems, reduction, rates, B, weights, strict=True)
        ]
        new = {**values, **self.rewrite(values, reduction)}
        rates = filled.stack_arrays([x.rates for x in carried])
        weights = filled.stack_arrays(
            [scaled_squares(1 / y.system.B.conj(), x.C.T) for x, y in zip(carried, reduction, strict=True)]
        )
        poles, weights = _hold(new).pole_squares(rates, weights)
        return {
            "log_A_real": np.exp(new["log_A_real"]) ** 2 * poles.real,
            "A_imag": poles.imag,
            "C": as_real(4 * weights[..., 0]),
        }

    def _completed(self, moments: Mapping[str, Array], values: Mapping[str, Array]) -> dict[str, Array]:
        """Return the moments with zeros for tensors that have none."""
        return {name: moments.get(name, np.zeros_like(values[name])) for name in self.state_axes}


class S4DAdapter(S4DKernelAdapter):
    """Adapter of `hankelred_torch.layers.S4D`, the same with a feedthrough of every channel."""

    constants = ("log_dt", "D")


def _hold(values: Mapping[str, Array]) -> ZeroOrderHold:
    poles = -np.exp(values["log_A_real"]) + 1j * values["A_imag"]
    return ZeroOrderHold(poles, np.exp(values["log_dt"])[:, None] * np.ones(poles.shape))


def _held(values: Mapping[str, Array]) -> Array:
    """Return the weights of the systems, (h, n, 1)."""
    return (2 * _hold(values).hold * as_complex(values["C"]))[..., None]


def _rates_and_product(filled: FilledUp, values: Mapping[str, Array]) -> tuple[Array, Array]:
    """Return rates and products of input and output weights of reduced channels, (h, states)."""
    old = _hold(values).rates
    kept = filled.stack(rates_of, filled.average(old.real) + 1j * filled.average(old.imag))
    rates = unwrapped(kept, filled.average(old.imag, odd=True))
    return rates, filled.stack(lambda system: system.B[:, 0] * system.C[0])


def _tensors(rates: Array, product: Array, values: Mapping[str, Array]) -> dict[str, Array]:
    """Return the tensors of channels with these rates and weights, at the steps that `values` hold."""
    step = np.exp(values["log_dt"])[:, None] * np.ones(rates.shape)
    hold = ZeroOrderHold(rates / step, step)
    return {
        "log_A_real": np.log(-hold.poles.real),
        "A_imag": hold.poles.imag,
        "C": as_real(product / (2 * hold.hold)),
    }


def _filled(x: Array, states: int, filler: float) -> Array:
    return np.concatenate([x, np.full(states - len(x), filler)])
