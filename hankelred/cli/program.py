"""The program: from arguments to an exit code; whatever fails is one line."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from ..checks import check_items
from ..errors import HankelredError, HankelredWarning, InputError
from .arguments import parser

DONE, FAILED, INTERRUPTED = 0, 1, 130  # wrong arguments are argparse's 2


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
        (code 2, one line as well) and ``--help`` raise SystemExit, as everywhere in argparse.

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
                arguments = parser().parse_args(argv)
                arguments.run(arguments)
                return DONE
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
