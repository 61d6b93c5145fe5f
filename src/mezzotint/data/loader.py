"""Training batches without end, each a pure function of the seed and its number."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ..core.batch import Batch, PictureRandom, fold
from ..core.errors import ConfigError, suggest
from .pictures import Pictures, scale

AHEAD = 4  # batches that are decoded before they are asked for
AUGMENTATION = 1  # sets the loader's random numbers apart from those that the loss draws from the same seeds


class Loader:
    """Training batches without end.

    Batch number b is a function of (seed, b) alone. The pictures come in random permutations, one after another
    without a seam, so that no batch is short and no picture is left out. Process `rank` of `world` gets the rows
    rank, rank + world, ... of each batch.

    batch_size  pictures in a batch, over all processes
    flip        mirror each picture with probability 1/2
    pixels      "levels": x = level / 127.5 - 1
                "dequantised": x = (level + u) / 128 - 1, u uniform on [0, 1), so that a density over the 256 levels
                becomes one over the interval (Theis et al. 2016)
                "binary": x = 1 with probability level / 255, else -1, drawn anew each time
                (dynamic binarisation: Salakhutdinov & Murray 2008; Burda et al. 2016)

    Raises `ConfigError` if the batch cannot be shared evenly. `position`, the number of batches drawn so far, can be
    set: that is all that a resumed run needs.
    """

    def __init__(
        self,
        pictures: Pictures,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        flip: bool = False,
        pixels: str = "levels",
    ) -> None:
        if batch_size < 1 or batch_size % world:
            raise ConfigError(f"a batch of {batch_size} cannot be shared evenly by {world} processes; take a multiple")
        if pixels not in PIXELS:
            raise ConfigError(f"pixels cannot be {pixels!r}{suggest(pixels, PIXELS)}")
        self.pictures = pictures
        self.batch_size = batch_size
        self.seed = seed
        self.mine = range(rank, batch_size, world)
        self.flip = flip
        self.pixels = pixels
        self._order = pictures.order(seed)
        self._position = 0
        self._ahead: deque[Future[Batch]] = deque()
        self._thread = None if pictures.cached else ThreadPoolExecutor(1)

    @property
    def position(self) -> int:
        """The number of batches drawn so far."""
        return self._position

    @position.setter
    def position(self, value: int) -> None:
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()
        self._position = value

    def next(self) -> Batch:
        """This process's rows of the batch number `position`."""
        if self._thread is None:
            batch = self._make(self._position)
        else:
            for number in range(self._position + len(self._ahead), self._position + AHEAD):
                self._ahead.append(self._thread.submit(self._make, number))
            batch = self._ahead.popleft().result()
        self._position += 1
        return batch

    def close(self) -> None:
        """Stop decoding ahead."""
        self.position = self._position
        if self._thread is not None:
            self._thread.shutdown()

    def _make(self, number: int) -> Batch:
        start = number * self.batch_size
        rows = self._order.rows(start, start + self.batch_size, self.mine)
        seeds = [fold(self.seed, number, row) for row in self.mine]
        random = augmenting(seeds)
        images = self._shown(rows.levels, random)
        source = None if rows.source is None else self._shown(rows.source, random)
        return Batch(images, rows.labels, rows.captions, source, seeds=seeds, weights=rows.weights)

    def _shown(self, levels: Tensor, random: PictureRandom) -> Tensor:
        if self.flip:
            mirrored = random.uniform().numpy() < 0.5  # (B,)
            values = levels.numpy()
            values[mirrored] = values[mirrored, ..., ::-1]
        return PIXELS[self.pixels](levels, random)


def augmenting(seeds: Sequence[int]) -> PictureRandom:
    """The random numbers by which pictures of these seeds are shown, apart from what a model draws with the same."""
    return PictureRandom([fold(seed, AUGMENTATION) for seed in seeds])


def dequantise(levels: Tensor, random: PictureRandom) -> Tensor:
    """(level + u) / 128 - 1 with u uniform on [0, 1)."""
    values = random.uniform(*levels.shape[1:]).numpy()
    # a u nearer to 1 than this would be rounded up in float32, into the next level
    np.minimum(values, 1 - 2**-16, out=values)
    values += levels.numpy()
    values /= 128
    values -= 1
    return torch.from_numpy(values)


def binarise(levels: Tensor, random: PictureRandom) -> Tensor:
    """1 with probability level / 255, else -1."""
    white = random.uniform(*levels.shape[1:]).numpy() * 255 < levels.numpy()
    return torch.from_numpy(np.where(white, np.float32(1), np.float32(-1)))


PIXELS = {"levels": lambda levels, random: scale(levels), "dequantised": dequantise, "binary": binarise}
