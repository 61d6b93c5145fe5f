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

ROUNDING = 64 * torch.finfo(torch.float64).eps  # of squared distances by matrix products, relative to squared norms
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
    real_norms, fake_norms = _squared_norms(real), _squared_norms(fake)
    real_radii, fake_radii = _squared_radii(real, real_norms, k, block), _squared_radii(fake, fake_norms, k, block)
    balls = torch.zeros(len(fake), dtype=torch.int64)  # real balls around each fake
    covered = torch.zeros(len(real), dtype=torch.bool)
    recalled = torch.zeros(len(real), dtype=torch.bool)
    slack = ROUNDING * max(real_norms.max().item(), fake_norms.max().item())
    for start in range(0, len(fake), block):
        rows = slice(start, start + block)
        squared = _squared_distances(fake[rows], real, fake_norms[rows], real_norms)  # (block, N)
        recalled |= _inside(squared, fake_radii[rows, None], fake[rows], real, slack).any(0)
        in_real = _inside(squared, real_radii[None, :], fake[rows], real, slack)
        balls[rows] = in_real.sum(1)
        covered |= in_real.any(0)
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
    norms = _squared_norms(x), _squared_norms(y)
    parts = (_squared_distances(part, y, own, norms[1]) for part, own in zip(x.split(block), norms[0].split(block)))
    indices = torch.cat([part.topk(k, largest=False).indices for part in parts])
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


def _squared_norms(x: Tensor) -> Tensor:
    return x.square().sum(1)


def _squared_distances(x: Tensor, y: Tensor, x_norms: Tensor, y_norms: Tensor) -> Tensor:
    """|x_i - y_j|^2 through |x|^2 + |y|^2 - 2 x.y, (N, M)."""
    return torch.addmm(y_norms, x, y.T, alpha=-2).add_(x_norms[:, None])


def _exact(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_i|^2 of corresponding rows, term by term, (N,)."""
    return torch.cat([(a - b).square_().sum(1) for a, b in zip(x.split(BLOCK), y.split(BLOCK))])


def _squared_radii(features: Tensor, norms: Tensor, k: int, block: int) -> Tensor:
    """The squared distance of each vector to the k-th nearest other one, (N,)."""
    n = len(features)
    squared = features.new_full((n, k + 1), torch.inf)  # the smallest so far: a vector's own, and those of its nearest
    nearest = torch.zeros(n, k + 1, dtype=torch.int64)  # whose they are
    for start in range(0, n, block):
        stop = min(start + block, n)
        among = _squared_distances(features[start:stop], features[start:], norms[start:stop], norms[start:])
        _keep_smallest(squared[start:stop], nearest[start:stop], among, start)
        _keep_smallest(squared[stop:], nearest[stop:], among[:, stop - start :].T, start)  # the same pairs, reversed
    return torch.stack([_exact(features, features[column]) for column in nearest.T], 1).amax(1)


def _keep_smallest(squared: Tensor, nearest: Tensor, candidates: Tensor, first: int) -> None:
    """Put the smallest of squared (n, k) and candidates (n, m), of the vectors first, first + 1, ..., in place."""
    k = squared.shape[1]
    new, places = candidates.topk(min(k, candidates.shape[1]), largest=False)
    values, indices = torch.cat([squared, new], 1), torch.cat([nearest, places + first], 1)
    kept, chosen = values.topk(k, largest=False)
    squared.copy_(kept)
    nearest.copy_(indices.gather(1, chosen))


def _inside(squared: Tensor, squared_radii: Tensor, x: Tensor, y: Tensor, slack: float) -> Tensor:
    """Which squared distances (n, m) of x and y are at most the radii, those within `slack` of them measured again."""
    inside = squared <= squared_radii + slack  # (n, m)
    row, column = torch.nonzero(inside & (squared >= squared_radii - slack), as_tuple=True)
    radii = squared_radii.expand_as(squared)
    for i, j in zip(row.split(BLOCK), column.split(BLOCK)):
        inside[i, j] = _exact(x[i], y[j]) <= radii[i, j]
    return inside
