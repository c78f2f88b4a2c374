"""The command line: ``hankelred hsv | reduce | compare``."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from .checks import check_dt, check_items
from .errors import HankelredError, HankelredWarning, InputError
from .norms import h2_norm, hankel_norm, hinf_norm
from .plotting import new_axes, plot_error_bound, plot_frequency_error, plot_hsv
from .reduction import Balancing, balance
from .systems import LinearSystem
from .systems.files import check_place, check_target, load_system, save_system, write_atomically

DONE, FAILED, INTERRUPTED = 0, 1, 130  # wrong arguments are argparse's 2
NORMS = {"H-infinity": hinf_norm, "H2": h2_norm, "Hankel": hankel_norm}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.

    Returns
    -------
    int
        Exit code: 0, 1 for an error, whose message goes to stderr in one line, or 130 after Ctrl-C. Wrong arguments
        (code 2) and ``--help`` raise SystemExit, as everywhere in argparse.

    Examples
    --------
    >>> from hankelred.cli import main
    >>> main(["hsv", "missing.npz"])  # the message goes to stderr
    1
    """
    argv = check_items(sys.argv[1:] if argv is None else argv, "argv")
    if not all(isinstance(text, str) for text in argv):
        raise InputError(f"argv must be a sequence of strings; got {argv!r}.")
    _open_streams()
    with warnings.catch_warnings():
        warnings.simplefilter("always", HankelredWarning)
        warnings.showwarning = lambda message, *_, **__: _complain(f"warning: {message}")
        try:
            try:
                arguments = _parser().parse_args(argv)
                return int(arguments.run(arguments))
            finally:
                sys.stdout.flush()
        except BrokenPipeError:  # the reader, such as head, has seen enough
            _forget_output()
            return FAILED
        except KeyboardInterrupt:
            _complain("interrupted")
            return INTERRUPTED
        except OSError as error:
            _forget_output()  # where it is full, writing once more would fail once more
            _complain(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error)
        except MemoryError:
            _complain("The memory does not suffice for this model. Use a machine with more, or a smaller model.")
        except (HankelredError, ImportError) as error:
            _complain(error)
        except Exception as error:  # the user of a command line has no use for a traceback
            _complain(f"{type(error).__name__}: {error}. This is a defect of hankelred: report it with the model.")
    return FAILED


def _complain(message: object) -> None:
    """Print an error or a warning in one line."""
    with contextlib.suppress(OSError):  # nobody may be listening
        print("hankelred:", *str(message).split(), file=sys.stderr)


def _open_streams() -> None:
    """Give closed streams a place to write to, and write what an encoding lacks as an escape."""
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _forget_output() -> None:
    """Send what is still to be written nowhere, so that Python's exit does not fail on it."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hankelred", description="Balanced truncation with stated errors.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    hsv = commands.add_parser("hsv", help="print Hankel singular values and error bounds")
    _add_model(hsv, _hsv_command, "MODEL", plot="draw them into a file (.png, .pdf, .svg)")

    reduce = commands.add_parser("reduce", help="reduce a model and measure the error")
    _add_model(reduce, _reduce, "MODEL", plot="draw singular values, bound and error into a file")
    size = reduce.add_mutually_exclusive_group(required=True)
    size.add_argument("--order", type=int, help="Hankel singular values to keep")
    size.add_argument("--states", type=int, help="largest number of stored states")
    size.add_argument("--rtol", type=float, help="drop values up to this share of the largest")
    size.add_argument("--energy", type=float, help="keep this share of the sum of all values, such as 0.99")
    size.add_argument("--max-error", type=float, help="keep the bound on the H-infinity error below this")
    reduce.add_argument("--match-dc", action="store_true", help="match the model exactly at frequency zero")
    reduce.add_argument("-o", "--output", metavar="OUT", help="save the reduced model (.npz, .mat, or a folder)")

    compare = commands.add_parser("compare", help="measure the difference of two models")
    plot = "draw both and their difference over frequency into a file"
    _add_model(compare, _compare, "MODEL", "REDUCED", plot=plot)
    return parser


def _add_model(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int], *names: str, plot: str
) -> None:
    what = "file with the system matrices (.npz, .mat), or a folder of .csv or .mtx files"
    time = "sampling time if the file does not say it: seconds, 0 for continuous, or true"
    for name in names:
        parser.add_argument(name.lower(), metavar=name, help=what)
    parser.add_argument("--dt", type=_dt, help=time)
    parser.add_argument("--plot", metavar="FIG", help=plot)
    parser.set_defaults(run=run)


def _dt(text: str) -> float | bool:
    try:
        return True if text.lower() == "true" else check_dt(float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, 0 or true; got {text!r}") from None


def _hsv_command(arguments: argparse.Namespace) -> int:
    _check_picture(arguments.plot)
    system = load_system(arguments.model, arguments.dt)
    bal = balance(system)
    print(f"{arguments.model}: {_describe(system)}\n")
    print("What it means to keep the states down to a row (hsv in units of y per unit of u, H-infinity error bound):")
    _print_table(("order", "hsv", "relative", "energy kept", "error bound"), _hsv_rows(bal))
    hidden = len(bal.hsv) - bal.rank
    if hidden > 0:
        print(f"\n{hidden} more values below the numerical rank {bal.rank}, where no reduced model exists.")
    _draw(arguments.plot, partial(plot_hsv, bal), partial(plot_error_bound, bal))
    return DONE


def _hsv_rows(bal: Balancing) -> Iterable[tuple[str, ...]]:
    """Yield, for each order, the last value kept and what keeping it and those before would mean."""
    finite = np.where(np.isfinite(bal.hsv), bal.hsv, 0.0)
    total, largest = finite.sum() or 1.0, finite.max(initial=0.0) or 1.0
    for order in range(1, bal.rank + 1):
        value = bal.hsv[order - 1]
        relative = "unstable" if np.isinf(value) else f"{value / largest:.3e}"
        energy = finite[:order].sum() / total
        yield str(order), f"{value:.6e}", relative, f"{100 * energy:.4f} %", f"{bal.error_bound(order):.3e}"


def _reduce(arguments: argparse.Namespace) -> int:
    suffix = check_target(arguments.output) if arguments.output else None  # before the work is done
    _check_picture(arguments.plot)
    system = load_system(arguments.model, arguments.dt)
    criteria = {key: getattr(arguments, key) for key in ("order", "states", "rtol", "energy", "max_error")}
    bal = balance(system)
    reduction = bal.reduce(**criteria, match_dc=arguments.match_dc)
    print(f"{arguments.model}: {_describe(system)}\n")
    print(reduction.summary())
    errors = zip(NORMS, (reduction.hinf_error(), reduction.h2_error(), reduction.hankel_error()), strict=True)
    print()
    _print_table(("norm of the error", "measured"), [(name, f"{error:.4e}") for name, error in errors])
    if arguments.output:
        reduced = reduction.system
        if suffix != ".npz" and reduced.is_diagonal:
            reduced = reduced.dense()  # such a file holds A, and the line below says what became of it
        save_system(reduced, arguments.output)
        print(f"\n{arguments.output}: {_describe(reduced)}")
    frequency_error = partial(plot_frequency_error, system, reduction)
    _draw(arguments.plot, partial(plot_hsv, reduction), partial(plot_error_bound, bal, [reduction]), frequency_error)
    return DONE


def _compare(arguments: argparse.Namespace) -> int:
    _check_picture(arguments.plot)
    G, H = (load_system(path, arguments.dt) for path in (arguments.model, arguments.reduced))
    error = G - H
    print(f"{arguments.model}: {_describe(G)}\n{arguments.reduced}: {_describe(H)}\n")
    rows = []
    for name, norm in NORMS.items():
        absolute, of_model = norm(error), norm(G)
        relative = f"{absolute / of_model:.3e}" if 0 < of_model < np.inf else "-"
        rows.append((name, f"{absolute:.4e}", f"{of_model:.4e}", relative))
    _print_table(("norm", "of the difference", "of the model", "relative"), rows)
    if not error.is_stable():
        print("\nUnstable or marginal poles do not cancel in the difference of two files, so its norms are infinite;")
        print("hankelred reduce keeps such poles and measures the error of the rest.")
    order = H.order if H.is_sparse else len(H.poles())
    if G.is_stable() and order < len((bal := balance(G)).hsv):
        print(f"\nH-infinity error any stable model of order {order} must have: at least {bal.hsv[order]:.4e}")
        print(f"H-infinity error of balanced truncation to order {order}: at most {bal.error_bound(order):.4e}")
    _draw(arguments.plot, partial(plot_frequency_error, G, H))
    return DONE


def _describe(system: LinearSystem) -> str:
    """Return one line: sizes, kind, time."""
    sizes = ((system.n, "state"), (system.m, "input"), (system.p, "output"))
    parts = [f"{count} {what}{'' if count == 1 else 's'}" for count, what in sizes]
    parts += (
        ["sparse"] * system.is_sparse
        + ["diagonal"] * system.is_diagonal
        + ["real output"] * getattr(system, "has_real_output", False)
    )
    parts.append("discrete" if system.is_discrete else "continuous")
    if system.is_discrete:
        parts.append("dt unspecified" if system.dt is True else f"dt = {system.dt:g} s")
    return ", ".join(parts)


def _print_table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print rows under a header, every column as wide as its widest entry and flush right."""
    table = [header, *rows]
    widths = [max(len(row[k]) for row in table) for k in range(len(header))]
    for row in table:
        print("  ".join(entry.rjust(width) for entry, width in zip(row, widths, strict=True)))


def _check_picture(path: str | None) -> None:
    """Refuse a picture that could not be written, before the work is done."""
    if path is None:
        return
    check_place(path)
    kinds = new_axes(1)[0].figure.canvas.get_supported_filetypes()
    if _suffix(path) not in kinds:
        raise InputError(f"A picture must end in one of {', '.join(sorted(kinds))}; got {path}. Rename it.")


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1][1:].lower()


def _draw(path: str | None, *plots: Callable[..., Any]) -> None:
    """Save a picture with these plots side by side, if one is asked for."""
    if path is None:
        return
    axes = new_axes(len(plots))
    for plot, ax in zip(plots, axes, strict=True):
        plot(ax=ax)
    figure: Any = axes[0].figure
    write_atomically(path, partial(figure.savefig, format=_suffix(path), dpi=150))
    print(f"\n{path}: written")
