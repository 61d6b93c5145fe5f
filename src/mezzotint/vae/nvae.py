"""Nouveau VAE: codes in groups and scales, posteriors told relative to their priors, convolutions held smooth."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.batch import Batch
from ..core.config import Config
from ..core.errors import ConfigError
from ..core.model import Losses
from ..nn.blocks import Pointwise
from .gaussian import Gaussian
from .groups import Choose, GroupedModel, enlarged, halved
from .likelihoods import LikelihoodConfig, LogisticsConfig
from .objectives import ELBO, Inferred, ObjectiveConfig, elbo_losses

BRANCH = 0.1  # by which the residual branch of a cell is multiplied
MOST = 5.0  # of |ln sigma|, towards which it bends, so that no exponential overflows


@dataclass(frozen=True)
class NVAEConfig(Config):
    """Pictures, scales and groups, cells, likelihood and objective.

    Sizes are halved `halvings` times before there are codes, and once from each scale to the next, rounded up; at each
    halving there are twice as many channels.
    """

    image_size: int
    channels: int = 1
    width: int = 32  # channels at the size of pictures
    halvings: int = 1  # from the picture to the finest scale of codes
    stem_cells: int = 2  # at each of them, on the way up and on the way down
    groups: tuple[int, ...] = (5, 10)  # of codes in each scale, from the coarsest
    cells: int = 2  # from one group to the next, on the way up and on the way down
    latent: int = 20  # channels of each group of codes
    expansion: int = 6  # of the channels in the decoder's cells
    last_expansion: int = 3  # of those below all groups
    kernel: int = 5  # of the depthwise convolutions in them
    norm: Literal["group", "batch", "none"] = "group"  # batch: the loss of a picture depends on those beside it
    squeeze: bool = True  # squeeze and excitation at the end of each cell
    spectral: float = 0.01  # lambda, the weight of the convolutions' spectral norms and the normalisations' scales
    balance: bool = False  # while the KL is warmed up, weigh groups as `NVAE.balance` says
    likelihood: LikelihoodConfig = field(default_factory=lambda: LogisticsConfig(10))
    objective: ObjectiveConfig = field(default_factory=ELBO)

    def __post_init__(self) -> None:
        for name in ("width", "halvings", "stem_cells", "cells", "latent", "expansion", "last_expansion", "kernel"):
            if getattr(self, name) < (least := 0 if name == "halvings" else 1):
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.kernel % 2 == 0:
            raise ConfigError(f"a kernel has a pixel in its middle, so its size is odd, not {self.kernel}")
        if not self.groups or min(self.groups) < 1:
            raise ConfigError(f"every scale has at least 1 group of codes, not {self.groups}")
        if self.spectral < 0:
            raise ConfigError(f"spectral must not be negative, but it is {self.spectral}")
        if any(size == after for size, after in pairwise(self.sizes())):
            raise ConfigError(
                f"pictures of {self.image_size} pixels cannot be halved {self.halvings + len(self.groups) - 1} times;"
                " use fewer halvings or fewer scales"
            )
        if self.balance and not (
            isinstance(self.objective, ELBO) and self.objective.warmup_steps and not self.objective.free_bits
        ):
            raise ConfigError(
                "groups are balanced while the KL is warmed up, and without free bits; set objective.warmup_steps, or"
                " balance=False"
            )

    def sizes(self) -> list[int]:
        """Of the maps, from the picture's to the coarsest scale's."""
        sizes = [self.image_size]
        for _ in range(self.halvings + len(self.groups) - 1):
            sizes.append(halved(sizes[-1]))
        return sizes


def normalised(config: NVAEConfig, channels: int) -> nn.Module:
    """What stands before a convolution or after it."""
    if config.norm == "group":
        return nn.GroupNorm(math.gcd(8, channels), channels)
    return nn.BatchNorm2d(channels, momentum=0.05) if config.norm == "batch" else nn.Identity()


class SqueezeExcitation(nn.Module):
    """Each channel times a number between 0 and 1 that the means of all channels decide.

    Swish between the two layers, as everywhere here: of the few neurons in a narrow cell, none can die.
    Source: Hu et al. 2018 (arXiv 1709.01507), section 3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, max(channels // 16, 4))
        self.excite = nn.Linear(max(channels // 16, 4), channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), the same."""
        gate = torch.sigmoid(self.excite(F.silu(self.squeeze(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class Enlarge(nn.Module):
    """Each pixel repeated: behind layers that see each pixel alone, the same as before them, at a lower price."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, size, size)."""
        return enlarged(x, self.size)


class Cell(nn.Module):
    """x + 0.1 branch(x), where x changes its size or its width by a 1x1 convolution on means or repeated pixels.

    inputs, outputs  channels
    size             of the maps it answers, if they are to be larger
    halve            whether they are to be half as large
    """

    def __init__(self, inputs: int, outputs: int, size: int | None = None, halve: bool = False) -> None:
        super().__init__()
        self.size, self.halve = size, halve
        self.shortcut = Pointwise(inputs, outputs) if inputs != outputs or halve or size else nn.Identity()
        self.branch: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H', W')."""
        past = self.shortcut(F.avg_pool2d(x, 2, ceil_mode=True) if self.halve else x)
        if self.size is not None:
            past = enlarged(past, self.size)
        return cast("Tensor", past + BRANCH * self.branch(x))


class EncoderCell(Cell):
    """Normalisation, swish, 3x3; the same again; squeeze and excitation (figure 3b)."""

    def __init__(self, config: NVAEConfig, inputs: int, outputs: int, halve: bool = False) -> None:
        super().__init__(inputs, outputs, halve=halve)
        self.branch = nn.Sequential(
            normalised(config, inputs), nn.SiLU(),
            nn.Conv2d(inputs, outputs, 3, 2 if halve else 1, 1, bias=config.norm == "none"),
            normalised(config, outputs), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, padding=1),
            SqueezeExcitation(outputs) if config.squeeze else nn.Identity(),
        )  # fmt: skip


class DecoderCell(Cell):
    """Depthwise 5x5 between 1x1 that widen and narrow, normalised, with swish; squeeze and excitation (figure 3a)."""

    def __init__(
        self, config: NVAEConfig, inputs: int, outputs: int, size: int | None = None, expansion: int | None = None
    ) -> None:  # fmt: skip
        super().__init__(inputs, outputs, size)
        wide, bias, k = (expansion or config.expansion) * outputs, config.norm == "none", config.kernel
        self.branch = nn.Sequential(
            normalised(config, inputs), nn.Conv2d(inputs, wide, 1, bias=bias),
            normalised(config, wide), nn.SiLU(), Enlarge(size) if size else nn.Identity(),
            nn.Conv2d(wide, wide, k, padding=k // 2, groups=wide, bias=bias),
            normalised(config, wide), nn.SiLU(), nn.Conv2d(wide, outputs, 1, bias=bias),
            normalised(config, outputs),
            SqueezeExcitation(outputs) if config.squeeze else nn.Identity(),
        )  # fmt: skip


class SpectralNorms(nn.Module):
    """Estimates of the largest singular value of each convolution's weight, (outputs, inputs kernel^2).

    u and v follow the weights by power iteration, W v -> u, W^T u -> v, between steps and not within them, so that the
    loss of a batch depends on nothing but weights and batch. Weights of one shape are multiplied together.
    Source: Yoshida and Miyato 2017 (arXiv 1705.10941); Vahdat and Kautz 2020, section 3.2.

    network  whose convolutions
    begin    iterations at the beginning
    """

    def __init__(self, network: nn.Module, begin: int = 10) -> None:
        super().__init__()
        alike: dict[tuple[int, int], list[nn.Conv2d]] = defaultdict(list)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                alike[tuple(module.weight.flatten(1).shape)].append(module)  # type: ignore[index]
        self.layers = list(alike.values())  # no modules of this one: their weights are the network's
        for k, (shape, layers) in enumerate(alike.items()):
            for name, length in zip("uv", shape):
                start = torch.randn(len(layers), length, 1).to(layers[0].weight)
                self.register_buffer(f"{name}{k}", F.normalize(start, dim=1))
        self.follow(begin)

    def weights(self) -> list[Tensor]:
        """Of each shape, (layers, outputs, inputs kernel^2)."""
        return [torch.stack([layer.weight.flatten(1) for layer in layers]) for layers in self.layers]

    @torch.no_grad()
    def follow(self, iterations: int = 1) -> None:
        """Bring u and v nearer to the weights' own."""
        for k, w in enumerate(self.weights()):
            u, v = getattr(self, f"u{k}"), getattr(self, f"v{k}")
            if w.is_meta:
                continue  # there is nothing to follow, and each of many operations costs as much as elsewhere
            for _ in range(iterations):
                u.copy_(F.normalize(w @ v, dim=1))
                v.copy_(F.normalize(w.mT @ u, dim=1))

    def norms(self) -> list[Tensor]:
        """u^T W v of each shape, (layers,), with a gradient to W."""
        return [
            (getattr(self, f"u{k}").mT @ w @ getattr(self, f"v{k}")).flatten() for k, w in enumerate(self.weights())
        ]

    def forward(self) -> Tensor:
        """Their sum, ()."""
        return torch.stack([norms.sum() for norms in self.norms()]).sum()


class Group(nn.Module):
    """One group of codes: prior of what is above, posterior relative to it, and what becomes of the stream.

        p(z) = N(mu, sigma),   q(z) = N(mu + dmu, sigma dsigma)      (section 3.2)

    so that a posterior follows when its prior moves, and its KL is (dmu^2 / sigma^2 + dsigma^2 - ln dsigma^2 - 1) / 2.

    first  the group above which there is nothing: its prior is N(0, I)
    """

    def __init__(self, width: int, latent: int, first: bool) -> None:
        super().__init__()
        self.prior_net = None if first else nn.Sequential(nn.ELU(), Pointwise(width, 2 * latent))
        self.merge = Pointwise(width, width)
        self.posterior_net = nn.Conv2d(width, 2 * latent, 3, padding=1)
        self.combine = Pointwise(width + latent, width)
        self.latent = latent

    def prior(self, h: Tensor) -> Gaussian:
        """p(z | h)."""
        if self.prior_net is None:
            return Gaussian.standard(h.new_zeros(len(h), self.latent, *h.shape[2:]))
        mean, log_std = self.prior_net(h).chunk(2, 1)
        return Gaussian(mean, bounded(log_std))

    def posterior(self, prior: Gaussian, h: Tensor, seen: Tensor) -> Gaussian:
        """q(z | h, picture): of a group with others above, both are added; else the picture alone is seen."""
        told = F.elu(self.merge(F.elu(seen))) if self.prior_net is None else seen + self.merge(h)
        return relative(prior, *self.posterior_net(told).chunk(2, 1))

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """The stream after z."""
        return cast("Tensor", self.combine(torch.cat([h, z], 1)))


def bounded(x: Tensor) -> Tensor:
    """5 tanh(x / 5)."""
    return MOST * torch.tanh(x / MOST)


def relative(prior: Gaussian, shift: Tensor, log_scale: Tensor) -> Gaussian:
    """N(mu + dmu, sigma dsigma), ln dsigma held within +-5; section 3.2."""
    return Gaussian(prior.mean + shift, prior.log_std + bounded(log_scale))


class NVAE(GroupedModel):
    """A hierarchical VAE of residual cells, in scales, each with several groups of codes of its size.

        -ELBO + lambda (sum_i s_i + sum_j max |g_j|),    s_i the spectral norm of convolution i, g_j the scales of
                                                         normalisation j

    so that neither encoder nor decoder changes abruptly, and the KL stays bounded. The sum is logged as "spectral",
    without lambda; bounds (`elbo`) are without it.

    Where it is not the published one: no normalising flows on the posteriors, no weight normalisation, pixels that are
    repeated or averaged in the shortcuts, and one step of power iteration where the authors' code has four.

    Source: Vahdat and Kautz 2020 (arXiv 2007.03898), figures 2-3, section 3; survey, section 2.6.3.
    """

    config: NVAEConfig

    def __init__(self, config: NVAEConfig) -> None:
        super().__init__(config.likelihood.build(config.channels), config.objective)
        self.config = config
        self.batch_statistics = config.norm == "batch"
        sizes, stem = config.sizes(), config.halvings
        widths = [config.width * 2**level for level in range(len(sizes))]

        def up(level: int, cells: int) -> list[nn.Module]:
            return [EncoderCell(config, widths[level], widths[level]) for _ in range(cells)]

        def down(level: int, cells: int, expansion: int | None = None) -> list[nn.Module]:
            same = widths[level], widths[level]
            return [DecoderCell(config, *same, expansion=expansion) for _ in range(cells)]

        def halving(level: int) -> nn.Module:
            return EncoderCell(config, widths[level], widths[level + 1], halve=True)

        def doubling(level: int, expansion: int | None = None) -> nn.Module:
            return DecoderCell(config, widths[level + 1], widths[level], sizes[level], expansion)

        levels = [level for level, n in zip(range(len(sizes) - 1, stem - 1, -1), config.groups) for _ in range(n)]
        self.shapes = [(config.latent, sizes[level], sizes[level]) for level in levels]
        begin = [nn.Conv2d(config.channels, config.width, 3, padding=1)]
        for level in range(stem):
            begin += [*up(level, config.stem_cells - 1), halving(level)]  # type: ignore[list-item]
        tower: list[nn.Module] = []  # from the finest group to the coarsest
        for below, level in pairwise([stem, *reversed(levels)]):
            between = [halving(below)] if below != level else []
            tower.append(nn.Sequential(*(begin if not tower else []), *between, *up(level, config.cells)))
        self.encoder = nn.ModuleList(tower)
        ways: list[nn.Module] = [nn.Identity()]  # to each group from the one above it
        for above, level in pairwise(levels):
            ways.append(nn.Sequential(*([doubling(level)] if above != level else []), *down(level, config.cells)))
        self.ways = nn.ModuleList(ways)
        self.latent_groups = nn.ModuleList(
            Group(widths[level], config.latent, k == 0) for k, level in enumerate(levels)
        )
        end: list[nn.Module] = []
        for level in reversed(range(stem)):
            end += [doubling(level, config.last_expansion), *down(level, config.stem_cells - 1, config.last_expansion)]
        self.end = nn.Sequential(*end, nn.ELU(), nn.Conv2d(config.width, self.likelihood.outputs, 3, padding=1))
        self.start = nn.Parameter(torch.randn(1, widths[-1], sizes[-1], sizes[-1]))
        self.norms = SpectralNorms(self) if config.spectral else None

    def recognise(self, batch: Batch) -> tuple[Tensor, ...]:
        """What is seen of the picture for each group, from the first that is drawn."""
        x, seen = batch.images, []
        for cells in self.encoder:
            x = cells(x)
            seen.append(x)
        return tuple(reversed(seen))

    def descend(self, rows: int, seen: tuple[Tensor, ...] | None, choose: Choose) -> Tensor:
        """See `GroupedModel.descend`."""
        h = self.start.expand(rows, -1, -1, -1)
        for k, (way, codes) in enumerate(zip(self.ways, self.latent_groups)):
            h, group = way(h), cast("Group", codes)
            prior = group.prior(h)
            posterior = group.posterior(prior, h, seen[k]) if seen is not None else None
            h = group(h, choose(k, prior, posterior))
        return cast("Tensor", self.end(h))

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """The loss of the objective and lambda times the sum of spectral norms and scales.

        Logged: "reconstruction", "kl" and "negative_elbo", nats per picture, as they are without balance; "spectral".
        """
        many, seen, draws = self._repeated(batch, batch.random(), self.objective.samples)
        inferred = self.infer(many, seen, draws)
        total, parts = self._losses(self.balance(inferred) if self.config.balance else inferred, batch)
        parts = {**parts, **elbo_losses(inferred).parts}
        if self.norms is not None:
            spectral = self.norms() + self.largest_scales()
            total, parts = total + self.config.spectral * spectral, {**parts, "spectral": spectral.detach()}
        return Losses(total, parts)

    def largest_scales(self) -> Tensor:
        """The sum over all normalisations of the largest |g| of a channel, ()."""
        scales = [m.weight.abs().max() for m in self.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
        return torch.stack(scales).sum() if scales else next(self.parameters()).new_zeros(())

    def balance(self, inferred: Inferred) -> Inferred:
        """The KL of each group times gamma_l while the KL is warmed up, with a mean of 1 over the groups:

            gamma_l ~ KL_l / s_l,    s_l the positions in the map of the group, divided by the groups of its size

        so that groups that carry little pay little, and learn to carry more (appendix A). The paper's KL_l is the mean
        over the batch; here it is of each picture, so that a batch may be split over processes.
        """
        sizes = [size for _, _, size in self.shapes]
        s = inferred.kl.new_tensor([size**2 / sizes.count(size) for size in sizes])
        gamma = (inferred.kl.detach() + 0.01) / s  # a little more than the KL, so that no group is for nothing
        gamma = gamma / gamma.mean(1, keepdim=True)
        warm = self.steps + 1 < cast("ELBO", self.objective).warmup_steps
        return inferred._replace(kl=inferred.kl * torch.where(warm, gamma, 1.0))

    def after_step(self, step: int) -> None:
        """Count the steps, and follow the weights' spectral norms."""
        super().after_step(step)
        if self.norms is not None:
            self.norms.follow()
