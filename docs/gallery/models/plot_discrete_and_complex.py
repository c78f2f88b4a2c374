"""
Discrete and complex models
===========================

Sampled models, and those of communications and modal analysis, are often neither continuous nor real. Nothing has to be
converted for them.
"""

import matplotlib.pyplot as plt
import numpy as np

import hankelred as hr
from hankelred.plotting import plot_frequency_error, plot_poles

# %%
# Forty resonances of a room, sampled at 2 kHz. The system is diagonal, and stays so; each complex pole acts together
# with its conjugate, because only the real part of the output is heard.

rng = np.random.default_rng(1)
frequencies = np.sort(rng.uniform(50.0, 900.0, 40))  # Hz
lam = np.exp((-rng.uniform(5.0, 40.0, 40) + 2j * np.pi * frequencies) / 2000.0)
gains = rng.standard_normal((40, 1)) * (frequencies[:, None] / 50.0) ** -1.5
room = hr.DiagonalSystem(lam, gains, rng.standard_normal((1, 40)), dt=1 / 2000, output="real")

small = hr.balanced_truncation(room, states=15)
print(room, "->", small.system)
print(f"bound {small.error_bound:.3f}, measured {small.hinf_error():.3f}, largest gain {hr.hinf_norm(room):.3f}")

assert type(small.system) is hr.DiagonalSystem
assert small.system.dt == room.dt
assert small.hinf_error() <= small.error_bound

# %%
# A filter at complex baseband: its response at negative frequencies is not the mirror image of that at positive ones,
# and both are drawn.

poles = 0.95 * np.exp(1j * np.array([-0.5, -0.1, 0.2, 0.9, 1.4, 2.0]))
weights = rng.standard_normal((1, 6)) + 1j * rng.standard_normal((1, 6))
baseband = hr.StateSpace(np.diag(poles), np.ones((6, 1)), weights, dt=True)
filtered = hr.balanced_truncation(baseband, order=4)
print(filtered.summary())

assert np.iscomplexobj(filtered.system.A)
assert filtered.system.dt is True

# %%
# Poles before and after, and errors over frequency.

figure, axes = plt.subplots(2, 2, figsize=(10, 8), layout="constrained")
for row, (full, reduction) in zip(axes, ((room, small), (baseband, filtered)), strict=True):
    plot_poles(full, reduction, ax=row[0])
    plot_frequency_error(full, reduction, ax=row[1])
