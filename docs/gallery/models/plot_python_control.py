"""
Reduce a model of python-control
================================

A rod is heated at one end, and its temperature is read in the middle. The model has 30 states, of which a controller
needs few.
"""

import control
import matplotlib.pyplot as plt
import numpy as np

import hankelred as hr
from hankelred.plotting import plot_error_bound, plot_frequency_error, plot_hsv, plot_step

n = 30
A = n**2 * (np.eye(n, k=1) - 2 * np.eye(n) + np.eye(n, k=-1))
rod = control.ss(A, n**2 * np.eye(n, 1), np.eye(n)[15:16], 0, inputs=["heat"], outputs=["middle"])

# %%
# The Hankel singular values say how small it may become: each order has a bound on the error at any frequency, and
# :func:`~hankelred.balance` knows all of them at once.

bal = hr.balance(rod)
for order in (2, 3, 4, 5):
    print(f"order {order}: no error above {bal.error_bound(order):.1e}")

# %%
# One tolerance decides. What comes back is a model of python-control again, with the names of its signals.

reduction = bal.reduce(max_error=1e-2)
print(reduction.summary())
print(f"measured: {reduction.hinf_error():.2e}")
print(type(reduction.system).__name__, reduction.system.input_labels, reduction.system.output_labels)

assert reduction.hinf_error() <= reduction.error_bound <= 1e-2
assert isinstance(reduction.system, control.StateSpace)

# %%
# Values and cut, bounds and measured errors, the error over frequency, and the step responses.

figure, axes = plt.subplots(2, 2, figsize=(10, 7.5), layout="constrained")
plot_hsv(reduction, ax=axes[0, 0])
plot_error_bound(bal, [bal.reduce(order=order) for order in (1, 2, 3, 4, 5)], ax=axes[0, 1])
plot_frequency_error(rod, reduction, ax=axes[1, 0])
_ = plot_step(rod, reduction, ax=axes[1, 1])
