"""The loader against the training that it feeds, and against a plain `datasets` loop over 10,000 PNG files.

python benchmarks/loader.py [--json] [--training-rate PICTURES_PER_SECOND] [--pictures N] [--repeats N]
"""

from __future__ import annotations

import logging
import os
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from harness import Row, alternate, arguments, report, seconds, setting
from PIL import Image

import mezzotint as mz
import mezzotint.data.pictures
from mezzotint.data import Loader, Pictures, open_pictures

BATCH = 128
SIZE = 32
CLASSES = 10


def draw(loader: Loader, pictures: int) -> None:
    for _ in range(-(-pictures // BATCH)):
        loader.next()


def loader_rate(pixels: str, flip: bool, batches: int = 200) -> float:
    """Pictures per second of the set that comes with the package."""
    loader = Loader(open_pictures("fashion"), BATCH, flip=flip, pixels=pixels)
    draw(loader, 10 * BATCH)
    return batches * BATCH / seconds(lambda: draw(loader, batches * BATCH))


def training_rate(steps: int = 5) -> float:
    """Pictures per second of the smallest system: forward in bfloat16, backward, AdamW."""
    pictures = open_pictures("fashion")
    model = mz.create("rectified-flow", classes=pictures.spec.classes)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    batch = Loader(pictures, BATCH).next()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    return steps * BATCH / seconds(lambda: [step() for _ in range(steps)])


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
    with tempfile.TemporaryDirectory() as cache:
        for workers in (0, os.cpu_count() or 1):
            peer = peer_loader(folder, cache, workers)
            for name, memory in (("kept in memory", 2**31), ("decoded each time", 0)):
                with closing(Loader(opened(folder, memory), BATCH)) as ours:
                    mine, theirs = alternate(lambda: draw(ours, pictures), lambda: exhaust(peer), repeats)  # noqa: B023
                label = f"later epochs, {name}; peer with {workers} workers"
                rows.append(Row(label, pictures / mine, pictures / theirs, "pictures/s", versions))
    return rows


def compare_training(rate: float | None) -> list[Row]:
    rate = rate or training_rate()
    options = (("levels", False), ("levels", True), ("dequantised", True), ("binary", True))
    return [
        Row(
            f"fashion, {pixels}{', flips' if flip else ''}; peer: training",
            loader_rate(pixels, flip),
            rate,
            "pictures/s",
            setting(precision="training in bfloat16"),
        )
        for pixels, flip in options
    ]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--training-rate", type=float, help="pictures/s of the smallest system; else it is measured")
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), chosen.pictures)
        rows = compare_folders(Path(folder), chosen.pictures, chosen.repeats)
    report([*compare_training(chosen.training_rate), *rows], chosen.json)


if __name__ == "__main__":
    main()
