"""The VQ-VAE: pictures as maps of entries in a codebook, and a prior over such maps."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..autoregressive.tokens import PixelCNNPriorConfig, TokenPriorConfig
from ..core.batch import Batch, PictureRandom, picture_seeds
from ..core.config import Config
from ..core.errors import ConfigError
from ..core.labels import choose_labels, given_codes, given_labels, given_pictures, labels_of, refuse
from ..core.likelihood import Pixels
from ..core.model import Losses, Model
from .likelihoods import LikelihoodConfig, LogisticsConfig, check_pixels
from .networks import begin
from .quantiser import CodebookConfig, VectorQuantiser


@dataclass(frozen=True)
class VQVAEConfig(Config):
    """Pictures, networks, codebook and likelihood. The defaults of the networks are those of the paper."""

    image_size: int
    channels: int = 1
    width: int = 256  # features of every layer
    levels: int = 2  # how often the size is halved
    blocks: int = 2  # residual blocks of each network
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    likelihood: LikelihoodConfig = field(default_factory=LogisticsConfig)

    def __post_init__(self) -> None:
        for name, least in (("image_size", 1), ("channels", 1), ("width", 1), ("levels", 1), ("blocks", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.image_size % (factor := 2**self.levels):
            raise ConfigError(
                f"pictures of {self.image_size} pixels cannot be halved {self.levels} times; use a multiple of {factor}"
                " or fewer levels"
            )

    @property
    def grid(self) -> int:
        """Height and width of a map of codes."""
        return self.image_size // 2**self.levels

    def encoder(self) -> nn.Module:
        """Strided 4x4 convolutions and residual blocks: (B, C, H, W) -> (B, D, h, w)."""
        layers: list[nn.Module] = []
        for before, after in pairwise((self.channels, *[self.width] * self.levels)):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        last = nn.Conv2d(self.width, self.codebook.width, 1)
        return begin(nn.Sequential(*layers[:-1], *self._blocks(), nn.ReLU(), last), "relu")

    def decoder(self, outputs: int) -> nn.Module:
        """Residual blocks and transposed 4x4 convolutions: (B, D, h, w) -> (B, outputs, H, W)."""
        layers: list[nn.Module] = [nn.Conv2d(self.codebook.width, self.width, 3, padding=1), *self._blocks()]
        for before, after in pairwise((*[self.width] * self.levels, outputs)):
            layers += [nn.ReLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
        return begin(nn.Sequential(*layers), "relu")

    def _blocks(self) -> list[nn.Module]:
        return [ResidualBlock(self.width) for _ in range(self.blocks)]


class ResidualBlock(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x)))). Source: van den Oord et al. 2017, section 4.1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) -> (B, width, h, w)."""
        return x + cast("Tensor", self.conv2(F.relu(self.conv1(F.relu(x)))))


class VQVAE(Model):
    """The first stage: an encoder, a codebook and a decoder.

        -ln p(x | z_q) + |sg[z_e] - z_q|^2 + beta |z_e - sg[z_q]|^2

    the second term only where the codebook is learned by gradient. The likelihood is summed over the pixels, in nats;
    the other terms are as `VectorQuantiser` says, and in units of z.

    The posterior is the nearest code, for sure, and the prior of this stage uniform over K codes at each of N
    positions, so that KL(q || p) = N ln K whatever the networks do, and -ln p(x) <= -ln p(x | z_q) + N ln K.

    Source: van den Oord et al. 2017 (arXiv 1711.00937), section 3.1-3.2, eq. 1-3; survey, section 2.6.2, Box 2.
    """

    config: VQVAEConfig

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.likelihood = config.likelihood.build(config.channels)
        self.pixels: Pixels | None = self.likelihood.pixels
        self.encoder = config.encoder()
        self.quantiser = VectorQuantiser(config.codebook)
        self.decoder = config.decoder(self.likelihood.outputs)

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """The loss above, the mean over pictures.

        Logged: "reconstruction", "kl" and "negative_elbo", nats per picture; "commitment" and "codebook", as they are
        in the sum; "usage" and "perplexity" of the codes.
        """
        chance = batch.random().uniform(self.config.grid, self.config.grid) if self.training else None
        quantised = self.quantiser(self.encoder(batch.images), chance)
        reconstruction = -self.likelihood.log_prob(self.decoder(quantised.vectors), batch.images).mean()
        commitment, codebook = quantised.commitment.mean(), quantised.codebook.mean()
        parts = {
            "reconstruction": reconstruction,
            "kl": reconstruction.new_tensor(-self.log_prior),
            "negative_elbo": reconstruction - self.log_prior,
            "commitment": commitment,
            "codebook": codebook,
            "usage": quantised.usage,
            "perplexity": quantised.perplexity,
        }
        return Losses(reconstruction + commitment + codebook, {name: part.detach() for name, part in parts.items()})

    def after_step(self, step: int) -> None:
        """The codebook follows what was chosen."""
        self.quantiser.after_step()

    @property
    def log_prior(self) -> float:
        """ln p(c) of this stage, -N ln K for every map of codes."""
        return -(self.config.grid**2) * math.log(self.config.codebook.codes)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The nearest codes, (B, h, w) int64. Raises `ConfigError` for pictures of another kind."""
        given_pictures(images, self.config.channels, self.config.image_size)
        vectors = self.encoder(images).permute(0, 2, 3, 1)  # (B, h, w, D)
        return self.quantiser.nearest(vectors.to(self.quantiser.codebook.dtype))

    def codebook(self) -> Tensor:
        """What the codes stand for, (K, D)."""
        return self.quantiser.codebook

    def numbers(self, codes: Tensor) -> Tensor:
        """What the decoder says of each pixel, (B, outputs, H, W)."""
        return cast("Tensor", self.decoder(self.quantiser.lookup(codes)))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """E[x | z_q] of codes (B, h, w), (B, C, H, W) in [-1, 1]. Raises `ConfigError` for what is none of them."""
        given_codes(codes, self.config.grid, self.config.grid, choices=self.config.codebook.codes)
        return self.likelihood.mean(self.numbers(codes))

    def reconstruct(self, images: Tensor) -> Tensor:
        """E[x | z_q(x)], (B, C, H, W) in [-1, 1]."""
        return self.decode(self.encode(images))

    @torch.no_grad()
    def elbo(self, images: Tensor) -> Tensor:
        """ln p(x | z_q(x)) - N ln K, nats, (B,): a lower bound of ln p(x), with the uniform prior."""
        return self.likelihood.log_prob(self.numbers(self.encode(images)), images) + self.log_prior


@dataclass(frozen=True)
class VQVAEPriorConfig(Config):
    """The second stage."""

    classes: int = 0  # how many; 0: unconditional, whatever labels the pictures have
    prior: TokenPriorConfig = field(default_factory=PixelCNNPriorConfig)  # or a transformer: prior.kind=transformer

    def __post_init__(self) -> None:
        if self.classes < 0:
            raise ConfigError(f"classes must not be negative, but it is {self.classes}")


class VQVAEPrior(Model):
    """The second stage: p(c) of maps of codes, learned from those of pictures; and with it, the whole generator.

        -ln p(c(x)),  c(x) the codes of the picture, nats

    which is KL(q || p) of the posterior that is sure of c(x). The first stage is held as it was trained, with its
    codebook, and learns no more.

    codec  the first stage; not changed

    Source: van den Oord et al. 2017 (arXiv 1711.00937), section 3.3; survey, eq. 27-28, Box 2.
    Raises `ConfigError` where the codec is none.
    """

    config: VQVAEPriorConfig

    def __init__(self, config: VQVAEPriorConfig, codec: Model) -> None:
        super().__init__()
        if not isinstance(codec, VQVAE):
            raise ConfigError(f"a {type(codec).__name__} has no codes to learn a prior of; use a VQVAE as the codec")
        self.config = config
        self.codec = copy.deepcopy(codec).requires_grad_(False).eval()
        self.pixels: Pixels | None = codec.pixels
        grid = codec.config.grid
        self.prior = config.prior.build(codec.config.codebook.codes, grid, grid, config.classes)

    def train(self, mode: bool = True) -> VQVAEPrior:
        """As usual, but for the codec."""
        super().train(mode)
        self.codec.eval()
        return self

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """-ln p(c(x)), the mean over pictures. Logged: "kl", the same, and "bits_per_code"."""
        codes = self.codec.encode(batch.images)
        total = -self.prior.log_prob(codes, labels_of(batch, self.config.classes)).mean()
        kl = total.detach()
        return Losses(total, {"kl": kl, "bits_per_code": kl / (codes[0].numel() * math.log(2))})

    @torch.no_grad()
    def log_prior(self, codes: Tensor, labels: Tensor | Sequence[int] | None = None) -> Tensor:
        """ln p(c), nats, (B,) of codes (B, h, w).

        labels  (B,); None: a prior with classes takes each to be as likely as the others, ln (1/Y) sum_y p(c | y)

        Raises `ConfigError` for labels that do not fit.
        """
        classes = self.config.classes
        if labels is not None:
            return self.prior.log_prob(codes, given_labels(len(codes), labels, classes, codes.device))
        if not classes:
            return self.prior.log_prob(codes)
        each = [self.prior.log_prob(codes, torch.full_like(codes[:, 0, 0], label)) for label in range(classes)]
        return torch.logsumexp(torch.stack(each), 0) - math.log(classes)

    @torch.no_grad()
    def elbo(self, images: Tensor, *, labels: Tensor | Sequence[int] | None = None) -> Tensor:
        """ln p(x | z_q(x)) + ln p(c(x)), nats, (B,): a lower bound of ln p(x), for p(x) is the sum over all c.

        labels  (B,); None: as in `log_prior`

        Source: van den Oord et al. 2017, section 3.2. Raises `ConfigError` for labels that do not fit.
        """
        codes = self.codec.encode(images)
        return self.codec.likelihood.log_prob(self.codec.numbers(codes), images) + self.log_prior(codes, labels)

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
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        cached: bool = True,
        pixels: str = "mean",
    ) -> Tensor:
        """n pictures in [-1, 1], (n, C, H, W): codes from the prior, one after another, and what they decode to.

        labels       (n,); None: a prior with classes draws each picture's label from its seed
        seeds        n integers, or the first of n consecutive ones
        temperature, top_k, top_p
                     which codes are drawn; see `autoregressive.choosing.Choice`
        cached       False: the slow way, to compare with
        pixels       "mean": E[x | z_q]; "drawn": x from p(x | z_q), the model's own pictures

        Raises `ConfigError` for labels or controls that do not fit, or a source, which says nothing to this model.
        """
        refuse(captions=captions, source=source, mask=mask)
        check_pixels(pixels)
        random = PictureRandom(picture_seeds(n, seeds), self.device)
        told = choose_labels(n, labels, self.config.classes, random)
        codes = self.prior.sample(
            n, told, random, cached=cached, temperature=temperature, top_k=top_k, top_p=top_p
        )  # fmt: skip
        numbers = self.codec.numbers(codes)
        likelihood = self.codec.likelihood
        return likelihood.mean(numbers) if pixels == "mean" else likelihood.draw(numbers, random)

    def encode(self, images: Tensor) -> Tensor:
        """The nearest codes, (B, h, w) int64."""
        return self.codec.encode(images)

    def decode(self, codes: Tensor) -> Tensor:
        """E[x | z_q] of codes (B, h, w), (B, C, H, W) in [-1, 1]."""
        return self.codec.decode(codes)

    def reconstruct(self, images: Tensor) -> Tensor:
        """E[x | z_q(x)], (B, C, H, W) in [-1, 1]."""
        return self.codec.reconstruct(images)

    def codebook(self) -> Tensor:
        """What the codes stand for, (K, D)."""
        return self.codec.codebook()
