"""Optimal flow matching: a flow of straight lines, the gradient of one convex function, learned in one problem."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.batch import Batch, PictureRandom, picture_seeds
from ..core.config import Config
from ..core.errors import ConfigError
from ..core.labels import refuse
from ..core.model import Losses, Model

HALVINGS = 10  # of a Newton step at the most
SUFFICIENT = 1e-4  # share of the linear decrease that a step must bring
FORCING = 0.05  # remainder at which conjugate gradients stop within Newton's method, as a share of the right side
TINY = 1e-30  # where nothing is left to divide by


@dataclass(frozen=True)
class OptimalFlowConfig(Config):
    """The potential, and how the convex problem within the loss is solved."""

    image_size: int
    channels: int
    widths: tuple[int, ...] = (512, 512)  # of the input-convex network's layers
    rank: int = 128  # of the quadratic part of the potential
    newton: int = 8  # steps of Newton's method at the most
    conjugate: int = 20  # conjugate gradients in each of them at the most
    tolerance: float = 1e-3  # of the solution, root mean square over the picture's numbers

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "rank", "newton", "conjugate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.widths or min(self.widths) < 1:
            raise ConfigError(f"widths has one number above 0 for each layer, not {self.widths}")
        if not self.tolerance > 0:
            raise ConfigError(f"tolerance must be above 0, not {self.tolerance}")


class Convex(nn.Module):
    """A strongly convex function of x (B, D), by construction: an input-convex network on top of a quadratic one.

        Psi(x) = s |x|^2 / 2 + c.x + |A x|^2 / 2 + p.h_L
        h_1 = softplus(q_1(x)),   h_{l+1} = softplus(P_l h_l + q_{l+1}(x)),   q(x)_k = (a_k.x)^2 / 2 + w_k.x + b_k

    P and p are positive, and softplus is convex and rising, so that each h is convex in x. It begins nearly as
    |x|^2 / 20: pictures lie close to few directions, and what is not needed for them is noise.

    Source: Amos et al. 2017 (arXiv 1609.07152), section 3, with the quadratic layers of Korotin et al. 2019 (arXiv
    1909.13082), and softplus, so that it has second derivatives.
    """

    def __init__(self, dims: int, widths: Sequence[int], rank: int) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(inverse_softplus(0.1)))  # s, before softplus
        self.shift = nn.Parameter(torch.zeros(dims))  # c
        self.quadratic = nn.Parameter(torch.randn(rank, dims) * (0.1 / math.sqrt(dims)))  # A
        self.squared = nn.ModuleList(nn.Linear(dims, width, bias=False) for width in widths)  # a
        self.linear = nn.ModuleList(nn.Linear(dims, width) for width in widths)  # w, b
        self.positive = nn.ParameterList(  # P and p, before softplus
            nn.Parameter(torch.full((after, before), inverse_softplus(1 / before)) + 0.1 * torch.randn(after, before))
            for before, after in zip(widths, (*widths[1:], 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Psi(x), (B,)."""
        h: Tensor | None = None
        for k, (square, line) in enumerate(zip(self.squared, self.linear)):
            q = square(x).square() / 2 + line(x)
            h = F.softplus(q if h is None else F.linear(h, F.softplus(self.positive[k - 1])) + q)
        assert h is not None
        grown = F.linear(h, F.softplus(self.positive[-1]))[:, 0]
        quadratic = (F.softplus(self.strength) * x.square().sum(1) + F.linear(x, self.quadratic).square().sum(1)) / 2
        return quadratic + x @ self.shift + grown


def inverse_softplus(value: float) -> float:
    """The number whose softplus is `value`."""
    return math.log(math.expm1(value))


Potential = Callable[[Tensor], Tensor]  # (B, D) -> (B,), convex


def gradient(potential: Potential, x: Tensor) -> tuple[Tensor, Tensor]:
    """x as the beginning of a graph, and grad Psi(x), (B, D), which can be differentiated by x and by the weights."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(potential(x).sum(), x, create_graph=True)
    return x, slope


def invert(
    potential: Potential,
    x: Tensor,
    t: Tensor,
    *,
    newton: int = 20,
    conjugate: int = 50,
    tolerance: float = 1e-6,
) -> Tensor:
    """The z from which the straight line to grad Psi(z) is at x at the time t: (1 - t) z + t grad Psi(z) = x.

    It is where (1 - t) |z|^2 / 2 + t Psi(z) - x.z is least, a convex problem, solved by Newton's method with conjugate
    gradients, from z = x. A step is halved until the residual falls. Every row walks alone and stops when the root mean
    square of its residual is below `tolerance`, or after `newton` steps.

    x  (B, D), at times t (B, 1) of 0 (z = x) to 1 (the picture)

    Source: Kornilov et al. 2024 (arXiv 2403.13117), section 3.
    """
    z, slope = gradient(potential, x)
    residual = (x - (1 - t) * z - t * slope).detach()
    for _ in range(newton):
        size = residual.square().mean(1, keepdim=True).sqrt()
        walking = size > tolerance
        if not walking.any():
            break
        step = solve(z, slope, t, residual, conjugate) * walking
        share = torch.ones_like(t)
        for _ in range(HALVINGS):
            z_next, slope_next = gradient(potential, z.detach() + share * step)
            left = (x - (1 - t) * z_next - t * slope_next).detach()
            better = left.square().mean(1, keepdim=True).sqrt() <= (1 - SUFFICIENT * share) * size
            if (better | ~walking).all():
                break
            share = torch.where(better | ~walking, share, share / 2)
        z, slope, residual = z_next, slope_next, left
    return z.detach()


def solve(z: Tensor, slope: Tensor, t: Tensor, b: Tensor, steps: int, forcing: float = FORCING) -> Tensor:  # (B, D)
    """v with ((1 - t) 1 + t hess Psi(z)) v = b, by conjugate gradients, row by row; z and slope from `gradient`."""

    def product(v: Tensor) -> Tensor:
        (curved,) = torch.autograd.grad(slope, z, v, retain_graph=True)
        return (1 - t) * v + t * curved

    v, r = torch.zeros_like(b), b.clone()
    p, size = r.clone(), r.square().sum(1, keepdim=True)
    enough = forcing**2 * size
    for _ in range(steps):
        walking = size > enough
        if not walking.any():
            break
        Hp = product(p)
        length = torch.where(walking, size / (p * Hp).sum(1, keepdim=True).clamp(min=TINY), 0.0)
        v, r = v + length * p, r - length * Hp
        size_next = r.square().sum(1, keepdim=True)
        p = r + torch.where(walking, size_next / size.clamp(min=TINY), 0.0) * p
        size = torch.where(walking, size_next, size)
    return v


class OptimalFlowModel(Model):
    """Flow matching among the flows of straight lines that do not cross: z -> (1 - t) z + t grad Psi(z), Psi convex.

    At x_t = (1 - t) x_0 + t x_1, from noise x_0 and a picture x_1, such a flow has the velocity grad Psi(z) - z of the
    z whose line is there (`invert`), and the loss of flow matching is

        E |e|^2,    e = grad Psi(z) - z - (x_1 - x_0) = (x_0 - z) / t,    t uniform

    whose minimum, for independent x_0 and x_1, is the optimal transport of noise to pictures at quadratic cost. It is
    drawn from in one step, x_1 = grad Psi(x_0). Here t runs from noise to the picture, as in the paper.

    The z is a function of the weights through the equation that it solves; its derivative is not that of the steps of
    the solver, but that of the solution. With H = (1 - t) 1 + t hess Psi(z),

        d |e|^2 = 2 <H^{-1} e, d grad Psi(z)>

    Source: Kornilov et al. 2024 (arXiv 2403.13117), section 3; survey, section 7.2.
    """

    config: OptimalFlowConfig

    def __init__(self, config: OptimalFlowConfig) -> None:
        super().__init__()
        self.config = config
        self.shape = (config.channels, config.image_size, config.image_size)
        self.potential = Convex(math.prod(self.shape), config.widths, config.rank)

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """The loss, divided by the count of a picture's numbers; noise and t come from each picture's own seed.

        `inner` is the root mean square of what is left of the equation for z.
        """
        random = batch.random()
        t = random.uniform(1).to(batch.images)  # (B, 1)
        x0 = random.normal(*self.shape).to(batch.images).flatten(1)
        x1 = batch.images.flatten(1)
        with torch.autocast(x0.device.type, enabled=False):  # the equation needs more digits than half precision has
            loss, inner = optimal_loss(
                self.potential, x0, x1, t, newton=self.config.newton, conjugate=self.config.conjugate,
                tolerance=self.config.tolerance,
            )  # fmt: skip
        return Losses(loss.mean() / x0.shape[1], {"inner": inner.square().mean().sqrt()})

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | Sequence[int] | None = None,
        captions: list[str] | None = None,
        source: Tensor | None = None,
        mask: Tensor | None = None,
        seeds: int | Sequence[int] = 0,
    ) -> Tensor:
        """n pictures in [-1, 1], (n, C, H, W) float32, one gradient of the potential; picture k depends on seed k."""
        refuse(labels=labels, captions=captions, source=source, mask=mask)
        noise = PictureRandom(picture_seeds(n, seeds), self.device).normal(*self.shape)
        return self.decode(noise)

    def decode(self, codes: Tensor) -> Tensor:
        """The pictures, in [-1, 1], at the end of the lines that begin at `codes` (B, C, H, W)."""
        with torch.autocast(codes.device.type, enabled=False):
            _, slope = gradient(self.potential, codes.flatten(1))
        return slope.detach().view_as(codes).float().clamp(-1, 1)

    def encode(self, images: Tensor) -> Tensor:
        """The noise whose line ends at each picture (B, C, H, W)."""
        x = images.flatten(1)
        codes = invert(self.potential, x, torch.ones_like(x[:, :1]), tolerance=self.config.tolerance)
        return codes.view_as(images)


def optimal_loss(
    potential: Potential,
    x0: Tensor,
    x1: Tensor,
    t: Tensor,
    *,
    newton: int = 20,
    conjugate: int = 50,
    tolerance: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """|e|^2, (B,), with the gradient through the solution z; and what is left of its equation, (B, D).

    x0, x1   noise and pictures, (B, D)
    t        (B, 1)
    newton, conjugate, tolerance
             of `invert`

    See `OptimalFlowModel`.
    """
    x = (1 - t) * x0 + t * x1
    z, slope = gradient(potential, invert(potential, x, t, newton=newton, conjugate=conjugate, tolerance=tolerance))
    e = (slope - z - (x1 - x0)).detach()
    surrogate = 2 * (solve(z, slope, t, e, 2 * conjugate, tolerance) * slope).sum(1)  # has its gradient, not its value
    return e.square().sum(1) + surrogate - surrogate.detach(), (x - (1 - t) * z - t * slope).detach()
