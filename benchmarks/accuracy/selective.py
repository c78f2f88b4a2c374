"""Output errors of reduced selective layers, and how well they were predicted, on synthetic layers like Mamba's.

    python -m benchmarks.accuracy.selective        # prints, and writes benchmarks/results/selective_accuracy.json

Layers are those of tests/reference_selective.py. Statistics come from one batch, errors from another: root mean square
of the change of the outputs over that of the outputs, all channels of a layer together. Three families:

- "per channel": every channel is projected by balanced truncation with bases of its own, what no real layer can hold;
- "common": all channels are projected by the same balanced bases, their decays becoming full matrices;
- "rotation", "selection", "folded selection": what the layer can hold.

Mean dynamics take ``E[exp(delta A)]``, ``E[delta B]``, ``E[C]``, as published for in-training compression.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks._common import parser, surroundings, write
from hankelred.selective import SelectiveStatistics, project, rotate, select, selection_report
from tests.reference_selective import (
    HeadsLayer,
    MambaLayer,
    balanced_bases,
    projected_outputs,
    states,
    steps_of_channel,
)

N, CHANNELS, MEASURED = 16, 16, range(0, 16, 2)
METHODS = ("mean", "second_moment", "exact", "covariance")


def mamba_errors(layer: MambaLayer, order: int, projected: bool) -> dict[str, float]:
    """The output error of every arm on fresh data."""
    seen, fresh = layer.data(seed=0), layer.data(seed=1)
    apart = SelectiveStatistics(N, CHANNELS, moments=True, exact=True)
    apart.update_mamba(*seen)
    pooled, errors = apart.pooled(), {}
    if projected:
        channels = [(k, *steps_of_channel(fresh, k)) for k in MEASURED]
        full = [np.sum(c * states(a, b), axis=2) for _, a, b, c in channels]
        power = sum(np.sum(y**2) for y in full)
        for family, statistics in (("per channel", apart), ("common", pooled)):
            for method in METHODS:
                P, Q = statistics.gramians(method)
                bases = [balanced_bases(p, q, order) for p, q in zip(P, Q, strict=True)]
                squares = 0.0
                for (k, a, b, c), y in zip(channels, full, strict=True):
                    squares += np.sum((y - projected_outputs(a, b, c, *bases[k % len(bases)])) ** 2)
                errors[f"{family}, {method}"] = float(np.sqrt(squares / power))
    for method in METHODS:
        rotation = rotate(pooled, layer.A, order, method=method)
        errors[f"rotation, {method}"] = rotation.mamba_error(*fresh)
    errors["neglected by rotation"] = rotation.neglected
    for fold in (False, True):
        selection = select(pooled, order, fold=fold)
        errors[selection.method] = selection.mamba_error(*fresh)
    return errors


def over_seeds(seeds: int, order: int, projected: bool, **kind: float) -> dict[str, Any]:
    """Root mean squares, medians and worst cases over layers."""
    rows = [mamba_errors(MambaLayer(N, CHANNELS, seed=seed, **kind), order, projected) for seed in range(seeds)]
    arms = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        with np.errstate(over="ignore"):
            rms = float(np.sqrt(np.mean(values**2)))
        arms[name] = {"rms": rms, "median": float(np.median(values)), "worst": float(values.max())}
    return {"order": order, **kind, "layers": seeds, "arms": arms}


def head_predictions(seeds: int, order: int, independent: bool) -> dict[str, Any]:
    """Measured over predicted mean squared errors of projections, on the data seen and on fresh data."""
    ratios = []
    for seed in range(seeds):
        layer = HeadsLayer(N, seed=seed)
        statistics = SelectiveStatistics(N)
        seen = layer.data(batch=32, independent=independent)
        statistics.update_heads(*seen)
        reduction = project(statistics, order)
        fresh = layer.data(batch=32, seed=1, independent=independent)
        ratios.append([(reduction.heads_error(*data) / reduction.predicted_error) ** 2 for data in (seen, fresh)])
    low, high = np.min(ratios, axis=0), np.max(ratios, axis=0)
    return {
        "order": order,
        "independent": independent,
        "layers": seeds,
        "seen": [float(low[0]), float(high[0])],
        "fresh": [float(low[1]), float(high[1])],
    }


def selection_gaps(seeds: int, order: int) -> dict[str, Any]:
    """By how much the search misses the best selection."""
    gaps = []
    for seed in range(seeds):
        layer = MambaLayer(N, CHANNELS, seed=seed)
        statistics = SelectiveStatistics(N)
        statistics.update_mamba(*layer.data())
        gaps.append(selection_report(statistics.output_form()[0], order).gap)
    return {"order": order, "layers": seeds, "mean": float(np.mean(gaps)), "worst": float(np.max(gaps))}


def main() -> None:
    options = parser(__doc__, "selective_accuracy.json")
    options.add_argument("--layers", type=int, default=8)
    arguments = options.parse_args()
    seeds = arguments.layers
    errors = [over_seeds(seeds, order, True, spectrum=s, spread=0.05) for order in (4, 8) for s in (1.0, 0.5, 0.0)]
    errors += [over_seeds(seeds, 4, False, spectrum=1.0, spread=spread) for spread in (0.0, 0.2, 0.5, 1.0)]
    for row in errors:
        print(f"{N} -> {row['order']} states, spectrum k^-{row['spectrum']}, spread of rates {row['spread']}")
        for name, found in row["arms"].items():
            print(f"  {name:>28}: rms {found['rms']:.3g}, median {found['median']:.3g}, worst {found['worst']:.3g}")
    heads = [head_predictions(seeds, order, independent) for order in (4, 8) for independent in (True, False)]
    for row in heads:
        kind = "independent" if row["independent"] else "made from the same inputs"
        seen, fresh = ("{:.2f} to {:.2f}".format(*row[name]) for name in ("seen", "fresh"))
        print(f"heads, {N} -> {row['order']}, B and C {kind}: measured/predicted {seen} seen, {fresh} fresh")
    gaps = [selection_gaps(4 * seeds, order) for order in (4, 6, 8)]
    for row in gaps:
        print(
            f"search, {N} -> {row['order']}: misses the best selection by {row['mean']:.2%}, worst {row['worst']:.1%}"
        )
    write(arguments.output, {**surroundings(), "mamba": errors, "heads": heads, "search": gaps})


if __name__ == "__main__":
    main()
