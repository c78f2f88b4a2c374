"""How often the core is wrong about families of systems that engineers have, by the exact judge of the tests.

    python -m benchmarks.accuracy.families [--seeds 4] [--only rc_ladder ...]

A line per family: systems judged and refused, hsv off by more than the stated floor and 1e-12 of the first, and of
all reductions, truncated and matched at dc: true errors over their bounds, measured errors off by 1 % and rounding,
bounds over 100 true errors and a thousandth of the peak gain. Prints only; the claims are tests/test_truth.py.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))  # the judge lives with the tests

import families
import many_digits
import truth

import hankelred as hr


def hsv_are_wrong(case: families.Case, system: hr.StateSpace | hr.DiagonalSystem) -> bool:
    """Compare with the exact ones; a stable system that is called marginal is wrong too."""
    if case.marginal:
        return bool(hr.balance(system).unstable != case.marginal)
    balancing = hr.balance(system, offset=0)
    right = many_digits.hsv(many_digits.matrices(system))
    return not np.abs(balancing.hsv - right).max() <= max(balancing.floor, 1e-12 * right[0])


def line(kind: str, seeds: int) -> tuple[str, list[str]]:
    """Judge the systems of a kind; return a line of the table and the first lines of the refusals."""
    family, make = truth.KINDS[kind]
    start, wrong, found, refused = time.perf_counter(), 0, [], []
    for seed in range(seeds):
        case = families.FAMILIES[family](seed)
        try:
            wrong += hsv_are_wrong(case, make(case))
            for match_dc in (False, True):
                found += truth.judged(kind, seed, match_dc)
        except Exception as error:
            refused.append(f"{case.name}: {type(error).__name__}: {str(error)[:100]}")
    counts = [sum(getattr(v, name) for v in found) for name in ("exceeded", "mismeasured", "useless")]
    return (
        f"{kind:32s}{seeds:8d}{len(refused):8d}{wrong:10d}{len(found):12d}{counts[0]:10d}{counts[1]:12d}{counts[2]:9d}"
        f"{time.perf_counter() - start:8.1f}",
        refused,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--only", nargs="*", default=list(truth.KINDS), choices=list(truth.KINDS))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{'family':32s}{'systems':>8s}{'refused':>8s}{'hsv wrong':>10s}{'reductions':>12s}", end="")
    print(f"{'exceeded':>10s}{'mismeasured':>12s}{'useless':>9s}{'seconds':>8s}")
    refusals = []
    for kind in arguments.only:
        text, refused = line(kind, arguments.seeds)
        refusals += refused
        print(text, flush=True)
    print(*refusals, sep="\n")


if __name__ == "__main__":
    main()
