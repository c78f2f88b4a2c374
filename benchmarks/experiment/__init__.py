"""Train, shrink, compare, report: ``python -m benchmarks.experiment``."""
