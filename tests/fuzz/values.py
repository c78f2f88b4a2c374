"""Right arguments to draw, and the ways in which they are made wrong, or the same in another guise."""

from __future__ import annotations

import datetime
import decimal
import fractions
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse

import hankelred as hr

TIMES = (0, 0.1, True)


@dataclass
class Draft:
    """A system that is not made yet, so that a wrong matrix meets the same border whoever takes the system."""

    form: str
    parts: dict[str, Any]

    def make(self) -> Any:
        """Return the system."""
        parts = {name: made(value) for name, value in self.parts.items()}
        if self.form == "tuple":
            return tuple(parts[name] for name in ("A", "B", "C", "D", "dt") if name in parts)
        if self.form.startswith("sparse"):
            return hr.StateSpace(**{name: sparse_matrix(x, self.form, name) for name, x in parts.items()})
        if self.form.endswith("rates"):
            return getattr(hr, self.form.split()[0]).from_rates(parts.pop("lam"), **parts)
        return getattr(hr, self.form)(**parts)


def sparse_matrix(x: Any, form: str, name: str) -> Any:
    """Return a matrix in the form of SciPy that "sparse csr A B" asks for, where the form takes its dtype."""
    kind, *names = form.split()[1:]
    if name not in names or not isinstance(x, (np.ndarray, list, tuple, Guised)) or isinstance(x, np.ma.MaskedArray):
        return x
    try:
        array = np.asarray(x)
        return getattr(scipy.sparse, kind)(array) if array.ndim == 2 and array.dtype.kind in "biufc" else x
    except (TypeError, ValueError):  # ragged, of half precision, or of bytes in the other order
        return x


def made(value: Any) -> Any:
    """Return an argument with its drafts made into systems."""
    if isinstance(value, Draft):
        return value.make()
    return [made(item) for item in value] if isinstance(value, list) else value


@dataclass
class Call:
    """A function and its arguments, which a mutation may replace."""

    function: Callable[..., Any]
    arguments: dict[str, Any] = field(default_factory=dict)

    def run(self) -> tuple[Any, dict[str, Any]]:
        """Return the result and the arguments, drafts made."""
        arguments = {name: made(value) for name, value in self.arguments.items()}
        return self.function(**arguments), arguments


class Draw:
    """Right arguments, drawn with one seed."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)
        self.rng = np.random.default_rng(self.random.getrandbits(63))

    def one_of(self, *options: Any) -> Any:
        """Return one of the options."""
        return self.random.choice(options)

    def chance(self, share: float) -> bool:
        """Tell so in this share of the cases."""
        return self.random.random() < share

    def array(self, *shape: int, complex_data: bool = False) -> Any:
        """Return numbers of size one, in eighths, so that every cast of them is exact in single precision."""
        x = np.round(8 * self.rng.standard_normal(shape)) / 8
        return x + 1j * np.round(8 * self.rng.standard_normal(shape)) / 8 if complex_data else x

    def size(self) -> int:
        """Return a number of signals, rarely none."""
        return self.one_of(0, *[1, 2] * 10, 3)

    def poles(self, *shape: int, discrete: bool, complex_data: bool) -> Any:
        """Return stable poles in dyadic fractions."""
        decay = self.rng.integers(1, 60, shape) / 64
        turn = self.rng.integers(-64, 64, shape) / 64 if complex_data else 0.0
        return (
            (1 - decay) * (0.5 + 0.5j * turn if complex_data else 1.0)
            if discrete
            else -8 * decay + 4j * turn * complex_data
        )

    def dense(self, stable: bool = True, **fixed: Any) -> Draft:
        """Return a dense system, given as such or as a tuple."""
        dt, n = fixed.get("dt", self.one_of(*TIMES)), fixed.get("n", self.one_of(0, *[1, 2, 3, 4] * 6))
        m, p, kind = fixed.get("m", self.size()), fixed.get("p", self.size()), self.chance(0.25)
        A = self.array(n, n, complex_data=kind)
        reach = max(np.abs(A).sum(axis=1).max(initial=0.0), 0.25)
        A = A / 2 ** np.ceil(np.log2(reach) + 0.1) if dt else A - (reach + 0.25) * np.eye(n)
        if not stable and n:
            A[0], A[0, 0] = 0.0, self.one_of(0.0, 1.0, 2.0)
        parts = {
            "A": A,
            "B": self.array(n, m, complex_data=kind),
            "C": self.array(p, n),
            "D": self.array(p, m),
            "dt": dt,
        }
        if self.chance(0.3) and (dt or not fixed.get("proper")):
            del parts["D"]
        if "D" in parts and self.chance(0.3):
            return Draft("tuple", parts)
        if self.chance(0.2):
            parts["E"] = np.diag(self.rng.integers(4, 9, n) / 4.0)
        return Draft("StateSpace", {**parts, **self.names(n, m, p)})

    def names(self, n: int, m: int, p: int) -> dict[str, Any]:
        """Return some names that fit."""
        sizes = {"inputs": m, "outputs": p, "states": n}
        return {key: [f"{key}{i}" for i in range(count)] for key, count in sizes.items() if self.chance(0.1)}

    def diagonal(self, batch: int | None = None, **fixed: Any) -> Draft:
        """Return a diagonal system, or a bank of so many."""
        lead = () if batch is None else (batch,)
        dt, n = fixed.get("dt", self.one_of(*TIMES)), fixed.get("n", self.one_of(0, *[1, 2, 3, 4] * 6))
        m, p, output = (
            fixed.get("m", self.size()),
            fixed.get("p", self.size()),
            fixed.get("output", self.one_of("complex", "real")),
        )
        kind = self.chance(0.7)
        lam = self.poles(*lead, n, discrete=bool(dt), complex_data=kind)
        parts = {
            "lam": lam,
            "B": self.array(*lead, n, m, complex_data=kind),
            "C": self.array(*lead, p, n, complex_data=kind),
        }
        parts |= {"D": self.array(*lead, p, m)} if self.chance(0.5) else {}
        form = "DiagonalSystem" if batch is None else "DiagonalBank"
        if dt and self.chance(0.3):
            form, parts["lam"] = f"{form} rates", 4 * self.poles(*lead, n, discrete=False, complex_data=kind) / 32
        return Draft(form, {**parts, "dt": dt, "output": output, **self.names(n, m, p)})

    def system(self, **fixed: Any) -> Draft:
        """Return a stable system of any kind, or with ``bank`` a bank."""
        if fixed.pop("bank", False) and self.chance(0.3):
            return self.diagonal(batch=self.one_of(0, 1, 2, 3), **fixed)
        return self.one_of(self.dense, self.diagonal)(**fixed)

    def criterion(self, most: int = 4) -> dict[str, Any]:
        """Return one criterion for an order."""
        return self.one_of(
            {"order": self.random.randint(0, most)},
            {"states": self.random.randint(0, most)},
            {"rtol": self.one_of(0.0, 1e-3, 0.5)},
            {"energy": self.one_of(0.5, 0.99, 1.0)},
            {"max_error": self.one_of(0.01, 1.0, 1e3)},
        )


class Hostile:
    """An object whose conversions raise or lie."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        """Behave as a tensor that wants its gradient, or as an array of text."""
        if self.how == "raises":
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        return np.array(["a", "b"])

    def __float__(self) -> float:
        """Refuse."""
        raise RuntimeError("no float")

    def __eq__(self, other: object) -> Any:
        """Answer with an array, as frames of tables do."""
        return np.array([True, False])

    __hash__ = None  # type: ignore[assignment]


class Sequenced:
    """An object with a length and items, but no sequence."""

    def __len__(self) -> int:
        """Return a length."""
        return 2

    def __getitem__(self, i: int) -> float:
        """Return an item."""
        if i < 2:
            return 0.5
        raise IndexError(i)


def anything(draw: Draw) -> tuple[str, Any]:
    """Return a thing that is hardly ever the right argument, and its label."""
    table: dict[str, Callable[[], Any]] = {
        "None": lambda: None,
        "True": lambda: True,
        "False": lambda: False,
        "text": lambda: "text",
        "digits": lambda: "1.0",
        "bytes": lambda: b"1.0",
        "dict": lambda: {"a": 1},
        "set": lambda: {1, 2},
        "generator": lambda: (x for x in (1, 2)),
        "object": object,
        "class": lambda: hr.StateSpace,
        "function": lambda: len,
        "module": lambda: math,
        "ellipsis": lambda: ...,
        "slice": lambda: slice(0, 1),
        "masked": lambda: np.ma.masked_array([[1.0, 2.0]], [[True, False]]),
        "masked constant": lambda: np.ma.masked,
        "masked rows": lambda: [np.ma.masked_array([1.0], [True])],
        "ragged": lambda: [[1.0], [1.0, 2.0]],
        "nested": lambda: [[[[1.0]]]],
        "datetime": lambda: np.array(["2020-01-01"], "M8[D]"),
        "date": lambda: datetime.date(2020, 1, 1),
        "structured": lambda: np.zeros(2, [("x", "f8"), ("y", "i4")]),
        "objects": lambda: np.array([1.0, None, "a"], object),
        "object numbers": lambda: np.array([[1, 10**30]], object),
        "sparse": lambda: scipy.sparse.csr_array(np.eye(2)),
        "Fraction": lambda: fractions.Fraction(1, 3),
        "Decimal": lambda: decimal.Decimal("0.5"),
        "float32": lambda: np.float32(0.5),
        "float16": lambda: np.float16(0.5),
        "longdouble": lambda: np.longdouble("1e4000"),
        "int64": lambda: np.int64(1),
        "uint8": lambda: np.uint8(255),
        "bool_": lambda: np.bool_(True),
        "complex": lambda: 0.5 + 1j,
        "complex, real": lambda: 0.5 + 0j,
        "zero axes": lambda: np.array(1.0),
        "one item": lambda: np.array([1]),
        "NaN": lambda: math.nan,
        "infinity": lambda: math.inf,
        "minus infinity": lambda: -math.inf,
        "minus one": lambda: -1,
        "zero": lambda: 0,
        "minus zero": lambda: -0.0,
        "two": lambda: 2.0,
        "half": lambda: 2.5,
        "10**400": lambda: 10**400,
        "-10**400": lambda: -(10**400),
        "2**70": lambda: 2**70,
        "subnormal": lambda: 5e-324,
        "1e308": lambda: 1e308,
        "-1e308": lambda: -1e308,
        "1e-310": lambda: 1e-310,
        "[]": list,
        "()": tuple,
        "(0,)": lambda: np.empty(0),
        "(0, 0)": lambda: np.empty((0, 0)),
        "[1]": lambda: [1],
        "[None]": lambda: [None],
        "['a', 'b']": lambda: ["a", "b"],
        "(1, 2)": lambda: (1, 2),
        "range": lambda: range(3),
        "no array": lambda: Hostile("raises"),
        "array of text": lambda: Hostile("lies"),
        "sequenced": Sequenced,
        "system": lambda: hr.StateSpace([[-1.0]], [[1.0]], [[1.0]]),
        "bank": lambda: hr.DiagonalBank([[-1.0]], [[[1.0]]], [[[1.0]]], dt=0),
        "no bank": lambda: hr.DiagonalBank(np.empty((0, 1)), np.empty((0, 1, 1)), np.empty((0, 1, 1)), dt=0),
        "three parts": lambda: ([[1.0]], [[1.0]], [[1.0]]),
        "Reduction": lambda: hr.balanced_truncation(hr.StateSpace([[-1.0]], [[1.0]], [[1.0]]), 0),
    }
    label = draw.random.choice(sorted(table))
    return label, table[label]()


def other_shape(draw: Draw, x: Any) -> tuple[str, Any]:
    """Return an array of another shape."""
    table: dict[str, Callable[[], Any]] = {
        "transposed": lambda: x.T,
        "one axis more": lambda: x[None],
        "one axis less": lambda: x.reshape(-1) if x.ndim > 1 else x.sum(),
        "a row more": lambda: np.concatenate([x, x[:1]]) if x.ndim and len(x) else np.ones((1, *x.shape)),
        "a row less": lambda: x[1:] if x.ndim else np.empty(0),
        "a column more": lambda: np.concatenate([x, x], axis=-1) if x.ndim else x[None],
        "no rows": lambda: x[:0] if x.ndim else np.empty(0),
        "no columns": lambda: x[..., :0] if x.ndim else np.empty((0, 0)),
    }
    label = draw.random.choice(sorted(table))
    return label, table[label]()


def extreme(draw: Draw, x: Any) -> tuple[str, Any]:
    """Return an array with entries at the ends of the range."""
    if x.size == 0:
        return "as it is", x
    label = draw.one_of(
        "an entry NaN",
        "an entry inf",
        "one entry 1e200",
        "one entry 1e-200",
        "one entry 1e308",
        "one entry 1e-310",
        "all 1e200",
        "all 1e-200",
        "all 1e308",
        "all 1e-310",
        "zeros",
        "ones",
        "imaginary",
    )
    x = np.array(x, complex if x.dtype.kind == "c" else float)
    if label.startswith("an entry"):
        x.flat[draw.random.randrange(x.size)] = math.nan if label.endswith("NaN") else math.inf
    elif label.startswith("one entry"):
        x.flat[draw.random.randrange(x.size)] = float(label.split()[-1])
    elif label.startswith("all"):
        size = float(label.split()[-1])
        with np.errstate(all="ignore"):
            x = x / max(1.0, float(np.abs(x).max())) * size
    elif label == "imaginary":
        x = np.where(np.isfinite(x), x, 0) * 1j
    else:
        x = {"zeros": np.zeros_like(x), "ones": np.ones_like(x)}[label]
    return label, x


def other_guise(draw: Draw, x: Any) -> tuple[str, Any, Any]:
    """Return a label, the array in another dtype or layout, and its values as a plain array in double precision."""
    spread = np.zeros(tuple(2 * size for size in x.shape), x.dtype)
    spread[tuple(slice(None, None, 2) for _ in x.shape)] = x
    table: dict[str, Callable[[], Any]] = {
        "column order": lambda: np.asfortranarray(x),
        "reversed strides": lambda: np.ascontiguousarray(x[..., ::-1])[..., ::-1] if x.ndim else x,
        "every second": lambda: spread[tuple(slice(None, None, 2) for _ in x.shape)],
        "read-only": lambda: frozen(x),
        "nested lists": lambda: x.tolist(),
        "tuples": lambda: tuple(map(tuple, x.tolist())) if x.ndim == 2 else x.tolist(),
        "big-endian": lambda: x.astype(x.dtype.newbyteorder(">")),
        "single": lambda: x.astype(np.complex64 if x.dtype.kind == "c" else np.float32),
        "half": lambda: x.astype(np.float16) if x.dtype.kind == "f" else x,
        "extended": lambda: x.astype(np.clongdouble if x.dtype.kind == "c" else np.longdouble),
        "integers": lambda: np.nan_to_num(np.round(x.real)).clip(-99, 99).astype(draw.one_of(np.int8, np.int64, ">i4")),
        "truth values": lambda: x.real > 0,
        "complex": lambda: x.astype(complex),
        "has __array__": lambda: Guised(x),
    }
    label = draw.random.choice(sorted(table))
    other = table[label]()
    if label in ("nested lists", "tuples") and x.size == 0:
        return "as it is", x, x
    plain = np.array(other.x if isinstance(other, Guised) else other)
    if x.dtype.kind in "biu":  # indices: no other kind of number will do
        return label, other, plain.astype(plain.dtype.newbyteorder("="))
    return label, other, plain.astype(complex if plain.dtype.kind == "c" else float)


class Guised:
    """Something that can become an array, as frames of tables can."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        """Return the values."""
        return np.array(self.x, dtype=dtype)


def frozen(x: Any) -> Any:
    """Return a read-only copy."""
    x = np.array(x)
    x.flags.writeable = False
    return x
