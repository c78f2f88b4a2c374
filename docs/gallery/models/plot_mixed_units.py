"""
Mixed units and companion forms
===============================

States in metres and nanometres, volts and pascals, or the coefficients of a polynomial for a matrix: the Hankel
singular values of a model do not depend on how its states are written down, but rounding does.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy import linalg, signal

import hankelred as hr
from hankelred.plotting import DROPPED, ERROR, KEPT

# %%
# The same twelve states twice, the second time each in a unit of its own between 1e-8 and 1e8. Beside our values
# stand those of the definition, the square roots of the eigenvalues of the product of both Gramians.


def by_definition(system):
    """Return the Hankel singular values as textbooks define them."""
    P = linalg.solve_continuous_lyapunov(system.A, -system.B @ system.B.T)
    Q = linalg.solve_continuous_lyapunov(system.A.T, -system.C.T @ system.C)
    return np.sort(np.sqrt(np.abs(linalg.eigvals(P @ Q))))[::-1]


n = 12
rng = np.random.default_rng(0)
A = n**2 * (np.eye(n, k=1) - 2 * np.eye(n) + np.eye(n, k=-1))
rod = hr.StateSpace(A, n**2 * np.eye(n, 1), np.eye(1, n))
unit = 10.0 ** rng.uniform(-8.0, 8.0, n)
mixed = hr.StateSpace(A * unit[:, None] / unit, rod.B * unit[:, None], rod.C / unit)

true = hr.hankel_singular_values(rod)
ours, textbook = hr.hankel_singular_values(mixed), by_definition(mixed)
print(f"largest change by the units: ours {np.abs(ours - true).max() / true[0]:.1e},", end=" ")
print(f"by definition {np.abs(textbook - true).max() / true[0]:.1e}")

assert np.abs(ours - true).max() < 1e-10 * true[0]

# %%
# A transfer function of order 16 becomes a companion form, whose coefficients cover fifty powers of ten. It goes in
# as scipy.signal has it, and a model of twelve states comes out, with its bound and its error.

band_pass = signal.lti(*signal.butter(8, [2e3, 4e3], btype="bandpass", analog=True))
coefficients = np.abs(band_pass.den)
print(f"coefficients from {coefficients.min():.0e} to {coefficients.max():.0e}")
reduction = hr.balanced_truncation(band_pass, order=12)
print(reduction.summary())
print(f"measured: {reduction.hinf_error():.3f}")

assert reduction.hinf_error() <= reduction.error_bound

# %%
# Values of the rod in mixed units, and the filter before and after.

figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
place = np.arange(1, n + 1)
axes[0].semilogy(place, true, "o", color=DROPPED, markersize=9, label="one unit for all")
axes[0].semilogy(place, ours, ".", color=KEPT, label="mixed units, hankelred")
axes[0].semilogy(place, textbook, "x", color=ERROR, label="mixed units, by definition")
axes[0].set(xlabel="place in the order", ylabel="Hankel singular value (y per u)")
axes[0].legend()
omega = np.geomspace(1e3, 8e3, 500)
full, small = (hr.as_system(model).frequency_response(omega)[:, 0, 0] for model in (band_pass, reduction.system))
axes[1].loglog(omega, np.abs(full), color=DROPPED, linewidth=4, label="16 states")
axes[1].loglog(omega, np.abs(small), color=KEPT, label=f"{reduction.order} states")
axes[1].loglog(omega, np.abs(full - small), "--", color=ERROR, label="error")
axes[1].set(xlabel="frequency (rad per second)", ylabel="gain (y per u)", ylim=(1e-6, 3.0))
_ = axes[1].legend()
