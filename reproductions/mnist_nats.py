"""Nats of dynamically binarised MNIST: VAE, IWAE and hierarchies beside what was published, and FVSBN and MADE.

    python reproductions/mnist_nats.py [--epochs 15] [--minutes 30] [--samples 5000] [--n 1000] [--only NAME ...]

VAE and IWAE with 5 and 50 draws, all with the network of Burda et al. 2016, see equally many pictures; every other row
has equally many minutes on one core, the baselines FVSBN and MADE a third of them. Pictures are binarised anew whenever
they are seen, in training and here (the fixed binarisation of other papers is another data set). -ln p(x) is estimated
by importance sampling, which is too high on average, and exact for the autoregressive ones. Where 5,000 draws of a
thousand pictures take hours, the bound of one draw is found for all, and how much many draws add for a part of them.
`make data` brings the pictures. A run that is there goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import ROOT, agrees, figure, save, write

import mezzotint as mz
from mezzotint.core.model import HasLogProb, Model
from mezzotint.core.records import read_metrics
from mezzotint.data import Pictures, open_pictures, spread_over
from mezzotint.evaluation.likelihood import as_shown

TRAINING = 60_000  # pictures
BATCH = 20  # held-out pictures at a time
BINARY = ("--set", "likelihood.kind=bernoulli")
PUBLISHED = ("--size", "paper")
WHOLE_BOUND = ("--set", "objective.beta=1", "--set", "objective.warmup_steps=0")


@dataclass(frozen=True)
class Entry:
    """One row."""

    name: str
    system: str
    options: tuple[str, ...]
    published: str  # of the whole recipe, and on which binarisation
    together: bool = False  # trained for so many passes, not minutes
    part: int = 1  # many draws are weighed of one picture in so many
    share: float = 1.0  # of the minutes


# VAE and IWAE: table 1 of Burda et al. 2016. FVSBN and MADE: those of pytorch-generative. *: as later papers have them,
# in a table where both binarisations stand side by side
ENTRIES = (
    Entry("FVSBN", "fvsbn", (), "96.58", share=1 / 3),
    Entry("MADE, 1 x 1000", "made", (), "84.87 (8000 units)", share=1 / 3),
    Entry("VAE", "vae", PUBLISHED, "86.76", together=True),
    Entry("IWAE-5", "iwae", (*PUBLISHED, "--set", "objective.samples=5"), "85.54", together=True),
    Entry("IWAE-50", "iwae", PUBLISHED, "84.78", together=True),
    Entry("VAE, longer", "vae", PUBLISHED, "86.76"),
    Entry("IWAE-5, longer", "iwae", (*PUBLISHED, "--set", "objective.samples=5"), "85.54"),
    Entry("ladder VAE, small", "ladder-vae", BINARY, "", part=10),
    Entry("DRAW, small", "draw", BINARY, "80.97 (64 steps) *", part=10),
    Entry("VDVAE, small", "vdvae", (*BINARY, *WHOLE_BOUND), "", part=40),
    Entry("PixelVAE, small", "pixelvae", BINARY, "79.66 *", part=40),
)


@dataclass(frozen=True)
class Found:
    """What became of a row."""

    nats: float
    error: float
    exact: bool
    pictures: int  # measured on
    weighed: int  # of them, with all draws
    samples: int
    seen: int  # in training
    minutes: float
    held_out: list[tuple[float, float]]  # (passes, loss on held-out pictures) while it was trained


def train(entry: Entry, budget: tuple[str, str]) -> Path:
    """Trained now, or further, if it has not come so far."""
    run = ROOT / "runs" / "mnist" / entry.name.replace(",", "").replace(" ", "-").lower()
    line = ["train", entry.system, "--data", "mnist", *budget, *entry.options, "--resume", "--out", str(run)]
    subprocess.run([sys.executable, "-m", "mezzotint", *line], cwd=ROOT, check=True)
    return run


@torch.no_grad()
def measure(model: Model, test: Pictures, n: int, part: int, samples: int) -> tuple[float, float]:
    """-ln p(x) of n held-out pictures, nats, and its standard error; random bits and draws of seeds from 0.

    One picture in `part` is weighed by all draws. For the others the bound of one draw stands, from which the mean of
    what many draws add to it is taken: the difference of a picture's two bounds varies far less than either.
    """
    chosen = spread_over(len(test), n)
    nats, gains = [], []
    for start in range(0, len(chosen), BATCH):
        seeds = list(range(start, min(start + BATCH, len(chosen))))
        x = as_shown(test.batch(chosen[start : start + BATCH]).images, "binary", seeds, model.device)
        if isinstance(model, HasLogProb):
            nats.append(-model.log_prob(x).double())
            continue
        one = model.elbo(x, seeds=seeds).double()
        nats.append(-one)
        of = [k for k, seed in enumerate(seeds) if seed % part == 0]
        if of:
            many = model.elbo(x[of], seeds=[seeds[k] for k in of], samples=samples).double()
            gains.append(many - one[of])
    parts = [torch.cat(nats), *([-torch.cat(gains)] if gains else [])]
    if part == 1 and gains:
        parts = [parts[0] + parts[1]]  # all draws of every picture
    error = sum(float(values.var() / len(values)) for values in parts) ** 0.5
    return sum(float(values.mean()) for values in parts), error


def row(entry: Entry, asked: argparse.Namespace, test: Pictures) -> Found:
    """Train and measure."""
    passes = ("--pictures", str(asked.epochs * TRAINING))
    run = train(entry, passes if entry.together else ("--minutes", f"{asked.minutes * entry.share:g}"))
    model = mz.load(run).eval()
    exact = isinstance(model, HasLogProb)
    nats, error = measure(model, test, asked.n, entry.part, asked.samples)
    lines = list(read_metrics(run / "metrics.jsonl"))
    curve = [(line["step"], line["preview/held_out_loss"]) for line in lines if "preview/held_out_loss" in line]
    last = [line for line in lines if "pictures" in line][-1]
    each = last["pictures"] / last["step"] / TRAINING
    return Found(
        nats, error, exact, asked.n, asked.n // entry.part, 1 if exact else asked.samples, int(last["pictures"]),
        last["seconds"] / 60, [(step * each, loss) for step, loss in curve],
    )  # fmt: skip


def page(found: Mapping[str, Found], asked: argparse.Namespace) -> None:
    """mnist_nats.md with its figure and numbers."""
    text = (
        "| model | published | here | standard error | value | pictures | passes | minutes |\n"
        "|---|---|---|---|---|---|---|---|\n"
    )
    for entry in ENTRIES:
        if (its := found.get(entry.name)) is None:
            continue
        value = "exact" if its.exact else f"bound, {its.samples:,} draws"
        if its.weighed < its.pictures:
            value += f" of {its.weighed}"
        text += (
            f"| {entry.name} | {entry.published} | {its.nats:.2f} | {its.error:.2f} | {value} | {its.pictures:,} |"
            f" {its.seen / TRAINING:.1f} | {its.minutes:.0f} |\n"
        )
    drawn, axes = figure("mnist_nats", figsize=(6.5, 4))
    for number, (name, its) in enumerate(found.items()):
        if its.held_out:  # there are ten colours
            axes.plot(*zip(*its.held_out), "o-" if number < 10 else "s--", ms=3, label=name)
    axes.set(xlabel="passes over the training pictures", ylabel="loss on held-out pictures, nats", xscale="log")
    if axes.get_lines():
        axes.legend(frameon=False, fontsize=8)
    save(drawn, "mnist_nats")
    order = ["IWAE-50", "IWAE-5", "VAE"]
    said = ""
    if all(name in found for name in order):
        said = agrees(order, {name: found[name].nats for name in order}).replace("The survey's", "The published")
        said = f"\n{said} ({found['VAE'].seen / TRAINING:.0f} passes each.)\n"
    body = (
        f"{text}{said}\n![while they are trained](mnist_nats.png)\n\nThe loss of each on 256 held-out pictures while it"
        " is trained: the bound that it minimises, of 1, 5 or 50 draws, for those that know no more. Where many draws"
        " are of fewer pictures, the others have the bound of one, and what many add on average. *: quoted by later"
        " papers in a table in which both binarisations stand side by side.\n"
        "\nNetworks called small are those that the catalogue has for a few minutes, not those of the papers.\n"
    )
    protocol = (
        f"Made by `python reproductions/mnist_nats.py --epochs {asked.epochs} --minutes {asked.minutes:g} --samples"
        f" {asked.samples} --n {asked.n}` (threads: {torch.get_num_threads()}): MNIST, **dynamically** binarised, in"
        " training and in measuring; -ln p(x) in nats per picture, importance sampling from the posterior, seeds from"
        " 0. Published numbers come from recipes that are far longer, that of VAE and IWAE 219 times the 15 passes.\n"
    )
    rows: dict[str, Any] = {name: vars(its) for name, its in found.items()}
    write("mnist_nats", "Nats of dynamically binarised MNIST", body, None, rows, "", protocol)


def kept(place: Path) -> dict[str, Found]:
    """What was measured before."""
    rows = json.loads(place.read_text()) if place.exists() else {}
    return {name: Found(**values) for name, values in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15, help="passes of those that are compared at equal passes")
    parser.add_argument("--minutes", type=float, default=30.0, help="for each of the others")
    parser.add_argument("--samples", type=int, default=5000, help="draws of each picture's importance sampling")
    parser.add_argument("--n", type=int, default=1000, help="held-out pictures measured")
    parser.add_argument("--only", nargs="*", metavar="NAME", choices=[entry.name for entry in ENTRIES])
    asked = parser.parse_args()
    test = open_pictures("mnist", split="test")
    place = ROOT / "runs" / "mnist" / "found.json"
    found = kept(place)
    for entry in ENTRIES:
        if asked.only is None or entry.name in asked.only:
            its = row(entry, asked, test)
            print(f"{entry.name}: {its.nats:.2f} +- {its.error:.2f} nats", flush=True)
            found = kept(place) | {entry.name: its}  # what another has measured meanwhile stays
            place.write_text(json.dumps({name: vars(value) for name, value in found.items()}, indent=1))
    page({entry.name: found[entry.name] for entry in ENTRIES if entry.name in found}, asked)


if __name__ == "__main__":
    main()
