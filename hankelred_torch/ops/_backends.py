"""Which code runs an operation: loops that numba compiles for the CPU, Triton kernels, or operations of torch."""

from __future__ import annotations

import importlib.util
import os
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from hankelred.checks import check_choice
from hankelred.errors import InputError

BACKENDS = ("auto", "cpu", "triton", "mamba_ssm", "causal_conv1d", "torch")

GRAMIANS = "gramian_factors, hankel_singular_values, balanced_truncation"

# Operations that packages of others have, and those that have Triton kernels, the first that is there and fits.
KERNELS = {
    "mamba_ssm": ("selective_scan", "selective_heads"),
    "causal_conv1d": ("short_convolution",),
    "triton": ("linear_recurrence", "diagonal_ssm", "selective_scan", "selective_heads", GRAMIANS),
}

# What is said of kernels that do not take all of an operation.
PARTS = {GRAMIANS: "Triton kernels up to 64 states, but for the SVD of balanced_truncation"}

# What runs where no kernels do.
ELSEWHERE = {
    "linear_recurrence": "a scan of about 2 sqrt(length) operations",
    "diagonal_ssm": "the same scan in planes, or FFTs",
    "selective_scan": "a loop over the steps",
    "selective_heads": "products of matrices, piece by piece",
    "short_convolution": "a sum over the taps",
    GRAMIANS: "a loop over the states, systems side by side",
}

# Operations that are torch's on the CPU too; the others have loops that numba compiles.
WITHOUT_LOOPS = ("selective_heads", "short_convolution")

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
    rows = []
    for name, other in ELSEWHERE.items():
        kernels = [package for package, operations in KERNELS.items() if name in operations and _installed(package)]
        names = {package: f"{package} where it fits" for package in kernels}
        names["triton"] = PARTS.get(name, "Triton kernels")
        if _chosen in kernels:
            rows.append(Backend(name, _chosen, f"chosen: {names[_chosen]}"))
        elif _chosen in ("triton", "torch"):
            rows.append(Backend(name, "torch", f"chosen: {other}"))
        else:
            there = other if name in WITHOUT_LOOPS else "compiled loops"
            on_gpu = ", else ".join(f"on CUDA {names[package]}" for package in kernels)
            found = f"{on_gpu}; elsewhere {other}" if kernels else f"on other devices {other}"
            refused = f"chosen: {there}; tensors on other devices are refused"
            rows.append(Backend(name, "cpu", refused if _chosen == "cpu" else f"{there} on the CPU; {found}"))
    loops = _chosen not in ("triton", "torch")
    other = "doubling in matrix products; what it does not solve, the core"
    why = f"the solver of the core on the CPU; on other devices {other}" if loops else f"chosen: {other}"
    return BackendTable([*rows, Backend("solve_lyapunov", "cpu" if loops else "torch", why)])


class use_backend:
    """Choose what runs the operations, for the process or, in a ``with`` statement, for a block.

    Parameters
    ----------
    name : {"auto", "cpu", "triton", "mamba_ssm", "causal_conv1d", "torch"}
        "auto": compiled loops for tensors on the CPU, kernels for those on CUDA where there are any, operations of
        torch elsewhere; "cpu": compiled loops only, tensors elsewhere are refused; "triton": Triton kernels where an
        operation has them, and operations of torch for the others; tensors on the CPU need Triton's interpreter,
        ``TRITON_INTERPRET=1`` in the environment before the first use; "mamba_ssm": the selective scan of that
        package where it fits, float32 from rest with no state asked for, its heads where arguments are of half
        precision, whose products it takes in no more, and otherwise as "auto"; "causal_conv1d": the short convolution
        of `hankelred_torch.layers.Mamba` by that package where it fits, two to four taps and no double precision, and
        otherwise as "auto"; "torch": operations of torch everywhere, a second opinion that is slower on a CPU.

    Raises
    ------
    InputError
        If there is no such backend, or its package is not installed.

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
        check_choice(name, "name", BACKENDS)
        if name in KERNELS and not _installed(name):
            raise InputError(f"The package {name} must be installed for the backend {name!r}; got none. Install it.")
        self._before, _chosen = _chosen, name

    def __enter__(self) -> use_backend:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        global _chosen
        _chosen = self._before


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


_THERE = {package: _installed(package) for package in KERNELS}


def compiled_loops(x: Tensor) -> bool:
    """Tell whether compiled loops run what is done to a tensor."""
    if _chosen == "cpu" and not x.is_cpu:
        raise InputError(f'Tensors must be on the CPU for the backend "cpu"; got one on {x.device}. Choose "auto".')
    return x.is_cpu and _chosen not in ("torch", "triton")


def triton_kernels(x: Tensor) -> bool:
    """Tell whether Triton kernels run what is done to a tensor, by an operation that has them."""
    if _chosen != "triton":
        return _chosen not in ("cpu", "torch") and _THERE["triton"] and x.is_cuda and _agree(x.device)
    if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise InputError(
            f'Tensors must be on CUDA for the backend "triton"; got one on {x.device}. Choose "auto", or set '
            f"TRITON_INTERPRET=1 in the environment before Triton is imported to run kernels in its interpreter."
        )
    return True


def _agree(device: torch.device) -> bool:
    """Tell whether kernels were seen to be right on a device; nobody can have tried all of them."""
    from ._triton_proof import kernels_agree  # which needs the operations

    return bool(kernels_agree(device))


def foreign_kernels(package: str, x: Tensor) -> bool:
    """Tell whether kernels of a package of others run what is done to a tensor, if they fit."""
    if _chosen in ("cpu", "triton", "torch"):
        return False
    return _chosen == package or (_THERE[package] and x.is_cuda)
