"""What goes into a model (`Batch`), what data there is (`PictureSpec`), and each picture's own randomness."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .config import Config
from .errors import ConfigError


@dataclass(frozen=True)
class PictureSpec(Config):
    """What a model must know of the pictures it is built for."""

    image_size: int  # height and width in pixels
    channels: int = 1  # 1 grey, 3 RGB
    classes: tuple[str, ...] = ()  # class names in label order; empty: no labels
    captions: bool = False  # whether each picture has a sentence
    source: bool = False  # whether each comes with a picture of another set, to be transported from there


@dataclass(frozen=True)
class FewLabels:
    """That a model looks at the labels of only some training pictures, and how often it is shown these.

    count  pictures whose labels are looked at: equally many of each class, which ones is a function of the run's seed
    every  one picture in so many is one of them; 1: no others are shown
    """

    count: int
    every: int = 2

    def __post_init__(self) -> None:
        for name in ("count", "every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of labelled pictures must be at least 1, not {getattr(self, name)}")


@dataclass
class Batch:
    """Pictures and what is known of them.

    images    (B, C, H, W) float32 in [-1, 1]; video (B, C, T, H, W)
    labels    (B,) int64; -1 where it is not to be looked at (`FewLabels`)
    captions  B sentences
    source    a picture to begin from or to condition on: of another set, low-resolution, grey, masked, segmentation
    mask      (B, 1, H, W), 1 where the pixel is known
    seeds     one integer per picture: all random numbers of its loss come from it, so that
              the loss of a batch does not depend on how it is split over processes
    weights   (B,), by which the loss of each picture counts where some are shown more often than others: the mean of
              weighted losses is that over the whole set. None: all count alike
    """

    images: Tensor
    labels: Tensor | None = None
    captions: list[str] | None = None
    source: Tensor | None = None
    mask: Tensor | None = None
    seeds: Sequence[int] | None = None
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Batch:
        """The batch with every tensor on `device`."""
        tensors: dict[str, Any] = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})

    def __getitem__(self, rows: slice) -> Batch:
        """The same fields for some of the pictures."""
        return replace(self, **{name: value[rows] for name, value in vars(self).items() if value is not None})

    def random(self) -> PictureRandom:
        """The pictures' own random numbers; without seeds, fresh ones from torch's global generator."""
        seeds = self.seeds
        if seeds is None:
            seeds = torch.randint(2**62, (len(self),)).tolist()
        return PictureRandom(seeds, self.images.device)


class PictureRandom:
    """Random numbers for a batch in which row k depends on seed k alone.

    Whatever the batch size, the number of processes or the device, picture k gets the same numbers:
    each row has a `torch.Generator` of its own on the CPU, and the stacked rows are moved to `device`.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.generators = [torch.Generator().manual_seed(fold(seed) & 0xFFFFFFFF) for seed in seeds]

    def __len__(self) -> int:
        return len(self.generators)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, (B, *shape) float32."""
        return self._stack([torch.randn(shape, generator=g) for g in self.generators], shape)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform on [0, 1), (B, *shape) float32."""
        return self._stack([torch.rand(shape, generator=g) for g in self.generators], shape)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Uniform on {low, ..., high - 1}, (B, *shape) int64."""
        return self._stack([torch.randint(low, high, shape, generator=g) for g in self.generators], shape)

    def _stack(self, rows: list[Tensor], shape: tuple[int, ...]) -> Tensor:
        stacked = torch.stack(rows) if rows else torch.empty(0, *shape)
        return stacked.to(self.device, non_blocking=True)


def fold(*numbers: int) -> int:
    """A 63-bit seed made of several integers (run seed, step, position, ...), each of any size."""
    packed = b"".join(struct.pack("<q", ((number + 2**63) % 2**64) - 2**63) for number in numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


def picture_seeds(n: int, seeds: int | Sequence[int]) -> list[int]:
    """The seeds of n requested pictures: a first seed s means s, s + 1, ..., s + n - 1.

    Raises `ConfigError` for less than one picture, or another number of seeds than pictures.
    """
    if n < 1:
        raise ConfigError(f"a request is for 1 picture or more, not {n}")
    if isinstance(seeds, int):
        return list(range(seeds, seeds + n))
    if len(seeds) != n:
        raise ConfigError(f"{n} pictures need {n} seeds, got {len(seeds)}")
    return list(seeds)
