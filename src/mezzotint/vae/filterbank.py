"""Attention of DRAW: a grid of Gaussian filters, laid over a picture to read from it or to write to it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.model import Rectangles

NUMBERS = 5  # that a network gives for an attention: where, how wide, how far apart, how strong


class Attention(NamedTuple):
    """Where N x N filters lie on a picture of S x S pixels, which the paper counts from 1 to S.

    The paper's pictures are A x B; all of ours are square, so that A = B = S.
    """

    centre: Tensor  # g_X, g_Y: of the grid, (B, 2)
    stride: Tensor  # delta: from a filter to the next one, (B,)
    variance: Tensor  # sigma^2 of each filter, (B,)
    intensity: Tensor  # gamma, (B,)

    @classmethod
    def of(cls, numbers: Tensor, grid: int, size: int) -> Attention:
        """From a network's answer (g_X~, g_Y~, ln sigma^2, ln delta~, ln gamma), (B, 5).

            g = (S + 1) / 2 (g~ + 1),    delta = (S - 1) / (N - 1) delta~

        With all zeros the grid spans the picture. Its single filter, where N is 1, has no neighbour: N - 1 counts as 1.
        Source: Gregor et al. 2015 (arXiv 1502.04623), eq. 21-24.
        """
        log_variance, log_stride, log_intensity = numbers[:, 2:].unbind(1)
        return cls(
            (size + 1) / 2 * (numbers[:, :2] + 1),
            widest(grid, size) * log_stride.exp(),
            log_variance.exp(),
            log_intensity.exp(),
        )

    def rectangles(self, grid: int) -> Rectangles:
        """What it looks at, to be drawn; pixel a of 1 ... S covers the places from a - 1 to a."""
        return Rectangles(self.centre - 0.5, (grid - 1) * self.stride, self.variance.sqrt())


def widest(grid: int, size: int) -> float:
    """The stride at which the outermost of N filters lie on the outermost of S pixels."""
    return (size - 1) / max(grid - 1, 1)


def covering(grid: int, size: int, write: bool = False) -> Tensor:
    """Numbers of an attention to begin with, (5,): it spans the picture, and leaves no gaps.

    sigma is half a stride. What is written is about as high as the patch, as what is read is as high as the picture: a
    filter's weights sum to one, so those that meet in a pixel sum to 1 / delta along each axis, and 1 / gamma makes up
    for it. Of ours, to begin well.
    """
    stride = widest(grid, size)
    log_intensity = -2 * math.log(stride) if write and grid > 1 and size > 1 else 0.0
    return torch.tensor([0.0, 0.0, 2 * math.log(max(stride, 1.0) / 2), 0.0, log_intensity])


def filters(attention: Attention, grid: int, size: int) -> Tensor:
    """F_X and F_Y, (B, 2, N, S): row i is a Gaussian around mu^i over the pixels a of 1 ... S, and sums to one.

        mu^i = g + (i - N/2 - 1/2) delta,    F[i, a] = exp(-(a - mu^i)^2 / (2 sigma^2)) / Z

    Z is taken of the largest term first, so that the rows of a grid that lies beside the picture sum to one as well.
    Source: Gregor et al. 2015, eq. 19, 20, 25, 26.
    """
    dtype, device = attention.centre.dtype, attention.centre.device
    i = torch.arange(1, grid + 1, dtype=dtype, device=device)
    a = torch.arange(1, size + 1, dtype=dtype, device=device)
    offsets = (i - grid / 2 - 0.5) * attention.stride[:, None]  # (B, N)
    mu = attention.centre[:, :, None] + offsets[:, None]  # (B, 2, N)
    exponents = (a - mu[..., None]) ** 2 * (-0.5 / attention.variance)[:, None, None, None]
    return exponents.softmax(-1)


def read(images: Tensor, attention: Attention, grid: int) -> Tensor:
    """gamma F_Y x F_X^T of each channel, (B, C, N, N); Gregor et al. 2015, eq. 27.

    images  (B, C, S, S)
    """
    f_x, f_y = filters(attention, grid, images.shape[-1]).unbind(1)  # (B, N, S)
    across = torch.bmm(images.flatten(1, 2), f_x.mT).unflatten(1, images.shape[1:3])  # (B, C, S, N)
    return (attention.intensity[:, None, None] * f_y)[:, None] @ across


def write(patch: Tensor, attention: Attention, size: int) -> Tensor:
    """F_Y^T w F_X / gamma of each channel, (B, C, S, S); Gregor et al. 2015, eq. 29.

    patch  w, (B, C, N, N)
    """
    f_x, f_y = filters(attention, patch.shape[-1], size).unbind(1)  # (B, N, S)
    across = torch.bmm(patch.flatten(1, 2), f_x).unflatten(1, patch.shape[1:3])  # (B, C, N, S)
    return (f_y.mT / attention.intensity[:, None, None])[:, None] @ across


def filters_directly(numbers: Tensor, grid: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """F_X and F_Y, (N, S), and gamma of one attention (5,), N above 1.

    Term by term, as eq. 19-26 are written: slow, to compare with.
    """
    g_x, g_y, log_variance, log_stride, log_intensity = numbers
    variance, delta = torch.exp(log_variance), (size - 1) / (grid - 1) * torch.exp(log_stride)
    banks = []
    for g in (g_x, g_y):
        centre = (size + 1) / 2 * (g + 1)
        rows = []
        for i in range(1, grid + 1):
            mu = centre + (i - grid / 2 - 0.5) * delta
            weights = [torch.exp(-((a - mu) ** 2) / (2 * variance)) for a in range(1, size + 1)]
            total = torch.stack(weights).sum()
            rows.append(torch.stack([weight / total for weight in weights]))
        banks.append(torch.stack(rows))
    return banks[0], banks[1], torch.exp(log_intensity)
