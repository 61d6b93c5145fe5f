"""Gaussian data, for which everything has a closed form: every number of a picture is N(mean, std^2), independently."""

from dataclasses import dataclass

from mezzotint.diffusion.predictions import Denoiser, rows, target


@dataclass(frozen=True)
class Gaussian:
    mean: float = 0.3
    std: float = 0.5

    def clean(self, x, at):
        """E[c | x_t = x]: the perfect denoiser."""
        gain = at.alpha * self.std**2 / (at.alpha**2 * self.std**2 + at.sigma**2)
        return self.mean + rows(gain, x) * (x - rows(at.alpha * self.mean, x))

    def noise(self, x, at):
        """E[n | x_t = x], which also exists where there is no noise."""
        gain = at.sigma / (at.alpha**2 * self.std**2 + at.sigma**2)
        return rows(gain, x) * (x - rows(at.alpha * self.mean, x))

    def denoiser(self, path, kind="velocity"):
        """The perfect network of a given prediction."""

        def network(x, t):
            at = path.at(t)
            return target(kind, self.clean(x, at), self.noise(x, at), at)

        return Denoiser(network, path, kind)

    def flowed(self, x, start, end):
        """Where the probability-flow ODE takes x from the coefficients `start` to `end`."""
        ratio = self.spread(end) / self.spread(start)
        return end.alpha * self.mean + ratio * (x - start.alpha * self.mean)

    def spread(self, at):
        """The standard deviation of x_t."""
        return (at.alpha**2 * self.std**2 + at.sigma**2) ** 0.5
