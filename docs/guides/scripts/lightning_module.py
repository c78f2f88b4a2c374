"""Train a classifier of sequences in the Trainer of Lightning."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hankelred_torch as ht
from hankelred_torch.integrations.lightning import CompressionCallback  # new


def sequences(count, seed):
    """Return noisy waves and whether each is a fast one."""
    generator = torch.Generator().manual_seed(seed)
    fast = torch.randint(2, (count,), generator=generator)
    phase = 6.28 * torch.rand(count, 1, generator=generator)
    time = torch.arange(48)
    waves = torch.sin((0.2 + 0.3 * fast[:, None]) * time + phase)
    return TensorDataset((waves + 0.5 * torch.randn(waves.shape, generator=generator))[..., None], fast)


class Classifier(pl.LightningModule):
    def __init__(self, channels=8, states=32):
        super().__init__()
        self.into = nn.Linear(1, channels)
        self.layer = ht.layers.LRU(channels, states, r_max=0.98)
        self.out = nn.Linear(channels, 2)

    def forward(self, u):
        x = self.into(u)
        return self.out(torch.relu(self.layer(x)).mean(1))

    def training_step(self, batch, index):
        u, y = batch
        loss = nn.functional.cross_entropy(self(u), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, index):
        u, y = batch
        self.log("accuracy", (self(u).argmax(-1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def main():
    pl.seed_everything(0, verbose=False)
    model = Classifier()
    trainer = pl.Trainer(
        max_epochs=25,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[CompressionCallback(ht.CompressionConfig(tau=0.1))],  # new
    )
    trainer.fit(
        model,
        DataLoader(sequences(256, seed=1), batch_size=32, shuffle=True),
        DataLoader(sequences(128, seed=2), batch_size=32),
    )
    return model, trainer.callback_metrics["accuracy"].item()


if __name__ == "__main__":
    main()
