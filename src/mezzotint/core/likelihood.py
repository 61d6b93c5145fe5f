"""Likelihoods in one unit: nats per picture inside, bits per dimension for people."""

from __future__ import annotations

import math
from typing import Literal, TypeVar

from torch import Tensor

Number = TypeVar("Number", float, Tensor)

LEVELS = 256  # grey levels of a channel of a pixel
Pixels = Literal["levels", "dequantised", "binary"]  # what a model is shown of a grey level; see `data.loader.Loader`


def bits_per_dim(log_prob: Number, dims: int) -> Number:
    """Bits per dimension of a discrete picture: -log p(x) / (D ln 2).

    log_prob  ln p of the 8-bit picture, nats per picture
    dims      D = C * H * W
    """
    return log_prob / (-dims * math.log(2.0))


def discrete_log_prob(log_density: Number, dims: int, levels: int = LEVELS) -> Number:
    """ln p of the picture with `levels` grey levels from a density over [-1, 1] at uniformly dequantised x.

    A level is a cell of width 2 / levels, so P(cell) = E[p(x + u)] * (2 / levels)^D, and by Jensen
    ln P >= E[ln p(x + u)] + D ln(2 / levels) (Theis et al. 2016, section 3.1).
    """
    return log_density + dims * math.log(2.0 / levels)
