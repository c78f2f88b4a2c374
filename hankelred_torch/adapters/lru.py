"""Adapter of the linear recurrent unit: a diagonal system with real output, stored by logarithms.

``lam = exp(-exp(nu_log) + i exp(theta_log))``, ``x_t = lam x_{t-1} + exp(gamma_log) (B_re + i B_im) u_t`` and
``y_t = Re((C_re + i C_im) x_t) + D u_t``. Parameters are read in double precision before they are exponentiated:
rates, not poles, are the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch

from hankelred import DiagonalSystem, Reduction
from hankelred.checks import Array
from hankelred.errors import StabilityError
from hankelred.training import Moments, align_states, carry_first_moments, carry_second_moments

from .base import SystemTensors
from .systems import STALENESS, SystemAdapter, check_writable, participation, rates_of

# A positive real pole has phase 0, which the logarithm cannot hold. The floor moves the pole by 1e-12 of itself,
# below double precision of most rates, and keeps it there: the gradient of theta_log is theta times that of theta.
THETA_FLOOR = 1e-12


class LRUAdapter(SystemAdapter):
    """Adapter of `hankelred_torch.layers.LRU` and of layers with the same tensors."""

    kind = "lti"
    state_axes: ClassVar[Mapping[str, int]] = {
        "nu_log": 0,
        "theta_log": 0,
        "gamma_log": 0,
        "B_re": 0,
        "B_im": 0,
        "C_re": 1,
        "C_im": 1,
    }
    constants = ("D",)

    def read(self, values: Mapping[str, Array]) -> DiagonalSystem:
        """Return the system ``(lam, gamma B, C, diag(D))`` with its rates."""
        decay = np.exp(values["nu_log"])
        if np.any(decay == 0):
            raise StabilityError(
                f"nu_log must be above -745, where exp(nu_log) is 0 and |lam| is 1; got {values['nu_log'].min():.4g}."
            )
        rates = -decay + 1j * np.exp(values["theta_log"])
        B = np.exp(values["gamma_log"])[:, None] * (values["B_re"] + 1j * values["B_im"])
        C = values["C_re"] + 1j * values["C_im"]
        return DiagonalSystem.from_rates(rates, B, C, np.diag(values["D"]), dt=True, output="real")

    def tensors_of_system(self) -> SystemTensors:
        """Return rates and matrices as in `read`, differentiable."""
        names = ("nu_log", "theta_log", "gamma_log", "B_re", "B_im", "C_re", "C_im")
        nu_log, theta_log, gamma_log, *matrices = (self.tensor(name).double() for name in names)
        B, C = torch.complex(*matrices[:2]), torch.complex(*matrices[2:])
        rates = torch.complex(-nu_log.exp(), theta_log.exp())
        return SystemTensors(rates, gamma_log.exp()[:, None] * B, C, True, "real")

    def write(self, system: DiagonalSystem) -> dict[str, Array]:
        """Return the tensors of a system; gamma normalises the state to a white input, as at initialisation."""
        check_writable(system, "An LRU", self.tensor("D").shape[0])
        decay, phase = _decay_and_phase(system)
        gamma = _normaliser(decay)
        B = system.B / gamma[:, None]
        return {
            "nu_log": np.log(decay),
            "theta_log": np.log(phase),
            "gamma_log": np.log(gamma),
            "B_re": B.real,
            "B_im": B.imag,
            "C_re": system.C.real,
            "C_im": system.C.imag,
            "D": np.diag(system.D),
        }

    def rewrite(self, values: Mapping[str, Array], reduction: Reduction) -> dict[str, Array]:
        """Return the tensors after a reduction, gamma as far from its normal value as training had moved it.

        Only the product of gamma and B counts for the system. A state that is kept as it is keeps both.
        """
        result = super().rewrite(values, reduction)
        moved = values["gamma_log"] - np.log(_normaliser(np.exp(values["nu_log"])))
        gain = participation(self.read(values), reduction) @ moved
        result["gamma_log"] += gain
        result["B_re"] /= np.exp(gain)[:, None]
        result["B_im"] /= np.exp(gain)[:, None]
        return result

    def align(self, system: DiagonalSystem, reduction: Reduction) -> Reduction:
        """Return the reduction in coordinates where B over gamma and C keep the proportion they had."""
        return align_states(system, reduction, lambda x: 1.0 / _normaliser(_decay_and_phase(x)[0]))

    def carry_first(
        self, values: Mapping[str, Array], reduction: Reduction, moments: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return first moments through the chain rule of the logarithms and the map of the bases."""
        system, new = self.read(values), self.rewrite(values, reduction)
        old_chain, new_chain = _Chain(values), _Chain(new)
        first = old_chain.gradient(_completed(moments, values))
        carried = carry_first_moments(system, reduction, first, staleness=STALENESS)
        if any(name not in moments for name in ("B_re", "B_im", "C_re", "C_im")):
            # without the moments of B and C nothing is known of the off-diagonal ones: the diagonal has to do
            alone = Moments(first.rates, np.zeros_like(first.B), np.zeros_like(first.C))
            rates = carry_first_moments(system, reduction, alone, staleness=STALENESS).rates
            carried = carried._replace(rates=rates)
        result = new_chain.parameters(carried)
        # gamma_log has no gradient of its own, g_gamma = Re sum(conj(g_B) B); what its average has beyond that,
        # because B moved meanwhile, goes with the states
        if "gamma_log" in moments:
            beyond = moments["gamma_log"] - old_chain.gamma_gradient(first.B)
            result["gamma_log"] += participation(system, reduction) @ beyond
        return result

    def carry_second(
        self, values: Mapping[str, Array], reduction: Reduction, moments: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return second moments by squared coefficients and squared derivatives of the logarithms."""
        system, new = self.read(values), self.rewrite(values, reduction)
        old_chain, new_chain = _Chain(values), _Chain(new)
        second = old_chain.squares(_completed(moments, values))
        carried = carry_second_moments(system, reduction, second)
        result = new_chain.square_parameters(carried)
        if "gamma_log" in moments:
            # terms of the sum over inputs are correlated; the old states say how much
            expected = old_chain.gamma_squares(second.B)
            ratio = np.divide(moments["gamma_log"], expected, out=np.zeros(system.n), where=expected > 0)
            result["gamma_log"] *= participation(system, reduction) @ ratio
        return result


class _Chain:
    """The chain rule between the tensors of a layer and its system ``(rates, B, C)``."""

    def __init__(self, values: Mapping[str, Array]) -> None:
        self.decay, self.phase, self.gamma = (np.exp(values[x]) for x in ("nu_log", "theta_log", "gamma_log"))
        self.B = self.gamma[:, None] * (values["B_re"] + 1j * values["B_im"])

    def gradient(self, tensors: Mapping[str, Array]) -> Moments:
        """Return the gradient of the system from that of the tensors; gamma_log adds nothing to it."""
        rates = -tensors["nu_log"] / self.decay + 1j * tensors["theta_log"] / self.phase
        B = (tensors["B_re"] + 1j * tensors["B_im"]) / self.gamma[:, None]
        return Moments(rates, B, tensors["C_re"] + 1j * tensors["C_im"])

    def parameters(self, system: Moments) -> dict[str, Array]:
        """Return the gradient of the tensors from that of the system."""
        B = self.gamma[:, None] * system.B
        return {
            "nu_log": -self.decay * system.rates.real,
            "theta_log": self.phase * system.rates.imag,
            "gamma_log": self.gamma_gradient(system.B),
            "B_re": B.real,
            "B_im": B.imag,
            "C_re": system.C.real,
            "C_im": system.C.imag,
        }

    def squares(self, tensors: Mapping[str, Array]) -> Moments:
        """Return second moments of the system from those of the tensors."""
        rates = tensors["nu_log"] / self.decay**2 + 1j * tensors["theta_log"] / self.phase**2
        B = (tensors["B_re"] + 1j * tensors["B_im"]) / self.gamma[:, None] ** 2
        return Moments(rates, B, tensors["C_re"] + 1j * tensors["C_im"])

    def square_parameters(self, system: Moments) -> dict[str, Array]:
        """Return second moments of the tensors from those of the system."""
        B = self.gamma[:, None] ** 2 * system.B
        return {
            "nu_log": self.decay**2 * system.rates.real,
            "theta_log": self.phase**2 * system.rates.imag,
            "gamma_log": self.gamma_squares(system.B),
            "B_re": B.real,
            "B_im": B.imag,
            "C_re": system.C.real,
            "C_im": system.C.imag,
        }

    def gamma_gradient(self, B: Array) -> Array:
        """Return ``Re sum(conj(g_B) B)`` over the inputs."""
        return np.sum(B.real * self.B.real + B.imag * self.B.imag, axis=1)

    def gamma_squares(self, B: Array) -> Array:
        """Return the mean square of that sum for uncorrelated terms."""
        return np.sum(B.real * self.B.real**2 + B.imag * self.B.imag**2, axis=1)


def _decay_and_phase(system: DiagonalSystem) -> tuple[Array, Array]:
    """Return ``-log|lam|`` and ``arg lam`` in (0, 2 pi], what the logarithms nu_log and theta_log are taken of."""
    rates = rates_of(system)
    return -rates.real, np.maximum(np.mod(rates.imag, 2 * np.pi), THETA_FLOOR)


def _normaliser(decay: Array) -> Array:
    """Return ``gamma = sqrt(1 - |lam|^2)``, from the decay rate."""
    return np.sqrt(-np.expm1(-2 * decay))


def _completed(moments: Mapping[str, Array], values: Mapping[str, Array]) -> dict[str, Array]:
    """Return the moments with zeros for tensors that have none."""
    return {name: moments.get(name, np.zeros_like(values[name])) for name in LRUAdapter.state_axes}
