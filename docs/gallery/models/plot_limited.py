"""
Only some frequencies count, some time, or some inputs
======================================================

Plain balanced truncation treats all frequencies, all times and all inputs alike. A weighting says what counts, and
states are spent there; :doc:`/guides/weights_and_bands` has all of them.
"""

import matplotlib.pyplot as plt
import numpy as np

import hankelred as hr
from hankelred.plotting import CYCLE, DROPPED, ERROR, KEPT
from hankelred.weighting import FrequencyLimited, FrequencyWeighted, TimeLimited

n = 30
A = n**2 * (np.eye(n, k=1) - 2 * np.eye(n) + np.eye(n, k=-1))
rod = hr.StateSpace(A, n**2 * np.eye(n, 1), np.eye(1, n))  # a heated rod, read where it is heated

heater = hr.StateSpace([[-300.0]], [[300.0]], [[1.0]])  # what heats follows its command as 300 / (s + 300) does

ways = {
    "all frequencies": (None, DROPPED),
    "up to 10 rad/s": (FrequencyLimited((0.0, 10.0)), KEPT),
    "the first 0.02 s": (TimeLimited(0.02), ERROR),
    "inputs of a slow heater": (FrequencyWeighted(input=heater), CYCLE[2]),
}
models = {name: hr.balanced_truncation(rod, order=3, weighting=way) for name, (way, _) in ways.items()}

# %%
# The same three states, spent on different things. A plain weighted pair has no bound; the error is measured.

omega = np.geomspace(0.1, 1e5, 300)
slow = omega <= 10.0
errors = {name: np.abs((rod - model.system).frequency_response(omega)[:, 0, 0]) for name, model in models.items()}
arriving = np.abs(heater.frequency_response(omega)[:, 0, 0])
for name, error in errors.items():
    parts = (error[slow].max(), error.max(), (error * arriving).max())
    print("{}: error up to 10 rad/s {:.1e}, anywhere {:.1e}, behind the heater {:.1e}".format(name, *parts))

assert errors["up to 10 rad/s"][slow].max() < 0.01 * errors["all frequencies"][slow].max()
assert (errors["inputs of a slow heater"] * arriving).max() < 0.5 * (errors["all frequencies"] * arriving).max()

# %%
# In time: the step responses of the errors, by holding the input over steps of a ten-thousandth of a second.

step, count = 1e-4, 600
time = step * np.arange(count)
responses = {}
for name, model in models.items():
    error = (rod - model.system).dense()
    x, y = np.zeros((error.n, 1)), []
    advance = np.linalg.inv(np.eye(error.n) - 0.5 * step * error.A)  # the trapezoidal rule
    for _ in range(count):
        y.append((error.C @ x).item())
        x = advance @ (x + step * (0.5 * error.A @ x + error.B))
    responses[name] = np.abs(y)
early = time <= 0.02
for name, y in responses.items():
    print(f"{name}: error of a step within 0.02 s {y[early].max():.1e}")

assert responses["the first 0.02 s"][early].max() < responses["all frequencies"][early].max()

# %%

figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
for name, (_, colour) in ways.items():
    axes[0].loglog(omega, errors[name], color=colour, label=name)
    axes[1].semilogy(time[1:], responses[name][1:], color=colour, label=name)
axes[0].axvspan(omega[0], 10.0, color="0.9", zorder=0)
axes[1].axvspan(0.0, 0.02, color="0.9", zorder=0)
axes[0].set(xlabel="frequency (rad per second)", ylabel="error (y per u)")
axes[1].set(xlabel="time (seconds)", ylabel="error of the step response")
_ = axes[0].legend()
