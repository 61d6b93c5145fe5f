"""Two players: one draws pictures, the other tells them from real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.batch import Batch, PictureRandom, picture_seeds
from ..core.codes import lerp, slerp
from ..core.config import Config
from ..core.errors import ConfigError
from ..core.labels import choose_labels, given_labels, labels_of, refuse
from ..core.model import Losses, Model, Watched, evaluating
from .augment import AugmentConfig, NoAugmentation
from .layers import MinibatchDeviation
from .losses import CENTRED, LOGISTIC, LOSSES, UNANCHORED, smoothed, told_apart
from .networks import Conditioning, DCGANConfig, Discriminator, Generator, NetworkConfig, Verdict
from .penalties import Clipping, GradientPenalty, NoPenalty, PenaltyConfig, Roth, ZeroCentred
from .watch import watch


@dataclass(frozen=True)
class GANConfig(Config):
    """Networks, loss, penalty and condition, each independent of the others."""

    image_size: int
    channels: int = 1
    classes: int = 0
    latent: int = 64  # dimensions of z
    prior: Literal["normal", "uniform"] = "normal"  # of z: N(0, I), or uniform on [-1, 1]
    network: NetworkConfig = field(default_factory=DCGANConfig)
    loss: Literal["saturating", "non-saturating", "wasserstein", "hinge", "least-squares", "relativistic"] = (
        "non-saturating"
    )
    penalty: PenaltyConfig = field(default_factory=NoPenalty)
    conditioning: Conditioning = "none"
    augmentation: AugmentConfig = field(default_factory=NoAugmentation)  # of all that the discriminator sees
    critic_steps: int = 1  # of the discriminator for one of the generator
    drift: float = 0.0  # weight of E[D(x)^2], which keeps a critic's scores near 0 (Karras et al. 2017, appendix A)
    label_smoothing: float = 0.0  # the target of real pictures is one less this (Salimans et al. 2016)
    noise: float = 0.0  # deviation of the noise on all pictures that the discriminator sees, at first
    annealing_steps: int = 0  # in which the noise falls to 0, in a line, and the penalty of Roth et al.; 0: they stay

    def __post_init__(self) -> None:
        if (self.conditioning == "none") != (self.classes == 0):
            raise ConfigError(
                f"conditioning={self.conditioning} does not go with {self.classes} classes: a discriminator is told"
                " classes if and only if there are some; set conditioning, or classes=0"
            )
        counts = (("latent", 1), ("critic_steps", 1), ("annealing_steps", 0))
        for name, least in (*counts, ("noise", 0.0), ("drift", 0.0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"labels are smoothed by a share below 0.5, not by {self.label_smoothing}")
        if self.label_smoothing and self.loss not in LOGISTIC:
            raise ConfigError(f"the loss {self.loss} has no labels to smooth; set label_smoothing=0")
        if isinstance(self.penalty, Roth) and self.loss not in LOGISTIC:
            raise ConfigError(f"the penalty of Roth et al. is of a logit, which the loss {self.loss} has not; set loss")
        if (
            isinstance(self.penalty, (GradientPenalty, ZeroCentred))
            and getattr(self.network, "critic_norm", "none") == "batch"
        ):
            raise ConfigError(
                "each picture's slope is punished alone, but behind batch normalisation it is that of the batch; set"
                " network.critic_norm=none"
            )
        if getattr(self.augmentation, "target", None) is not None and self.loss not in CENTRED:
            raise ConfigError(
                "augmentation is adapted by the sign of scores, but a score of 0 is not where a discriminator of the"
                f" loss {self.loss} cannot tell; set augmentation.target=null and an augmentation.p, or another loss"
            )

    @property
    def anchored(self) -> bool:
        """Whether it matters how large scores are, and not only by how much they differ."""
        return self.loss not in UNANCHORED or self.drift > 0


class GAN(Model):
    """A generator and a discriminator, who move in turns; see `losses.LOSSES` for what they want.

    Logged of the discriminator: "score/real" and "score/fake", means of the scores; "distance", their difference, where
    the loss is Wasserstein's: an estimate of W_1, times the largest slope that the critic may have; "right", the share
    of pictures that it tells apart (a half means that it cannot); "penalty".

    Source: Goodfellow et al. 2014 (arXiv 1406.2661), algorithm 1; survey, section 3, eq. 32-36, Box 3 and Box 4.
    """

    config: GANConfig
    moves: Tensor

    def __init__(self, config: GANConfig) -> None:
        super().__init__()
        self.config = config
        self.generator: nn.Module = self.build_generator()
        self.discriminator: nn.Module = self.build_discriminator()
        self.augment = config.augmentation.build(config.channels, config.image_size)
        self.register_buffer("moves", torch.zeros((), dtype=torch.int64))  # steps that were made

    def build_generator(self) -> nn.Module:
        """What draws: (z, labels) -> pictures."""
        c = self.config
        draw = partial(c.network.generator, channels=c.channels, image_size=c.image_size, classes=c.classes)
        return Generator(draw, c.latent, c.classes)

    def build_discriminator(self) -> nn.Module:
        """What judges: (pictures, labels) -> `Verdict`."""
        c = self.config
        beside = c.classes if c.conditioning == "concat" else 0
        look = partial(c.network.discriminator, image_size=c.image_size, classes=beside)
        return Discriminator(look, c.channels, c.classes, c.conditioning, c.network.spectral, c.anchored, c.network.std)

    @property
    def batch_statistics(self) -> bool:  # type: ignore[override]
        """Whether the pictures of a batch see each other in training."""
        seeing = (nn.modules.batchnorm._BatchNorm, MinibatchDeviation)
        return any(isinstance(module, seeing) for module in self.modules())

    def players(self) -> dict[str, nn.Module]:
        """Each with an optimizer of its own."""
        return {"generator": self.generator, "discriminator": self.discriminator}

    def turns(self, step: int) -> Sequence[str]:
        """The discriminator moves first, `critic_steps` times."""
        return ["discriminator"] * self.config.critic_steps + ["generator"]

    def after_turn(self, player: str) -> None:
        """Hold the critic's weights where they are clipped."""
        if isinstance(self.config.penalty, Clipping) and player == "discriminator":
            self.config.penalty.clip(self.discriminator)

    def after_step(self, step: int) -> None:
        """Adapt the augmentation; count the steps."""
        if self.augment is not None:
            self.augment.adapt()
        self.moves += 1

    def forward(self, batch: Batch, player: str = "generator") -> Losses:
        """The loss of a player on as many generated pictures as the batch has real ones."""
        random = batch.random()
        labels = labels_of(batch, self.config.classes)
        loss = self.generators if player == "generator" else self.discriminators
        return loss(batch, labels, random)

    def generators(self, batch: Batch, labels: Tensor | None, random: PictureRandom) -> Losses:
        """What the generator minimises."""
        loss = LOSSES[self.config.loss].generator
        fake = self.judge(self.fakes(labels, random), labels, random)
        real = fake.score
        if self.config.loss == "relativistic":  # the others do not look at real pictures
            real = self.judge(batch.images, labels, random).score
        total = loss(real, fake.score).mean()
        parts: dict[str, Tensor] = {}
        if fake.classes is not None and labels is not None:
            named = F.cross_entropy(fake.classes, labels)
            total, parts = total + named, {"class/generator": named.detach()}
        return Losses(total, parts)

    def discriminators(self, batch: Batch, labels: Tensor | None, random: PictureRandom) -> Losses:
        """What the discriminator minimises."""
        c, x = self.config, batch.images
        with torch.no_grad():
            fake = self.fakes(labels, random)
        judged_real, judged_fake = self.judge(x, labels, random), self.judge(fake, labels, random)
        real_score, fake_score = judged_real.score, judged_fake.score
        total = LOSSES[c.loss].discriminator(real_score, fake_score)
        if c.label_smoothing:
            total = total + smoothed(real_score, c.label_smoothing)
        if c.drift:
            total = total + c.drift * real_score.square()
        total = (total if batch.weights is None else total * batch.weights).mean()
        parts = {
            "score/real": real_score.detach().mean(),
            "score/fake": fake_score.detach().mean(),
            "right": told_apart(real_score, fake_score),
        }
        if c.loss == "wasserstein":
            parts["distance"] = parts["score/real"] - parts["score/fake"]
        if self.augment is not None:
            self.augment.record(real_score)
            parts["augmentation/p"] = self.augment.p.clone()
        if (named := self.named(judged_real, judged_fake, batch, labels)) is not None:
            name, missed = named
            total, parts[name] = total + missed, missed.detach()
        penalty = self.penalty(x, fake, labels, random)
        if penalty is not None:
            total = total + penalty
            parts["penalty"] = penalty.detach()
        return Losses(total, parts)

    def named(
        self, real: Verdict, fake: Verdict, batch: Batch, labels: Tensor | None
    ) -> tuple[str, Tensor] | None:  # fmt: skip
        """What the discriminator loses by misnaming classes, where it names any: how it is logged, and the loss.

        Source: Odena et al. 2016, survey, eq. 44: it names those of generated pictures too.
        """
        if real.classes is None or fake.classes is None or labels is None:
            return None
        return "class/discriminator", F.cross_entropy(real.classes, labels) + F.cross_entropy(fake.classes, labels)

    def penalty(self, real: Tensor, fake: Tensor, labels: Tensor | None, random: PictureRandom) -> Tensor | None:
        """The penalty on the discriminator's slope, the mean over pictures; 0 at steps that are left out."""
        penalty = self.config.penalty
        if int(self.moves) % penalty.every:
            return torch.zeros((), device=real.device)
        critic = partial(self.slope_of, labels=labels, random=random)
        value = penalty(critic, real, fake, random.uniform(), self.progress())
        return None if value is None else penalty.every * value.mean()

    def slope_of(self, x: Tensor, labels: Tensor | None, random: PictureRandom) -> Tensor:
        """The score whose slope is punished, (B,): the discriminator's, of augmented pictures, without the noise."""
        if self.augment is not None:
            x = self.augment(x, random)
        return self.verdict(x, labels).score

    def fakes(self, labels: Tensor | None, random: PictureRandom) -> Tensor:
        """Pictures of one batch of training, (B, C, H, W)."""
        images: Tensor = self.generator(self.draw(random), labels)
        return images

    def progress(self) -> Tensor:
        """How far what is annealed has fallen, from 0 to 1, ()."""
        steps = self.config.annealing_steps
        return (self.moves / steps).clamp(max=1.0) if steps else torch.zeros((), device=self.moves.device)

    def judge(self, x: Tensor, labels: Tensor | None, random: PictureRandom) -> Verdict:
        """What the discriminator says of pictures, augmented and seen through noise where there is some."""
        c = self.config
        if self.augment is not None:
            x = self.augment(x, random)
        if c.noise:
            x = x + c.noise * (1 - self.progress()) * random.normal(*x.shape[1:])
        return self.verdict(x, labels)

    def verdict(self, x: Tensor, labels: Tensor | None) -> Verdict:
        """What the discriminator, as it is now, says of pictures as they are."""
        verdict: Verdict = self.discriminator(x, labels)
        return verdict

    def picture(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """What the generator, as it is now, makes of z, at full size, (B, C, H, W)."""
        images: Tensor = self.generator(z, labels)
        return images

    def draw(self, random: PictureRandom) -> Tensor:
        """z of the prior, (B, latent)."""
        if self.config.prior == "uniform":
            return 2 * random.uniform(self.config.latent) - 1
        return random.normal(self.config.latent)

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
    ) -> Tensor:
        """n pictures in [-1, 1], (n, C, H, W) float32; picture k depends on seed k (and label k) alone.

        Raises `ConfigError` for a label out of range, or captions, a source or a mask, which say nothing to a GAN.
        """
        refuse(captions=captions, source=source, mask=mask)
        random = PictureRandom(picture_seeds(n, seeds), self.device)
        wanted = choose_labels(n, labels, self.config.classes, random)
        return self.from_codes(self.draw(random), wanted)

    def codes(self, seeds: Sequence[int]) -> Tensor:
        """z of the pictures that `sample` draws of these seeds, (B, latent)."""
        random = PictureRandom(seeds, self.device)
        choose_labels(len(random), None, self.config.classes, random)  # they are drawn before z
        return self.draw(random)

    @torch.no_grad()
    def from_codes(self, codes: Tensor, labels: Tensor | Sequence[int] | None = None) -> Tensor:
        """Pictures in [-1, 1], (B, C, H, W) float32, of z, (B, latent), and labels, (B,).

        Raises `ConfigError` for labels that do not fit, and where there are none but the model knows classes.
        """
        classes = self.config.classes
        if labels is None and classes:
            raise ConfigError("this model draws each picture of a class, so a code alone is not enough; give labels")
        told = None if labels is None else given_labels(len(codes), labels, classes, self.device)
        with evaluating(self):
            images = self.picture(codes.to(self.device), told)
        return images.float().clamp(-1, 1)

    def between(self, first: Tensor, last: Tensor, shares: Tensor) -> Tensor:
        """Along an arc where the prior is normal, along a line where it is uniform: see `core.codes`."""
        return (lerp if self.config.prior == "uniform" else slerp)(first, last, shares)

    @torch.no_grad()
    def watch(self, images: Tensor, labels: Tensor | None = None) -> Watched:
        """The collapse watch over as many pictures, always of the seeds 0, 1, ...; see `watch.watch`.

        The discriminator judges them as in training, augmented and through noise where there is some. The trainer asks
        the averaged model where there is one, whose discriminator is an average, too.
        Raises `DataError` without labels if the model knows classes.
        """
        wanted = labels_of(Batch(images, labels), self.config.classes)
        fake = self.sample(len(images), labels=wanted)
        random = PictureRandom(range(len(images)), self.device)
        with evaluating(self):
            real_score, fake_score = (self.judge(x, wanted, random).score for x in (images, fake))
        return watch(images, fake, float(told_apart(real_score, fake_score)))
