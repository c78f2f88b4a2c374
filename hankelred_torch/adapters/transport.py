"""What a cut does to moments of optimizers, from a layer's map and its inverse alone.

With ``s = system(p)`` and ``p = tensors(s)``, the transposed Jacobian of `tensors` makes a gradient by the system of
one by the tensors, `hankelred.training` carries it over to the reduced system, and the transposed Jacobian of `system`
makes a gradient by the new tensors of that. Second moments take the squares of the same slopes: every entry of a tensor
touches one entry of its own part of the system. Real and imaginary parts go to where they came from; phases of slopes
are left out, and what poles do through B counts as theirs.

Gauge tensors have no gradient of their own. What their averages have beyond the one that follows from the system goes
with the states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from hankelred import DiagonalSystem, Reduction
from hankelred.checks import Array
from hankelred.errors import InputError
from hankelred.systems import real_output
from hankelred.training import Moments, carry_first_moments, carry_second_moments

if TYPE_CHECKING:
    from .linear import LinearAdapter

K = TypeVar("K")

# Squares below this lose digits in float32, and with them their ratio to first moments.
SMALLEST_SQUARE = 1.2e-38


class Differentiated:
    """A map from named tensors to named tensors at one place, and products of its transposed Jacobian.

    Gradients follow the convention of `hankelred.training` and of torch, ``dL/dRe + i dL/dIm``.
    """

    def __init__(self, function: Callable[[dict[str, Tensor]], dict[str, Tensor]], at: Mapping[str, Array]) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            self.inputs = {name: x.requires_grad_() for name, x in as_tensors(at).items()}
            self.outputs = function(self.inputs)

    def pull(self, gradient: Mapping[str, Array]) -> dict[str, Array]:
        """Return the gradient by every input, from that by some outputs."""
        given = [(self.outputs[name], x) for name, x in gradient.items() if self.outputs[name].requires_grad]
        if not given:
            return {name: np.zeros(x.shape) for name, x in self.inputs.items()}
        outputs = [y for y, _ in given]
        cotangents = [torch.from_numpy(np.array(x if y.is_complex() else np.real(x))).to(y.dtype) for y, x in given]
        found = torch.autograd.grad(
            outputs, list(self.inputs.values()), cotangents, retain_graph=True, materialize_grads=True
        )
        return as_arrays(dict(zip(self.inputs, found, strict=True)))

    def push(self, name: str) -> dict[str, Array]:
        """Return the change of every output if all entries of one input change by 1.

        As the derivative of `pull` by what it is given, in which it is linear.
        """
        outputs = {key: y for key, y in self.outputs.items() if y.requires_grad}
        with torch.inference_mode(False), torch.enable_grad():
            given = [torch.zeros_like(y).requires_grad_() for y in outputs.values()]
            (pulled,) = torch.autograd.grad(
                list(outputs.values()), [self.inputs[name]], given, create_graph=True, materialize_grads=True
            )
            if not pulled.requires_grad:
                return {}
            found = torch.autograd.grad(pulled.sum(), given, materialize_grads=True)
        return as_arrays(dict(zip(outputs, found, strict=True)))


class Filled:
    """Reduced systems of a bank side by side, those with too few states filled up.

    A state that fills up has pole and inputs of a state that the system had and lost most of, and no output: it changes
    nothing, and training can bring it back.
    """

    def __init__(self, reductions: Sequence[Reduction]) -> None:
        self._originals, self._reduced = [x.original for x in reductions], [x.system for x in reductions]
        self.states = max((x.n for x in self._reduced), default=0)
        self._lost: list[Array] = []
        self._direct: list[Array] = []  # (states, old) weights of old states in every system's states
        self._mirrored: list[Array] = []
        for system, reduction in zip(self._originals, reductions, strict=True):
            direct, mirrored = participation(system, reduction)
            lost = np.argsort((direct + mirrored).sum(axis=0), kind="stable")[: self.states - len(direct)]
            self._lost.append(lost)
            self._direct.append(np.vstack([direct, np.eye(system.n)[lost]]))
            self._mirrored.append(np.vstack([mirrored, np.zeros((len(lost), system.n))]))

    def mean(self, old: Array, *, odd: bool = False) -> Array:
        """Return a weighted mean over the old states for every new one, (b, states) from (b, n).

        What is `odd` changes its sign in a state that stands for the conjugate of an old one, as phases do.
        """
        sign = -1.0 if odd else 1.0
        rows = zip(self._direct, self._mirrored, old, strict=True)
        return np.stack([(direct + sign * mirrored) @ row for direct, mirrored, row in rows])

    def mean_of(self, tensor: Array) -> Array:
        """Return the mean of a tensor with one number for every state of every system."""
        return self.mean(tensor.reshape(len(self._reduced), -1)).reshape(*tensor.shape[:-1], self.states)

    def systems(self, rates_of: Callable[[Any], Array], phases: Array | None = None) -> tuple[Array, Array, Array]:
        """Return rates (b, states), next to given phases of the old ones, B (b, states, m) and C (b, p, states)."""
        rates, B, _ = (self.stack(x) for x in zip(*((rates_of(x), x.B, x.C.T) for x in self._reduced), strict=True))
        C = self.stack([x.C.T for x in self._reduced])
        for k, (lost, x) in enumerate(zip(self._lost, self._reduced, strict=True)):
            if len(lost):
                rates[k, x.n :], B[k, x.n :] = rates_of(self._originals[k])[lost], self._originals[k].B[lost]
        rates = rates if phases is None else unwrapped(rates, self.mean(phases, odd=True))
        return rates, B, C.swapaxes(1, 2)

    def stack(self, parts: Sequence[Array]) -> Array:
        """Return arrays with their states first, one per system, stacked and filled up with zeros."""
        out = np.zeros((len(parts), self.states, *parts[0].shape[1:]), dtype=complex)
        for row, part in zip(out, parts, strict=True):
            row[: len(part)] = part
        return out


class Transport:
    """The way of moments from the tensors of a layer to those of the reduced one.

    Parameters
    ----------
    adapter : LinearAdapter
        Of the layer.
    values, new : mapping of str to ndarray
        Its tensors before and after the reduction.
    reductions : tuple of Reduction
        One per system.
    """

    def __init__(
        self,
        adapter: LinearAdapter,
        values: dict[str, Array],
        new: dict[str, Array],
        reductions: tuple[Reduction, ...],
    ) -> None:
        self._adapter, self._values, self._new, self._reductions = adapter, values, values | new, reductions
        self._filled = Filled(reductions)

    @cached_property
    def _old(self) -> dict[str, Array]:
        """The systems before the reduction."""
        return as_arrays(self._maps[0].outputs)

    @cached_property
    def _inverse(self) -> Differentiated:
        return inverse_at(self._adapter, {x: self._old[x] for x in ("rates", "B", "C")}, self._values)

    @cached_property
    def _maps(self) -> tuple[Differentiated, Differentiated]:
        """The map at the old and at the new tensors."""
        return tuple(Differentiated(self._adapter.matrices, x) for x in (self._values, self._new))  # type: ignore[return-value]

    def first(self, moments: Mapping[str, Array]) -> dict[str, Array]:
        """Return first moments of the new tensors; those of tensors that have none count as 0."""
        old_map, new_map = self._maps
        given = self._completed(moments)
        gradient = self._inverse.pull({name: given[name] for name in self._adapter.held})
        carried = self._carried(carry_first_moments, gradient)
        if any(name not in moments for part in ("B", "C") for name in self._adapter.parts.get(part, ())):
            # without the moments of B and C nothing is known of the off-diagonal ones: the diagonal has to do
            alone = {part: x if part == "rates" else np.zeros_like(x) for part, x in gradient.items()}
            carried["rates"] = self._carried(carry_first_moments, alone)["rates"]
        scale = self._scale
        carried["B"] = carried["B"] / scale.conj()[:, :, None]
        carried["C"] = carried["C"] * scale.conj()[:, None, :]
        found, explained = new_map.pull(carried), old_map.pull(gradient)
        for name in self._adapter.gauge:
            if name in moments:
                found[name] = found[name] + self._filled.mean_of(given[name] - explained[name])
        return {name: found[name] for name in self._adapter.state_axes}

    def second(self, moments: Mapping[str, Array]) -> dict[str, Array]:
        """Return estimates of second moments of the new tensors, not negative."""
        old_map, new_map = self._maps
        given = self._completed(moments)
        squares = {part: self._to_system(part, given) for part in self._adapter.parts}
        if "B" not in squares:  # only products with what C holds have a gradient
            factor = (self._old["C"].swapaxes(1, 2) / self._old["B"][:, :, :1]).conj()
            squares["B"] = scaled_squares(factor, squares["C"].swapaxes(1, 2)).sum(axis=2, keepdims=True)
            squares["B"] = np.broadcast_to(squares["B"], self._old["B"].shape)
        if "C" not in squares:
            squares["C"] = np.zeros(self._old["C"].shape)
        carried = self._carried(carry_second_moments, squares)
        carried["B"] = scaled_squares(1 / self._scale.conj()[:, :, None], carried["B"])
        carried["C"] = scaled_squares(self._scale.conj()[:, None, :], carried["C"])
        found: dict[str, Array] = {}
        for part in self._adapter.parts:
            found |= self._to_tensors(part, carried[part])
        for name in self._adapter.gauge:
            found[name] = _gauge_squares(new_map, name, carried)
            if name in moments and not moments.keys() >= {*self._adapter.held}:  # nothing to compare its own with
                found[name] = self._filled.mean_of(given[name])
            elif name in moments:  # terms of the sum over inputs are correlated; the old states say how much
                expected = _gauge_squares(old_map, name, squares)
                ratio = np.divide(given[name], expected, out=np.zeros_like(expected), where=expected > 0)
                found[name] = found[name] * self._filled.mean_of(ratio)
        return {name: found[name] for name in self._adapter.state_axes}

    def _completed(self, moments: Mapping[str, Array]) -> dict[str, Array]:
        return {name: moments.get(name, np.zeros_like(self._values[name])) for name in self._adapter.state_axes}

    def _carried(self, carry: Callable[..., Moments], moments: Mapping[str, Array]) -> dict[str, Array]:
        """Return moments of the reduced systems, from those of the old ones."""
        rows = zip(self._reductions, *(moments[x] for x in ("rates", "B", "C")), strict=True)
        found = [carry(reduction.original, reduction, Moments(*x)) for reduction, *x in rows]
        rates, B, C = (self._filled.stack(x) for x in zip(*((x.rates, x.B, x.C.T) for x in found), strict=True))
        return {"rates": rates, "B": B, "C": C.swapaxes(1, 2)}

    @cached_property
    def _scale(self) -> Array:
        """Factors on the states from the reduced systems to those that the new tensors make, (b, states)."""
        new = as_arrays(self._maps[1].outputs)
        _, B, C = self._filled.systems(lambda x: x.lam)
        by_B, by_C = np.sum(B.conj() * new["B"], axis=2), np.sum(new["C"].conj() * C, axis=1)
        rows, columns = np.sum(np.abs(B) ** 2, axis=2), np.sum(np.abs(new["C"]) ** 2, axis=1)
        scale = np.where(rows > 0, by_B / np.where(rows > 0, rows, 1), by_C / np.where(columns > 0, columns, 1))
        return np.where(scale == 0, 1.0, scale)

    def _to_system(self, part: str, squares: Mapping[str, Array]) -> Array:
        found = []
        old_map, _ = self._maps
        for name, unit in components(self._adapter.parts[part], self._values, old_map.outputs[part]):
            root = np.sqrt(np.real(squares[name] * np.conj(unit)))
            found.append(np.abs(self._inverse.pull({name: unit * root})[part]) ** 2)
        return found[0] + 1j * (found[1] if len(found) > 1 else 0.0)

    def _to_tensors(self, part: str, squares: Array) -> dict[str, Array]:
        """Return the squares of what the roots of the squares become, whatever their phase."""
        found = {name: np.zeros_like(self._new[name]) for name in self._adapter.parts[part]}
        _, new_map = self._maps
        where = components(self._adapter.parts[part], self._new, new_map.outputs[part])
        both = zip(where, (squares.real, squares.imag), strict=False)
        for (name, unit), x in both:
            real, imag = (new_map.pull({part: turn * np.sqrt(x)})[name] for turn in (1.0, 1j))
            size = np.abs(real) ** 2 if np.iscomplexobj(real) else real**2 + imag**2
            found[name] = found[name] + unit * size
        return found


def raised(
    carried: tuple[Mapping[str, Array], Mapping[str, Array]], before: tuple[Mapping[str, Array], Mapping[str, Array]]
) -> dict[str, Array]:
    """Carried second moments of a layer, raised to what its first moments allow.

    Averages m of a gradient and v of its square obey ``m^2 <= c^2 v`` entry by entry, with one c for all entries, 7.3
    for Adam as it comes. Two estimates carried by themselves need not: where v is 0 and m is not, a step of Adam is
    m / eps. Here c is the largest ratio of the layer before. Tensors of which only one of the two is kept, as by
    another optimizer, have no such ratio.

    Parameters
    ----------
    carried, before : pair of mappings of str to ndarray
        First and second moments by tensor name, for the new tensors and for the old ones.
    """
    both = before[0].keys() & before[1].keys()
    largest = 0.0
    for m, v in ((before[0][name], before[1][name]) for name in both):
        for x, y in ((m.real, v.real), (m.imag, v.imag)):
            sound = y > SMALLEST_SQUARE
            largest = max(largest, float(np.max(x[sound] ** 2 / y[sound], initial=0.0)))
    result = dict(carried[1])
    for name in both & result.keys() if largest > 0 else ():
        m, v = carried[0][name], result[name]
        result[name] = np.maximum(v.real, m.real**2 / largest)
        if np.iscomplexobj(v):
            result[name] = (result[name] + 1j * np.maximum(v.imag, m.imag**2 / largest)).astype(v.dtype)
    return result


def components(names: tuple[str, ...], values: Mapping[str, Array], part: Tensor) -> list[tuple[str, Any]]:
    """Return where real and imaginary part of a part of a system lie: a tensor each, and the direction within it."""
    if len(names) == 2:
        return [(name, 1.0) for name in names]
    x = values[names[0]]
    if np.iscomplexobj(x):
        return [(names[0], 1.0), (names[0], 1j)]
    if x.size == 2 * part.numel():  # a last axis of both
        return [(names[0], np.array([1.0, 0.0])), (names[0], np.array([0.0, 1.0]))]
    return [(names[0], 1.0)]


def _gauge_squares(system: Differentiated, name: str, squares: Mapping[str, Array]) -> Array:
    """Return the mean square of a gauge tensor's gradient for uncorrelated terms."""
    slopes = system.push(name)
    pulled = {}
    for part, x in squares.items():
        s = slopes.get(part, np.zeros(x.shape))
        size = np.abs(s) ** 2
        term = s.real**2 * x.real + s.imag**2 * x.imag
        pulled[part] = s * np.divide(term, size, out=np.zeros(size.shape), where=size > 0)
    return system.pull(pulled)[name]


def inverse_at(adapter: LinearAdapter, system: Mapping[str, Array], like: Mapping[str, Array]) -> Differentiated:
    """Return `tensors` as a map of rates, B and C, at systems."""
    fixed = as_tensors(like)
    return Differentiated(lambda s: adapter.tensors(s["rates"], s["B"], s["C"], fixed), system)


def held_feedthrough(adapter: LinearAdapter) -> Array:
    """Return which entries of the feedthrough a layer can hold, (b, p, m)."""
    made = Differentiated(adapter.matrices, adapter.values())
    found = [D != 0 for name in adapter.constants if (D := made.push(name).get("D")) is not None]
    return np.logical_or.reduce(found) if found else np.zeros(made.outputs["D"].shape, bool)


def feedthrough_tensors(adapter: LinearAdapter, D: Array, values: Mapping[str, Array]) -> dict[str, Array]:
    """Return the constants that make a feedthrough, each entry of which is one of theirs times a number."""
    made, found = Differentiated(adapter.matrices, values), {}
    for name in adapter.constants:
        size = made.pull({"D": made.push(name).get("D", np.zeros(D.shape))})[name]
        if size.any():
            found[name] = made.pull({"D": D})[name] / np.where(size == 0, 1.0, size)
    held = adapter.bank(dict(values) | found).D
    if not np.allclose(held, D, rtol=1e-12, atol=0):
        stored = ", ".join(f"{name} {x.shape}" for name, x in found.items()) or "no tensor"
        raise InputError(
            f"D must be one that {type(adapter.layer).__qualname__} can hold in {stored}, diagonal where that is one "
            f"factor per channel; got entries that differ from it by up to {np.abs(held - D).max():.3g}."
        )
    return found


def row_factors(inverse: Differentiated, names: tuple[str, ...]) -> Array:
    """Return by how much rows of B are larger in the tensors that hold it than in the systems, (b, n)."""
    held = as_arrays(inverse.outputs)
    name, unit = components(names, held, inverse.inputs["B"])[0]
    return np.abs(inverse.pull({name: unit * np.ones_like(held[name])})["B"])[..., 0]


def participation(system: DiagonalSystem, reduction: Reduction) -> Array:
    """Return how much of every new state stems from every old one and from its conjugate, (2, new, old); sums are 1."""
    n, new = system.n, reduction.system.n
    weight = np.abs(reduction.Ti * reduction.T.T)
    if not system.has_real_output:
        parts = np.stack([weight, np.zeros_like(weight)])
    else:
        stored = real_output.stored_states(new, reduction.order - new)
        parts = np.stack([weight[stored, :n], weight[stored, n:]])
    return parts / parts.sum(axis=(0, 2))[:, None]


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


def as_tuple(reduction: Any) -> tuple[Reduction, ...]:
    """Return the reductions of a bank, or the only one of a system, as a tuple."""
    return reduction if isinstance(reduction, tuple) else (reduction,)


def as_tensors(values: Mapping[str, Array]) -> dict[str, Tensor]:
    """Return arrays as tensors of their own."""
    return {name: torch.from_numpy(np.array(x)) for name, x in values.items()}


def as_arrays(tensors: Mapping[K, Tensor]) -> dict[K, Array]:
    """Return tensors as arrays."""
    return {name: x.detach().resolve_conj().resolve_neg().numpy() for name, x in tensors.items()}
