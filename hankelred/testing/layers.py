"""Synthetic data of gated delta rules with known answers: keys in a subspace, and channels that nothing enters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..checks import Array, check_flag, check_integer, check_number
from ..errors import InputError
from ._drawing import Draw, strategy

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


@dataclass(frozen=True, eq=False)
class DeltaLayer:
    """What layers of a gated delta rule compute from their inputs, and what is known of it.

    Attributes
    ----------
    data : tuple of ndarray
        Decays, beta, keys B, queries C and values x, in the order of `SelectiveStatistics.update_delta`.
    basis : (groups, n, rank) ndarray
        Orthonormal bases of the spaces of keys and queries without their noise.
    inert : (groups, inert) int ndarray
        Key channels that are zero in keys and queries, increasing.

    Examples
    --------
    >>> from hankelred.testing import delta_layer
    >>> layer = delta_layer(rank=3)
    >>> layer.basis.shape[-1]
    3
    """

    data: tuple[Array, Array, Array, Array, Array]
    basis: Array
    inert: Array


def delta_layer(
    n: int = 16,
    rank: int = 5,
    *,
    noise: float = 0.1,
    inert: int = 0,
    groups: int = 1,
    heads: int = 2,
    head_dim: int = 16,
    batch: int = 2,
    length: int = 200,
    by_channel: bool = False,
    follow: float = 0.0,
    seed: int = 0,
) -> DeltaLayer:
    """Make data of a gated delta rule whose keys and queries lie near a subspace.

    Keys are ``W z + noise g``, then normalised, with independent normal z, of unit size in the mean, and g; queries are
    made alike from others, with the scale ``n^-1/2``. Decays are uniform from 0.9 to 1, beta from 0.2 to 0.9.

    Parameters
    ----------
    n, rank : int, default 16 and 5
        Key channels, and the dimension of the subspace, from 1 to n - inert.
    noise : float, default 0.1
        Size of the part outside, relative to that inside; 0 leaves nothing there.
    inert : int, default 0
        Channels that are zero throughout, other ones in each group.
    groups, heads, head_dim, batch, length : int
        Sizes; heads side by side share the keys of a group.
    by_channel : bool, default False
        Whether every key channel has decays of its own.
    follow : float, default 0.0
        How far values are a fixed linear function of their keys, which is learned by the states, from 0, white values,
        to 1.
    seed : int, default 0
        Equal seeds make equal data; the subspaces depend on sizes and seed alone.

    Returns
    -------
    DeltaLayer
        Data in double precision, and the answers.

    Raises
    ------
    InputError
        If a size or number is outside its range, or groups do not divide heads.

    Examples
    --------
    >>> from hankelred.selective import SelectiveStatistics, project
    >>> from hankelred.testing import delta_layer
    >>> layer, statistics = delta_layer(rank=5, noise=0.0), SelectiveStatistics(16, delta=True)
    >>> statistics.update_delta(*layer.data)
    >>> bool(project(statistics, 5, orthogonal=True).delta_error(*layer.data) < 1e-12)
    True
    """
    n, heads = check_integer(n, "n", 1), check_integer(heads, "heads", 1)
    inert = check_integer(inert, "inert", 0, n - 1)
    rank = check_integer(rank, "rank", 1, n - inert)
    groups, head_dim = check_integer(groups, "groups", 1), check_integer(head_dim, "head_dim", 1)
    batch, length = check_integer(batch, "batch", 1), check_integer(length, "length", 1)
    noise = check_number(noise, "noise", least=0.0, most=1e6, hint="More leaves nothing of the subspace.")
    follow = check_number(follow, "follow", least=0.0, most=1.0)
    if heads % groups:
        raise InputError(f"groups must divide heads, which share keys; got {groups} groups and {heads} heads.")
    rng = np.random.default_rng(check_integer(seed, "seed", 0))
    alive = [np.sort(rng.permutation(n)[: n - inert]) for _ in range(groups)]
    basis = np.zeros((groups, n, rank))
    for W, channels in zip(basis, alive, strict=True):
        W[channels] = np.linalg.qr(rng.standard_normal((n - inert, rank)))[0]
    shape, sides = (batch, length, heads), np.zeros((2, batch, length, groups, n))
    for group, channels in enumerate(alive):
        rest = rng.standard_normal((2, batch, length, n - inert)) * noise / np.sqrt(n - inert)
        sides[..., group, :] = rng.standard_normal((2, batch, length, rank)) @ basis[group].T / np.sqrt(rank)
        sides[..., group, channels] += rest
    B, C = sides / np.linalg.norm(sides, axis=-1, keepdims=True)
    learned = rng.standard_normal((heads, n, head_dim))
    taught = np.einsum("btkn,knd->btkd", np.repeat(B, heads // groups, axis=2), learned)
    x = follow * taught + (1 - follow) * rng.standard_normal((*shape, head_dim))
    decay = rng.uniform(0.9, 1.0, (*shape, n) if check_flag(by_channel, "by_channel") else shape)
    data = decay, rng.uniform(0.2, 0.9, shape), B, C / np.sqrt(n), x
    return DeltaLayer(data, basis, np.array([np.setdiff1d(np.arange(n), channels) for channels in alive]))


def delta_layers(*, max_states: int = 6) -> SearchStrategy[DeltaLayer]:
    """Draw data of gated delta rules, grouped heads and inert channels among them.

    Parameters
    ----------
    max_states : int, default 6
        Largest number of key channels, from 1.

    Returns
    -------
    hypothesis strategy of DeltaLayer
        Sizes, noise (0 or 1/8), rank and seed of `delta_layer` are drawn, and whether channels have their own decays.

    Examples
    --------
    >>> from hankelred.testing import delta_layers
    >>> layers = delta_layers(max_states=4)  # then @given(layers)
    """

    def build(draw: Draw, max_states: int) -> DeltaLayer:
        n = draw.integer(1, max_states)
        inert = draw.integer(0, n - 1)
        rank, groups = draw.integer(1, n - inert), draw.integer(1, 2)
        return delta_layer(
            n,
            rank,
            noise=draw.choice([0.0, 0.125]),
            inert=inert,
            groups=groups,
            heads=groups * draw.integer(1, 2),
            head_dim=draw.integer(1, 3),
            batch=1,
            length=12,
            by_channel=draw.choice([False, True]),
            seed=draw.integer(0, 99),
        )

    return strategy(build, True, max_states=(max_states, 1))
