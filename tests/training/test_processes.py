"""Two data-parallel processes see the same batches, follow the same loss curve and draw the same pictures as one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from toys import TOYS

import mezzotint as mz
from mezzotint.core.records import read_metrics
from mezzotint.data import open_pictures
from mezzotint.data.grid import grid
from mezzotint.systems import catalogue

# The clean picture that follows from the noise of the first times multiplies rounding by sigma / alpha, up to 150 here.
# A codebook sums its vectors in another order, and its decoder multiplies what that changes.
SENSITIVE = {"score-sde-vp": 3e-4, "score-sde-ve": 1e-4, "score-sde-subvp": 6e-4, "vq-vae": 3e-4}
# Each process has the statistics of its own part of the batch: these follow a curve of their own, and say so.
SEEING = {"dcgan", "improved-gan", "semi-supervised-gan"}
HERE = Path(__file__).parent
NAMES = [name for name in catalogue() if not name.startswith("toy")] + [system.name for system in TOYS]


def run(directory: Path, processes: int) -> None:
    """All systems, one after another; under `accelerate launch` with the gloo backend, if in two processes."""
    port = str(20000 + os.getpid() % 20000)
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", port]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *(launch if processes == 2 else []), str(HERE / "distributed.py"), str(directory)]
    done = subprocess.run([*command, *NAMES], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in NAMES:
        assert f"{name} trained in {processes} processes" in done.stdout


def tiny_pictures(directory: Path) -> None:
    """Forty clothes of 8 x 8 in two classes, and forty without any."""
    clothes = open_pictures("fashion", image_size=8).batch(range(80)).images
    for k, picture in enumerate(clothes):
        folder = directory / "plain" if k % 2 else directory / "labelled" / "ab"[k // 2 % 2]
        folder.mkdir(parents=True, exist_ok=True)
        grid(picture[None], padding=0, scale=1).save(folder / f"{k}.png")


def test_two_processes_follow_the_curve_of_one(tmp_path, truth):
    """Of every system, in one test: two starts of the whole machinery take less time than two for each."""
    tiny_pictures(tmp_path)
    for processes in (1, 2):
        run(tmp_path, processes)
    for name in NAMES:
        if name in SEEING:
            assert mz.load(tmp_path / "2" / name).batch_statistics
            continue
        places = [tmp_path / str(k) / name for k in (1, 2)]
        one, two = (read_metrics(place / "metrics.jsonl") for place in places)
        curves = [[row[key] for row in rows for key in sorted(row) if key.startswith("loss")] for rows in (one, two)]
        assert len(curves[0]) >= 2
        error = max(abs(a - b) / max(abs(a), 1.0) for a, b in zip(*curves))
        truth(name, "loss curve in two processes", "one process, same global batch", error, 2e-5)
        if (places[0] / "pictures.pt").exists():
            a, b = (torch.load(place / "pictures.pt") for place in places)
            error, tolerance = (a - b).abs().max(), SENSITIVE.get(name, 2e-5)
            truth(name, "pictures of the same seeds from two processes", "one process", error, tolerance)
