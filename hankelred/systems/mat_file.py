"""Reader of MATLAB files, versions 4 to 7: numbers, texts and structures, of which only those of a system are read.

`scipy.io.loadmat` is not used: one flipped bit in a type tag crashes the process in SciPy 1.17, and a guard in front
of it would have to check every tag, size and index, as this reader does. What a file declares is compared with what it
holds, and with a limit, before anything is allocated or decompressed. Every error is an `InputError`; the caller adds
the path.

The format of version 5 (of which 6 and 7 are dialects) is a row of elements, each with a tag (type, bytes). A variable
is an element of elements: flags, dimensions, name, then data as its class has them. In version 7 each variable is
compressed as a whole. Version 4 has a header of five integers and the numbers in the order of the columns.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from ..checks import Array
from ..errors import InputError
from .entries import Budget, expect

# Bytes at the front of a variable that tell its name, and the names of the fields of a structure.
FRONT = 2**16

NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
TEXTS = {1: "latin-1", 2: "utf-8", 4: "utf-16-{}", 16: "utf-8", 17: "utf-16-{}", 18: "utf-32-{}"}
MATRIX, COMPRESSED = 14, 15
CELL, STRUCT, OBJECT, CHAR, SPARSE, DOUBLE, OPAQUE = 1, 2, 3, 4, 5, 6, 17
LOGICAL, COMPLEX = 0x02, 0x08
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
KINDS = {STRUCT: "a structure", OBJECT: "an object", OPAQUE: "an object"}
NUMBERS_4 = {0: "f8", 1: "f4", 2: "i4", 3: "i2", 4: "u2", 5: "u1"}

VERSION_7_3 = 'It has version 7.3 of MATLAB, which is HDF5. Save it with save(..., "-v7").'
NO_MAT_FILE = 'It is no MATLAB file of versions 4 to 7. Save it with save(..., "-v7").'
TOO_SHORT = "a part of it is longer than the whole"
OUTSIDE = "a sparse matrix has entries outside of its shape"


@dataclass
class MatFile:
    """What was found: values of wanted variables, structures field by field, names of all, classes of objects."""

    values: dict[str, Any] = field(default_factory=dict)
    structures: dict[str, dict[str, Any]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    objects: dict[str, str] = field(default_factory=dict)


def read_mat(file: BinaryIO, wanted: Collection[str], fields: Collection[str]) -> MatFile:
    """Read the wanted variables, and those fields of every single structure that has A, B and C (or a, b and c)."""
    size = file.seek(0, 2)
    file.seek(0)
    start = file.read(128)
    if len(start) >= 4 and 0 in start[:4]:  # version 5 begins with text
        return _read_4(file, size, wanted)
    order = {b"IM": "<", b"MI": ">"}.get(start[126:])
    if start.startswith(b"\x89HDF") or order and start[124:126] in (b"\x00\x02", b"\x02\x00"):
        raise InputError(VERSION_7_3)
    if order is None or struct.unpack(f"{order}H", start[124:126]) != (0x0100,):
        raise InputError(NO_MAT_FILE)
    found, budget = MatFile(), Budget()
    while tag := file.read(8):
        kind, count = struct.unpack(f"{order}2I", tag.ljust(8, b"\0"))
        end = file.tell() + count
        expect(kind in (MATRIX, COMPRESSED) and end <= size, "it ends early, or holds no variables")
        if kind == COMPRESSED:
            packed = file.read(count)
            front = _inflated(packed, 8 + FRONT)
            kind, count = struct.unpack(f"{order}2I", front[:8].ljust(8, b"\0"))
            expect(kind == MATRIX, "a compressed part is no variable")
            front = front[8 : 8 + count]
        else:
            packed, front = b"", file.read(min(count, FRONT))
        variable = _Variable(front, order, budget)
        name, is_system = variable.name, variable.describes_a_system()
        if name:  # others are what MATLAB keeps for its objects
            found.names.append(name)
        if variable.class_name:
            found.objects[name] = variable.class_name
        if name and is_system or name in wanted:
            budget.check(count)
            body = _inflated(packed, 8 + count + 1)[8:] if packed else front + file.read(count - len(front))
            expect(len(body) == count, "a compressed variable has another size than it declares")
            variable = _Variable(body, order, budget)
            if is_system:
                _put(found.structures, name, variable.structure(fields))
            else:
                _put(found.values, name, variable.value())
        file.seek(end)
    return found


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    if name in values:
        raise InputError(f"It holds {name} twice. Save it again.")
    values[name] = value


def _inflated(packed: bytes, most: int) -> bytes:
    """Decompress at most so many bytes; where that is more than there are, their sum is checked."""
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(packed, most)
    except zlib.error as error:
        raise InputError(f"It is damaged: {error}. Copy or save it again.") from error
    expect(stream.eof or len(data) == most, "a compressed part ends early")
    return data


class _Variable:
    """A variable, taken apart from the front: here its flags, shape and names; more than it has is an error."""

    def __init__(self, data: bytes | memoryview, order: str, budget: Budget) -> None:
        self.rest, self.order, self.budget = memoryview(data), order, budget
        flags = self.numbers()
        expect(flags.dtype.itemsize == 4 and len(flags) == 2, "a variable has no flags")
        self.kind, self.flags = int(flags[0]) & 0xFF, int(flags[0]) >> 8
        self.shape: tuple[int, ...] = ()
        if self.kind == OPAQUE:  # a name, the type of its system of classes, its class
            self.name, _, self.class_name = self.label(), self.label(), self.label()
            return
        self.shape = tuple(int(size) for size in self.numbers())
        expect(2 <= len(self.shape) <= 32 and min(self.shape) >= 0, f"a variable has dimensions {self.shape[:4]}")
        self.name = self.label()
        self.class_name = self.label() if self.kind == OBJECT else ""

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def take(self, count: int) -> memoryview:
        expect(count <= len(self.rest), TOO_SHORT)
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def element(self) -> tuple[int, memoryview]:
        """Return type and data of the next element, without its padding to eight bytes."""
        tag = self.take(8)
        kind, count = struct.unpack(f"{self.order}2I", tag)
        if kind >> 16:  # up to four bytes stand in the tag itself
            return kind & 0xFFFF, tag[4 : 4 + (kind >> 16)]
        data = self.take(count)
        self.take(min(-count % 8, len(self.rest)))
        return kind, data

    def part(self) -> _Variable | None:
        """Return the next element, a variable; None for MATLAB's []."""
        kind, data = self.element()
        expect(kind == MATRIX, f"type {kind} stands where a variable must be")
        return _Variable(data, self.order, self.budget) if data else None

    def numbers(self) -> Array:
        """Return the next element as it is stored."""
        kind, data = self.element()
        expect(kind in NUMBERS, f"type {kind} stands where numbers must be")
        dtype = np.dtype(self.order + NUMBERS[kind])
        expect(len(data) % dtype.itemsize == 0, f"{len(data)} bytes are no numbers of {dtype.itemsize} bytes")
        return np.frombuffer(data, dtype)

    def label(self) -> str:
        return str(self.element()[1], "latin-1")

    def fields(self) -> list[str]:
        """Return the names of the fields of a structure."""
        width, names = self.numbers(), self.label()
        step = int(width[0]) if len(width) == 1 else 0
        expect(step >= 1 and len(names) % step == 0, "a structure has no list of its fields")
        return [names[k : k + step].split("\0")[0] for k in range(0, len(names), step)]

    def describes_a_system(self) -> bool:
        """Tell from its front whether this is one structure with A, B, C or a, b, c."""
        if self.kind == STRUCT and self.count == 1:
            with suppress(InputError):  # one of more fields than the front holds is none
                fields = set(self.fields())
                return fields >= set("ABC") or fields >= set("abc")
        return False

    def structure(self, wanted: Collection[str]) -> dict[str, Any]:
        """Return the wanted fields of a single structure."""
        values: dict[str, Any] = {}
        for name in self.fields():
            if name not in wanted:
                self.element()
            else:
                part = self.part()
                _put(values, name, np.empty((0, 0)) if part is None else part.value())
        return values

    def value(self) -> Any:
        """Return an array, a sparse array or a list of texts; an `InputError` for other kinds."""
        if self.kind == CHAR:
            return self.texts()
        if self.kind == CELL:
            expect(8 * self.count <= len(self.rest), f"a cell array declares {self.count} cells and holds fewer")
            return [self.cell() for _ in range(self.count)]
        if self.kind == SPARSE:
            return self.sparse()
        if self.kind not in CLASSES:
            raise InputError(
                f"{self.name or 'A field'} must hold numbers or texts; got {KINDS.get(self.kind, 'something else')}. "
                f"Save the matrices of the system under the names A, B, C, D."
            )
        dtype = np.dtype(bool if self.flags & LOGICAL else CLASSES[self.kind])
        count, parts = self.count, 2 if self.flags & COMPLEX else 1
        self.budget.spend(count * dtype.itemsize * parts)
        stored = [self.numbers() for _ in range(parts)]  # in the precision of their class, or in fewer bytes
        valid = all(len(part) == count and (part.dtype.kind != "f" or dtype.kind == "f") for part in stored)
        expect(valid, f"a variable declares {count} entries and holds {len(stored[-1])}, or not of its kind")
        return _joined(stored, dtype).reshape(self.shape, order="F")

    def sparse(self) -> Any:
        """Return a sparse matrix: rows of the entries, where each column begins, and the entries."""
        rows, begins = self.numbers(), self.numbers()
        expect(len(self.shape) == 2 and len(begins) == self.shape[1] + 1, OUTSIDE)
        expect(rows.dtype.kind in "iu" and begins.dtype.kind in "iu", OUTSIDE)
        rows, begins = rows.astype(np.int64), begins.astype(np.int64)
        count = int(begins[-1])
        expect(begins[0] == 0 and np.all(begins[1:] >= begins[:-1]) and count <= len(rows), OUTSIDE)
        rows = rows[:count]
        expect(np.all((rows >= 0) & (rows < self.shape[0])), OUTSIDE)
        if self.flags & LOGICAL:  # bytes, whatever their tag says
            parts = [np.frombuffer(self.element()[1], np.uint8)[:count]]
        else:
            parts = [self.numbers()[:count] for _ in range(2 if self.flags & COMPLEX else 1)]
        expect(all(len(part) == count for part in parts), f"a sparse matrix lacks some of its {count} entries")
        import scipy.sparse  # most files have none

        return scipy.sparse.csc_array(
            (_joined(parts, np.dtype(np.float64)), rows, begins), shape=(self.shape[0], self.shape[1])
        )

    def texts(self) -> list[str]:
        """Return the rows of an array of characters, without the blanks that make them equally long."""
        kind, data = self.element()
        expect(kind in TEXTS, f"type {kind} stands where text must be")
        try:
            text = str(data, TEXTS[kind].format("le" if self.order == "<" else "be"))
        except UnicodeDecodeError as error:
            raise InputError(f"It is damaged: a text cannot be read ({error.reason}). Save it again.") from error
        if len(self.shape) != 2 or self.shape[0] <= 1:
            return [text]
        expect(len(text) == self.count, f"a text of {len(text)} characters has dimensions {self.shape}")
        return [text[row :: self.shape[0]].rstrip(" ") for row in range(self.shape[0])]

    def cell(self) -> str:
        """Return the text of the next cell; '' and [] are none."""
        part = self.part()
        if part is None or part.count == 0 and part.kind in (CHAR, DOUBLE):
            return ""
        if part.kind != CHAR:
            raise InputError("A cell array must hold texts, the names of signals; it holds something else.")
        return "".join(part.texts())


def _joined(parts: list[Array], dtype: np.dtype[Any]) -> Array:
    """Return numbers in a precision, of a real and an imaginary part if there are two; what overflows is infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if len(parts) == 1:
            return parts[0].astype(dtype)
        z = np.empty(len(parts[0]), dtype=np.complex64 if dtype == np.float32 else np.complex128)
        z.real, z.imag = parts
        return z


def _read_4(file: BinaryIO, size: int, wanted: Collection[str]) -> MatFile:
    """Read the wanted variables of a file of version 4."""
    found, budget = MatFile(), Budget()
    file.seek(0)
    while front := file.read(20):
        if len(front) < 20:
            raise InputError(NO_MAT_FILE)
        order, machine = ("<", 0) if struct.unpack("<i", front[:4])[0] in range(100) else (">", 10)
        code, rows, columns, imaginary, length = struct.unpack(f"{order}5i", front)
        precision, kind = code % 100 // 10, code % 10  # kind: 0 numbers, 1 text, 2 sparse
        known = code // 100 == machine and precision in NUMBERS_4 and kind <= 2 and imaginary in (0, 1)
        if not known or not 1 < length < 256 or min(rows, columns) < 0:
            raise InputError(NO_MAT_FILE)
        name = file.read(length).rstrip(b"\0").decode("latin-1")
        stored = np.dtype(order + NUMBERS_4[precision])
        count = rows * columns * (1 + imaginary)
        end = file.tell() + count * stored.itemsize
        expect(end <= size, TOO_SHORT)
        found.names.append(name)
        if name in wanted:
            budget.spend(8 * count)
            parts = np.split(np.frombuffer(file.read(count * stored.itemsize), stored), 1 + imaginary)
            x = _joined(parts, np.dtype(np.float32 if stored.kind == "f" and stored.itemsize == 4 else np.float64))
            _put(found.values, name, (np.asarray, _text_4, _sparse_4)[kind](x.reshape((rows, columns), order="F")))
        file.seek(end)
    return found


def _text_4(codes: Array) -> list[str]:
    """Return rows of characters, stored as numbers."""
    expect(not np.iscomplexobj(codes) and np.all((codes >= 0) & (codes < 0xD800)), "a text holds no characters")
    return ["".join(chr(int(code)) for code in row).rstrip(" ") for row in codes]


def _sparse_4(table: Array) -> Any:
    """Return the sparse matrix of rows (i, j, value), of which the last holds the shape."""
    expect(table.shape[1] in (3, 4) and len(table) > 0 and not np.iscomplexobj(table), OUTSIDE)
    index = table[:, :2].astype(np.float64)
    expect(np.all((index >= 0) & (index < 2**31)) and np.array_equal(index, np.floor(index)), OUTSIDE)
    places, shape = index[:-1].astype(np.int64), tuple(map(int, index[-1]))
    expect(np.all((places >= 1) & (places <= shape)), OUTSIDE)
    import scipy.sparse

    entries = _joined([table[:-1, k] for k in range(2, table.shape[1])], np.dtype(np.float64))
    return scipy.sparse.coo_array((entries, tuple(places.T - 1)), shape=shape)
