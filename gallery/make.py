"""Train, sample and judge every system of the gallery through the command, and write its pages and numbers.

    python gallery/make.py [--jobs 2] [SYSTEM ...]

Writes gallery/README.md, a page and a picture for each system, and src/mezzotint/gallery.json, which
`mezzotint describe` reads. A system that was trained before, in runs/gallery/, is only drawn and judged again unless
`--anew` is given. With `--jobs 2`, two systems at a time have one core each.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from mezzotint.core.batch import PictureSpec
from mezzotint.systems import find

ROOT = Path(__file__).resolve().parents[1]
GALLERY = ROOT / "gallery"
NUMBERS = ROOT / "src" / "mezzotint" / "gallery.json"
RUNS = "runs/gallery"
JUDGE = f"{RUNS}/classifier"
JUDGED = f"--data fashion --n 1000 --classifier {JUDGE}"
SLOWLY_JUDGED = f"{JUDGED} --likelihood-n 50"  # where a likelihood takes many evaluations of a network
SHOWN = (
    "fd_classifier",
    "precision",
    "recall",
    "coverage",
    "class_accuracy",
    "bits_per_dim",
    "kl",
    "active_units",
    "codes_used",
    "code_perplexity",
    "accuracy",
    "restored_mse",
)


@dataclass(frozen=True)
class Entry:
    """One page: how a system was trained, drawn from and judged."""

    system: str
    pictures: int = 40_000  # seen in training, over all stages
    data: str = "fashion"
    train: str = ""  # further options of `mezzotint train`
    controls: str = ""  # options of `mezzotint sample` and `evaluate`
    begin: str = ""  # what `mezzotint sample` begins from, where `evaluate` knows it
    evaluate: str = JUDGED
    draws: str = "sample"  # the command that makes the picture; "": there is none
    note: str = ""  # what one must know to read its picture, or to compare its numbers with other rows


GUIDED = "--guidance 1"
ENTRIES = (
    Entry("classifier", pictures=150_000, evaluate="--data fashion", draws=""),
    Entry("autoencoder", pictures=200_000),
    Entry(
        "denoising-autoencoder",
        pictures=200_000,
        evaluate="--data fashion",
        draws="reconstruct",
        note="Its rows come in threes: test pictures, what it is shown of them, and what it makes of that.",
    ),
    Entry("generative-dae", pictures=300_000),
    Entry("vae", pictures=200_000),
    Entry("beta-vae", pictures=200_000),
    Entry("capacity-vae", pictures=200_000),
    Entry("pixelvae", pictures=100_000),
    Entry(
        "cvae",
        pictures=120_000,
        begin="--source fashion",
        note="Its samples complete test pictures of which it is given a quarter, which stays as it is; bits/dim are of"
        " the other three quarters.",
    ),
    Entry("semi-supervised-m1", pictures=220_000, evaluate="--data fashion", draws=""),
    Entry("semi-supervised-m2", pictures=100_000),
    Entry("semi-supervised-vae", pictures=360_000),
    Entry(
        "iwae", pictures=60_000, note="Bits/dim are of the bound of one draw, and not of the five it is trained with."
    ),
    Entry("draw", pictures=75_000),
    Entry("vq-vae", pictures=140_000),
    Entry("hierarchical-variational-model", pictures=200_000),
    Entry("iaf-vae", pictures=140_000),
    Entry("ladder-vae", pictures=200_000),
    Entry("vhp-vae", pictures=200_000),
    Entry("nvae", pictures=55_000),
    Entry("vdvae", pictures=55_000),
    Entry("gan", pictures=400_000),
    Entry("dcgan", pictures=200_000),
    Entry("improved-gan", pictures=120_000),
    Entry("semi-supervised-gan", pictures=300_000),
    Entry("instance-noise", pictures=120_000, train="--set annealing_steps=3000"),
    Entry("roth-gan", pictures=120_000, train="--set annealing_steps=3000"),
    Entry("wgan", pictures=300_000),  # of which the generator sees a sixth
    Entry("wgan-gp", pictures=240_000),
    Entry("r1-gan", pictures=160_000),
    Entry("cgan", pictures=160_000),
    Entry("ac-gan", pictures=160_000),
    Entry("projection-gan", pictures=50_000),
    Entry("biggan", pictures=40_000),
    Entry("progan", pictures=100_000),
    Entry("stylegan", pictures=100_000),
    Entry("stylegan2", pictures=100_000),
    Entry("stylegan2-ada", pictures=80_000),
    Entry("stylegan3-t", pictures=80_000),
    Entry("stylegan3-r", pictures=70_000),
    Entry("fvsbn", pictures=200_000),
    Entry("made", pictures=200_000),
    Entry("dpm", evaluate=SLOWLY_JUDGED),
    Entry("ddpm", controls=GUIDED, evaluate=SLOWLY_JUDGED),
    Entry("improved-ddpm", controls=GUIDED, evaluate=SLOWLY_JUDGED),
    Entry("score-sde-vp", controls=GUIDED, evaluate=SLOWLY_JUDGED),
    Entry("score-sde-ve", controls=GUIDED, evaluate=SLOWLY_JUDGED),
    Entry("score-sde-subvp", controls=GUIDED, evaluate=SLOWLY_JUDGED),
    Entry("noisy-classifier", evaluate="--data fashion", draws=""),
    Entry("adm", controls="--control classifier_guidance=1", evaluate=SLOWLY_JUDGED),
    Entry("edm", controls=f"{GUIDED} --solver ancestral --steps 40", evaluate=SLOWLY_JUDGED),
    Entry("dit", controls=GUIDED, evaluate=SLOWLY_JUDGED),
    Entry("progressive-distillation", evaluate=SLOWLY_JUDGED),
    Entry("consistency-distillation", controls="--steps 2", evaluate=SLOWLY_JUDGED),
    Entry("consistency-training", train="--set total_steps=2500", controls="--steps 2", evaluate=SLOWLY_JUDGED),
    Entry("dmd", evaluate=SLOWLY_JUDGED),
    Entry("dfno", evaluate=SLOWLY_JUDGED),
    Entry("neural-ode", pictures=12_000, evaluate=SLOWLY_JUDGED),
    Entry("rectified-flow", controls=GUIDED, evaluate=SLOWLY_JUDGED),
    Entry("reflow", evaluate=SLOWLY_JUDGED),
    Entry("improved-rectified-flow", evaluate=SLOWLY_JUDGED),
    Entry("boundary-rectified-flow", controls=GUIDED, evaluate=SLOWLY_JUDGED),
    Entry(
        "rectified-transport",
        data="'fashion/ankle boot' --source fashion/sneaker",
        controls="--source fashion/sneaker",
        evaluate=f"--data 'fashion/ankle boot' --n 500 --classifier {JUDGE}",
    ),
    Entry("flow-matching-ot", controls=GUIDED, evaluate=SLOWLY_JUDGED),
    Entry("flow-matching-diffusion", controls=GUIDED, evaluate=SLOWLY_JUDGED),
    Entry("optimal-flow-matching", evaluate=SLOWLY_JUDGED),
)


class Failed(Exception):
    """A command ended with an error."""


def command(line: str, threads: int) -> dict:
    """Run one `mezzotint` command with --json; what it answered."""
    print(f"$ mezzotint {line}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "mezzotint", *shlex.split(line), "--json"],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    if done.returncode:
        raise Failed(f"mezzotint {line}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def train(entry: Entry, threads: int, anew: bool) -> tuple[str, dict]:
    """The command that trains a system, and what it answered, now or before."""
    run = f"{RUNS}/{entry.system}"
    line = f"train {entry.system} --data {entry.data} --pictures {entry.pictures} {entry.train} --seed 0 --out {run}"
    line = " ".join(line.split())
    facts = ROOT / run / "trained.json"
    if anew or not facts.exists():
        shutil.rmtree(ROOT / run, ignore_errors=True)
        began = time.monotonic()
        command(line, threads)  # its answer is about the last stage; what is told here is about all
        spent = {"seconds": time.monotonic() - began, "pictures": entry.pictures, "threads": threads}
        facts.write_text(json.dumps(spent))
    return line, json.loads(facts.read_text())


def make(entry: Entry, threads: int, anew: bool) -> dict:
    """The numbers of one page."""
    run = f"{RUNS}/{entry.system}"
    line, trained = train(entry, threads, anew)
    row = {"command": f"mezzotint {line}", "seed": 0, "minutes": round(trained["seconds"] / 60, 1)}
    row |= {"cores": trained["threads"], "pictures": trained["pictures"]}
    if entry.draws:
        drawing = f"{entry.draws} {run} --n 100 {entry.controls} {entry.begin} --out gallery/{entry.system}.png"
        if entry.draws == "reconstruct":
            drawing = f"reconstruct {run} --data fashion --n 30 --out gallery/{entry.system}.png"
        drawing = " ".join(drawing.split())
        command(drawing, threads)
        row["sample"] = f"mezzotint {drawing}"
    judge = f"evaluate {run} {entry.evaluate} {entry.controls if entry.draws == 'sample' else ''}".strip()
    judged = command(judge, threads)
    row["evaluate"] = f"mezzotint {judge}"
    row["numbers"] = {
        number["name"]: round(number["value"], 4) for number in judged["numbers"] if number["name"] in SHOWN
    }
    return row


def page(name: str, row: dict) -> str:
    """gallery/NAME.md."""
    system = find(name)
    source = f"{system.paper.authors}, *{system.paper.title}* ({system.paper.year}"
    source += f", arXiv {system.paper.arxiv})" if system.paper.arxiv else ")"
    text = f"# {name}\n\n{system.title}: {source}. Survey: {system.survey}.\n\n{system.summary}\n\n"
    if (GALLERY / f"{name}.png").exists():
        text += f"![samples of {name}]({name}.png)\n\n"
    commands = [row[name] for name in ("command", "sample", "evaluate") if name in row]
    text += "".join(f"    {line}\n" for line in commands) + f"\n{spent(row)}\n\n"
    text += "| " + " | ".join(row["numbers"]) + " |\n|" + "---|" * len(row["numbers"]) + "\n"
    text += "| " + " | ".join(f"{value:.4g}" for value in row["numbers"].values()) + " |\n"
    if getattr(system.stages[-1].model, "pixels", None) == "binary":
        text += (
            "\nThe likelihood is that of dynamically binarised pictures: white with the chance that is their grey.\n"
        )
    if said := weighed(name):
        text += f"\n{said}\n"
    notes = {entry.system: entry.note for entry in ENTRIES}
    return text + (f"\n{notes[name]}\n" if notes.get(name) else "")


def weighed(name: str) -> str:
    """How often its small size counts the KL, where not once."""
    for stage in find(name).stages:
        objective = getattr(stage.sizes["small"](PictureSpec(28, 1, ("a", "b"))), "objective", None)
        if (beta := getattr(objective, "beta", 1.0)) != 1:
            return (
                f"In training the KL counts {beta:g} times; `--set objective.beta=1` minimises the bound itself. Bits"
                " and KL above are those of the bound."
            )
    return ""


def spent(row: dict) -> str:
    """What a run cost, in words."""
    cores = {1: "one core", 2: "two cores"}.get(row.get("cores", 2), f"{row.get('cores')} cores")
    return f"{row['minutes']} minutes on {cores}, {row['pictures']:,} pictures seen, seed {row['seed']}."


def index(rows: dict[str, dict]) -> str:
    """gallery/README.md."""
    text = (
        "# Gallery\n\nEvery system at `small` size, trained for a few minutes on a laptop's processor without a GPU;"
        " each page has the commands that made its picture and its numbers: `make gallery`.\n"
        "`fd_classifier` is the Fréchet distance of 1,000 samples (500 of rectified-transport, whose boots are fewer)"
        " over the features of the gallery's own classifier, and no FID. Minutes are of the clock; the machine may have"
        " had other work.\n`fashion` is 10,000 of the training and 2,000 of the test pictures of Fashion-MNIST. `fvsbn`"
        " and `made` know black and white alone, and their bits are those of pictures that are binarised anew whenever"
        " they are seen: no other row's compare with them.\n"
    )
    text += "".join(f"`{entry.system}`: {entry.note}\n" for entry in ENTRIES if entry.note)
    if heavy := [f"`{name}`" for name in rows if weighed(name)]:
        text += f"In training {', '.join(heavy)} count the KL several times, as their pages say.\n"
    text += "\n"
    names = [name for name in SHOWN if any(name in row["numbers"] for row in rows.values())]
    text += "| system | paper | minutes x cores | pictures seen | " + " | ".join(names) + " |\n"
    text += "|---|---|---|---|" + "---|" * len(names) + "\n"
    for name, row in rows.items():
        paper = find(name).paper
        values = " | ".join(f"{row['numbers'][n]:.4g}" if n in row["numbers"] else "" for n in names)
        cost = f"{row['minutes']} x {row.get('cores', 2)}"
        text += f"| [{name}]({name}.md) | {paper.authors.split(',')[0]} {paper.year} | {cost} | {row['pictures']:,} | {values} |\n"  # noqa: E501
    for name in rows:
        if (GALLERY / f"{name}.png").exists():
            text += f"\n## {name}\n\n[![samples of {name}]({name}.png)]({name}.md)\n"
    return text


def main() -> None:
    """Make the pages that were asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help="all, where none is named")
    parser.add_argument("--jobs", type=int, default=1, help="systems at a time")
    parser.add_argument("--anew", action="store_true", help="train again what is already trained")
    parser.add_argument("--only-train", action="store_true", help="draw and judge nothing yet")
    options = parser.parse_args()
    known = {entry.system: entry for entry in ENTRIES}
    if unknown := set(options.systems) - set(known):
        parser.error(f"no entry is called {', '.join(sorted(unknown))}")
    wanted = [known[name] for name in options.systems] or list(ENTRIES)
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    lock, failures = Lock(), []

    def one(entry: Entry) -> None:
        try:
            if options.only_train:
                train(entry, threads, options.anew)
                return
            row = make(entry, threads, options.anew)
        except Failed as error:
            failures.append(error)
            print(f"FAILED {error}", file=sys.stderr, flush=True)
            return
        with lock:
            rows = {**json.loads(NUMBERS.read_text()), entry.system: row}
            ordered = {name: rows[name] for name in known if name in rows}
            NUMBERS.write_text(json.dumps(ordered, indent=1) + "\n")
            (GALLERY / f"{entry.system}.md").write_text(page(entry.system, row))
            (GALLERY / "README.md").write_text(index(ordered))

    judge = [entry for entry in wanted if entry.system == "classifier"]
    for entry in judge:  # the others are judged by it
        one(entry)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one, [entry for entry in wanted if entry not in judge]))
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
