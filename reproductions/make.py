"""Run every reproduction, and write the page that lists them: gallery/reproductions/README.md.

python reproductions/make.py [--only NAME ...] [--index]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGES = HERE.parent / "gallery" / "reproductions"
SCRIPTS = (
    "figure_1",
    "figure_7",
    "blur",
    "collapse",
    "completion",
    "traversal",
    "coarse_to_fine",
    "mnist_nats",
    "labels",
    "figure_15",
    "figure_16",
    "table_1",
    "figure_20",
    "figure_22",
    "table_2",
    "figure_24",
    "table_6",
    "table_7",
    "table_11",
    "figure_52",
    "guidance",
    "samplers",
    "dit_scaling",
    "figure_69",
)


def index() -> str:
    """The pages that there are, one below the other."""
    text = (
        "# Reproductions\n\nTables and figures of the survey that can be measured small, on two CPU cores, with the"
        " survey's numbers beside ours. Where the survey's order does not hold at this scale, the page says so.\n"
    )
    for name in SCRIPTS:
        page = PAGES / f"{name}.md"
        if page.exists():
            text += "\n#" + page.read_text()
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=SCRIPTS, choices=SCRIPTS)
    parser.add_argument("--index", action="store_true", help="write the list, and run nothing")
    options = parser.parse_args()
    for name in [] if options.index else options.only:
        subprocess.run([sys.executable, str(HERE / f"{name}.py")], check=True)
    PAGES.mkdir(parents=True, exist_ok=True)
    (PAGES / "README.md").write_text(index())


if __name__ == "__main__":
    main()
