"""Train, cut, save and resume a sharded model: torchrun --standalone --nproc-per-node=2 sharded_loop.py run.pt 40."""

import os
import sys
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import hankelred_torch as ht

BATCH = 32


class Block(nn.Module):
    def __init__(self, channels, states):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.layer = ht.layers.LRU(channels, states, r_max=0.98)

    def forward(self, u):
        return u + torch.relu(self.layer(self.norm(u)))


def build():
    torch.manual_seed(0)  # the same weights on every rank
    return nn.Sequential(nn.Linear(1, 8), Block(8, 32), Block(8, 32), nn.Linear(8, 1))


def batch(step):
    """Return what this rank sees of a batch: noise, and its sum over time."""
    generator = torch.Generator().manual_seed(step)
    u = torch.randn(BATCH, 48, 1, generator=generator).chunk(dist.get_world_size())[dist.get_rank()]
    return u, 0.1 * u.cumsum(dim=1)


def main(path, steps):
    # torch warns of writing into what a sharded model returns, which nothing here does
    warnings.filterwarnings("ignore", ".*returned a view tensor")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    model = build().to(device)
    for block in (model[1], model[2], model):
        fully_shard(block, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    compressor = ht.InTrainingCompressor(model, optimizer, ht.CompressionConfig(tau=0.1), ht.Schedule(end_step=20))
    first = ht.load_checkpoint(path, model, optimizer, compressor) if os.path.exists(path) else 0
    for step in range(first, steps):
        u, y = (x.to(device) for x in batch(step))
        loss = (model(u) - y).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        compressor.step()
        if (step + 1) % 10 == 0:
            ht.save_checkpoint(path, model, optimizer, compressor, extra=step + 1)
            if dist.get_rank() == 0:
                print(
                    f"step {step + 1} on {dist.get_world_size()} ranks: loss {loss.item():.4f}, {ht.state_sizes(model)}"
                )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
