"""Which systems a layer can hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hankelred import BankReduction, DiagonalBank, DiagonalSystem, Reduction
from hankelred.errors import InputError, StabilityError

if TYPE_CHECKING:
    from .linear import LinearAdapter


def systems_to_hold(adapter: LinearAdapter, system: Any, bank: DiagonalBank) -> tuple[DiagonalSystem, ...]:
    """Return the systems to be written one by one, or raise if the layer cannot hold them."""
    holder = type(adapter.layer).__qualname__
    if isinstance(system, (Reduction, BankReduction)):
        raise InputError(f"system must be the reduced system itself; got a {type(system).__name__}. Pass .system.")
    found = tuple(system) if isinstance(system, (tuple, list, DiagonalBank)) else (system,)
    wrong = [type(x).__name__ for x in found if not isinstance(x, DiagonalSystem)]
    if wrong:
        raise InputError(
            f"system must be a DiagonalSystem, or a DiagonalBank or sequence of them for a bank; got {wrong[0]}. "
            f"hankelred_torch.adapters.diagonal_layer makes a layer of a StateSpace."
        )
    if len(found) != len(bank):
        held = f"{len(bank)} systems, one per channel" if adapter.is_bank else "one system"
        raise InputError(f"{holder} holds {held}; got {len(found)}.")
    for k, x in enumerate(found):
        where = f" in channel {k}" if adapter.is_bank else ""
        if (x.m, x.p) != (bank.m, bank.p):
            raise InputError(
                f"The system must have the {bank.m} inputs and {bank.p} outputs of {holder}; got {x.m} and {x.p}"
                f"{where}."
            )
        fits = x.is_discrete == bank.is_discrete and x.output == bank.output
        if not (fits and x.is_stable()):
            time, inside = ("discrete", "inside the unit circle") if adapter.dt else ("continuous", "left of 0")
            raise (StabilityError if fits else InputError)(
                f'{holder} holds stable {time} systems with output="{adapter.output}" and poles {inside}; got '
                f"dt={x.dt!r}, output={x.output!r} and a pole {x.spectrum.excess(x.is_discrete).max():.3g} from "
                f"the boundary{where}."
            )
    return found
