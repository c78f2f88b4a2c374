"""The main job of the command line: train, shrink, compare, report."""
