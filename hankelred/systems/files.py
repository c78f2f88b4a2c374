"""Systems in files: one .npz or .mat, read with `dt` and names."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import Array, check_dt
from ..errors import InputError
from .convert import as_system
from .diagonal import DiagonalSystem
from .state_space import StateSpace

# Names of signals in files.
_LABELS = {"name": "system_name", "inputs": "input_names", "outputs": "output_names", "states": "state_names"}


def load_system(path: str | os.PathLike[str], dt: Any = None) -> StateSpace | DiagonalSystem:
    """Read a system from a file.

    Parameters
    ----------
    path : path
        ``.npz``, or ``.mat`` up to version 7, with the matrices A, B, C and, where they are there, D and E;
        matrices of a ``.mat`` file may be sparse. A ``.npz`` with lam (or rates) in place of A holds a
        `DiagonalSystem`.
    dt : float or bool, optional
        Sampling time in seconds, 0 for continuous, True for an unspecified one; for files that do not say it
        themselves, as most collections of ``.mat`` benchmarks do not. In a ``.mat`` file -1 stands for True, as
        in MATLAB.

    Returns
    -------
    StateSpace or DiagonalSystem
        With the names that `save_system` wrote.

    Raises
    ------
    InputError
        If the file cannot be read, lacks a matrix, or neither it nor the caller gives `dt`, or both do and
        disagree.
    OSError
        If there is no such file.

    Examples
    --------
    >>> import os, tempfile, hankelred as hr
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "lag.npz")
    ...     hr.save_system(hr.StateSpace([[0.5]], [[1.0]], [[1.0]], dt=True), path)
    ...     hr.load_system(path).dt
    True
    """
    path = Path(path)
    read = {".npz": _read_npz, ".mat": _read_mat}[check_suffix(path)]
    with open(path, "rb") as file:
        try:
            entries = read(file)
        except NotImplementedError as error:  # version 7.3, an HDF5 file
            raise InputError(f'{path} has MATLAB\'s version 7.3; save it with save(..., "-v7"). ({error})') from error
        except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} cannot be read as a {path.suffix} file. ({error})") from error
    stored = entries.pop("dt", None)
    if stored is None and dt is None:
        raise InputError(
            f"{path} does not say its sampling time; got no entry dt. Pass dt to load_system (--dt on the command "
            f"line): 0 for a continuous system, the seconds of a discrete one, or True if those are unknown."
        )
    if stored is not None and dt is not None and not _same_dt(stored, dt):
        raise InputError(f"dt must be that of the file; got dt={dt} and {path} with dt={stored}. Leave dt out.")
    return _from_entries(entries, dt if stored is None else stored, path)


def save_system(sys: Any, path: str | os.PathLike[str]) -> None:
    """Write a system to a file, which appears under its name only when it is complete.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        System to save.
    path : path
        ``.npz`` keeps everything; ``.mat`` (version 5, keys A B C D, E where there is one, and dt) takes a
        `StateSpace`, with -1 for ``dt=True``, as in MATLAB.

    Raises
    ------
    InputError
        If the suffix is another one, or a `DiagonalSystem` is to go into a ``.mat`` file.

    Examples
    --------
    >>> import os, tempfile, hankelred as hr
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     hr.save_system(hr.StateSpace([[-2.0]], [[1.0]], [[1.0]]), os.path.join(folder, "lag.mat"))
    ...     os.listdir(folder)
    ['lag.mat']
    """
    path, system = Path(path), as_system(sys)
    suffix = check_suffix(path)
    entries: dict[str, Any] = {"dt": system.dt, **_named_matrices(system)}
    if suffix == ".mat":
        if isinstance(system, DiagonalSystem):
            raise InputError(
                f"A .mat file holds A, B, C and D; got a DiagonalSystem for {path}. "
                f"Save it as .npz, or save system.to_state_space()."
            )
        entries["dt"] = -1.0 if system.dt is True else float(system.dt)
    entries |= {_LABELS[key]: names if isinstance(names, str) else list(names) for key in _LABELS if (names := getattr(system, key))}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            if suffix == ".npz":
                np.savez(file, **entries)
            else:
                _write_mat(file, entries)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_suffix(path: str | os.PathLike[str]) -> str:
    """Return the suffix of a path if `save_system` can write such a file."""
    suffix = Path(path).suffix
    if suffix not in (".npz", ".mat"):
        raise InputError(f"A file of a system must end in .npz or .mat; got {path}. Rename it.")
    return suffix


def _named_matrices(system: StateSpace | DiagonalSystem) -> dict[str, Any]:
    """Return what a file holds besides dt and names; of rates and lam only the rates, which determine lam."""
    if isinstance(system, StateSpace):
        E = {} if system.E is None else {"E": system.E}
        return {"A": system.A, "B": system.B, "C": system.C, "D": system.D, **E}
    return {**system.spectrum.data, "B": system.B, "C": system.C, "D": system.D, "output": system.output}


def _read_npz(file: Any) -> dict[str, Any]:
    archive = np.load(file, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("it holds one array without a name")
    with archive:
        entries = dict(archive)
    if "dt" in entries:
        entries["dt"] = entries["dt"].item()  # bool, int and float stay what they are
    return entries


def _read_mat(file: Any) -> dict[str, Any]:
    import scipy.io

    raw = scipy.io.loadmat(file)
    entries = {key: x.toarray() if hasattr(x, "toarray") else x for key, x in raw.items() if not key.startswith("__")}
    if "dt" in entries:
        file.seek(0)  # once more, as MATLAB has it: a logical true is not the number 1 (for matrices it would cost
        dt = scipy.io.loadmat(file, variable_names=("dt",), mat_dtype=True)["dt"].item()  # their imaginary parts)
        entries["dt"] = True if dt == -1 else dt
    if "D" in entries and not entries["D"].any():  # [], and a scalar 0 for a zero matrix
        del entries["D"]
    if "E" in entries and entries["E"].size == 0:
        del entries["E"]
    return entries


def _write_mat(file: Any, entries: dict[str, Any]) -> None:
    import scipy.io

    cells = {key: np.array(value, dtype=object) for key, value in entries.items() if isinstance(value, list)}
    scipy.io.savemat(file, {**entries, **cells})


def _from_entries(entries: Mapping[str, Any], dt: Any, path: Path) -> StateSpace | DiagonalSystem:
    """Build the system that the entries of a file describe."""
    state_matrix = next((key for key in ("rates", "lam", "A") if key in entries), "A")
    missing = [key for key in (state_matrix, "B", "C") if key not in entries]
    if missing:
        raise InputError(
            f"{path} must hold A, B and C; got {', '.join(entries) or 'nothing'}, without {' and '.join(missing)}. "
            f"Rename the matrices in the file."
        )
    names = {key: _strings(entries.get(label)) for key, label in _LABELS.items()}
    labels: Any = {key: tuple(found) or None for key, found in names.items()}
    labels["name"] = names["name"][0] if names["name"] else None
    B, C, D = entries["B"], entries["C"], entries.get("D")
    if state_matrix == "A":
        return StateSpace(entries["A"], B, C, D, dt, entries.get("E"), **labels)
    output: Any = str(entries.get("output", "complex"))
    build = DiagonalSystem.from_rates if state_matrix == "rates" else DiagonalSystem
    return build(entries[state_matrix], B, C, D, dt=check_dt(dt), output=output, **labels)


def _strings(entry: Array | None) -> list[str]:
    """Return the strings of an array or of a cell array."""
    return [] if entry is None else ["".join(np.ravel(x)) for x in np.ravel(entry)]


def _same_dt(one: Any, other: Any) -> bool:
    return one is other or (one is not True and other is not True and one == other)


