"""
A bank of 1,536 systems
=======================

Layers of networks, filter banks and the modes of large structures are many small systems of one size. A
:class:`~hankelred.DiagonalBank` takes all of them through one call.
"""

import matplotlib.pyplot as plt
import numpy as np

import hankelred as hr

rng = np.random.default_rng(0)
systems, n = 1536, 16
decay = np.exp(rng.uniform(-4.0, 0.0, (systems, n)))
phase = np.pi * np.arange(n) / n * rng.uniform(0.2, 1.0, (systems, 1))
B = rng.standard_normal((systems, n, 1)) / np.sqrt(n)
C = rng.standard_normal((systems, 1, n)) + 1j * rng.standard_normal((systems, 1, n))
bank = hr.DiagonalBank(np.exp(-decay + 1j * phase), B, C, dt=True, output="real")
print(bank)

# %%
# With real output, a stored complex pole stands for itself and its conjugate, and there are two Hankel singular
# values for each. All systems together, one row for each:

hsv = hr.hankel_singular_values(bank)
print(f"{hsv.shape[0]} systems, {hsv.shape[1]} values each")

# %%
# One tolerance, and every system keeps what it needs; arrays are filled up to the largest.

small = hr.balanced_truncation(bank, rtol=3e-2)
print(small)
print(f"states kept: {small.states.min()} to {small.states.max()}, in all {small.states.sum():,} of {systems * n:,}")

worst = int(np.argmax(small.error_bound))
one = small[worst]
print(f"the largest bound, of system {worst}: {one.error_bound:.3f}, measured {one.hinf_error():.3f}")

assert small.states.sum() < 0.9 * systems * n
assert one.hinf_error() <= one.error_bound

# %%
# The values of all systems, relative to their largest, sorted by how fast they fall; and how many states they keep.

figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
relative = np.log10(np.maximum(hsv / hsv[:, :1], 1e-8))
order = np.argsort(relative.sum(1))
mesh = axes[0].pcolormesh(np.arange(2 * n + 1) + 0.5, np.arange(systems + 1), relative[order], cmap="cividis")
figure.colorbar(mesh, ax=axes[0], label="log10 of hsv / largest")
axes[0].set(xlabel="place in the order", ylabel="systems, sorted")
axes[1].hist(small.states, bins=np.arange(n + 2) - 0.5, color="0.6", edgecolor="white")
_ = axes[1].set(xlabel=f"states kept of {n}", ylabel="systems")
