"""Run by test_processes.py, in one process or under `accelerate launch` in two: trains and draws a system.

python distributed.py SYSTEM DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from toys import register_toys

import mezzotint as mz
from mezzotint.core.batch import PictureSpec
from mezzotint.core.drawing import draw, interleave
from mezzotint.systems import configure, find
from mezzotint.training.run import RunSettings, train
from mezzotint.training.schedule import Budget


def main() -> None:
    """Some twenty steps, then eleven pictures."""
    name, directory = sys.argv[1], Path(sys.argv[2])
    register_toys()
    torch.set_num_threads(1)
    accelerator = Accelerator()
    changes = {"batch_size": "8", "warmup": "16"}
    if "steps" in configure(find(name), PictureSpec(8, 1, ("a", "b")))[find(name).stages[-1].name].settings():
        changes["steps"] = "4"  # of the solver
    settings = RunSettings(
        name, "fashion", image_size=8, budget=Budget(pictures=192), precision="fp32", changes=changes, seed=5
    )
    train(settings, directory, accelerator=accelerator)
    model = mz.load(directory)
    if hasattr(model, "sample"):
        shard = (accelerator.process_index, accelerator.num_processes)
        mine = draw(model, 11, seeds=2, batch_size=3, shard=shard)
        if accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            mine = interleave(gather_object([mine]))
        if accelerator.is_main_process:
            torch.save(mine, directory / "pictures.pt")
    print(f"{name} trained in {accelerator.num_processes} processes")
    accelerator.end_training()


if __name__ == "__main__":
    main()
