"""What the Triton kernels move and calculate, on paper: bytes, instructions, and the bandwidth they can reach at most.

    python -m benchmarks.speed.traffic      # the table of docs/theory/recurrences.md

Bytes are those of distinct addresses, each read and written once; tests compare them with what Triton's interpreter
loads and stores. Instructions are counted in the PTX that Triton 3.9 makes of the float32 kernels for a H100.
"""

from __future__ import annotations

from typing import NamedTuple


class Card(NamedTuple):
    """Bytes a second, lanes of one kind of instruction a second, and multiply-adds of TF32 in tensor cores a second.

    Makers' figures at boost clock, without sparsity.
    """

    name: str
    bandwidth: float
    arithmetic: float
    special: float
    exchange: float
    issue: float
    tensor: float

    @classmethod
    def of(cls, name: str, bandwidth: float, processors: int, clock: float, arithmetic: int, tensor: float) -> Card:
        lanes = processors * clock
        return cls(name, bandwidth, arithmetic * lanes, 16 * lanes, 32 * lanes, 128 * lanes, tensor)


CARDS = [
    Card.of("A100", 2.04e12, 108, 1.41e9, 64, 78e12),
    Card.of("H100", 3.35e12, 132, 1.76e9, 128, 247e12),
    Card.of("H200", 4.80e12, 132, 1.76e9, 128, 247e12),
    Card.of("RTX 4090", 1.01e12, 128, 2.52e9, 128, 41e12),
]


class Traffic(NamedTuple):
    """Bytes loaded and stored by a kernel."""

    loaded: int
    stored: int

    @property
    def total(self) -> int:
        return self.loaded + self.stored


def linear(rows: int, steps: int, n: int, *, varies: bool, width: int, tile: int) -> Traffic:
    """The linear recurrence, factors for all rows or of every step and row; `width` is that of a number in bytes."""
    states = rows * steps * n
    factors = states if varies else n + tile * n
    return Traffic((states + factors + rows * n) * width, states * width)


def linear_adjoint(rows: int, steps: int, n: int, *, varies: bool, width: int, tile: int, parts: int = 1) -> Traffic:
    """Its adjoint; sums over time are double in each of the parts of a number, one if it is real and two if complex."""
    states, shifted = rows * steps * n, rows * (steps - 1) * n
    factors = shifted if varies else n * (steps > 1) + tile * n
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


# Multiplications and additions, exponentials, shuffles and accesses to shared memory, for a state at a step: what
# `python -m benchmarks.speed.compiled` counts over the elements that a lane holds of a tile (4, 8 and 16).
INSTRUCTIONS: dict[str, tuple[float, float, float]] = {
    "planar recurrence": (61.0, 0.0, 34.5),
    "its adjoint": (68.5, 0.0, 40.0),
    "varying, real": (15.5, 0.0, 17.8),
    "varying, real, adjoint": (16.5, 0.0, 18.0),
    "selective scan": (8.1, 1.0, 0.0),
    "selective scan, adjoint": (36.9, 3.0, 14.5),
}


def seconds(card: Card, kernel: str, states: int) -> float:
    """The time that instructions take at least: each kind has lanes of its own, and all are issued one by one."""
    arithmetic, special, exchange = INSTRUCTIONS[kernel]
    each = (arithmetic / card.arithmetic, special / card.special, exchange / card.exchange)
    return states * max(*each, (arithmetic + special + exchange) / card.issue)


def share(card: Card, kernel: str, states: int, traffic: Traffic) -> float:
    """The share of bandwidth that is reached at most."""
    memory = traffic.total / card.bandwidth
    return memory / max(memory, seconds(card, kernel, states))


def cases() -> list[tuple[str, int, Traffic]]:
    """Kernels at the sizes of a training, with states times steps and traffic, in float32."""
    planar = {"rows": 16, "steps": 4096, "n": 256}
    real = {"rows": 16, "steps": 4096, "n": 1024}
    found = [
        ("planar recurrence", 16 * 4096 * 256, linear(**planar, varies=False, width=8, tile=32)),
        ("its adjoint", 16 * 4096 * 256, linear_adjoint(**planar, varies=False, width=8, tile=32, parts=2)),
        ("varying, real", 16 * 4096 * 1024, linear(**real, varies=True, width=4, tile=32)),
        ("varying, real, adjoint", 16 * 4096 * 1024, linear_adjoint(**real, varies=True, width=4, tile=32)),
    ]
    for n in (12, 16, 24):
        size = {"batch": 16, "length": 2048, "channels": 1536, "n": n, "width": 4, "segment": 16}
        states = 16 * 2048 * 1536 * n
        found.append(("selective scan", states, selective(**size)))
        found.append(("selective scan, adjoint", states, selective_adjoint(**size, block=32)))
    return found


def head_products(size: int, n: int, piece: int, adjoint: bool) -> int:
    """Multiply-adds of the products of one head at one step, as the kernels make them."""
    if adjoint:
        return 3 * piece * n + 2 * piece * size + 5 * size * n
    return piece * n + piece * size + 2 * size * n


def head_cases() -> list[tuple[str, int, Traffic]]:
    """Kernels of heads at the sizes of a training, with multiply-adds and traffic; three products of TF32 make one."""
    found, size = [], {"batch": 16, "length": 2048, "heads": 24, "size": 64, "groups": 1, "width": 4, "piece": 32}
    steps = 16 * 2048 * 24
    for n in (64, 96, 128):
        together = next(k for k in (1, 2, 3, 4, 6) if k * 64 >= 2 * n)
        there, back = heads(**size, n=n), heads_adjoint(**size, n=n, block=64, together=together)
        found.append((f"heads, {n} states", 3 * steps * head_products(64, n, 32, False), there))
        found.append((f"heads, adjoint, {n} states", 3 * steps * head_products(64, n, 32, True), back))
    return found


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


def main() -> None:
    print("| kernel | states x steps | GB | bytes a state and step | " + " | ".join(c.name for c in CARDS) + " |")
    print("|---" * (4 + len(CARDS)) + "|")
    for kernel, states, traffic in cases():
        shares = " | ".join(f"{share(card, kernel, states, traffic):.0%}" for card in CARDS)
        size = f"{states / 1e6:.0f} M | {traffic.total / 1e9:.2f} | {traffic.total / states:.1f}"
        print(f"| {kernel} | {size} | {shares} |")
    print("\n| kernel | multiply-adds | GB | " + " | ".join(card.name for card in CARDS) + " |")
    print("|---" * (3 + len(CARDS)) + "|")
    for kernel, products, traffic in head_cases():
        memory = [traffic.total / card.bandwidth for card in CARDS]
        shares = " | ".join(f"{m / max(m, products / c.tensor):.0%}" for m, c in zip(memory, CARDS, strict=True))
        print(f"| {kernel} | {products / 1e9:.0f} G | {traffic.total / 1e9:.2f} | {shares} |")
    print("\n| channels, planar states | " + " | ".join(card.name for card in CARDS) + " |")
    print("|---" * (1 + len(CARDS)) + "|")
    for channels in (8, 16, 64, 256):
        gains = " | ".join(f"{apart / joined:.2f}" for apart, joined in (fusion(c, channels, 256) for c in CARDS))
        print(f"| {channels}, 256 | {gains} |")


if __name__ == "__main__":
    main()
