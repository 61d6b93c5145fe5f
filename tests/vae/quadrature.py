"""Noise that is told rather than drawn, so that a mean over the codes of a tiny model is a sum over a quadrature."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor

from mezzotint.vae.model import Draws


def hermite(points: int = 60) -> tuple[Tensor, Tensor]:
    """Values of a standard normal number, and the weights that sum to one, by Gauss and Hermite, float64."""
    values, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(points))
    return values, weights / weights.sum()


class Given(Draws):
    """The tensors that it was given, one after another."""

    def __init__(self, *noise: Tensor) -> None:
        self.noise = iter(noise)

    def normal(self, *shape: int) -> Tensor:
        """The next of them, (B, *shape)."""
        found = next(self.noise)
        assert found.shape[1:] == shape
        return found


def together(noise: list[Tensor]) -> Given:
    """Noise of all groups of a hierarchy, as it is drawn for one picture after the other."""
    return Given(torch.cat([one.flatten(1) for one in noise], 1))


class Nodes:
    """In place of `Draws`: every point of a grid for each picture, whose weighted sum is a mean over N(0, I)."""

    def __init__(self, dimensions: int, points: int, pictures: int = 1) -> None:
        values, weights = hermite(points)
        self.grid = torch.stack(torch.meshgrid(*[values] * dimensions, indexing="ij"), -1).flatten(0, -2)
        self.weights = torch.stack(torch.meshgrid(*[weights] * dimensions, indexing="ij"), -1).flatten(0, -2).prod(1)
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.weights)

    def normal(self, *shape: int) -> Tensor:
        """The points, one picture after the other: (pictures len(self), *shape)."""
        return self.grid.repeat(self.pictures, 1).unflatten(1, shape)

    def mean(self, values: Tensor) -> Tensor:
        """E over the noise of values (pictures len(self),): (pictures,)."""
        return values.unflatten(0, (self.pictures, -1)) @ self.weights


def binary_pictures(size: int = 2) -> Tensor:
    """All black and white pictures, (2^(size size), 1, size, size) in {-1, 1}, float64."""
    states = torch.tensor(list(product([-1.0, 1.0], repeat=size * size)), dtype=torch.float64)
    return states.view(-1, 1, size, size)


def likelihood_of(model, numbers: Tensor, log_weights: Tensor) -> Tensor:
    """ln p(x) of all 16 pictures of 2 x 2, where row k of the decoder's numbers has this log-weight, (16,)."""
    n = len(numbers)
    rows = [model.likelihood.log_prob(numbers, x.expand(n, 1, 2, 2)) + log_weights for x in binary_pictures()]
    return torch.logsumexp(torch.stack(rows), 1)
