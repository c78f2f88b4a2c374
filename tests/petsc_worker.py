"""What one rank does: ``mpirun -n 2 python petsc_worker.py FOLDER CASE ...`` writes findings to FOLDER/RANK.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from mpi4py import MPI
from petsc4py import PETSc

import hankelred as hr
from hankelred.linalg import adi, ranks
from hankelred.linalg.engines import SparseSum
from hankelred.linalg.petsc import over_ranks
from tests.large import chain, plate, rod, stokes

RANK = MPI.COMM_WORLD.rank


def discrete() -> hr.StateSpace:
    """Return a plate in wind, sampled."""
    wind = plate(14, ports=2, wind=3.0)
    return hr.StateSpace(sp.csc_array(sp.eye_array(196) + 5e-4 * wind.A), wind.B, wind.C, dt=0.1)


SYSTEMS: dict[str, Callable[[], Any]] = {
    "plate": lambda: plate(30),
    "wind": lambda: plate(14, ports=2, wind=3.0),
    "complex": lambda: plate(9, ports=2).with_(A=sp.csc_array(plate(9).A + 40j * sp.eye_array(81))),
    "discrete": discrete,
    "index 2": lambda: stokes(7),
    "second order": lambda: chain(40),
    "rod": lambda: rod(500),
}


def values(name: str) -> dict[str, Any]:
    """Reduce a system over all ranks and by SuperLU, and compare what comes out."""
    with over_ranks():
        system = SYSTEMS[name]()
        bal = hr.balance(system)
        split = bal.reduce(order=5)
        recursion = bal._found.parts.recursion
        S, R = hr.gramian_factors(system)
        engine, rows = bal._found.parts.engine, len(recursion.S)
        norm = hr.h2_norm(system) if name == "plate" else 0.0
    alone = hr.balance(SYSTEMS[name]())
    k = min(len(bal.hsv), len(alone.hsv))
    omega = np.array([0.0, 1.0, 30.0]) if not system.is_discrete else np.array([0.0, 1.0, 3.0])
    responses = [x.system.frequency_response(omega) for x in (split, alone.reduce(order=5))]
    return {
        "error": float(np.abs(bal.hsv[:k] - alone.hsv[:k]).max() / alone.hsv[0]),
        "values": k,
        "engine": engine,
        "share": rows / system.pencil.n,
        "shapes": [len(S), R.shape[1], len(split.T), split.Ti.shape[1]],
        "model": float(np.abs(responses[0] - responses[1]).max() / np.abs(responses[1]).max()),
        "norm": norm - (hr.h2_norm(SYSTEMS[name]()) if name == "plate" else 0.0),
        "bits": bal.hsv.tobytes().hex(),
    }


def broken(*_: Any) -> None:
    """Fail as a large array does."""
    raise MemoryError("Unable to allocate 8 GiB")


def failing(case: str) -> str:
    """Return what a rank gets to hear of something that goes wrong."""
    options, last, intact = PETSc.Options(), MPI.COMM_WORLD.size - 1, adi._Side._append
    given = {
        "misspelt option": {"hankelred_ksp_tpye": "gmres"},
        "unknown value": {"hankelred_pc_type": "nonsense"},
        "unknown package": {"hankelred_pc_factor_mat_solver_type": "nonsense"},
        "too few iterations": {"hankelred_ksp_type": "gmres", "hankelred_pc_type": "none", "hankelred_ksp_max_it": "3"},
        "too little memory": {"hankelred_mat_mumps_icntl_23": "1"},
    }.get(case, {})
    for name, value in given.items():
        options[name] = value
    try:
        with over_ranks():
            system = plate(90) if case == "too little memory" else plate(20)
            if case == "other inputs" and last == RANK:
                system = system.with_(B=2 * system.B)
            if case == "other matrix" and last == RANK:
                system = system.with_(A=sp.csc_array(2 * system.A))
            if case == "at once" and last == RANK:
                raise ValueError("no such file")
            if case == "between" and last == RANK:
                adi._Side._append = broken
            if case == "singular":
                SparseSum(sp.csc_array(sp.diags_array(np.arange(30.0)))).factor(1.0)
            if case == "unstable":
                system = rod(6000).with_(A=sp.csc_array(rod(6000).A + 1e3 * sp.eye_array(6000)))
            hr.balance(system)
            if case == "at the end" and RANK == 0:
                raise KeyboardInterrupt
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        adi._Side._append = intact
        for name in given:
            options.delValue(name)
    return "nothing"


FAILING = (
    "misspelt option; unknown value; unknown package; too few iterations; too little memory; other inputs; "
    "other matrix; at once; between; at the end; singular; unstable"
).split("; ")


def deaf() -> None:
    """Fail on one rank while the other waits for it in a call that knows of no errors."""
    ranks.PATIENCE = 2.0
    with over_ranks() as comm:
        if comm.rank == 0:
            raise OSError("disk full")
        comm.recv(source=0)


def main(folder: str, *wanted: str) -> None:
    """Write what was found."""
    if wanted == ("deaf",):
        deaf()
    found: dict[str, Any] = {name: values(name) for name in wanted if name in SYSTEMS}
    found |= {name: failing(name) for name in wanted if name in FAILING}
    (Path(folder) / f"{RANK}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
