"""From files to arrays: what is known of a picture undecoded, decoding many, and counting the damaged ones."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..core.errors import DataError
from .decode import Damaged, Framing, decode, is_grey, load, probe

log = logging.getLogger("mezzotint.data")

MOST_DAMAGED = 0.05  # the share of a set that may be damaged
MOST_LINES = 1000  # in which the log names the damaged pictures that are found when a set is opened
SAMPLE = 256  # how many pictures are looked at to find out the size and the kind of a set
LARGEST_COMMON = 256  # up to this size, pictures that are all of one size are taken as they are
USUAL_SIZE = 64  # the size of others, where none is asked for
AT_ONCE = 1024  # files held in memory while many are decoded

Item = TypeVar("Item")


@dataclass(frozen=True)
class Entry:
    """One picture before it is decoded: its file, or the bytes of it, and what is known of it.

    fault  why it cannot be used, where that shows without decoding
    """

    name: str
    file: Path | bytes
    label: int | None = None
    caption: str | None = None
    fault: str | None = None

    def decode(self, framing: Framing) -> np.ndarray:
        """Its grey levels (C, S, S). Raises `Damaged`, and nothing else."""
        if self.fault is not None:
            raise Damaged(self.fault)
        return decode(self.file, framing)


@dataclass
class Listing:
    """What a source holds: its pictures in order, its class names, and whether they have captions."""

    entries: list[Entry]
    classes: tuple[str, ...] = ()
    captions: bool = False


class Damage:
    """The damaged pictures of one set, as they are found.

    name     of the set
    skipped  (picture, reason)
    total    the number of pictures, good and bad, of which no more than 5 % may be damaged
    """

    def __init__(self, name: str, skipped: list[tuple[str, str]], total: int) -> None:
        self.name = name
        self.skipped = skipped
        self.total = total
        self._names = {picture for picture, _ in skipped}
        self._lock = threading.Lock()

    def add(self, picture: str, reason: str) -> None:
        """One more, named in the log. Raises `DataError` when they have become too many."""
        with self._lock:
            if picture in self._names:
                return
            self._names.add(picture)
            self.skipped.append((picture, reason))
        log.warning("skipped %s: %s", picture, reason)
        self.check()

    def report(self) -> None:
        """Name every damaged picture in the log. Raises `DataError` if they are too many."""
        for few in parts(self.skipped, -(-len(self.skipped) // MOST_LINES)):
            log.warning("skipped %s", "; ".join(f"{picture}: {reason}" for picture, reason in few))
        if self.skipped:
            log.warning("%s: skipped %d of %d pictures", self.name, len(self.skipped), self.total)
        self.check()

    def check(self) -> None:
        """Raises `DataError` if more than 5 % are damaged, or none is good."""
        bad = len(self.skipped)
        if bad <= MOST_DAMAGED * self.total and bad < self.total:
            return
        examples = "; ".join(f"{picture}: {reason}" for picture, reason in self.skipped[:3])
        count = "none of its pictures is" if bad >= self.total else f"{bad} of its {self.total} pictures are not"
        raise DataError(
            f"{self.name}: {count} usable ({examples}); at most {MOST_DAMAGED:.0%} may be damaged,"
            " so remove, repair or fetch these files again"
        )


def workers() -> int:
    """How many threads decode: Pillow lets go of Python's lock while it decompresses."""
    return min(16, os.cpu_count() or 1)


def decode_all(entries: Iterable[Entry], framing: Framing) -> Iterator[tuple[Entry, np.ndarray | Damaged]]:
    """Every entry, in order, with its grey levels (C, S, S), or why there are none."""

    def attempt(entry: Entry) -> tuple[Entry, np.ndarray | Damaged]:
        try:
            return entry, entry.decode(framing)
        except Damaged as error:
            return entry, error

    with ThreadPoolExecutor(workers()) as pool:
        for part in parts(entries, AT_ONCE):
            yield from pool.map(attempt, part)


def probe_all(entries: Sequence[Entry]) -> tuple[list[Entry], list[tuple[str, str]]]:
    """The entries whose headers are sound, and (name, reason) of the others."""

    def attempt(entry: Entry) -> str | None:
        if entry.fault is not None:
            return entry.fault
        try:
            probe(entry.file)
        except Damaged as error:
            return str(error)
        return None

    with ThreadPoolExecutor(workers()) as pool:
        reasons = list(pool.map(attempt, entries))
    good = [entry for entry, reason in zip(entries, reasons) if reason is None]
    return good, [(entry.name, reason) for entry, reason in zip(entries, reasons) if reason is not None]


def parts(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Consecutive lists of `size` items; the last may be shorter."""
    remaining = iter(items)
    while part := list(itertools.islice(remaining, size)):
        yield part


@dataclass(frozen=True)
class Wish:
    """A `Framing` of which the size and the channels may be left to the pictures."""

    image_size: int | None = None
    channels: int | None = None
    crop: str = "center"
    filter: str = "lanczos"


def choose_framing(name: str, sample: Iterable[Entry], wish: Wish) -> Framing:
    """The framing that is wished for; where it leaves something open, what suits a sample of the pictures."""
    image_size, channels = wish.image_size, wish.channels
    if image_size and channels:
        return Framing(image_size, channels, wish.crop, wish.filter)
    sizes: set[tuple[int, int]] = set()
    grey = True
    for entry in sample:
        try:
            image = load(entry.file)
        except Damaged:
            continue  # it is counted and named when the whole set is read
        sizes.add(image.size)
        grey = grey and is_grey(image)
    if channels is None:
        channels = 1 if grey and sizes else 3
    if image_size is None:
        image_size = _natural_size(sizes)
        log.info("%s: pictures are %d x %d with %d channel(s)", name, image_size, image_size, channels)
    return Framing(image_size, channels, wish.crop, wish.filter)


def _natural_size(sizes: set[tuple[int, int]]) -> int:
    width, height = next(iter(sizes)) if len(sizes) == 1 else (0, -1)
    return width if width == height <= LARGEST_COMMON else USUAL_SIZE
