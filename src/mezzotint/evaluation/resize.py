"""Resizing as the published metrics do it, in torch alone. A metric depends on it, so it always has a name.

Grey levels are floats in [0, 255] throughout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def tf1_bilinear(levels: Tensor, size: int) -> Tensor:
    """(B, C, H, W) to (B, C, size, size) as TensorFlow 1.x: output pixel i is read at i H / size, without antialiasing.

    FID was defined with it: pictures are shifted by up to half a pixel and large ones are aliased (Parmar et al. 2022,
    arXiv 2104.11222, section 3). For comparison with published numbers only.
    """
    top, bottom, dy = _neighbours(levels.shape[2], size, levels)
    left, right, dx = _neighbours(levels.shape[3], size, levels)
    rows_top, rows_bottom = levels[:, :, top], levels[:, :, bottom]  # (B, C, size, W)
    upper = rows_top[..., left] + (rows_top[..., right] - rows_top[..., left]) * dx  # (B, C, size, size)
    lower = rows_bottom[..., left] + (rows_bottom[..., right] - rows_bottom[..., left]) * dx
    return upper + (lower - upper) * dy[:, None]


def _neighbours(length: int, size: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each output pixel: the input pixel before, the one after, and how far it is between them."""
    scale = torch.tensor(length / size, dtype=torch.float32)  # float32, as TensorFlow computes it
    place = torch.arange(size, dtype=torch.float32) * scale
    before = place.floor().long()
    after = (before + 1).clamp_max(length - 1)
    return before.to(like.device), after.to(like.device), (place - before).to(like)


def clean(levels: Tensor, size: int) -> Tensor:
    """(B, C, H, W) to (B, C, size, size): bicubic with antialiasing, as Pillow on float pictures, cut to [0, 255].

    The resize of clean-fid (Parmar et al. 2022, arXiv 2104.11222, section 3.1).
    """
    if levels.shape[2:] == (size, size):
        return levels
    return F.interpolate(levels, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
