"""
A gated delta net: fewer bytes for every sequence
=================================================

Models with linear attention keep a matrix for every head and sequence between two tokens. Channels of its keys can be
cut, and a small map behind the keys lets the cut turn them first; :doc:`/guides/serving` tells what that means in
production.
"""

import matplotlib.pyplot as plt
import torch
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

import hankelred_torch as ht
from hankelred.plotting import CYCLE

torch.manual_seed(0)
torch.set_num_threads(1)

# %%
# A small model of the family, and a language: each token has four that may follow it.

config = Qwen3_5TextConfig(
    vocab_size=32,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    linear_num_key_heads=1,
    linear_num_value_heads=2,
    linear_key_head_dim=32,
    linear_value_head_dim=16,
    layer_types=["linear_attention"],
    use_cache=False,
)
model = Qwen3_5ForCausalLM(config)
successors = torch.randint(32, (32, 4))


def text(count=16, length=32):
    """Return sequences of the language."""
    tokens = [torch.randint(32, (count,))]
    for _ in range(length - 1):
        tokens.append(successors[tokens[-1], torch.randint(4, (count,))])
    return torch.stack(tokens, 1)


optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for _ in range(60):
    tokens = text()
    loss = model(tokens, labels=tokens).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()
batches, test = [text() for _ in range(3)], text(64)


def nats():
    """Return the loss on text that was not seen."""
    with torch.no_grad():
        return model(test, labels=test).loss.item()


# %%
# Both ways at several sizes. A cut is undone by taking the sizes and weights of before.

layers = ht.add_state_maps_(model)
start, weights = nats(), {name: value.clone() for name, value in model.state_dict().items()}
sizes = (24, 16, 8, 4)
found = {}
for method in ("rotation", "selection"):
    found[method] = []
    for size in sizes:
        settings = ht.CompressionConfig(order=size, method=method, round_to=1)
        report = ht.compress_(model, settings, batches=batches)
        found[method].append((report.state_bytes[1], nats() - start))
        ht.resize_(model, weights)
        model.load_state_dict(weights)
    print(f"{method:10}", ", ".join(f"{size:,} bytes {lost:+.3f}" for size, lost in found[method]))
print(f"as trained {report.state_bytes[0]:,} bytes, {start:.3f} nats a token")

assert abs(nats() - start) < 1e-6

# %%

figure, axes = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
for (method, points), colour in zip(found.items(), CYCLE, strict=False):
    axes.plot(*zip(*points, strict=True), "o-", color=colour, label=method)
axes.axhline(0.0, color="0.6", linewidth=0.8)
axes.set(xlabel="bytes of a sequence", ylabel="loss added (nats a token)")
_ = axes.legend()
