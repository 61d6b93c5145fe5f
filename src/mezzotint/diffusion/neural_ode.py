"""Neural ordinary differential equations: a flow without layers, trained by its likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.batch import Batch, PictureRandom, picture_seeds
from ..core.config import Config
from ..core.errors import ConfigError
from ..core.labels import refuse
from ..core.likelihood import bits_per_dim, discrete_log_prob
from ..core.model import Losses, Model, evaluating
from .likelihood import Trace, rademacher
from .ode import dopri5, rk4

Parts = tuple[Tensor, ...]
Slope = Callable[[Tensor, Parts], Parts]
Push = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # see `Velocity.push`


@dataclass(frozen=True)
class NeuralODEConfig(Config):
    """The velocity's network, and how it is followed and trained."""

    image_size: int
    channels: int
    widths: tuple[int, ...] = (32, 32)  # channels of the hidden layers
    kernel: int = 3  # odd; 1 on pictures of one pixel, which are points
    patch: int = 1  # p: the network sees squares of p x p pixels as the channels of one
    logit: bool = True  # the flow is one of logits, for numbers that lie in [-1, 1]; False: of the numbers themselves
    steps: int = 4  # of Runge and Kutta's method in training and sampling, four evaluations each
    trace: Trace = "hutchinson"  # of the Jacobian in training; "exact" only for a few numbers
    gradient: Literal["direct", "adjoint"] = "direct"  # through the solver's steps, or by a second equation

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "kernel", "patch", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.kernel % 2 == 0:
            raise ConfigError(f"kernel must be odd, not {self.kernel}")
        if self.image_size % self.patch:
            raise ConfigError(f"patches of {self.patch} do not divide {self.image_size} pixels; change patch")
        if min(self.widths, default=1) < 1:
            raise ConfigError(f"widths must be at least 1 each, not {self.widths}")


class Velocity(nn.Module):
    """dx/dt = f(x, t): smooth convolutions, each of whose channels the time scales and shifts; 0 to begin with.

        h <- silu(conv(h) (1 + u t) + w t)

    Source: Grathwohl et al. 2019 (arXiv 1810.01367), section 4 (convolutions that see the time).
    """

    def __init__(self, config: NeuralODEConfig) -> None:
        super().__init__()
        self.patch, self.padding = config.patch, config.kernel // 2
        ends = config.channels * config.patch**2
        widths = (ends, *config.widths, ends)
        layers = [nn.Conv2d(a, b, config.kernel, bias=False) for a, b in pairwise(widths)]
        nn.init.zeros_(layers[-1].weight)
        self.weights = nn.ParameterList(layer.weight for layer in layers)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(b, 1, 1)) for b in widths[1:])
        self.gates = nn.ParameterList(nn.Parameter(torch.zeros(2, b, 1, 1)) for b in widths[1:])  # u, w

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """The velocity at x (B, C, H, W), t () float64, or one for each row."""
        return self.push(t, x, x.new_empty(0, *x.shape))[0]

    def push(self, t: Tensor, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity, and its derivatives along K `directions` (K, B, C, H, W), both of their shapes.

        All go through the layers as one batch: a layer's own derivative is itself, without what it adds.
        """
        time = t.to(x.dtype)  # a single number on the CPU is as good as a Python number
        if t.dim():
            time = time.view(-1, 1, 1, 1).to(x.device)
        B, K = len(x), len(directions)
        h = F.pixel_unshuffle(torch.cat([x, directions.reshape(K * B, *x.shape[1:])]), self.patch)
        for k, (weight, bias, gate) in enumerate(zip(self.weights, self.biases, self.gates)):
            if k:
                now, along = h[:B], h[B:]
                s = torch.sigmoid(now)
                bend = s * (1 + now * (1 - s))  # silu'
                h = torch.cat([now * s, (along.unflatten(0, (K, B)) * bend).flatten(0, 1)]) if K else now * s
            h = F.conv2d(h, weight, padding=self.padding)
            scale = 1 + gate[0] * time  # (1 or B, channels, 1, 1)
            now = (h[:B] + bias) * scale + gate[1] * time
            h = torch.cat([now, (h[B:].unflatten(0, (K, B)) * scale).flatten(0, 1)]) if K else now
        h = F.pixel_shuffle(h, self.patch)
        return h[:B], h[B:].view_as(directions)


def augmented(push: Push, probe: Tensor | None = None) -> Slope:
    """The slope of (x, gained): the velocity, and its divergence, by which the log-density falls along the way.

    Both can be differentiated again, by x and by the weights.

    push   (t, x, directions) -> the velocity and its derivatives, as of `Velocity.push`
    probe  like x, of mean 0 and covariance 1: the divergence is estimated by probe' J probe; None: exact

    Source: Chen et al. 2018 (arXiv 1806.07366), eq. 8; Grathwohl et al. 2019, section 3.1.
    """

    def slope(t: Tensor, state: Parts) -> Parts:
        x, _ = state
        if probe is not None:
            v, pushed = push(t, x, probe[None])
            return v, (pushed[0] * probe).flatten(1).sum(1)
        units = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device).view(-1, 1, *x.shape[1:])  # (D, 1, C, H, W)
        v, pushed = push(t, x, units.expand(-1, len(x), *x.shape[1:]))
        return v, (pushed * units).flatten(2).sum((0, 2))

    return slope


def adjoint(slope: Slope, y0: Parts, times: Tensor, parameters: Sequence[Tensor]) -> Parts:
    """What `ode.rk4` answers, with gradients by the adjoint equation in place of those through its steps.

        da/dt = -a' df/dy,    dg/dt = -a' df/dtheta        backwards from a = dL/dy and g = 0 at the end

    Nothing of the way is kept: it is walked again, from its end. The gradients are those of the exact solution, not of
    the solver's, and meet them as the steps become smaller.

    times       (N + 1,), y0 is the state at the first
    parameters  those of the slope

    Source: Chen et al. 2018, section 2, algorithm 1.
    """
    answer: Parts = _Adjoint.apply(slope, times, len(y0), *y0, *parameters)
    return answer


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, slope: Slope, times: Tensor, count: int, *tensors: Tensor) -> Parts:
        end = rk4(slope, tensors[:count], times)
        ctx.slope, ctx.times, ctx.count = slope, times, count
        ctx.save_for_backward(*end, *tensors[count:])
        return end

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        count, saved = ctx.count, ctx.saved_tensors
        end, parameters = saved[:count], saved[count:]

        def back(t: Tensor, state: Parts) -> Parts:
            a = state[count : 2 * count]
            with torch.enable_grad():
                y = tuple(part.detach().requires_grad_() for part in state[:count])
                dy = ctx.slope(t, y)
                fed = [(part, -pull) for part, pull in zip(dy, a) if part.requires_grad]
                outputs, pulls = [part for part, _ in fed], [pull for _, pull in fed]
                slopes = torch.autograd.grad(outputs, [*y, *parameters], pulls, allow_unused=True)
            given = (torch.zeros_like(like) if s is None else s for s, like in zip(slopes, [*y, *parameters]))
            return (*(part.detach() for part in dy), *given)

        state = (*end, *cotangents, *(torch.zeros_like(p) for p in parameters))
        start = rk4(back, state, ctx.times.flip(0))
        return (None, None, None, *start[count:])


class NeuralODE(Model):
    """A continuous normalising flow: x follows dx/dt = f(x, t) from the picture at t = 0 to noise at t = 1.

        ln p(x) = ln N(x_1; 0, 1) + int_0^1 div f(x_t, t) dt        (survey, eq. 102)

    A layer of a residual network, x + f(x), is one of its Euler steps (survey, eq. 101). It is trained by that
    likelihood, at a fixed number of steps, with one random probe of the trace for each picture and step of training.

    Pictures are given as numbers in [-1, 1] that have a density, "dequantised", and the flow is one of their logits,
    which are brought to about mean 0 and variance 1 by a shift and a scale for each pixel, learned like all the rest:

        y = (logit(lambda + (1 - 2 lambda) (x + 1) / 2) - shift) / scale,    lambda = 1e-6

    Source: Chen et al. 2018 (arXiv 1806.07366), section 4; Grathwohl et al. 2019 (arXiv 1810.01367); logits: Dinh et
    al. 2017 (arXiv 1605.08803), section 4.1; survey, section 7.
    """

    config: NeuralODEConfig
    density = True
    likelihood_n = 100

    def __init__(self, config: NeuralODEConfig) -> None:
        super().__init__()
        self.config = config
        self.shape = (config.channels, config.image_size, config.image_size)
        self.velocity = Velocity(config)
        if config.logit:
            self.shift = nn.Parameter(torch.zeros(self.shape))
            self.scale = nn.Parameter(torch.zeros(self.shape))

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """-ln p(x), divided by the count of a picture's numbers; the probe comes from each picture's own seed.

        `bits_per_dim` is what that means for a picture of 256 levels, if it was dequantised.
        """
        c, x = self.config, batch.images
        probe = None if c.trace == "exact" else rademacher(batch.random(), *self.shape).to(x.dtype)
        times = torch.linspace(0, 1, c.steps + 1, dtype=torch.float64, device="cpu")
        y, gained = self.inward(x)
        slope, start = augmented(self.velocity.push, probe), (y, torch.zeros_like(gained))
        if c.gradient == "adjoint":
            end = adjoint(slope, start, times, list(self.velocity.parameters()))
        else:
            end = rk4(slope, start, times)
        log_prob = normal_log_prob(end[0]) + end[1] + gained
        dims = x[0].numel()
        bits = bits_per_dim(discrete_log_prob(log_prob.detach().mean(), dims), dims)
        return Losses(-log_prob.mean() / dims, {"bits_per_dim": bits})

    @torch.no_grad()
    def log_prob(
        self,
        images: Tensor,
        *,
        seeds: int | Sequence[int] = 0,
        trace: Trace | None = None,
        rtol: float = 1e-4,
        atol: float = 1e-4,
        steps: int | None = None,
    ) -> Tensor:
        """ln p(x) of numbers (B, C, H, W) in (-1, 1), nats per picture, (B,), with an adaptive solver.

        seeds  B integers, or the first of B consecutive ones: the probe of picture k comes from seed k alone
        trace  "hutchinson": right on average; "exact"; None: as in training
        rtol, atol
               tolerances of the adaptive solver
        steps  so many fixed steps instead

        Raises `ConfigError` for another trace, and what `ode.dopri5` raises.
        """
        chosen = self.config.trace if trace is None else trace
        if chosen not in ("hutchinson", "exact"):
            raise ConfigError(f"trace is hutchinson or exact, not {chosen!r}")
        random = PictureRandom(picture_seeds(len(images), seeds), images.device)
        probe = rademacher(random, *self.shape).to(images.dtype) if chosen == "hutchinson" else None
        dims = images[0].numel()
        with evaluating(self):
            y, gained = self.inward(images)
            start = (y, torch.zeros_like(gained))
            if steps is not None:
                times = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device="cpu")
                x, more = rk4(augmented(self.velocity.push, probe), start, times)
                return normal_log_prob(x) + more + gained

            def each(t: Tensor, state: Parts) -> Parts:
                v, divergence = augmented(self.velocity.push, probe)(t, state)
                return v, divergence / dims  # per number, so that one tolerance fits pictures of every size

            x, more = dopri5(each, start, 0.0, 1.0, rtol, atol).y
        return normal_log_prob(x) + dims * more + gained

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        labels: Tensor | Sequence[int] | None = None,
        captions: list[str] | None = None,
        source: Tensor | None = None,
        mask: Tensor | None = None,
        seeds: int | Sequence[int] = 0,
        steps: int | None = None,
    ) -> Tensor:
        """n pictures in [-1, 1], (n, C, H, W) float32; picture k depends on seed k alone.

        steps  of Runge and Kutta's method, four evaluations each; None: as in the config
        """
        refuse(labels=labels, captions=captions, source=source, mask=mask)
        noise = PictureRandom(picture_seeds(n, seeds), self.device).normal(*self.shape)
        return self.decode(noise, steps=steps).float().clamp(-1, 1)

    @torch.no_grad()
    def encode(self, images: Tensor, *, steps: int | None = None) -> Tensor:
        """The noise to which the flow takes pictures (B, C, H, W)."""
        with evaluating(self):
            return self._follow(self.inward(images)[0], 0.0, 1.0, steps)

    @torch.no_grad()
    def decode(self, codes: Tensor, *, steps: int | None = None) -> Tensor:
        """The pictures that the flow takes to `codes` (B, C, H, W)."""
        with evaluating(self):
            return self.outward(self._follow(codes, 1.0, 0.0, steps))

    def inward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y, of which the flow is one, and ln |dy/dx|, (B,)."""
        if not self.config.logit:
            return x, x.new_zeros(len(x))
        p = LAMBDA + (1 - 2 * LAMBDA) * (x + 1) / 2
        y = (torch.logit(p) / SPREAD - RATE * self.shift) * torch.exp(-RATE * self.scale)
        each = math.log((1 - 2 * LAMBDA) / 2 / SPREAD) - torch.log(p) - torch.log1p(-p) - RATE * self.scale
        return y, each.flatten(1).sum(1)

    def outward(self, y: Tensor) -> Tensor:
        """The x of which y is `inward`."""
        if not self.config.logit:
            return y
        p = torch.sigmoid(SPREAD * (y * torch.exp(RATE * self.scale) + RATE * self.shift))
        return 2 * (p - LAMBDA) / (1 - 2 * LAMBDA) - 1

    def _follow(self, y: Tensor, start: float, end: float, steps: int | None) -> Tensor:
        count = (self.config.steps if steps is None else steps) + 1
        if count < 2:
            raise ConfigError(f"a solver needs at least 1 step, not {steps}")
        return rk4(self.velocity, y, torch.linspace(start, end, count, dtype=torch.float64, device="cpu"))


LAMBDA = 1e-6  # keeps the logits of black and white finite
SPREAD = 5.0  # about the standard deviation of the logits of pictures
RATE = 5.0  # by which shift and scale learn faster than a network's weights, which have less far to go


def normal_log_prob(x: Tensor) -> Tensor:
    """ln N(x; 0, 1), (B,)."""
    flat = x.flatten(1)
    return -(flat.square() + math.log(2 * math.pi)).sum(1) / 2
