"""Weyl's inequality for Hankel operators on thousands of generated pairs, and how tight its bounds are.

    python -m benchmarks.studies.weyl             # prints, and writes benchmarks/results/weyl.json
    python -m benchmarks.studies.weyl --pairs 50 --output /tmp/quick.json

Pairs are drawn by `hankelred.testing.system_pairs`: dense and diagonal systems (complex and real output), half of them
independent and of any two orders up to 6, half of them one system before and after a small step of B and C. The same
pairs are drawn every time. The ratio is the largest drift of a value over the bound; the bounds are the Hankel norm of
the difference, the bound in fixed coordinates (equal orders only), and the smaller of the two. Drifts below a thousand
rounding floors say nothing about a bound and are left out of the ratios, not of the count of violations.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings

from benchmarks._common import parser, surroundings, write
from hankelred.drift import drift_bound
from hankelred.testing import system_pairs

KINDS = {
    f"{time}, {numbers}": {"dt": dt, "complex_data": complex_data}
    for (time, dt), (numbers, complex_data) in product(
        [("continuous", 0), ("discrete", (0.1, True))], [("real", False), ("complex", True)]
    )
}


def measure(pairs: int, **options: Any) -> list[dict[str, Any]]:
    """Compare so many pairs of one kind."""
    rows: list[dict[str, Any]] = []

    @settings(
        max_examples=pairs,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(system_pairs(max_states=6, **options))
    def run(pair: tuple[Any, Any]) -> None:
        found = drift_bound(*pair)
        drift, orders = found.drift.max(initial=0.0), [getattr(system, "order", system.n) for system in pair]
        rows.append(
            {
                "violated": bool(drift > found.hankel_norm + found.floor),
                "violated_smaller": bool(drift > found.bound),
                "outside": bool(np.any((found.hsv_after < found.lower) | (found.hsv_after > found.upper))),
                "orders_differ": orders[0] != orders[1],
                "hankel": drift / found.hankel_norm if drift > 1e3 * found.floor else None,
                "fixed": drift / found.fixed_coordinates
                if drift > 1e3 * found.floor and found.fixed_coordinates
                else None,
                "smaller": drift / found.bound if drift > 1e3 * found.floor else None,
                "fixed_is_smaller": None
                if found.fixed_coordinates is None
                else bool(found.fixed_coordinates < found.hankel_norm),
            }
        )

    run()
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Count violations and give quantiles of the ratios."""
    compared = [row["fixed_is_smaller"] for row in rows if row["hankel"] and row["fixed_is_smaller"] is not None]
    found: dict[str, Any] = {
        "pairs": len(rows),
        "orders_differ": sum(row["orders_differ"] for row in rows),
        "violations_of_the_hankel_norm": sum(row["violated"] for row in rows),
        "violations_of_the_smaller_bound": sum(row["violated_smaller"] for row in rows),
        "values_outside_their_interval": sum(row["outside"] for row in rows),
        "fixed_coordinates_smaller": f"{sum(compared)} of {len(compared)}",
    }
    for name in ("hankel", "fixed", "smaller"):
        ratios = [row[name] for row in rows if row[name] is not None]
        if ratios:
            quantiles = np.quantile(ratios, [0.1, 0.5, 0.9, 1.0])
            found[f"ratio_{name}"] = dict(
                zip(["10 %", "median", "90 %", "largest"], map(float, quantiles), strict=True)
            )
    return found


def main() -> None:
    """Draw, compare, print and write."""
    options = parser(__doc__, "weyl.json")
    options.add_argument("--pairs", type=int, default=1000, help="pairs of each of the four kinds")
    arguments = options.parse_args()
    rows = {kind: measure(arguments.pairs, **options) for kind, options in KINDS.items()}
    everything = [row for kind in rows.values() for row in kind]
    report = {kind: summary(found) for kind, found in rows.items()} | {"all": summary(everything)}
    for kind, found in report.items():
        print(f"{kind}: {found['pairs']} pairs, {found['orders_differ']} of different orders")
        print(
            f"  violations: {found['violations_of_the_hankel_norm']} of the Hankel norm, "
            f"{found['violations_of_the_smaller_bound']} of the smaller bound, "
            f"{found['values_outside_their_interval']} pairs with a value outside its interval"
        )
        for name in ("hankel", "fixed", "smaller"):
            if f"ratio_{name}" in found:
                figures = ", ".join(f"{key} {value:.3f}" for key, value in found[f"ratio_{name}"].items())
                print(f"  drift / bound ({name}): {figures}")
        print(f"  fixed coordinates give the smaller bound in {found['fixed_coordinates_smaller']}")
    write(arguments.output, {**surroundings(), "results": report})


if __name__ == "__main__":
    main()
