"""Train, sample and judge every system of the gallery through the command, and write its page and numbers.

    python gallery/make.py [SYSTEM ...]

Writes gallery/README.md, a picture for each system, and src/mezzotint/gallery.json, which `mezzotint describe` reads.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = ROOT / "src" / "mezzotint" / "gallery.json"
JUDGE = "runs/gallery/classifier"
SHOWN = (
    "fd_classifier",
    "fd_efficientnet_lite0",
    "precision",
    "recall",
    "density",
    "coverage",
    "class_accuracy",
    "accuracy",
)


@dataclass(frozen=True)
class Entry:
    """One row: how a system was trained, drawn from and judged."""

    system: str
    train: str  # options of `mezzotint train`
    sample: str = ""  # options of `mezzotint sample` and `evaluate`; empty: it draws no pictures


ENTRIES = (
    Entry("classifier", "--data fashion --minutes 1"),
    Entry("ddpm", "--data fashion --minutes 4", "--guidance 1"),
    Entry("rectified-flow", "--data fashion --minutes 4", "--guidance 1"),
)


def command(line: str) -> dict:
    """Run one `mezzotint` command with --json; what it answered."""
    print(f"$ mezzotint {line}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "mezzotint", *shlex.split(line), "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def make(entry: Entry) -> dict:
    """The numbers of one row; its run is started anew."""
    run = f"runs/gallery/{entry.system}"
    subprocess.run(["rm", "-rf", run], cwd=ROOT, check=True)
    line = f"train {entry.system} {entry.train} --seed 0 --out {run}"
    trained = command(line)
    row = {"command": f"mezzotint {line}", "seed": 0, "minutes": round(trained["seconds"] / 60, 1)}
    row["pictures"] = trained["pictures"]
    judge = f"--data fashion --n 2000 --classifier {JUDGE} {entry.sample}" if entry.sample else "--data fashion"
    if entry.sample:
        command(f"sample {run} --n 100 {entry.sample} --out gallery/{entry.system}.png")
    judged = command(f"evaluate {run} {judge}")
    row["evaluate"] = f"mezzotint evaluate {run} {judge}"
    row["numbers"] = {
        number["name"]: round(number["value"], 4) for number in judged["numbers"] if number["name"] in SHOWN
    }
    return row


def page(rows: dict[str, dict]) -> str:
    """gallery/README.md."""
    text = (
        "# Gallery\n\nEach picture and number was made by the commands beside it, on two CPU cores: `make gallery`.\n"
    )
    for name, row in rows.items():
        text += f"\n## {name}\n\n"
        if (ROOT / "gallery" / f"{name}.png").exists():
            text += f"![samples of {name}]({name}.png)\n\n"
        text += f"    {row['command']}\n    {row['evaluate']}\n\n"
        text += f"{row['minutes']} minutes, {row['pictures']:,} pictures seen, seed {row['seed']}.\n\n"
        text += "| " + " | ".join(row["numbers"]) + " |\n|" + "---|" * len(row["numbers"]) + "\n"
        text += "| " + " | ".join(f"{value:.4g}" for value in row["numbers"].values()) + " |\n"
    return text


def main() -> None:
    """Make the rows that were asked for, or all."""
    wanted = sys.argv[1:] or [entry.system for entry in ENTRIES]
    rows = json.loads(NUMBERS.read_text())
    for entry in ENTRIES:
        if entry.system in wanted:
            rows[entry.system] = make(entry)
            rows = {e.system: rows[e.system] for e in ENTRIES if e.system in rows}
            NUMBERS.write_text(json.dumps(rows, indent=1) + "\n")
            (ROOT / "gallery" / "README.md").write_text(page(rows))


if __name__ == "__main__":
    main()
