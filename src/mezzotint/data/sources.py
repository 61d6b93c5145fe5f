"""`open_pictures`: from the name of a source to a set of pictures."""

from __future__ import annotations

import glob
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..core.errors import ConfigError, DataError, suggest
from . import clothes
from .decode import CROPS, FILTERS, frame
from .folder import SPLIT_FOLDERS, check_split, choose_split, list_folder
from .idx import holds_idx, read_split
from .pictures import InMemory, OnDisk, Pictures, Transported, fits_memory, keep, spread_over
from .reading import SAMPLE, Wish, choose_framing
from .streams import open_hub, open_shards

DIGITS = tuple("0123456789")
HUB = {"mnist": "ylecun/mnist", "fashion-mnist": "zalando-datasets/fashion_mnist"}
DATA = "MEZZOTINT_DATA"  # the environment variable that names the folder of `make data`; else ./data


def open_pictures(
    source: str | os.PathLike[str],
    *,
    split: str = "train",
    image_size: int | None = None,
    channels: int | None = None,
    crop: str = "center",
    filter: str = "lanczos",
    beside: str | os.PathLike[str] | None = None,
) -> Pictures:
    """A set of pictures.

    source      "fashion": clothes, 28 x 28 grey, 10 classes, captions; comes with the package
                "mnist", "fashion-mnist", or "mnist:FOLDER": idx files, looked for in $MEZZOTINT_DATA and ./data,
                then the hub
                a folder: labels from a metadata file, or from its subfolders if there are several and all pictures
                lie equally deep; captions from a metadata file
                (metadata.jsonl, .csv, .parquet, with a column file_name) or from a .txt beside each picture
                a folder of .tar files, or a pattern such as "shards/*.tar": WebDataset shards
                "hf:owner/name" or "hf:owner/name@config": a set on the hub
                any other word: a folder of this name in $MEZZOTINT_DATA or ./data
                "fashion/sneaker", "mnist/7": one class of a set that comes by name, without labels
    split       "train", "test", "validation" or "all"; a source that has no test split of its own (for a folder:
                subfolders such as train/ and test/) keeps every tenth picture for it
    image_size  height and width in pixels; by default the common size of the pictures if they are square and
                at most 256 pixels wide, else 64
    channels    1 or 3; by default 1 if the pictures are grey
    crop        "center", "squash" or "pad" (`decode.Framing`)
    filter      "nearest", "box", "bilinear", "bicubic" or "lanczos"
    beside      another source; each picture then comes with one of its pictures, brought to the same size and channels,
                from which it is to be drawn: `Batch.source`

    What size and channels the pictures have is judged by a sample: 256 spread evenly over a folder, the first 256 of
    shards or of a set on the hub. A picture outside the sample that differs is brought to the same size and channels.

    Sets whose decoded pictures take at most 2 GiB are kept in memory.

    Raises `ConfigError` for an option that does not exist, and `DataError` if there are no pictures, or more than 5 %
    of them are damaged.
    """
    source = os.fspath(source)
    check_split(split)
    wish = _checked(Wish(image_size, channels, crop, filter))
    if beside is not None:
        found = _open(source, split, wish)
        size, depth = found.spec.image_size, found.spec.channels
        return Transported(found, _open(os.fspath(beside), split, _checked(Wish(size, depth, crop, filter))))
    return _open(source, split, wish)


def _open(source: str, split: str, wish: Wish) -> Pictures:
    whole, _, label = source.rpartition("/")
    if whole in ("fashion", *HUB) and not Path(source).exists():
        return _one_class(_open(whole, split, wish), label)
    kind, _, place = source.partition(":")
    if source == "fashion":
        return _open_clothes(split, wish)
    if kind == "hf":
        repository, _, config = place.partition("@")
        return open_hub(source, repository, config or None, split, wish)
    if kind in HUB:
        return _open_mnist(source, kind, place, split, wish)
    if source.endswith(".tar"):
        return open_shards(source, _shards(source), split, wish)
    return _open_folder(source, _find_folder(source), split, wish)


def _one_class(pictures: Pictures, label: str) -> Pictures:
    """The pictures of one class, which has no use for labels. Raises `ConfigError` that names the nearest class."""
    classes = pictures.spec.classes
    if label not in classes:
        raise ConfigError(f"{pictures.name} has no class {label!r}{suggest(label, classes)}")
    assert pictures.labels is not None
    rows = pictures.rows((pictures.labels == classes.index(label)).nonzero().flatten())
    return InMemory(f"{pictures.name}/{label}", pictures.split, rows.levels, None, rows.captions)


def _checked(wish: Wish) -> Wish:
    if wish.crop not in CROPS:
        raise ConfigError(f"crop cannot be {wish.crop!r}{suggest(wish.crop, CROPS)}")
    if wish.filter not in FILTERS:
        raise ConfigError(f"no filter is called {wish.filter!r}{suggest(wish.filter, FILTERS)}")
    if wish.channels not in (None, 1, 3):
        raise ConfigError(f"pictures have 1 channel (grey) or 3 (RGB), not {wish.channels}")
    if wish.image_size is not None and wish.image_size < 1:
        raise ConfigError(f"an image size is a number of pixels, not {wish.image_size}")
    return wish


def _open_clothes(split: str, wish: Wish) -> Pictures:
    parts = {"train": ("train",), "all": ("train", "test")}.get(split, ("test",))
    levels, labels = (np.concatenate(arrays) for arrays in zip(*(clothes.read_clothes(part) for part in parts)))
    return _from_arrays("fashion", split, levels, labels, clothes.CLASSES, wish)


def _open_mnist(source: str, kind: str, place: str, split: str, wish: Wish) -> Pictures:
    folders = [Path(place)] if place else [folder / kind for folder in data_folders()]
    folder = next((folder for folder in folders if holds_idx(folder)), None)
    if place and folder is None:
        raise DataError(f"{place} holds no train-images-idx3-ubyte; `make data` brings it")
    classes = clothes.CLASSES if kind == "fashion-mnist" else DIGITS
    if folder is not None:
        return _open_idx(source, folder, split, classes, wish)
    try:
        found = open_hub(source, HUB[kind], None, split, Wish(28, 1))
    except DataError as error:
        places = " and ".join(str(folder) for folder in folders)
        raise DataError(f"{source} is neither in {places} nor to be had from the hub; `make data` brings it") from error
    whole = found.rows(range(len(found)))
    if whole.labels is None:
        raise DataError(f"{source} on the hub has no labels; `make data` brings it")
    return _from_arrays(source, split, whole.levels[:, 0].numpy(), whole.labels.numpy(), classes, wish)


def _open_idx(source: str, folder: Path, split: str, classes: tuple[str, ...], wish: Wish) -> Pictures:
    parts = {"train": ("train",), "all": ("train", "test")}.get(split, ("test",))
    levels, labels = (np.concatenate(arrays) for arrays in zip(*(read_split(folder, part) for part in parts)))
    if labels.max() >= len(classes):
        raise DataError(
            f"{folder} has the label {labels.max()}, and {source} has {len(classes)} classes; fetch it again"
        )
    return _from_arrays(source, split, levels, labels, classes, wish)


def _from_arrays(
    name: str, split: str, levels: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], wish: Wish
) -> Pictures:
    """A grey set (N, H, W) of which every picture is sound; sentences too if it shows clothes."""
    captions = clothes.describe_clothes(levels, labels) if classes == clothes.CLASSES else None
    framing = choose_framing(
        name, (), Wish(wish.image_size or levels.shape[1], wish.channels or 1, wish.crop, wish.filter)
    )
    if framing.image_size == levels.shape[1] == levels.shape[2]:
        framed = torch.from_numpy(levels)[:, None].expand(-1, framing.channels, -1, -1)  # (N, C, S, S)
    else:
        framed = torch.from_numpy(np.stack([frame(Image.fromarray(picture), framing) for picture in levels]))
    return InMemory(name, split, framed.contiguous(), torch.from_numpy(labels), captions, classes)


def _open_folder(source: str, folder: Path, split: str, wish: Wish) -> Pictures:
    if holds_idx(folder):
        return _open_idx(source, folder, split, clothes.CLASSES if "fashion" in folder.name else DIGITS, wish)
    shards = sorted(shard for place in (".", *SPLIT_FOLDERS) for shard in (folder / place).glob("*.tar"))
    if shards:
        return open_shards(source, shards, split, wish)
    whole = list_folder(folder, source)
    sound = [entry for entry in whole.entries if entry.fault is None]  # of the whole, so that all splits agree
    framing = choose_framing(source, [sound[k] for k in spread_over(len(sound), SAMPLE)], wish)
    chosen = choose_split(folder, whole, split)
    if fits_memory(len(chosen.entries), framing):
        return keep(source, split, chosen, framing)
    return OnDisk(source, split, chosen, framing)


def _find_folder(source: str) -> Path:
    for folder in (Path(source).expanduser(), *(folder / source for folder in data_folders())):
        if folder.is_dir():
            if not os.access(folder, os.R_OK | os.X_OK):
                raise DataError(f"{source} may not be read; change its permissions")
            return Path(os.path.normpath(folder))
        if folder.is_file():
            raise DataError(f"{source} is a file; pictures are read from a folder, or from shards that end in .tar")
    known = {"fashion", *HUB, *(path.name for folder in data_folders() if folder.is_dir() for path in folder.iterdir())}
    raise DataError(f"there is no folder {source}, and no set of this name{suggest(source, known)}")


def _shards(pattern: str) -> list[Path]:
    shards = sorted(Path(path) for path in glob.glob(os.path.expanduser(pattern), recursive=True))
    if not shards:
        raise DataError(f"no file matches {pattern}; check the path")
    return shards


def data_folders() -> list[Path]:
    """Where `make data` may have put its sets."""
    given = os.environ.get(DATA)
    return [*([Path(given)] if given else []), Path("data")]
