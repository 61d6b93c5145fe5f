"""Layers with zeros in the right places, so that an answer depends on what comes before it and on nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.errors import ConfigError


class MaskedConv2d(nn.Conv2d):
    """A convolution that sees of a picture what comes before each pixel in raster order.

    Of the pixel itself a group of channels sees the groups before it (type A: what the value to be predicted may
    depend on) or also itself (type B: for layers above one of type A). The map keeps its size; outside of it are zeros.

    in_channels, out_channels
    kernel   height and width, both odd
    kind     "A" or "B"
    colours  number of groups; channel i of n belongs to group floor(i colours / n), so that features are shared out
             among red, green and blue in this order

    Raises `ConfigError` for an even kernel, or fewer channels than groups.
    Source: van den Oord et al. 2016a (arXiv 1601.06759), section 3.4 and figure 2; survey, eq. 66 and table IV.
    """

    mask: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        kind: Literal["A", "B"],
        colours: int = 1,
    ) -> None:
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        if height % 2 == 0 or width % 2 == 0:
            raise ConfigError(f"a masked kernel has a centre, so its sides are odd, not {height} x {width}")
        if not 1 <= colours <= min(in_channels, out_channels):
            raise ConfigError(f"{in_channels} and {out_channels} channels cannot be shared out among {colours} groups")
        super().__init__(in_channels, out_channels, (height, width), padding=(height // 2, width // 2))
        seen = torch.arange(in_channels) * colours // in_channels
        seeing = (torch.arange(out_channels) * colours // out_channels)[:, None]
        mask = torch.ones(out_channels, in_channels, height, width)
        mask[:, :, height // 2 + 1 :] = 0
        mask[:, :, height // 2, width // 2 + 1 :] = 0
        mask[:, :, height // 2, width // 2] = (seen < seeing if kind == "A" else seen <= seeing).float()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class MaskedLinear(nn.Linear):
    """(W * M) x + b."""

    def forward(self, x: Tensor, mask: Tensor, units: Tensor | slice = slice(None)) -> Tensor:  # type: ignore[override]
        """x (B, in), mask (out, in), true where an output may see an input -> (B, out).

        units  which outputs are asked for; the mask has as many rows
        """
        return F.linear(x, self.weight[units] * mask, None if self.bias is None else self.bias[units])


def connected(above: Tensor, below: Tensor, *, strict: bool = False) -> Tensor:
    """Which units see which: (out, in), true where degree(above) >= degree(below), or > if `strict`.

    A unit of degree m depends on the first m inputs. Source: Germain et al. 2015, eq. 8-9.
    """
    return above[:, None] > below if strict else above[:, None] >= below


@dataclass
class MaskedCache:
    """What is known of B rows of inputs that are found one after the other, and all that follows from it."""

    number: int  # of the masks
    known: int  # how many inputs
    inputs: Tensor  # (B, D), zero where not yet known
    hidden: list[Tensor]  # of each layer, (B, width), zero where not yet known
    context: Tensor | None  # what the context adds to the first layer, (B, width)


class MaskedMLP(nn.Module):
    """Layers of neurons that answer, for each of D inputs, numbers that depend on the inputs before it alone.

        h_l = f((W_l * M_l) h_{l-1} + b_l),     M_l[j, i] = 1 where degree(j) >= degree(i)
        y   = (V * M) h_L + c + (A * M') x,     M[d, j]   = 1 where degree(d) >  degree(j);  M' likewise

    The degree of an input is its place 1 ... D in the order; that of a hidden unit is drawn uniformly between the
    smallest of the layer below and D - 1. Source: Germain et al. 2015 (arXiv 1502.03509), section 4.

    inputs      D
    widths      of the hidden layers; () for none
    outputs     numbers for each input
    context     width of a vector that answers may depend on besides, added in the first layer; 0: none. The first
                answer depends on it only where there are no hidden layers: no hidden unit has a degree below 1
    activation  f
    direct      whether there is the term A
    masks       how many sets of masks there are; `number` chooses one of them
    orders      "given": the inputs as they come; "reversed": from the last to the first; "random": each set of masks
                has an order of its own
    seed        of all that is drawn; degrees are saved with the weights

    Raises `ConfigError` where there are neither hidden layers nor direct connections, or for less than 1 set of masks.
    """

    order: Tensor  # degrees of the inputs, (masks, D)

    def __init__(
        self,
        inputs: int,
        widths: tuple[int, ...],
        outputs: int = 1,
        *,
        context: int = 0,
        activation: Callable[[Tensor], Tensor] = F.relu,
        direct: bool = False,
        masks: int = 1,
        orders: Literal["given", "reversed", "random"] = "given",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not widths and not direct:
            raise ConfigError("without hidden layers and direct connections no answer depends on an input; choose one")
        if masks < 1:
            raise ConfigError(f"there is at least 1 set of masks, not {masks}")
        self.inputs, self.outputs, self.activation, self.masks = inputs, outputs, activation, masks
        layers = [MaskedLinear(before, after) for before, after in pairwise((inputs, *widths))]
        self.layers = nn.ModuleList(layers)
        self.last = MaskedLinear(widths[-1], inputs * outputs) if widths else None
        self.direct = MaskedLinear(inputs, inputs * outputs, bias=not widths) if direct else None
        first = widths[0] if widths else inputs * outputs
        self.context = nn.Linear(context, first, bias=False) if context else None

        generator = torch.Generator("cpu").manual_seed(seed)
        degrees: list[list[Tensor]] = [[] for _ in (inputs, *widths)]
        for _ in range(masks):
            ranks = torch.arange(inputs, device="cpu")
            if orders == "random":
                ranks = torch.randperm(inputs, generator=generator, device="cpu")
            below = 1 + (ranks.flip(0) if orders == "reversed" else ranks)
            degrees[0].append(below)
            for layer, width in enumerate(widths):
                least = min(int(below.min()), max(inputs - 1, 1))
                below = torch.randint(least, max(inputs, 2), (width,), generator=generator, device="cpu")
                degrees[layer + 1].append(below)
        place = torch.empty(0).device  # where the weights are
        self.register_buffer("order", torch.stack(degrees[0]).to(place))
        for layer, drawn in enumerate(degrees[1:]):
            self.register_buffer(f"degrees{layer}", torch.stack(drawn).to(place))

    def _degrees(self, number: int) -> list[Tensor]:
        """Of the inputs and of each hidden layer."""
        return [self.order[number], *(getattr(self, f"degrees{layer}")[number] for layer in range(len(self.layers)))]

    def forward(self, x: Tensor, context: Tensor | None = None, number: int = 0) -> Tensor:
        """x (B, D), context (B, context) -> (B, D, outputs), with the masks of this number."""
        degrees = self._degrees(number)
        added = self.context(context) if self.context is not None else None
        h = x
        for layer, (below, above) in enumerate(pairwise(degrees)):
            h = self.layers[layer](h, connected(above, below))
            h = self.activation(h + added if layer == 0 and added is not None else h)
        return self._answers(x, h, added, degrees, slice(None)).unflatten(1, (self.inputs, self.outputs))

    def _answers(self, x: Tensor, h: Tensor, added: Tensor | None, degrees: list[Tensor], asked: slice) -> Tensor:
        """Some of the D outputs, of the inputs x, the last hidden layer h, and what the context adds to the first."""
        places = degrees[0].repeat_interleave(self.outputs)[asked]
        parts = [] if added is None or len(self.layers) else [added[:, asked]]
        if self.last is not None:
            parts.append(self.last(h, connected(places, degrees[-1], strict=True), asked))
        if self.direct is not None:
            parts.append(self.direct(x, connected(places, degrees[0], strict=True), asked))
        return torch.stack(parts).sum(0)

    def places(self, number: int = 0) -> Tensor:
        """The inputs in their order: which is first, second, ... of D, (D,)."""
        return self.order[number].argsort()

    def begin(self, n: int, context: Tensor | None = None, number: int = 0) -> MaskedCache:
        """A cache for n rows of which nothing is known. See `step`."""
        weight = next(self.parameters())
        hidden = [weight.new_zeros(n, len(degrees)) for degrees in self._degrees(number)[1:]]
        added = self.context(context) if self.context is not None else None
        return MaskedCache(number, 0, weight.new_zeros(n, self.inputs), hidden, added)

    def step(self, cache: MaskedCache, value: Tensor | None = None) -> Tensor:
        """The numbers for the next input in the order, (B, outputs), given the value (B,) of the one before it.

        Every hidden unit is computed once, as soon as all inputs that it sees are known: D steps multiply as often as
        one `forward`. `value` is None at the first step and at no other.
        """
        degrees = self._degrees(cache.number)
        if value is not None:
            cache.inputs[:, degrees[0] == cache.known + 1] = value[:, None].to(cache.inputs)
            cache.known += 1
            below = cache.inputs
            for layer, h in enumerate(cache.hidden):
                units = (degrees[layer + 1] == cache.known).nonzero()[:, 0]
                a = self.layers[layer](below, connected(degrees[layer + 1][units], degrees[layer]), units)
                if layer == 0 and cache.context is not None:
                    a = a + cache.context[:, units]
                h[:, units] = self.activation(a).to(h)
                below = h
        place = int((degrees[0] == cache.known + 1).nonzero()[0, 0])
        asked = slice(place * self.outputs, (place + 1) * self.outputs)
        h = cache.hidden[-1] if cache.hidden else cache.inputs
        return self._answers(cache.inputs, h, cache.context, degrees, asked)
