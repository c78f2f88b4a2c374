"""Run inputs of the fuzz again: ``PYTHONPATH=tests python -m fuzz ROOM SEED``, or ``ROOM FIRST LAST``."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter

from fuzz.engine import run, table

room, *seeds = sys.argv[1:]
os.chdir(tempfile.mkdtemp())  # a path such as "text" names nothing there
if len(seeds) == 1:
    print(run(room, int(seeds[0]), show=True))
else:
    outcomes = [run(room, seed) for seed in range(int(seeds[0]), int(seeds[1]))]
    print(table(outcomes))
    print(dict(Counter(outcome.kind for outcome in outcomes)))
