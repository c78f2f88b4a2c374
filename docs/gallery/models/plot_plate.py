"""
A heat plate of 100,000 states
==============================

Finite elements and finite volumes give sparse matrices. They go in as they are, and nothing of their size squared is
ever formed.
"""

import matplotlib.pyplot as plt
import numpy as np
import scipy.sparse as sp

import hankelred as hr
from hankelred.plotting import DROPPED, ERROR, KEPT, plot_hsv

# %%
# Temperatures on a grid of 316 by 316 cells, edges kept at zero. One patch is heated, and the mean temperature of
# another is read.

side = 316
line = sp.diags_array([1.0, -2.0, 1.0], offsets=[-1, 0, 1], shape=(side, side)) * (side + 1.0) ** 2
A = sp.csc_array(sp.kron(line, sp.eye_array(side)) + sp.kron(sp.eye_array(side), line))


def patch(x, y, width=0.1):
    """Return the share of each cell in the mean over a square patch."""
    grid = (np.arange(side) + 1.0) / (side + 1.0)
    inside = np.outer(np.abs(grid - x) < width, np.abs(grid - y) < width).ravel()
    return inside / inside.sum()


heater, sensor = patch(0.3, 0.4), patch(0.6, 0.7)
plate = hr.StateSpace(A, sp.csc_array(1e4 * heater[:, None]), sp.csc_array(sensor[None]), inputs=["heat"])
print(plate)

# %%
# Values down to a floor, which is stated; fewer than there are states, because the others are below it.

bal = hr.balance(plate)
small = bal.reduce(rtol=1e-4)
print(small.summary())
print(f"{bal.rank} values above the floor of {bal.floor:.1e}")

assert small.system.n < 20

# %%
# The bound holds at all frequencies; here a few are looked at, each of which costs a factorisation of the plate.

omega = np.geomspace(1.0, 1e4, 5)
full = plate.frequency_response(omega)[:, 0, 0]
error = np.abs(full - small.system.frequency_response(omega)[:, 0, 0])
print(f"largest error at {len(omega)} frequencies: {error.max():.1e}, bound {small.error_bound:.1e}")

assert error.max() <= small.error_bound

# %%

figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
axes[0].imshow((heater - sensor).reshape(side, side).T, origin="lower", extent=(0, 1, 0, 1), cmap="RdBu_r")
axes[0].set(title="heated (red) and read (blue)", xlabel="x", ylabel="y")
plot_hsv(small, ax=axes[1])
fine = np.geomspace(0.3, 3e4, 200)
gain = np.abs(small.system.frequency_response(fine)[:, 0, 0])
axes[2].loglog(fine, gain, color=KEPT, label=f"{small.order} states")
axes[2].loglog(omega, np.abs(full), "o", color=DROPPED, label=f"{plate.n:,} states")
axes[2].loglog(omega, error, "x", color=ERROR, label="error")
axes[2].axhline(small.error_bound, color=ERROR, linestyle="--", label="bound")
axes[2].set(xlabel="frequency (rad per second)", ylabel="gain (y per u)")
_ = axes[2].legend()
