"""Figure 1: where the codes of pictures lie, in an autoencoder and in a VAE, and what random codes decode to.

    python reproductions/figure_1.py [--n 1000]

Both have codes of two numbers, the same networks and the same budget; the autoencoder minimises the squared error, the
VAE the same error with a deviation that it learns (a Gaussian decoder), and the divergence of its codes from N(0, I).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from harness import Asked, arguments, figure, judged, pictures, save, spent, table, trained, write
from harness import Row as TableRow
from torch import Tensor

import mezzotint as mz
from mezzotint.core.batch import PictureRandom
from mezzotint.core.model import Model
from mezzotint.data import spread_over
from mezzotint.data.grid import grid
from mezzotint.data.loader import PIXELS
from mezzotint.evaluation.features import to_levels
from mezzotint.evaluation.neighbours import precision_recall_density_coverage
from mezzotint.vae.autoencoders import Autoencoder
from mezzotint.vae.vae import VAE

SHOWN = 64  # random codes that are decoded in the figure
NEIGHBOURS = 5  # a random code is near that of a picture if it is no farther from it than this one's 5th neighbour
DENSITY, REACHED = "density of codes there", "share of codes reached"


@dataclass(frozen=True)
class Kind:
    """One column of the figure: a model, and how its random codes are drawn."""

    name: str
    model: Model
    controls: dict[str, str]  # of `sample`
    codes: Tensor  # of held-out pictures, (n, 2)
    random: Tensor  # codes of the first pictures that `sample` draws, (n, 2)


@torch.no_grad()
def codes_of(model: Autoencoder | VAE, n: int) -> tuple[Tensor, Tensor]:
    """Codes of n held-out pictures, drawn from the posterior where there is one, (n, 2), and the pictures' classes."""
    test = pictures("test")
    chosen = test.batch(spread_over(len(test), n))
    random = PictureRandom(range(n))
    shown = PIXELS[model.pixels or "levels"](to_levels(chosen.images), random)
    if isinstance(model, Autoencoder):
        return model.encode(shown), chosen.labels
    return model.posterior(shown).at(random.normal(2)), chosen.labels


def among(kind: Kind) -> dict[str, float]:
    """How densely the codes of pictures lie around random ones, and the share of them with a random one near.

    The first is 1 on average where both are distributed alike (Naeem et al. 2020, eq. 5): one far code of a picture,
    with much room around it, changes little of that.
    """
    found = precision_recall_density_coverage(kind.codes, kind.random, NEIGHBOURS)
    return {DENSITY: found.density, REACHED: found.coverage}


def draw(kinds: list[Kind], labels: Tensor) -> None:
    """Codes of pictures by class, circles of one and two deviations of the random codes, and what these decode to."""
    drawn, axes = figure("figure_1", nrows=2, ncols=len(kinds), figsize=(4 * len(kinds), 8))
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    for column, kind in enumerate(kinds):
        above, below = axes[0, column], axes[1, column]
        above.scatter(*kind.codes.T, c=labels, cmap="tab10", s=3, linewidths=0)
        mean, covariance = kind.random.mean(0).numpy(), torch.cov(kind.random.T).numpy()
        root = np.linalg.cholesky(covariance)
        for deviations in (1, 2):
            above.plot(*(mean[:, None] + deviations * root @ circle), color="black", linewidth=1)
        above.set(title=kind.name, aspect="equal", adjustable="datalim")
        with torch.no_grad():
            decoded = kind.model.decode(kind.random[:SHOWN])
        below.imshow(np.asarray(grid(decoded, scale=1)), cmap="gray")
        below.axis("off")
    save(drawn, "figure_1")


def make(asked: Asked, budget: int) -> None:
    """The page, after so many pictures of training for each model."""
    plain = mz.load(trained("figure_1_autoencoder", "autoencoder", "--set", "latent=2", pictures=budget))
    variational = mz.load(
        trained("figure_1_vae", "vae", "--set", "latent=2", "--set", "likelihood.kind=gaussian", pictures=budget)
    )
    (its, labels), (others, _) = codes_of(plain, asked.n), codes_of(variational, asked.n)

    def seeds() -> PictureRandom:
        return PictureRandom(range(asked.n))

    kinds = [
        Kind("autoencoder, z of N(0, I)", plain, {"codes": "standard"}, its, plain.random_codes(seeds(), fitted=False)),
        Kind("autoencoder, z of a fitted Gaussian", plain, {"codes": "fitted"}, its, plain.random_codes(seeds())),
        Kind("VAE, z of its prior N(0, I)", variational, {}, others, seeds().normal(2)),
    ]
    draw(kinds, labels)
    found = {kind.name: {**judged(kind.model, asked, **kind.controls), **among(kind)} for kind in kinds}
    rows = [TableRow(name, {}, values) for name, values in found.items()]
    heads = ("fd_classifier", "precision", "coverage", DENSITY, REACHED)
    standard, fitted, prior = (found[kind.name] for kind in kinds)
    better = "better" if prior["fd_classifier"] < fitted["fd_classifier"] else "**not** better"
    body = (
        "![codes and what random ones decode to](figure_1.png)\n\nAbove: codes of held-out pictures, a colour for each"
        " class; the VAE's are drawn from its posteriors. The black lines are one and two deviations of the random"
        f" codes. Below: what {SHOWN} random codes decode to.\n\n"
        f"{table(rows, (), heads, 'random codes')}\n"
        "The survey: a random code of an autoencoder often decodes to nothing that means anything; a VAE leaves no"
        " holes. Density is that of the codes of pictures around random ones, 1 where both are distributed alike: here"
        f" {standard[DENSITY]:.2f} for N(0, I) and {fitted[DENSITY]:.2f} for a Gaussian with the mean and covariance of"
        f" the autoencoder's codes, and {prior[DENSITY]:.2f} for the VAE's prior. Random ones come near"
        f" {share_of(standard[REACHED])}, {share_of(fitted[REACHED])} and {share_of(prior[REACHED])} of the codes of"
        f" pictures (as near as their {NEIGHBOURS}th neighbours)."
        f" Pictures of random codes are {better} in the VAE (FD {prior['fd_classifier']:.3g}) than in the autoencoder"
        f" with the fitted Gaussian ({fitted['fd_classifier']:.3g}); with N(0, I) the autoencoder has"
        f" {standard['fd_classifier']:.3g}.\n"
    )
    title = "Figure 1: codes of an autoencoder and of a VAE"
    write("figure_1", title, body, asked, found, f"{budget:,} pictures each, with codes of two numbers")


def share_of(value: float) -> str:
    return f"{100 * value:.0f} %"


if __name__ == "__main__":
    make(arguments(__doc__), spent("vae"))
