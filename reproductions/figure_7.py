"""Figure 7: DRAW paints a picture step by step, and it becomes sharper on the way.

    python reproductions/figure_7.py [--n 1000] [--likelihood-n 100]

Writes the pictures while they are painted, as a strip and as an animation, with the attention in red, of digits and of
clothes; and measures how sharp the clothes are, and how well they explain held-out pictures, after each step.
The digits are painted by the DRAW of mnist_nats.py, which is trained first where it is not (30 minutes).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from harness import PAGES, Asked, arguments, equal, figure, gallery_run, pictures
from mnist_nats import ENTRIES
from mnist_nats import train as trained_on_digits
from torch import Tensor

import mezzotint as mz
from mezzotint.core.batch import PictureRandom
from mezzotint.core.records import read_metrics
from mezzotint.data import open_pictures
from mezzotint.data.loader import PIXELS
from mezzotint.data.strip import animation, shown_steps, strip
from mezzotint.evaluation.features import to_levels
from mezzotint.evaluation.likelihood import as_shown
from mezzotint.vae.draw import DRAW
from mezzotint.vae.model import Draws

SHOWN = 5  # rows of a strip
ANIMATED = (8, 4)  # columns and rows of the animation


def sharpness(images: Tensor) -> float:
    """Mean distance of a pixel in [-1, 1] from its neighbours to the right and below."""
    return float((images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean()) / 2)


@dataclass(frozen=True)
class Found:
    """What was measured after each step."""

    sharpness: list[float]  # of samples
    missing: list[float]  # -ln p(x | c_t) of held-out pictures, nats
    told: list[float]  # sum of the KL of the steps so far, nats
    real: float  # sharpness of held-out pictures


@torch.no_grad()
def measured(model: DRAW, asked: Asked) -> Found:
    """Samples from seed 0 on; draws of the posterior from seed 0 on."""
    sharp = [sharpness(images) for images in model.strip(asked.n).pictures]
    held_out = pictures("test")
    real = held_out.batch(range(min(asked.n, len(held_out)))).images
    levels = to_levels(real[: asked.likelihood_n])
    random = PictureRandom(range(len(levels)))
    shown = PIXELS[str(model.pixels)](levels, random)
    noise = Draws(random).normal(model.config.glimpses, model.config.latent)
    missing, told, spent = [], [], 0.0
    for step in model.paint(noise, shown):
        spent += float(step.posterior.kl().sum(1).mean())
        missing.append(-float(model.likelihood.log_prob(step.canvas, shown).mean()))
        told.append(spent)
    return Found(sharp, missing, told, sharpness(real))


def paint(model: DRAW, held_out: Tensor, name: str, place: Path) -> float:
    """NAME.png, NAME.gif and NAME_reading.png; the share of the grids that are larger than the picture."""
    painting = model.strip(ANIMATED[0] * ANIMATED[1])
    writes = painting.writes
    strip((painting.pictures[:, :SHOWN], writes)).save(place / f"{name}.png")
    frames, times = animation((painting.pictures, writes), columns=ANIMATED[0])
    frames[0].save(place / f"{name}.gif", save_all=True, append_images=frames[1:], duration=times, loop=0)
    reading = model.trace(held_out)
    looked = held_out.expand(len(reading.pictures), -1, -1, -1, -1)
    strip((looked, reading.reads)).save(place / f"{name}_reading.png")
    return float((writes.extent > painting.pictures.shape[-1]).float().mean()) if writes is not None else 0.0


def page(model: DRAW, digits: Path, asked: Asked, budget: str, place: Path = PAGES) -> None:
    """figure_7.md with its pictures and numbers."""
    place.mkdir(parents=True, exist_ok=True)
    binary = as_shown(
        open_pictures("mnist", split="test").batch(range(SHOWN)).images, "binary", range(SHOWN), model.device
    )
    far = paint(mz.load(digits).eval(), binary, "figure_7_digits", place)  # type: ignore[arg-type]
    beyond = paint(model, pictures("test").batch(range(SHOWN)).images, "figure_7", place)
    seen = [row["pictures"] for row in read_metrics(digits / "metrics.jsonl") if "pictures" in row][-1]
    found = measured(model, asked)
    steps = range(1, model.config.glimpses + 1)
    drawn, (left, right) = figure("figure_7", ncols=2, figsize=(8.5, 3.2))
    left.plot(steps, found.sharpness, "o-", ms=3, label="samples")
    left.axhline(found.real, color="grey", lw=1, ls="--", label="held-out pictures")
    left.set(xlabel="step", ylabel="difference of neighbours", ylim=(0, None))
    left.legend(frameon=False)
    right.plot(steps, found.missing, "o-", ms=3, label="-ln p(x | canvas)")
    right.plot(steps, found.told, "o-", ms=3, label="KL so far")
    right.set(xlabel="step", ylabel="nats", yscale="log")
    right.legend(frameon=False)
    drawn.savefig(place / "figure_7_steps.png", metadata={"Software": None})
    text = "| step | sharpness | -ln p(x given canvas), nats | KL so far, nats |\n|---|---|---|---|\n"
    for step in shown_steps(model.config.glimpses):
        text += f"| {step + 1} | {found.sharpness[step]:.4f} | {found.missing[step]:.1f} | {found.told[step]:.1f} |\n"
    quarter = len(steps) // 4
    sharper = "do" if found.sharpness[-1] > found.sharpness[quarter] else "do **not**"
    likelier = "does" if found.missing[-1] < found.missing[quarter] else "does **not**"
    body = (
        "# Figure 7: DRAW\n\n![painting digits](figure_7_digits.png)\n\nSamples while they are painted, from left to"
        " right; red: where the grid of filters writes, its line the wider the wider the filters; a grid that is larger"
        f" than the picture, as {far:.0%} are here, shows as the picture's border. [The same as an"
        " animation](figure_7_digits.gif).\n\n![reading digits](figure_7_digits_reading.png)\n\nHeld-out pictures; red:"
        " where the encoder looks, from left to right.\n\n"
        "![painting clothes](figure_7.png)\n\nThe same of clothes, which fill their pictures: there"
        f" {beyond:.0%} of the grids are larger than the picture. [As an animation](figure_7.gif).\n\n"
        "![reading clothes](figure_7_reading.png)\n\n"
        "![after each step](figure_7_steps.png)\n\nSharpness is the mean difference of neighbouring pixels in [-1, 1];"
        f" that of held-out clothes is {found.real:.4f}. Of {asked.likelihood_n} held-out pictures, how well the"
        f" canvas explains them after each step, and what the codes up to there have cost.\n\n{text}\n"
        f"The survey: pixels become sharper through time. From step {quarter + 1} to the last, samples {sharper} become"
        f" sharper, and the canvas {likelier} explain held-out pictures better.\n\n"
        f"Made by `python reproductions/figure_7.py --n {asked.n} --likelihood-n {asked.likelihood_n}`: `fashion`,"
        f" 10,000 of the pictures of Fashion-MNIST, size `small`, trained on {budget}; {asked.n} samples, seeds from 0."
        f" The digits are of MNIST, **dynamically** binarised: the DRAW of [its nats](mnist_nats.md), {seen:,} pictures"
        " seen.\n"
    )
    (place / "figure_7.md").write_text(body)
    (place / "figure_7.json").write_text(json.dumps(vars(found), indent=1) + "\n")
    print(place / "figure_7.md")


def main() -> None:
    asked = arguments(__doc__)
    entry = next(entry for entry in ENTRIES if entry.system == "draw")
    page(mz.load(gallery_run("draw")).eval(), trained_on_digits(entry, ("--minutes", "30")), asked, equal("draw"))


if __name__ == "__main__":
    main()
