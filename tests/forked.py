"""Groups of gloo processes, forked from one that has imported everything, so that each starts at once."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed import TCPStore

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.forked", "tests.warm"])


class Group:
    """Processes that each call `target(rank, *arguments)`, as a launcher would start them."""

    def __init__(self, processes: int, target: Callable[..., None], *arguments: Any) -> None:
        # They meet here, as torchrun's do at its agent: a port that rank 0 opened itself could be another
        # process's by then.
        self._meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._members = [
            context.Process(target=_member, args=(rank, processes, self._meeting.port, target, arguments))
            for rank in range(processes)
        ]
        for member in self._members:
            member.start()

    def join(self, seconds: float | None = None) -> list[int]:
        """Wait that long, and kill the others once one has failed: they wait for it. Returns exit codes."""
        end = None if seconds is None else time.monotonic() + seconds
        running = list(self._members)
        try:
            while running and (end is None or time.monotonic() < end):
                left = None if end is None else max(0.0, end - time.monotonic())
                multiprocessing.connection.wait([member.sentinel for member in running], left)
                running = [member for member in running if member.exitcode is None]
                if any(member.exitcode for member in self._members):
                    break
        finally:
            for member in running:
                member.kill()
                member.join()
        return [member.exitcode or 0 for member in self._members]


def _member(
    rank: int, processes: int, port: int, target: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    if processes > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "OMP_NUM_THREADS": "1",  # as torchrun does; Accelerate would take as many as there are cores
        }
    target(rank, *arguments)
    if processes > 1:
        torch.distributed.destroy_process_group()
