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
for _ in range(40):
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
# Both ways at several sizes, only to look: what a cut would change in the output of the layer, measured in the layer
# itself. The maps are identities, which change nothing.

start = nats()
(name,) = ht.add_state_maps_(model)
assert abs(nats() - start) < 1e-5
sizes = (24, 16, 8, 4)
found = {}
for method in ("rotation", "selection"):
    settings = [ht.CompressionConfig(order=size, method=method, round_to=1) for size in sizes]
    layers = [ht.plan(model, choice, batches).layers[name] for choice in settings]
    found[method] = [(layer.state_bytes[1], layer.output_error) for layer in layers]
    print(f"{method:10}", ", ".join(f"{size:,} bytes {error:.3f}" for size, error in found[method]))

assert all(turned[1] < chosen[1] for turned, chosen in zip(found["rotation"], found["selection"], strict=True))

# %%
# A quarter of the bytes. This language asks for no long memory, so its loss hardly notices.

report = ht.compress_(model, ht.CompressionConfig(order=8), batches=batches)
print(report)
print(f"loss {start:.3f} -> {nats():.3f} nats a token")

assert report.state_bytes[1] == report.state_bytes[0] // 4

# %%

figure, axes = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
for (method, points), colour in zip(found.items(), CYCLE, strict=False):
    axes.semilogy(*zip(*points, strict=True), "o-", color=colour, label=method)
axes.set(xlabel="bytes of a sequence", ylabel="relative change of the layer's output")
_ = axes.legend()
