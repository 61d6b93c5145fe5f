"""What a network predicts, and what follows from it.

Every target is linear in the clean picture c and the noise n, and so is x_t = alpha c + sigma n: two equations for two
unknowns. One formula therefore converts any prediction into any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .paths import Coefficients, Path

PREDICTIONS = ("noise", "clean", "velocity", "v", "score", "edm")
DATA_STD = 0.5  # sigma_data of Karras et al. 2022: the standard deviation that pictures are taken to have


def components(kind: str, at: Coefficients) -> tuple[Tensor, Tensor]:
    """(a, b) of the target a * clean + b * noise.

    noise     n                                 Ho et al. 2020
    clean     c
    velocity  dx_t/dt = alpha' c + sigma' n     Liu et al. 2022, Lipman et al. 2022
    v         alpha n - sigma c                 Salimans and Ho 2022, appendix D
    score     grad ln p(x_t | c) = -n / sigma   Song et al. 2021
    edm       (c - c_skip x_t / alpha) / c_out  Karras et al. 2022, eq. 8: F, whose target has variance 1

    With s = sigma / alpha and d = `DATA_STD`, c_skip = d^2 / (s^2 + d^2) and c_out = s d / sqrt(s^2 + d^2), so that

        F = (s c - d^2 n) / (d sqrt(s^2 + d^2)).
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
    if kind == "edm":
        # multiplied through by alpha, which may be 0
        norm = torch.sqrt(at.sigma**2 + (at.alpha * DATA_STD) ** 2)
        return at.sigma / (DATA_STD * norm), -DATA_STD * at.alpha / norm
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


def unit(x: Tensor, at: Coefficients) -> Tensor:
    """x_t divided by the standard deviation that it has for pictures of standard deviation `DATA_STD`.

    c_in = 1 / sqrt(alpha^2 d^2 + sigma^2)        (Karras et al. 2022, table 1, for any path)
    """
    return rows((at.alpha**2 * DATA_STD**2 + at.sigma**2).rsqrt(), x) * x


@dataclass(frozen=True)
class Denoised:
    """A network's answer y at the noisy picture x, in whichever form is asked for, each (B, C, H, W).

    share  v of Nichol and Dhariwal 2021, eq. 15 (survey, eq. 87): where between the small and the large variance of
           the next step, on the scale of logarithms, the learned one lies; None: it is not learned
    shift  gradient by which an ancestral solver moves its mean, in units of its variance (survey, eq. 91); None: none
    """

    x: Tensor
    y: Tensor
    kind: str  # what y is
    at: Coefficients
    share: Tensor | None = None
    shift: Tensor | None = None

    @property
    def clean(self) -> Tensor:
        """The expected clean picture."""
        return self.as_kind("clean")

    @property
    def noise(self) -> Tensor:
        """The expected noise."""
        return self.as_kind("noise")

    @property
    def velocity(self) -> Tensor:
        """dx/dt of the probability-flow ODE."""
        return self.as_kind("velocity")

    @property
    def v(self) -> Tensor:
        """alpha * noise - sigma * clean."""
        return self.as_kind("v")

    @property
    def score(self) -> Tensor:
        """The gradient of the log-density at x."""
        return self.as_kind("score")

    def as_kind(self, kind: str) -> Tensor:
        """What a perfectly consistent network that predicts `kind` would have answered."""
        return convert(self.y, self.x, self.at, self.kind, kind)


@dataclass(frozen=True)
class Denoiser:
    """A network with its path: (x, t) -> `Denoised`. All that a solver sees.

    network  (x, t) -> y with t a time of the path; shapes (B, C, H, W), () or (B,) -> (B, C, H, W)
    path     on which x lies
    kind     what the network predicts
    clip     hold the clean picture within [-1, 1] and let the noise follow from it
    learned_variance
             the network answers with twice the channels; the second half is 2 v - 1 of `Denoised.share`
    """

    network: Callable[[Tensor, Tensor], Tensor]
    path: Path
    kind: str
    clip: bool = False
    learned_variance: bool = False

    def __call__(self, x: Tensor, t: Tensor) -> Denoised:
        """Denoise x at the time t, a float64 number or one for each row."""
        y, share, at = self.network(x, t).to(x.dtype), None, self.path.at(t)
        if self.learned_variance:
            y, raw = y.chunk(2, dim=1)
            share = (raw + 1) / 2
        denoised = Denoised(x, y, self.kind, at, share)
        return replace(denoised, y=denoised.clean.clamp(-1, 1), kind="clean") if self.clip else denoised

    def on(self, path: Path) -> Denoiser:
        """The same denoiser seen on another path, so that a solver may follow whichever path it likes.

        See `carried` for how x and t come here from there.
        """
        return Denoiser(lambda x, t: self(*carried(x, t, path, self.path)).clean, path, "clean")


def carried(x: Tensor, t: Tensor, there: Path, here: Path) -> tuple[Tensor, Tensor]:
    """A noisy picture and its time on the path `there`, carried over to the path `here`.

    A noisy picture is known up to its scale by sigma / alpha alone, so the time is that at which the path here has the
    same ratio, and x is stretched to the length that it has here (Karras et al. 2022, section 2 and eq. 4). A picture
    noisier than the path here ever makes one, such as pure noise, arrives at t = 1.
    """
    at = there.at(t)
    t_here = here.time_of(at.ratio).clamp(max=1)
    at_here = here.at(t_here)
    return rows(at_here.alpha.hypot(at_here.sigma) / at.alpha.hypot(at.sigma), x) * x, t_here
