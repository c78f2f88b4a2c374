"""Train a classifier of sequences in a loop of one's own."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hankelred_torch as ht

EPOCHS, BATCH = 25, 32


def sequences(count, seed):
    """Return noisy waves and whether each is a fast one."""
    generator = torch.Generator().manual_seed(seed)
    fast = torch.randint(2, (count,), generator=generator)
    phase = 6.28 * torch.rand(count, 1, generator=generator)
    time = torch.arange(48)
    waves = torch.sin((0.2 + 0.3 * fast[:, None]) * time + phase)
    return TensorDataset((waves + 0.5 * torch.randn(waves.shape, generator=generator))[..., None], fast)


class Classifier(nn.Module):
    def __init__(self, channels=8, states=32):
        super().__init__()
        self.into = nn.Linear(1, channels)
        self.layer = ht.layers.LRU(channels, states, r_max=0.98)
        self.out = nn.Linear(channels, 2)

    def forward(self, u):
        x = self.into(u)
        return self.out(torch.relu(self.layer(x)).mean(1))


def accuracy(model, loader):
    model.eval()
    with torch.no_grad():
        right = sum((model(u).argmax(-1) == y).sum().item() for u, y in loader)
    model.train()
    return right / len(loader.dataset)


def main():
    torch.manual_seed(0)
    training = DataLoader(sequences(256, seed=1), batch_size=BATCH, shuffle=True)
    validation = DataLoader(sequences(128, seed=2), batch_size=BATCH)
    model = Classifier()
    steps = EPOCHS * len(training)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    compressor = ht.InTrainingCompressor(model, optimizer, ht.CompressionConfig(tau=0.1), ht.Schedule(steps))  # new
    for epoch in range(EPOCHS):
        for u, y in training:
            loss = nn.functional.cross_entropy(model(u), y)
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            compressor.step()  # new
        print(f"epoch {epoch}: loss {loss.item():.3f}, accuracy {accuracy(model, validation):.3f}")
    return model, accuracy(model, validation)


if __name__ == "__main__":
    main()
