"""
Follow Hankel singular values through training
==============================================

Cuts early in training rest on an observation: which states matter is settled long before the weights are.
:class:`~hankelred_torch.Tracker` watches it in a run of your own, without changing anything.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import hankelred_torch as ht

torch.manual_seed(0)
torch.set_num_threads(1)


def batch():
    """Return inputs, and how two resonators answer to them."""
    u = torch.randn(16, 64, 1)
    lags = torch.arange(64.0)
    kernel = 0.9**lags * torch.cos(0.4 * lags) + 0.95**lags * torch.cos(0.1 * lags)
    return u, torch.fft.irfft(torch.fft.rfft(u[..., 0], n=128) * torch.fft.rfft(kernel, n=128), n=128)[:, :64, None]


model = nn.Sequential(nn.Linear(1, 4), ht.layers.LRU(channels=4, states=16, r_max=0.95), nn.Linear(4, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
tracker = ht.Tracker(model, every=10)
losses = []
for _ in range(400):
    u, y = batch()
    loss = (model(u) - y).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    tracker.step()
    losses.append(loss.item())

# %%
# Each measurement is compared with the one before: how far values have moved, a bound on how far they can have, and
# which value continues which.

history = tracker.history
last = history[-1]
print(f"loss {losses[0]:.2f} -> {losses[-1]:.4f}")
print(f"last ten steps: values moved by {last.moved:.1e}, at most by {last.drift:.1e}, of {last.hsv[0]:.2f}")

assert all(record.moved <= record.drift for record in history[1:])

# %%
# Since when has an order kept the same subspace? None where it still changed at the end.

for order in (2, 4, 6, 8, 12):
    print(f"order {order:2}: settled since step {history.settled(order)}")

assert history.settled(4) is not None

# %%
# All values over the steps, with those of order 4 in blue; bars say how far a value can have come since the last
# measurement. The same as an image; and the loss, which falls for much longer.

figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
axes[0].semilogy(losses, color="0.3")
axes[0].axvline(history.settled(4), color="#d55e00", linestyle="--", label="order 4 settled")
axes[0].set(xlabel="optimizer step", ylabel="loss")
axes[0].legend()
history.plot_hsv(order=4, ax=axes[1])
_ = history.plot_waterfall(ax=axes[2])
