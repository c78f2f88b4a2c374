"""
A Mamba layer: rotation or selection
====================================

The matrices of a Mamba layer are made from its data at every step, so there is no system to balance. Which states
matter is measured on sample batches, and so is what a cut changes; :doc:`/guides/selective_layers` says how.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import hankelred_torch as ht
from hankelred.plotting import CYCLE

torch.manual_seed(0)
torch.set_num_threads(1)


def batch(count=16, length=48):
    """Return values and marks, and the value that was marked last."""
    values, marks = torch.randn(count, length), (torch.rand(count, length) < 0.1).float()
    marks[:, 0] = 1.0
    last = torch.where(marks > 0, torch.arange(length), 0).cummax(1).values
    return torch.stack([values, marks], -1), values.gather(1, last)[..., None]


model = nn.Sequential(nn.Linear(2, 16), ht.layers.Mamba(channels=16, states=32), nn.Linear(16, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
losses = []
for _ in range(150):
    u, y = batch()
    loss = (model(u) - y).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"loss {losses[0]:.2f} -> {sum(losses[-10:]) / 10:.2f}")

# %%
# Plans only look. Each order is tried in each way, in the layer itself, and the change of its output is measured.

batches = [batch()[0] for _ in range(4)]
orders = (24, 16, 12, 8, 6, 4)
errors = {}
for method in ("rotation", "selection", "selection_without_fold"):
    plans = [ht.plan(model, ht.CompressionConfig(order=order, method=method), batches) for order in orders]
    errors[method] = [plan.layers["1"].output_error for plan in plans]
    print(f"{method:22}", " ".join(f"{error:.3f}" for error in errors[method]))

# %%
# The default takes the better one of each. The optimizer goes along, and training goes on.

plan = ht.compress_(model, ht.CompressionConfig(order=8), optimizer, batches=batches)
print(plan)
for _ in range(50):
    u, y = batch()
    loss = (model(u) - y).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"loss with {ht.state_sizes(model)['1']} states: {sum(losses[-10:]) / 10:.2f}")

assert ht.state_sizes(model) == {"1": 8}
assert sum(losses[-10:]) < 0.5 * sum(losses[:10])

# %%

figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
for (method, error), colour in zip(errors.items(), CYCLE, strict=False):
    axes[0].semilogy(orders, error, "o-", color=colour, label=method.replace("_", " "))
axes[0].set(xlabel="states kept of 32", ylabel="relative change of the layer's output")
axes[0].legend()
axes[1].semilogy(losses, color="0.3")
axes[1].axvline(150, color=CYCLE[1], linestyle="--", label="cut to 8")
axes[1].set(xlabel="optimizer step", ylabel="loss")
_ = axes[1].legend()
