"""Nearest neighbours among features: precision, recall, density, coverage, and whether a generator memorises.

Distances come from matrix products in float64, block by block, so memory grows with N and not with its square. Where
such a distance is too near a radius for its rounding error, the pair is measured again term by term: comparisons are
exact, ties included, and do not depend on the block size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..core.errors import ConfigError
from .statistics import as_pair

ROUNDING = (
    64 * torch.finfo(torch.float64).eps
)  # of a squared distance from matrix products, relative to the squared norms
BLOCK = 1024  # rows at a time


class PRDC(NamedTuple):
    """Precision, recall, density and coverage."""

    precision: float  # share of fakes within the real manifold: are they plausible?
    recall: float  # share of reals within the fake manifold: is everything there?
    density: float  # in how many real balls a fake lies, over k; 1 on average for equal distributions
    coverage: float  # share of real balls with a fake inside


def precision_recall_density_coverage(real: Tensor, fake: Tensor, k: int = 5, block: int = BLOCK) -> PRDC:
    """Compares two sets of features (N, D) and (M, D) through closed balls around each, up to its k-th neighbour.

    The radius of a ball is the distance to the k-th nearest other vector of the same set; a vector at exactly that
    distance is inside, as in eq. 2 of Kynkäänniemi et al. 2019 (arXiv 1904.06991); density and coverage are eq. 5 and 9
    of Naeem et al. 2020 (arXiv 2002.09797). Raises `ConfigError` unless 1 <= k < N, M.
    """
    real, fake = _centred(real, fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise ConfigError(
            f"k = {k} neighbours need at least {k + 1} pictures in each set, not {len(real)} and {len(fake)}"
        )
    real_radii, fake_radii = _squared_radii(real, k, block), _squared_radii(fake, k, block)
    balls = torch.zeros(len(fake), dtype=torch.int64)  # real balls around each fake
    covered = torch.zeros(len(real), dtype=torch.bool)
    recalled = torch.zeros(len(real), dtype=torch.bool)
    slack = ROUNDING * max(real.square().sum(1).max().item(), fake.square().sum(1).max().item())
    for start in range(0, len(fake), block):
        part = fake[start : start + block]
        squared = _squared_distances(part, real)  # (block, N)
        in_real = _inside(squared, real_radii[None, :], part, real, slack)
        balls[start : start + block] = in_real.sum(1)
        covered |= in_real.any(0)
        recalled |= _inside(squared, fake_radii[start : start + block, None], part, real, slack).any(0)
    return PRDC(
        precision=(balls > 0).double().mean().item(),
        recall=recalled.double().mean().item(),
        density=balls.double().mean().item() / k,
        coverage=covered.double().mean().item(),
    )


class Nearest(NamedTuple):
    """The nearest references of each query, nearest first."""

    distances: Tensor  # (N, k) float64
    indices: Tensor  # (N, k) int64


def nearest(queries: Tensor, references: Tensor, k: int = 1, block: int = BLOCK) -> Nearest:
    """The k references (M, D) nearest to each query (N, D), by Euclidean distance."""
    x, y = _centred(queries, references)
    if not 1 <= k <= len(y):
        raise ConfigError(f"{k} nearest pictures cannot be found among {len(y)}")
    indices = torch.cat([_squared_distances(part, y).topk(k, largest=False).indices for part in x.split(block)])
    exact = torch.stack([_exact(x, y[column]) for column in indices.T], 1)  # (N, k)
    exact, order = exact.sort(dim=1, stable=True)
    return Nearest(exact.sqrt(), indices.gather(1, order))


class Memorisation(NamedTuple):
    """Are samples nearer to the training pictures than new pictures of the same kind are?"""

    closer: (
        float  # P(a sample is nearer to its nearest training picture than a held-out picture to its own): .5 is right
    )
    ratio: float  # median distance of samples / median distance of held-out pictures: 1 is right, 0 is copying
    copies: float  # share of samples nearer than all but 1 % of the held-out pictures: .01 is right, 1 is copying


def memorisation(sample_distances: Tensor, test_distances: Tensor) -> Memorisation:
    """From distances to the nearest training picture, of samples (N,) and of held-out pictures (M,).

    `closer` is the Mann-Whitney statistic U / (N M), ties counted half: the three-sample test for data copying of
    Meehan et al. 2020 (arXiv 2004.05675, section 3) without its cells.
    """
    samples = sample_distances.double().contiguous()
    test = test_distances.double().sort().values
    above = len(test) - torch.searchsorted(test, samples, right=True)  # held-out pictures that are farther
    tied = torch.searchsorted(test, samples, right=True) - torch.searchsorted(test, samples)
    closer = (above + 0.5 * tied.double()).mean().item() / len(test)
    ratio = samples.median() / test.median()
    return Memorisation(closer, ratio.item(), (samples < torch.quantile(test, 0.01)).double().mean().item())


def _centred(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets without their common offset, which would cost the matrix products their digits."""
    x, y = as_pair(first, second)
    centre = y.mean(0)
    return x - centre, y - centre


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 through |x|^2 + |y|^2 - 2 x.y, (N, M)."""
    norms = x.square().sum(1)[:, None] + y.square().sum(1)
    return torch.addmm(norms, x, y.T, alpha=-2)


def _exact(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_i|^2 of corresponding rows, term by term, (N,)."""
    return torch.cat([(a - b).square().sum(1) for a, b in zip(x.split(BLOCK), y.split(BLOCK))])


def _squared_radii(features: Tensor, k: int, block: int) -> Tensor:
    """The squared distance of each vector to the k-th nearest other one, (N,)."""
    parts = (_squared_distances(part, features).topk(k + 1, largest=False).indices for part in features.split(block))
    candidates = torch.cat(list(parts))  # (N, k + 1), the vector itself among them
    return torch.stack([_exact(features, features[column]) for column in candidates.T], 1).amax(1)


def _inside(squared: Tensor, squared_radii: Tensor, x: Tensor, y: Tensor, slack: float) -> Tensor:
    """Which squared distances (n, m) of x and y are at most the radii, those within `slack` of them measured again."""
    beyond = squared - squared_radii  # (n, m)
    inside = beyond <= 0
    row, column = torch.nonzero(beyond.abs_() <= slack, as_tuple=True)
    radii = squared_radii.expand_as(squared)
    for i, j in zip(row.split(BLOCK), column.split(BLOCK)):
        inside[i, j] = _exact(x[i], y[j]) <= radii[i, j]
    return inside
