"""Calls with sparse and second-order systems; what dense twins say of the results."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

import hankelred as hr
from fuzz.calls import (
    FREQUENCIES,
    Check,
    minus,
    target,
    wrong_array,
    wrong_difference,
    wrong_hinf,
    wrong_norm,
    wrong_reduction,
    wrong_response,
    wrong_system,
)
from fuzz.values import TIMES, Call, Draft, Draw

KINDS = ("csc_array", "csr_array", "coo_array", "csr_matrix", "lil_array", "dia_array")

# States of a rod: enough for factors of low rank.
LONG = 40


def sparse(draw: Draw, **fixed: Any) -> Draft:
    """Return a stable system with sparse matrices: small, or a rod with factors of low rank."""
    form = " ".join(["sparse", draw.one_of(*KINDS), "A", *(key for key in "BCE" if draw.chance(0.5))])
    if draw.chance(0.7):
        draft = draw.dense(**fixed)
        return Draft(form, draft.parts)
    n, m, p = (fixed.get(key, size) for key, size in (("n", LONG), ("m", draw.one_of(1, 2)), ("p", draw.one_of(1, 2))))
    dt = fixed.get("dt", draw.one_of(*TIMES))
    A = np.eye(n, k=1) - 2 * np.eye(n) + np.eye(n, k=-1)
    A = np.eye(n) + A / 8 if dt else 64 * A + (draw.array(n, n) * np.eye(n, k=1) if draw.chance(0.3) else 0)
    mass = {"E": np.diag(draw.rng.integers(4, 9, n) / 4.0)} if not dt and draw.chance(0.3) else {}
    return Draft(form, {"A": A, "B": draw.array(n, m), "C": draw.array(p, n), **mass, "dt": dt})


def second_order(draw: Draw, **fixed: Any) -> Draft:
    """Return a damped second-order model, its matrices sparse or not."""
    k, m, p = (
        fixed.get(key, size)
        for key, size in (("k", draw.one_of(0, *[1, 2, 3] * 6, 12)), ("m", draw.size()), ("p", draw.size()))
    )
    M = np.diag(draw.rng.integers(4, 9, k) / 4.0)
    K = 4 * np.eye(k) - np.eye(k, k=1) - np.eye(k, k=-1)
    parts = {"M": M, "E": M / 2 + K / 8, "K": K, "B": draw.array(k, m), "Cp": draw.array(p, k)}
    parts |= {"Cv": draw.array(p, k)} if draw.chance(0.4) else {}
    parts |= {"D": draw.array(p, m)} if draw.chance(0.3) else {}
    names = {key: x for key, x in draw.names(2 * k, m, p).items()}
    return Draft("SecondOrderSystem", {**parts, **names})


def large(draw: Draw, **fixed: Any) -> Draft:
    """Return a system of either kind."""
    if fixed.get("dt", 0) == 0 and draw.chance(0.4):
        return second_order(draw, **{key: x for key, x in fixed.items() if key in ("m", "p")})
    return sparse(draw, **fixed)


def moderate(system: Any) -> bool:
    """Tell whether a dense twin has digits to compare with."""
    sizes = [np.abs(x)[np.abs(x) > 0] for G in (system.dense(),) for x in (G.A, G.B, G.C, G.D)]
    return all(np.all((x > 1e-5) & (x < 1e5)) for x in sizes) and 1e-5 < float(system.dt or 1) < 1e5


def like_dense(function: Callable[..., Any], check: Check | None, rtol: float = 1e-6) -> Check:
    """Return a check that compares values with those of the dense twin, after the check of the values."""

    def wrong(found: Any, sys: Any, **options: Any) -> str | None:
        if check and (trouble := check(found, sys=sys, **options)):
            return trouble
        system = hr.as_system(sys)
        if system.is_bank or not moderate(system):
            return None
        value, twin = (
            np.atleast_1d(x[0] if isinstance(x, tuple) else x) for x in (found, function(system.dense(), **options))
        )
        k = min(len(value), len(twin))
        rtol_here = 1e-3 if system.dtype.itemsize <= (8 if system.dtype.kind == "c" else 4) else rtol
        size = np.abs(twin[np.isfinite(twin)]).max(initial=0.0)
        if not np.allclose(value[:k], twin[:k], rtol=rtol_here, atol=1e-9 * size) or np.any(twin[k:] > 1e-6 * size):
            return f"{value} differs from {twin} of the dense twin"
        return None

    return wrong


def decreasing(hsv: Any, sys: Any, **_: Any) -> str | None:
    """Tell what is wrong with Hankel singular values, of which there may be fewer than states."""
    if hsv.ndim != 1 or len(hsv) > hr.as_system(sys).order or not np.isfinite(hsv).all():
        return f"shape {hsv.shape} for {sys!r}, or not finite"
    return f"not decreasing: {hsv}" if np.any(hsv < 0) or np.any(hsv[1:] > hsv[:-1]) else None


def wrong_large_factors(found: Any, sys: Any, **_: Any) -> str | None:
    """Tell what is wrong with factors, of few columns."""
    if hr.as_system(sys).is_bank:
        return wrong_array(found)
    S, R = found
    n = hr.as_system(sys).order
    if len(S) != n or R.shape[1] != n or not (np.isfinite(S).all() and np.isfinite(R).all()):
        return f"factors {S.shape} and {R.shape} for {sys!r}, or not finite"
    return None


for _form, _make in (("StateSpace (sparse)", sparse), ("SecondOrderSystem", second_order)):

    @target(f"hr.{_form}", "sparse", wrong_system)
    def _(draw: Draw, make: Any = _make) -> Call:
        draft = make(draw)
        return Call(lambda **parts: Draft(draft.form, parts).make(), draft.parts)

    @target(
        f"hr.{_form.split()[0]}.with_{_form[10:]}" if "sparse" in _form else f"hr.{_form}.with_", "sparse", wrong_system
    )
    def _(draw: Draw, make: Any = _make) -> Call:
        draft = make(draw, m=1, p=1)
        changes = draw.one_of(
            {"name": "new"},
            {"inputs": ["u"]},
            {"outputs": ("y",)},
            {"D": draw.array(1, 1)},
            {"B": draft.parts["B"] * 2},
            {},
        )
        return Call(lambda self, **changes: self.with_(**changes), {"self": draft, **changes})

    _end = " (sparse)" if "sparse" in _form else ""

    @target(f"hr.{_form.split()[0]}.frequency_response{_end}", "sparse", wrong_response)
    def _(draw: Draw, make: Any = _make) -> Call:
        omega = draw.one_of(FREQUENCIES, [0.0], draw.array(5))
        return Call(lambda self, omega: self.frequency_response(omega), {"self": make(draw), "omega": omega})

    @target(f"hr.{_form.split()[0]}.__sub__{_end}", "sparse", wrong_difference)
    def _(draw: Draw, make: Any = _make) -> Call:
        sizes = {"m": draw.size(), "p": draw.size()}
        first = make(draw, dt=0, **sizes)
        second = draw.one_of(make, large)(draw, dt=0, **sizes) if draw.chance(0.5) else draw.system(dt=0, **sizes)
        if second.form == "tuple":
            second = Draft("StateSpace", second.parts)
        return Call(lambda self, other: minus(self, other), {"self": first, "other": second})

    for _method in ("poles", "is_stable", "dense", "to_scipy", "to_control"):

        @target(f"hr.{_form.split()[0]}.{_method}{_end}", "sparse")
        def _(draw: Draw, make: Any = _make, method: str = _method) -> Call:
            draft = make(draw, **({"m": 1, "p": 2} if method == "to_control" else {}))
            if method == "to_control":
                draft.parts = {name: np.real(x) if isinstance(x, np.ndarray) else x for name, x in draft.parts.items()}
            return Call(lambda self: getattr(self, method)(), {"self": draft})


for _name, _check in (
    ("hankel_singular_values", like_dense(hr.hankel_singular_values, decreasing)),
    ("h2_norm", like_dense(hr.h2_norm, wrong_norm)),
    ("hankel_norm", like_dense(hr.hankel_norm, wrong_norm)),
    ("hinf_norm", like_dense(hr.hinf_norm, wrong_hinf)),
    ("gramians", None),
    ("gramian_factors", wrong_large_factors),
    ("as_system", wrong_system),
    ("balance", None),
    ("balanced_realization", lambda found, sys: wrong_system(found[0])),
    ("minimal", wrong_reduction),
):

    @target(f"hr.{_name} (sparse)", "sparse", _check)
    def _(draw: Draw, name: str = _name) -> Call:
        return Call(getattr(hr, name), {"obj" if name == "as_system" else "sys": large(draw)})


@target("hr.balanced_truncation (sparse)", "sparse", wrong_reduction)
def _(draw: Draw) -> Call:
    return Call(hr.balanced_truncation, {"sys": large(draw), **draw.criterion(2)})


@target("hr.save_system (sparse)", "sparse")
def _(draw: Draw) -> Call:
    path = os.path.join(tempfile.gettempdir(), f"fuzz{os.getpid()}.mat")
    return Call(hr.save_system, {"sys": large(draw), "path": path})


for _method in ("hinf_error", "h2_error", "hankel_error", "summary", "to_json"):

    @target(f"hr.Reduction.{_method} (sparse)", "sparse")
    def _(draw: Draw, method: str = _method) -> Call:
        self = hr.balanced_truncation(large(draw, m=1, p=1).make(), rtol=0.01)
        return Call(lambda self: getattr(self, method)(), {"self": self})
