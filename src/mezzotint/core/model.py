"""The contract that every model keeps, and the small protocols for what some models can do besides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .batch import Batch, FewLabels
from .config import Config
from .likelihood import Pixels

if TYPE_CHECKING:
    from os import PathLike

    from .system import Identity


class Losses(NamedTuple):
    """What one turn of one player minimises, and the terms worth logging."""

    total: Tensor  # scalar
    parts: dict[str, Tensor]  # scalars: "reconstruction", "kl", "bits_per_dim", ...


class Model(nn.Module, ABC):
    """A generator, codec or judge that the trainer can train.

    `forward` is the training loss, because distributed wrappers and the compiler see only `forward`.
    A GAN has several players, each with an optimizer of its own, who move in turns.
    """

    config: Config
    identity: Identity | None = None  # which system, stage and data it was built for; set by the catalogue
    configs: Mapping[str, Config]  # of every stage up to this one, by stage name; set by the catalogue
    density: bool = False  # whether `log_prob` is of a density over [-1, 1], which grey levels have only dequantised
    pixels: Pixels | None = None  # what it must be shown of a grey level, where its likelihood says so
    likelihood_n: int | None = None  # pictures on which a slow likelihood is measured if none are asked for; None: all
    dims: int | None = None  # numbers of a picture that its likelihood is of; None: all
    few_labels: FewLabels | None = None  # of which training pictures it is told the labels; None: of all
    batch_statistics: bool = False  # whether a batch's pictures see each other in training, as by batch normalisation
    completes: bool = False  # whether `sample` takes whole pictures as `source`, looks at a part, and draws the rest

    @abstractmethod
    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """The loss that `player` minimises on this batch."""

    def players(self) -> dict[str, nn.Module]:
        """Who has an optimizer of its own."""
        return {"model": self}

    def turns(self, step: int) -> Sequence[str]:
        """Who moves at this step, in order; each turn sees a fresh batch."""
        return ["model"]

    def after_turn(self, player: str) -> None:
        """Weight clipping; called each time that a player has moved."""

    def after_step(self, step: int) -> None:
        """Codebook averages, growing, annealing; called when all turns are done."""

    def likeness(self, images: Tensor) -> Tensor:
        """What its samples are to be like, of real pictures: these, unless it draws something else of them."""
        return images

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that the model knows; empty where it learned without labels, whatever its data had."""
        told: int = getattr(self.config, "classes", 0)
        return self.identity.data.classes if self.identity is not None and told else ()

    def save(self, directory: str | PathLike[str]) -> None:
        """Write `config.json`, `model.safetensors` and their checksums; `mezzotint.load` brings them back.

        Raises `CheckpointError` if the directory holds something else.
        """
        from .checkpoint import save_model

        save_model(self, directory)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout inside the block, and as before behind it."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@runtime_checkable
class Samples(Protocol):
    """Draws pictures."""

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        captions: list[str] | None = None,
        source: Tensor | None = None,
        mask: Tensor | None = None,
        seeds: int | Sequence[int] = 0,
        **controls: Any,
    ) -> Tensor:
        """n pictures in [-1, 1]; picture k depends on seed k alone (an integer s stands for s, s + 1, ...)."""


@runtime_checkable
class HasLogProb(Protocol):
    """Knows the exact likelihood."""

    def log_prob(self, images: Tensor) -> Tensor:
        """ln p(x), nats per picture, (B,)."""


@runtime_checkable
class HasELBO(Protocol):
    """Knows a lower bound of the likelihood."""

    def elbo(self, images: Tensor) -> Tensor:
        """A lower bound of ln p(x), nats per picture, (B,)."""


@runtime_checkable
class Encodes(Protocol):
    """Maps pictures to codes and back."""

    def encode(self, images: Tensor) -> Tensor:
        """Codes."""

    def decode(self, codes: Tensor) -> Tensor:
        """Pictures in [-1, 1]."""


@runtime_checkable
class HasCode(Protocol):
    """Makes each picture of a code, which a seed draws from the prior: so one can walk from one to another."""

    def codes(self, seeds: Sequence[int]) -> Tensor:
        """The codes of the pictures that `sample` draws of these seeds, (B, ...)."""

    def from_codes(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Pictures in [-1, 1] of codes (B, ...), of these classes (B,) where the model knows classes."""

    def between(self, first: Tensor, last: Tensor, shares: Tensor) -> Tensor:
        """Codes on the way from some, (B or 1, ...), to others, after shares of it, (B,): likely under the prior."""


@runtime_checkable
class HasStyles(Protocol):
    """Maps its code to a style first, in whose space it is measured too how evenly pictures change."""

    def map(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The styles w of codes, (B, width)."""

    def synthesise(self, w: Tensor) -> Tensor:
        """Pictures of styles (B, width), always with the same noise where there is some."""


@runtime_checkable
class Reconstructs(Protocol):
    """Reproduces a picture from what it keeps of it."""

    def reconstruct(self, images: Tensor) -> Tensor:
        """Pictures in [-1, 1], of the same shape."""


class Latents(NamedTuple):
    """What the posterior keeps of each picture."""

    means: Tensor  # E[z | x] of each latent dimension, (B, D); of each number where there is a `dimension`, (B, N)
    kl: Tensor  # KL(q || p) of each of them, nats, (B, D)
    total: Tensor | None = None  # the KL that the bound counts, nats, (B,); None: the sum of these
    dimension: Tensor | None = None  # to which each of N numbers belongs, (N,): the channel of a map's places


@runtime_checkable
class HasLatents(Protocol):
    """Has a code with a posterior and a prior, whose collapse can be diagnosed.

    Where a part of the code is drawn given another, `latents` also takes `seeds`, as `sample` does: a divergence is
    then that given one draw of what is before, right on average.
    """

    def latents(self, images: Tensor) -> Latents:
        """Means and divergences of the posterior, (B, D) each."""


class Rectangles(NamedTuple):
    """Where grids lie on their pictures, in pixels from the upper left corner."""

    centre: Tensor  # x and y, (..., 2)
    extent: Tensor  # from the first filter's centre to the last one's, (...)
    std: Tensor  # of the filters, (...)


class Strip(NamedTuple):
    """Pictures while they are painted, and where the model looks and writes."""

    pictures: Tensor  # after each step, (T, n, C, S, S) in [-1, 1]
    writes: Rectangles | None  # (T, n, ...); None: without attention
    reads: Rectangles | None  # the same; None also where there is no picture to be read


@runtime_checkable
class Paints(Protocol):
    """Makes a picture step by step, each adding to what is there."""

    def strip(self, n: int, seeds: int | Sequence[int] = 0) -> Strip:
        """n pictures while they are painted; the last are those of `sample`."""

    def trace(self, images: Tensor) -> Strip:
        """The same for pictures that are painted again."""


@runtime_checkable
class Inpaints(Protocol):
    """Completes pictures."""

    def inpaint(self, images: Tensor, mask: Tensor, *, seeds: int | Sequence[int] = 0) -> Tensor:
        """Pictures whose pixels with mask 1 are those of `images`, exactly."""


@runtime_checkable
class Classifies(Protocol):
    """Names the class of a picture."""

    def classify(self, images: Tensor) -> Tensor:
        """Logits, (B, number of classes)."""


@runtime_checkable
class HasFeatures(Protocol):
    """Describes a picture by a vector in which similar pictures are near each other."""

    def features(self, images: Tensor) -> Tensor:
        """(B, D)."""


class Watched(NamedTuple):
    """How training goes, and what to be warned of."""

    numbers: dict[str, float]
    warnings: list[str]  # in words: what is seen, what it means, what to do


@runtime_checkable
class Watches(Protocol):
    """Knows signs that its training goes wrong."""

    def watch(self, images: Tensor, labels: Tensor | None = None) -> Watched:
        """Looks at itself beside held-out pictures (B, C, H, W), with their labels (B,) where there are some."""


ABILITIES: dict[str, type] = {
    "sample": Samples,
    "log_prob": HasLogProb,
    "elbo": HasELBO,
    "encode and decode": Encodes,
    "interpolate": HasCode,
    "reconstruct": Reconstructs,
    "latents": HasLatents,
    "inpaint": Inpaints,
    "paint": Paints,
    "classify": Classifies,
    "features": HasFeatures,
}


def abilities(model: Model | type[Model]) -> list[str]:
    """What the model (or its class) can do, in the words of `mezzotint describe`."""
    cls = model if isinstance(model, type) else type(model)
    return [name for name, protocol in ABILITIES.items() if issubclass(cls, protocol)]
