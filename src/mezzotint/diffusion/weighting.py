"""How much each time counts in the loss: weights of the squared error of the network's own prediction.

Papers state their weights for the error of one prediction or another. All errors at a given x are multiples of each
other: a prediction y = a c + b n moves by a - b alpha / sigma when the clean picture c moves by one. So each weight is
written here as the paper has it, and `for_prediction` brings it to what the network predicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .paths import Coefficients
from .predictions import DATA_STD, components

Weighting = Callable[[Coefficients, str], Tensor]  # (path at t, prediction) -> (B,) float64


def for_prediction(of_clean: Tensor, at: Coefficients, kind: str) -> Tensor:
    """The weight of the squared error of `kind` that equals the weight `of_clean` of that of the clean picture."""
    a, b = components(kind, at)
    return of_clean / (a - b * at.alpha / at.sigma) ** 2


def simple(at: Coefficients, kind: str) -> Tensor:
    """1 (Ho et al. 2020, eq. 14; survey, eq. 83)."""
    return torch.ones_like(at.alpha)


def noise(at: Coefficients, kind: str) -> Tensor:
    """1 on the noise, whatever is predicted: sigma^2 on the score (Song et al. 2021, section 3.3)."""
    return for_prediction(at.snr, at, kind)


def vlb(at: Coefficients, kind: str) -> Tensor:
    """-SNR'(t) / 2 on the clean picture: the variational bound in continuous time (Kingma et al. 2021, eq. 17).

    With times uniform on [0, 1] and the error summed over the picture, the expected loss is the bound in nats, but for
    the terms of both ends. SNR' = 2 SNR (alpha'/alpha - sigma'/sigma).
    """
    of_clean = at.snr * at.d_sigma / at.sigma - at.alpha * at.d_alpha / at.sigma**2
    return for_prediction(of_clean, at, kind)


def edm(at: Coefficients, kind: str) -> Tensor:
    """(s^2 + d^2) / (s d)^2 on the clean picture, s = sigma / alpha: 1 on F (Karras et al. 2022, table 1)."""
    of_clean = at.snr + 1 / DATA_STD**2
    return for_prediction(of_clean, at, kind)


def min_snr(at: Coefficients, kind: str, gamma: float = 5.0) -> Tensor:
    """min(SNR, gamma) on the clean picture (Hang et al. 2023, section 3.4).

    It is min(SNR, gamma) / SNR for noise, min(SNR, gamma) / (SNR + 1) for v.
    """
    return for_prediction(at.snr.clamp(max=gamma), at, kind)


def soft_min_snr(at: Coefficients, kind: str, gamma: float = 4.0) -> Tensor:
    """SNR gamma / (SNR + gamma) on the clean picture: min-SNR without its corner (Crowson et al. 2024, section 3.5)."""
    return for_prediction(at.snr * gamma / (at.snr + gamma), at, kind)


def truncated_snr(at: Coefficients, kind: str) -> Tensor:
    """max(SNR, 1) on the clean picture (Salimans and Ho 2022, section 4)."""
    return for_prediction(at.snr.clamp(min=1), at, kind)


def p2(at: Coefficients, kind: str, k: float = 1.0, gamma: float = 1.0) -> Tensor:
    """1 / (k + SNR)^gamma on the noise: less for what is nearly clean (Choi et al. 2022, eq. 8)."""
    return for_prediction(at.snr / (k + at.snr) ** gamma, at, kind)


def logit_normal(at: Coefficients, kind: str, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """The density of a logit-normal time, on the velocity of the straight path (Esser et al. 2024, eq. 19).

        pi(t) = exp(-(ln(t / (1 - t)) - mean)^2 / (2 std^2)) / (std sqrt(2 pi) t (1 - t))

    with t = sigma / (alpha + sigma). On that path, with uniform times, it stands for drawing logit-normal ones. It
    vanishes at both ends.
    """
    t = at.sigma / (at.alpha + at.sigma)
    density = torch.exp(-((torch.log(at.ratio) - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))
    of_clean = density / (t**3 * (1 - t))  # the velocity moves by 1 / t with the clean picture
    return for_prediction(torch.where(at.ratio.isinf(), 0.0, of_clean), at, kind)


WEIGHTINGS: dict[str, Weighting] = {
    "simple": simple,
    "noise": noise,
    "vlb": vlb,
    "edm": edm,
    "min-snr": min_snr,
    "soft-min-snr": soft_min_snr,
    "truncated-snr": truncated_snr,
    "p2": p2,
    "logit-normal": logit_normal,
}
