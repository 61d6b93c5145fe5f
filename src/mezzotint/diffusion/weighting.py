"""How much each time counts in the loss: weights of the squared error of the network's own prediction."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .paths import Coefficients
from .predictions import components

Weighting = Callable[[Coefficients, str], Tensor]  # (path at t, prediction) -> (B,) float64


def simple(at: Coefficients, kind: str) -> Tensor:
    """1 (Ho et al. 2020, eq. 14; survey, eq. 83)."""
    return torch.ones_like(at.alpha)


def min_snr(at: Coefficients, kind: str, gamma: float = 5.0) -> Tensor:
    """min(SNR, gamma) on the squared error of the clean picture (Hang et al. 2023, section 3.4).

    A prediction y = a c + b n at a given x moves by a - b alpha / sigma when the clean picture moves by one, so its
    squared error counts min(SNR, gamma) / (a - b alpha / sigma)^2: min(SNR, gamma) / SNR for noise,
    min(SNR, gamma) / (SNR + 1) for v.
    """
    a, b = components(kind, at)
    return at.snr.clamp(max=gamma) / (a - b * at.alpha / at.sigma) ** 2


WEIGHTINGS: dict[str, Weighting] = {"simple": simple, "min-snr": min_snr}
