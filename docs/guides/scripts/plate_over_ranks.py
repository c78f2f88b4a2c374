"""A heated plate of k by k nodes, reduced over the ranks of MPI: mpirun -n 2 python plate_over_ranks.py 300"""

import sys

import numpy as np
import petsc4py
import scipy.sparse as sp

petsc4py.init(sys.argv)  # the options of PETSc come from the command line

import hankelred as hr  # noqa: E402
from hankelred.linalg.petsc import over_ranks  # noqa: E402

k = int(sys.argv[1])
with over_ranks() as comm:
    rod = sp.diags_array([1.0, -2.0, 1.0], offsets=[-1, 0, 1], shape=(k, k)) * (k + 1.0) ** 2
    A = sp.csc_array(sp.kron(rod, sp.eye_array(k)) + sp.kron(sp.eye_array(k), rod))
    B, C = np.zeros((k * k, 1)), np.zeros((1, k * k))
    B[k * k // 3], C[0, k * k // 2] = 1.0, 1.0
    plate = hr.StateSpace(A, B, C)
    reduction = hr.balanced_truncation(plate, rtol=1e-6)
    if comm.rank == 0:
        hr.save_system(reduction.system, "plate.npz")
        print(reduction.method, f"on {comm.size} ranks")
        print(f"{k * k} states to {reduction.order}, error at most {reduction.error_bound:.1e}")
