"""Integrals over the codes of a tiny model, by Gauss-Hermite quadrature."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor


class Nodes:
    """In place of `Draws`: every point of a grid for each picture, whose weighted sum is a mean over N(0, I)."""

    def __init__(self, dimensions: int, points: int, pictures: int = 1) -> None:
        x, w = np.polynomial.hermite_e.hermegauss(points)
        grid = torch.tensor(list(product(x, repeat=dimensions)), dtype=torch.float64)
        self.weights = torch.tensor(list(product(w / w.sum(), repeat=dimensions)), dtype=torch.float64).prod(1)
        self.grid, self.pictures = grid, pictures

    def __len__(self) -> int:
        return len(self.weights)

    def normal(self, *shape: int) -> Tensor:
        """The points, one picture after the other: (pictures len(self), *shape)."""
        return self.grid.repeat(self.pictures, 1).unflatten(1, shape)

    def mean(self, values: Tensor) -> Tensor:
        """E over the noise of values (pictures len(self),): (pictures,)."""
        return values.unflatten(0, (self.pictures, -1)) @ self.weights


def binary_pictures(size: int) -> Tensor:
    """All of them, (2^(size size), 1, size, size) in {-1, 1}, float64."""
    states = torch.tensor(list(product([-1.0, 1.0], repeat=size * size)), dtype=torch.float64)
    return states.view(-1, 1, size, size)
