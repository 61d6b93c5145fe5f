"""Sets of pictures: kept in memory, decoded on demand, or read as a stream."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..core.batch import Batch, FewLabels, PictureSpec, fold
from ..core.errors import ConfigError, DataError
from .decode import Damaged, Framing
from .reading import Damage, Entry, Listing, decode_all, probe_all, workers

MEMORY_LIMIT = 2 << 30  # bytes; a larger decoded set is not kept in memory
CHOICE = 2  # sets the choice of labelled pictures apart from other uses of a run's seed
STREAM_TRIAL = 200  # pictures of a stream before which a few damaged ones are not yet too many


Decoded: TypeAlias = tuple[Entry, np.ndarray]  # a picture's entry, and its levels (C, S, S)


@dataclass
class Rows:
    """Some pictures of a set as they are stored."""

    levels: Tensor  # (B, C, H, W) uint8
    labels: Tensor | None = None  # (B,) int64
    captions: list[str] | None = None
    source: Tensor | None = None  # (B, C, H, W) uint8, pictures of another set
    weights: Tensor | None = None  # (B,) float32, by which the loss of each counts


def scale(levels: Tensor) -> Tensor:
    """x = level / 127.5 - 1, from uint8 to float32.

    NumPy does it, here and wherever batches are put together: torch would wake all its threads for so little, and wait
    for each of them on a busy machine.
    """
    values = levels.numpy().astype(np.float32)
    values /= 127.5
    values -= 1
    return torch.from_numpy(values)


class Order(Protocol):
    """The endless sequence in which a training run with some seed sees the pictures of a set."""

    def rows(self, start: int, stop: int, mine: Sequence[int]) -> Rows:
        """Of the pictures start, ..., stop - 1 of the sequence those at the places `mine`, 0 being `start`."""


class Pictures(ABC):
    """A set of pictures of one size.

    name     how it was asked for
    split    "train", "test", "validation" or "all"
    spec     their size, channels, class names, and whether they have captions
    skipped  damaged pictures: (picture, reason)
    labels   (N,) int64, or None
    cached   whether they are in memory, so that nothing is gained by fetching them ahead
    """

    cached = False

    def __init__(self, name: str, split: str, spec: PictureSpec, skipped: list[tuple[str, str]]) -> None:
        self.name = name
        self.split = split
        self.spec = spec
        self.skipped = skipped
        self.labels: Tensor | None = None

    @abstractmethod
    def __len__(self) -> int:
        """The number of good pictures."""

    @abstractmethod
    def rows(self, indices: Sequence[int] | Tensor) -> Rows:
        """The grey levels, labels and captions of these pictures."""

    def order(self, seed: int) -> Order:
        """The order in which a training run with this seed sees the pictures."""
        return Shuffled(self, seed)

    def batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """These pictures on the CPU: images (B, C, H, W) float32 = level / 127.5 - 1, labels, captions, sources."""
        rows = self.rows(indices)
        source = None if rows.source is None else scale(rows.source)
        return Batch(scale(rows.levels), rows.labels, rows.captions, source)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        """Threads that decode; made when the first picture is to be decoded."""
        return ThreadPoolExecutor(workers())

    def _in_threads(self, decode: Callable[[int], Decoded], places: Sequence[int]) -> list[Decoded]:
        """`decode` of each place, in order. Each thread is handed its share at once: one task a picture takes half as
        long as decoding it."""
        threads = workers()
        shares = self._pool.map(lambda k: [decode(place) for place in places[k::threads]], range(threads))
        decoded: list[Any] = [None] * len(places)
        for k, share in enumerate(shares):
            decoded[k::threads] = share
        return decoded


class Permutations:
    """One random permutation of 0, ..., n - 1 after another, without a seam between them."""

    def __init__(self, n: int, seed: int) -> None:
        self.n = n
        self.seed = seed
        self._permutations: dict[int, Tensor] = {}  # of this epoch and the one before

    def __getitem__(self, place: int) -> int:
        """The number at this place of the endless sequence."""
        epoch, within = divmod(place, self.n)
        if epoch not in self._permutations:
            generator = torch.Generator().manual_seed(fold(self.seed, epoch))
            kept = {old: order for old, order in self._permutations.items() if old == epoch - 1}
            self._permutations = {**kept, epoch: torch.randperm(self.n, generator=generator)}
        return int(self._permutations[epoch][within])


class Shuffled:
    """One random permutation of the whole set after another, without a seam between them."""

    def __init__(self, pictures: Pictures, seed: int) -> None:
        self.pictures = pictures
        self._sequence = Permutations(len(pictures), seed)

    def rows(self, start: int, stop: int, mine: Sequence[int]) -> Rows:
        """Of the pictures start, ..., stop - 1 of the sequence those at the places `mine`, 0 being `start`."""
        return self.pictures.rows([self._sequence[start + row] for row in mine])


class InMemory(Pictures):
    """A set that is kept as one uint8 tensor `levels` (N, C, H, W)."""

    cached = True

    def __init__(
        self,
        name: str,
        split: str,
        levels: Tensor,
        labels: Tensor | None = None,
        captions: list[str] | None = None,
        classes: tuple[str, ...] = (),
        skipped: list[tuple[str, str]] | None = None,
    ) -> None:
        spec = PictureSpec(levels.shape[-1], levels.shape[1], classes, captions is not None)
        super().__init__(name, split, spec, skipped or [])
        self.levels = levels
        self.labels = labels
        self.captions = captions

    def __len__(self) -> int:
        return len(self.levels)

    def rows(self, indices: Sequence[int] | Tensor) -> Rows:
        """The grey levels, labels and captions of these pictures."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        captions = None if self.captions is None else [self.captions[i] for i in index.tolist()]
        levels = torch.from_numpy(self.levels.numpy()[index.numpy()])  # see `scale`
        return Rows(levels, None if self.labels is None else self.labels[index], captions)


class OnDisk(Pictures):
    """A set too large for the memory: its files are decoded whenever they are asked for.

    A file whose damage shows only then is replaced by the next good one of the set.
    """

    def __init__(self, name: str, split: str, listing: Listing, framing: Framing) -> None:
        spec = PictureSpec(framing.image_size, framing.channels, listing.classes, listing.captions)
        self.entries, skipped = probe_all(listing.entries)
        super().__init__(name, split, spec, skipped)
        self.framing = framing
        self.labels = torch.tensor([entry.label for entry in self.entries]) if listing.classes else None
        self._damage = Damage(name, self.skipped, len(listing.entries))
        self._damage.report()

    def __len__(self) -> int:
        return len(self.entries)

    def rows(self, indices: Sequence[int] | Tensor) -> Rows:
        """The grey levels, labels and captions of these pictures."""
        places = range(len(self))
        return gather(self._in_threads(self._good, [places[int(i)] for i in indices]), self.spec)

    def _good(self, index: int) -> Decoded:
        following = itertools.chain(range(index, len(self)), range(index))
        return first_good((self.entries[k] for k in following), self.framing, self._damage)


class Transported(Pictures):
    """A set whose pictures each come with one of another set, which has nothing to do with it but chance.

    Training goes through both in random orders of their own. Outside of it, picture i comes with the picture i of one
    fixed shuffle of the other set, again and again where that is the smaller one.

    pictures  what is to be drawn; size, classes and captions are theirs
    sources   what it is to be drawn from, of the same size and channels
    """

    def __init__(self, pictures: Pictures, sources: Pictures) -> None:
        skipped = [*pictures.skipped, *sources.skipped]
        super().__init__(pictures.name, pictures.split, replace(pictures.spec, source=True), skipped)
        self.pictures, self.sources = pictures, sources
        self.labels = pictures.labels
        self.cached = pictures.cached and sources.cached

    def __len__(self) -> int:
        """The number of pictures to be drawn."""
        return len(self.pictures)

    def rows(self, indices: Sequence[int] | Tensor) -> Rows:
        """The grey levels, labels and captions of these pictures, and the levels of those they come with."""
        beside = [int(self._shuffle[int(i) % len(self._shuffle)]) for i in indices]
        return replace(self.pictures.rows(indices), source=self.sources.rows(beside).levels)

    def order(self, seed: int) -> Order:
        """The order in which a training run with this seed sees the pictures of both sets."""
        return SideBySide(self.pictures.order(seed), self.sources.order(fold(seed, 1)))

    @cached_property
    def _shuffle(self) -> Tensor:
        return torch.randperm(len(self.sources), generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class SideBySide:
    """The orders of two sets that are trained on together."""

    pictures: Order
    sources: Order

    def rows(self, start: int, stop: int, mine: Sequence[int]) -> Rows:
        """Of the pictures start, ..., stop - 1 of both sequences those at the places `mine`, 0 being `start`."""
        rows = self.pictures.rows(start, stop, mine)
        return replace(rows, source=self.sources.rows(start, stop, mine).levels)


class PartlyLabelled(Pictures):
    """A set of which only some labels may be looked at, equally many of each class; all others are -1.

    Training goes through labelled and other pictures in random orders of their own, and meets a labelled one at every
    `few.every`-th place. `Rows.weights` makes up for it: with N_l labelled pictures of N, they are (N_l / N) every and
    (1 - N_l / N) every / (every - 1), so that the mean of weight times f over the sequence is the mean of f over the
    set. Where none but labelled pictures are shown, there are no weights.

    few   how many, and how often they are shown
    seed  of the choice; an order with the same seed is independent of it

    Raises `DataError` without labels, `ConfigError` where there are fewer pictures of a class than asked for.
    """

    def __init__(self, pictures: Pictures, few: FewLabels, seed: int) -> None:
        super().__init__(pictures.name, pictures.split, pictures.spec, pictures.skipped)
        if pictures.labels is None:
            why = "is read as a stream; copy it into a folder" if pictures.spec.classes else "has no labels"
            raise DataError(f"some labelled pictures are to be chosen beforehand, and {pictures.name} {why}")
        self.pictures = pictures
        self.cached = pictures.cached
        chosen = choose_evenly(pictures.labels, len(pictures.spec.classes), few.count, fold(seed, CHOICE))
        self.known = torch.zeros(len(pictures), dtype=torch.bool)
        self.known[chosen] = True
        self.every = 1 if self.known.all() else few.every
        self.labels = torch.where(self.known, pictures.labels, -1)

    def __len__(self) -> int:
        """The number of pictures, labelled or not."""
        return len(self.pictures)

    def rows(self, indices: Sequence[int] | Tensor) -> Rows:
        """The grey levels, captions and sources of these pictures; labels where they may be looked at."""
        rows = self.pictures.rows(indices)
        assert rows.labels is not None
        return replace(rows, labels=torch.where(self.known[torch.as_tensor(indices)], rows.labels, -1))

    def order(self, seed: int) -> Order:
        """The order in which a training run with this seed sees the pictures."""
        return Mixed(self, seed)


class Mixed:
    """Labelled pictures at every so-manieth place, others between them, each in permutations of their own."""

    def __init__(self, pictures: PartlyLabelled, seed: int) -> None:
        self.pictures = pictures
        self._known, self._others = (part.nonzero().flatten() for part in (pictures.known, ~pictures.known))
        self._known_order = Permutations(len(self._known), fold(seed, CHOICE, 1))
        self._other_order = Permutations(len(self._others), seed)

    def rows(self, start: int, stop: int, mine: Sequence[int]) -> Rows:
        """Of the pictures start, ..., stop - 1 of the sequence those at the places `mine`, 0 being `start`."""
        every, places = self.pictures.every, [start + row for row in mine]
        rows = self.pictures.rows([self._at(place) for place in places])
        if every == 1:
            return rows
        share = len(self._known) / len(self.pictures)
        known, other = share * every, (1 - share) * every / (every - 1)
        return replace(rows, weights=torch.tensor([other if place % every else known for place in places]))

    def _at(self, place: int) -> int:
        group, within = divmod(place, self.pictures.every)
        if within == 0:
            return int(self._known[self._known_order[group]])
        return int(self._others[self._other_order[group * (self.pictures.every - 1) + within - 1]])


def choose_evenly(labels: Tensor, classes: int, count: int, seed: int) -> Tensor:
    """Indices of `count` random pictures, equally many of each class, (count,); what is left goes to random classes.

    Raises `ConfigError` where a class has too few, or there are fewer than one for each class.
    """
    if count < classes:
        raise ConfigError(f"{count} labelled pictures are less than one of each of {classes} classes; ask for more")
    generator = torch.Generator().manual_seed(seed)
    shares = torch.full((classes,), count // classes)
    shares[torch.randperm(classes, generator=generator)[: count % classes]] += 1
    chosen: list[Tensor] = []
    for label, share in enumerate(shares.tolist()):
        places = (labels == label).nonzero().flatten()
        if len(places) < share:
            raise ConfigError(
                f"{count} labelled pictures take {share} of each class, and there are {len(places)} of class {label};"
                " ask for fewer"
            )
        chosen.append(places[torch.randperm(len(places), generator=generator)[:share]])
    return torch.cat(chosen)


class Stream(Protocol):
    """Pictures that can only be read one after the other."""

    def entries(self, seed: int | None, epoch: int = 0) -> Iterator[Entry]:
        """Every picture once: in the stream's own order, or, with a seed, in a random one that differs by epoch."""


class Streamed(Pictures):
    """A set that is never held as a whole, such as shards or a large set on the hub.

    A damaged picture is replaced by its nearest good predecessor in the same batch, so that processes which share a
    batch need not decode each other's pictures.
    """

    def __init__(self, name: str, split: str, spec: PictureSpec, framing: Framing, stream: Stream, length: int) -> None:
        super().__init__(name, split, spec, [])
        self.framing = framing
        self.stream = stream
        self.length = length  # 0: unknown
        self._read = 0
        self._damage = Damage(name, self.skipped, STREAM_TRIAL)

    def __len__(self) -> int:
        """The number of pictures, damaged ones included. Raises `DataError` if the source does not tell."""
        if not self.length:
            raise DataError(
                f"{self.name} is a stream that does not say how many pictures it holds; copy it into a folder"
            )
        return self.length

    def order(self, seed: int) -> Order:
        """The order in which a training run with this seed sees the pictures."""
        return Cursor(self, seed)

    def rows(self, indices: Sequence[int] | Tensor) -> Rows:
        """These pictures, counted in the stream's own order; it is read from its start to the last of them."""
        wanted = [int(i) for i in indices]
        entries = list(itertools.islice(self.stream.entries(None), max(wanted, default=-1) + 1))
        if wanted and not 0 <= min(wanted) <= max(wanted) < len(entries):
            raise IndexError(f"{self.name} holds {len(entries)} pictures")
        return self.decode(entries, wanted)

    def decode(self, entries: Sequence[Entry], mine: Sequence[int]) -> Rows:
        """Of these consecutive pictures those at the places `mine`."""
        self._read += len(entries)  # damage is judged by its share of what has been read
        self._damage.total = max(self._read, STREAM_TRIAL)

        def nearest_good(k: int) -> Decoded:
            return first_good([*entries[k::-1], *entries[:k:-1]], self.framing, self._damage)

        return gather(self._in_threads(nearest_good, mine), self.spec)


class Cursor:
    """A place in the shuffled stream; going anywhere but forward means reading it again from its start."""

    def __init__(self, pictures: Streamed, seed: int) -> None:
        self.pictures = pictures
        self.seed = seed
        self._at = 0
        self._entries = self._endless()

    def rows(self, start: int, stop: int, mine: Sequence[int]) -> Rows:
        """Of the pictures start, ..., stop - 1 of the sequence those at the places `mine`, 0 being `start`."""
        if start < self._at:
            self._at, self._entries = 0, self._endless()
        entries = list(itertools.islice(self._entries, start - self._at, stop - self._at))
        self._at = stop
        return self.pictures.decode(entries, mine)

    def _endless(self) -> Iterator[Entry]:
        for epoch in itertools.count():
            entries = self.pictures.stream.entries(self.seed, epoch)
            first = next(entries, None)
            if first is None:
                raise DataError(f"{self.pictures.name} holds no picture")
            yield first
            yield from entries


def first_good(entries: Iterable[Entry], framing: Framing, damage: Damage) -> Decoded:
    """The first of these entries that can be decoded, with its levels (C, S, S). Raises `DataError` if none can."""
    for entry in entries:
        try:
            return entry, entry.decode(framing)
        except Damaged as error:
            damage.add(entry.name, str(error))
    raise DataError(f"{damage.name}: none of the pictures in a batch is usable; fetch them again")


def gather(found: Iterable[Decoded], spec: PictureSpec) -> Rows:
    """Decoded pictures as one."""
    entries, levels = zip(*found)
    return Rows(
        torch.from_numpy(np.stack(levels)),  # (B, C, H, W)
        torch.tensor([entry.label for entry in entries]) if spec.classes else None,
        [entry.caption or "" for entry in entries] if spec.captions else None,
    )


def keep(name: str, split: str, listing: Listing, framing: Framing, entries: Iterable[Entry] | None = None) -> InMemory:
    """Decode a whole set into memory, and name the damaged pictures.

    entries  where they are not in the listing, which then tells only what they have in common

    Raises `DataError` if too many are damaged, or none is good.
    """
    good: list[Entry] = []
    levels: list[np.ndarray] = []
    skipped: list[tuple[str, str]] = []
    for entry, result in decode_all(listing.entries if entries is None else entries, framing):
        if isinstance(result, Damaged):
            skipped.append((entry.name, str(result)))
        else:
            good.append(replace(entry, file=b""))  # what is known of it, without its bytes
            levels.append(result)
    Damage(name, skipped, len(good) + len(skipped)).report()
    return InMemory(
        name,
        split,
        torch.from_numpy(np.stack(levels)),  # (N, C, S, S)
        torch.tensor([entry.label for entry in good]) if listing.classes else None,
        [entry.caption or "" for entry in good] if listing.captions else None,
        listing.classes,
        skipped,
    )


def spread_over(total: int, n: int) -> list[int]:
    """At most `n` of the places 0 ... total - 1, evenly spaced: floor(k total / n). Sets are often sorted by class."""
    n = min(total, n)
    return [k * total // n for k in range(n)]


def fits_memory(count: int, framing: Framing) -> bool:
    """Whether so many decoded pictures are kept in memory."""
    return count * framing.channels * framing.image_size**2 <= MEMORY_LIMIT
