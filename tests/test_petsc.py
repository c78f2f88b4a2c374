"""Solves over the ranks of MPI: one rank in this process, two and four under mpirun, against SuperLU.

Skipped where petsc4py cannot be imported; the guide "Solves over many machines" says how it is installed.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

import hankelred as hr
from hankelred.linalg import definite
from hankelred.linalg.engines import SparseSum
from hankelred.linalg.petsc import over_ranks

from .large import plate, rod
from .sizes import is_long

try:
    from petsc4py import PETSc
except ImportError as error:
    pytest.skip(f"needs petsc4py, and a build of it for this NumPy: {error}", allow_module_level=True)
pytest.importorskip("mpi4py")

from .petsc_worker import FAILING, SYSTEMS

ROOT = Path(__file__).parents[1]
WORKER = ROOT / "tests" / "petsc_worker.py"
SCRIPT = ROOT / "docs" / "guides" / "scripts" / "plate_over_ranks.py"
LIMIT = 600  # seconds; on free cores a run takes a twentieth of it
COMPLEX = np.dtype(PETSc.ScalarType).kind == "c"
SIZES = [2, 4]
ONE = sp.eye_array(400, format="csc")
WIND = plate(20, wind=4.0).A


def matrices() -> dict[str, Any]:
    """Return matrices of every kind, all of one pattern of which some have less."""
    return {
        "symmetric": (plate(20).A, ONE, 1.0, -3.0),
        "symmetric, complex shift": (plate(20).A, ONE, 1.0, 3.0 - 40j),
        "indefinite": (plate(20).A, ONE, 1.0, 2000.0),
        "real": (WIND, ONE, 1.0, -3.0),
        "real, complex shift": (WIND, ONE, 1.0, 3.0 - 40j),
        "complex": (sp.csc_array(WIND * (1 + 0.2j)), ONE, 1.0, -3.0),
        "no symmetric pattern": (sp.csc_array(WIND + 90 * sp.eye_array(400, k=7)), ONE, 1.0, -3.0),
        "Hermitian": (
            sp.csc_array(plate(20).A + sp.diags_array([5j, -5j], offsets=[1, -1], shape=(400, 400))),
            ONE,
            1.0,
            -3.0,
        ),
    }


@pytest.mark.parametrize("complex_sides", [False, True])
@pytest.mark.parametrize("name", matrices())
def test_solutions_solve(name, complex_sides):
    A, E, a, e = matrices()[name]
    draw = np.random.default_rng(0)
    right = draw.standard_normal((400, 3)) + 1j * complex_sides * draw.standard_normal((400, 3))
    right = right if complex_sides else right.real
    M, given = sp.csc_array(a * A + e * E), right.copy()
    with over_ranks():
        solver = SparseSum(A, E).factor(a, e)
        solutions = solver.solve(right), solver.solve_adjoint(right)
    for matrix, X in zip((M, M.conj().T), solutions, strict=True):
        error = np.abs(matrix @ X - right).max() / (np.abs(matrix).sum(axis=1).max() * np.abs(X).max())
        assert error < 1e-12
        assert X.dtype == np.result_type(M, right)
    np.testing.assert_array_equal(right, given)


def test_factorisations_do_not_disturb_each_other_and_leave_their_analysis():
    both, right = SparseSum(WIND, ONE), np.ones((400, 1))
    with over_ranks():
        solvers = {p: both.factor(1.0, p) for p in (0.0, -50.0, 2j)}
        for p, solver in solvers.items():
            np.testing.assert_allclose((WIND + p * ONE) @ solver.solve(right), right, atol=1e-9)
        used = solvers.pop(-50.0)._lease
        del solver
        again = both.factor(1.0, -7.0)
        assert again._lease is used
        np.testing.assert_allclose((WIND - 7 * ONE) @ again.solve(right), right, atol=1e-9)


def test_a_solver_outlives_its_block():
    with over_ranks():
        solver = SparseSum(WIND, ONE).factor(1.0, -3.0)
    np.testing.assert_allclose((WIND - 3 * ONE) @ solver.solve(np.ones((400, 1))), 1.0, atol=1e-9)
    assert "PETSc" not in hr.balanced_truncation(plate(20), order=3).method


def test_a_matrix_after_a_singular_one_is_factored():
    diagonal = sp.csc_array(sp.diags_array(np.arange(30.0)))
    with over_ranks():
        both = SparseSum(diagonal, sp.eye_array(30, format="csc"))
        with pytest.raises(np.linalg.LinAlgError, match="must be regular"):
            both.factor(1.0, 0.0)
        X = both.factor(1.0, 1.0).solve(np.ones((30, 1)))
    np.testing.assert_allclose(X[:, 0], 1 / (1 + np.arange(30)), rtol=1e-12)


@pytest.mark.parametrize("margin", [1e-6, 0.0, -1e-6])
def test_definite_matrices_are_told_from_others(margin):
    M = sp.csc_array(sp.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(60, 60)))
    least = 2 - 2 * np.cos(np.pi / 61)
    M = sp.csc_array(M + (margin - least) * sp.eye_array(60))
    with over_ranks():
        assert definite.is_definite(M) is (margin > 0)
        assert not definite.is_definite(sp.csc_array(sp.diags_array([1.0, 0.0, 2.0])))


@pytest.mark.parametrize("solver", [{"pc_type": "lu"}, {"ksp_type": "gmres", "ksp_rtol": "1e-13", "pc_type": "ilu"}])
def test_options_of_petsc_choose_the_solver(solver):
    options = PETSc.Options("mine_")
    for name, value in solver.items():
        options[name] = value
    try:
        with over_ranks(prefix="mine_"):
            bal = hr.balance(plate(20))
    finally:
        for name in solver:
            options.delValue(name)
    alone = hr.balance(plate(20))
    k = min(len(bal.hsv), len(alone.hsv))
    assert bal.reduce(order=3).method.endswith("(PETSc's gmres)" if "ksp_type" in solver else "(PETSc's mumps)")
    assert np.abs(bal.hsv[:k] - alone.hsv[:k]).max() <= max(bal.floor, 1e-12 * alone.hsv[0])


def test_a_rod_with_a_hidden_unstable_mode_is_refused():
    A = sp.block_diag([rod(5200).A, [[0.5]]], format="csc")
    with over_ranks(), pytest.raises(hr.StabilityError, match=r"poles 0\.5"):
        hr.balance(hr.StateSpace(A, np.eye(5201, 1), np.eye(1, 5201)))


@functools.cache
def found(size: int) -> list[dict[str, Any]]:
    """Run all cases on so many ranks, and return what each of them found."""
    names = [*SYSTEMS, *FAILING] if size == 2 or is_long() else ["plate", "wind", "second order"]
    with tempfile.TemporaryDirectory() as folder:
        process = mpirun(size, folder, *names)
        assert process.returncode == 0, process.stderr[-4000:]
        return [json.loads((Path(folder) / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(size)]


def mpirun(size: int, *arguments: str, program: Path = WORKER) -> subprocess.CompletedProcess[str]:
    """Run a program on so many ranks, and kill it where it hangs."""
    start = shutil.which("mpirun")
    if start is None:
        pytest.skip("needs mpirun")
    alone = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1"}
    shared = {"OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_hwloc_base_binding_policy": "none"}
    waiting = {"OMPI_MCA_mpi_yield_when_idle": "1", "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    command = [start, "-n", str(size), sys.executable, str(program), *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMIX_"))}
    return subprocess.run(
        command, env=environment | alone | shared | waiting, capture_output=True, text=True, timeout=LIMIT, check=False
    )


CASES = [
    (size, name)
    for size in SIZES
    for name in (SYSTEMS if size == 2 or is_long() else ["plate", "wind", "second order"])
]


@pytest.mark.parametrize(("size", "name"), CASES)
def test_many_ranks_give_what_superlu_gives(size, name):
    answers = [answer[name] for answer in found(size)]
    for answer in answers:
        assert answer["error"] < 1e-10
        assert answer["values"] >= 10
        assert answer["engine"] == "PETSc's mumps"
        assert answer["model"] < 1e-9
        assert abs(answer["norm"]) < 1e-12
        assert len(set(answer["shapes"])) == 1  # what users get is whole
        assert answer["bits"] == answers[0]["bits"]
        assert answer["share"] == pytest.approx(1 / size, abs=0.01)
    assert sum(answer["share"] for answer in answers) == pytest.approx(1.0)


SAID_ON_ALL = {
    "misspelt option": r"InputError: PETSc must know .*; got -hankelred_ksp_tpye, which nothing reads",
    "unknown value": "InputError: The options of PETSc .* got: .*Unable to find requested PC type nonsense",
    "unknown package": "InputError: The options of PETSc .* got: .*Could not locate solver type nonsense",
    "too few iterations": "InputError: .*a solver that converges; got KSPConvergedReason -3 after 3 iterations",
    "too little memory": r"InputError: MUMPS must be able to factor; got INFOG\(1\)=-.* Room is too small: pass -hank",
    "other inputs": "InputError: Inputs and outputs must be the same on all ranks; got other entries on rank 1",
    "other matrix": "InputError: Sparse matrices must be the same on all ranks; got other entries on rank 1",
    "singular": "LinAlgError: A \\+ p E must be regular",
    "unstable": "StabilityError: ",
}
SAID_OF_ONE = {
    "at once": (1, "ValueError: no such file"),
    "between": (1, "MemoryError: Unable to allocate 8 GiB"),
    "at the end": (0, "KeyboardInterrupt: "),
}


@pytest.mark.parametrize("case", FAILING)
def test_what_goes_wrong_is_said_on_every_rank(case):
    answers = [answer[case] for answer in found(2)]
    if case in SAID_ON_ALL:
        for answer in answers:
            assert re.match(SAID_ON_ALL[case], answer), answer
        return
    rank, error = SAID_OF_ONE[case]
    assert answers[rank] == error
    assert answers[1 - rank].startswith(
        f"RankError: All ranks must reach the end of the block; got on rank {rank}: {error}"
    )


def test_the_script_of_the_guide_runs_with_other_solvers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    another = ["-hankelred_pc_type", "lu", "-hankelred_pc_factor_mat_solver_type", "superlu_dist"]
    process = mpirun(2, "20", *another, program=SCRIPT)
    assert process.returncode == 0, process.stderr[-4000:]
    assert process.stdout.splitlines()[-2:] == [
        "balanced truncation by factors of low rank (PETSc's superlu_dist) on 2 ranks",
        f"400 states to 8, error at most {hr.balanced_truncation(plate(20), order=8).error_bound:.1e}",
    ]
    assert hr.load_system(tmp_path / "plate.npz").n == 8


def test_a_rank_that_does_not_listen_is_ended():
    process = mpirun(2, "unused", "deaf")
    assert process.returncode != 0
    assert "Rank 0 has failed" in process.stderr
    assert "OSError: disk full" in process.stderr
