"""
A free structure with its rigid-body modes
==========================================

A chain of forty masses that is fixed nowhere can move as a whole: two poles lie at zero, and no Gramian exists. They
are put aside and kept, and the rest is reduced.
"""

import matplotlib.pyplot as plt
import numpy as np

import hankelred as hr
from hankelred.plotting import plot_bode, plot_hsv, plot_poles

masses = 40
K = 400.0 * (2 * np.eye(masses) - np.eye(masses, k=1) - np.eye(masses, k=-1))
K[0, 0] = K[-1, -1] = 400.0  # nothing holds the ends
damping = 2e-4 * K
zero, one = np.zeros((masses, masses)), np.eye(masses)
A = np.block([[zero, one], [-K, -damping]])
B = np.eye(2 * masses)[:, [masses]]  # a force on the first mass
C = np.eye(2 * masses)[[0, masses - 1]]  # the places of the first and the last
structure = hr.StateSpace(A, B, C, inputs=["force"], outputs=["first", "last"])

# %%
# Computed poles at zero are never exactly there. What counts is their own rounding error: nothing was told to
# :func:`~hankelred.balance` about this structure, and it finds both.

bal = hr.balance(structure)
slowest = np.sort(np.abs(structure.poles()))[:4]
print("poles next to zero:", ", ".join(f"{size:.1e}" for size in slowest))
print(f"{bal.unstable} kept; hsv {np.array2string(bal.hsv[:5], precision=4)}")

assert bal.unstable == 2

# %%
# Orders count them. The error is measured against the structure that was given; rigid-body motion cancels in it.

reduction = bal.reduce(order=14)
print(reduction.summary())
print(f"measured: {reduction.hinf_error():.3e}")

assert reduction.hinf_error() <= reduction.error_bound
assert np.sum(np.abs(reduction.system.poles()) < 1e-6) == 2

# %%

figure, axes = plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
plot_hsv(reduction, ax=axes[0])
plot_poles(structure, reduction, ax=axes[1])
_ = plot_bode(structure, reduction, omega=np.geomspace(0.1, 60.0, 600), ax=axes[2])
