"""What the Triton kernels move and calculate, on paper: bytes, instructions, and the bandwidth they can reach at most.

    python -m benchmarks.speed.traffic      # the tables of docs/theory/recurrences.md

Bytes are those of distinct addresses, each read and written once; tests compare them with what Triton's interpreter
loads and stores, and the tables with that page. Instructions of recurrences are counted in the PTX that Triton 3.9
makes of the float32 kernels for a H100, because scans over lanes take more of them than `work` says of scans one step
after the other; those of the others are `work`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.speed import work


class Card(NamedTuple):
    """Bytes a second, lanes of one kind of instruction a second, and multiply-adds of TF32 in tensor cores a second.

    Makers' figures at boost clock, without sparsity; the clock is in cycles a second.
    """

    name: str
    bandwidth: float
    clock: float
    arithmetic: float
    double: float
    special: float
    exchange: float
    issue: float
    tensor: float

    @classmethod
    def of(
        cls, name: str, bandwidth: float, processors: int, clock: float, arithmetic: int, double: int, tensor: float
    ) -> Card:
        lanes = processors * clock
        rates = (arithmetic * lanes, double * lanes, 16 * lanes, 32 * lanes, 128 * lanes)
        return cls(name, bandwidth, clock, *rates, tensor)


CARDS = [
    Card.of("A100", 2.04e12, 108, 1.41e9, 64, 32, 78e12),
    Card.of("H100", 3.35e12, 132, 1.76e9, 128, 64, 247e12),
    Card.of("H200", 4.80e12, 132, 1.76e9, 128, 64, 247e12),
    Card.of("RTX 4090", 1.01e12, 128, 2.52e9, 128, 2, 41e12),
]

# Cycles for a pivot, a reflection or a round of rotations, whose steps wait for each other: a guess.
LINK = 1500


class Traffic(NamedTuple):
    """Bytes loaded and stored by a kernel."""

    loaded: int
    stored: int

    @property
    def total(self) -> int:
        return self.loaded + self.stored


def linear(rows: int, steps: int, n: int, *, varies: bool, width: int, chunks: int) -> Traffic:
    """The linear recurrence, factors for all rows or of every step and row; `width` is that of a number in bytes.

    Inputs and factors are read once here: the second time they are in the cache.
    """
    states = rows * steps * n
    factors = states if varies else n + (chunks + 2) * n
    return Traffic((states + factors + rows * n) * width, states * width)


def linear_adjoint(rows: int, steps: int, n: int, *, varies: bool, width: int, chunks: int, parts: int = 1) -> Traffic:
    """Its adjoint; sums over time are double in each of the parts of a number, one if it is real and two if complex."""
    states, shifted = rows * steps * n, rows * (steps - 1) * n
    factors = shifted if varies else n + (chunks + 2) * n
    found = states * width if varies else rows * n * 8 * parts
    return Traffic((states + shifted + factors + rows * n) * width, states * width + found)


def selective(batch: int, length: int, channels: int, n: int, *, width: int, segment: int) -> Traffic:
    """The selective scan."""
    entries, kept = batch * length * channels, batch * -(-length // segment) * channels * n
    shared = 2 * batch * length * n + channels * n + channels
    return Traffic((2 * entries + shared + kept) * width, (entries + kept) * width)


def selective_adjoint(
    batch: int, length: int, channels: int, n: int, *, width: int, segment: int, block: int
) -> Traffic:
    """Its adjoint, with gradients of B and C from each block of channels."""
    entries, kept = batch * length * channels, batch * -(-length // segment) * channels * n
    shared, edges = 2 * batch * length * n, batch * channels * n
    loaded = (3 * entries + shared + channels * n + channels + kept + edges) * width + 8 * edges
    blocks = -(-channels // block)
    stored = (2 * entries + blocks * shared + edges) * width + 8 * edges + 8 * batch * channels
    return Traffic(loaded, stored)


def heads(batch: int, length: int, heads: int, size: int, groups: int, n: int, *, width: int, piece: int) -> Traffic:
    """Heads with scalar decay; states at the edges of pieces are written, and read from the cache but for the first."""
    entries, shared = batch * length * heads * size, batch * length * groups * n * 2
    edge, pieces = batch * heads * size * n, -(-length // piece)
    loaded = entries + batch * length * heads + shared + 2 * heads + pieces * edge
    return Traffic(loaded * width, (entries + pieces * edge) * width)


def heads_adjoint(
    batch: int,
    length: int,
    heads: int,
    size: int,
    groups: int,
    n: int,
    *,
    width: int,
    piece: int,
    block: int,
    together: int,
) -> Traffic:
    """Its adjoint, with gradients of B and C from each block of channels and `together` heads."""
    entries, steps, shared = batch * length * heads * size, batch * length * heads, batch * length * groups * n * 2
    edge, pieces, blocks = batch * heads * size * n, -(-length // piece), -(-size // block)
    partial = blocks * batch * length * (heads // together) * n * 2
    loaded = 2 * entries + steps + shared + 2 * heads + (pieces + 1) * edge + partial * (together > 1)
    stored = entries + blocks * steps + edge + partial
    return Traffic(loaded * width, stored * width + 2 * 8 * blocks * batch * heads)


def factor(batch: int, n: int, m: int, *, width: int) -> Traffic:
    """The factors of one Gramian of each system, with tables of differences of poles; real parts are double."""
    read = n * n + n * m + 2 * n  # differences, B, and two numbers for every pole
    found = n * n + n * m  # columns and reflections
    return Traffic(batch * (read * width + 9 * n), batch * (found * width + 16 * n))


def factor_adjoint(batch: int, n: int, m: int, *, width: int) -> Traffic:
    """Its adjoint."""
    read = 3 * n * n + n * m + 3 * n  # denominators, columns and their gradients, reflections, poles
    return Traffic(batch * (read * width + 24 * n), batch * (n + n * m) * width)


def rotations(batch: int, n: int, *, width: int, vectors: bool) -> Traffic:
    """Singular values; columns are written once and turned in the cache."""
    columns = batch * n * n * width * (2 if vectors else 1)
    return Traffic(batch * n * n * width + columns, columns + 8 * batch * n)


# Sums, products and choices, exponentials, shuffles and accesses to shared memory, for a state at a step: what
# `python -m benchmarks.speed.compiled` counts in loops, over the steps that a lane takes in one of them.
INSTRUCTIONS: dict[str, tuple[float, float, float]] = {
    "planar recurrence": (19.6, 0.0, 3.9),
    "its adjoint": (29.6, 0.0, 3.9),
    "varying, real": (4.4, 0.0, 1.6),
    "varying, real, adjoint": (7.4, 0.0, 1.6),
    "selective scan": (4.1, 1.0, 0.0),
    "selective scan, adjoint": (17.3, 1.0, 2.0),
}

# The same of what is around the loop over states, for a channel at a step, in each of the warps that share the states.
AROUND = {"selective scan": (2.5, 0.0, 3.9), "selective scan, adjoint": (5.5, 0.0, 7.9)}
WARPS = 4


def seconds(card: Card, kernel: str, states: int, n: int) -> float:
    """The time that instructions take at least: each kind has lanes of its own, and all are issued one by one."""
    around = (WARPS / n * x for x in AROUND.get(kernel, (0.0, 0.0, 0.0)))
    arithmetic, special, exchange = (x + y for x, y in zip(INSTRUCTIONS[kernel], around, strict=True))
    each = (arithmetic / card.arithmetic, special / card.special, exchange / card.exchange)
    return states * max(*each, (arithmetic + special + exchange) / card.issue)


def head_seconds(card: Card, found: work.Work) -> float:
    """The same of heads: three products in TF32 make one, beside sums, products and exponentials in float32."""
    return max(3 * found.products / card.tensor, found.arithmetic / card.arithmetic, found.exponentials / card.special)


def gramian_seconds(card: Card, found: work.Work, links: int) -> float:
    """The same of Gramians, in double precision, all systems side by side, and no less than one chain of links."""
    return max(found.arithmetic / card.double, links * LINK / card.clock)


def share(card: Card, traffic: Traffic, least: float) -> float:
    """The share of bandwidth that is reached at most by a kernel that takes so many seconds at least."""
    memory = traffic.total / card.bandwidth
    return memory / max(memory, least)


def cases() -> Iterator[tuple[str, int, int, Traffic]]:
    """Yield recurrences at the sizes of a training, with states times steps, states and traffic, in float32."""
    planar = {"rows": 16, "steps": 4096, "n": 256}
    real = {"rows": 16, "steps": 4096, "n": 1024}
    there = linear(**planar, varies=False, width=8, chunks=8)
    yield "planar recurrence", 16 * 4096 * 256, 256, there
    back = linear_adjoint(**planar, varies=False, width=8, chunks=8, parts=2)
    yield "its adjoint", 16 * 4096 * 256, 256, back
    yield "varying, real", 16 * 4096 * 1024, 1024, linear(**real, varies=True, width=4, chunks=8)
    back = linear_adjoint(**real, varies=True, width=4, chunks=8)
    yield "varying, real, adjoint", 16 * 4096 * 1024, 1024, back
    for n in (12, 16, 24):
        size = {"batch": 16, "length": 2048, "channels": 1536, "n": n, "width": 4, "segment": 16}
        states = 16 * 2048 * 1536 * n
        yield f"selective scan, {n} states", states, n, selective(**size)
        yield f"selective scan, adjoint, {n} states", states, n, selective_adjoint(**size, block=32)


def head_cases() -> Iterator[tuple[str, work.Work, Traffic]]:
    """Yield heads at the sizes of a training, with work and traffic."""
    size = {"batch": 16, "length": 2048, "heads": 24, "size": 64, "piece": 32}
    for n in (64, 96, 128):
        together = next(k for k in (1, 2, 3, 4, 6) if k * 64 >= 2 * n)
        kept, blocks = size | {"n": n}, {"block": 64, "states": 16}
        there, back = work.heads(**kept, **blocks), work.heads(**kept, **blocks, together=together)
        yield f"heads, {n} states", there, heads(**kept, groups=1, width=4)
        moved = heads_adjoint(**kept, groups=1, width=4, block=64, together=together)
        yield f"heads, adjoint, {n} states", back, moved


def gramian_cases(batch: int = 1536, n: int = 16) -> Iterator[tuple[str, work.Work, int, Traffic]]:
    """Yield kernels of real systems with one input, with work, links of their chain, and traffic."""
    tiles = {"states": 16, "inputs": 1}
    yield "factor", work.factor(batch, n, **tiles), n, factor(batch, n, 1, width=8)
    back = work.factor_adjoint(batch, n, 1, **tiles, discrete=True)
    yield "factor, adjoint", back, n, factor_adjoint(batch, n, 1, width=8)
    rounds = 5 * (n - 1)  # sweeps, as the interpreter counts them
    for name, vectors in (("values", False), ("values and vectors", True)):
        found = work.rotations(batch, n, batch * rounds, states=16, vectors=vectors)
        yield name, found, n + rounds, rotations(batch, n, width=8, vectors=vectors)


def fusion(card: Card, channels: int, n: int) -> tuple[float, float]:
    """Least seconds of a step forward and back through n planar states, products apart from the scan and joined to it.

    Joined, states are computed again on the way back and never stored; all arithmetic is then in one kernel. Apart,
    every kernel takes the longer of its arithmetic and its memory. Products are those of float32.
    """
    product = 2 * n * channels / card.arithmetic
    there, back = (INSTRUCTIONS[name][0] * n / card.arithmetic for name in ("planar recurrence", "its adjoint"))
    moved = 4 / card.bandwidth
    apart = 6 * max(product, (2 * n + channels) * moved) + max(there, 4 * n * moved) + max(back, 6 * n * moved)
    joined = max(2 * product + there, 2 * channels * moved) + max(5 * product + there + back, 3 * channels * moved)
    return apart, joined


def tables() -> Iterator[list[str]]:
    """Yield the tables of docs/theory/recurrences.md, line by line."""

    def row(*cells: str) -> str:
        return f"| {' | '.join(cells)} |"

    def shares(moved: Traffic, least: list[float]) -> list[str]:
        return [f"{100 * share(card, moved, time):.0f} %" for card, time in zip(CARDS, least, strict=True)]

    names = [card.name for card in CARDS]
    lines = [row("kernel", "bytes a state and step", *names)]
    for name, states, n, moved in cases():
        kernel = name.removesuffix(" states").rstrip("0123456789").removesuffix(", ")
        least = [seconds(card, kernel, states, n) for card in CARDS]
        lines.append(row(name, f"{moved.total / states:.1f}", *shares(moved, least)))
    yield lines
    lines = [row("kernel", "multiply-adds, in TF32", *names)]
    for name, found, moved in head_cases():
        least = [head_seconds(card, found) for card in CARDS]
        lines.append(row(name, f"{3 * found.products / 1e9:.0f} G", *shares(moved, least)))
    yield lines
    lines = [row("kernel", "sums and products", *names)]
    for name, found, links, moved in gramian_cases():
        least = [gramian_seconds(card, found, links) for card in CARDS]
        lines.append(row(name, f"{found.arithmetic / 1e6:.0f} M", *shares(moved, least)))
    yield lines
    lines = [row("channels", *names)]
    for channels in (16, 64, 256):
        gains = (apart / joined for apart, joined in (fusion(card, channels, 256) for card in CARDS))
        lines.append(row(str(channels), *(f"{gain:.2f}" for gain in gains)))
    yield lines


def main() -> None:
    for lines in tables():
        print(lines[0], "|---" * lines[0].count(" | ") + "|---|", *lines[1:], sep="\n", end="\n\n")


if __name__ == "__main__":
    main()
