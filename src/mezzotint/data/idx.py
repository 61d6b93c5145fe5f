"""The files in which MNIST and Fashion-MNIST are published."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from ..core.errors import DataError

PREFIXES = {"train": "train", "test": "t10k"}
UNSIGNED_BYTE = 0x08  # the only type of number in these two sets


def find_idx(folder: Path, split: str, kind: str, rank: int) -> Path | None:
    """The file of "images" (rank 3) or "labels" (rank 1) of a split, as it is called in either spelling, or None."""
    stem = f"{PREFIXES[split]}-{kind}"
    names = [f"{stem}{separator}idx{rank}-ubyte{end}" for separator in "-." for end in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def holds_idx(folder: Path) -> bool:
    """Whether the folder holds the training pictures of such a set."""
    return folder.is_dir() and find_idx(folder, "train", "images", 3) is not None


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Levels (N, H, W) uint8 and labels (N,) int64. Raises `DataError` for a missing or damaged file."""
    arrays = []
    for kind, rank in (("images", 3), ("labels", 1)):
        path = find_idx(folder, split, kind, rank)
        if path is None:
            raise DataError(f"{folder} lacks {PREFIXES[split]}-{kind}-idx{rank}-ubyte; `make data` brings it")
        arrays.append(read_idx(path))
    levels, labels = arrays
    if levels.ndim != 3 or labels.ndim != 1 or len(levels) != len(labels) or not len(levels):
        raise DataError(
            f"{folder}: pictures {levels.shape} and labels {labels.shape} of {split} do not belong together"
        )
    return levels, labels.astype(np.int64)


def read_idx(path: Path) -> np.ndarray:
    """One idx file, gzipped or not: 0, 0, type, rank, the sizes as big-endian int32, the numbers.

    Raises `DataError` if it is damaged.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); fetch it again") from None
    rank = content[3] if len(content) > 3 else 0
    start = 4 + 4 * rank
    if content[:3] != bytes([0, 0, UNSIGNED_BYTE]) or len(content) < start:
        raise DataError(f"{path} is no idx file of bytes; fetch it again")
    shape = tuple(np.frombuffer(content, ">i4", rank, 4).tolist())
    if min(shape, default=-1) < 0 or len(content) != start + math.prod(shape):
        raise DataError(
            f"{path} is damaged: it announces {shape} and holds {len(content) - start} bytes; fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
