"""Large models by formula: rods, plates, nets and chains, with their Hankel singular values in closed form for rods."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

import hankelred as hr


def ones_at(n: int, places: list[int]) -> np.ndarray:
    """Return a column for each place, one there and zero elsewhere."""
    columns = np.zeros((n, len(places)))
    columns[places, range(len(places))] = 1.0
    return columns


def second_difference(n: int) -> sp.csc_array:
    """Return ``(n + 1)^2 tridiag(1, -2, 1)``."""
    return sp.csc_array(sp.diags_array([1.0, -2.0, 1.0], offsets=[-1, 0, 1], shape=(n, n)) * (n + 1.0) ** 2)


def rod(n: int, ports: int = 1) -> hr.StateSpace:
    """Return a heated rod of n nodes, heated at some places and measured at others."""
    B = ones_at(n, [n * (k + 1) // (ports + 2) for k in range(ports)])
    C = ones_at(n, [n - 1 - n * (k + 1) // (ports + 3) for k in range(ports)]).T
    return hr.StateSpace(second_difference(n), B, C)


def rod_hsv(system: hr.StateSpace) -> np.ndarray:
    """Return the Hankel singular values of a rod from its poles and modes in closed form."""
    n = system.n
    k = np.arange(1, n + 1)
    poles = -4 * (n + 1.0) ** 2 * np.sin(k * np.pi / 2 / (n + 1)) ** 2

    def modes(X: np.ndarray) -> np.ndarray:
        places = np.flatnonzero(X.any(axis=1)) + 1.0
        where = [int(np.flatnonzero(X[:, j])[0]) + 1 for j in range(X.shape[1])]
        assert len(places) <= len(where)
        angle = np.pi / (n + 1) * (np.outer(k, where) % (2 * (n + 1)))
        return np.sqrt(2 / (n + 1)) * np.sin(angle)

    return hr.hankel_singular_values(hr.DiagonalSystem(poles, modes(system.B), modes(system.C.T).T, dt=0))


def plate(k: int, ports: int = 1, wind: float = 0.0, dtype: type = np.float64) -> hr.StateSpace:
    """Return a heated plate of k by k nodes; with wind the matrix is not symmetric."""
    one = sp.eye_array(k)
    blown = second_difference(k) + wind * (k + 1) * sp.diags_array([-1.0, 1.0], offsets=[-1, 1], shape=(k, k))
    A = (sp.kron(blown, one) + sp.kron(one, second_difference(k))).tocsc().astype(dtype)
    n = k * k
    B, C = ones_at(n, [n // 3 + 7 * j for j in range(ports)]), ones_at(n, [n // 2]).T
    return hr.StateSpace(A, B.astype(dtype), C.astype(dtype))


def plate_hsv(system: hr.StateSpace) -> np.ndarray:
    """Return the Hankel singular values of a plate without wind, one input and one output, from its modes.

    Modes (i, j) and (j, i) share a pole, and are one state.
    """
    k = round(np.sqrt(system.n))
    angle = np.pi / (k + 1) * np.arange(1, k + 1)
    poles = -4 * (k + 1.0) ** 2 * np.sin(angle / 2) ** 2
    modes = np.sqrt(2 / (k + 1)) * np.sin(angle[:, None] * np.arange(1, k + 1))
    ports = [modes @ x.reshape(k, k) @ modes.T for x in (system.B, system.C)]
    residues = ports[0] * ports[1]
    i, j = np.triu_indices(k)
    merged = np.where(i < j, residues[i, j] + residues[j, i], residues[i, j])
    return hr.hankel_singular_values(
        hr.DiagonalSystem(poles[i] + poles[j], np.ones((len(i), 1)), merged[None, :], dt=0)
    )


def stokes(k: int, driven: bool = False) -> hr.StateSpace:
    """Return the flow of Stokes in a box of k by k cells: velocities on their sides, pressures inside but for one.

    Of index 2; `driven` also lets an input into the constraints.
    """
    one, inner = sp.eye_array(k), sp.eye_array(k - 1)
    across, along = second_difference(k - 1), second_difference(k)
    flow = sp.block_diag([sp.kron(one, across) + sp.kron(along, inner), sp.kron(inner, along) + sp.kron(across, one)])
    gap = sp.diags_array([1.0, -1.0], offsets=[0, -1], shape=(k, k - 1)) * (k + 1.0)
    outflow = sp.csr_array(sp.hstack([sp.kron(one, gap), sp.kron(gap, one)]))[1:]
    n, p = flow.shape[0], outflow.shape[0]
    A = sp.block_array([[flow, outflow.T], [outflow, None]], format="csc")
    E = sp.block_diag([sp.eye_array(n), sp.csc_array((p, p))], format="csc")
    B, C = ones_at(n + p, [n // 3, n // 2 + 1]), ones_at(n + p, [n // 4, n + p // 2]).T
    if driven:
        B[n + p // 3, 1], C[1] = 0.5, C[0][::-1]
        C[1, n:] = 0
    return hr.StateSpace(A, B, C, E=E)


def chain(k: int) -> hr.SecondOrderSystem:
    """Return a chain of k masses between walls, well damped, pushed at one end and watched at the other."""
    K = sp.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(k, k), format="csc")
    M = sp.diags_array(1.0 + np.arange(k) % 3, format="csc")
    B = ones_at(k, [0])
    return hr.SecondOrderSystem(M, 0.6 * K + 0.5 * M, K, B, ones_at(k, [k - 1]).T, Cv=0.1 * B.T)


def net(k: int) -> hr.StateSpace:
    """Return an RC line of k nodes of which every third has no capacitance: index 1."""
    G = sp.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(k, k)) + 0.01 * sp.eye_array(k)
    E = sp.diags_array((np.arange(k) % 3 > 0).astype(float), format="csc")
    E.eliminate_zeros()
    return hr.StateSpace(-G.tocsc(), ones_at(k, [0, k // 3 * 3 - 3]), ones_at(k, [0, k // 2]).T, E=E)
