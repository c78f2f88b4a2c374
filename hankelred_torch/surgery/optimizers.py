"""What an optimizer remembers of a layer's parameters, through a cut.

State is kept per parameter, under names that say what it is. Averages of gradients and of their squares are carried
over by the layer's adapter; step counts stay; the rest starts anew. Everything here is computed beforehand and
returned; `surgery` puts it in place.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hankelred import Reduction
from hankelred.checks import Array
from hankelred.errors import InputError

from ..adapters import Adapter
from ..adapters.transport import raised
from ..convert import stored_tensor, to_array, to_tensor
from ..errors import OptimizerStateWarning
from .exchange import Slot, State, find_slot

# Averaged gradients: Adam and its relatives, SGD and Muon, centred RMSprop, Rprop's last gradient does not count.
FIRST = ("exp_avg", "momentum_buffer", "grad_avg")

# Averaged or summed squares: Adam, its AMSGrad maximum, RMSprop and Adadelta, Adagrad, Adafactor.
SECOND = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "variance")

# A decayed maximum of |gradient| (Adamax), which moves like the root of a second moment.
ROOT = ("exp_inf",)

# Averages of past *steps*, in units of the parameter (Adadelta): they start from zero again.
RESTART = ("acc_delta",)

# Adafactor's factors of a second moment of a matrix: row and column means of the squares.
FACTORED = ("row_var", "col_var")


def as_optimizers(optimizers: Any) -> tuple[Any, ...]:
    """Return one optimizer or several as a tuple."""
    several = (
        (optimizers,) if hasattr(optimizers, "param_groups") or not isinstance(optimizers, Iterable) else optimizers
    )
    found = tuple(several)
    for optimizer in found:
        if not (hasattr(optimizer, "param_groups") and hasattr(optimizer, "state")):
            raise InputError(f"optimizers must be one torch optimizer or several; got {type(optimizer).__name__}.")
        if type(optimizer).__name__ == "ZeroRedundancyOptimizer":
            raise InputError(
                "optimizers must keep the whole state on every rank; got a ZeroRedundancyOptimizer, which shares it "
                "out. Use the optimizer inside it."
            )
    return found


def check_trained(adapter: Adapter, name: str, optimizers: tuple[Any, ...]) -> dict[str, Slot]:
    """Return where the optimizers hold the tensors of a layer, by tensor name."""
    slots = {}
    missing = []
    for tensor_name in adapter.replaced:
        tensor = stored_tensor(*adapter.owner(tensor_name))
        slot = find_slot(tensor, optimizers)
        if slot is not None:
            if type(slot.optimizer).__name__ == "LBFGS":
                raise InputError(
                    "optimizers must keep their state per parameter; got LBFGS, which keeps one flat history for all "
                    "of them. Cut first and make a new optimizer afterwards."
                )
            slots[tensor_name] = slot
        elif optimizers and tensor.requires_grad:
            missing.append(tensor_name)
    if missing:
        raise InputError(
            f"optimizers must hold every trainable parameter that is to be replaced; got none that holds "
            f"{', '.join(missing)} of layer {name!r}. Pass all optimizers of the model, or freeze these parameters."
        )
    return slots


def carried_state(
    policy: str,
    adapter: Adapter,
    values: Mapping[str, Array],
    reduction: Reduction,
    slots: Mapping[str, Slot],
    new: Mapping[str, Tensor],
) -> dict[str, State | None]:
    """Return the state for the new parameters of one layer, by tensor name; None where it starts anew.

    Parameters
    ----------
    policy : {"transport", "reset", "slice"}
        As in `CompressionConfig`.
    adapter : Adapter
        Of the layer, still unchanged.
    values : mapping of str to ndarray
        The layer's tensors before the cut.
    reduction : Reduction
        The aligned reduction.
    slots : mapping of str to Slot
        Where the old parameters are held, by tensor name.
    new : mapping of str to Tensor
        The new tensors of the layer.
    """
    if policy == "reset":
        return {name: _restarted(slot, new[name]) for name, slot in slots.items()}
    old = {name: _known_state(name, slot, adapter) for name, slot in slots.items()}
    if policy == "transport":
        return _transported(adapter, values, reduction, old, new)
    return {name: _sliced(state, name, adapter, new[name]) for name, state in old.items()}


def _known_state(name: str, slot: Slot, adapter: Adapter) -> State | None:
    """Return the state of a parameter if all of it is of a known kind; otherwise warn and let it start anew."""
    state = slot.optimizer.state.get(slot.parameter)
    if not state:
        return None
    shape = slot.parameter.shape
    unknown = [key for key, value in state.items() if not (_is_scalar(value) or _is_known(key, value, shape))]
    if not unknown:
        return dict(state)
    warnings.warn(
        f"The state of {name} in {type(slot.optimizer).__name__} was dropped: {', '.join(unknown)} of "
        f"{type(adapter.layer).__qualname__} is neither an averaged gradient nor an averaged square. "
        f"The optimizer makes a new one at its next step.",
        OptimizerStateWarning,
        stacklevel=5,
    )
    return None


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, Tensor) or value.ndim == 0


def _is_known(key: str, value: Tensor, shape: tuple[int, ...]) -> bool:
    if key in FACTORED:
        return value.ndim == len(shape)
    return key in (*FIRST, *SECOND, *ROOT, *RESTART) and value.shape == shape


def _transported(
    adapter: Adapter,
    values: Mapping[str, Array],
    reduction: Reduction,
    old: Mapping[str, State | None],
    new: Mapping[str, Tensor],
) -> dict[str, State | None]:
    """Carry averages over by the change of basis, all tensors of the layer together."""
    result: dict[str, State | None] = {
        name: None if state is None else {key: x for key, x in state.items() if _is_scalar(x)}
        for name, state in old.items()
    }
    live = {name: state for name, state in old.items() if state is not None}
    averages, carried = {}, {}
    for key in _moment_names(live):
        moments = averages[key] = {name: _moment(state, key) for name, state in live.items() if _has(state, key)}
        if key in RESTART or key == "momentum_buffer" and any("square_avg" in live[name] for name in moments):
            carried[key] = {name: np.zeros(tuple(new[name].shape)) for name in moments}  # of steps, not of gradients
        elif key in FIRST:
            carried[key] = adapter.carry_first(values, reduction, moments)
        else:
            carried[key] = adapter.carry_second(values, reduction, moments)
    for first in set(FIRST) & set(averages):
        for second in set(averages) - set(FIRST) - set(RESTART):
            carried[second] = raised((carried[first], carried[second]), (averages[first], averages[second]))
    for key, moments in averages.items():
        for name in moments:
            _store(result[name], key, carried[key][name], live[name])
    return {name: None if state is None else _in_order(state, old[name]) for name, state in result.items()}


def _moment_names(live: Mapping[str, State]) -> list[str]:
    """Return the kinds of averages in the states; factored second moments count as the "variance" of Adafactor."""
    keys = {key for state in live.values() for key, value in state.items() if not _is_scalar(value)}
    factored = keys & set(FACTORED)
    return sorted(keys - factored | ({"variance"} if factored else set()))


def _has(state: State, key: str) -> bool:
    """Tell whether a state holds a kind of average."""
    return isinstance(state.get(key), Tensor) or key == "variance" and FACTORED[0] in state


def _moment(state: State, key: str) -> Array:
    """Return an average as an array: factors multiplied, a maximum squared."""
    if key == "variance" and FACTORED[0] in state:
        rows, columns = (to_array(state[factor]) for factor in FACTORED)
        mean = rows.mean(axis=-2, keepdims=True)
        return np.divide(rows * columns, mean, out=np.zeros(np.broadcast(rows, columns).shape), where=mean != 0)
    moment = to_array(state[key])
    return moment**2 if key in ROOT else moment


def _store(target: State | None, key: str, carried: Array, old: State) -> None:
    """Put an average back in the form the optimizer keeps it in."""
    assert target is not None
    if key == "variance" and FACTORED[0] in old:
        for factor, axis in zip(FACTORED, (-1, -2), strict=True):
            target[factor] = to_tensor(carried.mean(axis=axis, keepdims=True), old[factor])
        return
    target[key] = to_tensor(np.sqrt(carried) if key in ROOT else carried, old[key])


def _in_order(state: State, old: State | None) -> State:
    """Return the state with its entries in the order the optimizer made them."""
    assert old is not None
    return {key: state[key] for key in old}


def _sliced(state: State | None, name: str, adapter: Adapter, new: Tensor) -> State | None:
    """Cut every average to its first states, whatever they mean now."""
    axis = adapter.state_axes.get(name)
    if state is None or axis is None:
        return state
    old = adapter.tensor(name)
    first = np.arange(adapter.states_on(name, tuple(new.shape)))
    places = torch.from_numpy(adapter.entries(name, first)).to(old.device)
    result = {}
    for key, value in state.items():
        # a factored average has size 1 on the axis it was summed over
        carries_states = not _is_scalar(value) and value.shape[axis] == old.shape[axis]
        result[key] = value.index_select(axis, places) if carries_states else value
    return result


def _restarted(slot: Slot, new: Tensor) -> State | None:
    """Return what the optimizer starts from: nothing, which it fills in, or what Adagrad fills in only once."""
    state = slot.optimizer.state.get(slot.parameter)
    if not state or set(state) != {"step", "sum"}:
        return None
    start = np.full(tuple(new.shape), slot.group.get("initial_accumulator_value", 0.0))
    return {"step": state["step"] * 0, "sum": to_tensor(start, state["sum"])}
