"""What factors sparse matrices: every engine that is installed against the matrices themselves."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp

from hankelred.linalg import engines
from hankelred.linalg.engines import Cholmod, Pardiso, SparseSum, SuperLU, Thin, Umfpack
from hankelred.linalg.sparse import SparsePencil

from .large import plate, rod, stokes

ONE = sp.eye_array(900, format="csc")
OPTIONAL = Cholmod, Pardiso, Umfpack


def matrices() -> dict[str, sp.csc_array]:
    """Return matrices of every kind, none of them singular."""
    wind = plate(30, wind=4.0).A
    return {
        "definite": plate(30).A,
        "real": wind,
        "complex": sp.csc_array(wind + (3 - 40j) * ONE),
        "complex, Hermitian": sp.csc_array(plate(30).A + sp.diags_array([5j, -5j], offsets=[1, -1], shape=(900, 900))),
        "no symmetric pattern": sp.csc_array(wind + 90 * sp.eye_array(900, k=7)),
        "zeros on the diagonal": stokes(12).A,
    }


MATRICES = matrices()


def factored(engine: type, M: sp.csc_array) -> object:
    """Factor by one engine, or skip the test where it is not installed or takes no such matrix."""
    hermitian, last = engines.is_hermitian(M), SuperLU(M, engines.is_hermitian(M))
    if engine is SuperLU:
        return last.factored(M)
    if engine is Thin:
        if last.elimination is None:
            pytest.skip("pivots must leave the diagonal")
        return Thin(last.elimination, hermitian).factored(M)
    if not engine.is_there():
        pytest.skip(f"{engine.module} is not installed")
    solver = engine(M).factored(M) if hermitian or engine is not Cholmod else None
    if solver is None:
        assert (engine is Cholmod and M is not MATRICES["definite"]) or (engine is Pardiso and M.dtype.kind == "c")
        pytest.skip("not a matrix for this engine")
    return solver


@pytest.mark.parametrize("complex_sides", [False, True])
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("engine", [Thin, SuperLU, *OPTIONAL], ids=lambda engine: engine.__name__)
def test_solutions_solve(engine, name, complex_sides):
    M, draw = MATRICES[name], np.random.default_rng(0)
    right = draw.standard_normal((M.shape[0], 3)) + 1j * complex_sides * draw.standard_normal((M.shape[0], 3))
    right = right if complex_sides else right.real
    given, solver = right.copy(), factored(engine, M)
    for A, X in ((M, solver.solve(right)), (M.conj().T, solver.solve_adjoint(right))):
        error = np.abs(A @ X - right).max() / (np.abs(A).sum(axis=1).max() * np.abs(X).max())
        assert error < 1e-12
    np.testing.assert_array_equal(right, given)


def test_factorisations_do_not_disturb_each_other():
    both = SparseSum(MATRICES["definite"], ONE)
    right, solvers = np.ones((900, 1)), [both.factor(1.0, p) for p in (0.0, -50.0)]
    for p, solver in zip((0.0, -50.0), solvers, strict=True):
        np.testing.assert_allclose((MATRICES["definite"] + p * ONE) @ solver.solve(right), right, atol=1e-9)
    del solver, solvers
    again = both.factor(1.0, -7.0)
    np.testing.assert_allclose((MATRICES["definite"] - 7 * ONE) @ again.solve(right), right, atol=1e-9)


def test_rods_have_thin_factors_and_plates_have_not():
    assert SparseSum(rod(500).A).is_thin
    assert not SparseSum(plate(40).A).is_thin


@pytest.mark.parametrize("k", [20, 60])
def test_fill_is_foretold_exactly_where_pivots_stay_on_the_diagonal(k):
    engine = SuperLU(plate(k).A, True)
    assert engine.fill == engine.factored(plate(k).A).factors.nnz


@pytest.mark.parametrize("small", [0.0, 1e-9])
def test_pivots_that_are_small_are_left_to_superlu(small):
    """Diagonal entries with next to nothing on them, in a band that is thin otherwise."""
    M = sp.diags_array([2.0, small, 1.0], offsets=[-1, 0, 1], shape=(90, 90), format="csc")
    found = SparseSum(M, sp.eye_array(90, format="csc"))
    X = found.factor(1.0, 0.0).solve(np.ones((90, 1)))
    np.testing.assert_allclose(M @ X, 1.0, atol=1e-9 * np.abs(X).max())
    assert found.is_thin
    assert found.engines == {"SuperLU": 1}


@pytest.mark.parametrize("n", [50, 2500])
def test_singular_matrices_are_noticed(n):
    A = (rod(n).A if n < 100 else plate(50).A).tolil()
    A[3], A[:, 3] = 0, 0
    with pytest.raises(np.linalg.LinAlgError, match="must be regular"):
        SparsePencil(sp.csc_array(A)).factor(0.0)


def test_packages_of_engines_are_not_imported_before_they_are_needed():
    code = (
        "import sys, hankelred as hr; print([m for m in ('sksparse', 'scikits') if m in sys.modules]);"
        "from tests.large import rod; hr.balance(rod(600));"  # scipy.sparse.linalg imports scikits.umfpack by itself
        "print([m for m in ('sksparse', 'pypardiso') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["[]", "[]"]
