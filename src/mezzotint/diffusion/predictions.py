"""What a network predicts, and what follows from it.

Every target is linear in the clean picture c and the noise n, and so is x_t = alpha c + sigma n: two equations for two
unknowns. One formula therefore converts any prediction into any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .paths import Coefficients, Path

PREDICTIONS = ("noise", "clean", "velocity", "v", "score")


def components(kind: str, at: Coefficients) -> tuple[Tensor, Tensor]:
    """(a, b) of the target a * clean + b * noise.

    noise     n                                 Ho et al. 2020
    clean     c
    velocity  dx_t/dt = alpha' c + sigma' n     Liu et al. 2022, Lipman et al. 2022
    v         alpha n - sigma c                 Salimans and Ho 2022, appendix D
    score     grad ln p(x_t | c) = -n / sigma   Song et al. 2021
    """
    zero, one = torch.zeros_like(at.alpha), torch.ones_like(at.alpha)
    if kind == "noise":
        return zero, one
    if kind == "clean":
        return one, zero
    if kind == "velocity":
        return at.d_alpha, at.d_sigma
    if kind == "v":
        return -at.sigma, at.alpha
    if kind == "score":
        return zero, -1 / at.sigma
    raise ValueError(f"no prediction is called {kind!r}")


def convert(y: Tensor, x: Tensor, at: Coefficients, source: str, target: str) -> Tensor:
    """The target that belongs to the prediction y of kind `source` at the noisy picture x.

    With y = a c + b n wanted as z = p c + q n and x = alpha c + sigma n:

        z = [(p b - q a) x + (alpha q - sigma p) y] / (alpha b - sigma a)

    The coefficients are computed in float64 and applied in the dtype of x. Where the determinant vanishes the answer
    does not exist (the clean picture from the noise where alpha = 0) and is not finite.
    """
    if source == target:
        return y
    (a, b), (p, q) = components(source, at), components(target, at)
    determinant = at.alpha * b - at.sigma * a
    of_x = (p * b - q * a) / determinant
    of_y = (at.alpha * q - at.sigma * p) / determinant
    return rows(of_x, x) * x + rows(of_y, x) * y


def target(kind: str, clean: Tensor, noise: Tensor, at: Coefficients) -> Tensor:
    """What a network that predicts `kind` should answer."""
    a, b = components(kind, at)
    return rows(a, clean) * clean + rows(b, clean) * noise


def rows(coefficient: Tensor, x: Tensor) -> Tensor:
    """Float64 numbers of the CPU, one or one for each row, in the shape, dtype and device in which they multiply x.

    The dtype comes first: the device may not have float64. A single number stays on the CPU, which is as good as a
    Python number on every device, and waits for none.
    """
    coefficient = coefficient.to(x.dtype)
    if coefficient.dim() == 0:
        return coefficient
    return coefficient.view(-1, *[1] * (x.dim() - 1)).to(x.device, non_blocking=True)


@dataclass(frozen=True)
class Denoised:
    """A network's answer y at the noisy picture x, in whichever form is asked for, each (B, C, H, W)."""

    x: Tensor
    y: Tensor
    kind: str  # what y is
    at: Coefficients

    @property
    def clean(self) -> Tensor:
        """The expected clean picture."""
        return self._as("clean")

    @property
    def noise(self) -> Tensor:
        """The expected noise."""
        return self._as("noise")

    @property
    def velocity(self) -> Tensor:
        """dx/dt of the probability-flow ODE."""
        return self._as("velocity")

    @property
    def v(self) -> Tensor:
        """alpha * noise - sigma * clean."""
        return self._as("v")

    @property
    def score(self) -> Tensor:
        """The gradient of the log-density at x."""
        return self._as("score")

    def _as(self, kind: str) -> Tensor:
        return convert(self.y, self.x, self.at, self.kind, kind)


@dataclass(frozen=True)
class Denoiser:
    """A network with its path: (x, t) -> `Denoised`. All that a solver sees.

    network  (x, network time) -> y, shapes (B, C, H, W), () -> (B, C, H, W)
    path     on which x lies
    kind     what the network predicts
    clip     hold the clean picture within [-1, 1] and let the noise follow from it
    """

    network: Callable[[Tensor, Tensor], Tensor]
    path: Path
    kind: str
    clip: bool = False

    def __call__(self, x: Tensor, t: Tensor) -> Denoised:
        """Denoise x at the time t, a float64 number."""
        y = self.network(x, self.path.network_time(t)).to(x.dtype)
        denoised = Denoised(x, y, self.kind, self.path.at(t))
        return Denoised(x, denoised.clean.clamp(-1, 1), "clean", denoised.at) if self.clip else denoised
