"""One picture file becomes grey levels: decoding, orientation, background, size."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..core.errors import DataError

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
CROPS = ("center", "squash", "pad")
MOST_PIXELS = 100_000_000  # a larger picture is taken for a decompression bomb
DEEP_GREY = {"I", "I;16", "I;16B", "I;16L", "I;16N"}  # Pillow's modes for 16 bits in one channel


class Damaged(DataError):
    """This one file is no usable picture; the message says why."""


@dataclass(frozen=True)
class Framing:
    """How a picture of any size and kind is brought to (channels, image_size, image_size).

    image_size  height and width in pixels
    channels    1 grey (ITU-R 601 luma), 3 RGB
    crop        "center": the largest centred square; "squash": the whole picture, its sides scaled apart;
                "pad": the whole picture on a white square
    filter      "nearest", "box", "bilinear", "bicubic" or "lanczos"; all but "nearest" widen with the scale when a
                picture is made smaller, so that nothing aliases
    """

    image_size: int
    channels: int
    crop: str = "center"
    filter: str = "lanczos"


def load(file: Path | bytes) -> Image.Image:
    """The first frame of a picture file, upright, on white, in 8 bits: mode "L" or "RGB".

    Raises `Damaged`, and nothing else, if that cannot be had.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            _refuse_bombs(image)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _flatten(image)
    except Damaged:
        raise
    except Exception as error:  # damaged bytes make Pillow raise almost anything: struct.error, SyntaxError, ...
        raise Damaged(_reason(file, error)) from None


def probe(file: Path | bytes) -> None:
    """Read no more than the header of a picture file. Raises `Damaged` if that already shows that it is unusable."""
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            _refuse_bombs(image)
    except Damaged:
        raise
    except Exception as error:  # as in `load`
        raise Damaged(_reason(file, error)) from None


def frame(image: Image.Image, framing: Framing) -> np.ndarray:
    """Grey levels (C, S, S) uint8 of a picture in mode "L" or "RGB"."""
    size = (framing.image_size, framing.image_size)
    mode = "L" if framing.channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    if framing.crop == "pad":
        image = _pad(image, framing)
    elif image.size != size:
        box = (0, 0, *image.size) if framing.crop == "squash" else _centre(image)
        image = image.resize(size, FILTERS[framing.filter], box)
    levels = np.asarray(image)
    return levels[None] if framing.channels == 1 else levels.transpose(2, 0, 1)  # (C, S, S)


def decode(file: Path | bytes, framing: Framing) -> np.ndarray:
    """Grey levels (C, S, S) uint8 of a picture file. Raises `Damaged`, and nothing else."""
    image = load(file)
    try:
        return frame(image, framing)
    except (MemoryError, ValueError, OSError) as error:
        raise Damaged(str(error)) from None


def is_grey(image: Image.Image) -> bool:
    """Whether every pixel of a picture in mode "L" or "RGB" is grey."""
    if image.mode == "L":
        return True
    levels = np.asarray(image)
    return bool((levels == levels[..., :1]).all())


def _centre(image: Image.Image) -> tuple[int, int, int, int]:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return left, top, left + side, top + side


def _pad(image: Image.Image, framing: Framing) -> Image.Image:
    # ImageOps.pad lets a very long picture vanish: Pillow 13 returns nothing but white, Pillow 12 an error
    side = framing.image_size
    width, height = (max(1, round(length / max(image.size) * side)) for length in image.size)
    square = Image.new(image.mode, (side, side), "white")
    square.paste(
        image.resize((width, height), FILTERS[framing.filter]), (round((side - width) / 2), round((side - height) / 2))
    )
    return square


def _refuse_bombs(image: Image.Image) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise Damaged(f"{image.width} x {image.height} pixels, more than {MOST_PIXELS:,}")


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode in DEEP_GREY:
        return _eight_bits(image)
    if image.mode == "F":
        raise Damaged("floating-point pixels, which have no agreed white; save it with 8 or 16 bits")
    if image.mode in ("1", "L"):
        return image if image.mode == "L" and "transparency" not in image.info else _on_white(image.convert("LA"))
    if image.has_transparency_data:
        return _on_white(image.convert("LA" if image.mode == "LA" else "RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new(image.mode, image.size, "white")
    if image.mode == "RGBA":
        return Image.alpha_composite(white, image).convert("RGB")
    white.paste(image, mask=image.getchannel("A"))
    return white.convert("L")


def _eight_bits(image: Image.Image) -> Image.Image:
    # Pillow's own conversion clips at 255, which turns most of a 16-bit picture white
    deep = np.asarray(image).astype(np.int64)
    if deep.min() < 0 or deep.max() > 65535:
        raise Damaged("32-bit pixels, which have no agreed white; save it with 8 or 16 bits")
    return Image.fromarray(((deep + 128) // 257).astype(np.uint8))  # the nearest of 256 levels: 65535 becomes 255


def _reason(file: Path | bytes, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        length = len(file) if isinstance(file, bytes) else file.stat().st_size
        return "it holds no picture of a known format" if length else "it is empty"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MOST_PIXELS:,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).split("\n")[0] or type(error).__name__
