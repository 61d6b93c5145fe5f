"""Improved techniques: what a generator is to match, what a discriminator sees of a batch, and players who remember."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.batch import Batch, FewLabels, PictureRandom
from ..core.errors import ConfigError, DataError
from ..core.model import Losses
from .model import GAN, GANConfig
from .networks import Body, DCGANConfig, Generator, Verdict, begun


class MinibatchDiscrimination(nn.Module):
    """How near each picture is to the others of its batch, beside its features.

        M_i = f(x_i) T,   c_b(x_i, x_j) = exp(-|M_ib - M_jb|_1),   o(x_i)_b = sum_{j != i} c_b(x_i, x_j)

    features  numbers of f(x)
    kernels   b = 1 ... kernels
    width     numbers of M_ib

    Source: Salimans et al. 2016 (arXiv 1606.03498), section 3.2; the picture itself, whose c is 1, is left out.
    """

    def __init__(self, features: int, kernels: int, width: int = 5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, kernels, width) * (features * width) ** -0.5)

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) -> (B, F + kernels)."""
        m = torch.einsum("bf,fkw->bkw", features, self.weight)
        distances = (m[:, None] - m[None]).abs().sum(3)  # (B, B, kernels)
        return torch.cat([features, torch.exp(-distances).sum(1) - 1], 1)


class VirtualBatchNorm(nn.Module):
    """Normalisation by the statistics of a reference batch and of the picture itself, gain and bias for each channel.

        mean = (n m_ref + m_x) / (n + 1),   and so for the mean square

    The first n pictures are the reference batch, which is normalised by its own. No picture sees another of its batch.

    reference  n

    Source: Salimans et al. 2016, section 3.5.
    """

    def __init__(self, width: int, reference: int) -> None:
        super().__init__()
        self.reference = reference
        self.gain = nn.Parameter(1 + 0.02 * torch.randn(width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(n + B, C, H, W) -> the same."""
        n = self.reference
        means = torch.stack(
            [x.mean((2, 3), keepdim=True), x.square().mean((2, 3), keepdim=True)]
        )  # (2, n + B, C, 1, 1)
        own = means[:, :n].mean(1, keepdim=True)  # (2, 1, C, 1, 1)
        both = torch.cat([own.expand(-1, n, -1, -1, -1), (n * own + means[:, n:]) / (n + 1)], 1)
        mean, square = both.unbind()
        return (x - mean) * (square - mean.square() + 1e-5).rsqrt() * self.gain + self.bias


class Referred(nn.Module):
    """A generator that always draws a reference batch too, for its `VirtualBatchNorm`s.

    network    (n + B, latent) -> pictures
    reference  z of the reference batch, chosen once
    """

    reference: Tensor

    def __init__(self, network: nn.Module, reference: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("reference", reference)

    def forward(self, z: Tensor) -> Tensor:
        """(B, latent) -> (B, C, H, W)."""
        images: Tensor = self.network(torch.cat([self.reference.to(z.dtype), z]))
        return images[len(self.reference) :]


def virtually_normalised(network: nn.Module, reference: int) -> nn.Module:
    """The network, with a `VirtualBatchNorm` in place of each batch normalisation."""
    for name, module in network.named_children():
        if isinstance(module, nn.BatchNorm2d):
            setattr(network, name, VirtualBatchNorm(module.num_features, reference))
        else:
            virtually_normalised(module, reference)
    return network


class Crowded(nn.Module):
    """A discriminator whose head sees its features beside how near the other pictures of the batch are.

    outputs  1: a score; K: the logits of K classes of real pictures. What it cannot name, it takes for generated:

        Z(x) = sum_k exp l_k(x),   D(x) = Z(x) / (Z(x) + 1),   so that ln Z(x) is its score

    kernels  of the minibatch discrimination; 0: none
    bias     of the head
    std      of the first weights of the head; None: as torch has them

    Source: Salimans et al. 2016, sections 3.2 and 5, where l_{K+1} = 0.
    """

    def __init__(self, body: Body, outputs: int, kernels: int, bias: bool = True, std: float | None = None) -> None:
        super().__init__()
        self.body = body
        self.between = MinibatchDiscrimination(body.width, kernels) if kernels else nn.Identity()
        self.head = nn.Linear(body.width + kernels, outputs, bias)
        if std is not None:
            begun(self.head, std)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Verdict:
        """Of pictures (B, C, H, W); labels are not looked at."""
        features = self.body(x)
        answers = self.head(self.between(features))
        if answers.shape[1] == 1:
            return Verdict(answers.squeeze(1), features, None)
        return Verdict(answers.logsumexp(1), features, answers)


@dataclass(frozen=True)
class ImprovedConfig(GANConfig):
    """A `GANConfig` with the techniques, each on or off; without classes."""

    network: DCGANConfig = field(default_factory=lambda: DCGANConfig(critic_norm="none"))  # type: ignore[assignment]
    feature_matching: bool = False  # what the generator wants, in place of its loss
    kernels: int = 0  # of the minibatch discrimination; 0: none
    historical: float = 0.0  # weight of the distance of both players from the mean of all that they were
    reference: int = 32  # pictures of the reference batch of the virtual batch normalisation; 0: batch normalisation

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes:
            raise ConfigError("these techniques are those of a GAN that is told no classes; set classes=0")
        for name in ("kernels", "historical", "reference"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, but it is {getattr(self, name)}")


class ImprovedGAN(GAN):
    """A GAN with feature matching, minibatch discrimination, historical averaging and virtual batch normalisation.

        feature matching       |E f(x) - E f(G(z))|^2,  f what the discriminator's body sees     (for the generator)
        historical averaging   weight |theta - (1/t) sum_i theta_i|^2                            (for both)
        one-sided smoothing    see `losses.smoothed`

    Source: Salimans et al. 2016 (arXiv 1606.03498), section 3; survey, section 3.1, reference [27].
    """

    config: ImprovedConfig
    heads = 1  # numbers that the discriminator answers

    def __init__(self, config: ImprovedConfig) -> None:
        super().__init__(config)
        if config.historical:
            for player, part in self.players().items():
                for number, parameter in enumerate(part.parameters()):
                    self.register_buffer(f"past_{player}_{number}", parameter.detach().clone())

    def build_generator(self) -> nn.Module:
        """With virtual batch normalisation where batch normalisation stood."""
        c = self.config

        def build(inputs: int) -> nn.Module:
            network = c.network.generator(inputs, c.channels, c.image_size)
            if not c.reference or c.network.norm != "batch":
                return network
            with torch.device("cpu"):
                reference = self.draw(PictureRandom(range(c.reference)))  # chosen once
            return Referred(virtually_normalised(network, c.reference), reference.to(torch.get_default_device()))

        return Generator(build, c.latent, 0)

    def build_discriminator(self) -> nn.Module:
        """With minibatch discrimination."""
        c = self.config
        body = c.network.discriminator(c.channels, c.image_size)
        return Crowded(body, self.heads, c.kernels, self.heads > 1 or c.anchored, c.network.std)

    @property
    def batch_statistics(self) -> bool:  # type: ignore[override]
        """Feature matching is of means over the batch, and minibatch discrimination of its pictures."""
        return self.config.feature_matching or bool(self.config.kernels) or super().batch_statistics

    def forward(self, batch: Batch, player: str = "generator") -> Losses:
        """See `GAN.forward`; beside it, the distance from the past."""
        total, parts = super().forward(batch, player)
        if self.config.historical:
            pairs = zip(self.players()[player].parameters(), self._past(player))
            past = self.config.historical * torch.stack([(p - m).square().sum() for p, m in pairs]).sum()
            total, parts = total + past, {**parts, f"historical/{player}": past.detach()}
        return Losses(total, parts)

    def generators(self, batch: Batch, labels: Tensor | None, random: PictureRandom) -> Losses:
        """What the generator minimises: its loss, or the distance of the features' means."""
        if not self.config.feature_matching:
            return super().generators(batch, labels, random)
        fake = self.judge(self.fakes(labels, random), labels, random).features
        with torch.no_grad():
            real = self.judge(batch.images, labels, random).features
        distance = (real.mean(0) - fake.mean(0)).square().sum()
        return Losses(distance, {"matching": distance.detach()})

    def _past(self, player: str) -> list[Tensor]:
        count = len(list(self.players()[player].parameters()))
        return [cast("Tensor", getattr(self, f"past_{player}_{number}")) for number in range(count)]

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """The mean of all past parameters takes in the present ones: m_t = m_{t-1} + (theta_t - m_{t-1}) / (t + 1)."""
        super().after_step(step)
        if self.config.historical:
            for player, part in self.players().items():
                for parameter, past in zip(part.parameters(), self._past(player)):
                    past.lerp_(parameter, 1.0 / (step + 2))


@dataclass(frozen=True)
class ClassifyingConfig(ImprovedConfig):
    """An `ImprovedConfig` whose discriminator classifies, having been told few labels."""

    named: int = 10  # classes that the discriminator names
    labelled: int = 100  # training pictures whose labels are looked at, equally many of each class
    every: int = 2  # one picture in so many that are trained on is labelled

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.named < 2:
            raise ConfigError(f"a classifier needs pictures of at least 2 classes, not of {self.named}")
        FewLabels(self.labelled, self.every)
        if self.loss not in ("saturating", "non-saturating"):
            raise ConfigError(f"what cannot be named is generated: the loss is a logistic one, not {self.loss}")


class ClassifyingGAN(ImprovedGAN):
    """A GAN whose discriminator names the classes of real pictures: see `Crowded`.

    It learns from all real pictures that they are real, and of the labelled ones what they show, -ln p(y | x, real).
    The first term counts every picture of the set alike, however often it is shown (`Batch.weights`).

    Source: Salimans et al. 2016 (arXiv 1606.03498), section 5.
    """

    config: ClassifyingConfig

    def __init__(self, config: ClassifyingConfig) -> None:
        self.heads = config.named
        super().__init__(config)
        self.few_labels = FewLabels(config.labelled, config.every)

    def named(
        self, real: Verdict, fake: Verdict, batch: Batch, labels: Tensor | None
    ) -> tuple[str, Tensor]:  # fmt: skip
        """-ln p(y | x, real), the mean over labelled pictures. Raises `DataError` without labels."""
        if batch.labels is None:
            raise DataError("this model learns from labels, and these pictures have none")
        logits, known = cast("Tensor", real.classes), batch.labels >= 0
        missed = F.cross_entropy(logits, batch.labels.clamp_min(0), reduction="none") * known
        return "classification", missed.mean() * (1 if batch.weights is None else self.config.every)

    def classify(self, images: Tensor) -> Tensor:
        """Logits of p(y | x, real), (B, classes)."""
        return cast("Tensor", self.discriminator(images).classes)
