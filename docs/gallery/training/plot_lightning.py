"""
Lightning: a guard on every cut
===============================

The callback for the Trainer of Lightning, here with a condition: a cut stays only if the validation loss recovers
from it. The task is to continue a sum of waves by one step.
"""

import logging
import tempfile

import lightning.pytorch as pl
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hankelred_torch as ht
from hankelred_torch.integrations.lightning import CheckpointMixin, CompressionCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.set_num_threads(1)


def waves(count, seed):
    """Return sums of two waves with noise, and what comes next at every step."""
    generator = torch.Generator().manual_seed(seed)
    phase = 6.28 * torch.rand(2, count, 1, generator=generator)
    time = torch.arange(49)
    clean = torch.sin(0.2 * time + phase[0]) + torch.sin(0.55 * time + phase[1])
    noisy = clean + 0.3 * torch.randn(clean.shape, generator=generator)
    return TensorDataset(noisy[:, :-1, None], clean[:, 1:, None])


class Forecaster(CheckpointMixin, pl.LightningModule):
    """A layer of 32 states; the mixin gives it the sizes of a checkpoint before the weights."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 8), ht.layers.LRU(channels=8, states=32, r_max=0.99), nn.Linear(8, 1))
        self.losses = []

    def training_step(self, batch, index):
        """Return the loss of a batch."""
        u, y = batch
        loss = (self.net(u) - y).square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


pl.seed_everything(0, verbose=False)
model, held_out = Forecaster(), waves(64, seed=2).tensors


def validation(module):
    """Return the loss on sequences that were not trained on."""
    with torch.no_grad():
        return (module.net(held_out[0]) - held_out[1]).square().mean().item()


# %%
# Cuts of a fifth of the values, more than one would dare without a guard. After each, forty steps are trained; if the
# loss is then more than 0.0005 above what it was, the model goes back to before the cut, bit for bit, and half of the
# cut is tried.

callback = CompressionCallback(
    ht.CompressionConfig(tau=0.2),
    ht.Schedule(start_step=60, end_step=240, attempts=4),
    ht.Guard(validation, tolerance=5e-4, mode="min", settle_steps=40),
)
trainer = pl.Trainer(
    max_epochs=40,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    accelerator="cpu",
    callbacks=[callback],
)
trainer.fit(model, DataLoader(waves(256, seed=1), batch_size=32, shuffle=True))
print(callback.history.table())
print(f"validation loss {validation(model):.4f} with {ht.state_sizes(model)}")

# %%
# A checkpoint loads with the sizes it has.

path = f"{tempfile.mkdtemp()}/small.ckpt"
trainer.save_checkpoint(path)
loaded = Forecaster.load_from_checkpoint(path)
assert ht.state_sizes(loaded) == ht.state_sizes(model)
assert ht.state_sizes(model)["net.1"] < 32
assert abs(validation(loaded) - validation(model)) < 1e-9

# %%

figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
axes[0].semilogy(model.losses, color="0.3")
axes[0].set(xlabel="optimizer step", ylabel="loss")
_ = callback.history.plot(ax=axes[1])
