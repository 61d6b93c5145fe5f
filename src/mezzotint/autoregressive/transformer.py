"""A transformer that tells each token by those before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.batch import PictureRandom
from ..core.config import Config
from ..core.errors import ConfigError
from .choosing import Choice


@dataclass(frozen=True)
class TransformerConfig(Config):
    """The architecture, independent of the tokens."""

    width: int = 128  # of a token
    layers: int = 4
    heads: int = 4
    mlp_ratio: int = 4  # width of the hidden layer of a block, in units of `width`

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.width % self.heads:
            raise ConfigError(f"{self.heads} heads do not divide a width of {self.width}; change heads")

    def build(self, vocabulary: int, length: int, classes: int = 0) -> CausalTransformer:
        """A new network. See `CausalTransformer`."""
        return CausalTransformer(self, vocabulary, length, classes)


@dataclass
class KeyValueCache:
    """Keys and values of every layer for the tokens so far, in memory that is taken once."""

    keys: list[Tensor]  # of each layer, (B, heads, N, d)
    values: list[Tensor]
    length: int = 0  # how many of N are known


class Block(nn.Module):
    """x + attention(norm(x)), each token to itself and those before it, then the same with a hidden layer.

    Source: Vaswani et al. 2017; normalised before each part as in Radford et al. 2019, section 2.3.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, config.mlp_ratio * width)
        self.linear2 = nn.Linear(config.mlp_ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        q, k, v = self._heads(x)
        return self._after(x, F.scaled_dot_product_attention(q, k, v, is_causal=True))

    def step(self, x: Tensor, keys: Tensor, values: Tensor, length: int) -> Tensor:
        """One token (B, 1, width), which comes after `length` others whose keys and values (B, heads, N, d) are kept.

        Its own are written beside them.
        """
        q, k, v = self._heads(x)
        keys[:, :, length], values[:, :, length] = k[:, :, 0], v[:, :, 0]
        known = slice(0, length + 1)
        return self._after(x, F.scaled_dot_product_attention(q, keys[:, :, known], values[:, :, known]))

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, heads, N, d) each."""
        qkv = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return qkv[0], qkv[1], qkv[2]

    def _after(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + cast("Tensor", self.linear2(F.gelu(self.linear1(self.norm2(x)))))


class CausalTransformer(nn.Module):
    """p(t_1 ... t_N | c) = prod_i p(t_i | t_1 ... t_{i-1}, c), tokens of 0 ... V - 1; survey, eq. 65 and section 5.2.

    The first position holds an embedding of the class (or of the start, without classes) and position i > 1 that of
    token i - 1, each with a learned embedding of the position added; what comes out at position i are the logits of
    token i. Source: Radford et al. 2019 (GPT-2); Chen et al. 2020 (image GPT); Esser et al. 2021 (arXiv 2012.09841),
    section 3.2.

    vocabulary  V
    length      N
    classes     how many; 0: none

    Raises `ConfigError` for a vocabulary or a length below 1.
    """

    def __init__(self, config: TransformerConfig, vocabulary: int, length: int, classes: int = 0) -> None:
        super().__init__()
        if vocabulary < 1 or length < 1:
            raise ConfigError(f"there is at least 1 kind of token and 1 token, not {vocabulary} and {length}")
        self.config, self.vocabulary, self.length, self.classes = config, vocabulary, length, classes
        width = config.width
        self.start = nn.Embedding(max(classes, 1), width)
        self.tokens = nn.Embedding(vocabulary, width) if length > 1 else None
        self.positions = nn.Parameter(torch.empty(length, width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self._begin_weights()

    def _begin_weights(self) -> None:
        """Weights N(0, 0.02^2), those that end a residual branch smaller by the root of their number (Radford 2019)."""
        nn.init.normal_(self.positions, std=0.02)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                ends = name.endswith(("out.weight", "linear2.weight"))
                nn.init.normal_(parameter, std=0.02 * (2 * self.config.layers) ** -0.5 if ends else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits of each token, (B, N, V), of those before it: tokens (B, N) int64, labels (B,).

        Raises `ConfigError` for labels that are missing, or that this network was not built for, or for a wrong N.
        """
        if tokens.shape[1] != self.length:
            raise ConfigError(f"this transformer knows {self.length} tokens, not {tokens.shape[1]}")
        x = self._first(len(tokens), labels)  # (B, 1, width)
        if self.tokens is not None:
            x = torch.cat([x, self.tokens(tokens[:, :-1])], 1)
        x = x + self.positions
        for block in self.blocks:
            x = block(x)
        return cast("Tensor", self.head(self.norm(x)))

    def log_prob(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        """ln p(tokens | labels), nats, (B,)."""
        logits = self(tokens, labels)  # (B, N, V)
        return -F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens).sum(1)

    def begin(self, n: int) -> KeyValueCache:
        """A cache for n rows of tokens, none of which is known. See `step`."""
        like, heads = self.positions, self.config.heads
        shape = (n, heads, self.length, self.config.width // heads)
        keys, values = ([like.new_empty(shape) for _ in self.blocks] for _ in range(2))
        return KeyValueCache(keys, values)

    def step(self, cache: KeyValueCache, given: Tensor | None) -> Tensor:
        """Logits of the next token, (B, V), given the one before it, (B,); at the first step, the labels or None.

        One position goes through the layers; besides, it looks at the keys and values of those before it.
        """
        if cache.length == 0:
            x = self._first(len(cache.keys[0]), given)
        else:
            x = cast("nn.Embedding", self.tokens)(given)[:, None]
        x = x + self.positions[cache.length]
        for block, keys, values in zip(self.blocks, cache.keys, cache.values, strict=True):
            x = cast("Block", block).step(x, keys, values, cache.length)
        cache.length += 1
        return cast("Tensor", self.head(self.norm(x)))[:, 0]

    def _first(self, n: int, labels: Tensor | None) -> Tensor:
        """What stands at the first position, (B, 1, width)."""
        if self.classes and labels is None:
            raise ConfigError("this transformer was always told labels; give labels")
        if not self.classes and labels is not None:
            raise ConfigError("this transformer was built without classes; leave labels away")
        if labels is None:
            labels = torch.zeros(n, dtype=torch.int64, device=self.positions.device)
        return cast("Tensor", self.start(labels))[:, None]


@torch.no_grad()
def sample_tokens(
    network: CausalTransformer,
    random: PictureRandom,
    labels: Tensor | None = None,
    choice: Choice | None = None,
    *,
    cached: bool = True,
) -> Tensor:
    """Rows of N tokens, as many as `random` has rows: (B, N) int64; row k depends on its random numbers alone.

    labels  (B,)
    choice  how each token is drawn; None: from its distribution
    cached  False: all positions go through the network for each token, to compare with
    """
    choice = choice or Choice()
    cache, tokens = network.begin(len(random)), torch.zeros(len(random), network.length, dtype=torch.int64)
    tokens = tokens.to(network.positions.device)
    given = labels
    for place in range(network.length):
        logits = network.step(cache, given) if cached else network(tokens, labels)[:, place]
        given = tokens[:, place] = choice.draw(logits, random)
    return tokens
