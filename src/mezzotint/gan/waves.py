"""Fourier features: an input of generators that is known everywhere on the plane, so that it can be moved."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Waves(nn.Module):
    """Waves of random frequencies and phases, sampled on a square around the centre of the picture.

        waves_k(q) = sin(2 pi (f_k . q + phi_k)),    f_k uniform on a disc of radius f_c, phi_k on [0, 1)

    They are fixed. Where a motion makes pictures smaller, waves that come above f_c are dampened in a line, to 0 at
    half the sampling rate, so that none is another's alias.

    channels  number of waves
    size      pixels of the map
    rate      s, pixels per width of the picture
    cutoff    f_c, cycles per width of the picture

    Source: Karras et al. 2021 (arXiv 2106.12423), section 3.1, "Fourier features".
    """

    frequencies: Tensor
    phases: Tensor
    grid: Tensor

    def __init__(self, channels: int, size: int, rate: float, cutoff: float) -> None:
        super().__init__()
        self.cutoff, self.nyquist = cutoff, rate / 2
        random = torch.rand(3, channels, device="cpu")
        radius, angle = cutoff * random[0].sqrt(), 2 * math.pi * random[1]
        self.register_buffer("frequencies", torch.stack([radius * angle.cos(), radius * angle.sin()], 1))  # (C, 2)
        self.register_buffer("phases", random[2])
        grid = (torch.arange(size, device="cpu") - (size - 1) / 2) / rate
        self.register_buffer("grid", grid, persistent=False)

    def waves(self, back: Tensor) -> Tensor:
        """(B, C, size, size), whose pixel at p is waves(q), q = A p for the matrix A = `back`, (B, 3, 3)."""
        f = self.frequencies @ back[:, :2, :2]  # A^T f, (B, C, 2)
        phases = self.phases + (self.frequencies @ back[:, :2, 2:]).squeeze(2)  # (B, C)
        along_x = f[:, :, :1] * self.grid + phases[:, :, None]  # (B, C, size)
        along_y = f[:, :, 1:] * self.grid
        y = torch.sin(2 * math.pi * (along_x[:, :, None, :] + along_y[:, :, :, None]))
        if self.nyquist <= self.cutoff:
            return y
        amplitude = ((self.nyquist - f.norm(dim=2)) / (self.nyquist - self.cutoff)).clamp(0, 1)
        return y * amplitude[:, :, None, None]

    def forward(self, n: int, motion: Tensor | None = None) -> Tensor:
        """n of them, (n, C, size, size), moved by M, (3, 3) or (n, 3, 3): waves(M^{-1} p)."""
        if motion is None:
            return self.waves(torch.eye(3).to(self.grid)[None]).expand(n, -1, -1, -1)
        return self.waves(torch.linalg.inv(motion.double()).to(self.grid).expand(n, 3, 3))
