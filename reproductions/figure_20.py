"""Figure 20: ProGAN learns pictures of 4 pixels first, then of 8, 16 and 32.

    python reproductions/figure_20.py [--pictures 67200] [--n 1000]

One run, looked at each time before the next size is faded in. What is drawn is judged twice: beside pictures at their
full size, which it cannot match before it has grown, and beside pictures as it knows them at its present size.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from harness import PAGES, ROOT, classifier, keep, trained, write
from torch import Tensor

import mezzotint as mz
from mezzotint.core.records import read_metrics
from mezzotint.data import Pictures, open_pictures, spread_over
from mezzotint.data.grid import grid
from mezzotint.evaluation.distances import frechet_distance
from mezzotint.evaluation.features import ClassifierFeatures, FeatureNetwork
from mezzotint.gan.progan import Growing, ProGAN, reduced

SIZES = (4, 8, 16, 32)
BATCH, TURNS = 32, 2  # pictures of a turn, and turns of a step
PHASES = 2 * len(SIZES) - 1  # all but the first size are faded in before they are there whole
SHOWN = 20  # pictures of each size in the figure


@dataclass(frozen=True)
class Plan:
    """How long each phase lasts."""

    pictures: int  # in all

    @property
    def steps(self) -> int:
        """Of each phase."""
        return max(1, self.pictures // (BATCH * TURNS * PHASES))

    @property
    def ends(self) -> list[int]:
        """Pictures seen when each size has been there whole for as long as it was faded in."""
        growing = Growing(fade_steps=self.steps, stable_steps=self.steps)
        return [BATCH * TURNS * step for step in growing.ends(len(SIZES))]

    @property
    def run(self) -> str:
        """The name of its run."""
        return f"figure_20/{self.steps}"


def stages(plan: Plan) -> list[ProGAN]:
    """The averaged model at the end of each size, from a run that goes on from one to the next, or as kept before."""
    options = (
        "--image-size", str(SIZES[-1]), "--set", f"network.coarsest={SIZES[0]}", "--set", f"batch_size={BATCH}",
        "--set", f"growing.fade_steps={plan.steps}", "--set", f"growing.stable_steps={plan.steps}",
    )  # fmt: skip
    models = []
    for size, end in zip(SIZES, plan.ends):
        kept = ROOT / "runs" / "reproductions" / plan.run / f"at-{size}"
        if not kept.exists():
            run = trained(plan.run, "progan", *options, pictures=end)
            model = mz.load(run)
            if int(model.moves) != end // (BATCH * TURNS):
                raise SystemExit(
                    f"{run} has gone past its {size} pixels, and how it was then is not kept; delete it and start again"
                )
            shutil.copyfile(run / "metrics.jsonl", kept.with_suffix(".jsonl"))
            keep(model, kept)
        models.append(mz.load(kept).eval())
    return models


def minutes(file: Path) -> float:
    """Of the clock, for which a run had been trained when its journal looked so."""
    return max((line["seconds"] for line in read_metrics(file) if "seconds" in line), default=0.0) / 60


def enlarged(images: Tensor, size: int) -> Tensor:
    """Pictures (B, C, H, W) as a network of `size` pixels knows them, at their old size."""
    factor = images.shape[-1] // size
    return reduced(images, size).repeat_interleave(factor, 2).repeat_interleave(factor, 3)


@dataclass(frozen=True)
class Found:
    """What was measured at the end of one size."""

    size: int
    pictures: int  # seen
    minutes: float
    whole: float  # Frechet distance to pictures at their full size
    known: float  # to pictures reduced to this size
    reduced: float  # of pictures reduced to this size, from those at their full size


@torch.no_grad()
def distances(model: ProGAN, size: int, test: Pictures, network: FeatureNetwork, n: int) -> tuple[float, float, float]:
    """`Found.whole`, `Found.known` and `Found.reduced`, over n pictures each."""
    real = test.batch(spread_over(len(test), n)).images
    drawn = torch.cat([model.sample(len(part), seeds=part.tolist()) for part in torch.arange(n).split(250)])
    whole, known, fake = (
        torch.cat([network(part) for part in images.split(250)]) for images in (real, enlarged(real, size), drawn)
    )
    return frechet_distance(fake, whole), frechet_distance(fake, known), frechet_distance(known, whole)


def verdict(found: Sequence[Found]) -> str:
    """Whether it is better each time that it has grown, and what a second costs."""
    better = all(a.whole > b.whole for a, b in pairwise(found))
    spent = [found[0].minutes, *(b.minutes - a.minutes for a, b in pairwise(found))]
    share = sum(spent[:2]) / max(sum(spent), 1e-9)
    early = found[1].pictures / found[-1].pictures
    return (
        "The survey: growing, the networks come to draw finer and finer pictures. The distance to pictures at full"
        f" size {'falls with each size here' if better else 'does **not** fall with each size here'}. The first two"
        f" sizes took {share:.0%} of the time for {early:.0%} of the pictures.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=67_200, help="seen in all")
    parser.add_argument("--n", type=int, default=1000, help="samples of each judgement")
    asked = parser.parse_args()
    plan = Plan(asked.pictures)
    models = stages(plan)
    test = open_pictures("fashion", split="test", image_size=SIZES[-1])
    judge = ClassifierFeatures(classifier())
    found = []
    for model, size, end in zip(models, SIZES, plan.ends):
        journal = ROOT / "runs" / "reproductions" / plan.run / f"at-{size}.jsonl"
        found.append(Found(size, end, minutes(journal), *distances(model, size, test, judge, asked.n)))
        print(json.dumps(vars(found[-1])), flush=True)
    PAGES.mkdir(parents=True, exist_ok=True)
    rows = [model.sample(SHOWN, seeds=0) for model in models]
    grid(torch.cat(rows), columns=SHOWN, scale=2).save(PAGES / "figure_20.png")
    text = (
        "| pixels | pictures seen | minutes | FD to pictures | FD to pictures of so many pixels |"
        " FD of these to pictures |\n|---|---|---|---|---|---|\n"
    )
    for row in found:
        text += (
            f"| {row.size} | {row.pictures:,} | {row.minutes:.1f} | {row.whole:.1f} | {row.known:.1f} |"
            f" {row.reduced:.1f} |\n"
        )
    body = (
        f"![growing](figure_20.png)\n\nThe same {SHOWN} seeds in each row, drawn by one network after it has learned"
        f" pictures of {', '.join(map(str, SIZES))} pixels.\n\n{text}\n{verdict(found)}\n"
        "FD is over the features of the gallery's classifier (no FID); the last column is what the best generator of so"
        " many pixels would have in the fourth.\n"
    )
    protocol = (
        f"Made by `python reproductions/figure_20.py --pictures {asked.pictures} --n {asked.n}`: `progan`, size"
        f" `small`, on `fashion` pictures enlarged to 32 x 32, from {SIZES[0]} pixels on; {plan.steps} steps of {BATCH}"
        f" pictures for each player in each of {PHASES} phases; averaged weights; {asked.n} samples and as many"
        " held-out pictures, seeds from 0. Minutes are of the clock; the machine may have had other work.\n"
    )
    write("figure_20", "Figure 20: growing", body, None, [vars(row) for row in found], "", protocol)


if __name__ == "__main__":
    main()
