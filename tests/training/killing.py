"""Run by test_killing.py in a process of its own: kills training runs and looks at what they leave.

    python killing.py DIRECTORY KILLS SEED

Each run is a forked child, so that torch is imported once. Half of the kills come at a random moment, half while a
checkpoint is being written. After each kill the run is resumed, without a further kill, to its end.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from toys import register_toys

from mezzotint.core.checkpoint import latest, verify
from mezzotint.training.run import RunSettings, train
from mezzotint.training.schedule import Budget

SETTINGS = RunSettings("toy-gan", "fashion", budget=Budget(pictures=24 * 60), seed=3, precision="fp32", save_every=48)


def start(directory: Path, resume: bool) -> int:
    """Train in a child; its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(SETTINGS, directory, resume=resume)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def finish(directory: Path, resume: bool) -> None:
    """Train to the end."""
    _, status = os.waitpid(start(directory, resume), 0)
    if status:
        sys.exit(f"the run in {directory} failed")


def contents(directory: Path) -> dict[str, bytes]:
    """Every byte of the last checkpoint, less the clock."""
    checkpoint = latest(directory)
    verify(checkpoint)
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.suffix == ".safetensors"}
    state = json.loads((checkpoint / "state.json").read_text())
    del state["position"]["seconds"]
    return files | {"state.json": json.dumps(state).encode()}


def kill_once(directory: Path, chance: random.Random, while_writing: bool, seconds: float) -> str:
    """Start a run and kill it; what it was doing."""
    child = start(directory, resume=False)
    deadline = time.monotonic() + chance.uniform(0.05, 0.9) * seconds
    wanted, seen = chance.randrange(1, 8), 0
    present = None
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if while_writing:
            scratch = next((directory / "checkpoints").glob(".*.tmp"), None)
            if scratch is not None and scratch != present:
                present, seen = scratch, seen + 1
                if seen == wanted:
                    time.sleep(chance.uniform(0, 0.004))
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    return "writing" if scratch.exists() else "just written"
        elif time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "training"
    return "finished"


def main() -> None:
    """Kill, resume, compare; one JSON line each."""
    root, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    register_toys()
    started = time.monotonic()
    finish(root / "whole", resume=False)
    seconds = time.monotonic() - started
    expected = contents(root / "whole")
    chance = random.Random(seed)
    for k in range(kills):
        directory, doing = root / f"run{k}", "finished"
        while doing == "finished":  # a run that ended before its moment came is no kill
            shutil.rmtree(directory, ignore_errors=True)
            doing = kill_once(directory, chance, while_writing=k % 2 == 1, seconds=seconds)
        finish(directory, resume=True)
        leftovers = [path.name for path in (directory / "checkpoints").iterdir() if not path.name.startswith("step_")]
        same = contents(directory) == expected
        print(json.dumps({"doing": doing, "same": same, "leftovers": leftovers}), flush=True)


if __name__ == "__main__":
    main()
