"""
After training: the smallest model that is good enough
======================================================

A trained model is to become as small as its metric allows. :func:`~hankelred_torch.compress_` searches by itself, and
keeps what it tried.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import hankelred_torch as ht
from hankelred.plotting import plot_hsv, plot_tradeoff

torch.manual_seed(0)
torch.set_num_threads(1)


def batch(seed):
    """Return inputs, and how two resonators answer to them."""
    u = torch.randn(16, 96, 1, generator=torch.Generator().manual_seed(seed))
    lags = torch.arange(96.0)
    kernel = 0.9**lags * torch.cos(0.4 * lags) + 0.97**lags * torch.cos(0.1 * lags)
    spectrum = torch.fft.rfft(u[..., 0], n=192) * torch.fft.rfft(kernel, n=192)
    return u, torch.fft.irfft(spectrum, n=192)[:, :96, None]


model = nn.Sequential(nn.Linear(1, 4), ht.layers.LRU(channels=4, states=32), nn.Linear(4, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for step in range(300):
    u, y = batch(step)
    loss = (model(u) - y).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %%
# The metric is any function of the model; here the error on sequences it has not seen. It may grow by a tenth.

test_u, test_y = batch(10_000)


def metric(model):
    """Return the error relative to the signal."""
    with torch.no_grad():
        return ((model(test_u) - test_y).square().mean() / test_y.square().mean()).item()


before = metric(model)
hsv = ht.hankel_singular_values(model)["1"]
plan = ht.compress_(
    model,
    ht.CompressionConfig(min_cut=0.0),
    optimizer,
    batches=[test_u],
    metric=metric,
    tolerance=0.1 * before,
    mode="min",
)
print(plan)
print(f"metric {before:.4f} -> {metric(model):.4f}")

assert plan.sizes["1"] < 32
assert metric(model) <= 1.1 * before + 1e-9

# %%
# What was tried, and the values of the trained layer, two for every stored state.

figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
plot_hsv(hsv, ax=axes[0])
_ = plot_tradeoff(plan.trials, kept=sum(plan.sizes.values()), ax=axes[1])
