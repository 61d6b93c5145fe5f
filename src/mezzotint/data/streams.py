"""Pictures that `datasets` reads for us: sets on the hub, and WebDataset shards."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.batch import PictureSpec, fold
from ..core.errors import DataError, suggest
from .folder import CAPTION_COLUMNS, FOLDERS, LABEL_COLUMNS, class_names, first_column, is_held_out
from .pictures import Pictures, Streamed, fits_memory, keep
from .reading import SAMPLE, Entry, Listing, Wish, choose_framing, log

if TYPE_CHECKING:
    from datasets import IterableDataset

SHUFFLE_BUFFER = 4096  # pictures of a stream among which the next is drawn at random
TEST_PICTURES = 10_000  # kept of a test split that is too large for the memory, or of unknown length
CAPTIONS = (*CAPTION_COLUMNS, "txt")  # "txt" and "cls" are file endings of WebDataset
LABELS = (*LABEL_COLUMNS, "cls")


@dataclass(frozen=True)
class Columns:
    """Where in a row the picture, its label and its caption are, and the class names that the set declares."""

    picture: str
    label: str | None
    caption: str | None
    classes: tuple[str, ...] = ()


class RowStream:
    """The rows of streams of `datasets`, one stream after another, as entries.

    part  "train" leaves every tenth picture out, "test" keeps only these, "all" keeps all. Rows have no number that
          outlasts a shuffle, so a checksum of the picture decides.
    """

    def __init__(self, name: str, streams: Sequence[IterableDataset], part: str) -> None:
        from datasets import Image

        self.name = name
        self.part = part
        self.columns = choose_columns(name, streams[0].features or {})
        self.classes = self.columns.classes
        # undecoded, so that a damaged picture is ours to judge
        self.streams = [stream.cast_column(self.columns.picture, Image(decode=False)) for stream in streams]

    @property
    def listing(self) -> Listing:
        """What the pictures have in common."""
        return Listing([], self.classes, self.columns.caption is not None)

    def entries(self, seed: int | None, epoch: int = 0) -> Iterator[Entry]:
        """Every picture once: in the stream's own order, or, with a seed, in a random one that differs by epoch."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        for row in self._rows(seed, epoch):
            digest = hashlib.blake2b(_content(row[self.columns.picture])).digest()
            if self.part == "all" or is_held_out(int.from_bytes(digest[:8], "little")) == (self.part == "test"):
                yield self._entry(row, numbers, digest.hex()[:12])

    def census(self) -> int:
        """Read the whole stream once to learn how many pictures it holds, and its class names if it declares none."""
        names: set[str] = set()
        count = 0
        for row in self._rows(None, 0):
            count += 1
            if self.columns.label and (label := row.get(self.columns.label)) is not None:
                names.add(str(label))
        self.classes = self.classes or class_names(names)
        return count

    def _rows(self, seed: int | None, epoch: int) -> Iterator[Mapping[str, Any]]:
        for stream in self.streams:
            if seed is not None:
                stream = stream.shuffle(seed=fold(seed), buffer_size=SHUFFLE_BUFFER)
                stream.set_epoch(epoch)
            try:
                for row in stream:
                    yield {**(row["json"] or {}), **row} if isinstance(row.get("json"), Mapping) else row
            except Exception as error:  # a cut-off archive, a lost connection: every reader has errors of its own
                raise DataError(
                    f"{self.name} cannot be read to its end ({_first_line(error)}); fetch it again"
                ) from error

    def _entry(self, row: Mapping[str, Any], numbers: Mapping[str, int], checksum: str) -> Entry:
        picture = row[self.columns.picture] or {}
        name = str(row.get("__key__") or picture.get("path") or checksum)
        label, caption, fault = None, None, None if picture else "the row holds no picture"
        if self.classes and self.columns.label:
            value = row.get(self.columns.label)
            label = value if self.columns.classes and isinstance(value, int) else numbers.get(str(value))
            if label is None or not 0 <= label < len(self.classes):
                fault = fault or "it has no label, and others have"
        if self.columns.caption:
            caption = first_column(row, (self.columns.caption,))
            fault = fault if caption else fault or "it has no caption, and others have"
        return Entry(name, _content(picture), label, caption and str(caption), fault)


def choose_columns(name: str, features: Mapping[str, Any]) -> Columns:
    """The columns to use of those that a set has. Raises `DataError` if none holds pictures."""
    from datasets import ClassLabel, Image

    picture = next((column for column, kind in features.items() if isinstance(kind, Image)), None)
    if picture is None:
        raise DataError(f"{name} has no column of pictures; it has {', '.join(features) or 'none at all'}")
    inner = features.get("json")
    every = {**inner, **features} if isinstance(inner, Mapping) else features
    declared = next((column for column, kind in every.items() if isinstance(kind, ClassLabel)), None)
    label = declared or next((column for column in LABELS if column in every), None)
    caption = next((column for column in CAPTIONS if column in every), None)
    return Columns(picture, label, caption, tuple(every[declared].names) if declared else ())


def open_hub(name: str, repository: str, config: str | None, split: str, wish: Wish) -> Pictures:
    """A set on the hub, streamed for training if it is too large for the memory. Raises `DataError`."""
    import datasets

    try:
        streams = datasets.load_dataset(repository, config, streaming=True)
    except Exception as error:  # no network, no such set, no permission: `datasets` has many errors for it
        raise DataError(
            f"{name} cannot be had from the hub ({_first_line(error)}); check its name and the network,"
            " or give a local folder instead (`make data` brings several)"
        ) from error
    chosen, part = _choose_streams(name, streams, split)
    sizes = [size.num_examples for key, stream in chosen.items() if (size := (stream.info.splits or {}).get(key))]
    count = sum(sizes) if len(sizes) == len(chosen) else 0
    return _open(RowStream(name, list(chosen.values()), part), count, split, wish)


def open_shards(name: str, shards: Sequence[Path], split: str, wish: Wish) -> Pictures:
    """WebDataset shards: read through once to be counted, streamed if too large for the memory. Raises `DataError`."""
    import datasets

    by_split = {key: [str(shard) for shard in shards if _shard_split(shard) == key] for key in ("train", "test")}
    files = {key: paths for key, paths in by_split.items() if paths}
    try:
        streams = datasets.load_dataset("webdataset", data_files=files, streaming=True)
    except Exception as error:  # as above
        raise DataError(f"{name} are no shards of pictures ({_first_line(error)}); make them again") from error
    chosen, part = _choose_streams(name, streams, split)
    stream = RowStream(name, list(chosen.values()), part)
    return _open(stream, stream.census(), split, wish)


def _open(stream: RowStream, count: int, split: str, wish: Wish) -> Pictures:
    framing = choose_framing(stream.name, itertools.islice(stream.entries(None), SAMPLE), wish)
    if stream.columns.label and not stream.classes:
        log.warning("%s: its labels are left out, since a stream does not tell how many classes there are", stream.name)
    if count and fits_memory(count, framing):
        return keep(stream.name, split, stream.listing, framing, stream.entries(None))
    if split != "train":
        log.warning("%s: only the first %d pictures of the split %s are used", stream.name, TEST_PICTURES, split)
        return keep(stream.name, split, stream.listing, framing, itertools.islice(stream.entries(None), TEST_PICTURES))
    spec = PictureSpec(framing.image_size, framing.channels, stream.classes, stream.columns.caption is not None)
    return Streamed(stream.name, split, spec, framing, stream, count)


def _choose_streams(
    name: str, streams: Mapping[str, IterableDataset], split: str
) -> tuple[dict[str, IterableDataset], str]:
    """The streams that hold a split, and the part of them that belongs to it."""
    if split == "all":
        return dict(streams), "all"
    own = next((key for key in FOLDERS[split] if key in streams), None)
    has_test = any(key in streams for key in FOLDERS["test"])
    if own and (split != "train" or has_test):
        return {own: streams[own]}, "all"
    if "train" in streams and not has_test:
        return {"train": streams["train"]}, "train" if split == "train" else "test"
    raise DataError(f"{name} has no split {split!r}{suggest(split, streams)}; or ask for the split 'all'")


def _shard_split(shard: Path) -> str:
    words = {shard.parent.name.lower(), *re.split(r"[^a-z]+", shard.stem.lower())}
    return "test" if words & set(FOLDERS["test"]) else "train"


def _content(picture: Mapping[str, Any] | None) -> bytes:
    if not picture:
        return b""
    return picture["bytes"] if picture["bytes"] is not None else Path(picture["path"]).read_bytes()


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__
