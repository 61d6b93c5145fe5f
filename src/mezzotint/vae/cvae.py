"""The conditional variational autoencoder: what is not seen of a picture, given what is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from ..core.batch import Batch
from ..core.config import Config
from ..core.errors import ConfigError
from ..core.labels import refuse_labels
from ..core.model import Latents, Losses
from .gaussian import Gaussian
from .likelihoods import BernoulliConfig, LikelihoodConfig, LogisticsConfig
from .model import Draws, VariationalModel, refuse_doubly
from .networks import ACTIVATIONS, ConvConfig, MLPConfig, NetworkConfig, begin
from .objectives import ELBO, Inferred, ObjectiveConfig


@dataclass(frozen=True)
class Quadrants(Config):
    """x is one, two or three quarters of the picture, y all other pixels, as with the digits of Sohn et al. 2015.

    observed  1: the lower left one; 2: the left half; 3: all but the lower right one
    """

    observed: int = 1
    kind: Literal["quadrants"] = "quadrants"
    told: ClassVar[bool] = True  # whether y, as the recognition network gets it, shows x too

    def __post_init__(self) -> None:
        if self.observed not in (1, 2, 3):
            raise ConfigError(f"1, 2 or 3 quadrants are observed, not {self.observed}")

    def channels(self, channels: int, likelihood: LikelihoodConfig) -> tuple[int, int]:
        """Of x and of y."""
        return channels, channels

    def hidden(self, size: int) -> Tensor:
        """True where a pixel belongs to y, (S, S). Raises `ConfigError` for pictures without quarters."""
        if size < 2:
            raise ConfigError("pictures of 1 pixel have no quadrants")
        right = (torch.arange(size, device="cpu") >= size // 2).expand(size, size)
        lower = right.T
        return {1: ~lower | right, 2: right, 3: lower & right}[self.observed]

    def seen(self, images: Tensor) -> Tensor:
        """The picture, 0 where it is hidden."""
        return images * ~self.hidden(images.shape[-1]).to(images.device)

    def target(self, images: Tensor) -> Tensor:
        """The picture."""
        return images


@dataclass(frozen=True)
class Grey(Config):
    """x is the luma of a colour picture (ITU-R 601), y the picture: all three channels are drawn."""

    kind: Literal["grey"] = "grey"
    told: ClassVar[bool] = True

    def channels(self, channels: int, likelihood: LikelihoodConfig) -> tuple[int, int]:
        """Of x and of y. Raises `ConfigError` for grey pictures."""
        if channels != 3:
            raise ConfigError("grey pictures have no colours to be found; open them with channels 3")
        return 1, 3

    def hidden(self, size: int) -> Tensor:
        """All of it, (S, S)."""
        return torch.ones(size, size, dtype=torch.bool, device="cpu")

    def seen(self, images: Tensor) -> Tensor:
        """0.299 R + 0.587 G + 0.114 B, (B, 1, H, W)."""
        weights = torch.tensor([0.299, 0.587, 0.114], dtype=images.dtype, device=images.device)
        return (images * weights[:, None, None]).sum(1, keepdim=True)

    def target(self, images: Tensor) -> Tensor:
        """The picture."""
        return images


@dataclass(frozen=True)
class Silhouette(Config):
    """Segmentation: y is 1 where the object is and -1 where the background is; x the picture, half of it hidden.

    The pictures must show one object before a background of one colour, as clothes, digits and emoji do: background is
    what differs from the median colour along the border by at most `tolerance` in every channel. That is a rule, so
    from a whole picture there would be nothing to find out; every second block of a chequerboard is therefore hidden,
    in the manner of Sohn et al. 2015, who segment pictures of which random blocks are hidden.

    block      side of a block in pixels; 0: the whole picture is seen
    tolerance  of a difference in [-1, 1]
    """

    block: int = 7
    tolerance: float = 0.1
    kind: Literal["silhouette"] = "silhouette"
    told: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.block < 0 or self.tolerance < 0:
            raise ConfigError("block and tolerance must not be negative")

    def channels(self, channels: int, likelihood: LikelihoodConfig) -> tuple[int, int]:
        """Of x and of y. Raises `ConfigError` for a likelihood of more than two levels."""
        if not isinstance(likelihood, BernoulliConfig):
            raise ConfigError("a silhouette is black or white; set likelihood.kind to bernoulli")
        return channels, 1

    def hidden(self, size: int) -> Tensor:
        """All of it, (S, S)."""
        return torch.ones(size, size, dtype=torch.bool, device="cpu")

    def seen(self, images: Tensor) -> Tensor:
        """The picture, 0 in every second block."""
        if not self.block:
            return images
        rows, columns = (torch.arange(side, device=images.device) // self.block for side in images.shape[-2:])
        return images * ((rows[:, None] + columns) % 2)

    def target(self, images: Tensor) -> Tensor:
        """1 on the object, -1 on the background, (B, 1, H, W)."""
        border = torch.cat([images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]], -1)  # (B, C, 4 S)
        difference = (images - border.median(-1).values[..., None, None]).abs()
        object_ = (difference > self.tolerance).any(1, keepdim=True)
        return torch.where(object_, 1.0, -1.0).to(images.dtype)


ConditionConfig = Quadrants | Grey | Silhouette


@dataclass(frozen=True)
class CVAEConfig(Config):
    """Pictures, what is seen of them, code, networks, likelihood and objective."""

    image_size: int
    channels: int = 1
    latent: int = 32  # dimensions of z
    condition: ConditionConfig = field(default_factory=Quadrants)
    network: NetworkConfig = field(default_factory=ConvConfig)
    likelihood: LikelihoodConfig = field(default_factory=LogisticsConfig)
    objective: ObjectiveConfig = field(default_factory=ELBO)
    hybrid: float = 1.0  # alpha: weight of the bound; 1 - alpha: of predictions by z from the prior, as when it is used

    def __post_init__(self) -> None:
        if self.latent < 1:
            raise ConfigError(f"a code has at least 1 dimension, not {self.latent}")
        if not 0 < self.hybrid <= 1:
            raise ConfigError(f"hybrid is a weight above 0, and at most 1, not {self.hybrid}")
        refuse_doubly(self.objective, "a model with a learned prior")
        self.condition.channels(self.channels, self.likelihood)


class Generation(nn.Module):
    """The numbers for the pixels of y, of x and z.

    Layers of neurons get both as one vector. Convolutions get z with what an encoder makes of x, and x itself beside
    the maps before the last two layers, so that what is drawn can follow what is seen pixel by pixel.
    """

    def __init__(self, network: NetworkConfig, seen: int, latent: int, outputs: int, image_size: int) -> None:
        super().__init__()
        self.refine: nn.Module | None = None
        if isinstance(network, MLPConfig):
            self.look: nn.Module = nn.Flatten()
            self.decoder = network.decoder(latent + seen * image_size**2, outputs, image_size)
            return
        activation, maps = ACTIVATIONS[network.activation], network.channels
        self.look = nn.Sequential(network.encoder(seen, image_size, network.hidden), activation())
        self.decoder = nn.Sequential(network.decoder(latent + network.hidden, maps, image_size), activation())
        convolutions = nn.Conv2d(maps + seen, maps, 3, padding=1), nn.Conv2d(maps, outputs, 3, padding=1)
        self.refine = begin(nn.Sequential(convolutions[0], activation(), convolutions[1]), network.activation)

    def forward(self, z: Tensor, looked: Tensor, x: Tensor) -> Tensor:
        """z (B, latent), looked = `look(x)`, x (B, C_x, H, W) -> (B, outputs, H, W)."""
        maps = self.decoder(torch.cat([z, looked], 1))
        return cast("Tensor", maps if self.refine is None else self.refine(torch.cat([maps, x], 1)))


class CVAE(VariationalModel):
    """p(y | x, z) p(z | x), and q(z | x, y), all of them networks.

        ln p(y | x) >= E_q[ln p(y | x, z)] - KL(q(z | x, y) || p(z | x))                       (survey, eq. 22, Box 1)

    Where x is a part of the picture, y is the rest of it, and every likelihood is of the rest alone: `elbo` bounds
    ln p(y | x), summed over the pixels that are not seen (`dims` numbers), and with many samples estimates it: the
    conditional log-likelihood of the paper. With `hybrid` alpha below 1 the loss is that of the paper's hybrid model,

        alpha (-bound) + (1 - alpha) E_{p(z | x)}[-ln p(y | x, z)].

    The paper's initial guess of y by a deterministic network, fed to the prior, is not part of it.
    Source: Sohn, Lee and Yan 2015. Raises `ConfigError` for pictures without what is asked for.
    """

    config: CVAEConfig
    completes = True
    unseen: Tensor

    def __init__(self, config: CVAEConfig) -> None:
        seen, drawn = config.condition.channels(config.channels, config.likelihood)
        super().__init__(config.likelihood.build(drawn), config.objective)
        if isinstance(config.condition, Silhouette):
            self.pixels = "levels"  # of x; y is black or white of itself
        self.config = config
        size, network = config.image_size, config.network
        unseen = config.condition.hidden(size).flatten().nonzero().flatten()
        self.dims = len(unseen) * drawn
        self.register_buffer("unseen", unseen, persistent=False)  # (U,), of the pixels of y
        self.recognition = network.encoder(drawn + (0 if config.condition.told else seen), size, 2 * config.latent)
        self.prior = network.encoder(seen, size, 2 * config.latent)
        self.generation = Generation(network, seen, config.latent, self.likelihood.outputs, size)

    def likeness(self, images: Tensor) -> Tensor:
        """What completed pictures are to be like: the pictures, or their silhouettes, (B, C, H, W)."""
        return self.config.condition.target(images).expand_as(images)

    @property
    def explained(self) -> int:
        """The numbers of y that are not seen."""
        return cast("int", self.dims)

    def recognise(self, batch: Batch) -> tuple[Tensor, ...]:
        """Mean and log-deviation of q(z | x, y) and of p(z | x), and what the generation network makes of x."""
        condition = self.config.condition
        x, y = condition.seen(batch.images), condition.target(batch.images)
        posterior = Gaussian.of(self.recognition(y if condition.told else torch.cat([x, y], 1)))
        return (*posterior, *Gaussian.of(self.prior(x)), self.generation.look(x))

    def infer(self, batch: Batch, seen: tuple[Tensor, ...], draws: Draws) -> Inferred:
        """One z each of q(z | x, y); the KL in closed form."""
        posterior, prior = Gaussian(*seen[:2]), Gaussian(*seen[2:4])
        z = posterior.at(draws.normal(self.config.latent))
        log_ratio = prior.log_prob(z) - posterior.log_prob(z)
        return Inferred(self._explained(batch.images, z, seen[4]), posterior.kl(prior), log_ratio)

    def _explained(self, images: Tensor, z: Tensor, looked: Tensor) -> Tensor:
        """ln p(y | x, z), (B,)."""
        condition = self.config.condition
        numbers = self.generation(z, looked, condition.seen(images))
        parts = (part.flatten(2)[:, :, None, self.unseen] for part in (numbers, condition.target(images)))
        return self.likelihood.log_prob(*parts)  # of pictures of one row: (B, outputs, 1, U), (B, C, 1, U)

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """The loss of the objective; with `hybrid` below 1 "prediction" is logged too, -ln p(y | x, z) of the prior."""
        many, seen, draws = self._repeated(batch, batch.random(), self.objective.samples)
        losses, alpha = self._losses(self.infer(many, seen, draws), batch), self.config.hybrid
        if alpha == 1:
            return losses
        z = Gaussian(*seen[2:4]).at(draws.normal(self.config.latent))
        prediction = -self._explained(many.images, z, seen[4]).mean()
        total = alpha * losses.total + (1 - alpha) * prediction
        return Losses(total, {**losses.parts, "prediction": prediction.detach()})

    def generate(self, n: int, draws: Draws, temperature: float = 1.0, source: Tensor | None = None) -> Tensor:
        """Numbers for the pixels of y, z from p(z | x). Raises `ConfigError` without pictures of the right kind."""
        images, noise = self._checked(n, source), draws.normal(self.config.latent)
        if self.pixels == "binary":  # grey levels are chances, as in training; black and white stay what they are
            images = torch.where(draws.uniform(*images.shape[1:]) < (images + 1) / 2, 1.0, -1.0).to(images.dtype)
        x = self.config.condition.seen(images)
        z = Gaussian.of(self.prior(x)).at(noise, temperature)
        return cast("Tensor", self.generation(z, self.generation.look(x), x))

    def _asked(
        self, n: int, draws: Draws, temperature: float, labels: Tensor | None, source: Tensor | None
    ) -> Tensor:  # fmt: skip
        refuse_labels(labels)
        return self.generate(n, draws, temperature, source)

    def _checked(self, n: int, source: Tensor | None) -> Tensor:
        """The n pictures of which x is taken, on the model's device."""
        shape = (n, self.config.channels, self.config.image_size, self.config.image_size)
        if source is None:
            raise ConfigError("this model sees a part of a picture and draws the rest; give it pictures as source")
        if source.shape != shape:
            raise ConfigError(f"the source must be pictures of the shape {shape}, not {tuple(source.shape)}")
        return source.to(self.device)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        captions: list[str] | None = None,
        source: Tensor | None = None,
        mask: Tensor | None = None,
        seeds: int | Sequence[int] = 0,
        temperature: float = 1.0,
        pixels: str = "mean",
    ) -> Tensor:
        """n pictures (n, C, H, W), completed: pixels that are seen stay as they are, exactly.

        source       (n, C, H, W) whole pictures, of which x is taken and nothing else is looked at; where the
                     likelihood is of binary pixels, x is drawn with the grey levels of `source` as chances of white
        temperature  of the prior's standard deviations; 0: z is the prior's mean, as Box 1 of the survey infers
        pixels       "mean": E[y | x, z]; "drawn": y from p(y | x, z)

        Raises `ConfigError` without a source, or for another kind of pixels or a temperature below 0.
        """
        drawn = super().sample(
            n, labels=labels, captions=captions, source=source, mask=mask, seeds=seeds, temperature=temperature,
            pixels=pixels,
        )  # fmt: skip
        return self._completed(drawn, self._checked(n, source))

    def _completed(self, drawn: Tensor, images: Tensor) -> Tensor:
        """What was drawn, where it was not seen."""
        if isinstance(self.config.condition, Quadrants):
            return torch.where(self.config.condition.hidden(images.shape[-1]).to(images.device), drawn, images)
        return drawn.expand_as(images)

    @torch.no_grad()
    def inpaint(self, images: Tensor, mask: Tensor, *, seeds: int | Sequence[int] = 0) -> Tensor:
        """Pictures (B, C, H, W) whose pixels with mask 1 are those of `images`, exactly.

        mask  (B, 1, H, W) or what broadcasts to it, 1 where a pixel is known; what it knows besides the quadrants that
              the model sees is kept, but not looked at

        Raises `ConfigError` where the model does not complete quadrants, or the mask hides what it must see.
        """
        if not isinstance(self.config.condition, Quadrants):
            raise ConfigError("this model completes no masked pictures; train it with condition.kind quadrants")
        shape = (len(images), 1, *images.shape[2:])
        try:
            known = (mask.to(images.device) > 0.5).expand(shape)
        except RuntimeError:
            raise ConfigError(f"the mask has the shape {shape} or broadcasts to it, not {tuple(mask.shape)}") from None
        if not (known | self.config.condition.hidden(images.shape[-1]).to(images.device)).all():
            raise ConfigError(
                f"the mask hides pixels of the {self.config.condition.observed} quadrant(s) that this model must see"
            )
        return torch.where(known, images, self.sample(len(images), source=images, seeds=seeds))

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """E[y | x, E[z | x, y]], and x as it is."""
        seen = self.recognise(self.given(images))
        numbers = self.generation(seen[0], seen[4], self.config.condition.seen(images))
        return self._completed(self.likelihood.mean(numbers), images)

    def latents(self, images: Tensor) -> Latents:
        """For the diagnosis of collapse: what y adds to x. Means are those of q(z | x, y) less those of p(z | x)."""
        seen = self.recognise(self.given(images))
        posterior, prior = Gaussian(*seen[:2]), Gaussian(*seen[2:4])
        return Latents(posterior.mean - prior.mean, posterior.kl(prior))
