"""Calls of the weightings that solve Riccati equations, of optimal models, and of what is made for loops."""

from __future__ import annotations

from typing import Any

import numpy as np

import hankelred as hr
import hankelred.feedback
import hankelred.optimal
import hankelred.weighting
from fuzz.calls import FREQUENCIES, RICCATI, target, wrong_balancing, wrong_norm, wrong_number, wrong_system
from fuzz.values import TIMES, Call, Draft, Draw

feedback, optimal, weighting = hankelred.feedback, hankelred.optimal, hankelred.weighting


def moderate(*systems: Any) -> bool:
    """Tell whether numbers are of ordinary size, so that theorems hold to some digits."""
    for G in (hr.as_system(x).dense() for x in systems):
        sizes = np.concatenate([np.abs(x).ravel() for x in (G.A, G.B, G.C, G.D)])
        sizes = sizes[sizes > 0]
        if np.any((sizes < 1e-4) | (sizes > 1e4)) or not 1e-4 < float(G.dt or 1) < 1e4:
            return False
    return True


def is_single(*systems: Any) -> bool:
    """Tell whether a system is in single precision."""
    return any(hr.as_system(x).dtype.name in ("float32", "complex64") for x in systems)


def gain(draft: Draft) -> float:
    """Return the H-infinity norm of a system that is not made yet."""
    return float(hr.hinf_norm(draft.make()))


def with_feedthrough(draft: Draft, size: float) -> Draft:
    """Return a system with so much times the identity as D."""
    m, p = draft.parts["B"].shape[1], draft.parts["C"].shape[0]
    return Draft(draft.form, {**draft.parts, "D": size * np.eye(p, m)})


def needs_loop(draw: Draw, **fixed: Any) -> Draft:
    """Return a system with a pole on the boundary or beyond, which inputs move and outputs see."""
    while True:
        draft = draw.dense(stable=False, n=draw.one_of(1, 2, 3), **fixed)
        G = hr.as_system(draft.make()).dense()
        shifts = [G.A - pole * np.eye(G.n) for pole in np.linalg.eigvals(G.A)]
        reached = [np.linalg.svd(np.hstack([x, G.B]), compute_uv=False)[-1] for x in shifts]
        seen = [np.linalg.svd(np.vstack([x, G.C]), compute_uv=False)[-1] for x in shifts]
        if min(*reached, *seen) > 0.01:
            return draft


# --- weightings --------------------------------------------------------------------------------------------------


def arguments_of(kind: str, draw: Draw) -> dict[str, Any]:
    """Return a system, and the arguments of a weighting that fits it."""
    m = draw.one_of(1, 2)
    p = m if kind == "PositiveReal" else draw.one_of(1, 2)
    if kind in ("LQG", "Coprime") and draw.chance(0.4):
        return {"sys": needs_loop(draw, m=m, p=p)}
    draft = draw.system(m=m, p=p, **({"output": "complex"} if kind == "PositiveReal" else {}))
    if kind == "BoundedReal":
        norm = gain(draft)
        return {"sys": draft, "gamma": draw.one_of(1.05, 2.0, 100.0) * norm + draw.one_of(0.25, 1.0)}
    if kind == "PositiveReal" or (kind == "Stochastic" and draw.chance(0.6)):
        draft = with_feedthrough(draft, 0.0)
        return {"sys": with_feedthrough(draft, np.ceil(gain(draft)) + draw.one_of(1.0, 4.0))}
    return {"sys": draft, "beta": draw.one_of(0.125, 1.0)} if kind == "Stochastic" else {"sys": draft}


def wrong_property(bal: Any, kind: str, sys: Any, **options: Any) -> str | None:
    """Tell which property of a pair, or of its models, does not hold."""
    if trouble := wrong_balancing(bal):
        return trouble
    slack = 1e-3 if is_single(sys) else 1e-6
    if kind != "LQG" and kind != "BoundedReal" and np.any(bal.hsv[bal.unstable :] > 1 + slack):
        return f"hsv above 1: {bal.hsv}"
    full = hr.as_system(sys)
    if full.is_bank or not moderate(full):
        return None
    for order in range(bal.unstable, bal.rank):
        try:
            found = bal.reduce(order)
            response, model = (x.frequency_response(FREQUENCIES) for x in (full, found._reduced))
            gap = feedback.nu_gap(full, found._reduced) if "gap" in found.bounded else None
        except hr.HankelredError:
            continue
        error = np.linalg.norm(response - model, 2, axis=(1, 2))
        size = np.linalg.norm(response, 2, axis=(1, 2)).max(initial=0.0)
        if kind in ("BoundedReal", "PositiveReal") and np.any(error > found.error_bound * (1 + slack) + slack * size):
            return f"an error of {error} exceeds the bound {found.error_bound}"
        if gap is not None and gap > found.error_bound * (1 + slack) + slack:
            return f"a gap of {gap} exceeds the bound {found.error_bound}"
        if kind == "BoundedReal" and np.linalg.norm(model, 2, axis=(1, 2)).max() > options["gamma"] * (1 + slack):
            return f"a model of {order} states has more gain than {options['gamma']}"
        if kind == "PositiveReal":
            least = np.linalg.eigvalsh(model + model.conj().swapaxes(1, 2)).min()
            if least < -slack * size:
                return f"a model of {order} states is not passive by {least}"
    return None


for _kind in RICCATI:

    @target(f"weighting.{_kind}", "riccati", lambda bal, kind=_kind, **options: wrong_property(bal, kind, **options))
    def _(draw: Draw, kind: str = _kind) -> Call:
        return Call(
            lambda sys, **options: hr.balance(sys, weighting=getattr(weighting, kind)(**options)),
            arguments_of(kind, draw),
        )


def wrong_linf(found: Any, sys: Any, rtol: Any = 1e-8, return_peak: Any = False, stable: Any = True) -> str | None:
    """Tell whether an L-infinity norm is less than a gain."""
    if trouble := wrong_norm(found, sys, rtol, return_peak):
        return trouble
    norm, system = found[0] if return_peak else found, hr.as_system(sys)
    if stable or system.is_bank or not moderate(system):
        return None
    response = system.frequency_response(FREQUENCIES)
    largest = np.abs(response[np.isfinite(response)]).max(initial=0.0)
    return f"{norm} is less than a gain of {largest}" if norm < largest * (1 - max(float(rtol), 1e-6)) else None


@target("hr.hinf_norm (unstable)", "riccati", wrong_linf)
def _(draw: Draw) -> Call:
    system = draw.system(bank=True) if draw.chance(0.4) else draw.dense(stable=False)
    return Call(
        hr.hinf_norm, {"sys": system, "stable": False, **draw.one_of({}, {"rtol": 1e-3}, {"return_peak": True})}
    )


# --- optimal -----------------------------------------------------------------------------------------------------


def wrong_hankel(found: Any, sys: Any, order: Any, offset: Any = 1e-8, match_dc: Any = False) -> str | None:
    """Tell whether the Hankel norm of the error is above the optimum, or the gain above the bound."""
    if trouble := wrong_optimal(found):
        return trouble
    if not moderate(sys) or is_single(sys) or found.order == 0 or found.T is not None:
        return None
    hsv = found.hsv[found.order]
    if found.unstable == 0 and found.hankel_error() > hsv * (1 + 1e-5) + 1e-9 * found.hsv[0]:
        return f"a Hankel error of {found.hankel_error()} where {hsv} is optimal"
    error = found.hinf_error()
    return f"{error} exceeds {found.error_bound}" if error > found.error_bound * (1 + 1e-6) + 1e-12 else None


def wrong_optimal(found: Any) -> str | None:
    """Tell what is wrong with an optimal model itself."""
    if trouble := wrong_system(found.system):
        return trouble
    if not found.error_bound >= 0 or np.isnan(found.hsv).any():
        return f"bound {found.error_bound}, hsv {found.hsv}"
    return None


@target("optimal.hankel_norm_approximation", "optimal", wrong_hankel)
def _(draw: Draw) -> Call:
    system = draw.system(n=draw.one_of(2, 3, 4)) if draw.chance(0.7) else draw.dense(stable=False, n=3)
    least = 1 if draw.chance(0.5) else 2
    options = {"offset": draw.one_of(0.0, 1e-8, 0.5), "match_dc": True} if draw.chance(0.3) else {}
    return Call(optimal.hankel_norm_approximation, {"sys": system, "order": least, **options})


def wrong_h2(
    found: Any, sys: Any, order: Any, rtol: Any = 1e-6, progress: Any = None, match_dc: bool = False
) -> str | None:
    """Tell whether an H2-optimal model is worse than the balanced one, or claims what it has not."""
    if trouble := wrong_optimal(found):
        return trouble
    if not found.residual >= 0 or not found.iterations >= 0:
        return f"residual {found.residual} after {found.iterations}"
    if not moderate(sys) or is_single(sys):
        return None
    error, balanced = found.h2_error(), hr.balanced_truncation(sys, order=found.order).h2_error()
    return f"{error} is worse than {balanced}" if error > balanced * (1 + 1e-6) + 1e-9 else None


@target("optimal.h2_optimal", "optimal", wrong_h2)
def _(draw: Draw) -> Call:
    options = draw.one_of({}, {"rtol": 1e-3}, {"progress": stopped}, {"progress": None})
    return Call(optimal.h2_optimal, {"sys": draw.system(n=draw.one_of(2, 3, 4)), "order": 1, **options})


def stopped(steps: int, error: float, residual: float) -> bool:
    """End an iteration after three steps."""
    return steps >= 3


METHODS = ("hinf_error", "h2_error", "hankel_error", "summary", "to_json")

for _method in METHODS:

    @target(f"optimal.H2Reduction.{_method}", "optimal", wrong_number if "error" in _method else None)
    def _(draw: Draw, method: str = _method) -> Call:
        self = optimal.h2_optimal(draw.dense(n=3, m=1, p=1).make(), 1)
        return Call(lambda self: getattr(self, method)(), {"self": self})


# --- feedback ----------------------------------------------------------------------------------------------------


def wrong_gap(gap: Any, G: Any, H: Any) -> str | None:
    """Tell whether a gap is out of its range, or differs from that of the systems the other way round."""
    if not 0 <= gap <= 1:
        return f"{gap!r}"
    if not moderate(G, H):
        return None
    other = feedback.nu_gap(H, G)
    return f"{gap} one way and {other} the other" if abs(gap - other) > 1e-5 and max(gap, other) < 1 else None


@target("feedback.nu_gap", "feedback", wrong_gap)
def _(draw: Draw) -> Call:
    sizes = {"dt": draw.one_of(*TIMES), "m": draw.one_of(1, 2), "p": draw.one_of(1, 2)}
    return Call(
        feedback.nu_gap, {key: needs_loop(draw, **sizes) if draw.chance(0.3) else draw.system(**sizes) for key in "GH"}
    )


def loop_of(draw: Draw) -> dict[str, Draft]:
    """Return a plant and a controller of so little gain that the loop is stable, with every model of it too."""
    sizes = {"m": draw.one_of(1, 2), "p": draw.one_of(1, 2)}
    plant, dt = draw.system(**sizes, output="complex"), None
    dt = plant.parts["dt"]
    controller = draw.system(dt=dt, m=sizes["p"], p=sizes["m"], n=draw.one_of(2, 3), output="complex")
    size = 2.0 ** -np.ceil(np.log2(32 * (gain(plant) + 0.01) * (gain(controller) + 0.01)))
    scaled = {key: size * x for key, x in controller.parts.items() if key in ("C", "D")}
    return {"G": plant, "K": Draft(controller.form, {**controller.parts, **scaled})}


def wrong_controller(found: Any, **_: Any) -> str | None:
    """Tell what is wrong with a controller in the loop."""
    if trouble := wrong_optimal(found):
        return trouble
    if not (0 <= found.margin <= 1 + 1e-9 and 0 <= found.nu_gap <= 1 and 0 <= found.loop_change < np.inf):
        return f"margin {found.margin}, gap {found.nu_gap}, change {found.loop_change}"
    return None


@target("feedback.reduce_controller", "feedback", wrong_controller)
def _(draw: Draw) -> Call:
    method = draw.one_of({}, *({"method": name} for name in ("stability", "performance", "coprime")))
    return Call(feedback.reduce_controller, {**loop_of(draw), "order": draw.one_of(1, 2), **method})


for _method in METHODS:

    @target(f"feedback.ControllerReduction.{_method}", "feedback", wrong_number if "error" in _method else None)
    def _(draw: Draw, method: str = _method) -> Call:
        while True:
            found = {key: draft.make() for key, draft in loop_of(draw).items()}
            try:
                self = feedback.reduce_controller(found["G"], found["K"], 1)
            except hr.OrderError:
                continue
            return Call(lambda self: getattr(self, method)(), {"self": self})
