"""The same function in two processes that speak to each other, as when training is split over them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def in_two_processes(function: Callable[[int], Any]) -> list[Any]:
    """What function(rank) answers in process 0 and in process 1: plain values, no tensors."""
    context = torch.multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def work(rank: int, meeting: str) -> None:
        try:
            torch.set_num_threads(1)
            torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
            queue.put((rank, function(rank)))
            torch.distributed.destroy_process_group()
        except Exception as error:
            queue.put((rank, error))

    with tempfile.TemporaryDirectory() as place:
        processes = [context.Process(target=work, args=(rank, str(Path(place) / "meeting"))) for rank in range(2)]
        for process in processes:
            process.start()
        answers = dict(queue.get() for _ in processes)
        for process in processes:
            process.join()
    for answer in answers.values():
        if isinstance(answer, Exception):
            raise answer
    return [answers[rank] for rank in range(2)]
