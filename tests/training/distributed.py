"""Run by test_processes.py, in one process or under `accelerate launch` in two: trains and draws systems.

python distributed.py DIRECTORY SYSTEM ...

DIRECTORY holds folders of tiny pictures, `labelled` and `plain`; the runs go to DIRECTORY/PROCESSES/SYSTEM.
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
from mezzotint.data import open_pictures
from mezzotint.systems import configure, find
from mezzotint.training.run import RunSettings, train
from mezzotint.training.schedule import Budget


def settings_of(name: str, directory: Path) -> RunSettings:
    """A short run of tiny pictures, drawn in few steps."""
    system = find(name)
    paired = "source" in system.needs
    changes = {"batch_size": "8", "warmup": "16"}
    last = system.stages[-1].name
    config = configure(system, PictureSpec(8, 1, () if paired else ("a", "b"), source=paired))[last]
    if system.family == "gan" or name == "ladder-vae":  # where gradients near 0 are rounding, Adam steps by its sign
        changes["optimizers.model.eps"] = "1e-2"
    if hasattr(getattr(config, "network", None), "critic_norm") and name != "dcgan":  # or there is no curve to compare
        changes |= {"network.norm": "none", "network.critic_norm": "none"}
    if getattr(config, "steps", 0) > 4:
        changes[f"{last}:steps"] = "4"  # of the solver
    if hasattr(getattr(config, "network", None), "coarsest") and config.network.coarsest == 7:
        changes[f"{last}:network.coarsest"] = "4"  # as small as these pictures allow
    if getattr(config, "labelled", 0):
        changes[f"{last}:labelled"] = "6"
    return RunSettings(
        name, str(directory / ("plain" if paired else "labelled")),
        source=str(directory / "labelled") if paired else None, image_size=8, budget=Budget(pictures=96),
        precision="fp32", changes=changes, seed=5,
    )  # fmt: skip


def run(name: str, directory: Path, accelerator: Accelerator) -> None:
    """A dozen steps, then eleven pictures."""
    place = directory / str(accelerator.num_processes) / name
    train(settings_of(name, directory), place, accelerator=accelerator)
    model = mz.load(place)
    if hasattr(model, "sample"):
        shard = (accelerator.process_index, accelerator.num_processes)
        source = (
            open_pictures("fashion/sneaker", image_size=8).batch(range(11)).images
            if model.identity.data.source or model.completes
            else None
        )
        mine = draw(model, 11, seeds=2, batch_size=3, shard=shard, source=source)
        if accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            mine = interleave(gather_object([mine]))
        if accelerator.is_main_process:
            torch.save(mine, place / "pictures.pt")
    if accelerator.is_main_process:
        print(f"{name} trained in {accelerator.num_processes} processes", flush=True)


def main() -> None:
    """All of the systems named, one after another."""
    register_toys()
    torch.set_num_threads(1)
    accelerator = Accelerator()
    for name in sys.argv[2:]:
        run(name, Path(sys.argv[1]), accelerator)
    accelerator.end_training()


if __name__ == "__main__":
    main()
