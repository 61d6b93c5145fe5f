"""Many pictures from a model, in parts, over processes: picture k is the same however they are split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .batch import picture_seeds
from .model import Samples


@torch.no_grad()
def draw(
    model: Samples,
    n: int,
    *,
    labels: Tensor | None = None,
    source: Tensor | None = None,
    seeds: int = 0,
    batch_size: int = 128,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[int], None] | None = None,
    **controls: Any,
) -> Tensor:
    """Pictures rank, rank + world, rank + 2 world, ... of a request for n, on the CPU; shard (0, 1) means all of them.

    labels    (n,) of the whole request
    source    (n, C, H, W) of the whole request, on the CPU
    seeds     picture k has seed seeds + k
    progress  called with the number of pictures just drawn
    """
    rank, world = shard
    mine = torch.arange(rank, n, world)
    all_seeds = torch.tensor(picture_seeds(n, seeds), dtype=torch.int64)
    parts: list[Tensor] = []
    for rows in mine.split(batch_size):
        given: dict[str, Any] = {"labels": None if labels is None else labels[rows]}
        if source is not None:
            given["source"] = source[rows]
        images = model.sample(len(rows), seeds=all_seeds[rows].tolist(), **given, **controls)
        parts.append(images.float().cpu())
        if progress is not None:
            progress(len(rows))
    return torch.cat(parts) if parts else torch.empty(0)


def interleave(shards: list[Tensor]) -> Tensor:
    """The pictures of all ranks, in the order of the request."""
    whole = torch.cat(shards)
    world = len(shards)
    for rank, part in enumerate(shards):
        whole[rank::world] = part
    return whole
