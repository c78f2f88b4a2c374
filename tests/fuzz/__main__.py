"""Run inputs of the fuzz again, with their tracebacks: ``PYTHONPATH=tests python -m fuzz ROOM SEED [SEED]``."""

from __future__ import annotations

import sys
from collections import Counter

from fuzz import engine

room, *seeds = sys.argv[1:]
if len(seeds) == 1:
    print(engine.run(room, int(seeds[0])))
else:
    outcomes = [engine.run(room, seed) for seed in range(int(seeds[0]), int(seeds[1]))]
    print(engine.table(outcomes))
    print(Counter(outcome.kind for outcome in outcomes))
