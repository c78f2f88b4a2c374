"""Systems in files: ``.npz``, ``.mat`` and folders of ``.csv``; what is written appears complete or not at all.

A file is data from elsewhere: only the entries of a system are read, their declared sizes are checked before they are,
nothing in a file is run, and whatever is wrong with it is an `InputError` that names the path.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from ..checks import as_dense, check_dt, is_sparse
from ..errors import InputError
from .base import NAMES, LinearSystem
from .convert import as_system
from .csv_folder import FILES, read_folder, texts
from .diagonal import DiagonalBank, DiagonalSystem
from .entries import MATRICES
from .mat_system import read_mat_system, write_mat
from .npz_file import read_npz, write_npz
from .state_space import StateSpace

UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # ends of C strings, halves of pairs of surrogates
# A sparse matrix of a file becomes an array up to so many states, where a Schur form takes seconds and knows all.
SPARSE_FROM = 1000
KINDS = "end in .npz or .mat, or be a folder of .csv files (no suffix, or a folder that exists)"


def load_system(path: str | os.PathLike[str], dt: Any = None) -> Any:
    """Read a system from a file or a folder.

    Parameters
    ----------
    path : path
        ``.npz`` with A, B, C and, where they are there, D, E and dt; lam (or rates) in place of A makes a
        `DiagonalSystem`. ``.mat`` up to version 7 with the same matrices, all in capitals or all in small letters,
        and Ts or dt, as variables or as the fields of one structure, such as MATLAB's ``s = get(sys)``; matrices may
        be sparse. A folder with A.csv, B.csv, C.csv and, where they are there, D.csv, E.csv and dt.csv: rows of
        numbers between commas, complex ones as ``1+2j``, and in dt.csv one number or ``True``. Matrix Market files,
        A.mtx and so on, may stand in their places. A sparse A of more than 1000 states stays sparse, others become
        arrays.
    dt : float or bool, optional
        Sampling time in seconds, 0 for continuous, True for an unspecified one; for files that do not say it
        themselves, as most collections of ``.mat`` benchmarks do not. In a ``.mat`` file -1 stands for True, as
        in MATLAB.

    Returns
    -------
    StateSpace or DiagonalSystem
        With the names that `save_system` wrote, or those in MATLAB's structure.

    Raises
    ------
    InputError
        If the file cannot be read, lacks a matrix, holds two systems, declares more than 2 GiB of matrices, has
        delays, or neither it nor the caller gives `dt`, or both do and disagree.
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
    if dt is not None:
        dt = check_dt(dt)
    path = as_path(path)
    suffix = _system_suffix(path)
    try:
        if suffix == "":
            return _from_entries(read_folder(path), dt)
        if path.exists() and not path.is_file():  # a pipe would wait, a device would never end
            raise InputError("It must be a regular file. Check the path.")
        with open(path, "rb") as file:
            return _from_entries(read_npz(file) if suffix == ".npz" else read_mat_system(file), dt)
    except InputError as error:
        raise InputError(f"{path} cannot be loaded: {error}") from error


def save_system(sys: Any, path: str | os.PathLike[str]) -> None:
    """Write a system to a file, which appears under its name only when it is complete.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        System to save.
    path : path
        ``.npz`` keeps everything. ``.mat`` (version 5, keys A B C D, E where there is one, and dt) takes a
        `StateSpace`, with -1 for ``dt=True``, as in MATLAB. A folder (a path without suffix, or one that exists)
        takes a `StateSpace` as A.csv, B.csv, C.csv, D.csv, dt.csv and, where needed, E.csv and signal_names.csv,
        with all digits; float32 becomes float64. Sparse matrices go into ``.mat`` or, as A.mtx and E.mtx, into a
        folder.

    Raises
    ------
    InputError
        If the path has another suffix or its folder is missing, if a `DiagonalSystem` is to go into a ``.mat`` file
        or a folder, or if a name or dt cannot be stored; then nothing is written.

    Notes
    -----
    Files are replaced at once: readers see the old one or the new one. The files of a folder are replaced one by one;
    dt.csv is removed first and written last, so that a folder between two systems is refused by `load_system` for
    want of a dt. Other files in the folder stay.

    Examples
    --------
    >>> import os, tempfile, hankelred as hr
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     hr.save_system(hr.StateSpace([[-2.0]], [[1.0]], [[1.0]]), os.path.join(folder, "lag.mat"))
    ...     os.listdir(folder)
    ['lag.mat']
    """
    path = as_path(path)
    suffix = check_target(path)
    entries = _entries(as_system(sys), suffix, path)
    if suffix == "":
        _write_folder(path, entries)
    else:
        write = write_npz if suffix == ".npz" else write_mat
        write_atomically(path, lambda file: write(file, entries))


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Write a file that appears under its name when it is complete and on the disk; until then the old one stays.

    Parameters
    ----------
    path : path
        File to write. Of a link, the file it names is written. The permissions of an existing file are kept.
    write : callable
        Called with a binary file to write into. Whatever it raises is passed on, and nothing is left behind.

    Raises
    ------
    InputError
        If the folder is missing, or something that is no file has the name.
    OSError
        If the file may not be written, or the disk is full.

    Examples
    --------
    >>> import os, tempfile
    >>> from hankelred.systems.files import write_atomically
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(os.path.join(folder, "note.txt"), lambda file: file.write(b"done"))
    ...     os.listdir(folder)
    ['note.txt']
    """
    path = as_path(path)
    mode = check_place(path)
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".hankelred-{os.urandom(8).hex()}.tmp")  # of a fixed length, whatever the name
    try:
        # "x" makes a new file and follows no link; what is private is so from the start
        with open(temporary, "xb", opener=lambda p, flags: os.open(p, flags, 0o666 if mode is None else 0o600)) as file:
            write(file)
            file.flush()
            if mode is not None:
                os.chmod(temporary, mode)
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(target.parent)


def _system_suffix(path: Path) -> str:
    """Return the suffix of a path that can hold a system, "" for a folder."""
    if path.suffix in (".npz", ".mat"):
        return path.suffix
    if path.suffix and not path.is_dir():
        raise InputError(f"A file of a system must {KINDS}; got {path}. Rename it.")
    return ""


def check_target(path: str | os.PathLike[str]) -> str:
    """Return the suffix of a path that `save_system` can write; found before any work is done."""
    path = as_path(path)
    suffix = _system_suffix(path)
    if suffix or not path.is_dir():
        mode = check_place(path)
        if suffix == "" and mode is not None:
            raise InputError(f"A file of a system must {KINDS}; got the file {path}. Give it a suffix.")
    return suffix


def check_place(path: str | os.PathLike[str]) -> int | None:
    """Return the permissions of the file that writing would replace, None for a new one; refuse what cannot be."""
    path = as_path(path)
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise InputError(f"The folder of a file must exist; got {path}. Make {target.parent} first.")
    if not target.exists():
        return None
    if not target.is_file():
        raise InputError(f"A file must be a new or a regular one; got {path}, which is something else. Rename it.")
    if not os.access(target, os.W_OK):
        raise PermissionError(13, "It is protected against writing", str(path))
    return stat.S_IMODE(target.stat().st_mode) & 0o777


def as_path(path: Any, name: str = "path") -> Path:
    """Return the name of a file or folder as a path."""
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str) or text == "" or "\0" in text:
        raise InputError(f"{name} must be the name of a file or folder, a str or a path; got {path!r}.")
    return Path(text)


def _sync(folder: Path) -> None:
    """Put the names in a folder on the disk, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# From a system to entries and back


def _entries(system: LinearSystem, suffix: str, path: Path) -> dict[str, Any]:
    """Entries of a file with this suffix, "" for a folder, all of which `load_system` can read."""
    if system.is_sparse and suffix == ".npz":
        raise InputError(
            f"A .npz file holds arrays; got sparse matrices for {path}. Save the system as .mat or folder."
        )
    if system.is_sparse:
        system = system.first_order()  # type: ignore[attr-defined]
    if not system.is_diagonal:
        entries = {key: getattr(system, key) for key in MATRICES if getattr(system, key) is not None}
    elif suffix == ".npz":
        arrays = {"B": system.B, "C": system.C, "D": system.D}
        entries = {**system.spectrum.data, **arrays, "output": system.output}  # type: ignore[attr-defined]
    else:
        raise InputError(
            f"A .mat file or a folder holds A, B, C and D; got a {type(system).__name__} for {path}. "
            f"Save it as .npz, or save system.dense()."
        )
    if suffix == "" and system.n == 0 and not system.D.size and system.m + system.p:
        raise InputError(
            f"A folder of .csv files cannot hold a system without states and without inputs or outputs; "
            f"got m={system.m}, p={system.p} for {path}. Save it as .npz."
        )
    entries["dt"] = system.dt if system.dt is True or system.dt < 2**53 else float(system.dt)
    for key in NAMES:
        value = getattr(system, key)
        if value is None:
            continue
        if any(UNSTORABLE.search(name) for name in ([value] if key == "name" else value)):
            raise InputError(
                f"The names of a system must be text without null characters to be saved; got {key}={value!r}. "
                f"Rename them before saving."
            )
        entries[key] = value if key == "name" else list(value)
    return entries


def _from_entries(entries: Mapping[str, Any], dt: Any) -> Any:
    """Build the system that the entries of a file describe."""
    stored = entries.get("dt", dt)
    if stored is None:
        raise InputError(
            "It does not say its sampling time; got no entry dt. Pass dt to load_system (--dt on the command "
            "line): 0 for a continuous system, the seconds of a discrete one, or True if those are unknown."
        )
    stored = check_dt(stored)
    if dt is not None and (stored != dt or (stored is True) != (dt is True)):
        raise InputError(f"dt must be that of the file; got dt={dt} and a file with dt={stored}. Leave dt out.")
    matrix = next((key for key in ("lam", "rates") if key in entries), "A")
    kinds = [key for key in ("A", "E", "lam", "rates") if key in entries]
    if matrix != "A" and len(kinds) > 1:
        raise InputError(f"It must hold one system; got {' and '.join(kinds)}. Save one of them under another name.")
    missing = [key for key in (matrix, "B", "C") if key not in entries]
    if missing:
        held = ", ".join(sorted(entries["held"])[:20]) or "nothing"
        raise InputError(
            f"It must hold A, B and C; got {held}, without {' and '.join(missing)}. Rename the matrices in the file."
        )
    arrays = {key: entries[key] for key in (matrix, "B", "C", "D", "E") if key in entries}
    if not (is_sparse(arrays[matrix]) and arrays[matrix].shape[0] > SPARSE_FROM):
        arrays = {key: as_dense(x) for key, x in arrays.items()}
    names = {key: entries[key] for key in NAMES if key in entries}
    if "name" in names:
        names["name"] = "".join(names["name"])
    B, C, D = arrays["B"], arrays["C"], arrays.get("D")
    if matrix == "A":
        return StateSpace(arrays["A"], B, C, D, stored, arrays.get("E"), **names)
    kind: Any = DiagonalBank if arrays[matrix].ndim == 2 else DiagonalSystem
    output = "".join(entries.get("output", ["complex"]))
    return (kind.from_rates if matrix == "rates" else kind)(arrays[matrix], B, C, D, dt=stored, output=output, **names)


def _write_folder(folder: Path, entries: dict[str, Any]) -> None:
    """Write the files of a system; dt.csv is away while the others change."""
    folder.mkdir(exist_ok=True)
    (folder / "dt.csv").unlink(missing_ok=True)
    _sync(folder)
    contents = texts(entries)
    for key in FILES:
        kind = "mtx" if is_sparse(entries.get(key)) else "csv"
        if key in contents:
            path = folder / f"{key}.{kind}"
            write_atomically(path, lambda file, lines=contents[key]: file.writelines(lines))  # type: ignore[misc]
        for other in ("csv", "mtx"):
            if key not in contents or other != kind:
                (folder / f"{key}.{other}").unlink(missing_ok=True)  # of the system before
