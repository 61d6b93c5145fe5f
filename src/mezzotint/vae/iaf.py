"""Inverse autoregressive flow: posteriors of any shape, drawn in one pass, on a ladder of residual convolutions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from ..core.config import Config
from ..core.errors import ConfigError
from ..nn.masked import MaskedConv2d
from .gaussian import Drawn, Gaussian
from .likelihoods import LikelihoodConfig, LogisticsConfig
from .objectives import ELBO, ObjectiveConfig
from .topdown import Level, TopDownModel


@dataclass(frozen=True)
class IAFConfig(Config):
    """Pictures, levels of latents, their flows, likelihood and objective."""

    image_size: int
    channels: int = 1
    latent: int = 8  # maps of z of each level
    width: int = 32  # maps of all that is not z
    depths: tuple[int, ...] = (1, 2)  # levels at half the size of the picture, at a quarter, ...
    flow_steps: int = 1  # for each level; 0: the posterior is Gaussian, and its KL in closed form
    flow_layers: int = 1  # hidden layers of the network of a step
    gate: float = 2.0  # added to s: how much of z a step keeps at first, sigmoid(gate)
    residual: float = 0.1  # what a block answers weighs so much beside what it was told
    placed: bool = False  # what stands above the top level is learned for each place of the map, not one for all
    weight_norm: bool = False  # Salimans and Kingma 2016: direction and length of weights are learned apart
    likelihood: LikelihoodConfig = field(default_factory=LogisticsConfig)
    objective: ObjectiveConfig = field(default_factory=ELBO)

    def __post_init__(self) -> None:
        for name, least in {"latent": 1, "width": self.latent, "flow_steps": 0, "flow_layers": 1}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not self.depths or min(self.depths) < 1:
            raise ConfigError(f"there is at least one level of each size, not {self.depths}")
        if self.image_size % (factor := 2 ** len(self.depths)):
            raise ConfigError(
                f"pictures of {self.image_size} pixels cannot be halved {len(self.depths)} times; use a multiple of"
                f" {factor} or fewer sizes in depths"
            )

    def begun(self, layer: nn.Conv2d | nn.ConvTranspose2d, heads: int = 0) -> nn.Module:
        """A layer with weights as in Glorot and Bengio 2010, a tenth of them for its first `heads` outputs."""
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(cast("Tensor", layer.bias))
        with torch.no_grad():
            if heads:
                layer.weight[:heads] *= 0.1
            if isinstance(layer, MaskedConv2d):
                layer.weight *= layer.mask
        return weight_norm(layer, dim=int(isinstance(layer, nn.ConvTranspose2d))) if self.weight_norm else layer


class IAFStep(nn.Module):
    """One step of an inverse autoregressive flow over maps.

        (m, s) = network(z, context),  sigma = sigmoid(s + gate)
        z' = sigma z + (1 - sigma) m,  ln |det| = sum ln sigma

    m and s of an element depend on the elements before it, in raster order and by channels within a place, and on the
    context of their places. So the Jacobian is triangular, and all of z' is found at once; the inverse is found element
    by element.

    reverse  count the elements from the last to the first

    Source: Kingma et al. 2016 (arXiv 1606.04934), eq. 13-14 and algorithm 1; survey, section 2.6.3.
    """

    def __init__(self, config: IAFConfig, reverse: bool = False) -> None:
        super().__init__()
        z, h = config.latent, config.width
        self.gate, self.reverse = config.gate, reverse
        self.layers = nn.ModuleList(
            config.begun(MaskedConv2d(h if layer else z, h, 3, "B", z)) for layer in range(config.flow_layers)
        )
        self.last = config.begun(MaskedConv2d(h, 2 * z, 3, "A", z), heads=2 * z)

    def numbers(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """m and ln sigma, each of z's shape."""
        if self.reverse:
            z, context = z.flip(1, 2, 3), context.flip(2, 3)
        h = z
        for number, layer in enumerate(self.layers):
            h = F.elu(layer(h) + context if number == 0 else layer(h))
        m, s = self.last(h).unflatten(1, (-1, 2)).unbind(2)  # the maps of a group lie side by side: m, s, m, s, ...
        if self.reverse:
            m, s = m.flip(1, 2, 3), s.flip(1, 2, 3)
        return m, F.logsigmoid(s + self.gate)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """z' and ln |dz'_i / dz_i| of each element, of z's shape.

        z        (B, latent, H, W)
        context  (B, width, H, W)
        """
        m, log_sigma = self.numbers(z, context)
        sigma = log_sigma.exp()
        return sigma * z + (1 - sigma) * m, log_sigma

    @torch.no_grad()
    def inverse(self, y: Tensor, context: Tensor) -> Tensor:
        """The z of which `forward` makes y, with one pass for each element."""
        z, (channels, height, width) = torch.zeros_like(y), y.shape[1:]
        order = list(itertools.product(range(height), range(width), range(channels)))
        for row, column, channel in reversed(order) if self.reverse else order:
            place = (slice(None), channel, row, column)
            m, log_sigma = (numbers[place] for numbers in self.numbers(z, context))
            z[place] = m + (y[place] - m) * torch.exp(-log_sigma)
        return z


class Flowing(NamedTuple):
    """What a flow makes of a Gaussian."""

    begin: Gaussian  # over maps (B, latent, H, W)
    context: Tensor  # (B, width, H, W)
    steps: Iterable[nn.Module]

    def draw(self, noise: Tensor, prior: Gaussian) -> Drawn:
        """In place of the KL, which has no closed form, ln q(z) - ln p(z) of each element of this z."""
        z = self.begin.at(noise)
        log_q = self.begin.log_density(z)
        for step in self.steps:
            z, log_det = step(z, self.context)
            log_q = log_q - log_det
        kl = log_q - prior.log_density(z)
        return Drawn(z, kl, -kl.flatten(1).sum(1))


class IAFLevel(Level):
    """A residual block going up, and one going down in which z is drawn.

    The state is a map. Going down, a convolution of it gives the prior's mean and log-deviation, what is added to those
    of the posterior that the way up has found, a context for the flow, and a map that goes on beside z.

    halve  z lives at half the size of what comes from below
    top    nothing is above, so that the way up ends here
    """

    def __init__(self, config: IAFConfig, halve: bool, top: bool) -> None:
        super().__init__()
        z, h = config.latent, config.width
        self.split, self.residual, self.halve = [z, z, h, h], config.residual, halve
        upward = 2 * z + (h if top else 2 * h)
        self.up = config.begun(nn.Conv2d(h, upward, 3, stride=2 if halve else 1, padding=1), heads=2 * z)
        self.up_on = None if top else config.begun(nn.Conv2d(h, h, 3, padding=1))
        self.down = config.begun(nn.Conv2d(h, 4 * z + 2 * h, 3, padding=1), heads=4 * z)
        self.flow = nn.ModuleList(IAFStep(config, reverse=bool(step % 2)) for step in range(config.flow_steps))
        after = (
            nn.ConvTranspose2d(z + h, h, 3, stride=2, padding=1, output_padding=1)
            if halve
            else nn.Conv2d(z + h, h, 3, padding=1)
        )
        self.on = config.begun(after)

    def see(self, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Mean, log-deviation and context, and the map for the level above: the block of the way up."""
        mean, log_std, context, *rest = self.up(F.elu(x)).split(self.split[: 3 + (self.up_on is not None)], 1)
        if self.up_on is not None:
            before = x[:, :, ::2, ::2] if self.halve else x  # the nearest pixel
            x = before + self.residual * self.up_on(F.elu(rest[0]))
        return (mean, log_std, context), x

    def look(self, state: Tensor) -> tuple[Gaussian, tuple[Tensor, ...]]:
        """The prior; and mean, log-deviation and context for the posterior, and the map that goes on."""
        z, _, h, _ = self.split
        prior_mean, prior_log_std, *rest = self.down(F.elu(state)).split([z, z, z, z, h, h], 1)
        return Gaussian(prior_mean, prior_log_std), tuple(rest)

    def posterior(
        self, prior: Gaussian, rest: tuple[Tensor, ...], seen: tuple[Tensor, ...]
    ) -> Gaussian | Flowing:  # fmt: skip
        """What both ways say of mean, log-deviation and context, added; the flow from that Gaussian."""
        mean, log_std, context = (a + b for a, b in zip(rest[:3], seen, strict=True))
        begin = Gaussian(mean, log_std)
        return Flowing(begin, context, self.flow) if self.flow else begin

    def onward(self, state: Tensor, rest: tuple[Tensor, ...], z: Tensor) -> Tensor:
        """The state, and of z and the map beside it what a convolution makes of them."""
        before = F.interpolate(state, scale_factor=2, mode="nearest") if self.halve else state
        return before + self.residual * cast("Tensor", self.on(F.elu(torch.cat([z, rest[3]], 1))))


class IAFVAE(TopDownModel):
    """A ladder of residual blocks, whose posteriors are inverse autoregressive flows from Gaussians.

    The first convolution halves the picture, then `depths` levels follow at each size. A learned vector at every place
    of the coarsest map, the same unless they are `placed`, is the state above the top level. Where there are flows the
    KL of a group is sampled; its mean is right, one of them may be below zero. Groups, as free bits know them, are the
    maps of each level; free bits are then given to the sample of each picture, where the paper gives them to the mean
    over a batch.

    Source: Kingma et al. 2016 (arXiv 1606.04934), sections 3-5 and appendix; survey, section 2.6.3, eq. 29-31.
    Raises `ConfigError` for pictures that cannot be halved so often.
    """

    config: IAFConfig

    def __init__(self, config: IAFConfig) -> None:
        likelihood = config.likelihood.build(config.channels)
        halves = [size > 0 and number == 0 for size, depth in enumerate(config.depths) for number in range(depth)]
        levels: list[Level] = [IAFLevel(config, halve, k == len(halves) - 1) for k, halve in enumerate(halves)]
        sizes = [config.image_size >> (size + 1) for size, depth in enumerate(config.depths) for _ in range(depth)]
        shapes: list[tuple[int, ...]] = [(config.latent, size, size) for size in reversed(sizes)]
        super().__init__(likelihood, config.objective, levels[::-1], shapes)
        self.config = config
        self.first = config.begun(nn.Conv2d(config.channels, config.width, 5, stride=2, padding=2))
        size = sizes[-1] if config.placed else 1
        self.above = nn.Parameter(torch.zeros(config.width, size, size))
        self.last = config.begun(
            nn.ConvTranspose2d(config.width, likelihood.outputs, 5, stride=2, padding=2, output_padding=1)
        )

    def bottom_up(self, images: Tensor) -> list[tuple[Tensor, ...]]:
        """Mean, log-deviation and context of each level, from the top."""
        x, found = self.first(images), []
        for level in reversed(list(self._levels())):
            seen, x = cast("IAFLevel", level).see(x)
            found.append(seen)
        return found[::-1]

    def start(self, n: int) -> Tensor:
        """What was learned to stand there."""
        return self.above.expand(n, -1, *self.shapes[0][1:])

    def finish(self, state: Tensor) -> Tensor:
        """P(x | z)."""
        return cast("Tensor", self.last(F.elu(state)))
