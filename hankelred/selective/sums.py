"""The running sums behind `SelectiveStatistics`, each an array with the groups of channels first."""

from __future__ import annotations

import numpy as np
import scipy.linalg as sla

from ..linalg.compiled import Kernels

kernels = Kernels("hankelred.selective._kernels")
from ..checks import EPS, Array, double
from ..errors import InputError
from .gramians import gramian_sums, mirrored, moment_sums, pieces
from .states import Piece, Sequences, state_pieces

# Sums always kept: of decays, increments, increments per unit of input and output rows, and of h h^H, conj(c) c^T and
# conj(c h) (c h)^T; then the second moments of the steps and the Gramians, kept where asked for.
VECTORS = ("a", "b", "B", "c")
COVARIANCES = ("hh", "cc", "M")
MOMENTS = ("aa", "bb", "ab", "acac")
GRAMIANS = ("P", "Q")

# Steps between which a carried Gramian recursion of one channel goes back to Python.
GRAMIAN_PIECE = 256

Sums = dict[str, Array]


def empty_sums(n: int, groups: int, moments: bool, exact: bool) -> Sums:
    """Return the sums over nothing."""
    squares = (*COVARIANCES, *(MOMENTS if moments else ()), *(GRAMIANS if exact else ()))
    return {name: np.zeros((groups, n) if name in VECTORS else (groups, n, n)) for name in (*VECTORS, *squares)}


def add_steps(sums: Sums, group: int, a: Array, b: Array, c: Array, every: int) -> None:
    """Add every so many steps of sequences (batch, length, n) of one channel, real or complex."""
    hh, cc, M = _covariance_sums(a, b, c, every)
    if "P" in sums:
        for name, value in zip(GRAMIANS, gramian_sums(a, b, c), strict=True):
            _add(sums, name, group, value)
    a, b, c = (x[:, every - 1 :: every] for x in (a, b, c))
    found = {name: double(x).sum(axis=(0, 1)) for name, x in (("a", a), ("b", b), ("B", b), ("c", c))}
    found.update(hh=hh, cc=cc, M=M)
    if "aa" in sums:
        moments = moment_sums(a, b, c)._asdict()
        found.update((name, moments[name]) for name in MOMENTS)
    for name, value in found.items():
        _add(sums, name, group, value)


def add_sequences(sums: Sums, data: Sequences, delta: Array | None, every: int) -> None:
    """Add every so many steps of many channels; delta, where given, is the increment per unit of input and of B."""
    n, groups = data.B.shape[3], data.B.shape[2]
    for group, piece in state_pieces(data):
        _add_piece(sums, data, group, piece, every)
    taken = slice(every - 1, None, every)
    v = double(data.v[:, taken]).reshape(-1, groups, data.group_width)
    per_unit = np.ones_like(v) if delta is None else double(delta[:, taken]).reshape(v.shape)
    for group in range(groups):
        B, C = (double(x[:, taken, group]).reshape(-1, n) for x in (data.B, data.C))
        _add(sums, "b", group, v[:, group].sum(axis=1) @ B)
        _add(sums, "B", group, per_unit[:, group].sum(axis=1) @ B)
        _add(sums, "c", group, C.sum(axis=0))
        _add(sums, "cc", group, C.T @ C)
        if "aa" in sums:
            _add(sums, "bb", group, (B.T * (v[:, group] ** 2).sum(axis=1)) @ B)
    if "P" in sums:
        _add_gramians(sums, data)


def covariance_factors(P: Array, Q: Array) -> tuple[Array, Array]:
    """Return S and R with ``P = S S^H``, ``Q = R^H R``, states of any unit resolved alike."""
    d = state_scale(P, Q)
    square = np.outer(d, d)
    return d[:, None] * psd_factor(P / square), psd_factor(Q * square).conj().T / d


def state_scale(P: Array, Q: Array) -> Array:
    """Return d with ``P_ii / d_i² = Q_ii d_i²``; 1 for states that the input does not reach or the output not see."""
    reached, seen = np.diagonal(P).real, np.diagonal(Q).real
    live = (reached > 0) & (seen > 0)
    return np.where(live, np.where(live, reached, 1.0) / np.where(live, seen, 1.0), 1.0) ** 0.25


def psd_factor(P: Array) -> Array:
    """Return S with ``P = S S^H``, columns by decreasing size, for a matrix that is semidefinite up to rounding."""
    values, vectors = sla.eigh(P)
    floor = len(P) * EPS * max(float(np.abs(values).max()), 0.0)
    # a sum of products of data in single precision is semidefinite to that precision only
    if values[0] < -max(1e-5 * float(np.abs(values).max()), floor):
        raise InputError(
            f"Covariances must be positive semidefinite; got eigenvalues from {values[0]:.3g} to {values[-1]:.3g}. "
            f"Sums from different data do not fit together."
        )
    kept = values > floor
    return (vectors[:, kept] * np.sqrt(values[kept]))[:, ::-1]


def _add(sums: Sums, name: str, group: int, value: Array) -> None:
    if value.dtype.kind == "c" and sums[name].dtype.kind != "c":
        sums[name] = sums[name].astype(np.complex128)
    sums[name][group] += value


def _add_piece(sums: Sums, data: Sequences, group: int, piece: Piece, every: int) -> None:
    """Add what takes the states or decays of all channels: one product of matrices for each step."""
    steps = slice(piece.steps.start + -(piece.steps.start + 1) % every, piece.steps.stop, every)
    taken = slice(steps.start - piece.steps.start, None, every)
    c, h = double(data.C[piece.row, steps, group]), piece.h[taken]
    if data.gate is not None:
        h = h * data.gate[piece.row, steps, None, piece.channels]
    kernels.add_forms(np.matmul(h, h.transpose(0, 2, 1)), c, sums["hh"][group], sums["M"][group])
    decay = np.broadcast_to(piece.decay[taken], h.shape)
    _add(sums, "a", group, decay.sum(axis=(0, 2), dtype=np.float64))
    if "aa" in sums:
        decay = np.ascontiguousarray(decay)
        kernels.add_forms(np.matmul(decay, decay.transpose(0, 2, 1)), c, sums["aa"][group], sums["acac"][group])
        B = double(data.B[piece.row, steps, group])
        _add(sums, "ab", group, double(np.matmul(decay, piece.v[taken, :, None])[:, :, 0]).T @ B)


def _add_gramians(sums: Sums, data: Sequences) -> None:
    """Run the Gramian recursions of every channel, some steps at a time."""
    batch, length, channels = data.v.shape
    n = data.B.shape[3]
    for row in range(batch):
        for k in range(channels):
            group = k // data.group_width
            X, W, P, Q = (np.zeros((n, n)) for _ in range(4))
            for steps in pieces(length, GRAMIAN_PIECE):
                decay = double(data.decay(row, steps, slice(k, k + 1))[:, :, 0])
                B, C = (double(x[row, steps, group]) for x in (data.B, data.C))
                a = np.ascontiguousarray(np.broadcast_to(decay, B.shape))
                kernels.add_gramians(a, B * double(data.v[row, steps, k])[:, None], C, X, W, P, Q)
            _add(sums, "P", group, mirrored(P))
            _add(sums, "Q", group, mirrored(Q))


def _covariance_sums(a: Array, b: Array, c: Array, every: int) -> tuple[Array, Array, Array]:
    """Return the sums of ``h h^H``, ``conj(c) c^T`` and ``conj(c h) (c h)^T`` over sequences of one channel."""
    n = a.shape[-1]
    dtype = np.result_type(np.float64, a, b, c)
    hh, cc, M = (np.zeros((n, n), dtype) for _ in range(3))
    for row in range(len(a)):
        carry = np.zeros(n, dtype)
        for steps in pieces(a.shape[1]):
            h = np.empty((steps.stop - steps.start + 1, n), dtype)
            h[0] = carry
            kernels.states_of_channel(a[row, steps].astype(dtype), b[row, steps].astype(dtype), h)
            first = -(steps.start + 1) % every
            carry, h, ct = h[-1], h[1 + first :: every], c[row, steps][first::every].astype(dtype)
            seen = ct * h
            hh += h.T @ h.conj()
            cc += ct.conj().T @ ct
            M += seen.conj().T @ seen
    return hh, cc, M
