"""Mean and covariance of features, gathered batch by batch in float64 and merged over shards without loss."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from typing_extensions import Self

from ..core.errors import DataError


class Moments:
    """Count, mean and scatter of vectors: n, m = sum x / n, M = sum (x - m)(x - m)^T.

    Deviations are taken from the running mean (Chan, Golub and LeVeque 1979), so a large common offset costs no digits
    and the result does not depend on how the vectors were cut into batches, up to rounding.
    """

    def __init__(self, dims: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dims, dtype=torch.float64)  # (D,)
        self.scatter = torch.zeros(dims, dims, dtype=torch.float64)  # (D, D)

    @classmethod
    def of(cls, features: Tensor | Iterable[Tensor]) -> Self:
        """The moments of features (N, D), or of batches of them."""
        batches = [features] if isinstance(features, Tensor) else list(features)
        if not batches:
            raise DataError("the moments of no features at all are not defined; give at least one batch")
        moments = cls(batches[0].shape[1])
        for batch in batches:
            moments.update(batch)
        return moments

    def update(self, features: Tensor) -> None:
        """Add vectors (N, D)."""
        if len(features) == 0:
            return
        x = as_features(features)
        mean = x.mean(0)
        self._add(len(x), mean, x - mean)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets together; neither is changed."""
        merged = Moments(len(self.mean))
        for part in (self, other):
            merged.scatter += part.scatter
            merged._add(part.count, part.mean, part.mean.new_empty(0, len(part.mean)))
        return merged

    def covariance(self) -> Tensor:
        """M / (n - 1), (D, D). Raises `DataError` for fewer than two vectors."""
        if self.count < 2:
            raise DataError(f"a covariance needs at least 2 pictures, not {self.count}")
        return self.scatter / (self.count - 1)

    def _add(self, count: int, mean: Tensor, deviations: Tensor) -> None:
        """Count vectors with this mean and these deviations from it; those of the two means are one row more."""
        total = self.count + count
        if total == 0:
            return
        step = mean - self.mean
        rows = torch.cat([deviations, step[None] * (self.count * count / total) ** 0.5])
        self.scatter.addmm_(rows.T, rows)
        self.mean = self.mean + step * (count / total)
        self.count = total


def as_features(features: Tensor) -> Tensor:
    """The vectors in float64 on the CPU. Raises `DataError` unless they are (N, D) and finite."""
    if features.ndim != 2:
        raise DataError(f"features are a matrix of one row per picture, not of shape {tuple(features.shape)}")
    x = features.detach().to("cpu", torch.float64)
    if not torch.isfinite(x.sum()) and not torch.isfinite(x).all():  # a finite sum has finite terms
        raise DataError("some features are not finite: the pictures or the feature network are broken")
    return x


def as_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two sets of vectors in float64. Raises `DataError` unless both have the same number of dimensions."""
    x, y = as_features(first), as_features(second)
    if x.shape[1] != y.shape[1]:
        raise DataError(f"the two sets come from different feature networks: {x.shape[1]} and {y.shape[1]} dimensions")
    return x, y
