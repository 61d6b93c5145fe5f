"""Figure 16: where a discriminator is sure, its gradient is gone; a critic's is not.

    python reproductions/figure_16.py [--steps 800]

A discriminator and two critics learn to tell two Gaussians of one dimension apart, of which one is drawn by a
generator that has not come near. What the generator would learn from each is the slope of its loss by a point; the
slope of the saturating loss (survey, eq. 34), of the non-saturating one (eq. 36), and of the critics (eq. 38).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from harness import figure, save, write
from torch import Tensor

from mezzotint.gan.losses import LOSSES, UNANCHORED, optimal_score
from mezzotint.gan.networks import Discriminator, MLPConfig
from mezzotint.gan.penalties import Clipping, GradientPenalty, NoPenalty, PenaltyConfig

REAL, FAKE, STD = -2.0, 2.0, 0.5  # means and deviation: eight deviations apart
BATCH = 128
NETWORK = MLPConfig((32, 64))
SPAN = (-5.0, 5.0)


def gaussian(x: Tensor, mean: float) -> Tensor:
    return (-((x - mean) ** 2) / (2 * STD**2)).exp() / (STD * (2 * torch.pi) ** 0.5)


def points(x: Tensor) -> Tensor:
    """Numbers, (B,) or (B, 1), as pictures of one pixel, (B, 1, 1, 1)."""
    return x.view(-1, 1, 1, 1)


def trained(loss: str, penalty: PenaltyConfig, steps: int, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """The score of points (B,), after so many steps of Adam in which the generator stands still."""
    torch.manual_seed(seed)
    network = Discriminator(lambda channels: NETWORK.discriminator(channels, 1), 1, 0, "none", False,
                            loss not in UNANCHORED)  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, (0.5, 0.99))

    def score(x: Tensor) -> Tensor:
        found: Tensor = network(points(x)).score
        return found

    for _ in range(steps):
        real, fake = (mean + STD * torch.randn(BATCH, 1) for mean in (REAL, FAKE))
        cost = LOSSES[loss].discriminator(score(real), score(fake))
        slope = penalty(score, real, fake, torch.rand(BATCH), torch.zeros(()))
        optimizer.zero_grad()
        (cost if slope is None else cost + slope).mean().backward()
        optimizer.step()
        if isinstance(penalty, Clipping):
            penalty.clip(network)
    return score


def slope(loss: str, score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """d/dx of what the generator minimises, at generated points x, (B,)."""
    x = x.detach().requires_grad_(True)
    given = score(x)
    (found,) = torch.autograd.grad(LOSSES[loss].generator(given, given).sum(), x)
    return found


@dataclass(frozen=True)
class Line:
    """One curve: whose score, and what of it the generator is given."""

    name: str
    player: str
    loss: str


LINES = (
    Line("GAN, saturating", "discriminator", "saturating"),
    Line("GAN, non-saturating", "discriminator", "non-saturating"),
    Line("WGAN, clipping", "clipped", "wasserstein"),
    Line("WGAN-GP", "penalised", "wasserstein"),
    Line("optimal discriminator, saturating", "optimal", "saturating"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=800, help="of the discriminator and of each critic")
    steps = parser.parse_args().steps
    scores: dict[str, Callable[[Tensor], Tensor]] = {
        "discriminator": trained("saturating", NoPenalty(), steps),
        "clipped": trained("wasserstein", Clipping(0.1), steps),
        "penalised": trained("wasserstein", GradientPenalty(), steps),
        # of two Gaussians of one deviation it is a line
        "optimal": lambda x: optimal_score(gaussian(x, REAL), gaussian(x, FAKE)),
    }
    x = torch.linspace(*SPAN, 401, dtype=torch.float32)
    generated = FAKE + STD * torch.linspace(-3, 3, 61)
    rows = []
    for line in LINES:
        at = slope(line.loss, scores[line.player], x if line.player != "optimal" else x.double())
        near = slope(line.loss, scores[line.player], generated.double() if line.player == "optimal" else generated)
        share = float((near > 0).float().mean())  # descending such a slope goes left, to the real points
        rows.append({"name": line.name, "median": float(near.abs().median()), "smallest": float(near.abs().min()),
                     "largest": float(near.abs().max()), "towards real": share, "slope": at.tolist()})  # fmt: skip
    drawn, (left, right) = figure("figure_16", ncols=2, figsize=(10, 3.6))
    for mean, name in ((REAL, "real"), (FAKE, "generated")):
        left.fill_between(x, gaussian(x, mean), alpha=0.2, label=name)
    with torch.no_grad():
        left.plot(x, torch.sigmoid(scores["discriminator"](x)), label="D(x)")
        for name, label in (("clipped", "critic, clipping"), ("penalised", "critic, gradient penalty")):
            values = scores[name](x)
            middle = scores[name](torch.zeros(1))
            left.plot(x, (values - middle) / (values - middle).abs().max(), label=label)
    left.set(xlabel="x", ylabel="density, D, and scaled scores")
    left.legend(frameon=False, fontsize=8)
    for row in rows:
        dashed = "--" if row["name"].startswith("optimal") else "-"
        right.plot(x, torch.tensor(row["slope"]).abs().clamp_min(1e-16), dashed, label=row["name"])
    right.axvspan(FAKE - 3 * STD, FAKE + 3 * STD, color="grey", alpha=0.15, lw=0)
    right.set(xlabel="x", ylabel="slope of the generator's loss", yscale="log", ylim=(1e-14, 1e2))
    right.legend(frameon=False, fontsize=8, loc="lower left")
    save(drawn, "figure_16")
    text = "| loss | median slope | smallest | largest | share towards real points |\n|---|---|---|---|---|\n"
    for row in rows:
        numbers = [f"{row[name]:.2g}" for name in ("median", "smallest", "largest")]
        text += f"| {row['name']} | " + " | ".join(numbers) + f" | {row['towards real']:.0%} |\n"
    median = {row["name"]: row["median"] for row in rows}
    sat, keeps = median["GAN, saturating"], min(median["WGAN, clipping"], median["WGAN-GP"])
    body = (
        "![slopes](figure_16.png)\n\nLeft: two Gaussians eight deviations apart, what a discriminator says of them, and"
        " the scores of two critics. Right: how steep the generator's loss is at each point; grey: three deviations"
        " around the mean of generated points, over which the table goes.\n\n"
        f"{text}\nThe survey: the critic has a clear gradient everywhere, where that of the discriminator vanishes."
        f" {'That holds here' if sat < 0.01 * keeps else 'That does **not** hold here'}: the median slope of the"
        f" saturating loss is {sat:.2g}, and the smaller of the two critics' is {keeps:.2g}. The non-saturating loss,"
        f" which most GANs have in its place, has {median['GAN, non-saturating']:.2g}.\n"
    )
    protocol = (
        f"Made by `python reproductions/figure_16.py --steps {steps}`: N({REAL:g}, {STD:g}^2) and N({FAKE:g},"
        f" {STD:g}^2), networks of {NETWORK.widths[1]} and {NETWORK.widths[0]} neurons, batches of {BATCH}, Adam at"
        " 0.001, weights clipped at 0.1, gradient penalty 10, seed 0; the generator stands still.\n"
    )
    kept = [{key: value for key, value in row.items() if key != "slope"} for row in rows]
    write("figure_16", "Figure 16: the gradient that is left", body, None, kept, "", protocol)


if __name__ == "__main__":
    main()
