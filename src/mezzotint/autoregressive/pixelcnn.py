"""The gated PixelCNN: what may come at a pixel, told by the pixels before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.batch import PictureRandom
from ..core.config import Config
from ..core.errors import ConfigError


@dataclass(frozen=True)
class PixelCNNConfig(Config):
    """The architecture, independent of the pictures."""

    width: int = 64  # p, features of both stacks
    layers: int = 8
    first_kernel: int = 7  # n of the first layer
    kernel: int = 3  # n of the others
    head: int = 64  # features between the two last layers

    def __post_init__(self) -> None:
        for name in ("width", "layers", "head"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("first_kernel", "kernel"):
            if getattr(self, name) < 3 or getattr(self, name) % 2 == 0:
                raise ConfigError(f"{name} must be odd and at least 3, not {getattr(self, name)}")

    def build(self, inputs: int, outputs: int, vector: int = 0, features: int = 0) -> GatedPixelCNN:
        """A new network. See `GatedPixelCNN`."""
        return GatedPixelCNN(self, inputs, outputs, vector, features)


def gate(x: Tensor) -> Tensor:
    """tanh(a) sigmoid(b), a and b the halves of the channels; survey, eq. 68."""
    a, b = x.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


class Condition(nn.Module):
    """What a vector and a map say at each pixel, added before a gate: V^T h + W * s; survey, eq. 70.

    vector    width of h, 0: none
    features  channels of s, 0: none
    """

    def __init__(self, vector: int, features: int, outputs: int) -> None:
        super().__init__()
        self.vector = nn.Linear(vector, outputs, bias=False) if vector else None
        self.features = nn.Conv2d(features, outputs, 1, bias=False) if features else None

    def told(self, vector: Tensor | None) -> Tensor | None:
        """V^T h, the same for all pixels: (B, outputs, 1, 1)."""
        return self.vector(vector)[:, :, None, None] if self.vector is not None else None

    def forward(self, x: Tensor, told: Tensor | None, features: Tensor | None) -> Tensor:
        """x (B, outputs, H, W), V^T h, and s (B, features, H, W) -> x and what is added to it."""
        x = x + told if told is not None else x
        return x + self.features(features) if self.features is not None else x


class GatedLayer(nn.Module):
    """One layer of both stacks.

    vertical    a = W_v * (n/2 rows above, and the row itself),            v' = gate(a)
    horizontal  b = W_h * (n/2 pixels to the left, and the pixel itself) + W_a a,   h' = h + W_o gate(b)

    The first layer sees neither the row nor the pixel itself, and has no residual connection; the last has no v'.
    Before layer l, v at row i knows the pixels of rows above i, and h at a pixel those and the pixels to its left; so
    neither stack needs a mask, only a shift.
    Source: van den Oord et al. 2016b (arXiv 1606.05328), section 2.1-2.3, figure 2.
    """

    def __init__(
        self, inputs: int, width: int, kernel: int, vector: int, features: int, *, first: bool, last: bool
    ) -> None:
        super().__init__()
        self.first, self.reach = first, kernel // 2
        behind = self.reach + (0 if first else 1)  # rows, or pixels, that are seen
        self.vertical = nn.Conv2d(inputs, 2 * width, (behind, kernel), padding=(0, self.reach))
        self.horizontal = nn.Conv2d(inputs, 2 * width, (1, behind))
        self.across = nn.Conv2d(2 * width, 2 * width, 1, bias=False)
        self.out = nn.Conv2d(width, width, 1)
        self.told_vertical = None if last else Condition(vector, features, 2 * width)
        self.told_horizontal = Condition(vector, features, 2 * width)
        # tanh(a) sigmoid(b) of standard normal a and b is 0.34 on average, which so many vertical layers would lose
        for module, gain in ((self.vertical, 1.0 if first else 3.0), (self.horizontal, 1.0), (self.across, 0.7)):
            nn.init.normal_(module.weight, std=gain * module.weight[0].numel() ** -0.5)
        for convolution in (self.vertical, self.horizontal):
            nn.init.zeros_(cast("Tensor", convolution.bias))

    def forward(self, v: Tensor, h: Tensor, vector: Tensor | None, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """v and h, both (B, inputs, H, W) -> both (B, width, H, W)."""
        rows, columns = F.pad(v, (0, 0, self.reach, 0)), F.pad(h, (self.reach, 0))
        if self.first:
            rows, columns = rows[:, :, :-1], columns[..., :-1]
        a = self.vertical(rows)
        above, left = self.told(vector)
        b = self.told_horizontal(self.horizontal(columns) + self.across(a), left, features)
        h = self.out(gate(b)) if self.first else h + self.out(gate(b))
        return v if self.told_vertical is None else gate(self.told_vertical(a, above, features)), h

    def told(self, vector: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """What a vector says to the vertical stack and to the horizontal one."""
        above = None if self.told_vertical is None else self.told_vertical.told(vector)
        return above, self.told_horizontal.told(vector)


@dataclass
class PixelCache:
    """What the stacks know of B pictures whose pixels are found one after the other: as much as fits in a few rows."""

    width: int
    told: list[tuple[Tensor | None, Tensor | None]]  # what the vector says to both stacks of each layer
    features: Tensor | None
    row: int
    column: int  # of the pixel whose numbers are asked for next
    pixels: Tensor  # of the present row, (B, inputs, 1, W), zero where not yet known
    above: list[Tensor]  # what each vertical layer saw of the last rows, (B, channels, reach, W)
    across: list[Tensor]  # what each vertical layer adds to the horizontal one in the present row, (B, 2 p, 1, W)
    left: list[Tensor]  # what each horizontal layer saw of the last pixels, (B, channels, 1, reach)


class GatedPixelCNN(nn.Module):
    """Numbers for each pixel of a picture, of the pixels before it in raster order, and of no others.

    Two stacks of convolutions, one over the rows above and one over the pixels to the left, see all of them within
    reach: no pixel is hidden in a blind spot. What the channels of one pixel have to do with each other is left to the
    distribution of which these are the numbers (a mixture of logistics chains them); see `one_channel`.

    config
    inputs    channels of the picture: numbers, or an embedding of tokens
    outputs   numbers for a pixel
    vector    width of a vector that is told to every layer: a class, a code; 0: none
    features  channels of a map of the picture's size that is told to every layer; 0: none

    Source: van den Oord et al. 2016b (arXiv 1606.05328); survey, section 5.1, eq. 65 and 68-70.
    """

    def __init__(self, config: PixelCNNConfig, inputs: int, outputs: int, vector: int = 0, features: int = 0) -> None:
        super().__init__()
        self.config, self.inputs, self.outputs = config, inputs, outputs
        self.vector, self.features = vector, features
        width, layers = config.width, config.layers
        self.layers = nn.ModuleList(
            GatedLayer(
                width if layer else inputs, width, config.kernel if layer else config.first_kernel, vector, features,
                first=layer == 0, last=layer == layers - 1,
            )
            for layer in range(layers)
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, config.head, 1), nn.ReLU(), nn.Conv2d(config.head, outputs, 1)
        )

    def forward(self, x: Tensor, vector: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """x (B, inputs, H, W), vector (B, vector), features (B, features, H, W) -> (B, outputs, H, W).

        Raises `ConfigError` where the network was built for conditions that are not given, or the other way round.
        """
        self._agree(vector, features)
        v = h = x
        for layer in self.layers:
            v, h = layer(v, h, vector, features)
        return cast("Tensor", self.head(h))

    def begin(
        self, n: int, size: tuple[int, int], vector: Tensor | None = None, features: Tensor | None = None
    ) -> PixelCache:
        """A cache for n pictures of this height and width, of which nothing is known. See `step`."""
        self._agree(vector, features)
        like, width = self._layers[0].vertical.weight, size[1]
        channels = [layer.vertical.in_channels for layer in self._layers]
        above = [like.new_zeros(n, c, layer.reach, width) for c, layer in zip(channels, self._layers, strict=True)]
        told = [layer.told(vector) for layer in self._layers]
        return PixelCache(width, told, features, 0, 0, like.new_zeros(n, self.inputs, 1, width), above, [], [])

    def step(self, cache: PixelCache, pixel: Tensor | None = None) -> Tensor:
        """The numbers for the next pixel, (B, outputs, 1, 1), given the pixel before it, (B, inputs, 1, 1).

        The vertical stack advances once a row, the horizontal one once a pixel; each layer reads what it saw last from
        the cache, so that a pixel costs the same in a picture of any size. `pixel` is None at the first step and at no
        other; the last pixel of a picture need not be told.
        """
        if pixel is not None:
            cache.pixels[..., cache.column, None] = pixel.to(cache.pixels)
            cache.left[0] = torch.cat([cache.left[0][..., 1:], pixel.to(cache.pixels)], 3)
            cache.column += 1
            if cache.column == cache.width:
                cache.above[0] = torch.cat([cache.above[0][:, :, 1:], cache.pixels], 2)
                cache.pixels = torch.zeros_like(cache.pixels)
                cache.row, cache.column = cache.row + 1, 0
        if cache.column == 0:
            self._begin_row(cache)
        features = cache.features
        if features is not None:
            features = features[:, :, cache.row, cache.column, None, None]
        h = cache.left[0]
        for number, layer in enumerate(self._layers):
            seen = h if layer.first else torch.cat([cache.left[number], h], 3)  # (B, channels, 1, n/2 (+ 1))
            a = _at_once(layer.horizontal, seen) + cache.across[number][..., cache.column, None]
            g = _at_once(layer.out, gate(layer.told_horizontal(a, cache.told[number][1], features)))
            if not layer.first:
                cache.left[number] = seen[..., 1:]
            h = g if layer.first else h + g
        for module in self.head:
            h = _at_once(module, h) if isinstance(module, nn.Conv2d) else module(h)
        return h

    def _begin_row(self, cache: PixelCache) -> None:
        """Advance the vertical stack to the row of the cache; nothing is to the left of its first pixel."""
        features = cache.features
        if features is not None:
            features = features[:, :, cache.row, None]
        cache.across = []
        v = cache.above[0]
        for number, layer in enumerate(self._layers):
            seen = v if layer.first else torch.cat([cache.above[number], v], 2)
            a = layer.vertical(seen)  # (B, 2 p, 1, W)
            if not layer.first:
                cache.above[number] = seen[:, :, 1:]
            cache.across.append(layer.across(a))
            if layer.told_vertical is not None:
                v = gate(layer.told_vertical(a, cache.told[number][0], features))
        cache.left = [above.new_zeros(*above.shape[:2], 1, above.shape[2]) for above in cache.above]

    @property
    def _layers(self) -> list[GatedLayer]:
        return cast("list[GatedLayer]", list(self.layers))

    def _agree(self, vector: Tensor | None, features: Tensor | None) -> None:
        for name, expected, given in (("vector", self.vector, vector), ("features", self.features, features)):
            if expected and given is None:
                raise ConfigError(f"this PixelCNN is told {name} ({expected} numbers); give them")
            if not expected and given is not None:
                raise ConfigError(f"this PixelCNN was built without {name}; leave them away")


def _at_once(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution that fits its input exactly, as one matrix product: (B, C, h, w) -> (B, C', 1, 1)."""
    return F.linear(x.flatten(1), convolution.weight.flatten(1), convolution.bias)[:, :, None, None]


def one_channel(channels: int, pixels: str) -> None:
    """Raises `ConfigError` for more than one channel where their distribution does not chain them.

    The network sees earlier pixels whole, and nothing of the pixel itself: given those, red, green and blue would be
    drawn independently of each other.

    pixels  what they are: "binary"
    """
    if channels > 1:
        raise ConfigError(
            f"a PixelCNN would draw the {channels} channels of {pixels} pixels independently of each other; use grey "
            "pictures, or a mixture of logistics, which chains them"
        )


Draw = Callable[[Tensor, PictureRandom], Tensor]


@torch.no_grad()
def sample_pixels(
    network: GatedPixelCNN,
    draw: Draw,
    size: tuple[int, int],
    random: PictureRandom,
    *,
    vector: Tensor | None = None,
    features: Tensor | None = None,
    embed: Callable[[Tensor], Tensor] | None = None,
    cached: bool = True,
) -> Tensor:
    """Pictures drawn pixel by pixel in raster order, as many as `random` has rows: (B, c, H, W).

    draw      makes of the numbers (B, outputs, 1, 1) and random numbers the value of a pixel, (B, c, 1, 1)
    size      height and width
    random    picture k depends on its row k alone
    vector    (B, vector), features (B, features, H, W): see `GatedPixelCNN`
    embed     what the network sees of values (B, c, 1, 1): (B, inputs, 1, 1); None: the values themselves
    cached    False: the network goes over the whole picture for each pixel, to compare with
    """
    height, width = size
    cache = network.begin(len(random), size, vector, features)
    canvas = cache.pixels.new_zeros(len(random), network.inputs, height, width)
    values: list[Tensor] = []
    pixel: Tensor | None = None
    for place in range(height * width):
        row, column = divmod(place, width)
        if cached:
            numbers = network.step(cache, pixel)
        else:
            numbers = network(canvas, vector, features)[:, :, row, column, None, None]
        values.append(draw(numbers, random))
        pixel = embed(values[-1]) if embed else values[-1]
        canvas[:, :, row, column] = pixel[..., 0, 0].to(canvas)
    return torch.cat(values, 3).unflatten(3, size)[:, :, 0]
