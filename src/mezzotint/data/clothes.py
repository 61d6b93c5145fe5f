"""The pictures of clothes that come with the package, and sentences about them."""

from __future__ import annotations

import json
from importlib.resources import files

import numpy as np
from PIL import Image

from ..core.batch import fold

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SIDE = 28
DARK, LIGHT = 85, 170  # mean level of the garment below and above which it is called dark and light
BACKGROUND = 8  # levels below belong to the background

TEMPLATES = (
    "{plain}",
    "a photo of {plain}",
    "{toned}",
    "{toned} on a black background",
    "a small picture of {toned}",
    "a shop's photo of {plain}, seen from the {side}",
)


def read_clothes(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The first pictures of Fashion-MNIST: levels (N, 28, 28) uint8 and labels (N,); "train" 10,000, "test" 2,000."""
    folder = files(__package__) / "fashion"
    with (folder / f"{split}.png").open("rb") as file:
        sheet = np.asarray(Image.open(file))
    rows, columns = (side // SIDE for side in sheet.shape)
    tiles = sheet.reshape(rows, SIDE, columns, SIDE).transpose(0, 2, 1, 3)  # (rows, columns, 28, 28)
    digits = json.loads((folder / "labels.json").read_text())[split]
    return tiles.reshape(-1, SIDE, SIDE).copy(), np.frombuffer(digits.encode(), np.uint8).astype(np.int64) - ord("0")


def describe_clothes(levels: np.ndarray, labels: np.ndarray) -> list[str]:
    """One sentence for each picture (N, 28, 28), from a template chosen by its index; dark, grey and light are true."""
    garment = levels >= BACKGROUND
    brightness = (levels * garment).sum((1, 2)) / np.maximum(garment.sum((1, 2)), 1)
    tones = np.select([brightness < DARK, brightness > LIGHT], ["dark", "light"], "grey")
    return [
        _sentence(TEMPLATES[fold(index) % len(TEMPLATES)], CLASSES[label], str(tone))
        for index, (label, tone) in enumerate(zip(labels, tones))
    ]


def _sentence(template: str, name: str, tone: str) -> str:
    pair = "pair of " if name == "trouser" else ""
    noun = "trousers" if name == "trouser" else name
    article = "an" if not pair and noun[0] in "aeiou" else "a"
    side = "side" if name in ("sandal", "sneaker", "ankle boot") else "front"
    return template.format(plain=f"{article} {pair}{noun}", toned=f"a {pair}{tone} {noun}", side=side)
