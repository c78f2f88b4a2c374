"""What the ranks of test_sharded.py do."""

from __future__ import annotations

import warnings

import fsdp_cuts
import fsdp_layouts
import fsdp_twins
from forked import Scenarios
from selective_models import language_model
from sharded_models import warm_up


def main():
    warnings.simplefilter("ignore")
    for name in ("Mamba", "Mamba2"):
        language_model(name)  # imported before the fork
    warm_up()
    Scenarios(fsdp_twins.scenarios | fsdp_cuts.scenarios | fsdp_layouts.scenarios).main()


if __name__ == "__main__":
    main()
