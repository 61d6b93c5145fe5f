"""Priors over maps of tokens, such as the codes of a quantised picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.batch import PictureRandom
from ..core.config import Config
from ..core.errors import ConfigError
from .choosing import Choice
from .pixelcnn import PixelCNNConfig, sample_pixels
from .transformer import TransformerConfig, sample_tokens


class TokenPrior(nn.Module, ABC):
    """p(t | c) of maps of h x w tokens of 0 ... V - 1, in raster order; survey, Box 2 (stage 2).

    vocabulary     V
    height, width  h, w
    classes        how many c; 0: there is none
    """

    def __init__(self, vocabulary: int, height: int, width: int, classes: int = 0) -> None:
        super().__init__()
        if min(vocabulary, height, width) < 1:
            raise ConfigError(f"a map has at least 1 kind of token, not {vocabulary} kinds on {height} x {width}")
        self.vocabulary, self.height, self.width, self.classes = vocabulary, height, width, classes

    @abstractmethod
    def log_prob(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        """ln p(t | c), nats, (B,): tokens (B, h, w) int64, labels (B,).

        Raises `ConfigError` for labels that are missing, or that the prior was not built for.
        """

    def sample(
        self,
        n: int,
        labels: Tensor | None = None,
        random: PictureRandom | None = None,
        *,
        cached: bool = True,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Tensor:
        """n maps, (n, h, w) int64.

        labels       (n,)
        random       n rows; map k depends on row k alone. None: fresh numbers
        cached       False: the slow way, to compare with
        temperature, top_k, top_p: see `Choice`

        Raises `ConfigError` as `log_prob` and `Choice` do, and where `random` has not n rows.
        """
        if random is None:
            random = PictureRandom(torch.randint(2**62, (n,)).tolist(), next(self.parameters()).device)
        if len(random) != n:
            raise ConfigError(f"{n} maps need {n} rows of random numbers, not {len(random)}")
        return self._sample(random, labels, Choice(temperature, top_k, top_p), cached)

    @abstractmethod
    def _sample(self, random: PictureRandom, labels: Tensor | None, choice: Choice, cached: bool) -> Tensor:
        """As many maps as `random` has rows."""


class PixelCNNPrior(TokenPrior):
    """A gated PixelCNN over embedded tokens, told the class in every gate.

    Source: van den Oord et al. 2017 (arXiv 1711.00937), section 3.3 and 4.2.
    """

    def __init__(self, config: PixelCNNPriorConfig, vocabulary: int, height: int, width: int, classes: int = 0) -> None:
        super().__init__(vocabulary, height, width, classes)
        self.embedding = nn.Embedding(vocabulary, config.embedding)
        self.told = nn.Embedding(classes, config.embedding) if classes else None
        self.network = config.network.build(config.embedding, vocabulary, config.embedding if classes else 0)

    def _embed(self, tokens: Tensor) -> Tensor:
        """(B, h, w) -> (B, embedding, h, w)."""
        return cast("Tensor", self.embedding(tokens)).permute(0, 3, 1, 2)

    def _vector(self, labels: Tensor | None) -> Tensor | None:
        if labels is not None and self.told is None:
            raise ConfigError("this prior was built without classes; leave labels away")
        if self.told is not None and labels is None:
            raise ConfigError("this prior was always told labels; give labels")
        return self.told(labels) if self.told is not None else None

    def log_prob(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        """See `TokenPrior.log_prob`."""
        logits = self.network(self._embed(tokens), self._vector(labels))  # (B, V, h, w)
        return -F.cross_entropy(logits, tokens, reduction="none").flatten(1).sum(1)

    def _sample(self, random: PictureRandom, labels: Tensor | None, choice: Choice, cached: bool) -> Tensor:
        def draw(numbers: Tensor, random: PictureRandom) -> Tensor:
            return choice.draw(numbers[:, :, 0, 0], random)[:, None, None, None]

        with torch.no_grad():
            vector = self._vector(labels)
        maps = sample_pixels(
            self.network, draw, (self.height, self.width), random,
            vector=vector, embed=lambda tokens: self._embed(tokens[:, 0]), cached=cached,
        )  # fmt: skip
        return maps[:, 0]


class TransformerPrior(TokenPrior):
    """A transformer over the tokens row by row, the class in the first place."""

    def __init__(
        self, config: TransformerPriorConfig, vocabulary: int, height: int, width: int, classes: int = 0
    ) -> None:
        super().__init__(vocabulary, height, width, classes)
        self.network = config.network.build(vocabulary, height * width, classes)

    def log_prob(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        """See `TokenPrior.log_prob`."""
        return self.network.log_prob(tokens.flatten(1), labels)

    def _sample(self, random: PictureRandom, labels: Tensor | None, choice: Choice, cached: bool) -> Tensor:
        rows = sample_tokens(self.network, random, labels, choice, cached=cached)
        return rows.unflatten(1, (self.height, self.width))


@dataclass(frozen=True)
class PixelCNNPriorConfig(Config):
    """A gated PixelCNN."""

    network: PixelCNNConfig = field(default_factory=lambda: PixelCNNConfig(first_kernel=5))
    embedding: int = 64  # numbers by which a token, or a class, is told
    kind: Literal["pixelcnn"] = "pixelcnn"

    def __post_init__(self) -> None:
        if self.embedding < 1:
            raise ConfigError(f"embedding must be at least 1, not {self.embedding}")

    def build(self, vocabulary: int, height: int, width: int, classes: int = 0) -> TokenPrior:
        """A new prior. See `TokenPrior`."""
        return PixelCNNPrior(self, vocabulary, height, width, classes)


@dataclass(frozen=True)
class TransformerPriorConfig(Config):
    """A transformer with a cache of keys and values."""

    network: TransformerConfig = field(default_factory=TransformerConfig)
    kind: Literal["transformer"] = "transformer"

    def build(self, vocabulary: int, height: int, width: int, classes: int = 0) -> TokenPrior:
        """A new prior. See `TokenPrior`."""
        return TransformerPrior(self, vocabulary, height, width, classes)


TokenPriorConfig = PixelCNNPriorConfig | TransformerPriorConfig
