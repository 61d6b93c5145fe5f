"""Pictures while they come about: time from left to right, or as an animation, with the attention in red."""

from __future__ import annotations

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
    is larger shows as the picture's border; the line is the wider, the wider the filters. Where the attention is no
    number, there is none.
    """
    from PIL import ImageDraw

    scale = max(1, round(1.3 * READABLE / images.shape[-1]))
    drawn = []
    for k, picture in enumerate(images):
        canvas = grid(picture[None], scale=scale, padding=0).convert("RGB")
        if rectangles is not None:
            centre, extent, std = (value[step, k] * scale for value in rectangles)
            corners = torch.cat([centre - extent / 2, centre + extent / 2]).clamp(0, canvas.width - 1)
            if corners.isfinite().all() and std.isfinite():
                width = max(1, min(round(float(std) / scale), scale))
                ImageDraw.Draw(canvas).rectangle(corners.tolist(), outline=RED, width=width)
        levels = torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8)
        drawn.append(levels.reshape(canvas.height, canvas.width, 3).permute(2, 0, 1))
    return torch.stack(drawn) / 127.5 - 1


def shown_steps(steps: int) -> list[int]:
    """The steps that a strip shows: the last one, and those before at even distances."""
    count = min(steps, COLUMNS)
    return [round((k + 1) * steps / count) - 1 for k in range(count)]


def strip(*rows: tuple[Tensor, Rectangles | None]) -> Image.Image:
    """Pictures (T, n, C, S, S) with their attention, time from left to right; of several such, row by row in turn."""
    chosen = shown_steps(len(rows[0][0]))
    frames = [
        torch.stack([framed(pictures[step], rectangles, step) for step in chosen], 1) for pictures, rectangles in rows
    ]
    return grid(torch.stack(frames, 1).flatten(0, 2), columns=len(chosen), scale=1)


def animation(
    *rows: tuple[Tensor, Rectangles | None], columns: int | None = None
) -> tuple[list[Image.Image], list[int]]:
    """Every step of pictures (T, n, C, S, S) in turn, and the last ones without attention for a while.

    Returns the frames, and for how long each is to be seen, milliseconds. Of several such, a frame has a row of each.

    columns  pictures in a row; None: as near to a square as n allows, or all n where there are several rows
    """
    steps, n = rows[0][0].shape[:2]
    columns = n if len(rows) > 1 else columns

    def sheet(step: int, attention: bool) -> Image.Image:
        parts = [framed(pictures[step], where if attention else None, step) for pictures, where in rows]
        return grid(torch.cat(parts), columns=columns, scale=1).quantize(64)

    sheets = [sheet(step, True) for step in range(steps)] + [sheet(steps - 1, False)]
    return sheets, [max(60, 2400 // steps)] * steps + [2000]
