"""One input of the fuzz: a call, a mutation, and how it ended."""

from __future__ import annotations

import os
import re
import traceback
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

import hankelred as hr
from fuzz.calls import FREQUENCIES, OF_THE_CALLER, ROOMS, TARGETS
from fuzz.values import Call, Draft, Draw, anything, extreme, other_guise, other_shape

# An argument may be named by what it is.
ALSO = {
    "sys": "system|bank|model|tuple",
    "obj": "system|tuple|transfer function",
    "self": "system|bank",
    "other": "system|bank|statistics",
    "G": "system|bank|tuple|drift|loop",
    "H": "system|bank|tuple|drift",
    "K": "system|bank|tuple|loop",
    "systems": "system|bank|tuple|drift",
    "full": "system|bank|tuple",
    "reduced": "system|bank|tuple|model",
    "orders": "order",
    "i": "index|indexed|bank",
    "lam": "poles|rates",
    "z": "poles|rates",
    "columns": "axes",
    "copy": "system",
    "another band": "band",
    "hsv": "Hankel singular values",
    "path": "file|folder",
}
MATRICES = "A|B|C|D|E|M|K|Cp|Cv|lam|rates|poles|dt|inputs|outputs|states|output|name"

THREADS = ThreadpoolController()


@dataclass(frozen=True)
class Outcome:
    """How one input ended: "returned", "refused", or what is wrong."""

    room: str
    seed: int
    callable: str
    mutation: str
    kind: str = "returned"
    detail: str = ""

    @property
    def is_bad(self) -> bool:
        """Whether it must not have ended so."""
        return self.kind not in ("returned", "refused")

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.room:10} {self.seed:6} {self.callable:38} {self.kind:14} {self.mutation}: {self.detail[:200]}"


def run(room: str, seed: int, show: bool = False) -> Outcome:
    """Run the input of a room with this number, and show the call and the way to its exception if that is asked for."""
    draw = Draw(f"{room} {seed}")
    names = ROOMS[room]
    name = names[seed % len(names)]
    build, check = TARGETS[name]
    with _watched():
        call = build(draw)
    mutation, mutated, touched, twin = _mutate(draw, call)
    outcome = Outcome(room, seed, name, mutation, "returned")
    if show:
        print(name, mutation, mutated.arguments, sep="\n")
    before, state = _bytes(mutated.arguments), _state()
    try:
        with _watched():
            result, arguments = mutated.run()
    except hr.HankelredError as error:
        outcome = _refusal(outcome, error, touched, mutated.arguments)
    except ImportError as error:
        outcome = replace(outcome, kind="refused", detail=str(error))
    except FileNotFoundError as error:  # what `load_system` says it raises, like `open`
        outcome = replace(outcome, kind="refused" if "path" in touched else "raw FileNotFoundError", detail=str(error))
    except Exception as error:
        if show:
            traceback.print_exc()
        outcome = replace(outcome, kind=f"raw {type(error).__name__}", detail=str(error).replace("\n", " "))
    else:
        outcome = _judged(outcome, check, result, arguments, twin)
    if _bytes(mutated.arguments) != before:
        outcome = replace(outcome, kind="changed input")
    if _state() != state:
        outcome = replace(outcome, kind="changed state", detail=f"{state} -> {_state()}")
    return outcome


def _refusal(outcome: Outcome, error: Exception, touched: dict[str, bool], arguments: dict[str, Any]) -> Outcome:
    """Judge an error of ours: it has a reason that was given, says what it got, and names the argument."""
    detail, text = f"{type(error).__name__}: {error}", str(error)
    if not touched:
        benign = (hr.OrderError, hr.DiagonalisationError)
        return replace(outcome, kind="refused" if isinstance(error, benign) else "refused right", detail=detail)
    if isinstance(error, hr.NumericalError):
        return replace(outcome, kind="refused", detail=detail)
    if isinstance(error, hr.OrderError):  # which an order, however right, may have to do with
        touched = {**dict.fromkeys(arguments, False), **touched}
    inner_of_all = any(re.fullmatch(MATRICES, name) for name in touched)  # a constructor's arguments are one system
    touched = {name: inner or inner_of_all for name, inner in touched.items()}
    wanted = "|".join(f"{name}|{ALSO.get(name, name)}" + f"|{MATRICES}" * inner for name, inner in touched.items())
    named = re.search(rf"(?<![A-Za-z])({wanted})", text, re.IGNORECASE if len(touched) == 1 else 0)
    if not named:
        return replace(outcome, kind="unnamed", detail=detail)
    return replace(outcome, kind="refused" if re.search("got|cannot be met", text) else "unsaid", detail=detail)


def _judged(outcome: Outcome, check: Any, result: Any, arguments: dict[str, Any], twin: Call | None) -> Outcome:
    """Judge a result, by itself and by that of the same call in the plain guise."""
    try:
        with _watched():
            wrong = check(result, **arguments) if check else None
    except Exception as error:
        wrong = f"it cannot be checked: {type(error).__name__}: {error}"
    if wrong:
        return replace(outcome, kind="wrong", detail=str(wrong).replace("\n", " "))
    if twin is not None:
        try:
            with _watched():
                expected, _ = twin.run()
                one, other = figures(result), figures(expected)
        except (hr.HankelredError, ImportError) as error:
            return replace(outcome, kind="wrong", detail=f"accepted, but in the plain guise {error}")
        for x, y in zip(one, other, strict=False):
            if x.shape != y.shape or not np.allclose(x, y, rtol=1e-3, atol=1e-3 * _size(y), equal_nan=True):
                return replace(outcome, kind="other result", detail=f"{x.ravel()[:4]} and {y.ravel()[:4]}")
        if len(one) != len(other):
            return replace(outcome, kind="other result", detail=f"{len(one)} and {len(other)} figures")
    return outcome


def _size(x: Any) -> float:
    finite = np.abs(x[np.isfinite(x)])
    return float(finite.max(initial=0.0))


def figures(result: Any) -> list[Any]:
    """Return the numbers in a result that do not depend on a basis."""
    if isinstance(result, (hr.StateSpace, hr.DiagonalSystem, hr.DiagonalBank)):
        return [result.frequency_response(FREQUENCIES)]
    if isinstance(result, hr.Balancing):
        return [result.hsv]
    if isinstance(result, hr.Reduction):
        return [np.array(result.order), result.hsv, *figures(result._reduced)]
    if isinstance(result, (hr.BankReduction,)):
        return [result.order, result.hsv]
    if isinstance(result, (np.ndarray, float, int, bool)):
        return [np.asarray(result)]
    if isinstance(result, (list, tuple)):
        return [x for item in result for x in figures(item)]
    return []


def _mutate(draw: Draw, call: Call) -> tuple[str, Call, dict[str, bool], Call | None]:
    """Return a label, the call with one or two arguments replaced, which ones, and the same call in plain guise."""
    arguments, touched, labels, twin = dict(call.arguments), {}, [], None
    able = [name for name in arguments if name not in OF_THE_CALLER | {"self"} or isinstance(arguments[name], Draft)]
    count = draw.one_of(0, 1, 1, 1, 1, 1, 1, 2) if able else 0
    for name in draw.random.sample(able, min(count, len(able))):
        place, value, inner = arguments, arguments[name], False
        key = name
        if isinstance(value, Draft) and (name == "self" or draw.chance(0.6)):
            place[name] = Draft(value.form, dict(value.parts))
            key = draw.random.choice(sorted(value.parts))
            place, value, inner = place[name].parts, value.parts[key], True
        way = draw.one_of(*"hhg") if not isinstance(value, np.ndarray) else draw.one_of(*"hssgggee")
        if isinstance(value, np.ndarray) and way != "h":
            if way == "g" and count == 1:
                label, place[key], plain = other_guise(draw, value)
                twin = _replaced(call, name, key if inner else None, plain)
            else:
                label, place[key] = (other_shape if way == "s" else extreme)(draw, value)
        else:
            label, place[key] = anything(draw)
        touched[name] = inner or isinstance(call.arguments[name], Draft)
        labels.append(f"{name}{'.' + key if inner else ''} {label}")
    if not touched and draw.chance(0.3) and "rtol" in str(call.function):
        return "as it is", call, {}, None
    return ", ".join(labels) or "as it is", Call(call.function, arguments), touched, twin


def _replaced(call: Call, name: str, key: str | None, value: Any) -> Call:
    """Return a call with one argument replaced, or one part of a draft."""
    if key is None:
        return Call(call.function, {**call.arguments, name: value})
    draft = call.arguments[name]
    return Call(call.function, {**call.arguments, name: Draft(draft.form, {**draft.parts, key: value})})


def _watched() -> Any:
    """Return a context in which warnings of the library pass, and all others are errors."""
    context = warnings.catch_warnings()

    class Watched:
        def __enter__(self) -> None:
            context.__enter__()
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", hr.HankelredWarning)

        def __exit__(self, *_: object) -> None:
            context.__exit__(*_)

    return Watched()


def _bytes(value: Any) -> Any:
    """Return what can be compared of an argument before and after."""
    if isinstance(value, Draft):
        return _bytes(value.parts)
    if isinstance(value, dict):
        return [(key, _bytes(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [_bytes(item) for item in value]
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        return value.shape, value.dtype.str, value.strides, value.flags.writeable, np.asarray(value).tobytes()
    return None


def _state() -> Any:
    """Return what a call must leave as it is."""
    threads = sorted((x["filepath"], x["num_threads"]) for x in THREADS.info())
    return np.geterr(), len(warnings.filters), threads, np.random.get_state()[2], os.getcwd()  # noqa: NPY002


def table(outcomes: list[Outcome]) -> str:
    """Return the bad outcomes, one a line, and how to run one again."""
    bad = [outcome for outcome in outcomes if outcome.is_bad]
    kinds = sorted({outcome.kind for outcome in bad})
    head = f"{len(bad)} of {len(outcomes)} inputs ended badly: " + ", ".join(
        f"{sum(b.kind == k for b in bad)} {k}" for k in kinds
    )
    return "\n".join([head, *map(str, bad), "One of them again: PYTHONPATH=tests python -m fuzz ROOM SEED"])
