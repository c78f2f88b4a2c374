"""Layers whose matrices depend on their input: what a cut may lose, what it makes of their tensors and moments.

Which tensors carry states, and how, is written down as layouts; a cut maps their blocks, and averaged gradients go by
the contragredient maps.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hankelred.checks import Array, check_type
from hankelred.errors import InputError, NumericalError, OrderError
from hankelred.selective import SelectiveReduction, rotate, select

from ..layer_sums import PIECE, LayerStatistics, Sequences
from .analysis import Analysis, LayerReduction
from .base import Adapter
from .state_maps import Layout, StateMap, mapped

# To which power of the number of states entries grow with it.
_POWERS = {"scaled_output": 0.5, "value_gain": -0.5}


class SelectiveAnalysis(Analysis):
    """The answers of a selective layer, from the covariances of its states and outputs on sample batches.

    In place of Hankel singular values it has the square roots of the eigenvalues of the product of both covariances.
    """

    def __init__(self, statistics: LayerStatistics, reduce: Callable[[int], tuple[StateMap, ...]]) -> None:
        self._spectra, self._reduce = np.atleast_2d(statistics.hankel_singular_values()), reduce
        self.n, self.hsv = statistics.sums.n, self._spectra.max(axis=0)
        self._unseen = statistics.reason or "in the batches no signal reaches its states or comes out of them"

    def tail(self, states: int) -> float:
        """Return the share of the values of all groups behind the first ones."""
        total = float(self._spectra.sum())
        return float(self._spectra[:, states:].sum()) / total if total > 0 else 0.0

    def bound(self, states: int) -> float:
        """Return infinity: there is no bound for all inputs; 0 where all states are kept."""
        return np.inf if states < self.n else 0.0

    def least_states(self, *, energy: float | None = None, max_error: float | None = None) -> tuple[int, str]:
        """Return the fewest states whose values carry that share of the sum over all groups."""
        if energy is None:
            raise OrderError(
                "A selective layer has no error bound that could be within max_error. Use tau, order or fraction, and "
                "read the error measured on the sample batches"
            )
        kept = [1.0 - self.tail(states) for states in range(1, self.n + 1)]
        return int(np.argmax(np.array(kept) >= energy - 1e-12)) + 1, ""

    def reduce(self, states: int, *, prefer_larger: bool = False) -> LayerReduction:
        """Return the ways to reduce to so many states, for measurements to choose from; none where nothing was seen."""
        if not self.hsv.any():
            return LayerReduction(0, 0, self.hsv, 1.0, 0.0, None, self._unseen)
        return LayerReduction(
            states=states,
            order=states,
            hsv=self.hsv,
            kept_energy=1.0 - self.tail(states),
            error_bound=self.bound(states),
            reduction=self._reduce(states),
        )


class SelectiveAdapter(Adapter):
    """The states of a layer whose matrices depend on its input; subclass it for a family of your own.

    A subclass says by `layout_of` which tensors carry states, by `sequences` what the states are driven by and read
    with, and by `sizes` which attributes hold a size.

    Parameters
    ----------
    layer : torch.nn.Module
        The layer to adapt.

    Raises
    ------
    InputError
        As for `Adapter`.

    Examples
    --------
    >>> import hankelred_torch as ht
    >>> adapter = ht.adapters.adapter_of(ht.layers.Mamba(channels=4, states=16))
    >>> adapter.kind, adapter.states, sorted(adapter.state_axes)
    ('selective', 16, ['A_log', 'x_proj.weight'])
    """

    kind: ClassVar[Literal["lti", "selective"]] = "selective"

    def __init__(self, layer: nn.Module) -> None:
        self.layer = check_type(layer, "layer", nn.Module)
        self.layouts = self.layout_of(layer)
        groups = self.groups
        self.counts = {name: layout.counts(groups) for name, layout in self.layouts.items()}  # type: ignore[misc]
        # which tensors there are depends on the layer: biases and norms are optional
        self.state_axes = {name: layout.axis for name, layout in self.layouts.items()}  # type: ignore[misc]
        self.constants = tuple(self.rescaled)  # type: ignore[misc]
        super().__init__(layer)

    @abstractmethod
    def layout_of(self, layer: nn.Module) -> dict[str, Layout]:
        """Return which tensors of the layer carry states and how.

        Parameters
        ----------
        layer : torch.nn.Module
            As it is now.

        Returns
        -------
        dict of str to Layout
            By the name of the tensor.
        """

    @abstractmethod
    def sequences(self, inputs: Tensor, mask: Tensor | None, normed: Tensor | None = None) -> Sequences:
        """Return what drives the states for an input, computed as in the forward pass.

        Parameters
        ----------
        inputs : (batch, length, channels) torch.Tensor
            Of the layer.
        mask : (batch, length) torch.Tensor, optional
            0 at padding.
        normed : torch.Tensor, optional
            What `output_norm` was called with.

        Returns
        -------
        Sequences
            Step sizes, rates, inputs and outputs of the states.
        """

    def output(self, inputs: Tensor, data: Sequences, y: Tensor) -> Tensor | None:
        """Return what the layer puts out for inputs where its states put out `y`, for `check`.

        Parameters
        ----------
        inputs : (batch, length, channels) torch.Tensor
            Of the layer.
        data : Sequences
            Those of `sequences` for these inputs.
        y : torch.Tensor
            Output of the states, with the axes of the `u` of `data`.

        Returns
        -------
        torch.Tensor or None
            None if it is not known.
        """
        return None

    @property
    def rotates(self) -> bool:
        """Whether a change of basis common to all channels can be written into the layer."""
        return False

    @property
    def folds(self) -> bool:
        """Whether outputs of states are linear in weights, so that kept states can stand in for dropped ones."""
        return False

    @property
    def groups(self) -> int:
        """Number of groups of channels with states of their own."""
        return 1

    def state_channels(self, states: int) -> int:
        """Return how many channels have states of their own.

        Parameters
        ----------
        states : int
            Those of a channel, in a layer of that size.

        Returns
        -------
        int
            Channels; 0 if it is not known.
        """
        return 0

    def state_bytes(self, states: int) -> int:
        """Return the memory of the states of all channels, in single precision at least, as recurrences keep them."""
        tensor: Tensor = attrgetter(next(iter(self.layouts)))(self.layer)
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        return self.state_channels(states) * states * dtype.itemsize

    @property
    def made_states(self) -> int:
        """States that the layer's projections make inputs and outputs of: all there are, unless maps follow."""
        return self.states

    def behind_maps(self, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and outputs of the states behind maps, if the layer has any.

        Parameters
        ----------
        B : (..., groups, states) torch.Tensor
            What writes into the states.
        C : (..., groups, states) torch.Tensor
            What reads them.

        Returns
        -------
        tuple of two torch.Tensor
            Of the shapes of B and C.
        """
        return B, C

    def _those_there(self, layouts: Mapping[str, Layout]) -> dict[str, Layout]:
        """Return the layouts of tensors that the layer has."""
        return {name: layout for name, layout in layouts.items() if self._has(name)}

    def _has(self, name: str) -> bool:
        """Tell whether the layer has a tensor of that name."""
        try:
            return isinstance(attrgetter(name)(self.layer), Tensor)
        except AttributeError:
            return False

    @property
    def width(self) -> int:
        """Channels of the layer's input, as the first of its projections says."""
        found = next((x.in_features for x in self.layer.modules() if isinstance(x, nn.Linear)), None)
        if found is None:
            raise InputError(f"{type(self.layer).__qualname__} must have a Linear that says how wide it is; got none.")
        return found

    @property
    def output_norm(self) -> nn.Module | None:
        """A norm behind the states whose input says how it weighs their outputs."""
        return None

    def entries(self, name: str, kept: Array) -> Array:
        """Return the places on the state axis of a tensor that stay where some states stay, as in `Adapter.entries`."""
        old, new = (self.layouts[name].places(self.groups, n) for n in (self.states, len(kept)))
        found = np.empty(sum(x.size for _, x in new), dtype=np.int64)
        for (block, source), (_, target) in zip(old, new, strict=True):
            found[target] = source if block.role == "fixed" else source[:, kept]
        return found

    # Whether states that nothing goes into may be read without a change to others: no norm runs over outputs.
    reads_apart: ClassVar[bool] = True

    # Tensors that multiply what other tensors of the states make: these being zero is enough.
    behind: ClassVar[tuple[str, ...]] = ()

    def pad(self, values: Mapping[str, Array], states: int, *, read: bool = False) -> dict[str, Array]:
        """Return tensors with more states, that nothing goes into or comes out of, as in `Adapter.pad`."""
        if self.rescaled or any(
            b.role in ("input_gain", "output_gain") for x in self.layouts.values() for b in x.blocks
        ):
            raise InputError(
                f"{type(self.layer).__qualname__} must have no norm over its states to be padded; got one, which more "
                f"states would change. Keep its size, or load it with hankelred_torch.from_pretrained."
            )
        copied: tuple[str, ...] = ("rate", "state")
        if read and self.reads_apart:
            copied += ("output", "scaled_output")
        behind = (*copied, "input", "output") if read else copied
        return {x: self._padded(x, values[x], states, behind if x in self.behind else copied) for x in self.layouts}

    def _padded(self, name: str, array: Array, states: int, copied: tuple[str, ...]) -> Array:
        """Return one tensor with more states: those of some roles are those of others, the rest is zero."""
        layout, old = self.layouts[name], self.states_on(name, array.shape)
        before, after = (layout.places(self.groups, n) for n in (old, states))
        moved = np.moveaxis(array, layout.axis, 0)
        found = np.zeros((sum(x.size for _, x in after), *moved.shape[1:]))
        for (block, source), (_, target) in zip(before, after, strict=True):
            gain = (states / old) ** _POWERS.get(block.role, 0.0)
            found[target[:, : source.shape[1]]] = gain * moved[source]
            if block.role in copied:
                found[target[:, old:]] = gain * moved[source[:, np.arange(old, states) % old]]
        return np.moveaxis(found, 0, layout.axis)

    def analyse(self, values: Mapping[str, Array], statistics: Any = None, method: str = "auto") -> Analysis:
        """Return what a cut could lose on the sample batches; its reductions are tuples of `StateMap`, one a way.

        `method` is as in `CompressionConfig`; ``"auto"`` offers all ways that fit the layer. An `InputError` says that
        there are no statistics, or that the layer cannot represent the method.
        """
        holder = type(self.layer).__qualname__
        if statistics is None:
            raise InputError(
                f"{holder} must be seen at work to be reduced, since its matrices depend on its input; got no sample "
                f"data. Pass batches, an iterable of inputs of the model."
            )
        if method == "balanced_truncation" or (method == "rotation" and not self.rotates):
            raise InputError(
                f"method must be one that {holder} can represent; got {method!r}. "
                f'Pass "auto" or "selection", or leave the layer out by target_modules.'
            )
        ways = ("rotation", "selection") if method == "auto" and self.rotates else (method,)
        return SelectiveAnalysis(statistics, lambda states: self._reduced(ways, values, statistics, states))

    def statistics(self) -> LayerStatistics:
        """Return empty sums over what the layer does."""
        return LayerStatistics(self.states, self.groups)

    def observe(self, statistics: LayerStatistics, u: Tensor, mask: Tensor | None, normed: Tensor | None) -> None:
        """Add a call of the layer to its sums, some of its sequences at a time."""
        rows = max(1, PIECE // u[0].numel())
        for start in range(0, len(u), rows):
            piece = slice(start, start + rows)
            others = (None if x is None else x[piece] for x in (mask, normed))
            data = self.sequences(u[piece], *others)
            statistics.update(data)
            self._observed(statistics, data)

    def _observed(self, statistics: LayerStatistics, data: Sequences) -> None:
        """Add what a family sums besides."""

    def _reduced(
        self, ways: tuple[str, ...], values: Mapping[str, Array], statistics: LayerStatistics, states: int
    ) -> tuple[StateMap, ...]:
        cores = list[SelectiveReduction]()
        for way in ways:
            if way == "rotation":
                cores += self.rotations(values, statistics, states)
            else:
                cores.append(select(statistics.sums, states, fold=self.folds and way != "selection_without_fold"))
        found = [StateMap(x, statistics.gains(None if x.kept is None else x.kept[0])) for x in cores]
        stored = [x for x in found if all(np.isfinite(new).all() for new in self.rewrite(values, x).values())]
        if not stored:
            raise NumericalError(f"The tensors of a layer of {states} states must be finite; got NaN or infinity.")
        return tuple(stored)

    def rotations(
        self, values: Mapping[str, Array], statistics: LayerStatistics, states: int
    ) -> list[SelectiveReduction]:
        """Return changes of basis and fewer states, where the layer `rotates`; the best of them is measured.

        Parameters
        ----------
        values : mapping of str to ndarray
            Tensors of the layer, by name.
        statistics : LayerStatistics
            What the layer has seen.
        states : int
            How many to keep.

        Returns
        -------
        list of SelectiveReduction
            One or more to choose from.
        """
        return [rotate(statistics.sums, -np.exp(values["A_log"]), states)]

    def rewrite(self, values: Mapping[str, Array], reduction: StateMap) -> dict[str, Array]:
        """Return the tensors after a reduction: rows mapped or selected, rates mixed, the rest rescaled."""
        matrices = self._matrices(lambda X, Y: X, reduction)
        written = {name: mapped(values[name], layout, matrices) for name, layout in self.layouts.items()}
        if reduction.core.kept is None and "A_log" in self.layouts:
            written["A_log"] = np.log(np.exp(values["A_log"]) @ reduction.mixing())
        return written | {name: values[name] * x for name, x in self._scales(reduction).items()}

    def carry_first(
        self, values: Mapping[str, Array], reduction: StateMap, moments: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return averaged gradients by the contragredient maps; of rates through ``A = -exp(A_log)``.

        A rotation leaves to the rates of the new states the mean of the old ones' averages: gradients with respect to
        entries off the diagonal of A, which the layer has none of, are not known.
        """
        return self._carried(values, reduction, moments, 1)

    def carry_second(
        self, values: Mapping[str, Array], reduction: StateMap, moments: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return averaged squares of gradients by the squares of the same coefficients."""
        return self._carried(values, reduction, moments, 2)

    def _carried(
        self, values: Mapping[str, Array], reduction: StateMap, moments: Mapping[str, Array], power: int
    ) -> dict[str, Array]:
        """Return moments by the contragredient maps to some power; zeros for tensors that have none."""
        matrices = self._matrices(lambda X, Y: Y.transpose(0, 2, 1) ** power, reduction)
        given = {name: moments.get(name, np.zeros_like(values[name])) for name in self.layouts}
        carried = {name: mapped(given[name], layout, matrices) for name, layout in self.layouts.items()}
        if reduction.core.kept is None and "A_log" in self.layouts:
            old, new = np.exp(values["A_log"]), np.exp(self.rewrite(values, reduction)["A_log"])
            carried["A_log"] = new**power * ((given["A_log"] / old**power) @ reduction.mixing() ** power)
        scales = self._scales(reduction)
        return carried | {name: moments[name] / x**power for name, x in scales.items() if name in moments}

    def _matrices(self, part: Callable[[Array, Array], Array], reduction: StateMap) -> dict[str, Array]:
        roles = {block.role for layout in self.layouts.values() for block in layout.blocks} - {"fixed"}
        return {role: part(*reduction.pair(role)) for role in roles}

    def _scales(self, reduction: StateMap) -> dict[str, float]:
        """Return the factors of tensors without states that make up for gains."""
        product = reduction.gains[0] * reduction.gains[1]
        return {name: product**power for name, power in self.rescaled.items()}


def wide(x: Tensor) -> Tensor:
    """Return a tensor in single precision at least."""
    return x if x.dtype == torch.float64 else x.float()
