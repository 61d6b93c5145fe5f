"""The loader against the training that it feeds, and against a plain `datasets` loop over 10,000 PNG files.

python benchmarks/loader.py [--json] [--pictures N] [--repeats N]
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from harness import Row, alternate, arguments, report, setting
from PIL import Image

import mezzotint as mz
import mezzotint.data.pictures
from mezzotint.core.precision import autocast, resolve_precision
from mezzotint.data import Loader, Pictures, open_pictures

BATCH = 128
SIZE = 32
CLASSES = 10
CPU = torch.device("cpu")
PRECISION = resolve_precision("auto", CPU)
DRAWN, TRAINED = 100 * BATCH, 2 * BATCH  # pictures between two looks at the clock, of the loader and of the training


def draw(loader: Loader, pictures: int) -> None:
    for _ in range(-(-pictures // BATCH)):
        loader.next()


def trainer(pictures: Pictures) -> Callable[[], None]:
    """A step of the smallest system, always on the same batch: forward in the precision "auto", backward, AdamW."""
    model = mz.create("rectified-flow", classes=pictures.spec.classes)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    batch = Loader(pictures, BATCH).next()

    def step() -> None:
        with autocast(PRECISION, CPU):
            loss = model(batch).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def train(step: Callable[[], None], pictures: int) -> None:
    for _ in range(pictures // BATCH):
        step()


def make_folder(folder: Path, pictures: int) -> None:
    """PNG files of smooth noise in ten subfolders."""
    random = np.random.default_rng(0)
    for k in range(pictures):
        place = folder / f"class {k % CLASSES}"
        place.mkdir(exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (SIZE // 4, SIZE // 4, 3), dtype=np.uint8))
        coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(place / f"{k:05d}.png")


def peer_loader(folder: Path, cache: str, workers: int) -> torch.utils.data.DataLoader:
    """What the documentation of `datasets` shows: PIL to array in a transform, batches from torch's DataLoader."""
    import datasets

    datasets.disable_progress_bars()
    table = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=cache, split="train")

    def transform(rows: dict) -> dict:
        arrays = np.stack([np.asarray(image.convert("RGB")) for image in rows["image"]])  # (B, H, W, 3)
        images = torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1
        return {"image": list(images), "label": rows["label"]}

    table.set_transform(transform)
    return torch.utils.data.DataLoader(table, BATCH, shuffle=True, num_workers=workers)


def exhaust(batches: torch.utils.data.DataLoader) -> None:
    for _ in batches:
        pass


def opened(folder: Path, memory: int) -> Pictures:
    """The folder as ours, kept in memory only if it takes no more bytes than `memory`."""
    usual = mezzotint.data.pictures.MEMORY_LIMIT
    mezzotint.data.pictures.MEMORY_LIMIT = memory
    try:
        return open_pictures(str(folder), split="all")
    finally:
        mezzotint.data.pictures.MEMORY_LIMIT = usual


def compare_folders(folder: Path, pictures: int, repeats: int) -> list[Row]:
    rows = []
    versions = setting("datasets", "pillow")

    def open_and_draw() -> None:
        draw(Loader(opened(folder, 2**31), BATCH), pictures)

    def open_and_exhaust() -> None:
        with tempfile.TemporaryDirectory() as cache:
            exhaust(peer_loader(folder, cache, 0))

    mine, theirs = alternate(open_and_draw, open_and_exhaust, repeats)
    rows.append(Row("opening the folder and the first epoch", mine, theirs, "s", versions))
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as cache:
        for kept, workers in ((True, cores), (False, cores), (False, 0)):
            peer = peer_loader(folder, cache, workers)
            with closing(Loader(opened(folder, 2**31 if kept else 0), BATCH)) as ours:
                mine, theirs = alternate(lambda: draw(ours, pictures), lambda: exhaust(peer), repeats)  # noqa: B023
            label = f"later epochs, {'kept in memory' if kept else 'decoded each time'}; peer with {workers} workers"
            rows.append(Row(label, pictures / mine, pictures / theirs, "pictures/s", versions))
    return rows


def compare_training(repeats: int) -> list[Row]:
    """The set that comes with the package, drawn and trained on in turn."""
    pictures = open_pictures("fashion")
    step = trainer(pictures)
    step()  # the first allocates, and makes AdamW's moments
    rows = []
    for pixels, flip in (("levels", False), ("levels", True), ("dequantised", True), ("binary", True)):
        loader = Loader(pictures, BATCH, flip=flip, pixels=pixels)
        draw(loader, 10 * BATCH)
        mine, theirs = alternate(lambda: draw(loader, DRAWN), lambda: train(step, TRAINED), repeats)  # noqa: B023
        label = f"fashion, {pixels}{', flips' if flip else ''}; peer: training"
        rows.append(
            Row(label, DRAWN / mine, TRAINED / theirs, "pictures/s", setting(precision=f"training in {PRECISION}"))
        )
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), chosen.pictures)
        rows = compare_folders(Path(folder), chosen.pictures, chosen.repeats)
    report([*compare_training(chosen.repeats), *rows], chosen.json)


if __name__ == "__main__":
    main()
