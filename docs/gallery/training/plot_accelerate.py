"""
Accelerate: stop in the middle, resume, and cut on
==================================================

With accelerate the loop stays one's own. One call puts the compressor among the states that are saved, and a run that
was stopped between two cuts goes on as if it had not been.
"""

import tempfile

import matplotlib.pyplot as plt
import torch
from accelerate import Accelerator
from torch import nn

import hankelred_torch as ht
from hankelred.plotting import DROPPED, KEPT
from hankelred_torch.integrations.accelerate import register

torch.set_num_threads(1)
STEPS, STOP = 160, 60


def batch(step):
    """Return inputs, and their sums over eight."""
    u = torch.randn(16, 48, 1, generator=torch.Generator().manual_seed(step))
    return u, torch.cat([torch.zeros(16, 7, 1), u], 1).unfold(1, 8, 1).sum(-1)


def start():
    """Return what a script makes before its loop."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    model = nn.Sequential(nn.Linear(1, 8), ht.layers.LRU(channels=8, states=32), nn.Linear(8, 1))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=5e-3))
    schedule = ht.Schedule(start_step=20, end_step=120, attempts=4)
    compressor = ht.InTrainingCompressor(model, optimizer, ht.CompressionConfig(tau=0.05), schedule)
    register(accelerator, compressor)
    return accelerator, model, optimizer, compressor


def train(run, steps):
    """Train through some steps and return the losses."""
    accelerator, model, optimizer, compressor = run
    losses = []
    for step in steps:
        u, y = batch(step)
        loss = (model(u) - y).square().mean()
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        compressor.step()
        losses.append(loss.item())
    return losses


# %%
# The whole run, saved on its way.

run, folder = start(), tempfile.mkdtemp()
losses = train(run, range(STOP))
run[0].save_state(folder)
sizes = ht.state_sizes(run[1])["1"]
losses += train(run, range(STOP, STEPS))
print(f"states: 32 at first, {sizes} when saved, {ht.state_sizes(run[1])['1']} at the end")

# %%
# Another process would do this: make everything as before, at the full size, and load.

again = start()
again[0].load_state(folder)
resumed = train(again, range(STOP, STEPS))
print(f"states of the resumed run: {ht.state_sizes(again[1])['1']}; the same losses: {resumed == losses[STOP:]}")

assert resumed == losses[STOP:]
assert ht.state_sizes(again[1]) == ht.state_sizes(run[1])
assert ht.state_sizes(run[1])["1"] < sizes < 32

# %%

figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
axes[0].semilogy(losses, color=DROPPED, linewidth=4, label="uninterrupted")
axes[0].semilogy(range(STOP, STEPS), resumed, color=KEPT, label="resumed")
axes[0].set(xlabel="optimizer step", ylabel="loss")
axes[0].legend()
_ = run[3].history.plot(ax=axes[1])
