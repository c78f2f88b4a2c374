"""The one system in a ``.mat`` file: matrices and Ts as variables, or as fields of MATLAB's ``get(sys)``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from ..errors import InputError
from .entries import IN_FILES, MATRICES
from .mat_file import read_mat

SMALL = tuple(key.lower() for key in MATRICES)
# What MATLAB's structure calls the names, and what it says besides the matrices that would change the system.
IN_STRUCTURE = {"name": "Name", "inputs": "InputName", "outputs": "OutputName", "states": "StateName"}
DELAYS = ("InputDelay", "OutputDelay", "InternalDelay", "IODelay")


def write_mat(file: Any, entries: dict[str, Any]) -> None:
    """Write the entries of a system; what MATLAB calls unspecified is -1."""
    import scipy.io  # takes a tenth of a second, and most programs never come here

    cells = {key: np.array(value, dtype=object) for key, value in entries.items() if isinstance(value, list)}
    dt = -1.0 if entries["dt"] is True else float(entries["dt"])
    scipy.io.savemat(file, {IN_FILES.get(key, key): value for key, value in {**entries, **cells, "dt": dt}.items()})


def read_mat_system(file: BinaryIO) -> dict[str, Any]:
    """Return the entries of a system; under "held" the names of all variables."""
    variables = {*MATRICES, *SMALL, "dt", "Ts", *IN_FILES.values()}
    found = read_mat(file, variables, {*variables, *IN_STRUCTURE.values(), *DELAYS, "TimeUnit"})
    outside = [key for key in (*MATRICES, *SMALL) if key in found.values]
    structures = list(found.structures)
    if len(structures) > 1 or structures and outside:
        together = ", ".join([*structures, *outside])
        raise InputError(f"It must hold one system; got {together}. Save the one that is meant alone.")
    if found.objects and not structures and not outside:
        name, kind = next(iter(found.objects.items()))
        raise InputError(
            f"Only MATLAB can read its own objects; got {name} of class {kind}. There, run [A,B,C,D,Ts] = "
            f'ssdata({name}); save("{name}.mat", "A", "B", "C", "D", "Ts", "-v7").'
        )
    values = found.structures[structures[0]] if structures else found.values
    entries = {**_matrices(values), "held": found.names}
    times = [_time(values[key], key) for key in ("Ts", "dt") if key in values]
    if len(times) == 2 and (times[0] != times[1] or type(times[0]) is not type(times[1])):
        raise InputError(f"It must have one sampling time; got Ts={times[0]} and dt={times[1]}. Save one of them.")
    if times:
        entries["dt"] = times[0]
    if structures:
        _check_structure(values)
    for key, label in IN_FILES.items():
        in_structure = structures and label not in values
        names = values.get(IN_STRUCTURE[key] if in_structure else label)
        if names is not None and not isinstance(names, list) and np.size(names):
            raise InputError(f"{label} must hold text; got numbers. Save it again.")
        if names is not None and (any(names) or not in_structure):  # where nobody gave names, MATLAB has '' for each
            entries[key] = list(names)
    return entries


def _matrices(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return A, B, C, D and E, the last two without MATLAB's short forms of nothing."""
    capital, small = ([key for key in keys if key in values] for keys in (MATRICES, SMALL))
    if capital and small:
        raise InputError(
            f"The matrices must be named by capitals or by small letters; got {', '.join(capital)} and "
            f"{', '.join(small)}. Rename those that do not belong to the system."
        )
    matrices = {key.upper(): values[key] for key in capital + small}
    for key, x in list(matrices.items()):
        if isinstance(x, list):
            raise InputError(f"{key} must be a matrix of numbers; got text. Save the numbers.")
        if key in "DE" and 0 in x.shape or key == "D" and x.shape == (1, 1) and not x.sum():
            del matrices[key]
    return matrices


def _time(x: Any, key: str) -> Any:
    """Return a sampling time as MATLAB has it: -1 is unspecified, and a logical true is not the number 1."""
    if not isinstance(x, np.ndarray) or x.size != 1 or x.dtype.kind == "c":
        raise InputError(f"{key} must be one real number of seconds. Save it again.")
    return True if x.item() == -1 else x.item()


def _check_structure(values: Mapping[str, Any]) -> None:
    """Refuse delays and other units of time."""
    delays = [key for key in DELAYS if key in values and (isinstance(values[key], list) or values[key].sum())]
    if delays:
        raise InputError(
            f"A system must have no delays; got {', '.join(delays)}. Replace them in MATLAB: pade for a continuous "
            f"system, absorbDelay for a discrete one."
        )
    unit = values.get("TimeUnit", ["seconds"])
    if unit != ["seconds"]:
        raise InputError(f"The unit of time must be seconds; got TimeUnit={unit}. Use chgTimeUnit in MATLAB.")
