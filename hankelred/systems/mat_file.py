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
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from ..checks import Array
from ..errors import InputError

# Bytes that the matrices of one file may have altogether: a square matrix of 16,384 states.
LIMIT = 2**31
# Bytes at the front of a variable that tell its name, and the names of the fields of a structure.
FRONT = 2**16

NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
TEXTS = {1: "latin-1", 2: "utf-8", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
MATRIX, COMPRESSED = 14, 15
CELL, STRUCT, OBJECT, CHAR, SPARSE, OPAQUE = 1, 2, 3, 4, 5, 17
LOGICAL, COMPLEX = 0x02, 0x08
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
KINDS = {STRUCT: "a structure", OBJECT: "an object", OPAQUE: "an object"}
NUMBERS_4 = {0: "f8", 1: "f4", 2: "i4", 3: "i2", 4: "u2", 5: "u1"}

VERSION_7_3 = 'It has version 7.3 of MATLAB, which is HDF5. Save it with save(..., "-v7").'
NO_MAT_FILE = 'It is no MATLAB file of versions 4 to 7. Save it with save(..., "-v7").'


@dataclass
class MatFile:
    """What was found: values of wanted variables, structures field by field, names of all, classes of objects."""

    values: dict[str, Any]
    structures: dict[str, dict[str, Any]]
    names: list[str]
    objects: dict[str, str]


@dataclass
class _Header:
    kind: int
    flags: int
    shape: tuple[int, ...]
    name: str
    class_name: str = ""


class _Bytes:
    """Bytes taken from the front; more than there are is an error."""

    def __init__(self, data: bytes | memoryview, order: str) -> None:
        self.rest, self.order = memoryview(data), order

    def take(self, count: int) -> memoryview:
        if count > len(self.rest):
            raise InputError("It is damaged: a part of it is longer than the whole. Copy or save it again.")
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

    def numbers(self) -> Array:
        """Return the next element as it is stored."""
        kind, data = self.element()
        if kind not in NUMBERS:
            raise InputError(f"It is damaged: type {kind} stands where numbers must be. Copy or save it again.")
        dtype = np.dtype(self.order + NUMBERS[kind])
        if len(data) % dtype.itemsize:
            raise InputError(f"It is damaged: {len(data)} bytes are no numbers of {dtype.itemsize} bytes.")
        return np.frombuffer(data, dtype)

    def name(self) -> str:
        return bytes(self.element()[1]).decode("latin-1")

    def header(self) -> _Header:
        flags = self.numbers()
        if flags.dtype.itemsize != 4 or len(flags) != 2:
            raise InputError("It is damaged: a variable has no flags. Copy or save it again.")
        kind, bits = int(flags[0]) & 0xFF, int(flags[0]) >> 8
        if kind == OPAQUE:  # a name, the type of its system of classes, its class
            name, _, class_name = self.name(), self.name(), self.name()
            return _Header(kind, bits, (), name, class_name)
        shape = tuple(int(size) for size in self.numbers())
        if not 2 <= len(shape) <= 32 or min(shape) < 0:
            raise InputError(f"It is damaged: a variable has dimensions {shape[:4]}. Copy or save it again.")
        header = _Header(kind, bits, shape, self.name())
        if kind == OBJECT:
            header.class_name = self.name()
        return header

    def fields(self) -> list[str]:
        """Return the names of the fields of a structure."""
        width, names = self.numbers(), bytes(self.element()[1])
        if len(width) != 1 or width[0] < 1 or len(names) % width[0]:
            raise InputError("It is damaged: a structure has no list of its fields. Copy or save it again.")
        step = int(width[0])
        return [names[k : k + step].split(b"\0")[0].decode("latin-1") for k in range(0, len(names), step)]


def read_mat(file: BinaryIO, wanted: Collection[str], fields: Collection[str]) -> MatFile:
    """Read the wanted variables, and those fields of every single structure that has A, B and C (or a, b and c)."""
    size = file.seek(0, 2)
    file.seek(0)
    start = file.read(128)
    file.seek(0)
    found = MatFile({}, {}, [], {})
    if len(start) >= 4 and 0 in start[:4]:  # version 5 begins with text
        for name, value in _read_4(file, size, wanted):
            found.names.append(name)
            if name in wanted:
                _put(found.values, name, value)
        return found
    order = {b"IM": "<", b"MI": ">"}.get(start[126:])
    if start.startswith(b"\x89HDF") or order and start[124:126] in (b"\x00\x02", b"\x02\x00"):
        raise InputError(VERSION_7_3)
    if order is None or struct.unpack(f"{order}H", start[124:126]) != (0x0100,):
        raise InputError(NO_MAT_FILE)
    file.seek(128)
    spent = 0
    for front, whole in _variables(file, size, order):
        part = _Bytes(front, order)
        header = part.header()
        if not header.name:  # what MATLAB keeps for its objects
            continue
        found.names.append(header.name)
        if header.class_name:
            found.objects[header.name] = header.class_name
        single = header.kind == STRUCT and math.prod(header.shape) == 1
        is_system = single and _describes_a_system(part)
        if not is_system and header.name not in wanted:
            continue
        body = _Bytes(whole(), order)
        value, cost = _structure(body, fields, spent) if is_system else _value(body, spent)
        spent += cost
        _put(found.structures if is_system else found.values, header.name, value)
    return found


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    if name in values:
        raise InputError(f"It holds {name} twice. Save it again.")
    values[name] = value


def _variables(file: BinaryIO, size: int, order: str) -> Iterator[tuple[bytes, Any]]:
    """Yield of each variable its front and a function that returns the whole; what is not asked for is skipped."""
    while tag := file.read(8):
        kind, count = struct.unpack(f"{order}2I", tag) if len(tag) == 8 else (0, 0)
        place = file.tell()
        if kind not in (MATRIX, COMPRESSED) or place + count > size:
            raise InputError("It is damaged or ends early. Copy or save it again.")
        if kind == COMPRESSED:
            yield _inflate(file.read(count), order)
        else:
            front = file.read(min(count, FRONT))

            def whole(front: bytes = front, count: int = count) -> bytes:
                _check_size(count)
                return front + file.read(count - len(front))

            yield front, whole
        file.seek(place + count)


def _inflate(data: bytes, order: str) -> tuple[bytes, Any]:
    """Decompress the front of a variable; the function returned goes on to the size its tag declares and its sum."""
    stream = zlib.decompressobj()

    def more(data: bytes, count: int) -> bytes:
        try:
            return stream.decompress(data, count)
        except zlib.error as error:
            raise InputError(f"It is damaged: {error}. Copy or save it again.") from error

    start = more(data, 8 + FRONT)
    kind, count = struct.unpack(f"{order}2I", start[:8]) if len(start) >= 8 else (0, 0)
    if kind != MATRIX:
        raise InputError("It is damaged: a compressed part is no variable. Copy or save it again.")

    def whole() -> bytes:
        _check_size(count)
        missing = 8 + count - len(start)
        body = start + more(stream.unconsumed_tail, missing) if missing > 0 else start
        beyond = b"" if stream.eof else more(stream.unconsumed_tail, 1)  # the sum is checked at the end
        if len(body) != 8 + count or beyond or not stream.eof:
            raise InputError("It is damaged: a compressed variable has another size than it declares. Save it again.")
        return body[8:]

    return start[8 : 8 + count], whole


def _check_size(count: int) -> None:
    if count > LIMIT:
        raise InputError(
            f"The matrices of a file may have {LIMIT} bytes altogether; it declares {count}. "
            f"Check the sizes in the file, or pass the matrices to StateSpace."
        )


def _describes_a_system(part: _Bytes) -> bool:
    """Tell from its front whether a structure has A, B, C or a, b, c; one of more fields than fit there has not."""
    try:
        names = set(part.fields())
    except InputError:
        return False
    return names >= set("ABC") or names >= set("abc")


def _structure(body: _Bytes, fields: Collection[str], spent: int) -> tuple[dict[str, Any], int]:
    """Return the wanted fields of a single structure and the bytes of all."""
    body.header()
    values: dict[str, Any] = {}
    total = 0
    for name in body.fields():
        kind, data = body.element()
        if name not in fields:
            continue
        if kind != MATRIX:
            raise InputError(f"It is damaged: the field {name} is no variable. Copy or save it again.")
        value, cost = _value(_Bytes(data, body.order), spent + total) if len(data) else (np.empty((0, 0)), 0)
        _put(values, name, value)
        total += cost
    return values, total


def _value(body: _Bytes, spent: int) -> tuple[Any, int]:
    """Return a variable and its bytes: an array, a sparse array or a list of texts; an `InputError` for other kinds."""
    header = body.header()
    count, is_complex = math.prod(header.shape), bool(header.flags & COMPLEX)
    if header.kind == CHAR:
        return _cell_texts(body, header.shape), 0
    if header.kind == CELL:
        return _cell_of_texts(body, count), 0
    if header.kind == SPARSE:
        return _sparse(body, header), 0
    if header.kind not in CLASSES:
        raise InputError(
            f"{header.name or 'A field'} must hold numbers or texts; got {KINDS.get(header.kind, 'something else')}. "
            f"Save the matrices of the system under the names A, B, C, D."
        )
    dtype = np.dtype(bool if header.flags & LOGICAL else CLASSES[header.kind])
    cost = count * dtype.itemsize * (1 + is_complex)
    _check_size(spent + cost)
    return _numeric_array(body, count, dtype, is_complex).reshape(header.shape, order="F"), cost


def _numeric_array(body: _Bytes, count: int, dtype: np.dtype[Any], is_complex: bool) -> Array:
    """Return so many numbers in the precision of their class; they may be stored in fewer bytes."""
    parts = [body.numbers() for _ in range(1 + is_complex)]
    if any(len(part) != count or part.dtype.kind == "f" and dtype.kind != "f" for part in parts):
        raise InputError(
            f"It is damaged: a variable declares {count} entries and holds {len(parts[-1])}, or not of its kind. "
            f"Copy or save it again."
        )
    return _joined(parts, np.dtype(dtype))


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
    shape = header.shape
    rows, begins = body.numbers(), body.numbers()
    valid = len(shape) == 2 and rows.dtype.kind in "iu" and begins.dtype.kind in "iu" and len(begins) == shape[1] + 1
    if valid:
        rows, begins = rows.astype(np.int64), begins.astype(np.int64)
        count = int(begins[-1])
        valid = begins[0] == 0 and bool(np.all(np.diff(begins) >= 0)) and count <= len(rows)
        rows = rows[: max(count, 0)]
        valid = valid and bool(np.all((rows >= 0) & (rows < shape[0])))
    if not valid:
        raise InputError("It is damaged: a sparse matrix has entries outside of its shape. Copy or save it again.")
    if header.flags & LOGICAL:  # bytes, whatever their tag says
        parts = [np.frombuffer(body.element()[1], np.uint8)[:count]]
    else:
        parts = [body.numbers()[:count] for _ in range(2 if header.flags & COMPLEX else 1)]
    if any(len(part) != count for part in parts):
        raise InputError(f"It is damaged: a sparse matrix lacks some of its {count} entries. Copy or save it again.")
    import scipy.sparse  # most files have none

    return scipy.sparse.csc_array((_joined(parts, np.dtype(np.float64)), rows, begins), shape=(shape[0], shape[1]))


def _cell_texts(body: _Bytes, shape: tuple[int, ...]) -> list[str]:
    """Return the rows of an array of characters, without the blanks that make them equally long."""
    kind, data = body.element()
    if kind not in TEXTS:
        raise InputError(f"It is damaged: type {kind} stands where text must be. Copy or save it again.")
    encoding = TEXTS[kind]
    if encoding in ("utf-16", "utf-32"):
        encoding += "-le" if body.order == "<" else "-be"
    try:
        text = bytes(data).decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"It is damaged: a text cannot be read ({error.reason}). Copy or save it again.") from error
    if len(shape) != 2 or shape[0] <= 1:
        return [text]
    if len(text) != math.prod(shape):
        raise InputError(f"It is damaged: a text of {len(text)} characters has dimensions {shape}. Save it again.")
    return [text[row :: shape[0]].rstrip(" ") for row in range(shape[0])]


def _cell_of_texts(body: _Bytes, count: int) -> list[str]:
    if 8 * count > len(body.rest):  # each has at least a tag
        raise InputError(f"It is damaged: a cell array declares {count} cells and holds fewer. Copy or save it again.")
    texts = []
    for _ in range(count):
        kind, data = body.element()
        if kind != MATRIX:
            raise InputError("It is damaged: a cell is no variable. Copy or save it again.")
        part = _Bytes(data, body.order)
        header = part.header() if len(data) else None
        if header is None or math.prod(header.shape) == 0 and header.kind in (CHAR, 6):  # '' or []
            texts.append("")
        elif header.kind == CHAR:
            texts.append("".join(_cell_texts(part, header.shape)))
        else:
            raise InputError("A cell array must hold texts, the names of signals; it holds something else.")
    return texts


def _read_4(file: BinaryIO, size: int, wanted: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield names and values of a file of version 4; None for what is not wanted."""
    spent = 0
    while front := file.read(20):
        if len(front) < 20:
            raise InputError(NO_MAT_FILE)
        order, machine = ("<", 0) if struct.unpack("<i", front[:4])[0] in range(100) else (">", 10)
        code, rows, columns, imaginary, length = struct.unpack(f"{order}5i", front)
        precision, kind = code % 100 // 10, code % 10  # kind: 0 numbers, 1 text, 2 sparse
        if code // 100 != machine or precision not in NUMBERS_4 or kind > 2 or imaginary not in (0, 1):
            raise InputError(NO_MAT_FILE)
        if not 1 < length < 256 or min(rows, columns) < 0:
            raise InputError(NO_MAT_FILE)
        name = file.read(length).rstrip(b"\0").decode("latin-1")
        stored = np.dtype(order + NUMBERS_4[precision])
        count = rows * columns
        place, bytes_ = file.tell(), count * (1 + imaginary) * stored.itemsize
        if place + bytes_ > size:
            raise InputError("It is damaged or ends early. Copy or save it again.")
        value: Any = None
        if name in wanted:
            spent += 8 * count * (1 + imaginary)
            _check_size(spent)
            parts = np.split(np.frombuffer(file.read(bytes_), stored), 1 + imaginary)
            dtype = np.dtype(np.float32 if stored.itemsize == 4 and stored.kind == "f" else np.float64)
            x = _joined(parts, dtype).reshape((rows, columns), order="F")
            value = _text_4(x) if kind == 1 else _sparse_4(x) if kind == 2 else x
        yield name, value
        file.seek(place + bytes_)


def _text_4(codes: Array) -> list[str]:
    """Return rows of characters, stored as numbers."""
    if np.iscomplexobj(codes) or not np.all((codes >= 0) & (codes < 0xD800)):
        raise InputError("It is damaged: a text holds no characters. Copy or save it again.")
    return ["".join(chr(int(code)) for code in row).rstrip(" ") for row in codes]


def _sparse_4(table: Array) -> Any:
    """Return the sparse matrix of rows (i, j, value), of which the last holds the shape."""
    valid = table.shape[1] in (3, 4) and len(table) > 0 and not np.iscomplexobj(table)
    if valid:
        index = table[:, :2].astype(np.float64)
        shape = (int(index[-1, 0]), int(index[-1, 1])) if np.all(np.abs(index) < 2**31) else (-1, -1)
        valid = np.array_equal(index, np.floor(index)) and min(shape) >= 0
        valid = valid and bool(np.all((index[:-1] >= 1) & (index[:-1] <= shape)))
    if not valid:
        raise InputError("It is damaged: a sparse matrix has entries outside of its shape. Copy or save it again.")
    import scipy.sparse

    entries = _joined([table[:-1, k] for k in range(2, table.shape[1])], np.dtype(np.float64))
    i, j = (index[:-1, k].astype(np.int64) - 1 for k in (0, 1))
    return scipy.sparse.coo_array((entries, (i, j)), shape=shape).tocsc()
