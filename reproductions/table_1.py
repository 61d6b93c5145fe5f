"""Table I and figure 19: three ways of telling a discriminator the class.

    python reproductions/table_1.py [--n 5000] [--pictures 100000]

The discriminator names the class (AC-GAN), sees it beside the picture (concat), or compares it with what it sees
(projection). All else is the same: generator, convolutions, loss, penalty, rates and the number of pictures. Of the
last one there is a second run, twice as long. The score is that of the gallery's classifier in the place of Inception.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from harness import PAGES, Asked, Row, agrees, classifier, gallery_run, judged, pictures, spent, table, trained, write
from torch import Tensor

import mezzotint as mz
from mezzotint.core.model import Model
from mezzotint.data import spread_over
from mezzotint.data.grid import grid
from mezzotint.evaluation.distances import accuracy, inception_score

SURVEY = {
    "AC-GAN": "28.5 ± 0.20",
    "concat": "21.1 ± 0.35",
    "projection": "29.7 ± 0.61",
    "projection, longer": "36.8 ± 0.44",
}
ORDER = ("projection", "AC-GAN", "concat")  # of the survey, the best first
LONGER = 2  # times as many pictures
SPLITS = 10  # of the score, as everywhere
SHOWN = 3  # rows of the figure for each run
PROJECTION = ("--set", "conditioning=projection")
LABEL = "is_classifier"


@dataclass(frozen=True)
class Runs:
    """Where they are, and what they have seen."""

    places: Mapping[str, Path]
    seen: Mapping[str, int]


def runs(budget: int | None) -> Runs:
    """The gallery's cgan and ac-gan, or, where a budget is given, others of that many pictures; and projection."""

    def told(system: str) -> Path:
        if budget is None:
            return gallery_run(system)
        return trained(f"table_1/{system}-{budget}", system, pictures=budget)

    seen = spent("cgan") if budget is None else budget
    places = {"AC-GAN": told("ac-gan"), "concat": told("cgan")}
    counts = {"AC-GAN": spent("ac-gan") if budget is None else budget, "concat": seen}
    for name, count in (("projection", seen), ("projection, longer", LONGER * seen)):
        places[name] = trained(f"table_1/projection-{count}", "cgan", *PROJECTION, pictures=count)
        counts[name] = count
    return Runs(places, counts)


@torch.no_grad()
def of_real_pictures(classify: Callable[[Tensor], Tensor], n: int) -> dict[str, float]:
    """Score and accuracy of n held-out pictures, which no generator can be expected to surpass."""
    test = pictures("test")
    chosen = spread_over(len(test), n)
    batches = [test.batch(chosen[i : i + 250]) for i in range(0, len(chosen), 250)]
    logits = torch.cat([classify(batch.images) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    return {LABEL: inception_score(logits, SPLITS).mean, "class_accuracy": accuracy(logits, labels)}


def classes_in_columns(models: Mapping[str, Model], rows: int) -> Tensor:
    """Pictures of each class in a column, and so many rows of each model below those of the one before it."""
    count = len(pictures("test").spec.classes)
    labels = torch.arange(rows * count) % count
    return torch.cat([model.sample(len(labels), labels=labels, seeds=0) for model in models.values()])


def verdict(score: Mapping[str, float], accuracies: Mapping[str, float]) -> str:
    """What holds and what does not."""
    short, long = score["projection"], score["projection, longer"]
    named = sorted(ORDER, key=lambda name: -accuracies[name])
    longer = "raises it here too" if long > short else "does **not** raise it here"
    return (
        f"Inception Score: {agrees(ORDER, score, lower_is_better=False)}\n\n"
        f"In the survey longer training raises the score of projection; it {longer}: {long:.3f} after {LONGER} times as"
        f" many pictures, {short:.3f} before.\n\n"
        "The survey gives no share of samples whose class is recognised; here the order is"
        f" {' > '.join(named)}. An auxiliary classifier asks of the generator that very thing, the others do not.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=5000, help="samples of each judgement")
    parser.add_argument("--pictures", type=int, help="seen by each run; by default those of the gallery's")
    options = parser.parse_args()
    found = runs(options.pictures)
    models = {name: mz.load(place).eval() for name, place in found.places.items()}
    rows = []
    for name, model in models.items():
        here = judged(model, Asked(options.n, 0), more=[LABEL])
        rows.append(Row(name, {"Inception Score, ImageNet": SURVEY[name]}, here))
    real = of_real_pictures(classifier().eval().classify, options.n)
    rows.append(Row("held-out pictures", {}, real))
    PAGES.mkdir(parents=True, exist_ok=True)
    shown = classes_in_columns(models, SHOWN)
    grid(shown, columns=len(pictures("test").spec.classes)).save(PAGES / "table_1.png")
    score, named = ({row.name: row.here[what] for row in rows} for what in (LABEL, "class_accuracy"))
    heads = [LABEL, "class_accuracy", "fd_classifier", "precision", "recall"]
    seen = ", ".join(f"{name}: {count:,}" for name, count in found.seen.items())
    body = (
        f"{table(rows, ['Inception Score, ImageNet'], heads, first='method')}\n{verdict(score, named)}\n"
        f"![samples](table_1.png)\n\n{SHOWN} rows each of {', '.join(models)}, a class in each column, with the same"
        " seeds (figure 19).\n\nThe survey's numbers are of ImageNet and of much larger networks, and its scores those"
        " of Inception. Here the score is that of the gallery's classifier, which knows 10 classes, and so at most 10."
        " There is one run of each: small differences are within the scatter of runs.\n"
    )
    asked = f" --pictures {options.pictures}" if options.pictures else ""
    protocol = (
        f"Made by `python reproductions/table_1.py --n {options.n}{asked}`: `fashion`, 10,000 of the pictures of"
        f" Fashion-MNIST, 28 x 28, size `small`, the networks of `cgan`; pictures seen: {seen}; {options.n} samples,"
        f" class k mod 10, {SPLITS} splits of the score, {min(options.n, len(pictures('test')))} held-out pictures,"
        " seeds from 0.\n"
    )
    write("table_1", "Table I: telling the class", body, None, {row.name: dict(row.here) for row in rows}, "", protocol)


if __name__ == "__main__":
    main()
