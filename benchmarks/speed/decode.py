"""What a token costs in generation, and what the states of a sequence take, with fewer channels of keys.

    python -m benchmarks.speed.decode            # prints
    python -m benchmarks.speed.decode --write    # and keeps it in benchmarks/results/decode_speed.json

A small Qwen3.5 with random weights, three gated delta nets and one full attention, generates with a cache, a token a
step: as it is with keys of 128 channels, after selections, and with state maps that were cut to the same sizes. One
thread; all models make one step in turn, so that what else the machine does falls on all alike; times are medians of
the thread's processor time. The factor is that of the model as it is. The kernels are transformers' reference in
PyTorch: fused ones of a GPU move the state through memory and gain by its size, these spend most on calls.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import nn

from hankelred_torch import CompressionConfig, add_state_maps_, compress_, find_ssm_layers, state_sizes

from .._common import surroundings, write

RESULTS = Path(__file__).parents[1] / "results" / "decode_speed.json"
STATES, KEPT = 128, (96, 64, 32)
LAYERS, CHANNELS, VOCABULARY = 4, 256, 512
BATCHES = (1, 16)  # sequences at once
PROMPT = 32  # tokens before those that are timed
BURN_IN = 5  # tokens of every model that are not counted


def model_of(states: int = STATES) -> nn.Module:
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    torch.manual_seed(0)
    return Qwen3_5ForCausalLM(
        Qwen3_5TextConfig(
            vocab_size=VOCABULARY,
            hidden_size=CHANNELS,
            intermediate_size=2 * CHANNELS,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            linear_num_key_heads=4,
            linear_num_value_heads=8,
            linear_key_head_dim=states,
            linear_value_head_dim=64,
        )
    ).eval()


def models(states: int = STATES, sizes: tuple[int, ...] = KEPT) -> dict[tuple[str, int], nn.Module]:
    """The model as it is, and cut in both ways, by what was done to it and its size."""
    found = {("full", states): model_of(states)}
    batches = [torch.randint(VOCABULARY, (4, 64), generator=torch.Generator().manual_seed(1))]
    for kept in sizes:
        for name in ("selected", "mapped"):
            model = model_of(states)
            if name == "mapped":
                add_state_maps_(model)
            method: Any = "rotation" if name == "mapped" else "selection"
            compress_(model, CompressionConfig(order=kept, method=method), batches=batches)
            assert set(state_sizes(model).values()) == {kept}
            found[name, kept] = model
    return found


def state_bytes(model: nn.Module) -> int:
    """The memory of the matrices of all gated delta nets, for one sequence."""
    return sum(x.state_bytes(x.states) for x in find_ssm_layers(model).values())


def _steps(model: Any, batch: int) -> Iterator[None]:
    """Generate for ever, a token a step, from a cache that grows with the one full attention only."""
    found = model(torch.zeros(batch, PROMPT, dtype=torch.int64), use_cache=True)
    while True:
        token = found.logits[:, -1:].argmax(-1)
        yield
        found = model(token, past_key_values=found.past_key_values, use_cache=True)


@torch.no_grad()  # here, and not around a yield, which would leave it so for whoever comes next
def token_times(compared: dict[tuple[str, int], nn.Module], batch: int, tokens: int) -> dict[tuple[str, int], float]:
    """The median seconds of a step of every model, all of them in turn."""
    runs = {name: _steps(model, batch) for name, model in compared.items()}
    times: dict[tuple[str, int], list[float]] = {name: [] for name in runs}
    for step in range(-BURN_IN - 1, tokens):
        for name, run in runs.items():
            start = time.thread_time()
            next(run)
            if step >= 0:
                times[name].append(time.thread_time() - start)
    return {name: statistics.median(x) for name, x in times.items()}


def rows(compared: dict[tuple[str, int], nn.Module], tokens: int) -> list[dict[str, Any]]:
    """A row for each model: bytes of the states, and milliseconds of a step for so many sequences."""
    found = [{"model": name, "channels": kept, "state bytes": state_bytes(x)} for (name, kept), x in compared.items()]
    for batch in BATCHES:
        times = token_times(compared, batch, tokens)
        whole = next(iter(times.values()))
        for row, seconds in zip(found, times.values(), strict=True):
            row[f"ms, batch {batch}"] = round(1e3 * seconds, 3)
            row[f"factor, batch {batch}"] = round(whole / seconds, 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--tokens", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    found = rows(models(), options.tokens)
    for row in found:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    if options.write:
        settings = {"tokens": options.tokens, "prompt": PROMPT, "layers": LAYERS, "width": CHANNELS}
        head = {"what": "one token of generation, median processor time", "settings": settings}
        write(RESULTS, head | {"environment": surroundings(("torch", "transformers")), "results": found})


if __name__ == "__main__":
    main()
