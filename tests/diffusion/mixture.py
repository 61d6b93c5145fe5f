"""Mixtures of Gaussians, of which everything is known on every path: densities, perfect denoisers, their bounds."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from mezzotint.diffusion.predictions import Denoiser, target


@dataclass(frozen=True)
class Mixture:
    """Pictures are N(means[k], stds[k]^2) with probability shares[k]."""

    means: torch.Tensor  # (K, *shape) float64
    stds: torch.Tensor  # (K,)
    shares: torch.Tensor  # (K,)

    def log_joint(self, x, at):
        """ln p(x_t, k), (B, K), at coefficients () or (B,)."""
        alpha, sigma = at.alpha.view(-1, 1), at.sigma.view(-1, 1)
        variance = alpha**2 * self.stds**2 + sigma**2  # (B or 1, K)
        dims = x[0].numel()
        away = x.flatten(1)[:, None] - alpha[..., None] * self.means.flatten(1)  # (B, K, D)
        normal = -away.square().sum(2) / (2 * variance) - dims / 2 * torch.log(2 * math.pi * variance)
        return self.shares.log() + normal

    def log_prob(self, x, at):
        """ln p(x_t), (B,)."""
        return self.log_joint(x, at).logsumexp(1)

    def clean(self, x, at):
        """E[c | x_t = x]: of each Gaussian, weighted by its chance."""
        alpha, sigma = at.alpha.view(-1, 1), at.sigma.view(-1, 1)
        gain = alpha * self.stds**2 / (alpha**2 * self.stds**2 + sigma**2)  # (B or 1, K)
        away = x.flatten(1)[:, None] - alpha[..., None] * self.means.flatten(1)
        each = self.means.flatten(1) + gain[..., None] * away  # (B, K, D)
        return (self.log_joint(x, at).softmax(1)[..., None] * each).sum(1).view_as(x)

    def noise(self, x, at):
        """E[n | x_t = x], also where there is none."""
        alpha, sigma = at.alpha.view(-1, 1), at.sigma.view(-1, 1)
        gain = sigma / (alpha**2 * self.stds**2 + sigma**2)
        away = x.flatten(1)[:, None] - alpha[..., None] * self.means.flatten(1)
        return (self.log_joint(x, at).softmax(1)[..., None] * gain[..., None] * away).sum(1).view_as(x)

    def answer(self, kind, x, at):
        """What a perfect network that predicts `kind` says of x_t."""
        return target(kind, self.clean(x, at), self.noise(x, at), at)

    def denoiser(self, path, kind="velocity"):
        """The perfect denoiser."""
        return Denoiser(lambda x, t: self.answer(kind, x, path.at(t)), path, kind)


def gauss_hermite(n):
    """Nodes and weights of E[f(z)], z standard normal, (n,) each."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(n))
    return nodes, weights / weights.sum()
