"""Layers that are diagonal linear systems, told by a map and its inverse.

A family says how its tensors make a system, how a system makes its tensors, and which tensors carry states. Reading,
penalties, writing, reduced tensors and checks follow here, moments of optimizers in `transport`. Every layer is a bank
of systems for this, one that is a single system a bank of one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from operator import attrgetter
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

import hankelred as hr
from hankelred import DiagonalBank, DiagonalSystem, Reduction
from hankelred.checks import Array, check_result
from hankelred.errors import InputError, StabilityError
from hankelred.training import align_states
from hankelred.weighting import Sampled

from ..layer_sums import StateStatistics
from .analysis import Analysis, LinearAnalysis
from .base import Adapter, SystemTensors
from .holding import systems_to_hold
from .transport import (
    Differentiated,
    Filled,
    Transport,
    as_arrays,
    as_tensors,
    as_tuple,
    feedthrough_tensors,
    inverse_at,
    row_factors,
    unwrapped,
)

# A pole at 0 has no rate. exp(-80) = 2e-35 is 0 beside any other pole and normal in float32.
LARGEST_RATE = 80.0


class LinearAdapter(Adapter):
    """Adapter of a layer that is one diagonal linear system, or a bank of them; subclass it for a family of your own.

    A subclass names the tensors and gives two methods, `system` and `tensors`. The guide "Write an adapter" does it for
    a layer of other people.

    Parameters
    ----------
    layer : torch.nn.Module
        The layer to adapt.

    Attributes
    ----------
    state_axes : mapping of str to int
        Every tensor that carries states, and on which axis.
    parts : mapping of str to tuple of str
        Which of them hold the poles, B and C, by the keys ``"rates"``, ``"B"`` and ``"C"``: one tensor, complex or with
        a last axis of real and imaginary parts, or two, the real part first. No key for a matrix that is constant.
        Tensors in no part are gauge: they follow from no system, such as a gain that multiplies B, and reduced states
        get weighted means of theirs.
    constants : tuple of str
        Further tensors that the system is read from, such as D.
    is_bank : bool
        Whether `read` returns a bank, one system per channel, or its only system.
    output : {"real", "complex"}
        Whether the layer puts out ``Re(C x) + D u`` or ``C x + D u``.
    dt : float or bool
        True; 0 where a layer has no system in discrete time, and rates are poles in continuous time.

    Raises
    ------
    InputError
        As for `Adapter`.

    Examples
    --------
    >>> import torch, hankelred_torch as ht
    >>> class Decays(torch.nn.Module):  # y = Re(C x), x' = -exp(log_decay) x + u
    ...     def __init__(self, states):
    ...         super().__init__()
    ...         self.log_decay = torch.nn.Parameter(torch.randn(states))
    ...         self.C = torch.nn.Parameter(torch.randn(1, states))
    >>> class DecaysAdapter(ht.adapters.LinearAdapter):
    ...     state_axes = {"log_decay": 0, "C": 1}
    ...     parts = {"rates": ("log_decay",), "C": ("C",)}
    ...     def system(self, t):
    ...         rates = -t["log_decay"].exp()
    ...         return rates[None], torch.ones_like(rates)[None, :, None], t["C"][None]
    ...     def tensors(self, rates, B, C, like):
    ...         return {"log_decay": (-rates[0].real).log(), "C": (C[0] * B[0, :, 0]).real}
    >>> ht.register_adapter(Decays, DecaysAdapter)
    >>> ht.read_system(Decays(8)).n
    8
    """

    kind = "lti"
    parts: ClassVar[Mapping[str, tuple[str, ...]]]
    is_bank: ClassVar[bool] = False
    output: ClassVar[Literal["complex", "real"]] = "real"

    @abstractmethod
    def system(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return what the tensors of a layer make, in operations of torch.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            Those of `state_axes` and `constants`, in double precision.

        Returns
        -------
        rates, B, C[, D] : (b, n), (b, n, m), (b, p, n) and (b, p, m) Tensor
            Logarithms of the poles, ``x_t = exp(rates) x_{t-1} + B u_t``, and the output ``C x_t + D u_t`` or its real
            part, for every system of a bank; b is 1 where the layer is one system.
        """

    @abstractmethod
    def tensors(self, rates: Tensor, B: Tensor, C: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors that make systems, the inverse of `system`.

        Parameters
        ----------
        rates, B, C : (b, n), (b, n, m) and (b, p, n) Tensor
            As `system` returns them, with any n; rates with imaginary parts of any number of turns.
        like : mapping of str to Tensor
            Constants of the layer, and its gauge tensors for these states.

        Returns
        -------
        dict of str to Tensor
            Those named in `parts`.
        """

    def normal(self, rates: Tensor) -> dict[str, Tensor]:
        """Return the values that gauge tensors have by nature for states with these rates; by default none.

        Parameters
        ----------
        rates : (b, n) Tensor
            As `system` returns them.

        Returns
        -------
        dict of str to Tensor
            Reduced states get these plus a weighted mean of what the old states had besides.
        """
        return {}

    @property
    def dt(self) -> float | bool:
        """Sampling time of the systems, 0 if their rates are poles in continuous time."""
        return True

    def unshared(self) -> dict[str, Tensor] | None:
        """Return tensors of channels that share nothing, where channels share poles, for `check`; None if not known."""
        return None

    @property
    def held(self) -> tuple[str, ...]:
        """Names of the tensors that `tensors` returns."""
        return tuple(name for names in self.parts.values() for name in names)

    @property
    def gauge(self) -> tuple[str, ...]:
        """Names of the tensors with states that no system determines."""
        return tuple(name for name in self.state_axes if name not in self.held)

    def matrices(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what `system` returns by name, with a feedthrough.

        Parameters
        ----------
        tensors : mapping of str to torch.Tensor
            Tensors of the layer, by name.

        Returns
        -------
        dict of str to torch.Tensor
            rates (b, n), B (b, n, m), C (b, p, n), D (b, p, m).

        Raises
        ------
        InputError
            If shapes do not fit each other.
        """
        what = f"{type(self).__name__} must fit the tensors of {type(self.layer).__qualname__}"
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items())
        todo = "Register an adapter that fits this class."
        try:
            rates, B, C, *more = self.system(tensors)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise InputError(f"{what}, {shapes}; got from its system: {error} {todo}") from error
        D = more[0] if more else B.new_zeros(len(B), C.shape[-2], B.shape[-1], dtype=torch.float64)
        b, n, m, p = len(rates), rates.shape[-1], B.shape[-1], C.shape[-2]
        found = [tuple(x.shape) for x in (rates, B, C, D)]
        if found != [(b, n), (b, n, m), (b, p, n), (b, p, m)]:
            raise InputError(f"{what}, {shapes}; got rates, B, C and D of shapes {found} from its system. {todo}")
        return {"rates": rates, "B": B, "C": C, "D": D}

    def bank(self, values: Mapping[str, Array]) -> DiagonalBank:
        """Return the systems that tensors of these values make, by rates where time is discrete.

        Parameters
        ----------
        values : mapping of str to ndarray
            Tensors of the layer, by name.

        Returns
        -------
        DiagonalBank
            Also where there is one system.

        Raises
        ------
        NumericalError
            If its entries overflow, or a pole is 0 that must have a rate.
        """
        with torch.no_grad():
            found = as_arrays(self.matrices(as_tensors(values)))
        check_result(f"The system of a {type(self.layer).__qualname__} layer", *found.values(), hint="Is a pole 0?")
        make = DiagonalBank if self.dt == 0 else DiagonalBank.from_rates
        return make(*found.values(), dt=self.dt, output=self.output)

    def read(self, values: Mapping[str, Array]) -> DiagonalSystem | DiagonalBank:
        """Return the system, or the bank of systems, as `Adapter.read` documents it."""
        bank = self.bank(values)
        return bank if self.is_bank else bank[0]

    def tensors_of_system(self) -> SystemTensors:
        """Return the systems of the layer now, differentiable, as `Adapter.tensors_of_system` documents it."""
        found = self._wide()
        return SystemTensors(found["rates"], found["B"], found["C"], self.dt, self.output)

    def hankel_singular_values(self, values: Mapping[str, Array]) -> Array:
        """Return those of the system, (k,), or of every system of a bank, (channels, k); all must be stable."""
        bank = self._stable_bank(values)
        return hr.hankel_singular_values(bank if self.is_bank else bank[0])

    def state_bytes(self, states: int) -> int:
        """Return the memory of complex states, of all systems, as `Adapter.state_bytes` documents it."""
        tensor: Tensor = attrgetter(next(iter(self.state_axes)))(self.layer)
        return 2 * (tensor.shape[0] if self.is_bank else 1) * states * tensor.real.element_size()

    def statistics(self) -> StateStatistics | None:
        """Return empty sums over the states; None in continuous time, where a layer is a kernel without inputs."""
        if self.dt == 0:
            return None
        with torch.no_grad():
            return StateStatistics(self.states, len(self._wide()["rates"]))

    def sequence(self, u: Tensor | None, named: Mapping[str, Any]) -> Tensor:
        """Return the inputs of a call, (batch, length, channels)."""
        u = super().sequence(u, named)
        held = {k: x for k, x in named.items() if isinstance(x, (Tensor, tuple, list)) and x is not u}
        handed = [name for name in held if "state" in name]
        if handed:
            raise InputError(f"The layer must run from rest; got {handed[0]}. What it remembers is not seen.")
        systems, _, m = self._wide()["B"].shape
        u = u[None] if u.ndim == 2 else u
        if u.ndim == 3 and u.shape[2] != systems * m and u.shape[1] == systems * m:
            u = u.mT
        if u.ndim != 3 or u.shape[2] != systems * m or u.is_complex():
            raise InputError(
                f"{type(self.layer).__qualname__} must be called with real sequences of {systems * m} channels; got "
                f"{tuple(u.shape)}, {u.dtype}."
            )
        return u

    def observe(self, statistics: StateStatistics, u: Tensor, mask: Tensor | None, normed: Tensor | None) -> None:
        """Add the states of a call of the layer to its sums."""
        found = self._wide()
        statistics.update(found["rates"], found["B"], u, mask)

    def _wide(self) -> dict[str, Tensor]:
        """Return the matrices of the layer now in double precision."""
        tensors = {name: x for name, (*_, x) in self.places((*self.state_axes, *self.constants)).items()}
        wide = {name: x.to(torch.complex128 if x.is_complex() else torch.float64) for name, x in tensors.items()}
        return self.matrices(wide)

    def analyse(
        self, values: Mapping[str, Array], statistics: StateStatistics | None = None, *, from_next_step: bool = False
    ) -> Analysis:
        """Return the analysis by balanced truncation, weighed by states that were seen or white noise would drive."""
        bank = self._stable_bank(values)
        if from_next_step:  # D is to hold what states answer to an input in its own step
            bank = bank.with_(C=bank.C * bank.lam[:, None, :])
        weighting = Sampled(states=statistics.sums) if statistics is not None and statistics.seen else None
        return LinearAnalysis(bank, lambda reductions: self._aligned(bank, values, reductions), weighting)

    def _aligned(self, bank: DiagonalBank, values: Mapping[str, Array], reductions: tuple[Reduction, ...]) -> Any:
        """Return reductions of all systems in coordinates that suit the layer: norms are compared as B is stored."""
        systems, factors = tuple(bank), dict[bool, Array]()
        if names := self.parts.get("B"):
            before = inverse_at(self, {"rates": self._rates_of(bank), "B": bank.B, "C": bank.C}, values)
            after, _ = self._inverse_of(values, reductions)
            factors = {True: row_factors(before, names), False: row_factors(after, names)}

        def stored_rows(k: int) -> Any:
            return None if not factors else lambda x: factors[x is systems[k]][k, : x.n]

        found = tuple(align_states(x, reductions[k], stored_rows(k)) for k, x in enumerate(systems))
        return found if self.is_bank else found[0]

    def rewrite(self, values: Mapping[str, Array], reduction: Any) -> dict[str, Array]:
        """Return the tensors after a reduction, with phases per step and gauge of the states they came from.

        Those of the feedthrough are among them where the reduction has changed it.
        """
        reductions = as_tuple(reduction)
        inverse, gauge = self._inverse_of(values, reductions)
        changed = any(not np.array_equal(x.system.D, x.original.D) for x in reductions)
        D = feedthrough_tensors(self, np.stack([x.system.D for x in reductions]), values) if changed else {}
        return as_arrays(inverse.outputs) | gauge | D

    def _inverse_of(
        self, values: Mapping[str, Array], reductions: tuple[Reduction, ...]
    ) -> tuple[Differentiated, dict[str, Array]]:
        """Return `tensors` at the reduced systems, and the gauge tensors of their states."""
        filled, old = Filled(reductions), np.stack([self._rates_of(x.original) for x in reductions])
        rates, B, C = filled.systems(self._rates_of, None if self.dt == 0 else old.imag)
        gauge = self._gauge(values, old, rates, filled.mean_of)
        return inverse_at(self, {"rates": rates, "B": B, "C": C}, {**values, **gauge}), gauge

    def write(self, system: Any) -> dict[str, Array]:
        """Return the tensors that make a system; with another number of states, all get the mean gauge of the old ones.

        Parameters
        ----------
        system : DiagonalSystem, DiagonalBank or sequence of DiagonalSystem
            Stable, as `read` returns it, with any number of states; in a sequence, every system with its own.

        Returns
        -------
        dict of str to ndarray
            For every name in `state_axes` and for those constants that hold the feedthrough.

        Raises
        ------
        InputError
            If it is no such system, is not stable, or has inputs, outputs or a feedthrough that the layer cannot hold.
        """
        bank = self.bank(values := self.values())
        systems = systems_to_hold(self, system, bank)
        n = max(1, *(x.n for x in systems))
        # states that fill up have no output
        shapes = (len(systems), n), (len(systems), n, bank.m), (len(systems), bank.p, n)
        rates, B, C = (np.full(shape, x, complex) for shape, x in zip(shapes, (-1.0, 1.0, 0.0), strict=True))
        for k, x in enumerate(systems):
            rates[k, : x.n], B[k, : x.n], C[k, :, : x.n] = self._rates_of(x), x.B, x.C
        rates = rates if self.dt == 0 else unwrapped(rates, np.zeros(rates.shape))
        gauge = self._gauge(
            values, self._rates_of(bank), rates, lambda x: x if n == bank.n else x.mean(-1, keepdims=True).repeat(n, -1)
        )
        D = feedthrough_tensors(self, np.stack([x.D for x in systems]), values)
        inverse = inverse_at(self, {"rates": rates, "B": B, "C": C}, {**values, **gauge})
        return as_arrays(inverse.outputs) | gauge | D

    def carry_first(
        self, values: Mapping[str, Array], reduction: Any, moments: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return first moments through the map, the change of basis and the inverse, as in `Adapter.carry_first`."""
        return self.transport(values, reduction).first(moments)

    def carry_second(
        self, values: Mapping[str, Array], reduction: Any, moments: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return second moments by the squares of the same slopes, as in `Adapter.carry_second`."""
        return self.transport(values, reduction).second(moments)

    def transport(
        self, values: Mapping[str, Array], reduction: Any, written: Mapping[str, Array] | None = None
    ) -> Transport:
        """Return the way of all moments through one reduction; the new tensors may be given."""
        new = self.rewrite(values, reduction) if written is None else written
        return Transport(self, dict(values), dict(new), as_tuple(reduction))

    def pad(self, values: Mapping[str, Array], states: int, *, read: bool = False) -> dict[str, Array]:
        """Return the tensors with further states, without input and output, or without input."""
        padded, n = {}, self.states
        places = np.arange(states) % n if read else np.minimum(np.arange(states), n - 1)
        into, out = (self.parts.get(x, ()) for x in "BC")
        zeroed = into if read and into else (*into, *out)
        for name, axis in self.state_axes.items():
            entries = self.entries(name, places)
            padded[name] = values[name].take(entries, axis)
            if name in zeroed:
                added = np.tile(np.arange(states) >= n, len(entries) // states)
                np.moveaxis(padded[name], axis, 0)[added] = 0
        return padded

    def _rates_of(self, system: DiagonalSystem | DiagonalBank) -> Array:
        """Return what `system` calls rates, with a limit for discrete poles at 0."""
        if not system.is_discrete:
            return system.spectrum.values().astype(complex)
        rates = system.rates
        if rates is None:
            with np.errstate(divide="ignore"):
                rates = np.log(system.lam.astype(complex))
        return np.maximum(rates.real, -LARGEST_RATE) + 1j * rates.imag

    def _gauge(self, values: Mapping[str, Array], old: Array, new: Array, mean: Any) -> dict[str, Array]:
        """Return the gauge tensors of states with new rates: what is normal for them, and as far from it as it was."""
        normal = [self.normal(torch.from_numpy(x)) for x in (old, new)] if self.gauge else []
        found = as_arrays({(k, name): x for k, tensors in enumerate(normal) for name, x in tensors.items()})
        return {x: found.get((1, x), 0.0) + mean(values[x] - found.get((0, x), 0.0)) for x in self.gauge}

    def _stable_bank(self, values: Mapping[str, Array]) -> DiagonalBank:
        bank = self.bank(values)
        excess = bank.spectrum.excess(bank.is_discrete)
        bad = int(np.sum(~(excess < 0)))
        if bad:
            raise StabilityError(
                f"The poles of {type(self.layer).__qualname__} must have negative real parts to be reduced; got {bad} "
                f"of {excess.size} without, {excess.max():.3g} beyond the boundary. Nothing in this layer keeps them "
                f"stable: lower the learning rate of {' and '.join(self.parts['rates'])}, or clamp its real part after "
                f"each step."
            )
        return bank
