"""The entries of a system in a ``.npz`` file: the arrays that are known by name, after a look at their headers."""

from __future__ import annotations

import errno
import math
import zlib
from typing import Any, BinaryIO

import numpy as np

from ..checks import Array
from ..errors import InputError
from .entries import IN_FILES, MATRICES, Budget, expect

KNOWN = {key: key for key in (*MATRICES, "lam", "rates", "output", "dt")} | {IN_FILES[key]: key for key in IN_FILES}


def write_npz(file: BinaryIO, entries: dict[str, Any]) -> None:
    """Write the entries of a system."""
    np.savez(file, **{IN_FILES.get(key, key): value for key, value in entries.items()})


def read_npz(file: BinaryIO) -> dict[str, Any]:
    """Return the entries of a system; under "held" the names of all there are."""
    import zipfile  # takes ten milliseconds, and most programs never come here

    if file.read(6) == b"\x93NUMPY":
        raise InputError("It holds one array without a name. Write it with numpy.savez, or use save_system.")
    entries: dict[str, Any] = {}
    budget = Budget()
    try:
        with zipfile.ZipFile(file) as archive:
            held = [name.removesuffix(".npy") for name in archive.namelist()]
            for info, label in zip(archive.infolist(), held, strict=True):
                if label not in KNOWN:
                    continue
                if KNOWN[label] in entries:
                    raise InputError(f"It holds {label} twice. Save it again.")
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
                    raise InputError(f"{label} is encrypted or compressed in an unknown way. Use numpy.savez.")
                budget.spend(info.file_size)
                with archive.open(info) as stream:
                    array = _array(stream, label, info.file_size)
                is_text = label == "output" or label in IN_FILES.values()
                entries[KNOWN[label]] = _texts(array, KNOWN[label]) if is_text else array
    except InputError:
        raise
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the file: the archive's table of contents is damaged
            raise
        raise InputError("It is damaged: an entry is not where it should be. Copy or save it again.") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"It is no .npz file, or it is damaged ({error}). Copy or save it again.") from error
    if "dt" in entries:
        dt = entries["dt"]
        if dt.size != 1 or dt.dtype.kind == "U":
            raise InputError(f"dt must be one number or True; got an array of {dt.size} entries. Save it again.")
        entries["dt"] = dt.item()  # bool, int and float stay what they are
    return {**entries, "held": held}


def _array(stream: Any, label: str, size: int) -> Array:
    """Return an array from its stream of so many bytes, if that is what its header declares."""
    formats = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, fortran_order, dtype = formats[np.lib.format.read_magic(stream)](stream)
    except Exception as error:  # whatever a parser of Python's literals can raise; NumPy advises to trust the file
        raise InputError(f"{label} is damaged: its header cannot be read. Copy or save it again.") from error
    if dtype.kind not in "biufcU" or dtype.itemsize > 16 and dtype.kind != "U":
        raise InputError(f"{label} must hold numbers or text; got dtype {dtype}. Save the numbers themselves.")
    count = math.prod(shape)
    declared = count * dtype.itemsize
    possible = min(shape, default=0) >= 0 and declared <= size and count <= size
    expect(possible, f"{label} declares {declared} bytes and has {size}")
    data = stream.read(declared)
    expect(len(data) == declared and not stream.read(1), f"{label} has another size than it declares")
    array = np.frombuffer(data, dtype) if declared else np.empty(count, dtype)
    with np.errstate(invalid="ignore"):
        return array.reshape(shape, order="F" if fortran_order else "C").astype(dtype.newbyteorder("="))


def _texts(array: Array, key: str) -> list[str]:
    if array.dtype.kind != "U":
        raise InputError(f"The entry for {key} must hold text; got dtype {array.dtype}. Save it again.")
    return [str(x) for x in array.ravel()]  # ValueError where a code is no character
