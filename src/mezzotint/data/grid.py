"""Pictures side by side in one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

READABLE = 64  # pixels: smaller pictures are enlarged to about this size
MARGIN = 255  # grey level between the pictures


def grid(
    images: Tensor, columns: int | None = None, scale: int | None = None, padding: int | None = None
) -> Image.Image:
    """Pictures (B, C, H, W) in [-1, 1], row by row, as one PIL picture (grey for C = 1, RGB for C = 3).

    columns  how many in a row; None: as near to a square as B allows
    scale    each pixel becomes scale x scale equal ones; None: so that small pictures are easy to see
    padding  white pixels around and between pictures; None: a thirty-second of a picture

    The same pictures always give the same bytes. Raises `DataError` for anything but grey or RGB pictures.
    """
    from PIL import Image

    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise DataError(f"a grid shows pictures (B, 1 or 3, H, W), and these have the shape {tuple(images.shape)}")
    n, channels, height, width = images.shape
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    scale = scale or max(1, READABLE // max(height, width))
    padding = max(1, max(height, width) * scale // 32) if padding is None else padding
    levels = ((images.detach().float().cpu().nan_to_num() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    levels = levels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)  # (B, C, H scale, W scale)
    rows = math.ceil(n / columns)
    step_y, step_x = height * scale + padding, width * scale + padding
    canvas = torch.full((channels, rows * step_y + padding, columns * step_x + padding), MARGIN, dtype=torch.uint8)
    for k, picture in enumerate(levels):
        top, left = padding + k // columns * step_y, padding + k % columns * step_x
        canvas[:, top : top + height * scale, left : left + width * scale] = picture
    pixels = canvas.permute(1, 2, 0).numpy()  # (H, W, C)
    return Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
