"""The claims of arXiv 2510.02823 on its tasks: every way to end with a small model, on every task, by one protocol."""
