"""Section 2.6.3 and figure 9: upper latents say what a picture is of, lower ones the details.

    python reproductions/coarse_to_fine.py [--n 1000]

Pictures of a very deep VAE whose upper groups alone are drawn, the others at the mean of their priors; and pictures
that share their upper groups and differ below.
"""

from __future__ import annotations

import torch
from harness import PAGES, Asked, arguments, classifier, equal, figure, gallery_run, judged, save, write
from torch import Tensor

import mezzotint as mz
from mezzotint.core.batch import PictureRandom
from mezzotint.core.drawing import draw
from mezzotint.data.grid import grid
from mezzotint.evaluation.features import to_levels
from mezzotint.vae.gaussian import Gaussian
from mezzotint.vae.groups import GroupedModel, Posterior

SYSTEM = "vdvae"
SEEDS = 10  # pictures in a row
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # of the groups that are drawn, or shared


@torch.no_grad()
def sharing(model: GroupedModel, upper: int, n: int, seed: int = 0) -> Tensor:
    """n pictures whose first `upper` groups are those of one seed, and the others of n."""

    def noise(seeds: range) -> list[Tensor]:
        random = PictureRandom(seeds, model.device)
        return [random.normal(*shape) for shape in model.shapes]

    one, own = noise(range(seed, seed + 1)), noise(range(seed + 1, seed + 1 + n))

    def choose(group: int, prior: Gaussian, posterior: Posterior | None) -> Tensor:
        return prior.at(one[group].expand_as(own[group]) if group < upper else own[group])

    return model.likelihood.mean(model.descend(n, None, choose))


@torch.no_grad()
def agreement(model: GroupedModel, upper: int, families: int = 20, children: int = 10) -> tuple[float, float]:
    """Of pictures that share their upper groups: the spread of their pixels, and the share of the commonest class."""
    spread, common = [], []
    for family in range(families):
        images = sharing(model, upper, children, 1000 * family)
        spread.append(float(images.std(0).mean()))
        shown = to_levels(images).float() / 127.5 - 1
        guesses = classifier().eval().classify(shown).argmax(1)
        common.append(float(torch.bincount(guesses).max() / children))
    return sum(spread) / families, sum(common) / families


def page(model: GroupedModel, asked: Asked, budget: str) -> None:
    """coarse_to_fine.md with its pictures and numbers."""
    PAGES.mkdir(parents=True, exist_ok=True)
    steps = sorted({round(share * model.groups) for share in SHARES})
    cut = torch.cat([draw(model, SEEDS, seeds=0, layers=layers) for layers in steps])
    grid(cut, columns=SEEDS).save(PAGES / "coarse_to_fine.png")
    grid(torch.cat([sharing(model, upper, SEEDS) for upper in steps]), columns=SEEDS).save(PAGES / "figure_9.png")
    numbers = {}
    for layers in steps:
        spread, common = agreement(model, layers)
        values = judged(model, asked, layers=layers)
        numbers[layers] = {**values, "spread": spread, "same class": common}
    text = (
        "| groups | FD, only these drawn | recall | spread of pixels, these shared | commonest class, these shared |\n"
        "|---|---|---|---|---|\n"
    )
    for layers, row in numbers.items():
        text += f"| {layers} of {model.groups} | {row['fd_classifier']:.4g} | {row['recall']:.3f} |"
        text += f" {row['spread']:.3f} | {row['same class']:.2f} |\n"
    drawn, axes = figure("coarse_to_fine", figsize=(5, 3.2))
    axes.plot(steps, [numbers[k]["same class"] for k in steps], "o-", label="commonest class")
    axes.plot(steps, [numbers[k]["spread"] for k in steps], "o-", label="spread of pixels")
    axes.set(xlabel="groups that pictures share", ylim=(0, 1.05))
    axes.legend(frameon=False)
    save(drawn, "coarse_to_fine_sharing")
    first, middle = numbers[steps[0]], numbers[steps[len(steps) // 2]]
    alone = first["same class"]
    context = "set" if middle["same class"] > (1 + alone) / 2 else "do **not** set"
    body = (
        f"![upper groups alone](coarse_to_fine.png)\n\nThe same ten seeds in each row; {', '.join(map(str, steps))} of"
        f" {model.groups} groups are drawn, the others are at the mean of their prior given those above.\n\n"
        "![shared upper groups](figure_9.png)\n\nPictures that share so many upper groups, and have their own"
        " below.\n\n"
        f"![what they share](coarse_to_fine_sharing.png)\n\n{text}\n"
        "Over 20 families of 10 pictures: the deviation of a pixel, and how many of the ten the classifier takes for"
        f" the class that is commonest among them ({alone:.2f} where nothing is shared).\n\nThe survey: high-level"
        f" latents set the context for the details. Here half of the groups {context} most of what class a"
        " picture is of.\n"
    )
    write("coarse_to_fine", "Figure 9: from coarse to fine", body, asked, numbers, budget)


def main() -> None:
    asked = arguments(__doc__)
    page(mz.load(gallery_run(SYSTEM)).eval(), asked, equal(SYSTEM))


if __name__ == "__main__":
    main()
