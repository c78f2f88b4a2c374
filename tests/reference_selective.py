"""Slow twins of the selective statistics, and synthetic layers that resemble trained ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class MambaData(NamedTuple):
    """What a Mamba layer computes from its inputs, in the order of `SelectiveStatistics.update_mamba`."""

    delta: np.ndarray
    A: np.ndarray
    B: np.ndarray
    C: np.ndarray
    u: np.ndarray


class HeadsData(NamedTuple):
    """What a Mamba-2 layer computes from its inputs, in the order of `SelectiveStatistics.update_heads`."""

    decay: np.ndarray
    B: np.ndarray
    C: np.ndarray
    x: np.ndarray


class MambaLayer:
    """A layer like Mamba's: steps, B and C are made from correlated inputs by fixed weights.

    Steps are softplus of a low-rank map with a bias that is log-uniform from 0.001 to 0.1 on zero input. Rates are
    ``-1 .. -n`` with a factor ``exp(spread N(0, 1))`` of their own in every channel and state. The maps to B and C have
    singular values ``k^-spectrum``. Inputs have several time constants, are mixed over the channels, and pass a SiLU
    that gives them a positive mean.
    """

    def __init__(self, n=16, channels=32, spread=0.05, spectrum=1.0, seed=0):
        rng = np.random.default_rng(seed)
        self.n, self.channels = n, channels
        self.A = -np.arange(1.0, n + 1) * np.exp(spread * rng.standard_normal((channels, n)))
        self.to_B, self.to_C = (_decaying(rng, n, channels, spectrum) for _ in range(2))
        rank = max(channels // 16, 1)
        self.to_delta = rng.uniform(-1, 1, (channels, rank)) / np.sqrt(rank) @ _decaying(rng, rank, channels, 0.0)
        step = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), channels))
        self.bias = step + np.log(-np.expm1(-step))  # the inverse of softplus
        self.mix = _decaying(rng, channels, channels, 0.5) * np.sqrt(channels)

    def data(self, batch=4, length=256, seed=0):
        """Return what the layer makes of new sequences."""
        u = inputs(np.random.default_rng(seed + 1000), batch, length, self.channels) @ self.mix.T
        u = u / (1 + np.exp(-u))
        delta = np.logaddexp(0, u @ self.to_delta.T + self.bias)
        return MambaData(delta, self.A, u @ self.to_B.T, u @ self.to_C.T, u)


class HeadsLayer:
    """A layer like Mamba-2's: one decay per head, B and C from inputs by fixed weights and a SiLU, shared by heads."""

    def __init__(self, n=16, heads=8, head_dim=8, spectrum=1.0, seed=0):
        rng = np.random.default_rng(seed)
        channels = heads * head_dim
        self.n, self.heads, self.head_dim = n, heads, head_dim
        self.to_B, self.to_C = (2 * _decaying(rng, n, channels, spectrum) for _ in range(2))
        self.to_delta = _decaying(rng, heads, channels, 0.0)
        step = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), heads))
        self.bias, self.rate = step + np.log(-np.expm1(-step)), rng.uniform(1, 16, heads)
        self.mix = _decaying(rng, channels, channels, 0.5) * np.sqrt(channels)

    def data(self, batch=4, length=256, seed=0, independent=False):
        """Return what the layer makes of new sequences; C is made from other ones where it shall be independent."""
        rng = np.random.default_rng(seed + 1000)
        u, other = (inputs(rng, batch, length, self.heads * self.head_dim) @ self.mix.T for _ in range(2))
        delta = np.logaddexp(0, u @ self.to_delta.T + self.bias)
        B, C = ((v @ W.T)[:, :, None] for v, W in ((u, self.to_B), (other if independent else u, self.to_C)))
        B, C, x = (v / (1 + np.exp(-v)) for v in (B, C, u))
        x = delta[..., None] * x.reshape(batch, length, self.heads, self.head_dim)
        return HeadsData(np.exp(-delta * self.rate), B, C, x)


def inputs(rng, batch, length, channels):
    """Return independent stationary processes of unit variance, half of them correlated over 1 to 100 steps."""
    memory = np.where(rng.random(channels) < 0.5, 0.0, np.exp(-1 / 10 ** rng.uniform(0, 2, channels)))
    noise = rng.standard_normal((batch, length, channels)) * np.sqrt(1 - memory**2)
    x, state = np.empty_like(noise), rng.standard_normal((batch, channels))
    for t in range(length):
        state = memory * state + noise[:, t]
        x[:, t] = state
    return x


def _decaying(rng, rows, columns, power):
    """Return a matrix with singular values proportional to ``k^-power`` and rows of mean square 1 / columns."""
    U, _, Vh = np.linalg.svd(rng.standard_normal((rows, columns)), full_matrices=False)
    s = np.arange(1.0, len(Vh) + 1) ** -power
    return (U * s * np.sqrt(rows / np.sum(s**2))) @ Vh


def steps_of_channel(data, k):
    """Return a, b, c (batch, length, n) of one channel of a Mamba layer."""
    a = np.exp(data.delta[:, :, k, None] * data.A[k])
    return a, (data.delta * data.u)[:, :, k, None] * data.B, data.C


def states(a, b):
    """Return ``h_t = a_t h_{t-1} + b_t`` of sequences (batch, length, n)."""
    h, state = np.empty(np.broadcast_shapes(a.shape, b.shape), np.result_type(a, b)), 0.0
    for t in range(h.shape[1]):
        state = a[:, t] * state + b[:, t]
        h[:, t] = state
    return h


def backward_gramians(a, b, c):
    """Return averages of P_t and Q_t from full matrices, Q_t from the end of each sequence."""
    batch, length, n = a.shape
    P_sum, Q_sum = (np.zeros((n, n), np.result_type(a, b, c)) for _ in range(2))
    for row in range(batch):
        P = np.zeros((n, n))
        for t in range(length):
            A = np.diag(a[row, t])
            P = A @ P @ A.conj().T + np.outer(b[row, t], b[row, t].conj())
            P_sum = P_sum + P
        Q = np.zeros((n, n))
        for t in reversed(range(length)):
            A = np.diag(a[row, t + 1]) if t + 1 < length else np.zeros((n, n))
            Q = A.conj().T @ Q @ A + np.outer(c[row, t].conj(), c[row, t])
            Q_sum = Q_sum + Q
    return P_sum / (batch * length), Q_sum / (batch * length)


def balanced_bases(P, Q, order):
    """Return T, Ti of square-root balanced truncation, from Cholesky factors of slightly regularised Gramians."""
    S = np.linalg.cholesky(P + 1e-13 * np.trace(P) * np.eye(len(P)))
    L = np.linalg.cholesky(Q + 1e-13 * np.trace(Q) * np.eye(len(Q)))
    U, s, Vh = np.linalg.svd(L.T @ S)
    root = np.sqrt(s[:order])
    return S @ Vh[:order].T / root, (U[:, :order] / root).T @ L.T


def projected_outputs(a, b, c, T, Ti):
    """Return the outputs of the projected model ``(Ti diag(a_t) T, Ti b_t, c_t T)`` of one channel."""
    y, z = np.empty(a.shape[:2]), np.zeros((len(a), T.shape[1]))
    for t in range(a.shape[1]):
        z = np.einsum("ri,bi,is,bs->br", Ti, a[:, t], T, z, optimize=True) + b[:, t] @ Ti.T
        y[:, t] = np.sum((c[:, t] @ T) * z, axis=1)
    return y
