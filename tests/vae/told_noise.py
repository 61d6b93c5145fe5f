"""Noise that is told rather than drawn, so that an average over noise can be a sum over the points of a quadrature."""

import itertools

import numpy as np
import torch

from mezzotint.vae.model import Draws


class Given(Draws):
    """The tensors that it was given, one after another."""

    def __init__(self, *noise) -> None:
        self.noise = iter(noise)

    def normal(self, *shape: int) -> torch.Tensor:
        found = next(self.noise)
        assert found.shape[1:] == shape
        return found


def hermite(points: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of a standard normal number, and the weights that sum to one, by Gauss and Hermite, float64."""
    values, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(points))
    return values, weights / weights.sum()


def every_picture() -> torch.Tensor:
    """All 16 black and white pictures of 2 x 2 pixels, (16, 1, 2, 2) float64."""
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4))).double().view(16, 1, 2, 2)


def likelihood_of(model, numbers: torch.Tensor, log_weights: torch.Tensor) -> torch.Tensor:
    """ln p(x) of all 16 pictures, where row k of the decoder's numbers has this log-weight, (16,)."""
    n = len(numbers)
    rows = [model.likelihood.log_prob(numbers, x.expand(n, 1, 2, 2)) + log_weights for x in every_picture()]
    return torch.logsumexp(torch.stack(rows), 1)
