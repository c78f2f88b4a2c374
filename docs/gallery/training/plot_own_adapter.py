"""
An adapter for a layer of your own
==================================

A modal reverberator: a sum of decaying cosines, as sound synthesis has them, with parameters that no library knows. Two
functions make it known, and everything works on it. :doc:`/guides/write_an_adapter` explains each line.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import hankelred_torch as ht
from hankelred.plotting import DROPPED, ERROR, KEPT, plot_hsv

torch.set_num_threads(1)


class Reverberator(nn.Module):
    """y_t = sum over modes and lags k of exp(-decay k) (a cos(frequency k) - b sin(frequency k)) u_(t - k)."""

    def __init__(self, modes):
        super().__init__()
        self.modes = modes
        self.log_decay = nn.Parameter(torch.empty(modes).uniform_(-6.0, -3.0))
        self.frequency = nn.Parameter(torch.empty(modes).uniform_(0.05, 3.0))
        self.cosine = nn.Parameter(torch.randn(modes) / torch.arange(1, modes + 1))
        self.sine = nn.Parameter(torch.randn(modes) / torch.arange(1, modes + 1))

    def forward(self, u):
        """Filter signals, (batch, length, 1)."""
        length = u.shape[1]
        rates = torch.complex(-self.log_decay.exp(), self.frequency)
        powers = (rates[:, None] * torch.arange(length)).exp()
        kernel = (torch.complex(self.cosine, self.sine) @ powers).real
        spectrum = torch.fft.rfft(u[..., 0], n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
        return torch.fft.irfft(spectrum, n=2 * length)[:, :length, None]


# %%
# The map from tensors to the system, and its inverse. The input matrix is constant, so it is no part of what is written
# back.


class ReverberatorAdapter(ht.adapters.LinearAdapter):
    """Reads and writes a `Reverberator`."""

    state_axes = {"log_decay": 0, "frequency": 0, "cosine": 0, "sine": 0}  # noqa: RUF012
    parts = {"rates": ("log_decay", "frequency"), "C": ("cosine", "sine")}  # noqa: RUF012

    def system(self, t):
        """Return rates, B and C of one system."""
        rates = torch.complex(-t["log_decay"].exp(), t["frequency"])
        C = torch.complex(t["cosine"], t["sine"])
        return rates[None], torch.ones_like(C)[None, :, None], C[None, None]

    def tensors(self, rates, B, C, like):
        """Return the tensors that give a system."""
        C = (C[0, 0] * B[0, :, 0])[: rates.shape[1]]
        return {"log_decay": (-rates[0].real).log(), "frequency": rates[0].imag, "cosine": C.real, "sine": C.imag}

    def sizes(self, states):
        """Return the attributes that remember how many states there are."""
        return {"modes": states}


ht.register_adapter(Reverberator, ReverberatorAdapter)

# %%
# Does the layer compute what is read from it? One call runs both in double precision.

torch.manual_seed(0)
layer = Reverberator(modes=60)
print(f"layer against system: {ht.adapters.check(layer):.1e}")
print(ht.read_system(layer))

# %%
# The values, and a cut. Its bound is on what the layer itself computes.

hsv = ht.hankel_singular_values(layer)[""]
impulse = torch.zeros(1, 2000, 1)
impulse[0, 0] = 1.0
with torch.no_grad():
    before = layer(impulse)[0, :, 0].numpy()
report = ht.compress_(layer, ht.CompressionConfig(order=20))
with torch.no_grad():
    after = layer(impulse)[0, :, 0].numpy()
print(report)

spectra = np.fft.rfft([before, after, after - before])
assert layer.modes == 20
assert np.abs(spectra[2]).max() <= report.layers[""].error_bound

# %%

figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
plot_hsv(hsv, order=40, ax=axes[0])
axes[1].plot(before[:300], color=DROPPED, linewidth=3, label="60 modes")
axes[1].plot(after[:300], color=KEPT, label="20 modes")
axes[1].set(xlabel="sample", ylabel="impulse response")
axes[1].legend()
frequency = np.linspace(0.0, np.pi, spectra.shape[1])
axes[2].semilogy(frequency, np.abs(spectra[0]), color=DROPPED, linewidth=3, label="60 modes")
axes[2].semilogy(frequency, np.abs(spectra[1]), color=KEPT, label="20 modes")
axes[2].semilogy(frequency, np.abs(spectra[2]), color=ERROR, linewidth=0.8, label="error")
axes[2].axhline(report.layers[""].error_bound, color=ERROR, linestyle="--", label="bound")
axes[2].set(xlabel="frequency (rad per sample)", ylabel="gain")
_ = axes[2].legend()
