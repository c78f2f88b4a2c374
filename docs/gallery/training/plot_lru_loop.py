"""
An LRU that shrinks in a plain training loop
============================================

Two lines more than without: the compressor, and its step after the optimizer's. The task is to remember: the output is
the sum of the last eight inputs.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import hankelred_torch as ht

torch.manual_seed(0)
torch.set_num_threads(1)
STEPS = 300


def batch():
    """Return inputs, and the sums over eight of them."""
    u = torch.randn(16, 64, 1)
    padded = torch.cat([torch.zeros(16, 7, 1), u], dim=1)
    return u, padded.unfold(1, 8, 1).sum(-1)


model = nn.Sequential(nn.Linear(1, 8), ht.layers.LRU(channels=8, states=48), nn.Linear(8, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
schedule = ht.Schedule(total_steps=STEPS, end_step=STEPS // 2)  # attempts in the first half of the training
compressor = ht.InTrainingCompressor(model, optimizer, ht.CompressionConfig(tau=0.05), schedule)
tracker = ht.Tracker(model, every=10)
losses = []

# %%
# An ordinary loop. A cut replaces the parameters of the layer and carries the moments of the optimizer over, all or
# nothing.

for _ in range(STEPS):
    u, y = batch()
    loss = (model(u) - y).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    compressor.step()
    tracker.step()
    losses.append(loss.item())

print(compressor.history.table())
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, states {ht.state_sizes(model)}")

assert ht.state_sizes(model)["1"] < 48
assert losses[-1] < 0.5 * losses[0]

# %%
# The states over the steps, and the Hankel singular values: brighter is larger. What was cut off is empty.

figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
axes[0].semilogy(losses, color="0.3")
axes[0].set(xlabel="optimizer step", ylabel="loss")
compressor.history.plot(ax=axes[1])
_ = tracker.history.plot_waterfall(ax=axes[2])
