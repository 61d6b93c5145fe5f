"""Section 2.5 and Box 1: what is not seen of a picture, given what is: quadrants, colours, silhouettes.

    python reproductions/completion.py [--n 500]

A CVAE that is shown one, two or three quadrants, one that is shown luma and finds the colours of emoji, and one that is
shown half of a picture in blocks and finds the silhouette. `make data` brings the emoji.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from harness import PAGES, Asked, agrees, arguments, trained, write
from torch import Tensor

import mezzotint as mz
from mezzotint.core.batch import PictureRandom
from mezzotint.data import Pictures, open_pictures, spread_over
from mezzotint.data.grid import grid
from mezzotint.data.loader import PIXELS
from mezzotint.evaluation.collapse import diagnose
from mezzotint.evaluation.likelihood import mean_bits_per_dim
from mezzotint.vae.cvae import CVAE

SHOWN, DRAWS = 10, 4  # pictures of a sheet, and how often each is completed there
SEEN = 40_000  # pictures in training
COLOUR = ("--image-size", "32", "--channels", "3")


@dataclass(frozen=True)
class Entry:
    """One kind of condition."""

    name: str
    title: str
    data: str
    options: tuple[str, ...]


QUADRANTS = tuple(
    Entry(f"quadrants-{seen}", f"{seen} quadrant{'s' * (seen > 1)}", "fashion", ("--set", f"condition.observed={seen}"))
    for seen in (1, 2, 3)
)
ENTRIES = (
    *QUADRANTS,
    Entry("grey", "colours of emoji", "data/emoji", (*COLOUR, "--set", "condition.kind=grey")),
    Entry(
        "silhouette", "silhouettes", "fashion",
        ("--set", "condition.kind=silhouette", "--set", "likelihood.kind=bernoulli"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What was measured of one."""

    hidden: int  # numbers of a picture
    bits: float  # of each of them
    nats: float  # KL(q(z | x, y) || p(z | x))
    error: float  # square of a hidden number's error, z the mean of the prior
    spread: float  # standard deviation of a hidden number over z


def held_out(entry: Entry) -> Pictures:
    """Test pictures in the size that the run has."""
    if entry.data == "fashion":
        return open_pictures("fashion", split="test")
    return open_pictures(entry.data, split="test", image_size=32, channels=3)


@torch.no_grad()
def measured(model: CVAE, test: Pictures, n: int) -> Found:
    """Of n held-out pictures; seeds from 0."""
    chosen = spread_over(len(test), n)
    batches = [test.batch(chosen[k : k + 250]).images for k in range(0, len(chosen), 250)]
    pixels = model.pixels or "levels"
    bits = mean_bits_per_dim(model, batches, pixels=pixels)
    images = torch.cat(batches)
    target = model.likeness(images)
    hidden = model.config.condition.hidden(images.shape[-1])
    guess = model.sample(len(images), source=images, temperature=0.0)
    drawn = torch.stack([model.sample(len(images), source=images, seeds=1000 * k) for k in range(8)])
    return Found(
        int(model.dims or 0), bits.value, diagnose(model, batches, pixels=pixels).nats,
        float((guess - target)[..., hidden].square().mean()), float(drawn.std(0)[..., hidden].mean()),
    )  # fmt: skip


@torch.no_grad()
def sheet(model: CVAE, images: Tensor) -> Tensor:
    """Rows: what is seen, so many completions, and the picture: (rows, n, C, H, W)."""
    levels = ((images + 1) * 127.5).round().to(torch.uint8)
    shown = PIXELS[model.pixels or "levels"](levels, PictureRandom(range(len(images))))
    seen = model.config.condition.seen(shown).expand_as(images)
    drawn = [model.sample(len(images), source=shown, seeds=1000 * k) for k in range(DRAWS)]
    return torch.stack([seen, *drawn, model.likeness(images)])


def page(asked: Asked) -> None:
    """completion.md with its sheets and numbers."""
    PAGES.mkdir(parents=True, exist_ok=True)
    text = (
        "| seen | hidden numbers | bits of each | KL, nats | squared error at the mean of p(z given x) | spread |\n"
        "|---|---|---|---|---|---|\n"
    )
    found, sheets = {}, ""
    for entry in ENTRIES:
        run = trained(f"completion-{entry.name}", "cvae", *entry.options, pictures=SEEN, data=entry.data)
        model, test = mz.load(run).eval(), held_out(entry)
        assert isinstance(model, CVAE)
        its = found[entry.title] = measured(model, test, asked.n)
        text += (
            f"| {entry.title} | {its.hidden:,} | {its.bits:.3f} | {its.nats:.2f} | {its.error:.4f} |"
            f" {its.spread:.4f} |\n"
        )
        rows = sheet(model, test.batch(spread_over(len(test), SHOWN)).images)
        grid(rows.flatten(0, 1), columns=SHOWN).save(PAGES / f"completion_{entry.name}.png")
        sheets += f"## {entry.title}\n\n![{entry.title}](completion_{entry.name}.png)\n\n"
    nats = {entry.title: found[entry.title].nats for entry in QUADRANTS}
    order = agrees([entry.title for entry in reversed(QUADRANTS)], nats).replace("The survey's order", "The order")
    body = (
        f"{text}\nBits are those of the bound of one draw, squared errors those of numbers in [-1, 1]; the spread is"
        " the standard deviation of a hidden number over draws of z. The more is seen, the less is left for z to say,"
        f" in nats: {order}\n\nOn each sheet, from above: what is seen, {DRAWS}"
        f" completions with z of p(z given x), and the held-out picture, or its silhouette.\n\n{sheets}"
    )
    protocol = (
        f"Made by `python reproductions/completion.py --n {asked.n}` (threads: {torch.get_num_threads()}): `fashion`,"
        f" 10,000 of the pictures of Fashion-MNIST, and emoji at 32 x 32; size `small`, {SEEN:,} pictures seen each;"
        f" {asked.n} held-out pictures, seeds from 0.\n"
    )
    numbers = {title: vars(its) for title, its in found.items()}
    write("completion", "Section 2.5: what is not seen, given what is", body, None, numbers, "", protocol)


def main() -> None:
    page(arguments(__doc__))


if __name__ == "__main__":
    main()
