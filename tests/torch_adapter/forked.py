"""Ranks of a distributed run as forks of one process that has imported everything, with a limit of time."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any


def on_ranks(ranks: int, work: Callable[[int], Any], store: Path, limit: float) -> list[int]:
    """Run work on so many ranks with a process group, and return how each ended: negative if by a signal.

    Whoever is not done within the limit, or 3 s after another has failed, is killed.
    """
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _joined(rank, ranks, work, store, limit)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    ended: dict[int, int] = {}
    until = time.monotonic() + limit
    while len(ended) < ranks:
        for child in children:
            if child not in ended and (found := os.waitpid(child, os.WNOHANG))[0]:
                ended[child] = os.waitstatus_to_exitcode(found[1])
                if ended[child]:
                    until = min(until, time.monotonic() + 3)
        if time.monotonic() > until:
            for child in children:
                if child not in ended:
                    os.kill(child, signal.SIGKILL)
                    ended[child] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.01)
    return [ended[child] for child in children]


def _joined(rank: int, ranks: int, work: Callable[[int], Any], store: Path, limit: float) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    of = {"store": dist.FileStore(str(store), ranks), "rank": rank, "world_size": ranks}
    dist.init_process_group("gloo", timeout=timedelta(seconds=limit), **of)
    work(rank)
    dist.destroy_process_group()


def run_scenarios(scenarios: Mapping[str, Callable[[], Any]], folder: Path, ranks: int, limit: float) -> list[int]:
    """Run scenarios one after another on the same ranks, each of which writes what it found to a file."""

    def work(rank: int) -> None:
        import torch.distributed as dist

        found = {}
        for name, scenario in scenarios.items():
            dist.barrier()
            started = time.monotonic()
            found[name] = scenario()
            if rank == 0:
                print(f"{name}: {time.monotonic() - started:.1f} s", file=sys.stderr)
            (folder / f"rank_{rank}_of_{ranks}.json").write_text(json.dumps(found))

    return on_ranks(ranks, work, folder / f"store_of_{ranks}", limit)
