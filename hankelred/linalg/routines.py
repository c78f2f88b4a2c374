"""LAPACK routines that SciPy does not wrap: it has them for its Cython users, and their addresses serve here too."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import scipy.linalg.cython_lapack as cython_lapack

from ..checks import Array


def call_lapack(name: str, *arguments: Array | int | str) -> None:
    """Call a LAPACK routine by its name, with all arguments but the last, info.

    Arrays are passed as they lie in memory, so matrices must be in Fortran's order.

    Raises
    ------
    LinAlgError
        If info is not zero.
    """
    function, integer = _routine(name, len(arguments) + 1)
    info = np.zeros(1, integer)
    held = [
        x.encode() if isinstance(x, str) else np.full(1, x, integer) if isinstance(x, int) else x for x in arguments
    ]
    function(*(x if isinstance(x, bytes) else x.ctypes.data for x in (*held, info)))
    if info[0]:
        raise np.linalg.LinAlgError(f"LAPACK's {name} must succeed; got info={info[0]}.")


@cache
def _routine(name: str, count: int) -> tuple[Callable[..., None], type[np.integer[Any]]]:
    """Return a LAPACK routine of SciPy with `count` arguments, and its integer type."""
    capsule: Any = vars(cython_lapack)["__pyx_capi__"][name]
    integer = np.intc if re.search(r"\bint \*", repr(capsule)) else np.int64  # its name is its signature
    api = ctypes.pythonapi
    signature = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", api))(capsule)
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", api))
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * count)(pointer(capsule, signature)), integer
