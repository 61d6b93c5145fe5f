"""What every reproduction shares: runs of the gallery, one judge, one protocol, and a page for each table or figure.

Where a script compares runs as the gallery has them, it takes those in runs/gallery/, or makes them with the very
command of the gallery; others it trains itself. Networks are those of the `small` sizes, all runs of one page have seen
equally many pictures, and all samples are judged against the same held-out pictures with the features of the same
classifier. What a script found goes to gallery/reproductions/NAME.md, with its figure beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

import mezzotint as mz
from mezzotint.core.model import Model
from mezzotint.data import Pictures, open_pictures
from mezzotint.evaluation.evaluate import evaluate

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "gallery"
PAGES = ROOT / "gallery" / "reproductions"
METRICS = ("fd_classifier", "precision", "recall", "coverage", "class_accuracy")
HEADINGS = {
    "fd_classifier": "FD (classifier)",
    "precision": "precision",
    "recall": "recall",
    "coverage": "coverage",
    "class_accuracy": "recognised",
    "bits_per_dim": "bits/dim",
    "is_classifier": "Inception Score (classifier)",
}


@dataclass(frozen=True)
class Asked:
    """The command line of a reproduction."""

    n: int  # samples of each judgement
    likelihood_n: int  # pictures of each likelihood


def arguments(description: str | None) -> Asked:
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=1000, help="samples of each judgement")
    parser.add_argument("--likelihood-n", type=int, default=100, help="pictures of each likelihood")
    return Asked(**vars(parser.parse_args()))


def gallery_run(system: str) -> Path:
    """The finished run of the gallery, trained now if there is none."""
    run = RUNS / system
    if not run.exists():
        subprocess.run([sys.executable, "gallery/make.py", system], cwd=ROOT, check=True)
    if not (run / "trained.json").exists():
        sys.exit(f"{run} is still in training, or was interrupted; finish it with `python gallery/make.py {system}`")
    return run


def spent(system: str) -> int:
    """How many pictures the gallery's run of this system saw, over all its stages."""
    return int(json.loads((gallery_run(system) / "trained.json").read_text())["pictures"])


def trained(name: str, system: str, *options: str, pictures: int, data: str = "fashion") -> Path:
    """A run that differs from the gallery's in some settings; trained now, or further, if it has not come so far."""
    run = ROOT / "runs" / "reproductions" / name
    line = ["train", system, "--data", data, "--pictures", str(pictures), *options, "--resume", "--out", str(run)]
    subprocess.run([sys.executable, "-m", "mezzotint", *line], cwd=ROOT, check=True)
    return run


def keep(model: Model, place: Path) -> None:
    """Save a model as it is now; the place holds all of it or nothing."""
    half = place.with_suffix(".partial")
    shutil.rmtree(half, ignore_errors=True)
    model.save(half)
    half.rename(place)


@cache
def pictures(split: str) -> Pictures:
    return open_pictures("fashion", split=split)


@cache
def classifier() -> Model:
    return mz.load(gallery_run("classifier"))


def judged(
    model: Model, asked: Asked, likelihood: bool = False, more: Sequence[str] = (), **controls: Any
) -> dict[str, float]:
    """Every number of `METRICS` (bits/dim, and what else is named) of one model with these controls of sampling."""
    n = asked.likelihood_n if likelihood else 0
    found = evaluate(model, pictures("test"), n=asked.n, classifier=classifier(), controls=controls, likelihood_n=n)
    values = {number.name: number.value for number in found.numbers}
    print(controls, {name: round(value, 3) for name, value in values.items()}, flush=True)
    return {name: values[name] for name in (*METRICS, "bits_per_dim", *more) if name in values}


@dataclass(frozen=True)
class Row:
    """One line of a table: its name, what the survey prints for it, and what was measured here."""

    name: str
    survey: Mapping[str, str]
    here: Mapping[str, float]


def table(rows: Sequence[Row], survey: Sequence[str], here: Sequence[str], first: str = "model") -> str:
    """Markdown: the survey's numbers, then ours."""
    heads = [first, *(f"{name} (survey)" for name in survey), *(f"{HEADINGS.get(name, name)} (here)" for name in here)]
    text = "| " + " | ".join(heads) + " |\n|" + "---|" * len(heads) + "\n"
    for row in rows:
        ours = [f"{row.here[name]:.4g}" if name in row.here else "" for name in here]
        text += "| " + " | ".join([row.name, *(row.survey.get(name, "") for name in survey), *ours]) + " |\n"
    return text


def agrees(expected: Sequence[str], values: Mapping[str, float], lower_is_better: bool = True) -> str:
    """Whether names, best first, come in the order of their values; in one plain sentence."""
    ordered = sorted(expected, key=lambda name: values[name], reverse=not lower_is_better)
    said = " < ".join(expected) if lower_is_better else " > ".join(expected)
    if list(expected) == ordered:
        return f"The survey's order ({said}) holds here."
    found = " < ".join(ordered) if lower_is_better else " > ".join(ordered)
    return f"The survey's order ({said}) does **not** hold at this scale; here it is {found}."


def write(
    name: str, title: str, body: str, asked: Asked | None, rows: Any, budget: str, protocol: str | None = None
) -> None:
    """gallery/reproductions/NAME.md and NAME.json.

    budget    what the runs have seen: "20,000 pictures each"
    protocol  in place of the usual one; what was asked is then not said again
    """
    PAGES.mkdir(parents=True, exist_ok=True)
    threads = os.environ.get("OMP_NUM_THREADS", str(torch.get_num_threads()))
    protocol = protocol or (
        f"Made by `python reproductions/{name}.py --n {asked.n} --likelihood-n {asked.likelihood_n}` (threads:"
        f" {threads}): `fashion`, 10,000 of the pictures of Fashion-MNIST, 28 x 28, size `small` but for what is said"
        f" above, trained on {budget}; {asked.n} samples against {min(asked.n, len(pictures('test')))} held-out"
        " pictures, features of the gallery's classifier (no FID), seeds from 0.\n"
    )
    (PAGES / f"{name}.md").write_text(f"# {title}\n\n{body.strip()}\n\n{protocol}")
    (PAGES / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(f"gallery/reproductions/{name}.md")


def equal(*systems: str) -> str:
    """The budget of these runs of the gallery in words, whether it was one or not."""
    seen = {system: spent(system) for system in systems}
    if len(set(seen.values())) == 1:
        return f"{next(iter(seen.values())):,} pictures each, over all stages"
    return "**unequal** numbers of pictures, " + ", ".join(f"{system}: {count:,}" for system, count in seen.items())


def figure(name: str, **size: Any) -> tuple[Any, Any]:
    """A matplotlib figure and axes in the house's style; save with `save`."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "figure.dpi": 110})
    return pyplot.subplots(layout="constrained", **size)


def save(drawn: Any, name: str) -> None:
    PAGES.mkdir(parents=True, exist_ok=True)
    drawn.savefig(PAGES / f"{name}.png", metadata={"Software": None})
