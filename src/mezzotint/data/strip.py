"""Pictures while they come about: time from left to right, or as an animation, with the attention in red."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.model import Rectangles
from .grid import READABLE, grid

if TYPE_CHECKING:
    from PIL import Image

COLUMNS = 12  # of a strip, of steps that are evenly spaced
RED = (220, 30, 30)


def framed(images: Tensor, rectangles: Rectangles | None, step: int) -> Tensor:
    """Pictures (n, C, S, S), enlarged where they are small, (n, 3, ., .), with the attention of a step in red.

    The square goes from the first filter's centre to the last one's, within the picture, so that a grid of filters that
    is larger shows as the picture's border; the line is the wider, the wider the filters.
    """
    from PIL import ImageDraw

    scale = max(1, round(1.3 * READABLE / images.shape[-1]))
    drawn = []
    for k, picture in enumerate(images):
        canvas = grid(picture[None], scale=scale, padding=0).convert("RGB")
        if rectangles is not None:
            centre, extent, std = (value[step, k] * scale for value in rectangles)
            corners = torch.cat([centre - extent / 2, centre + extent / 2]).clamp(0, canvas.width - 1).tolist()
            width = max(1, min(round(float(std) / scale), scale))
            ImageDraw.Draw(canvas).rectangle(corners, outline=RED, width=width)
        levels = torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8)
        drawn.append(levels.reshape(canvas.height, canvas.width, 3).permute(2, 0, 1))
    return torch.stack(drawn) / 127.5 - 1


def columns(steps: int) -> list[int]:
    """The steps that a strip shows: the last one, and those before at even distances."""
    count = min(steps, COLUMNS)
    return [round((k + 1) * steps / count) - 1 for k in range(count)]


def strip(*rows: tuple[Tensor, Rectangles | None]) -> Image.Image:
    """Pictures (T, n, C, S, S) with their attention, time from left to right; of several such, row by row in turn."""
    chosen = columns(len(rows[0][0]))
    frames = [
        torch.stack([framed(pictures[step], rectangles, step) for step in chosen], 1) for pictures, rectangles in rows
    ]
    return grid(torch.stack(frames, 1).flatten(0, 2), columns=len(chosen), scale=1)


def animation(pictures: Tensor, rectangles: Rectangles | None, file: Path, columns: int | None = None) -> None:
    """Every step (T, n, C, S, S) in turn, and the finished pictures without attention for a while, as a GIF."""
    frames = [framed(images, rectangles, step) for step, images in enumerate(pictures)]
    frames.append(framed(pictures[-1], None, 0))
    sheets = [grid(frame, columns=columns, scale=1).quantize(64) for frame in frames]
    times = [max(60, 2400 // len(pictures))] * len(pictures) + [2000]  # milliseconds
    sheets[0].save(file, save_all=True, append_images=sheets[1:], duration=times, loop=0)
