"""From pictures to rows of measurements, in batches of any size and on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.drawing import interleave
from ..core.errors import ConfigError
from .features import ClassifierFeatures, FeatureNetwork, to_levels
from .resize import clean

SHOWN = 80  # pictures that are kept to be looked at
THUMBNAIL = 32  # pixels: largest height and width at which pictures are compared pixel by pixel


@dataclass(frozen=True)
class Described:
    """One row per picture, in the order of the pictures."""

    features: Tensor  # (N, D)
    logits: Tensor | None  # (N, classes) of the feature network
    guesses: Tensor | None  # (N, classes) of the classifier
    thumbnails: Tensor  # (N, C * h * w) grey levels
    pictures: Tensor  # (K, C, H, W) in [-1, 1]: the first few


@dataclass(frozen=True)
class Describer:
    """Measures pictures, batch by batch.

    shard  this process's rank and how many there are: it takes the pictures rank, rank + world, ... and then all
           processes gather the rows of all
    """

    network: FeatureNetwork
    judge: ClassifierFeatures | None
    batch_size: int
    shard: tuple[int, int] = (0, 1)

    def __call__(
        self,
        count: int,
        fetch: Callable[[Sequence[int]], Tensor],
        progress: Callable[[int], object] = lambda done: None,
    ) -> Described:
        """Measure pictures 0 ... count - 1; `fetch(places)` gives some of them, (B, C, H, W) in [-1, 1]."""
        rank, world = self.shard
        mine = range(rank, count, world)
        rows: dict[str, list[Tensor]] = {}
        for start in range(0, len(mine), self.batch_size):
            places = mine[start : start + self.batch_size]
            images = fetch(places).float()
            for name, value in self._measure(images, kept=sum(place < SHOWN for place in places)).items():
                rows.setdefault(name, []).append(value.cpu())
            progress(len(places))
        whole = gather({name: torch.cat(parts) for name, parts in rows.items()}, self.shard)
        return Described(
            whole["features"], whole.get("logits"), whole.get("guesses"), whole["thumbnails"], whole["pictures"]
        )

    def _measure(self, images: Tensor, kept: int) -> dict[str, Tensor]:
        features, logits = self.network.describe(images)
        rows = {"features": features, "thumbnails": thumbnails(images), "pictures": images[:kept]}
        if logits is not None:
            rows["logits"] = logits
        guesses = logits if self.judge is self.network else self.judge.describe(images).logits if self.judge else None
        return rows if guesses is None else {**rows, "guesses": guesses}


def thumbnails(images: Tensor) -> Tensor:
    """Grey levels (B, C * h * w), of height and width at most `THUMBNAIL`."""
    levels = to_levels(images)
    return (clean(levels, THUMBNAIL) if max(levels.shape[2:]) > THUMBNAIL else levels).flatten(1)


def gather(rows: dict[str, Tensor], shard: tuple[int, int]) -> dict[str, Tensor]:
    """The rows of every process, woven back into one order: row i of process r is row i * world + r of the whole.

    Raises `ConfigError` for more than one process without an initialised `torch.distributed`.
    """
    _, world = shard
    if world == 1:
        return rows
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise ConfigError(f"sharding over {world} processes needs torch.distributed; start them with accelerate launch")
    parts: list[dict[str, Tensor]] = [{} for _ in range(world)]
    torch.distributed.all_gather_object(parts, rows)
    return {name: interleave([part[name] for part in parts if name in part]) for name in parts[0]}


def spread_over(length: int, count: int) -> list[int]:
    """At most `count` of the places 0 ... length - 1, evenly spaced: sets are often sorted by class."""
    count = min(length, count)
    return [k * length // count for k in range(count)]
