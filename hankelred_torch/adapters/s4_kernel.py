"""Adapter of the diagonal kernels of the repository state-spaces/s4: a bank with input and output matrix, per channel.

``y = 2 Re(C x)`` with ``x' = A x + B u``; u is held for the step of the channel. The repository is no package: its
kernels are known by the name of their class and by their tensors.

With `n_ssm` below the number of channels, channels share A and B, each with a step and an output matrix of its own. No
system in discrete time is common to them; they are one system with several outputs in continuous time, reduced as that.
Its bound holds for the difference before the hold, as long as inputs are slow against the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn.functional import softplus

from hankelred import DiagonalBank, DiagonalSystem, Reduction
from hankelred.checks import Array
from hankelred.training import Moments, align_states, carry_first_moments, carry_second_moments

from ..layers._continuous import held_input
from .banks import BankAdapter, FilledUp
from .base import SystemTensors
from .systems import STALENESS, rates_of
from .zero_order_hold import NoHold, ZeroOrderHold, as_complex, as_real, unwrapped, without_hold

Reductions = tuple[Reduction, ...]


class SSMKernelDiagAdapter(BankAdapter):
    """Adapter of ``SSMKernelDiag``: a bank of systems, or of systems in continuous time that channels share."""

    state_axes: ClassVar[Mapping[str, int]] = {"A_real": 1, "A_imag": 1, "B": 2, "C": 2}
    constants = ("inv_dt",)

    @classmethod
    def refusal(cls, layer: nn.Module) -> str:
        """Return why a kernel is not a bank of systems held for one step each."""
        shape = tuple(getattr(getattr(layer, "inv_dt", None), "shape", ()))
        settings = {
            'disc other than "zoh"': getattr(layer, "disc", "zoh") != "zoh",
            'real_transform other than "exp" or "none"': getattr(layer, "real_transform", "exp") not in _STORED,
            'imag_transform other than "none"': getattr(layer, "imag_transform", "none") != "none",
            'dt_transform other than "exp" or "softplus"': getattr(layer, "dt_transform", "exp") not in _STEPS,
            "dt_fast=True": bool(getattr(layer, "dt_fast", False)),
            "a bandlimit, which removes states step by step": getattr(layer, "bandlimit", None) is not None,
            "is_real=True, whose states are real": bool(getattr(layer, "is_real", False)),
            "a step for every state": shape[1:] != (1,),
        }
        return ", ".join(what for what, is_so in settings.items() if is_so)

    def sizes(self, states: int) -> dict[str, int]:
        """Return the kernel's record of its states."""
        return {"N": states}

    def bank(self, values: Mapping[str, Array]) -> DiagonalBank:
        """Return the channels in discrete time, the hold in B; those that share poles together, in continuous time."""
        hold, C = self._hold(values), 2 * self._outputs(values["C"])
        B = _held(hold, values)
        if self._shared:
            return DiagonalBank(hold.poles, B, C, dt=0, output="real")
        return DiagonalBank.from_rates(hold.rates, B, C, dt=True, output="real")

    def tensors_of_system(self) -> SystemTensors:
        """Return rates and matrices of all channels as in `bank`, differentiable."""
        decay, frequency, inv_dt = (self.tensor(x).double() for x in ("A_real", "A_imag", "inv_dt"))
        B, C = (torch.view_as_complex(self.tensor(x).double().contiguous()) for x in ("B", "C"))
        poles = torch.complex(-(decay.exp() if self._real_transform == "exp" else decay), -frequency)
        step = inv_dt.exp() if self._step_transform == "exp" else softplus(inv_dt)
        C = 2 * C.unflatten(1, (-1, len(poles))).permute(2, 1, 0, 3).flatten(1, 2)
        if not self._shared:
            rates = poles * step
            return SystemTensors(rates, (held_input(poles, rates) * B[0])[..., None], C, True, "real")
        # Tustin's transformation keeps the Hankel singular values of a system in continuous time
        half = poles * step.mean() / 2
        gain = step.mean().sqrt() / (1 - half)
        return SystemTensors(2 * torch.atanh(half), (gain * B[0])[..., None], gain[:, None] * C, True, "real")

    def align(self, system: DiagonalSystem, reduction: Reduction) -> Reduction:
        """Return the reduction in coordinates where B without the hold and C keep the proportion they had."""
        return align_states(system, reduction, None if self._shared else without_hold)

    def rewrite(self, values: Mapping[str, Array], reduction: Reductions) -> dict[str, Array]:
        """Return the tensors after a reduction, with phases per step of the states they came from."""
        filled, old = FilledUp(self.read(values), reduction), self._hold(values)
        means = filled.average(old.rates.real) + 1j * filled.average(old.rates.imag)
        if self._shared:
            hold: ZeroOrderHold = NoHold(filled.stack(lambda x: x.lam, means))
        else:
            rates = unwrapped(filled.stack(rates_of, means), filled.average(old.rates.imag, odd=True))
            step = old.step[:, :1] * np.ones(rates.shape)
            hold = ZeroOrderHold(rates / step, step)
        B = filled.stack(lambda x: x.B, filler=hold.hold[..., None]) / hold.hold[..., None]  # 1 where filled up
        C = filled.stack(lambda x: x.C.T).swapaxes(1, 2) / 2
        stored, _ = _STORED[self._real_transform]
        return {
            "A_real": stored(-hold.poles.real),
            "A_imag": -hold.poles.imag,
            "B": as_real(B[None, ..., 0]),
            "C": self._stored_outputs(C),
        }

    def carry_first(
        self, values: Mapping[str, Array], reduction: Reductions, moments: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return first moments through the chain rule of the hold and the map of the bases."""
        given, new = self._completed(moments, values), {**values, **self.rewrite(values, reduction)}
        old_hold, new_hold = self._hold(values), self._hold(new)
        poles = -given["A_real"] / self._derivative(values) - 1j * given["A_imag"]
        B = as_complex(given["B"])[0][..., None]
        rates, B = old_hold.system_gradient(poles, B, _held(old_hold, values))
        C = self._outputs(given["C"]) / 2
        systems, filled = self.read(values), FilledUp(self.read(values), reduction)
        carried = [
            carry_first_moments(system, each, Moments(*x), staleness=STALENESS)
            for system, each, *x in zip(systems, reduction, rates, B, C, strict=True)
        ]
        rates, B = (filled.stack_arrays([getattr(x, part) for x in carried]) for part in ("rates", "B"))
        poles, B = new_hold.pole_gradient(rates, B, _held(new_hold, new))
        C = 2 * filled.stack_arrays([x.C.T for x in carried]).swapaxes(1, 2)
        return {
            "A_real": -poles.real * self._derivative(new),
            "A_imag": -poles.imag,
            "B": as_real(B[None, ..., 0]),
            "C": self._stored_outputs(C),
        }

    def carry_second(
        self, values: Mapping[str, Array], reduction: Reductions, moments: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return second moments by squared coefficients and squared derivatives."""
        given, new = self._completed(moments, values), {**values, **self.rewrite(values, reduction)}
        poles = given["A_real"] / self._derivative(values) ** 2 + 1j * given["A_imag"]
        rates, B = self._hold(values).system_squares(poles, as_complex(given["B"])[0][..., None])
        C = self._outputs(given["C"]) / 4
        systems, filled = self.read(values), FilledUp(self.read(values), reduction)
        carried = [
            carry_second_moments(system, each, Moments(*x))
            for system, each, *x in zip(systems, reduction, rates, B, C, strict=True)
        ]
        rates, B = (filled.stack_arrays([getattr(x, part) for x in carried]) for part in ("rates", "B"))
        poles, B = self._hold(new).pole_squares(rates, B)
        C = 4 * filled.stack_arrays([x.C.T for x in carried]).swapaxes(1, 2)
        return {
            "A_real": poles.real * self._derivative(new) ** 2,
            "A_imag": poles.imag,
            "B": as_real(B[None, ..., 0]),
            "C": self._stored_outputs(C),
        }

    @property
    def _shared(self) -> bool:
        return self.tensor("A_real").shape[0] < self.tensor("inv_dt").shape[0]

    @property
    def _real_transform(self) -> str:
        return getattr(self.layer, "real_transform", "exp")

    @property
    def _step_transform(self) -> str:
        return getattr(self.layer, "dt_transform", "exp")

    def _hold(self, values: Mapping[str, Array]) -> ZeroOrderHold:
        _, decay = _STORED[self._real_transform]
        poles = -decay(values["A_real"]) - 1j * values["A_imag"]
        if self._shared:
            return NoHold(poles)
        step = _STEPS[self._step_transform](values["inv_dt"])
        return ZeroOrderHold(poles, step * np.ones(poles.shape))

    def _outputs(self, C: Array) -> Array:
        """Return C (p, v s, n, 2) as output matrices (s, v p, n): channels v s + i share the poles i."""
        p, _, n, _ = C.shape
        shared = as_complex(C).reshape(p, -1, self.tensor("A_real").shape[0], n)
        return shared.transpose(2, 1, 0, 3).reshape(shared.shape[2], -1, n)

    def _stored_outputs(self, C: Array) -> Array:
        """Return output matrices (s, v p, n) as C (p, v s, n, 2)."""
        p = self.tensor("C").shape[0]
        s, _, n = C.shape
        return as_real(C.reshape(s, -1, p, n).transpose(2, 1, 0, 3).reshape(p, -1, n))

    def _derivative(self, values: Mapping[str, Array]) -> Array:
        """Return the derivative of the decay by what is stored."""
        return np.exp(values["A_real"]) if self._real_transform == "exp" else np.ones_like(values["A_real"])

    def _completed(self, moments: Mapping[str, Array], values: Mapping[str, Array]) -> dict[str, Array]:
        """Return the moments with zeros for tensors that have none."""
        return {name: moments.get(name, np.zeros_like(values[name])) for name in self.state_axes}


# How decay rates are stored, and read again; how steps are read.
_STORED: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "exp": (np.log, np.exp),
    "none": (np.copy, np.copy),
}
_STEPS: dict[str, Callable[[Array], Array]] = {"exp": np.exp, "softplus": lambda x: np.logaddexp(0.0, x)}


def _held(hold: ZeroOrderHold, values: Mapping[str, Array]) -> Array:
    """Return the input matrices in discrete time, (h, n, 1), from B (1, h, n, 2)."""
    return (hold.hold * as_complex(values["B"])[0])[..., None]
