"""
A smaller controller, judged in its loop
========================================

The LQG controller of a structure has as many states as the structure. What counts of a smaller one is not how well it
approximates the large one, but what the loop with it does.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy import linalg

import hankelred as hr
from hankelred.feedback import reduce_controller
from hankelred.plotting import plot_bode, plot_poles, plot_step

# %%
# Twelve modes with half a per cent of damping, a force at one place and the velocity there, and an LQG controller
# for them.

rng = np.random.default_rng(0)
frequencies = np.sort(rng.uniform(1.0, 12.0, 12))
A = linalg.block_diag(*[[[0.0, 1.0], [-(w**2), -0.01 * w]] for w in frequencies])
B = np.zeros((24, 1))
B[1::2, 0] = rng.uniform(0.3, 1.0, 12) / np.arange(1, 13)
structure = hr.StateSpace(A, B, B.T, inputs=["force"], outputs=["velocity"])
gain = B.T @ linalg.solve_continuous_are(A, B, 4.0 * B @ B.T, np.eye(1))
filtered = linalg.solve_continuous_are(A.T, B, 4.0 * B @ B.T, np.eye(1)) @ B
controller = hr.StateSpace(A - B @ gain - filtered @ B.T, filtered, gain)  # u = -K y


def closed(K):
    """Return the loop from a force at the structure to its velocity."""
    corner = np.block([[A, -B @ K.C], [K.B @ B.T, K.A]])
    return hr.StateSpace(corner, np.vstack([B, 0 * K.B]), np.hstack([B.T, 0 * K.C]))


# %%
# :func:`~hankelred.feedback.reduce_controller` closes the loop with every result and refuses one that is not
# stable. A nu-gap below the margin says the same in advance.

models = {order: reduce_controller(structure, controller, order=order) for order in (16, 12, 8, 6, 4)}
for order, found in models.items():
    print(f"order {order:2}: nu-gap {found.nu_gap:.3f}, margin {found.margin:.3f}, change {found.loop_change:.3f}")

assert models[8].nu_gap < models[8].margin

# %%
# With eight states: the controllers differ, the loops hardly do.

small = models[8].system
given, reduced = closed(controller), closed(small)

figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
plot_bode(controller, small, omega=np.geomspace(0.3, 30.0, 600), ax=axes[0, 0]).set_title("controllers")
plot_bode(given, reduced, omega=np.geomspace(0.3, 30.0, 600), ax=axes[0, 1]).set_title("closed loops")
plot_step(given, reduced, horizon=40.0, ax=axes[1, 0]).set_title("closed loops, step of the force")
_ = plot_poles(given, reduced, ax=axes[1, 1]).set_title("closed loops")

assert reduced.is_stable()
