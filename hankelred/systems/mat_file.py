"""Reader of MATLAB files, versions 4 to 7: numbers, texts and structures, of which only those of a system are read.

Written here because a front door must not crash: what a file declares is compared with what it holds, and with a limit,
before anything is allocated or decompressed. Every error is an `InputError`; the caller adds the path.

The format of version 5 (of which 6 and 7 are dialects) is a row of elements, each with a tag (type, bytes). A variable
is an element of elements: flags, dimensions, name, then data as its class has them. In version 7 each variable is
compressed as a whole. Version 4 has a header of five integers and the numbers in the order of the columns.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from ..checks import Array
from ..errors import InputError
from .entries import Budget, expect

# Bytes at the front of a variable that tell its name, and the names of the fields of a structure.
FRONT = 2**16

NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
TEXTS = {1: "latin-1", 2: "utf-8", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
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


@dataclass
class _Header:
    kind: int
    flags: int
    shape: tuple[int, ...]
    name: str
    class_name: str = ""

    @property
    def count(self) -> int:
        return math.prod(self.shape)


class _Bytes:
    """Bytes of a variable, taken from the front; more than there are is an error."""

    def __init__(self, data: bytes | memoryview, order: str) -> None:
        self.rest, self.order = memoryview(data), order

    def take(self, count: int) -> memoryview:
        expect(count <= len(self.rest), TOO_SHORT)
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def element(self) -> tuple[int, memoryview]:
        """Return type and data of the next element, without its padding to eight bytes."""
        (kind,) = struct.unpack(f"{self.order}I", self.take(4))
        if kind >> 16:  # up to four bytes stand in the tag itself
            return kind & 0xFFFF, self.take(4)[: kind >> 16]
        (count,) = struct.unpack(f"{self.order}I", self.take(4))
        data = self.take(count)
        self.take(min(-count % 8, len(self.rest)))
        return kind, data

    def variable(self) -> _Bytes:
        kind, data = self.element()
        expect(kind == MATRIX, f"type {kind} stands where a variable must be")
        return _Bytes(data, self.order)

    def numbers(self) -> Array:
        """Return the next element as it is stored."""
        kind, data = self.element()
        expect(kind in NUMBERS, f"type {kind} stands where numbers must be")
        dtype = np.dtype(self.order + NUMBERS[kind])
        expect(len(data) % dtype.itemsize == 0, f"{len(data)} bytes are no numbers of {dtype.itemsize} bytes")
        return np.frombuffer(data, dtype)

    def name(self) -> str:
        return bytes(self.element()[1]).decode("latin-1")

    def text(self) -> str:
        kind, data = self.element()
        expect(kind in TEXTS, f"type {kind} stands where text must be")
        order = {"<": "-le", ">": "-be"}[self.order] if TEXTS[kind] in ("utf-16", "utf-32") else ""
        try:
            return bytes(data).decode(TEXTS[kind] + order)
        except UnicodeDecodeError as error:
            raise InputError(f"It is damaged: a text cannot be read ({error.reason}). Save it again.") from error

    def header(self) -> _Header:
        flags = self.numbers()
        expect(flags.dtype.itemsize == 4 and len(flags) == 2, "a variable has no flags")
        kind, bits = int(flags[0]) & 0xFF, int(flags[0]) >> 8
        if kind == OPAQUE:  # a name, the type of its system of classes, its class
            name, _, class_name = self.name(), self.name(), self.name()
            return _Header(kind, bits, (), name, class_name)
        shape = tuple(int(size) for size in self.numbers())
        expect(2 <= len(shape) <= 32 and min(shape) >= 0, f"a variable has dimensions {shape[:4]}")
        return _Header(kind, bits, shape, self.name(), self.name() if kind == OBJECT else "")

    def fields(self) -> list[str]:
        """Return the names of the fields of a structure."""
        width, names = self.numbers(), bytes(self.element()[1])
        valid = len(width) == 1 and width[0] >= 1 and len(names) % width[0] == 0
        expect(valid, "a structure has no list of its fields")
        step = int(width[0])
        return [names[k : k + step].split(b"\0")[0].decode("latin-1") for k in range(0, len(names), step)]


def read_mat(file: BinaryIO, wanted: Collection[str], fields: Collection[str]) -> MatFile:
    """Read the wanted variables, and those fields of every single structure that has A, B and C (or a, b and c)."""
    size = file.seek(0, 2)
    file.seek(0)
    start = file.read(128)
    found, budget = MatFile(), Budget()
    if len(start) >= 4 and 0 in start[:4]:  # version 5 begins with text
        file.seek(0)
        for name, value in _read_4(file, size, wanted, budget):
            found.names.append(name)
            if name in wanted:
                _put(found.values, name, value)
        return found
    order = {b"IM": "<", b"MI": ">"}.get(start[126:])
    if start.startswith(b"\x89HDF") or order and start[124:126] in (b"\x00\x02", b"\x02\x00"):
        raise InputError(VERSION_7_3)
    if order is None or struct.unpack(f"{order}H", start[124:126]) != (0x0100,):
        raise InputError(NO_MAT_FILE)
    for front, whole in _variables(file, size, order, budget):
        part = _Bytes(front, order)
        header = part.header()
        if not header.name:  # what MATLAB keeps for its objects
            continue
        found.names.append(header.name)
        if header.class_name:
            found.objects[header.name] = header.class_name
        if header.kind == STRUCT and header.count == 1 and _describes_a_system(part):
            _put(found.structures, header.name, _structure(_Bytes(whole(), order), fields, budget))
        elif header.name in wanted:
            _put(found.values, header.name, _value(_Bytes(whole(), order), budget))
    return found


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    if name in values:
        raise InputError(f"It holds {name} twice. Save it again.")
    values[name] = value


def _variables(file: BinaryIO, size: int, order: str, budget: Budget) -> Iterator[tuple[bytes, Callable[[], bytes]]]:
    """Yield of each variable its front and a function that returns the whole; what is not asked for is skipped."""
    while tag := file.read(8):
        kind, count = struct.unpack(f"{order}2I", tag) if len(tag) == 8 else (0, 0)
        place = file.tell()
        expect(kind in (MATRIX, COMPRESSED) and place + count <= size, "it ends early, or holds no variables")
        if kind == COMPRESSED:
            yield _inflate(file.read(count), order, budget)
        else:
            front = file.read(min(count, FRONT))

            def whole(front: bytes = front, count: int = count) -> bytes:
                budget.check(count)
                return front + file.read(count - len(front))

            yield front, whole
        file.seek(place + count)


def _inflate(data: bytes, order: str, budget: Budget) -> tuple[bytes, Callable[[], bytes]]:
    """Decompress the front of a variable; the function returned goes on to the size its tag declares and its sum."""
    stream = zlib.decompressobj()

    def more(data: bytes, count: int) -> bytes:
        try:
            return stream.decompress(data, count)
        except zlib.error as error:
            raise InputError(f"It is damaged: {error}. Copy or save it again.") from error

    start = more(data, 8 + FRONT)
    kind, count = struct.unpack(f"{order}2I", start[:8]) if len(start) >= 8 else (0, 0)
    expect(kind == MATRIX, "a compressed part is no variable")

    def whole() -> bytes:
        budget.check(count)
        missing = 8 + count - len(start)
        body = start + more(stream.unconsumed_tail, missing) if missing > 0 else start
        beyond = b"" if stream.eof else more(stream.unconsumed_tail, 1)  # the sum is checked at the end
        valid = len(body) == 8 + count and stream.eof and not beyond
        expect(valid, "a compressed variable has another size than it declares")
        return body[8:]

    return start[8 : 8 + count], whole


def _describes_a_system(part: _Bytes) -> bool:
    """Tell from its front whether a structure has A, B, C or a, b, c; one of more fields than fit there has not."""
    try:
        names = set(part.fields())
    except InputError:
        return False
    return names >= set("ABC") or names >= set("abc")


def _structure(body: _Bytes, fields: Collection[str], budget: Budget) -> dict[str, Any]:
    """Return the wanted fields of a single structure."""
    body.header()
    values: dict[str, Any] = {}
    for name in body.fields():
        if name not in fields:
            body.element()
            continue
        part = body.variable()
        _put(values, name, _value(part, budget) if part.rest else np.empty((0, 0)))
    return values


def _value(body: _Bytes, budget: Budget) -> Any:
    """Return a variable: an array, a sparse array or a list of texts; an `InputError` for other kinds."""
    header = body.header()
    if header.kind == CHAR:
        return _rows_of_text(body, header.shape)
    if header.kind == CELL:
        expect(8 * header.count <= len(body.rest), f"a cell array declares {header.count} cells and holds fewer")
        return [_cell(body.variable()) for _ in range(header.count)]
    if header.kind == SPARSE:
        return _sparse(body, header)
    if header.kind not in CLASSES:
        raise InputError(
            f"{header.name or 'A field'} must hold numbers or texts; got {KINDS.get(header.kind, 'something else')}. "
            f"Save the matrices of the system under the names A, B, C, D."
        )
    dtype = np.dtype(bool if header.flags & LOGICAL else CLASSES[header.kind])
    count, parts = header.count, 2 if header.flags & COMPLEX else 1
    budget.spend(count * dtype.itemsize * parts)
    stored = [body.numbers() for _ in range(parts)]  # in the precision of their class, or in fewer bytes
    valid = all(len(part) == count and (part.dtype.kind != "f" or dtype.kind == "f") for part in stored)
    expect(valid, f"a variable declares {count} entries and holds {len(stored[-1])}, or not of its kind")
    return _joined(stored, dtype).reshape(header.shape, order="F")


def _joined(parts: list[Array], dtype: np.dtype[Any]) -> Array:
    """Return numbers in a precision, of a real and an imaginary part if there are two; what overflows is infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if len(parts) == 1:
            return parts[0].astype(dtype)
        z = np.empty(len(parts[0]), dtype=np.complex64 if dtype == np.float32 else np.complex128)
        z.real, z.imag = parts
        return z


def _sparse(body: _Bytes, header: _Header) -> Any:
    """Return a sparse matrix: rows of the entries, where each column begins, and the entries."""
    shape, rows, begins = header.shape, body.numbers(), body.numbers()
    expect(len(shape) == 2 and len(begins) == shape[1] + 1, OUTSIDE)
    expect(rows.dtype.kind in "iu" and begins.dtype.kind in "iu", OUTSIDE)
    rows, begins = rows.astype(np.int64), begins.astype(np.int64)
    count = int(begins[-1])
    expect(begins[0] == 0 and np.all(begins[1:] >= begins[:-1]) and count <= len(rows), OUTSIDE)
    rows = rows[:count]
    expect(np.all((rows >= 0) & (rows < shape[0])), OUTSIDE)
    if header.flags & LOGICAL:  # bytes, whatever their tag says
        parts = [np.frombuffer(body.element()[1], np.uint8)[:count]]
    else:
        parts = [body.numbers()[:count] for _ in range(2 if header.flags & COMPLEX else 1)]
    expect(all(len(part) == count for part in parts), f"a sparse matrix lacks some of its {count} entries")
    import scipy.sparse  # most files have none

    return scipy.sparse.csc_array((_joined(parts, np.dtype(np.float64)), rows, begins), shape=(shape[0], shape[1]))


def _rows_of_text(body: _Bytes, shape: tuple[int, ...]) -> list[str]:
    """Return the rows of an array of characters, without the blanks that make them equally long."""
    text = body.text()
    if len(shape) != 2 or shape[0] <= 1:
        return [text]
    expect(len(text) == math.prod(shape), f"a text of {len(text)} characters has dimensions {shape}")
    return [text[row :: shape[0]].rstrip(" ") for row in range(shape[0])]


def _cell(part: _Bytes) -> str:
    """Return the text of one cell; '' and [] are none."""
    header = part.header() if part.rest else _Header(CHAR, 0, (0, 0), "")
    if header.count == 0 and header.kind in (CHAR, DOUBLE):
        return ""
    if header.kind != CHAR:
        raise InputError("A cell array must hold texts, the names of signals; it holds something else.")
    return "".join(_rows_of_text(part, header.shape))


def _read_4(file: BinaryIO, size: int, wanted: Collection[str], budget: Budget) -> Iterator[tuple[str, Any]]:
    """Yield names and values of a file of version 4; None for what is not wanted."""
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
        value: Any = None
        if name in wanted:
            budget.spend(8 * count)
            parts = np.split(np.frombuffer(file.read(count * stored.itemsize), stored), 1 + imaginary)
            x = _joined(parts, np.dtype(np.float32 if stored.kind == "f" and stored.itemsize == 4 else np.float64))
            value = (np.asarray, _text_4, _sparse_4)[kind](x.reshape((rows, columns), order="F"))
        yield name, value
        file.seek(end)


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
    return scipy.sparse.coo_array((entries, tuple(places.T - 1)), shape=shape).tocsc()
