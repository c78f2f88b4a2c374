"""What the commands do: each computes a record, shows it, and draws and saves what it is asked for."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..errors import InputError
from ..norms import h2_norm, hankel_norm, hinf_norm
from ..plotting import plot_bode, plot_error_bound, plot_frequency_error, plot_hsv, plot_poles, plot_step
from ..reduction import Balancing, Reduction, balance
from ..systems import LinearSystem
from ..systems.files import check_target, load_system, save_system
from ..weighting.base import HINF
from .output import Table, describe, facts, show
from .pictures import check_picture, draw

NORMS: dict[str, Callable[..., Any]] = {"H-infinity": hinf_norm, "H2": h2_norm, "Hankel": hankel_norm}
ORDER = "{order}"  # in the name of a file


def hsv_command(arguments: Namespace) -> None:
    """Print Hankel singular values, and what it means to cut after each."""
    check_picture(arguments.plot)
    system = load_system(arguments.model, arguments.dt)
    bal = balance(system, arguments.offset, arguments.weighting)
    found = bal._found
    finite = np.where(np.isfinite(bal.hsv), bal.hsv, 0.0)
    energy = np.cumsum(finite[: bal.rank]) / (finite.sum() or 1.0)
    bounds = [bal.error_bound(order) for order in range(1, bal.rank + 1)]
    record = {
        "model": facts(arguments.model, system),
        "weighting": repr(found.weighting) if found.weighting else None,
        "hsv": bal.hsv,
        "rank": bal.rank,
        "unstable": bal.unstable,
        "floor": bal.floor,
        "energy": energy,
        "error_bound": bounds,
        "bounded": found.bounded,
    }
    largest = finite.max(initial=0.0) or 1.0
    rows = [
        (f"{order}", f"{value:.6e}", _of_largest(value, largest), f"{100 * share:.4f} %", _figure(bound, ".3e"))
        for order, (value, share, bound) in enumerate(zip(bal.hsv, energy, bounds, strict=False), 1)
    ]
    what = "hsv in units of y per unit of u" if found.weighting is None else found.weighting.quantity
    texts: list[str | Table] = [f"{arguments.model}: {describe(system)}"]
    texts.append(f"What it means to keep the states down to a row ({what}, {found.bounded} bound):")
    texts.append(Table(("order", "hsv", "relative", "energy kept", "error bound"), rows))
    if len(bal.hsv) > bal.rank:
        hidden = len(bal.hsv) - bal.rank
        texts.append(f"{hidden} more values below the numerical rank {bal.rank}, where no reduced model exists.")
    show(arguments.json, record, texts)
    draw(arguments, partial(plot_hsv, bal), *_bound_plot(bal, ()))


def _of_largest(value: float, largest: float) -> str:
    return "unstable" if np.isinf(value) else f"{value / largest:.3e}"


def _figure(value: float, form: str) -> str:
    return "none" if np.isinf(value) else format(value, form)


def norms_command(arguments: Namespace) -> None:
    """Print the norms of a model, and where its gain is largest."""
    system = load_system(arguments.model, arguments.dt)
    hinf, peak = hinf_norm(system, return_peak=True)
    record = {
        "model": facts(arguments.model, system),
        "norms": {"H-infinity": hinf, "H2": h2_norm(system), "Hankel": hankel_norm(system)},
        "peak": peak,
    }
    rows = [(name, f"{value:.6e}") for name, value in record["norms"].items()]
    texts: list[str | Table] = [f"{arguments.model}: {describe(system)}", Table(("norm", "y per u"), rows)]
    if np.isfinite(hinf):
        unit = "sample" if system.dt is True else "second"
        texts.append(f"The gain is largest at {peak:.6g} rad per {unit}.")
    else:
        texts.append("Unstable or marginal poles make norms infinite; hankelred reduce measures the error of the rest.")
    show(arguments.json, record, texts)


def reduce_command(arguments: Namespace) -> None:
    """Reduce a model to one size or several, measure the errors and save the results."""
    name, sizes = _sizes(arguments)
    suffix = _check_pattern(arguments.output, len(sizes))  # before the work is done
    check_picture(arguments.plot)
    system = load_system(arguments.model, arguments.dt)
    bal = balance(system, arguments.offset, arguments.weighting)
    made = [bal.reduce(**{name: size}, match_dc=arguments.match_dc) for size in sizes]
    reductions = list({reduction.order: reduction for reduction in made}.values())
    entries = [_measured(reduction, arguments) for reduction in reductions]
    texts = [f"{arguments.model}: {describe(system)}"]
    told = _tell_one(reductions[0], entries[0]) if len(reductions) == 1 else _tell_several(reductions, entries)
    if arguments.output:
        for entry, reduction in zip(entries, reductions, strict=True):
            entry["output"] = arguments.output.replace(ORDER, str(reduction.order))
        written = [
            _save(reduction.system, entry["output"], suffix)
            for entry, reduction in zip(entries, reductions, strict=True)
        ]
        told.append("\n".join(f"{entry['output']}: {describe(x)}" for entry, x in zip(entries, written, strict=True)))
    show(arguments.json, {"model": facts(arguments.model, system), "reductions": entries}, texts + told)
    bounds = _bound_plot(bal, () if arguments.no_measure else reductions)
    shown: Any = reductions[0] if len(reductions) == 1 else bal
    draw(arguments, partial(plot_hsv, shown), *bounds, partial(plot_frequency_error, system, reductions[-1]))


def _sizes(arguments: Namespace) -> tuple[str, list[Any]]:
    names = ("order", "states", "rtol", "energy", "max_error")
    return next((name, given) for name in names if (given := getattr(arguments, name)) is not None)


def _check_pattern(output: str | None, count: int) -> str:
    """Refuse a name that could not be written, or one name for many models; return its suffix."""
    if output is None:
        return ""
    if count > 1 and ORDER not in output:
        raise InputError(f"OUT must contain {ORDER} where several sizes are asked for; got {output}. Write it in.")
    return check_target(output.replace(ORDER, "0"))


def _measured(reduction: Reduction, arguments: Namespace) -> dict[str, Any]:
    """Return the figures of a reduction, and its errors unless they are not to be measured."""
    entry: dict[str, Any] = json.loads(reduction.to_json())
    if arguments.no_measure:
        return entry
    errors = (reduction.hinf_error(), reduction.h2_error(), reduction.hankel_error())
    return {**entry, "errors": dict(zip(NORMS, errors, strict=True))}


def _tell_one(reduction: Reduction, entry: dict[str, Any]) -> list[Any]:
    errors = entry.get("errors", {})
    rows = [(name, f"{error:.4e}") for name, error in errors.items()]
    return [reduction.summary(), *[Table(("norm of the error", "measured"), rows)] * bool(errors)]


def _tell_several(reductions: Sequence[Reduction], entries: Sequence[dict[str, Any]]) -> list[Any]:
    measured = list(entries[0].get("errors", {}))
    rows = [
        (
            str(reduction.order),
            str(reduction.system.n),
            _figure(reduction.error_bound, ".4g"),
            *(f"{entry['errors'][name]:.4e}" for name in measured),
        )
        for reduction, entry in zip(reductions, entries, strict=True)
    ]
    methods = ", ".join(dict.fromkeys(reduction.method for reduction in reductions))
    header = ("order", "states", "bound", *(f"{name} error" for name in measured))
    bounded = reductions[0].bounded
    return [f"{methods}, from order {reductions[0].original.order}; bounds on the {bounded}:", Table(header, rows)]


def _save(system: LinearSystem, output: str, suffix: str) -> LinearSystem:
    """Write a system, a diagonal one as a matrix where the file has one; return what was written."""
    if suffix != ".npz" and system.is_diagonal:
        system = system.dense()
    save_system(system, output)
    return system


def _bound_plot(bal: Balancing, reductions: Sequence[Reduction]) -> list[Callable[..., Any]]:
    """Return the plot of bounds and measured errors, none where no bound on this error holds."""
    holds = bal._found.bounded == HINF and np.isfinite(bal.error_bound(bal.unstable))
    return [partial(plot_error_bound, bal, list(reductions))] if holds else []


def compare_command(arguments: Namespace) -> None:
    """Measure the difference of two models, and say what balanced truncation could do."""
    check_picture(arguments.plot)
    G, H = (load_system(path, arguments.dt) for path in (arguments.model, arguments.reduced))
    error = G - H
    norms = {name: {"difference": norm(error), "model": norm(G)} for name, norm in NORMS.items()}
    rows = []
    for name, entry in norms.items():
        absolute, of_model = entry["difference"], entry["model"]
        entry["relative"] = absolute / of_model if 0 < of_model < np.inf else None
        relative = "-" if entry["relative"] is None else f"{entry['relative']:.3e}"
        rows.append((name, f"{absolute:.4e}", f"{of_model:.4e}", relative))
    record = {
        "model": facts(arguments.model, G),
        "reduced": facts(arguments.reduced, H),
        "norms": norms,
        **_attainable(G, H),
    }
    texts: list[str | Table] = [f"{arguments.model}: {describe(G)}\n{arguments.reduced}: {describe(H)}"]
    texts.append(Table(("norm", "of the difference", "of the model", "relative"), rows))
    if not error.is_stable():
        texts.append(
            "Unstable or marginal poles do not cancel in the difference of two files, so its norms are infinite;\n"
            "hankelred reduce keeps such poles and measures the error of the rest."
        )
    if "order" in record:
        order, least, most = record["order"], record["least_error"], record["error_bound"]
        texts.append(
            f"H-infinity error any stable model of order {order} must have: at least {least:.4e}\n"
            f"H-infinity error of balanced truncation to order {order}: at most {most:.4e}"
        )
    show(arguments.json, record, texts)
    plots: list[Callable[..., Any]] = [plot_frequency_error, plot_bode, plot_poles]
    if not (G.is_sparse or H.is_sparse):
        plots.insert(2, plot_step)
    draw(arguments, *(partial(plot, G, H) for plot in plots))


def _attainable(G: Any, H: Any) -> dict[str, Any]:
    """Return the least error of any model of the order of H, and the bound of balanced truncation, where they hold."""
    order = H.order if H.is_sparse else len(H.poles())
    if not G.is_stable() or order >= len((bal := balance(G)).hsv):
        return {}
    return {"order": order, "least_error": bal.hsv[order], "error_bound": bal.error_bound(order)}


def convert_command(arguments: Namespace) -> None:
    """Write a model into a file of another kind."""
    suffix = check_target(arguments.output)
    system = load_system(arguments.model, arguments.dt)
    written = _save(system, arguments.output, suffix)
    record = {"model": facts(arguments.model, system), "output": facts(arguments.output, written)}
    lines = [f"{arguments.model}: {describe(system)}", f"{arguments.output}: {describe(written)}"]
    show(arguments.json, record, ["\n".join(lines)])
