"""What a run tells while it goes on: `metrics.jsonl`, TensorBoard events, and a progress line."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from ..core.records import read_metrics

QUIET_SECONDS = 10.0  # between two lines where there is no terminal to draw a bar on


class Journal:
    """Writes the numbers of a run; only the main process has one.

    Lines written after the checkpoint that a run resumes from are dropped first, so that the file
    reads like that of an uninterrupted run.
    """

    def __init__(self, directory: Path, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.file = directory / "metrics.jsonl"
        kept = [row for row in read_metrics(self.file) if row["step"] <= resumed_step]
        scratch = self.file.with_suffix(".tmp")
        scratch.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(scratch, self.file)
        self.lines = self.file.open("a", buffering=1)
        self.board = SummaryWriter(str(directory / "tensorboard"), purge_step=resumed_step + 1)

    def write(self, step: int, numbers: dict[str, Any]) -> None:
        """One row of numbers, in both files."""
        self.lines.write(json.dumps({"step": step, **numbers}) + "\n")
        for name, value in numbers.items():
            self.board.add_scalar(name, value, step)

    def picture(self, step: int, path: Path) -> None:
        """A sample grid, for TensorBoard."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self.board.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Flush both files."""
        self.lines.close()
        self.board.close()


class Progress:
    """A bar with rate, time left and losses on a terminal; a line every ten seconds elsewhere."""

    def __init__(self, title: str, share: float, visible: bool = True) -> None:
        self.title = title
        self.started_at = share  # what earlier sessions did
        self.visible = visible
        self.bar: Any = None
        self.spoken = 0.0

    def __enter__(self) -> Progress:
        if self.visible and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
            self.bar = Bar(*columns, TextColumn("{task.fields[said]}"), console=Console(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=1.0, completed=self.started_at, said="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def show(self, share: float, seconds: float, rate: float, numbers: dict[str, float]) -> None:
        """The share of the run done, the seconds of this session, pictures per second, and the latest losses.

        Details, which have a slash in their names, are left to `metrics.jsonl`.
        """
        if not self.visible:
            return
        left = time_left(self.started_at, share, seconds)
        shown = {name: value for name, value in numbers.items() if "/" not in name or name.startswith("loss/")}
        said = f"{left}  {rate:,.0f} pictures/s  " + "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        if self.bar is not None:
            self.bar.update(self.task, completed=share, said=said)
        elif time.monotonic() - self.spoken >= QUIET_SECONDS:
            self.spoken = time.monotonic()
            print(f"{self.title}  {share:4.0%}  {said}", file=sys.stderr, flush=True)


def time_left(before: float, share: float, seconds: float) -> str:
    """How long the rest takes at the pace of this session, which brought the run from `before` to `share`."""
    if share <= before:
        return "starting"
    left = round(seconds * (1.0 - share) / (share - before))
    return f"{left // 60}:{left % 60:02d} left"
