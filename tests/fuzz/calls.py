"""Every public callable of the core with right arguments for it, and what must be true of its result."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

import hankelred as hr
import hankelred.checks
import hankelred.cli
import hankelred.control
import hankelred.drift
import hankelred.feedback
import hankelred.optimal
import hankelred.plotting
import hankelred.selective
import hankelred.testing
import hankelred.training
import hankelred.weighting
from fuzz.values import TIMES, Call, Draft, Draw, made
from hankelred.checks import KEPT

EPS = np.finfo(float).eps
FREQUENCIES = np.array([0.0, 0.1, 0.9, 3.0])

Build = Callable[[Draw], Call]
Check = Callable[..., Any]

ROOMS: dict[str, list[str]] = {}
TARGETS: dict[str, tuple[Build, Check | None]] = {}


def target(name: str, room: str, check: Check | None = None) -> Callable[[Build], Build]:
    """Register how a callable is called; `check` gets the result and the arguments and returns what is wrong."""

    def register(build: Build) -> Build:
        ROOMS.setdefault(room, []).append(name)
        TARGETS[name] = (build, check)
        return build

    return register


# Trusted by their contract: they take arrays, or values, that were checked before.
TRUSTED = {f"checks.{name}" for name in "as_dense check_result is_discrete is_sparse double single in_family".split()}
TRUSTED |= {"checks.readonly"}
TRUSTED |= {f"hr.{kind}.trusted" for kind in ("StateSpace", "DiagonalSystem", "DiagonalBank")}
TRUSTED |= {f"hr.{kind}.double_matrices" for kind in ("DiagonalSystem", "DiagonalBank")}
TRUSTED |= {"training.Moments.count", "training.Moments.index"}
WEIGHTINGS = "TimeLimited FrequencyLimited FrequencyWeighted Sampled".split()
RICCATI = "LQG BoundedReal PositiveReal Stochastic Coprime".split()
METHODS = ("pair", "of", "with_guarantee")
TRUSTED |= {f"weighting.{kind}.{method}" for kind in (*WEIGHTINGS, *RICCATI) for method in METHODS}
INTERNALS = "certainly_stable check_dense_size first_order mass_solver outermost some_poles".split()
TRUSTED |= {f"hr.SecondOrderSystem.{method}" for method in INTERNALS}
# Made by other callables only, which are called themselves.
TRUSTED |= {f"hr.{name}" for name in ("Balancing", "Reduction", "BankReduction")}
TRUSTED |= {f"drift.{name}" for name in ("DriftBound", "OrderCertificate", "AccumulatedDrift")}
TRUSTED |= {"feedback.ControllerReduction", "optimal.H2Reduction"}
TRUSTED |= {"testing.DeltaLayer"}
TRUSTED |= {"selective.SelectiveReduction", "selective.SelectionReport", "training.Moments"}
TRUSTED |= {f"weighting.Weighting{method}" for method in ("", ".pair", ".of", ".with_guarantee")}


def public_callables() -> set[str]:
    """Return the names of everything a user can call, errors and warnings apart."""
    found = set()
    for room, module, names in _rooms():
        for name in names:
            value = getattr(module, name)
            if not callable(value) or (inspect.isclass(value) and issubclass(value, (Exception, Warning))):
                continue
            found.add(f"{room}.{name}")
            found |= {f"{room}.{name}.{method}" for method in _methods(value)} if inspect.isclass(value) else set()
    return found


def _rooms() -> Iterator[tuple[str, ModuleType, list[str]]]:
    yield "hr", hr, hr.__all__
    for name in "checks cli control drift feedback optimal plotting selective testing training weighting".split():
        module = getattr(hankelred, name)
        own = [key for key, x in vars(module).items() if inspect.isfunction(x) and x.__module__ == module.__name__]
        own = [key for key in own if key != "is_finite"]  # of arrays that were checked
        yield name, module, getattr(module, "__all__", [key for key in own if not key.startswith("_")])


def _methods(kind: type) -> set[str]:
    special = {"__getitem__", "__sub__"}
    names = {name for name in dir(kind) if not name.startswith("_") or name in special}
    return {
        name
        for name in names
        if callable(getattr(kind, name)) and (kind.__mro__[-2] is not tuple or name in ("count", "index"))
    }


# --- what must be true -------------------------------------------------------------------------------------------


def dense(sys: Any) -> list[Any]:
    """Return every system as a dense one."""
    found = hr.as_system(sys).dense()
    return found if isinstance(found, list) else [found]


def wrong_system(system: Any, **_: Any) -> str | None:
    """Tell what is wrong with a system itself."""
    if isinstance(system, tuple):
        system = hr.as_system(system)
    for x in (*getattr(system, "spectrum", system).__dict__.values(), system.B, system.C, system.D):
        if isinstance(x, np.ndarray) and (x.flags.writeable or x.dtype not in KEPT or not np.isfinite(x).all()):
            return f"{system!r} holds an array that is writeable, not finite or of dtype {x.dtype}"
    lead = () if not isinstance(system, hr.DiagonalBank) else (len(system),)
    if (system.B.shape, system.C.shape, system.D.shape) != (
        (*lead, system.n, system.m),
        (*lead, system.p, system.n),
        (*lead, system.p, system.m),
    ):
        return f"{system!r} has matrices of other sizes"
    if not (system.dt is True or type(system.dt) in (int, float) and 0 <= system.dt < np.inf):
        return f"{system!r} has dt {system.dt!r}"
    for names, count in ((system.inputs, system.m), (system.outputs, system.p), (system.states, system.n)):
        if names is not None and (len(names) != count or not all(type(name) is str for name in names)):
            return f"{system!r} has names {names!r}"
    return None


def wrong_hsv(hsv: Any, sys: Any = None, **_: Any) -> str | None:
    """Tell what is wrong with Hankel singular values."""
    system = hr.as_system(sys)
    shape = (len(system), system.order) if isinstance(system, hr.DiagonalBank) else (system.order,)
    if hsv.shape != shape or hsv.dtype.kind != "f":
        return f"shape {hsv.shape} of {hsv.dtype}, not {shape}"
    if not np.isfinite(hsv).all() or np.any(hsv < 0) or np.any(hsv[..., 1:] > hsv[..., :-1]):
        return f"not finite, positive and decreasing: {hsv}"
    return None


def wrong_norm(value: Any, sys: Any = None, rtol: Any = None, return_peak: Any = False, **_: Any) -> str | None:
    """Tell what is wrong with a norm; that of a stable system is no less than half of the Hankel norm, nor a gain."""
    norms = np.atleast_1d(value[0] if return_peak else value)
    systems = dense(sys)
    if len(norms) != len(systems) or np.isnan(norms).any() or np.any(norms < 0):
        return f"{norms} for {len(systems)} systems"
    return None


def wrong_hinf(value: Any, sys: Any = None, rtol: Any = 1e-8, return_peak: Any = False) -> str | None:
    """Tell what is wrong with an H-infinity norm."""
    if trouble := wrong_norm(value, sys, rtol, return_peak):
        return trouble
    for norm, G in zip(np.atleast_1d(value[0] if return_peak else value), dense(sys), strict=True):
        if G.dt > 1e300:
            continue
        if np.isinf(norm) and G.is_stable():
            return "infinite for a stable system"
        gain = np.abs(G.frequency_response(FREQUENCIES)).max(initial=0.0)
        if norm < gain * (1 - max(float(rtol), 1e-6)) and G.is_stable():
            return f"{norm} is less than a gain of {gain}"
    return None


def wrong_gramians(found: Any, sys: Any = None, weighting: Any = None) -> str | None:
    """Tell what is wrong with Gramians, or with factors of them."""
    if weighting is not None:
        return wrong_weighted(found, sys, weighting)
    P, Q = found
    systems = dense(sys)
    single = hr.as_system(sys).dtype.itemsize <= (8 if hr.as_system(sys).dtype.kind == "c" else 4)
    for k, G in enumerate(systems):
        X, Y = (P[k], Q[k]) if isinstance(hr.as_system(sys), hr.DiagonalBank) else (P, Q)
        for M, F, W in ((G.A, G.B, X), (G.A.conj().T, G.C.conj().T, Y)):
            with np.errstate(all="ignore"):
                right = F @ F.conj().T
            if trouble := wrong_solution(M, right, W, G.is_discrete, 1e-4 if single else 1e-9):
                return trouble
    return None


def wrong_weighted(found: Any, sys: Any, weighting: Any) -> str | None:
    """Tell what is wrong with weighted Gramians: a part of the time, or of the frequencies, is no more than all."""
    system = hr.as_system(sys)
    lead = (len(system),) if isinstance(system, hr.DiagonalBank) else ()
    is_part = isinstance(weighting, (TimeLimited, FrequencyLimited)) and np.all(system.is_stable())
    whole = hr.gramians(system) if is_part and not weighting.guaranteed else (None, None)
    for M, white in zip(found, whole, strict=True):
        if M.shape != (*lead, system.order, system.order) or not np.isfinite(M).all():
            return f"shape {M.shape} for {system!r}, or not finite"
        d = np.diagonal(M, axis1=-2, axis2=-1).real
        if np.any(d < 0):
            return f"a diagonal of {d}"
        most = np.inf if white is None else np.diagonal(white, axis1=-2, axis2=-1).real
        if np.any(d > most * (1 + 1e-3) + 1e-6 * np.max(d, initial=0.0)):
            return f"a diagonal of {d} exceeds that of the whole, {most}"
    return None


def wrong_factors(found: Any, sys: Any = None, weighting: Any = None) -> str | None:
    """Tell what is wrong with factors of Gramians."""
    S, R = (np.asarray(x, dtype=complex) for x in found)
    with np.errstate(all="ignore"):
        P, Q = S @ S.conj().swapaxes(-1, -2), R.conj().swapaxes(-1, -2) @ R
    if not (np.isfinite(P).all() and np.isfinite(Q).all()):
        return wrong_array((S, R))  # the Gramians overflow, the factors do not
    return wrong_gramians((P, Q), sys, weighting)


def wrong_factor(S: Any, A: Any, F: Any, dt: Any = 0) -> str | None:
    """Tell what is wrong with the factor of a solution."""
    S, F = np.asarray(S), np.asarray(F, complex)
    single = S.dtype.itemsize <= (8 if S.dtype.kind == "c" else 4)
    S = S.astype(complex)
    with np.errstate(all="ignore"):
        X, Q = S @ S.conj().T, F @ F.conj().T
    if not (np.isfinite(X).all() and np.isfinite(Q).all()):
        return wrong_array(S)
    return wrong_solution(A, Q, X, bool(dt), 1e-5 if single else 1e-9)


def wrong_solution(A: Any, Q: Any, X: Any, discrete: bool, rtol: float = 1e-9) -> str | None:
    """Tell what is wrong with a solution of a Lyapunov equation."""
    A, Q, X = (np.asarray(x, dtype=complex) for x in (A, Q, X))
    if X.shape != A.shape or not np.isfinite(X).all():
        return f"shape {X.shape} for A {A.shape}, or not finite"
    with np.errstate(all="ignore"):
        M, a = A.conj().T, np.abs(A)
        x = np.maximum(np.abs(X), EPS**2 * np.abs(X).max(initial=0.0))  # smaller entries are not promised
        residual = A @ X @ M - X + Q if discrete else A @ X + X @ M + Q
        size = a @ x @ a.T + x + np.abs(Q) if discrete else a @ x + x @ a.T + np.abs(Q)
        residual, size = np.abs(residual).max(initial=0.0), size.max(initial=0.0)
    if np.isfinite(size) and residual > rtol * size + 1e-290:
        return f"residual {residual} next to terms of {size}"
    return None


def wrong_equation(X: Any, A: Any = None, Q: Any = None, dt: Any = 0, **_: Any) -> str | None:
    """Tell what is wrong with the solution of the plain equation."""
    single = X.dtype.itemsize <= (8 if X.dtype.kind == "c" else 4)
    return wrong_solution(A, Q, X, bool(dt), 1e-5 if single else 1e-9)


def wrong_balancing(bal: Any, sys: Any = None, **_: Any) -> str | None:
    """Tell what is wrong with a Balancing."""
    hsv = bal.hsv
    if hsv.shape != (bal.system.order,) or np.isnan(hsv).any() or np.any(hsv[1:] > hsv[:-1]) or np.any(hsv < 0):
        return f"hsv {hsv}"
    if not 0 <= bal.unstable <= bal.rank <= len(hsv) or not 0 <= bal.floor < np.inf:
        return f"unstable {bal.unstable}, rank {bal.rank} of {len(hsv)}, floor {bal.floor}"
    return None


def wrong_reduction(found: Any, **_: Any) -> str | None:
    """Tell what is wrong with a Reduction, or one for each system of a bank."""
    if isinstance(found, hr.BankReduction):
        troubles = (wrong_reduction(found[i]) for i in range(len(found)))
        return next((trouble for trouble in troubles if trouble), None)
    if trouble := wrong_system(found.system if isinstance(found.system, tuple) else found._reduced):
        return trouble
    full, order = found.original, found.order
    single = full.dtype.itemsize <= (8 if full.dtype.kind == "c" else 4)
    if found.T.shape != (full.order, order) or found.Ti.shape != (order, full.order) or not 0 <= order <= full.order:
        return f"bases {found.T.shape} and {found.Ti.shape} of order {order}"
    if not found.error_bound >= 0:
        return f"bound {found.error_bound}"
    with np.errstate(all="ignore"):
        error = np.abs(found.Ti @ found.T - np.eye(order)).max(initial=0.0)
        size = (np.abs(found.Ti) @ np.abs(found.T)).max(initial=1.0)
        if np.isfinite(size) and error > (1e-4 if single else 1e-8) * size:
            return f"Ti T differs from I by {error}, terms {size}"
        if found.unstable == 0 and full.dt <= 1e300:
            response, reduced = (x.frequency_response(FREQUENCIES) for x in (full, found._reduced))
            error, size = np.abs(response - reduced).max(initial=0.0), np.abs(response).max(initial=0.0)
            if np.isfinite(size) and error > found.error_bound * (1 + 1e-6) + 1e-9 * size:
                return f"an error of {error} exceeds the bound {found.error_bound}"
    return None


def wrong_difference(found: Any, self: Any = None, other: Any = None, **_: Any) -> str | None:
    """Tell whether the response of an error system is the difference."""
    if len({x.dt for x in (self, other, found)}) > 1 or found.dt > 1e300:
        return None  # frequencies are in rad per sample for one of them, per second for the other
    with np.errstate(all="ignore"):
        one, two, both = (x.frequency_response(FREQUENCIES[1:]) for x in (self, other, found))
        size = np.abs(one).max(initial=0.0) + np.abs(two).max(initial=0.0)
        error = np.abs(one - two - both).max(initial=0.0)
    return f"{error} next to {size}" if np.isfinite(size) and error > 1e-6 * size else None


def wrong_response(found: Any, self: Any = None, omega: Any = None) -> str | None:
    """Tell what is wrong with a frequency response."""
    lead = (len(self),) if isinstance(self, hr.DiagonalBank) else ()
    if found.shape != (*lead, np.size(omega), self.p, self.m) or np.isnan(found).any():
        return f"shape {found.shape}, or NaN"
    return None


def wrong_order(order: Any, self: Any = None, **_: Any) -> str | None:
    """Tell what is wrong with an order."""
    return None if isinstance(order, int) and self.unstable <= order <= len(self.hsv) else f"order {order!r}"


def wrong_number(value: Any, **_: Any) -> str | None:
    """Tell whether a number is NaN or negative."""
    return None if float(value) >= 0 else f"{value!r}"


def wrong_array(found: Any, **_: Any) -> str | None:
    """Tell whether a number of some arrays is not finite."""
    for x in found if isinstance(found, tuple) else (found,):
        if isinstance(x, (np.ndarray, float)) and not np.isfinite(x).all():
            return f"not finite: {x}"
    return None


def wrong_frequencies(found: Any, discrete: bool, **_: Any) -> str | None:
    """Tell whether one is no frequency: those of continuous time end at infinity on either side."""
    return wrong_array(found) if discrete or np.isnan(found).any() else None


def wrong_drift(found: Any, **_: Any) -> str | None:
    """Tell what is wrong with a bound on a drift."""
    bounds = found.steps if hasattr(found, "steps") else [found]
    for bound in bounds:
        if not bound.bound >= 0 or np.any(bound.drift > bound.bound * (1 + 1e-9)) or not np.isfinite(bound.hsv).all():
            return f"{bound!r} with a drift of {bound.drift}"
    return None


def wrong_models(found: Any, **_: Any) -> str | None:
    """Tell what is wrong with a system or a list of them."""
    return next(filter(None, map(wrong_system, found if isinstance(found, list) else [found])), None)


# --- systems -----------------------------------------------------------------------------------------------------


def _construct(form: str) -> Build:
    def build(draw: Draw) -> Call:
        kind, batch = form.split()[0], 2 if "Bank" in form else None
        draft = draw.dense() if kind == "StateSpace" else draw.diagonal(batch=batch, dt=draw.one_of(0.1, True))
        if draft.form == "tuple":
            draft = Draft("StateSpace", draft.parts)
        draft = Draft(form, draft.parts)
        names = draw.one_of({}, {}, {"name": "plant"}, {"name": None})
        return Call(lambda **parts: Draft(form, parts).make(), {**draft.parts, **names})

    return build


for _form in ("StateSpace", "DiagonalSystem", "DiagonalBank", "DiagonalSystem rates", "DiagonalBank rates"):
    _name = _form.replace(" rates", ".from_rates")
    target(f"hr.{_name}", "systems", wrong_system)(_construct(_form))


def _one_of_kind(draw: Draw, kind: str, **fixed: Any) -> Draft:
    if kind == "StateSpace":
        draft = draw.dense(**fixed)
        return Draft("StateSpace", draft.parts)
    return draw.diagonal(batch=draw.one_of(0, 1, 2) if kind == "DiagonalBank" else None, **fixed)


def _system_methods(kind: str) -> None:
    @target(f"hr.{kind}.with_", "systems", wrong_system)
    def _(draw: Draw) -> Call:
        draft = _one_of_kind(draw, kind, n=2, m=1, p=1)
        lead = draft.parts["B"].shape[:-2]
        changes = draw.one_of(
            {"name": "new"},
            {"inputs": ["u"]},
            {"states": ["a", "b"], "outputs": ("y",)},
            {"dt": draft.parts["dt"]},
            {"B": draw.array(*lead, 2, 1)},
            {"C": draw.array(*lead, 1, 2)},
            {"D": draw.array(*lead, 1, 1)},
            {},
            {"A": draw.array(2, 2)} if kind == "StateSpace" else {"output": "real", "D": None},
        )
        return Call(lambda self, **changes: self.with_(**changes), {"self": draft, **changes})

    @target(f"hr.{kind}.frequency_response", "systems", wrong_response)
    def _(draw: Draw) -> Call:
        omega = draw.one_of(FREQUENCIES, [0.0], 1.0, draw.array(5), np.array([np.pi]))
        return Call(
            lambda self, omega: self.frequency_response(omega), {"self": _one_of_kind(draw, kind), "omega": omega}
        )

    @target(f"hr.{kind}.__sub__", "systems", wrong_difference)
    def _(draw: Draw) -> Call:
        sizes = {
            "dt": draw.one_of(*TIMES),
            "m": draw.size(),
            "p": draw.size(),
            "output": draw.one_of("complex", "real"),
        }
        first = _one_of_kind(draw, kind, **sizes)
        second = _one_of_kind(draw, kind, **sizes)
        if kind == "DiagonalBank":
            second = Draft(first.form, dict(first.parts))
        elif draw.chance(0.3):
            second = draw.dense(**sizes)
            second = Draft("StateSpace", second.parts)
        return Call(lambda self, other: minus(self, other), {"self": first, "other": second})

    for method in ("poles", "is_stable", "dense", "to_scipy", "to_control"):

        @target(f"hr.{kind}.{method}", "systems")
        def _(draw: Draw, method: str = method) -> Call:
            some = method == "to_control"  # which takes real systems with inputs and outputs only
            draft = _one_of_kind(draw, kind, **({"m": 1, "p": 2} if some else {}))
            if some:
                draft.parts = {name: np.real(x) if isinstance(x, np.ndarray) else x for name, x in draft.parts.items()}
            return Call(lambda self: getattr(self, method)(), {"self": draft})


def minus(self: Any, other: Any) -> Any:
    """Return the difference; Python's own TypeError where the other is no system counts as a refusal."""
    found = type(self).__sub__(self, other)
    if found is NotImplemented:
        raise hr.InputError(f"other must be a system; got {other!r}.")
    return found


for _kind in ("StateSpace", "DiagonalSystem", "DiagonalBank"):
    _system_methods(_kind)


@target("hr.DiagonalSystem.take", "systems", wrong_system)
def _(draw: Draw) -> Call:
    states = draw.one_of([0], [0, 1], np.array([1, 0]), [], np.array([True, False, True]), [-1])
    return Call(lambda self, states: self.take(states), {"self": draw.diagonal(n=3), "states": states})


@target("hr.DiagonalBank.__getitem__", "systems", wrong_system)
def _(draw: Draw) -> Call:
    return Call(lambda self, i: at(self, i), {"self": draw.diagonal(batch=3), "i": draw.one_of(0, -1, 2, np.int64(1))})


def at(self: Any, i: Any) -> Any:
    """Return an item; an IndexError is the right one, as for every sequence."""
    try:
        return self[i]
    except IndexError as error:
        raise hr.InputError(f"i is out of range; got {i!r}: {error}") from None


@target("hr.as_system", "systems", wrong_system)
def _(draw: Draw) -> Call:
    return Call(hr.as_system, {"obj": draw.system(bank=True)})


@target("hr.save_system", "files")
def _(draw: Draw) -> Call:
    suffix = draw.one_of(".npz", ".mat")
    path = os.path.join(tempfile.gettempdir(), f"fuzz{os.getpid()}{suffix}")
    system = draw.dense() if suffix == ".mat" else draw.system()
    return Call(hr.save_system, {"sys": system, "path": path})


@target("hr.load_system", "files", wrong_system)
def _(draw: Draw) -> Call:
    suffix = draw.one_of(".npz", ".mat")
    path = os.path.join(tempfile.gettempdir(), f"fuzz{os.getpid()}{suffix}")
    system = hr.StateSpace(-np.eye(2), [[1.0], [2.0]], [[1.0, 1.0]], dt=draw.one_of(*TIMES))
    hr.save_system(system, path)
    return Call(hr.load_system, {"path": path, "dt": draw.one_of(None, system.dt)})


# --- weighting ---------------------------------------------------------------------------------------------------

weightings = hankelred.weighting
TimeLimited, FrequencyLimited = weightings.TimeLimited, weightings.FrequencyLimited


def _weighting(draw: Draw, system: Draft, share: float = 0.5) -> dict[str, Any]:
    """Return in this share of the cases one weighting that fits a system."""
    if not draw.chance(share):
        return {}
    kind = draw.one_of(*WEIGHTINGS)
    arguments = _weighting_of(kind, draw, system)
    return {"weighting": made_weighting(kind, **{name: made(value) for name, value in arguments.items()})}


def made_weighting(kind: str, **arguments: Any) -> Any:
    """Return a weighting of a kind."""
    bands = [arguments.pop(name) for name in ("band", "another band") if name in arguments]
    return getattr(weightings, kind)(*bands, **arguments)


def _weighting_of(kind: str, draw: Draw, system: Draft) -> dict[str, Any]:
    """Return arguments of a weighting that fits a system."""
    dt, B, C = (system.parts[name] for name in ("dt", "B", "C"))
    step = 0.1 if dt is not True and dt else 1.0
    options = draw.one_of({}, {"guaranteed": None}, {"guaranteed": True}, {"guaranteed": False})
    if kind == "TimeLimited":
        return {"horizon": step * draw.one_of(1, 2, 7, 64, 1000), **options}
    if kind == "FrequencyLimited":
        last = np.pi / step if dt else draw.one_of(np.inf, 9.0)
        band = draw.one_of((0.0, 1.0), (0.5, 2.0), (0.0, last), (2.0, last), (0, 0.1))
        return {"band": band, **({"another band": (2.0, 2.5)} if band[1] <= 2 and draw.chance(0.5) else {}), **options}
    if kind == "FrequencyWeighted":
        some = draw.one_of(("input",), ("output",), ("input", "output"))
        sizes = {"input": {"p": B.shape[-1]}, "output": {"m": C.shape[-2]}}
        one = draw.chance(0.3)
        weights = {name: draw.dense(dt=dt, **({"m": 1, "p": 1} if one else sizes[name])) for name in some}
        return {**weights, **options}
    lead, n, m = B.shape[:-2], B.shape[-2], B.shape[-1]
    complex_data = np.iscomplexobj(system.parts.get("lam"))
    data = lambda *shape: draw.array(*lead, *shape, complex_data=complex_data)  # noqa: E731
    if draw.chance(0.5):
        inputs = {"inputs": draw.array(*(lead if draw.chance(0.5) else ()), 2, draw.one_of(1, 9), m)}
        return {**inputs, **({} if dt else {"dt": draw.one_of(0.1, 1)}), **options}
    adjoints = {"adjoints": data(1, 4, n)} if draw.chance(0.5) else {}
    return {"states": data(2, draw.one_of(1, 9), n), **adjoints, **options}


for _kind in WEIGHTINGS:

    @target(f"weighting.{_kind}", "weighting", wrong_balancing)
    def _(draw: Draw, kind: str = _kind) -> Call:
        system = draw.system(n=3, m=2, p=1)
        return Call(
            lambda **x: hr.balance(system.make(), weighting=made_weighting(kind, **x)),
            _weighting_of(kind, draw, system),
        )


@target("weighting.StateCovariance", "weighting")
def _(draw: Draw) -> Call:
    return Call(weightings.StateCovariance, {"n": draw.one_of(1, 3), **draw.one_of({}, {"systems": 2})})


def covariance(draw: Draw) -> Any:
    """Return a covariance that has seen states."""
    found = weightings.StateCovariance(3, **draw.one_of({}, {"systems": 2}))
    for _ in range(draw.one_of(1, 2)):
        found.update(draw.array(*([2] if found.systems else []), 4, 3, complex_data=draw.chance(0.5)))
    return found


@target("weighting.StateCovariance.update", "weighting", lambda _, self, **__: wrong_sums(self))
def _(draw: Draw) -> Call:
    self = covariance(draw)
    states = draw.array(*([2] if self.systems else []), draw.one_of(1, 4), 3, complex_data=draw.chance(0.5))
    return Call(lambda self, states: self.update(states), {"self": self, "states": states})


@target("weighting.StateCovariance.merge", "weighting", lambda _, self, **__: wrong_sums(self))
def _(draw: Draw) -> Call:
    self = covariance(draw)
    return Call(
        lambda self, other: self.merge(other),
        {
            "self": self,
            "other": self
            if draw.chance(0.5)
            else self[0]
            if self.systems and draw.chance(0.2)
            else weightings.StateCovariance(3, self.systems),
        },
    )


for _method in ("mean", "real_mean", "to_dict"):

    @target(f"weighting.StateCovariance.{_method}", "weighting", wrong_array)
    def _(draw: Draw, method: str = _method) -> Call:
        return Call(lambda self: getattr(self, method)(), {"self": covariance(draw)})


@target("weighting.StateCovariance.from_dict", "weighting", lambda found, **_: wrong_sums(found))
def _(draw: Draw) -> Call:
    state = covariance(draw).to_dict()
    return Call(lambda **state: weightings.StateCovariance.from_dict(state), state)


@target("weighting.StateCovariance.__getitem__", "weighting", lambda found, **_: wrong_sums(found))
def _(draw: Draw) -> Call:
    self = weightings.StateCovariance(3, systems=2)
    return Call(lambda self, i: at(self, i), {"self": self, "i": draw.one_of(0, 1, np.int64(1))})


# --- analysis ----------------------------------------------------------------------------------------------------


def _analysis(name: str, check: Check) -> None:
    @target(f"hr.{name}", "analysis", check)
    def _(draw: Draw) -> Call:
        system = draw.system(bank=True)
        return Call(getattr(hr, name), {"sys": system, **(_weighting(draw, system) if "norm" not in name else {})})


for _name, _check in (
    ("hankel_singular_values", wrong_hsv),
    ("gramians", wrong_gramians),
    ("gramian_factors", wrong_factors),
    ("h2_norm", wrong_norm),
    ("hankel_norm", wrong_norm),
):
    _analysis(_name, _check)


@target("hr.hinf_norm", "analysis", wrong_hinf)
def _(draw: Draw) -> Call:
    options = {"rtol": draw.one_of(1e-8, 1e-3, 1e-12), "return_peak": draw.chance(0.3)}
    return Call(hr.hinf_norm, {"sys": draw.system(bank=True), **options})


@target("hr.solve_lyapunov", "analysis", wrong_equation)
def _(draw: Draw) -> Call:
    system = draw.dense()
    A, n = system.parts["A"], len(system.parts["A"])
    return Call(hr.solve_lyapunov, {"A": A, "Q": draw.array(n, n), "dt": system.parts["dt"]})


@target("hr.lyapunov_factor", "analysis", wrong_factor)
def _(draw: Draw) -> Call:
    system = draw.dense()
    A, n = system.parts["A"], len(system.parts["A"])
    return Call(hr.lyapunov_factor, {"A": A, "F": draw.array(n, draw.size()), "dt": system.parts["dt"]})


# --- reduction ---------------------------------------------------------------------------------------------------


@target("hr.balance", "reduction", wrong_balancing)
def _(draw: Draw) -> Call:
    system = draw.system() if draw.chance(0.7) else draw.dense(stable=False)
    options = {"offset": draw.one_of(0.0, 1e-8, 0.5)} if draw.chance(0.5) else {}
    return Call(hr.balance, {"sys": system, **options, **_weighting(draw, system)})


@target("hr.balanced_truncation", "reduction", wrong_reduction)
def _(draw: Draw) -> Call:
    single = draw.chance(0.7)
    options = {"match_dc": draw.chance(0.5), "offset": 1e-8} if single and draw.chance(0.5) else {}
    system = draw.system(bank=not single)
    return Call(hr.balanced_truncation, {"sys": system, **draw.criterion(2), **options, **_weighting(draw, system)})


@target("hr.minimal", "reduction", wrong_reduction)
def _(draw: Draw) -> Call:
    return Call(hr.minimal, {"sys": draw.system(), **draw.one_of({}, {"rtol": 1e-6})})


@target("hr.modal_truncation", "reduction", wrong_reduction)
def _(draw: Draw) -> Call:
    options = draw.one_of({}, {"by": "slowest"}, {"match_dc": True}, {"offset": 1e-8})
    return Call(hr.modal_truncation, {"sys": draw.system(), "order": draw.one_of(0, 1, 2), **options})


@target("hr.balanced_realization", "reduction", lambda found, sys: wrong_hsv(found[1], sys) or wrong_system(found[0]))
def _(draw: Draw) -> Call:
    return Call(hr.balanced_realization, {"sys": draw.system()})


@target("hr.Balancing.order", "reduction", wrong_order)
def _(draw: Draw) -> Call:
    options = draw.criterion(2)
    return Call(
        lambda self, **criteria: self.order(**criteria),
        {"self": balanced(draw), **({"states": options.pop("order")} if "order" in options else options)},
    )


@target("hr.Balancing.error_bound", "reduction", wrong_number)
def _(draw: Draw) -> Call:
    return Call(lambda self, order: self.error_bound(order), {"self": balanced(draw), "order": draw.one_of(0, 1, 2)})


@target("hr.Balancing.reduce", "reduction", wrong_reduction)
def _(draw: Draw) -> Call:
    options = {"match_dc": draw.chance(0.5)} if draw.chance(0.5) else {}
    return Call(
        lambda self, **criteria: self.reduce(**criteria), {"self": balanced(draw), **draw.criterion(2), **options}
    )


def balanced(draw: Draw, **fixed: Any) -> Any:
    """Return a Balancing of a system of some states."""
    system = draw.system(n=draw.one_of(2, 3, 4), **fixed)
    return hr.balance(system.make(), **_weighting(draw, system, share=0.3))


def reduced(draw: Draw) -> Any:
    """Return a Reduction."""
    while True:
        try:
            return balanced(draw).reduce(draw.one_of(0, 1, 2), match_dc=draw.chance(0.3))
        except hr.HankelredError:
            continue


for _method in ("hinf_error", "h2_error", "hankel_error"):

    @target(f"hr.Reduction.{_method}", "reduction", wrong_number)
    def _(draw: Draw, method: str = _method) -> Call:
        return Call(lambda self: getattr(self, method)(), {"self": reduced(draw)})


for _method in ("summary", "to_json"):

    @target(
        f"hr.Reduction.{_method}", "reduction", lambda text, self: None if isinstance(text, str) and text else "no text"
    )
    def _(draw: Draw, method: str = _method) -> Call:
        return Call(lambda self: getattr(self, method)(), {"self": reduced(draw)})


@target("hr.BankReduction.__getitem__", "reduction", wrong_reduction)
def _(draw: Draw) -> Call:
    bank = draw.diagonal(batch=2, n=3, m=1, p=1).make()
    i = draw.one_of(0, 1, -1, np.int32(1))
    return Call(lambda self, i: at(self, i), {"self": hr.balanced_truncation(bank, states=draw.one_of(2, 3)), "i": i})


# --- control -----------------------------------------------------------------------------------------------------


def _control(name: str) -> Callable[..., Any]:
    return getattr(hankelred.control, name)


def _orders(name: str) -> None:
    @target(f"control.{name}", "control", wrong_models)
    def _(draw: Draw) -> Call:
        system = draw.dense(n=draw.one_of(2, 3), m=1, p=1, proper=True)
        orders = draw.one_of(1, [1], [0, 1], np.array([1, 2]), 2.0, (1.0, 2), np.int64(1))
        options = draw.one_of(
            {}, {"method": "truncate"}, {"method": "matchdc"}, {"alpha": 0.0 if system.parts["dt"] == 0 else 1.0}
        )
        return Call(_control(name), {"sys": system, "orders": orders, **options})


for _name in ("balred", "balanced_reduction"):
    _orders(_name)

for _name in ("hsvd", "hankel_singular_values"):
    if _name in {key for room, _, names in _rooms() if room == "control" for key in names}:

        @target(f"control.{_name}", "control", wrong_hsv)
        def _(draw: Draw, name: str = _name) -> Call:
            return Call(_control(name), {"sys": draw.system()})


@target("control.gram", "control", wrong_array)
def _(draw: Draw) -> Call:
    return Call(_control("gram"), {"sys": draw.system(), "type": draw.one_of("c", "o", "cf", "of")})


for _name in ("lyap", "dlyap"):

    @target(f"control.{_name}", "control", wrong_array)
    def _(draw: Draw, name: str = _name) -> Call:
        A = draw.dense(dt=0 if name == "lyap" else True, n=draw.one_of(1, 2, 3)).parts["A"]
        n = len(A)
        Q = draw.array(n, n)
        k = draw.one_of(1, 2)
        square = A[:k, :k] / 2 if name == "dlyap" else A[:k, :k] - np.eye(len(A[:k, :k]))
        more = draw.one_of({}, {"C": draw.array(n, len(square))}, {"E": np.diag(np.arange(1.0, n + 1))})
        return Call(_control(name), {"A": A, "Q": square if "C" in more else Q + Q.T, **more})


for _name in ("minreal", "minimal_realization"):

    @target(f"control.{_name}", "control", wrong_models)
    def _(draw: Draw, name: str = _name) -> Call:
        return Call(_control(name), {"sys": draw.dense(), "verbose": False})


for _name in ("modred", "model_reduction"):

    @target(f"control.{_name}", "control", wrong_models)
    def _(draw: Draw, name: str = _name) -> Call:
        options = {"elim_states": draw.one_of([0], [1, 2], []), "warn_unstable": False}
        return Call(_control(name), {"sys": draw.dense(n=3), **options})


# --- drift -------------------------------------------------------------------------------------------------------


def _pair(draw: Draw) -> dict[str, Draft]:
    sizes = {
        "dt": draw.one_of(*TIMES),
        "m": draw.one_of(1, 2),
        "p": draw.one_of(1, 2),
        "output": draw.one_of("complex", "real"),
    }
    return {"G": draw.system(**sizes), "H": draw.system(**sizes)}


@target("drift.drift_bound", "drift", wrong_drift)
def _(draw: Draw) -> Call:
    return Call(hankelred.drift.drift_bound, _pair(draw))


@target("drift.match_hsv", "drift", wrong_array)
def _(draw: Draw) -> Call:
    return Call(hankelred.drift.match_hsv, _pair(draw))


@target("drift.drift_along", "drift", wrong_drift)
def _(draw: Draw) -> Call:
    return Call(hankelred.drift.drift_along, {"systems": list(_pair(draw).values())})


def _bound(draw: Draw) -> Any:
    lam = np.array([-1.0, -2.0])
    G, H = (hr.DiagonalSystem(lam, draw.array(2, 1), draw.array(1, 2), dt=0) for _ in range(2))
    return hankelred.drift.drift_bound(G, H)


for _method in ("certify", "tail_bound"):

    @target(f"drift.DriftBound.{_method}", "drift")
    def _(draw: Draw, method: str = _method) -> Call:
        return Call(
            lambda self, order: getattr(self, method)(order), {"self": _bound(draw), "order": draw.one_of(1, 2)}
        )


@target("drift.AccumulatedDrift.settled", "drift")
def _(draw: Draw) -> Call:
    along = hankelred.drift.AccumulatedDrift((_bound(draw), _bound(draw)))
    return Call(lambda self, order: self.settled(order), {"self": along, "order": draw.one_of(1, 2)})


# --- selective ---------------------------------------------------------------------------------------------------

selective = hankelred.selective


def _steps(draw: Draw, *lead: int, n: int = 3) -> dict[str, Any]:
    return {
        "a": draw.rng.integers(1, 60, (*lead, 2, 6, n)) / 64,
        "b": draw.array(*lead, 2, 6, n),
        "c": draw.array(*lead, 2, 6, n),
    }


def _mamba(draw: Draw) -> dict[str, Any]:
    delta = draw.rng.integers(1, 8, (2, 6, 4)) / 64
    data = {
        "delta": delta,
        "A": -draw.rng.integers(1, 64, (4, 3)) / 8.0,
        "B": draw.array(2, 6, 3),
        "C": draw.array(2, 6, 3),
        "u": draw.array(2, 6, 4),
    }
    return data | ({"gate": draw.array(2, 6, 4)} if draw.chance(0.3) else {})


def _heads(draw: Draw) -> dict[str, Any]:
    data = {
        "decay": draw.rng.integers(1, 60, (2, 6, 2)) / 64,
        "B": draw.array(2, 6, 1, 3),
        "C": draw.array(2, 6, 1, 3),
        "x": draw.array(2, 6, 2, 4),
    }
    return data | ({"gate": draw.array(2, 6, 2, 4)} if draw.chance(0.3) else {})


def _delta(draw: Draw) -> dict[str, Any]:
    data = _heads(draw)
    B = data["B"] / (np.linalg.norm(data["B"], axis=3, keepdims=True) + 2.0**-10)
    return data | {"beta": draw.rng.integers(0, 128, (2, 6, 2)) / 64, "B": B}


def seen(draw: Draw, heads: bool = False, **options: Any) -> Any:
    """Return statistics that have seen data."""
    found = selective.SelectiveStatistics(3, **options)
    if heads:
        found.update_heads(**_heads(draw))
    else:
        found.update_mamba(**_mamba(draw))
    return found


@target("selective.averaged_gramians", "selective", wrong_array)
def _(draw: Draw) -> Call:
    lead = draw.one_of((), (2,))
    return Call(
        selective.averaged_gramians, {**_steps(draw, *lead), "method": draw.one_of("exact", "second_moment", "mean")}
    )


@target("selective.SelectiveStatistics", "selective")
def _(draw: Draw) -> Call:
    options = draw.one_of({}, {"moments": True}, {"exact": True}, {"every": 2}, {"groups": 2})
    return Call(selective.SelectiveStatistics, {"n": draw.one_of(1, 3), **options})


for _method, _data in (
    ("update", _steps),
    ("update_mamba", _mamba),
    ("update_heads", _heads),
    ("update_delta", _delta),
):

    @target(f"selective.SelectiveStatistics.{_method}", "selective", lambda _, self, **__: wrong_sums(self))
    def _(draw: Draw, method: str = _method, data: Any = _data) -> Call:
        options = draw.one_of({}, {"moments": True}, {"exact": True}, {"every": 2})
        options = {"delta": True} if data is _delta else options
        self = selective.SelectiveStatistics(3, **options)
        return Call(lambda self, **data: getattr(self, method)(**data), {"self": self, **data(draw)})


def wrong_sums(self: Any) -> str | None:
    """Tell whether sums are not finite."""
    state = self.to_dict()
    state = {name: x for name, x in state.items() if x is not None}
    return next((f"{name} not finite" for name, x in state.items() if not np.isfinite(x).all()), None)


@target("selective.SelectiveStatistics.merge", "selective")
def _(draw: Draw) -> Call:
    return Call(lambda self, other: self.merge(other), {"self": seen(draw), "other": seen(draw)})


for _method in ("gramians", "hankel_singular_values"):

    @target(f"selective.SelectiveStatistics.{_method}", "selective", wrong_array)
    def _(draw: Draw, method: str = _method) -> Call:
        way = draw.one_of({}, {"method": "covariance"}, {"method": "second_moment"}, {"method": "mean"})
        self = seen(draw, moments="moment" in str(way))
        return Call(lambda self, **way: getattr(self, method)(**way), {"self": self, **way})


for _method in ("pooled", "to_dict", "state_covariance", "output_covariance", "output_form"):

    @target(f"selective.SelectiveStatistics.{_method}", "selective")
    def _(draw: Draw, method: str = _method) -> Call:
        return Call(lambda self: getattr(self, method)(), {"self": seen(draw)})


@target("selective.SelectiveStatistics.from_dict", "selective", lambda found, **_: wrong_sums(found))
def _(draw: Draw) -> Call:
    state = seen(draw).to_dict()
    return Call(lambda **state: selective.SelectiveStatistics.from_dict(state), state)


@target("selective.rotate", "selective", lambda found, **_: wrong_array((found.T, found.Ti, found.predicted_error)))
def _(draw: Draw) -> Call:
    A = _mamba(draw)["A"]
    return Call(
        selective.rotate,
        {
            "statistics": seen(draw),
            "A": A,
            "order": draw.one_of(1, 2, 3),
            **draw.one_of({}, {"max_spread": 1e3}, {"method": "mean"}),
        },
    )


@target("selective.select", "selective", lambda found, **_: wrong_array((found.T, found.Ti, found.predicted_error)))
def _(draw: Draw) -> Call:
    options = draw.one_of({}, {"fold": False}, {"rcond": 1e-6}, {"kept": np.array([0, 2])})
    return Call(selective.select, {"statistics": seen(draw), "order": 2, **options})


@target("selective.project", "selective", lambda found, **_: wrong_array((found.T, found.Ti, found.predicted_error)))
def _(draw: Draw) -> Call:
    order, options = draw.one_of(1, 2), draw.one_of({}, {"orthogonal": True})
    return Call(selective.project, {"statistics": seen(draw, heads=True), "order": order, **options})


@target("selective.SelectiveReduction.delta_error", "selective", wrong_number)
def _(draw: Draw) -> Call:
    data, statistics = _delta(draw), selective.SelectiveStatistics(3, delta=True)
    statistics.update_delta(**data)
    turned = draw.one_of(False, True)
    reduce = selective.project if turned else selective.select
    options = {"orthogonal": True} if turned else {"fold": False}
    return Call(
        lambda self, **data: self.delta_error(**data),
        {"self": reduce(statistics, 2, **options), **data, **draw.one_of({}, {"renormalise": True})},
    )


for _method in ("error_form", "feedback"):

    @target(f"selective.SelectiveStatistics.{_method}", "selective")
    def _(draw: Draw, method: str = _method) -> Call:
        statistics = selective.SelectiveStatistics(3, delta=True)
        statistics.update_delta(**_delta(draw))
        return Call(lambda self: getattr(self, method)(), {"self": statistics})


for _method in ("delta_inputs", "delta_outputs"):

    @target(f"selective.{_method}", "selective", wrong_array)
    def _(draw: Draw, method: str = _method) -> Call:
        data = _delta(draw)
        wanted = ("decay", "beta", "B", "x") if method == "delta_inputs" else ("decay", "beta", "B", "C", "x")
        return Call(getattr(selective, method), {name: data[name] for name in wanted})


for _method in ("select_states", "selection_report"):

    @target(f"selective.{_method}", "selective")
    def _(draw: Draw, method: str = _method) -> Call:
        M = draw.array(4, 4)
        return Call(getattr(selective, method), {"M": M @ M.T, "order": draw.one_of(0, 2, 4)})


@target("selective.SelectiveReduction.mamba_error", "selective", wrong_number)
def _(draw: Draw) -> Call:
    return Call(
        lambda self, **data: self.mamba_error(**data), {"self": selective.select(seen(draw), 2), **_mamba(draw)}
    )


@target("selective.SelectiveReduction.heads_error", "selective", wrong_number)
def _(draw: Draw) -> Call:
    return Call(
        lambda self, **data: self.heads_error(**data),
        {"self": selective.select(seen(draw, heads=True), 2), **_heads(draw)},
    )


# --- training ----------------------------------------------------------------------------------------------------

training = hankelred.training


def _moved(draw: Draw) -> dict[str, Any]:
    while True:
        system = draw.diagonal(n=3, m=1, p=1).make()
        try:
            return {"system": system, "reduction": hr.balanced_truncation(system, states=2)}
        except hr.HankelredError:
            continue


def _moments(draw: Draw) -> Any:
    sizes = ((3,), (3, 1), (1, 3))
    return training.Moments(*(np.abs(draw.array(*size)) + 1j * np.abs(draw.array(*size)) for size in sizes))


@target("training.align_states", "training", wrong_reduction)
def _(draw: Draw) -> Call:
    return Call(training.align_states, _moved(draw))


for _method in ("carry_first_moments", "carry_second_moments"):

    @target(f"training.{_method}", "training", lambda found, **_: wrong_array(tuple(found)))
    def _(draw: Draw, method: str = _method) -> Call:
        more = {"staleness": draw.one_of(0.0, 0.1)} if "first" in method and draw.chance(0.5) else {}
        return Call(getattr(training, method), {**_moved(draw), "moments": _moments(draw), **more})


@target("training.follow", "training", wrong_models)
def _(draw: Draw) -> Call:
    found = _moved(draw)
    return Call(training.follow, {"copy": found["system"].with_(B=draw.array(3, 1)), **found})


# --- testing -----------------------------------------------------------------------------------------------------

testing = hankelred.testing


def asserts(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return an assertion as a function that tells whether it holds."""

    def holds(**arguments: Any) -> bool:
        try:
            function(**{name: failing_claim(value) if callable(value) else value for name, value in arguments.items()})
        except AssertionError:
            return False
        return True

    return holds


def failing_claim(program: Callable[..., Any]) -> Callable[..., Any]:
    """Return a program under test whose own errors, which the assertions let through, are a failed assertion."""

    def run(*arguments: Any) -> Any:
        try:
            return program(*arguments)
        except Exception as error:
            raise AssertionError(str(error)) from error

    return run


@target("testing.assert_hsv_close", "testing")
def _(draw: Draw) -> Call:
    system = draw.system()
    return Call(
        asserts(testing.assert_hsv_close),
        {
            "sys": system,
            "hsv": hr.hankel_singular_values(system.make()),
            **draw.one_of({}, {"rtol": 1e-6}, {"atol": 1e-6}),
        },
    )


@target("testing.assert_error_bound", "testing")
def _(draw: Draw) -> Call:
    found = reduced(draw)
    return Call(
        asserts(testing.assert_error_bound),
        {
            "full": found.original,
            "reduced": draw.one_of(found, found._reduced),
            **draw.one_of({}, {"bound": 1.0}, {"rtol": 1e-3}),
        },
    )


@target("testing.assert_weyl", "testing")
def _(draw: Draw) -> Call:
    return Call(asserts(testing.assert_weyl), {**_pair(draw), **draw.one_of({}, {"hsv": hr.hankel_singular_values})})


@target("testing.assert_factors", "testing")
def _(draw: Draw) -> Call:
    system = draw.system()
    S, R = hr.gramian_factors(system.make())
    return Call(asserts(testing.assert_factors), {"sys": system, "S": S, "R": R, **draw.one_of({}, {"rtol": 1e-8})})


@target("testing.assert_balanced", "testing")
def _(draw: Draw) -> Call:
    system, hsv, _, _ = hr.balanced_realization(hr.as_system(draw.system(n=2, m=1, p=1).make()))
    more = {"hsv": hsv} if draw.chance(0.5) and len(hsv) == system.n else {}
    return Call(
        asserts(testing.assert_balanced),
        {
            "sys": Draft("StateSpace", {"A": system.A, "B": system.B, "C": system.C, "D": system.D, "dt": system.dt}),
            **more,
        },
    )


@target("testing.system_with_hsv", "testing", wrong_models)
def _(draw: Draw) -> Call:
    options = draw.one_of({}, {"signs": [1, -1]}, {"gains": np.array([0.5, 2.0])}, {"dt": draw.one_of(*TIMES)})
    return Call(testing.system_with_hsv, {"hsv": np.array([2.0, 0.5]), **options})


@target("testing.system_code", "testing")
def _(draw: Draw) -> Call:
    return Call(testing.system_code, {"sys": draw.system()})


@target("testing.delta_layer", "testing", lambda layer, **_: wrong_array(layer.data))
def _(draw: Draw) -> Call:
    sizes = {"n": 4, "rank": draw.one_of(1, 2), "inert": draw.one_of(0, 2), "heads": 2, "batch": 1, "length": 5}
    return Call(
        testing.delta_layer, {**sizes, **draw.one_of({}, {"noise": 0.0}, {"follow": 1.0}, {"by_channel": True})}
    )


@target("testing.delta_layers", "testing")
def _(draw: Draw) -> Call:
    return Call(lambda **options: example("delta_layers", options), {"max_states": draw.one_of(1, 4)})


def _strategy(name: str, **options: Any) -> None:
    @target(f"testing.{name}", "testing")
    def _(draw: Draw) -> Call:
        chosen = {key: value for key, value in options.items() if draw.chance(0.5)}
        return Call(lambda **chosen: example(name, chosen), {**chosen, "dt": draw.one_of(0, True, (0, 0.1))})


def example(name: str, options: dict[str, Any]) -> Any:
    """Return one system drawn from a strategy."""
    import hypothesis

    strategy = getattr(testing, name)(**options)
    found: list[Any] = []

    @hypothesis.settings(
        max_examples=1,
        database=None,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def take(value: Any) -> None:
        found.append(value)

    take()
    return found[0]


_sizes = {"max_states": 3, "min_states": 1, "max_inputs": 2, "max_outputs": 2, "complex_data": False}
_strategy("stable_systems", **_sizes)
_strategy("diagonal_systems", **_sizes, outputs=("real",))
_strategy("near_boundary_systems", max_digits=6, max_states=2)
_strategy("prescribed_systems", hsv=[2.0, 1.0], max_states=3)
_strategy("repeated_hsv_systems", max_states=2, copies=2)
_strategy("non_minimal_systems", max_states=2, max_hidden=1)
_strategy("ill_scaled_systems", max_exponent=4, max_states=2)
_strategy("diagonal_banks", max_systems=2, max_states=2)
_strategy("system_pairs", max_states=2)


# --- plotting, checks, command line ------------------------------------------------------------------------------

plotting = hankelred.plotting


@target("plotting.plot_hsv", "plotting")
def _(draw: Draw) -> Call:
    hsv = draw.one_of(np.array([2.0, 1.0, 0.0]), np.array([np.inf, 1.0]), hr.balance(draw.system(n=2).make()))
    return Call(plotting.plot_hsv, {"hsv": hsv, **draw.one_of({}, {"order": 1}, {"order": 0})})


@target("plotting.plot_tradeoff", "plotting")
def _(draw: Draw) -> Call:
    trials = np.array([[2.0, 0.5], [4.0, 0.25], [4.0, 0.2]])
    return Call(plotting.plot_tradeoff, {"trials": trials, **draw.one_of({}, {"kept": 4})})


@target("plotting.plot_error_bound", "plotting")
def _(draw: Draw) -> Call:
    found = reduced(draw)
    sources = [found.hsv] if np.isinf(found.error_bound) or "guaranteed" in found.method else [found, found.hsv]
    return Call(plotting.plot_error_bound, {"hsv": draw.one_of(*sources), **draw.one_of({}, {"reductions": [found]})})


@target("plotting.plot_frequency_error", "plotting")
def _(draw: Draw) -> Call:
    bal = balanced(draw, m=1, p=1)
    return Call(
        plotting.plot_frequency_error,
        {
            "sys": bal.system,
            "reduced": draw.one_of(bal.reduce(0), bal.system),
            **draw.one_of({}, {"omega": FREQUENCIES[1:]}),
        },
    )


def _of_models(name: str, **options: Any) -> None:
    @target(f"plotting.{name}", "plotting")
    def _(draw: Draw) -> Call:
        bal = balanced(draw, m=1, p=1)
        reduced = draw.one_of({}, {"reduced": bal.reduce(0)}, {"reduced": bal.system})
        more = draw.one_of({}, *({key: value} for key, value in options.items()))
        return Call(getattr(plotting, name), {"sys": bal.system, **reduced, **more})


_of_models("plot_bode", omega=FREQUENCIES[1:], channels=[(0, 0)])
_of_models("plot_step", horizon=2.0, channels=[(0, 0)])
_of_models("plot_poles")


@target("plotting.new_axes", "plotting")
def _(draw: Draw) -> Call:
    return Call(plotting.new_axes, {"columns": draw.one_of(1, 2), **draw.one_of({}, {"rows": 2})})


@target("plotting.as_axes", "plotting")
def _(draw: Draw) -> Call:
    return Call(plotting.as_axes, {"ax": draw.one_of(None, plotting.new_axes(1)[0])})


checks = hankelred.checks
_CHECKS: dict[str, Callable[[Draw], dict[str, Any]]] = {
    "check_array": lambda draw: {"x": draw.array(2, 2), "name": "x", "ndim": draw.one_of(2, None)},
    "check_real_array": lambda draw: {"x": draw.array(2), "name": "x", "ndim": 1},
    "check_square": lambda draw: {"A": draw.array(2, 2)},
    "check_dt": lambda draw: {"dt": draw.one_of(*TIMES)},
    "check_number": lambda draw: {"value": draw.one_of(0.5, 1, np.float64(0.2)), "name": "value", "least": 0.0},
    "check_integer": lambda draw: {"value": draw.one_of(1, np.int64(2)), "name": "value", "least": 0, "most": 3},
    "check_choice": lambda draw: {"value": "a", "name": "value", "choices": ("a", "b")},
    "check_flag": lambda draw: {"value": True, "name": "value"},
    "check_names": lambda draw: {"names": ["a", "b"], "what": "names", "count": 2},
    "check_feedthrough": lambda draw: {"D": draw.array(1, 2), "p": 1, "m": 2},
    "check_frequencies": lambda draw: {"omega": FREQUENCIES, "discrete": draw.chance(0.5)},
    "check_items": lambda draw: {"values": draw.one_of([1, 2], (), range(2)), "name": "values"},
    "check_indices": lambda draw: {
        "indices": draw.one_of([0, 1], [True, False], [], [-1]),
        "name": "indices",
        "count": 2,
    },
    "check_type": lambda draw: {
        "value": hr.StateSpace([[-1.0]], [[1.0]], [[1.0]]),
        "name": "value",
        "kind": hr.StateSpace,
    },
    "exactly_one": lambda draw: {"rtol": 0.1, "order": None},
}
# What the caller of a check says about itself, not what a user gave it.
OF_THE_CALLER = {"name", "ndim", "least", "most", "choices", "what", "count", "kind", "p", "m", "discrete"}


def _check_target(name: str, arguments: Callable[[Draw], dict[str, Any]]) -> None:
    judge = {"exactly_one": None, "check_items": None, "check_frequencies": wrong_frequencies}.get(name, wrong_array)

    @target(f"checks.{name}", "checks", judge)
    def _(draw: Draw) -> Call:
        return Call(getattr(checks, name), arguments(draw))


for _name, _arguments in _CHECKS.items():
    _check_target(_name, _arguments)


@target("cli.main", "cli", lambda code, **_: None if code in (0, 1, 2) else f"exit code {code!r}")
def _(draw: Draw) -> Call:
    path = os.path.join(tempfile.gettempdir(), f"fuzz{os.getpid()}.npz")
    system = draw.system(n=2, m=1, p=1).make()
    hr.save_system(system, path)
    options = draw.one_of(
        ["hsv", path],
        ["reduce", path, "--order", "1"],
        ["compare", path, path],
        ["reduce", path, "--rtol", draw.one_of("0.1", "nan", "-1", "x", "1e400")],
        ["hsv", "/nowhere.npz"],
        ["hsv", path, "--dt", draw.one_of("-1", "nan", "true", "1e-400")],
        ["reduce", path],
        [],
        ["reduce", path, "--order", draw.one_of("-1", "99", "1.5", "1,2", "0,,1")],
        ["norms", path, "--json"],
        [
            "hsv",
            path,
            "--json",
            "--weighting",
            draw.one_of("time:1", "band:0:1", "lqg", "time:nan", "stochastic", "x:"),
        ],
        ["convert", path, "/nowhere/at/all.mat"],
    )
    return Call(run_cli, {"argv": options})


def run_cli(argv: Any) -> Any:
    """Run the command line; argparse's way out is one."""
    try:
        return hankelred.cli.main(argv)
    except SystemExit as exit:
        return exit.code


# The builds of sparse systems, of Riccati weightings, of optimal models and of loops register themselves.
from fuzz import loop_calls, sparse_calls  # noqa: E402, F401
