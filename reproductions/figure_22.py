"""Figure 22: coarse styles of one picture with the fine styles of another.

    python reproductions/figure_22.py [--n 1000]

Of the gallery's StyleGAN. Which class a mixture is of, and how bright it is, says what the styles of each band set.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from harness import PAGES, agrees, classifier, equal, gallery_run, write
from torch import Tensor

import mezzotint as mz
from mezzotint.data.grid import grid
from mezzotint.gan.stylegan import Mixes, bands, exchanged, style_mixing

COLUMNS, ROWS = 8, 3  # seeds of A and of B in the figure; B has a row for each band
BATCH = 100


@dataclass(frozen=True)
class Found:
    """Mixtures with these styles of B, and all others of A."""

    layers: tuple[int, ...]
    pairs: int  # of which A and B are named differently
    named_a: float  # share of their mixtures that are named as A is
    named_b: float
    bright_a: float  # correlation of a mixture's brightness with that of A, over all pairs
    bright_b: float


def brightness(images: Tensor) -> Tensor:
    """(B,)."""
    return (images.flatten(1).mean(1) + 1) / 2


def correlation(x: Tensor, y: Tensor) -> float:
    """Of two rows of numbers; 0 where one of them does not vary."""
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale else 0.0


@torch.no_grad()
def measured(model: Mixes, named: Callable[[Tensor], Tensor], n: int) -> dict[str, Found]:
    """For each band, of n pairs: A of seeds 0 ... n - 1, B of the n seeds after them.

    named  pictures to the numbers of their classes
    """
    w_a, w_b = model.map(model.codes(range(n))), model.map(model.codes(range(n, 2 * n)))

    def drawn(layers: Sequence[int]) -> Tensor:
        ws = exchanged(w_a, w_b, layers, model.styles)
        return torch.cat([model.synthesise(part).float().clamp(-1, 1) for part in ws.split(BATCH)])

    a, b = drawn([]), drawn(range(model.styles))
    of_a, of_b = named(a), named(b)
    differ = of_a != of_b
    if not differ.any():
        raise SystemExit(f"all of {n} pairs are of one class; train longer, or ask for more")
    found = {}
    for name, layers in bands(model.styles).items():
        mixtures = drawn(layers)
        of_mixtures, light = named(mixtures)[differ], brightness(mixtures)
        share_a, share_b = (float((of_mixtures == own[differ]).float().mean()) for own in (of_a, of_b))
        bright_a, bright_b = (correlation(light, brightness(images)) for images in (a, b))
        found[name] = Found(tuple(layers), int(differ.sum()), share_a, share_b, bright_a, bright_b)
    return found


def sheet(model: Mixes) -> Tensor:
    """A in the first row, B in the first column, so many rows for each band; (rows x columns, C, H, W)."""
    names = bands(model.styles)
    top: list[Tensor] = []
    rows = []
    for band, layers in enumerate(names.values()):
        of_b = range(COLUMNS + band * ROWS, COLUMNS + (band + 1) * ROWS)
        mixtures = style_mixing(model, range(COLUMNS), of_b, layers)
        top, rows = [mixtures[:1]], [*rows, mixtures[1:]]
    return torch.cat([*top, *rows]).flatten(0, 1)


def verdict(found: Mapping[str, Found]) -> str:
    """What the survey says of early and late layers, and whether it holds."""
    order = agrees(list(found), {name: row.named_b for name, row in found.items()}, lower_is_better=False)
    first, *_, last = found
    finer = found[last].bright_b > found[first].bright_b
    return (
        "The survey: early layers set pose and shape, later ones colour and fine details. If so, a mixture is of B's"
        f" class the more often the coarser the styles that B gives. {order} And its brightness follows B's more where"
        f" B gives the {last} styles than where it gives the {first} ones:"
        f" {'that holds here' if finer else 'that does **not** hold here'} ({found[last].bright_b:.2f} and"
        f" {found[first].bright_b:.2f}).\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=1000, help="pairs that are mixed")
    n = parser.parse_args().n
    model, judge = mz.load(gallery_run("stylegan")).eval(), classifier().eval()

    @torch.no_grad()
    def named(images: Tensor) -> Tensor:
        return torch.cat([judge.classify(part).argmax(1) for part in images.split(BATCH)])

    found = measured(model, named, n)
    PAGES.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        grid(sheet(model), columns=COLUMNS + 1).save(PAGES / "figure_22.png")
    text = (
        "| styles of B | layers | named as A | named as B | brightness, correlation with A | with B |\n"
        "|---|---|---|---|---|---|\n"
    )
    for name, row in found.items():
        layers = f"{row.layers[0]} to {row.layers[-1]}"
        text += f"| {name} | {layers} | {row.named_a:.0%} | {row.named_b:.0%} |"
        text += f" {row.bright_a:.2f} | {row.bright_b:.2f} |\n"
    names = ", then ".join(f"{ROWS} with its {name} styles" for name in found)
    body = (
        f"![mixtures](figure_22.png)\n\nPictures A in the first row, B in the first column; where they meet, A with"
        f" styles of B: {names}.\n\n{text}\nShares are of the pairs whose two pictures are named differently"
        f" ({next(iter(found.values())).pairs} of {n}); correlations are over all.\n\n{verdict(found)}"
    )
    protocol = (
        f"Made by `python reproductions/figure_22.py --n {n}`: the gallery's `stylegan` ({equal('stylegan')}), no"
        " truncation, the constant noise, seeds from 0, classes named by the gallery's classifier.\n"
    )
    rows = {name: vars(row) for name, row in found.items()}
    write("figure_22", "Figure 22: mixed styles", body, None, rows, "", protocol)


if __name__ == "__main__":
    main()
