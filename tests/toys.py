"""Small systems for the tests of what knows no family: one player, two players, two stages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mezzotint.core.batch import PictureRandom, PictureSpec, picture_seeds
from mezzotint.core.config import Config
from mezzotint.core.model import Losses, Model
from mezzotint.core.system import Optimizer, Paper, Recipe, Stage, System


@dataclass(frozen=True)
class ToyConfig(Config):
    image_size: int
    channels: int = 1
    width: int = 8
    poison_after: int = -1  # from this step on the loss is not a number; -1: never
    dropout: float = 0.0


class Toy(Model):
    """Denoises a picture with two convolutions; its loss uses each picture's own noise."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        layers = [nn.Conv2d(config.channels, config.width, 3, padding=1), nn.SiLU(), nn.Dropout(config.dropout)]
        self.net = nn.Sequential(*layers, nn.Conv2d(config.width, config.channels, 3, padding=1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, batch, player="model"):
        noise = batch.random().normal(*batch.images.shape[1:])
        error = F.mse_loss(self.net(batch.images + noise), batch.images)
        if 0 <= self.config.poison_after <= int(self.steps):
            error = error * float("nan")
        return Losses(error, {"error": error})

    def after_step(self, step):
        self.steps += 1

    @torch.no_grad()
    def sample(self, n, *, labels=None, captions=None, source=None, mask=None, seeds=0, strength=1.0):
        size = self.config.image_size
        noise = PictureRandom(picture_seeds(n, seeds), self.device).normal(self.config.channels, size, size)
        return self.net(strength * noise).clamp(-1, 1)


class ToyGAN(Model):
    """A generator and a critic of one layer each; the critic moves twice, then the generator."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        pixels = config.channels * config.image_size**2
        self.generator, self.critic = nn.Linear(4, pixels), nn.Linear(pixels, 1)

    def players(self):
        return {"generator": self.generator, "critic": self.critic}

    def turns(self, step):
        return ["critic", "critic", "generator"]

    def forward(self, batch, player="generator"):
        fake = self.generator(batch.random().normal(4)).tanh()
        if player == "generator":
            return Losses(-self.critic(fake).mean(), {})
        real = self.critic(batch.images.flatten(1))
        return Losses(F.softplus(-real).mean() + F.softplus(self.critic(fake.detach())).mean(), {})

    @torch.no_grad()
    def sample(self, n, *, labels=None, captions=None, source=None, mask=None, seeds=0):
        size = self.config.image_size
        z = PictureRandom(picture_seeds(n, seeds), self.device).normal(4)
        return self.generator(z).tanh().view(n, self.config.channels, size, size)


class ToyPrior(Model):
    """A second stage that holds the first one, frozen."""

    def __init__(self, config: ToyConfig, codec: Toy) -> None:
        super().__init__()
        self.config = config
        self.codec = codec.requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, batch, player="model"):
        error = F.mse_loss(self.codec.net(batch.images) * self.scale, batch.images)
        return Losses(error, {})

    def sample(self, n, *, labels=None, captions=None, source=None, mask=None, seeds=0):
        return (self.codec.sample(n, seeds=seeds) * self.scale.detach()).clamp(-1, 1)


def _size(data: PictureSpec) -> ToyConfig:
    return ToyConfig(image_size=data.image_size, channels=data.channels)


RECIPE = Recipe(batch_size=8, warmup=16, ema_half_life=32, optimizers={"model": Optimizer(lr=1e-2)})
PAPER = Paper("A toy", "Nobody", 2000)


def _system(name: str, *stages: tuple[str, type[Model]]) -> System:
    built = tuple(Stage(stage, model, {"small": _size}, {"small": RECIPE}) for stage, model in stages)
    return System(name, name, PAPER, "toys", "", "A toy.", built)


TOYS = (
    _system("toy", ("model", Toy)),
    _system("toy-gan", ("model", ToyGAN)),
    _system("toy-stages", ("codec", Toy), ("prior", ToyPrior)),
)


def register_toys() -> None:
    """Put the toys in the catalogue of this process, once."""
    from mezzotint import systems

    for system in TOYS:
        if system.name not in systems._registered:
            systems.register(system)
