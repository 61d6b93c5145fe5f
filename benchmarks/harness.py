"""What every benchmark shares: both sides in turn, medians, one table, and `--json`."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One comparison. A unit that ends in "/s" is a rate, of which more is better; of every other, less is."""

    name: str
    ours: float
    peer: float
    unit: str
    setting: str = ""  # versions, threads, precision: what `setting` returns

    @property
    def ratio(self) -> float:
        """Above 1: ours is faster."""
        return self.ours / self.peer if self.unit.endswith("/s") else self.peer / self.ours


def seconds(run: Callable[[], object]) -> float:
    """How long one run takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def alternate(ours: Callable[[], object], peer: Callable[[], object], repeats: int = 5) -> tuple[float, float]:
    """Median seconds of both sides, run in turn so that a change of the machine's pace meets both alike."""
    taken = [(seconds(ours), seconds(peer)) for _ in range(repeats)]
    mine, theirs = zip(*taken)
    return statistics.median(mine), statistics.median(theirs)


def setting(*packages: str, precision: str = "float32") -> str:
    """What a number depends on, in one line: versions, threads, precision, processor."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", *packages)]
    return ", ".join([*versions, f"{torch.get_num_threads()} threads", precision, platform.machine()])


def report(rows: Sequence[Row], as_json: bool = False) -> None:
    """Print a table, or one JSON list of rows and nothing else."""
    if as_json:
        names = ("name", "ours", "peer", "ratio", "unit", "setting")
        print(json.dumps([{name: getattr(row, name) for name in names} for row in rows], indent=1))
        return
    table = Table("what", "ours", "peer", "ratio", "unit")
    for row in rows:
        table.add_row(
            row.name,
            *(f"{value:,.0f}" if value >= 1000 else f"{value:.4g}" for value in (row.ours, row.peer)),
            f"{row.ratio:.2f}",
            row.unit,
        )
    console = Console()
    console.print(table)
    for line in dict.fromkeys(row.setting for row in rows if row.setting):
        console.print(line)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with `--json`, to which a benchmark adds its own options."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON list of rows and nothing else")
    return parser


def asked_rows(description: str | None, repeats: int = 5) -> tuple[argparse.Namespace, Callable[[str], bool]]:
    """The command line of a benchmark of many rows, with `--repeats` and `--only`; and whether it asks for a row."""
    parser = arguments(description)
    parser.add_argument("--repeats", type=int, default=repeats, help="how often each side is timed")
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="rows whose name holds one of these")
    options = parser.parse_args()
    return options, lambda name: not options.only or any(word in name for word in options.only)
