"""Which code runs an operation: loops that numba compiles for the CPU, or operations of torch on any device."""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple

from torch import Tensor

from hankelred.checks import check_choice
from hankelred.errors import InputError

BACKENDS = ("auto", "cpu", "torch")

# What runs where compiled loops do not reach.
ELSEWHERE = {
    "linear_recurrence": "a scan of about 2 sqrt(length) operations",
    "diagonal_ssm": "the same scan in planes, or FFTs",
    "selective_scan": "a loop over the steps",
    "gramian_factors, hankel_singular_values, balanced_truncation": "a loop over the states, systems side by side",
}

_chosen = "auto"


class Backend(NamedTuple):
    """One line of `backends`: an operation, what runs it, and why."""

    operation: str
    backend: str
    why: str


class BackendTable(tuple[Backend, ...]):
    """The lines of `backends`; prints as a table."""

    def __repr__(self) -> str:
        width, middle = (max(len(row[k]) for row in self) for k in (0, 1))
        return "\n".join(f"{row[0]:<{width}}  {row[1]:<{middle}}  {row[2]}" for row in self)


def backends() -> BackendTable:
    """What runs every operation now.

    Returns
    -------
    BackendTable
        Tuples ``(operation, backend, why)``; printed, a table.

    See Also
    --------
    use_backend : Chooses.

    Examples
    --------
    >>> from hankelred_torch import ops
    >>> ops.backends()[0].backend
    'cpu'
    >>> with ops.use_backend("torch"):
    ...     ops.backends()[0]
    Backend(operation='linear_recurrence', backend='torch', why='chosen: a scan of about 2 sqrt(length) operations')
    """
    why = {
        "auto": "compiled loops for tensors on the CPU; on other devices {}",
        "cpu": "chosen: compiled loops; tensors on other devices are refused",
        "torch": "chosen: {}",
    }[_chosen]
    runs = "torch" if _chosen == "torch" else "cpu"
    rows = [Backend(name, runs, why.format(other)) for name, other in ELSEWHERE.items()]
    solver = Backend("solve_lyapunov", "cpu", "the solver of the core, one matrix after the other, on any device")
    return BackendTable([*rows, solver])


class use_backend:
    """Choose what runs the operations, for the process or, in a ``with`` statement, for a block.

    Parameters
    ----------
    name : {"auto", "cpu", "torch"}
        "auto": compiled loops for tensors on the CPU and operations of torch elsewhere; "cpu": compiled loops only,
        tensors elsewhere are refused; "torch": operations of torch everywhere, a second opinion that is slower on a
        CPU.

    Raises
    ------
    InputError
        If there is no such backend here.

    Examples
    --------
    >>> import torch
    >>> from hankelred_torch import ops
    >>> a, b = torch.tensor([0.5]), torch.ones(1, 3, 1)
    >>> with ops.use_backend("torch"):
    ...     ops.linear_recurrence(a, b).flatten().tolist()
    [1.0, 1.5, 1.75]
    """

    def __init__(self, name: str) -> None:
        global _chosen
        self._before, _chosen = _chosen, check_choice(name, "name", BACKENDS)

    def __enter__(self) -> use_backend:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        global _chosen
        _chosen = self._before


def compiled_loops(x: Tensor) -> bool:
    """Tell whether compiled loops run what is done to a tensor."""
    if _chosen == "cpu" and not x.is_cpu:
        raise InputError(f'Tensors must be on the CPU for the backend "cpu"; got one on {x.device}. Choose "auto".')
    return x.is_cpu and _chosen != "torch"
