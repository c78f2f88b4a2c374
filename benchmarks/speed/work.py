"""What the Triton kernels calculate, on paper, of whole tiles; tests compare it with what the interpreter counts.

Every formula goes through its kernel: what a tile needs, times the number of tiles. Scans and sums over a tile of T
steps count as ``T - 1`` combinations for each line of it, one after the other; compiled code splits them over lanes,
and joins products with sums.
"""

from __future__ import annotations

from typing import NamedTuple


class Work(NamedTuple):
    """Sums and products, exponentials, and multiply-adds in products of matrices."""

    arithmetic: int
    exponentials: int = 0
    products: int = 0

    def times(self, number: int) -> Work:
        return Work(*(number * x for x in self))

    def plus(self, other: Work) -> Work:
        return Work(*(x + y for x, y in zip(self, other, strict=True)))


def tiles(length: int, size: int) -> int:
    return -(-length // size)


def linear(
    rows: int,
    length: int,
    n: int,
    *,
    varies: bool,
    parts: int,
    steps: int,
    chunks: int,
    states: int,
    adjoint: bool = False,
) -> Work:
    """The linear recurrence or its adjoint; `parts` of a number are one if it is real and two if complex."""
    lanes, borders = chunks * states, (chunks - 1) * states
    entries = steps * lanes
    step, join = (2, 6) if parts == 1 else (8, 28)  # a x + b, and a x + w and then q x + y with products of factors
    work = (3 if varies else 2) * step * entries + join * borders  # twice, with products where they vary
    # what leaves the last chunk and the tile, and enters each, and whether products of a tile are numbers
    work += 0 if varies else step * (2 * lanes + states) + 2 * states
    end = 0
    if adjoint:
        work += (1 if parts == 1 else 6) * entries  # conj(x) g
        work += 0 if varies else parts * entries  # and its sum
        end = 0 if varies else 2 * borders  # over both parts, be they one
    programs = rows * tiles(n, states)
    return Work(work).times(programs * tiles(length, steps * chunks)).plus(Work(end).times(programs))


def selective(
    batch: int, length: int, channels: int, n: int, *, segment: int, block: int, states: int, adjoint: bool = False
) -> Work:
    """The selective scan or its adjoint, so many states at a time."""
    wide, edge = segment * block, states * block
    entries, borders = states * wide, (segment - 1) * edge
    if adjoint:
        # exponent, v b, y c and what comes later; e h, e g, g e h, and to the gradients of v, e, C, B and A
        group = 2 * edge + 9 * entries + 6 * borders + 5 * borders + 6 * entries + 2 * entries + borders
        piece = 7 * wide + 2 * (states - 1) * wide + segment * block
    else:
        # exponent, v b, what was before, scan, c h
        group = edge + 2 * entries + 2 * entries + 3 * borders + 2 * entries
        piece = 3 * wide + (states - 1) * wide
    groups = tiles(n, states)
    found = Work(piece + groups * group, groups * entries)
    return found.times(batch * tiles(length, segment) * tiles(channels, block))


def heads(
    batch: int, length: int, heads: int, size: int, n: int, *, piece: int, block: int, states: int, together: int = 0
) -> Work:
    """Heads with scalar decay, or with `together` heads in a program their adjoint, without resets."""
    square, wide, narrow, edge = piece * piece, piece * block, piece * states, block * states
    parts, sums = tiles(n, states), piece * (block - 1)
    factors = square + 2 * piece + 2 * (piece - 1)
    exponentials = square + 2 * piece + 1
    if not together:
        work = factors + square + 7 * wide + parts * (square + wide + 2 * edge)
        products = square * block + parts * (square * states + 2 * narrow * block)
        found = Work(work, exponentials, products)
    else:
        work = factors + 3 * wide + 2 * square + 3 * wide  # v and what is seen and driven; weights; gradient of v
        work += 2 * square + piece * (piece - 1) + wide + sums  # through
        work += piece * (piece - 1) + wide + sums + (piece - 1) + 2 * piece + block * (states - 1) + block  # exponent
        work += 2 * piece + wide + sums + 3 * wide  # gradients of delta and u
        work += piece + piece + wide + sums + piece  # of A and D
        work += parts * (square + 2 * wide + 4 * edge + 4 * narrow)
        products = 2 * square * block + parts * (3 * square * states + 5 * narrow * block)
        found = Work(work, exponentials, products)
    found = found.times(batch * tiles(length, piece) * heads * tiles(size, block))
    if together > 1:  # gradients of B and C are added to those of the head before
        added = 2 * narrow * parts * (together - 1) * (heads // together)
        found = found._replace(arithmetic=found.arithmetic + batch * tiles(length, piece) * tiles(size, block) * added)
    return found


def factor(batch: int, n: int, *, states: int, inputs: int) -> Work:
    """The factors of one Gramian of each system, in tiles of so many states and inputs."""
    entries, sums = states * inputs, states * (inputs - 1)
    start = 3 * entries + sums + states + states
    pivots = 3 * (states - 1) + 1  # three sums, one of them times a share
    turned = 0
    if inputs > 1:  # the row of the pivot, its reflection, and what that makes of all rows
        row = 2 * inputs * (states - 1) + 4 * inputs + 2 * inputs
        turned = row + 8 * inputs + inputs + 3 + 14 * entries + 2 * (sums + states)
    step = 2 * sums + 19 * states + 2 + 14 * states + 3 * entries + sums + 2 * states
    return Work(start + n * (pivots + turned + step)).times(batch)


def factor_adjoint(batch: int, n: int, m: int, *, states: int, inputs: int, discrete: bool) -> Work:
    """Its adjoint."""
    entries, sums, square = states * inputs, states * (inputs - 1), 6 * states * states + 2 * states * (states - 1)
    step = 3 * inputs + 2 * sums + square + 44 * states + 13 + 8 * states * discrete
    step += 16 * entries + 2 * (sums + states)
    return Work(n * step + m * (2 * sums + square)).times(batch)


def rotations(batch: int, n: int, rounds: int, *, states: int, vectors: bool) -> Work:
    """Singular values of a batch that takes so many rounds in all."""
    square, sums, pairs = states * states, states * (states - 1), states // 2
    reflection = 12 * square + 2 * (sums + states) + 2 * square + 2 * sums  # and its row of the triangle
    column = 3 * square + sums + 2 * sums + 2 * (states - 1) + 1 + 4 + 2 + 1 + 4 * states + 3 + 2
    columns = column + (2 if vectors else 1) * reflection
    entries, across = states * pairs, pairs * (states - 1)
    turn = 2 * (3 * entries + across + pairs) + 10 * entries + 2 * across  # lengths and cosines
    turn += (4 + 5 + 5 + 4 + 6) * pairs + 20 * entries * (2 if vectors else 1)
    return Work(batch * (n * columns + 3 * square + sums + states) + rounds * turn)
