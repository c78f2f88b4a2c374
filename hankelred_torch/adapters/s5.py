"""Adapters of S5 layers: all inputs to all outputs, stored in continuous time with a step for every state.

A reduced state is a mixture of old ones. Its step is the geometric mean of theirs, its pole in continuous time the one
whose phase per step is next to theirs: a state that is kept keeps its parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hankelred import DiagonalSystem, Reduction
from hankelred.checks import Array
from hankelred.errors import InputError
from hankelred.training import Moments, align_states, carry_first_moments, carry_second_moments

from ..layers._continuous import held_input
from .analysis import Analysis
from .base import SystemTensors
from .systems import (
    STALENESS,
    SystemAdapter,
    check_writable,
    participation,
    rates_of,
    refuse_unstable,
    signed_participation,
)
from .zero_order_hold import ZeroOrderHold, as_complex, as_real, unwrapped, without_hold


class _Parts(NamedTuple):
    """What the tensors of a layer hold: poles (n,), log steps (n,), B (n, m) and C (p, n) in continuous time.

    The same for gradients and second moments, whose real and imaginary parts belong to those of the parameters.
    """

    poles: Array
    log_step: Array
    B: Array
    C: Array

    @property
    def hold(self) -> ZeroOrderHold:
        """The hold of a layer with these parameters."""
        return ZeroOrderHold(self.poles, np.exp(self.log_step))


class S5Adapter(SystemAdapter):
    """Adapter of `hankelred_torch.layers.S5` and of layers with the same tensors, ``y = 2 Re(C x) + D u``."""

    state_axes: ClassVar[Mapping[str, int]] = {"Lambda_re": 0, "Lambda_im": 0, "log_step": 0, "B": 0, "C": 1}
    constants = ("D",)
    output_gain: ClassVar[float] = 2.0

    def read(self, values: Mapping[str, Array]) -> DiagonalSystem:
        """Return the system in discrete time, with its rates."""
        parts = self._parts(values)
        hold = parts.hold
        B, C = hold.hold[:, None] * parts.B, self.output_gain * parts.C
        return DiagonalSystem.from_rates(hold.rates, B, C, self._feedthrough(values["D"]), dt=True, output="real")

    def tensors_of_system(self) -> SystemTensors:
        """Return rates and matrices as in `read`, differentiable."""
        re, im, log_step, B, C = (self.tensor(x).double() for x in ("Lambda_re", "Lambda_im", "log_step", "B", "C"))
        return self._held(torch.complex(re, im), log_step, B, torch.view_as_complex(C.contiguous()))

    def write(self, system: DiagonalSystem) -> dict[str, Array]:
        """Return the tensors of a system; with another number of states, all get the mean step of the old ones."""
        self._check_writable(system)
        log_step = self._parts(self.values()).log_step
        if len(log_step) != system.n:
            log_step = np.full(system.n, log_step.mean())
        rates = unwrapped(rates_of(system), np.zeros(system.n))
        return self._written(system, rates, log_step) | {"D": np.diag(system.D[: system.m])}

    def rewrite(self, values: Mapping[str, Array], reduction: Reduction) -> dict[str, Array]:
        """Return the tensors after a reduction, with steps and phases of the states they came from."""
        old, system = self._parts(values), self.read(values)
        direct, mirrored = signed_participation(system, reduction)
        phases = (direct - mirrored) @ old.hold.rates.imag
        rates = unwrapped(rates_of(reduction.system), phases)
        return self._written(reduction.system, rates, (direct + mirrored) @ old.log_step)

    def align(self, system: DiagonalSystem, reduction: Reduction) -> Reduction:
        """Return the reduction in coordinates where B without the hold and C keep the proportion they had."""
        return align_states(system, reduction, without_hold)

    def analyse(self, values: Mapping[str, Array], statistics: Any = None) -> Analysis:
        """Return the analysis of the system, which must be stable."""
        self._refuse_unstable(values)
        return super().analyse(values)

    def hankel_singular_values(self, values: Mapping[str, Array]) -> Array:
        """Return those of the system, which must be stable."""
        self._refuse_unstable(values)
        return super().hankel_singular_values(values)

    def carry_first(
        self, values: Mapping[str, Array], reduction: Reduction, moments: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return first moments through the chain rule of the hold and the map of the bases."""
        old, new = self._parts(values), self._parts({**values, **self.rewrite(values, reduction)})
        system, given = self.read(values), self._parts(self._completed(moments, values))
        rates, B = old.hold.system_gradient(given.poles, given.B, system.B)
        first = Moments(rates, B, given.C / self.output_gain)
        carried = carry_first_moments(system, reduction, first, staleness=STALENESS)
        if "B" not in moments or "C" not in moments:
            # without the moments of both nothing is known of the off-diagonal ones: the diagonal has to do
            alone = Moments(rates, np.zeros_like(first.B), np.zeros_like(first.C))
            carried = carried._replace(rates=carry_first_moments(system, reduction, alone, staleness=STALENESS).rates)
        poles, B = new.hold.pole_gradient(carried.rates, carried.B, reduction.system.B)
        # the step has no gradient of its own; what its average has beyond that goes with the states
        beyond = given.log_step - old.hold.step_gradient(first.rates, first.B, system.B)
        log_step = new.hold.step_gradient(carried.rates, carried.B, reduction.system.B)
        log_step = log_step + participation(system, reduction) @ beyond
        return self._tensors(_Parts(poles, log_step, B, carried.C * self.output_gain))

    def carry_second(
        self, values: Mapping[str, Array], reduction: Reduction, moments: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return second moments by squared coefficients and squared derivatives."""
        old, new = self._parts(values), self._parts({**values, **self.rewrite(values, reduction)})
        system, given = self.read(values), self._parts(self._completed(moments, values))
        rates, B = old.hold.system_squares(given.poles, given.B)
        second = Moments(rates, B, given.C / self.output_gain**2)
        carried = carry_second_moments(system, reduction, second)
        poles, B = new.hold.pole_squares(carried.rates, carried.B)
        # terms of the sum over inputs are correlated; the old states say how much
        expected = old.hold.step_squares(second.rates, second.B, system.B)
        ratio = np.divide(given.log_step, expected, out=np.zeros(system.n), where=expected > 0)
        log_step = new.hold.step_squares(carried.rates, carried.B, reduction.system.B)
        log_step = log_step * (participation(system, reduction) @ ratio)
        return self._tensors(_Parts(poles, log_step, B, carried.C * self.output_gain**2))

    def _parts(self, values: Mapping[str, Array]) -> _Parts:
        poles = values["Lambda_re"] + 1j * values["Lambda_im"]
        return _Parts(poles, values["log_step"], as_complex(values["B"]), as_complex(values["C"]))

    def _held(self, poles: Tensor, log_step: Tensor, B: Tensor, C: Tensor) -> SystemTensors:
        """Return the system in discrete time of poles, steps, B in pairs and complex C."""
        rates = poles * log_step.exp()
        B = torch.view_as_complex(B.contiguous()) * held_input(poles, rates)[:, None]
        return SystemTensors(rates, B, self.output_gain * C, True, "real")

    def _tensors(self, parts: _Parts) -> dict[str, Array]:
        return {
            "Lambda_re": parts.poles.real,
            "Lambda_im": parts.poles.imag,
            "log_step": parts.log_step,
            "B": as_real(parts.B),
            "C": as_real(parts.C),
        }

    def _written(self, system: DiagonalSystem, rates: Array, log_step: Array) -> dict[str, Array]:
        """Return the tensors with given rates and steps and the matrices of a system."""
        hold = ZeroOrderHold(rates / np.exp(log_step), np.exp(log_step))
        B, C = system.B / hold.hold[:, None], system.C / self.output_gain
        return self._tensors(_Parts(hold.poles, log_step, B, C))

    def _feedthrough(self, D: Array) -> Array:
        return np.diag(D)

    def _check_writable(self, system: DiagonalSystem) -> None:
        check_writable(system, "An S5 layer", self.tensor("D").shape[0])

    def _completed(self, moments: Mapping[str, Array], values: Mapping[str, Array]) -> dict[str, Array]:
        """Return the moments with zeros for tensors that have none."""
        return {name: moments.get(name, np.zeros_like(values[name])) for name in self.state_axes}

    def _refuse_unstable(self, values: Mapping[str, Array]) -> None:
        refuse_unstable(self._parts(values).poles, type(self.layer).__qualname__, "Lambda")


class S5PytorchAdapter(S5Adapter):
    """Adapter of ``S5SSM`` of the package s5-pytorch, ``y = Re(C x) + D u``, also in both directions.

    A bidirectional layer is one system whose outputs are those of both directions, reduced together: the layer's
    error is at most sqrt(2) times the bound of that system.
    """

    state_axes: ClassVar[Mapping[str, int]] = {"Lambda": 0, "log_step": 0, "B": 0, "C": 1}
    output_gain = 1.0

    @classmethod
    def refusal(cls, layer: nn.Module) -> str:
        """Return why a layer is no plain diagonal system."""
        discretize = getattr(getattr(layer, "discretize", None), "__name__", "discretize_zoh")
        settings = {
            "liquid=True, whose poles move with the input": getattr(layer, "liquid", False),
            'bcInit="factorized", whose B and C are products': getattr(layer, "bcInit", "") == "factorized",
            "degree above 1, which raises the entries of B to a power": getattr(layer, "degree", 1) != 1,
            "a discretisation other than the zero-order hold": discretize != "discretize_zoh",
        }
        return ", ".join(what for what, is_so in settings.items() if is_so)

    @property
    def _bidirectional(self) -> bool:
        return bool(getattr(self.layer, "bidir", False))

    def tensors_of_system(self) -> SystemTensors:
        """Return rates and matrices as in `read`, differentiable."""
        poles, C = (self.tensor(x).to(torch.complex128) for x in ("Lambda", "C"))
        C = torch.cat(C.chunk(2, dim=1)) if self._bidirectional else C
        return self._held(poles, self.tensor("log_step").double(), self.tensor("B").double(), C)

    def states_on(self, name: str, shape: tuple[int, ...]) -> int:
        """Return how many states a tensor of this shape carries: C has those of both directions."""
        states = super().states_on(name, shape)
        return states // 2 if name == "C" and self._bidirectional else states

    def entries(self, name: str, kept: Array) -> Array:
        """Return the places of some states, in C for both directions."""
        return np.concatenate([kept, self.states + kept]) if name == "C" and self._bidirectional else kept

    def _parts(self, values: Mapping[str, Array]) -> _Parts:
        C = values["C"]
        if self._bidirectional:
            C = np.vstack(np.split(C, 2, axis=1))
        return _Parts(values["Lambda"], values["log_step"], as_complex(values["B"]), C)

    def _tensors(self, parts: _Parts) -> dict[str, Array]:
        C = np.hstack(np.split(parts.C, 2)) if self._bidirectional else parts.C
        return {"Lambda": parts.poles, "log_step": parts.log_step, "B": as_real(parts.B), "C": C}

    def _feedthrough(self, D: Array) -> Array:
        return np.vstack([np.diag(D), np.zeros((len(D), len(D)))]) if self._bidirectional else np.diag(D)

    def _check_writable(self, system: DiagonalSystem) -> None:
        if self._bidirectional:
            channels = self.tensor("D").shape[0]
            if system.p != 2 * channels or np.any(system.D[channels:] != 0):
                raise InputError(
                    f"The system must have {2 * channels} outputs, those of both directions, and no feedthrough to the "
                    f"second half; got {system.p} outputs."
                )
            forward = DiagonalSystem(
                system.lam, system.B, system.C[:channels], system.D[:channels], dt=system.dt, output=system.output
            )
            return check_writable(forward, "An S5 layer", channels)
        super()._check_writable(system)
