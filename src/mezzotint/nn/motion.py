"""Moving pictures in their plane."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rigid(degrees: float = 0.0, translation: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """The matrix M that turns a picture about its centre and then shifts it: what was at p is at M p; (3, 3) float64.

    p is (x, y, 1), x to the right and y down, from the centre, in widths of the picture.

    degrees      of the rotation, clockwise as it is seen
    translation  to the right and down, in widths of the picture
    """
    angle = math.radians(degrees)
    c, s = math.cos(angle), math.sin(angle)
    rows = [[c, -s, translation[0]], [s, c, translation[1]], [0.0, 0.0, 1.0]]
    return torch.tensor(rows, dtype=torch.float64, device="cpu")
