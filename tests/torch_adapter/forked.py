"""Ranks of a distributed run as forks of one process that has imported everything, with a limit of time.

A test file calls `found_by_ranks` with the name of a worker beside it. The worker's `main` runs scenarios by name on
all ranks, and each of them writes what it found to a file, which the test file reads.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def run_worker(name: str, folder: Path, *arguments: Any, limit: float) -> None:
    """Run a worker in a process of its own, which must end well within so many seconds."""
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    process = subprocess.run(
        [sys.executable, str(HERE / f"{name}.py"), str(folder), *map(str, arguments)],
        env=os.environ | threads | {"PYTHONPATH": str(HERE.parents[1])},
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]


def found_by_ranks(name: str, folder: Path, ranks: int, *scenarios: str, limit: float) -> list[dict[str, Any]]:
    """Run scenarios of a worker, all if none is named, and return what each rank found, by scenario."""
    run_worker(name, folder, ranks, limit, *scenarios, limit=limit + 100)
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(ranks)]


class Scenarios(dict[str, Callable[[], Any]]):
    """Functions that all ranks run, by name; used as a decorator."""

    def __call__(self, function: Callable[[], Any]) -> Callable[[], Any]:
        self[function.__name__] = function
        return function

    def main(self) -> None:
        """Run those that the command line names: folder, ranks, limit in seconds, names."""
        folder, ranks, limit, *names = sys.argv[1:]
        ended = run_scenarios({name: self[name] for name in names or self}, Path(folder), int(ranks), float(limit))
        os._exit(0 if not any(ended) else 1)


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

    # frameworks look for what torchrun sets
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(0.9 * limit)  # where each rank stands that is killed soon
    of = {"store": dist.FileStore(str(store), ranks), "rank": rank, "world_size": ranks}
    dist.init_process_group("gloo", timeout=timedelta(seconds=limit), **of)
    work(rank)
    gc.collect()  # a wrapper that outlives its process group can wait for its threads for ever
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
            (folder / f"rank_{rank}.json").write_text(json.dumps(found))

    return on_ranks(ranks, work, folder / "store", limit)


def message(call: Callable[[], Any]) -> list[str]:
    """Return the class and text of what a call raises."""
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


def share(x: Any) -> Any:
    """Return what this rank sees of the data of all."""
    import torch.distributed as dist

    return x.chunk(dist.get_world_size())[dist.get_rank()]


def mean(x: Any) -> float:
    """Return the mean over ranks of a number in a tensor."""
    import torch.distributed as dist

    x = x.detach().clone().float()
    dist.all_reduce(x)
    return float(x.item()) / dist.get_world_size()
