"""How far two sets of pictures are from each other: Fréchet distance, kernel distance, Inception Score.

Every function is pure: features (N, D) in, a number out, in float64; what it is given is never changed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.errors import ConfigError, DataError
from .statistics import Moments, as_features, as_pair

BLOCK = 2048  # rows at a time


class Estimate(NamedTuple):
    """A mean over subsets or splits, and their standard deviation (0 for one)."""

    mean: float
    std: float


def frechet_distance(first: Tensor | Moments, second: Tensor | Moments) -> float:
    """d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), squared distance of two Gaussians.

    first, second  features (N, D), or their `Moments` where they were streamed

    With factors S = F^T F, tr (S1 S2)^(1/2) is the sum of the singular values of F1 F2^T: no matrix square root, so
    never imaginary, and from features it is as exact for N < D, where the covariances are singular, as for N > D.
    Never negative. With Inception features this is FID (Heusel et al. 2017, arXiv 1706.08500, eq. 6).
    """
    (m1, f1), (m2, f2) = _mean_and_factor(first), _mean_and_factor(second)
    if m1.shape != m2.shape:
        raise DataError(f"the two sets come from different feature networks: {len(m1)} and {len(m2)} dimensions")
    cross = torch.linalg.svdvals(f1 @ f2.T).sum()
    squared = (m1 - m2).square().sum() + f1.square().sum() + f2.square().sum() - 2 * cross
    return max(squared.item(), 0.0)


def _mean_and_factor(data: Tensor | Moments) -> tuple[Tensor, Tensor]:
    """m (D,) and F (rank, D) with F^T F = the covariance."""
    if isinstance(data, Moments):
        values, vectors = torch.linalg.eigh(data.covariance())
        kept = values > values[-1].clamp_min(0) * len(values) * torch.finfo(torch.float64).eps
        return data.mean, values[kept].sqrt()[:, None] * vectors[:, kept].T  # (rank, D)
    x = as_features(data)
    if len(x) < 2:
        raise DataError(f"a covariance needs at least 2 pictures, not {len(x)}")
    mean = x.mean(0)
    factor = (x - mean) / (len(x) - 1) ** 0.5  # (N, D)
    if len(x) > x.shape[1]:
        factor = torch.linalg.qr(factor, mode="r").R  # (D, D), the same F^T F
    return mean, factor


def kernel_distance(
    real: Tensor,
    fake: Tensor,
    *,
    subsets: int = 0,
    subset_size: int = 1000,
    seed: int = 2020,
    unbiased: bool = True,
    degree: int = 3,
    gamma: float | None = None,
    coef: float = 1.0,
) -> Estimate:
    """Squared maximum mean discrepancy under the polynomial kernel k(x, y) = (gamma x.y + coef)^degree, gamma = 1/D.

    subsets      0: one estimate from all features; else the mean over so many random subsets
    subset_size  vectors drawn without replacement from each set for a subset
    seed         of the subsets: numpy's RandomState, real then fake, as torch-fidelity draws them
    unbiased     leaves out k(x, x) and k(y, y); may then be slightly negative, and 0 on average for equal distributions

    With Inception features, 100 subsets and size 1000 this is KID (Bińkowski et al. 2018, arXiv 1801.01401, eq. 4).
    """
    x, y = as_pair(real, fake)
    kernel = _Polynomial(degree, 1.0 / x.shape[1] if gamma is None else gamma, coef)
    if not subsets:
        return Estimate(_squared_mmd(x, y, kernel, unbiased), 0.0)
    if subset_size > min(len(x), len(y)):
        raise ConfigError(
            f"subsets of {subset_size} cannot be drawn from {len(x)} and {len(y)} pictures; lower subset_size"
        )
    random = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        rows_x = torch.from_numpy(random.choice(len(x), subset_size, replace=False))
        rows_y = torch.from_numpy(random.choice(len(y), subset_size, replace=False))
        values.append(_squared_mmd(x[rows_x], y[rows_y], kernel, unbiased))
    return Estimate(float(np.mean(values)), float(np.std(values)))


class _Polynomial(NamedTuple):
    degree: int
    gamma: float
    coef: float

    def mean(self, x: Tensor, y: Tensor) -> float:
        """The mean of k over all pairs, without ever holding all of them."""
        return sum(self._sum(x, block) for block in y.split(BLOCK)) / (len(x) * len(y))

    def mean_within(self, x: Tensor) -> float:
        """The mean of k over all pairs of rows of x; those in two blocks are computed once and counted twice."""
        total = 0.0
        for start in range(0, len(x), BLOCK):
            block, later = x[start : start + BLOCK], x[start + BLOCK :]
            total += self._sum(block, block) + 2 * self._sum(block, later)
        return total / len(x) ** 2

    def mean_without_self(self, x: Tensor) -> float:
        """The mean of k over all pairs of two different rows."""
        n = len(x)
        own = self._powers(x.square().sum(1)).mean().item()
        return (n * self.mean_within(x) - own) / (n - 1)

    def _sum(self, x: Tensor, y: Tensor) -> float:
        """Of k over all pairs. The products are NumPy's, which computes only half of a symmetric x x^T."""
        return self._powers(torch.from_numpy(x.numpy() @ y.numpy().T)).sum().item()

    def _powers(self, products: Tensor) -> Tensor:
        return products.mul_(self.gamma).add_(self.coef).pow_(self.degree)


def _squared_mmd(x: Tensor, y: Tensor, kernel: _Polynomial, unbiased: bool) -> float:
    if unbiased:
        if min(len(x), len(y)) < 2:
            raise DataError("an unbiased kernel distance needs at least 2 pictures in each set")
        within = kernel.mean_without_self(x) + kernel.mean_without_self(y)
    else:
        within = kernel.mean_within(x) + kernel.mean_within(y)
    return within - 2 * kernel.mean(x, y)


def inception_score(logits: Tensor, splits: int = 10) -> Estimate:
    """exp of the mean over pictures of KL(p(y | x) || p(y)), with p(y) the mean over the split.

    logits  (N, classes)
    splits  equal ones: pictures i N // S up to (i + 1) N // S; mean and population deviation over them

    From 1 (every picture alike, or none recognised) to the number of classes. It is the Inception Score only with
    Inception's logits (Salimans et al. 2016, arXiv 1606.03498, section 4).
    """
    x = as_features(logits)
    n = len(x)
    if not 1 <= splits <= n:
        raise ConfigError(f"{n} pictures cannot be cut into {splits} splits; take between 1 and {n}")
    log_p = x.log_softmax(1)  # (N, classes)
    scores = []
    for i in range(splits):
        part = log_p[i * n // splits : (i + 1) * n // splits]
        p = part.exp()
        marginal = p.mean(0)  # p(y)
        information = torch.dot(p.flatten(), part.flatten()) / len(part) - torch.xlogy(marginal, marginal).sum()
        scores.append(information.exp().item())
    return Estimate(float(np.mean(scores)), float(np.std(scores)))


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of pictures whose largest logit is that of their label."""
    if len(logits) != len(labels):
        raise DataError(f"{len(logits)} pictures cannot be compared with {len(labels)} labels")
    return (logits.argmax(1) == labels).double().mean().item()
