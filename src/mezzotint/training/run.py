"""A whole run: its settings, its data, its stages one after another, and its pictures on the way."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..core.batch import Batch
from ..core.config import Config
from ..core.errors import CheckpointError, ConfigError, DataError
from ..core.model import Classifies, Model, Samples
from ..core.system import Identity, Recipe, build_stage
from ..data import Pictures, open_pictures
from ..data.grid import grid
from ..systems import configure, find, load
from .schedule import Budget
from .trainer import Outcome, Trainer

logger = logging.getLogger("mezzotint.training")
PREVIEW_ROWS = 6
HELD_OUT = 256  # pictures of the test split on which the loss is watched


@dataclass(frozen=True)
class RunSettings(Config):
    """What `mezzotint train` was asked for; `run.json` of the run directory."""

    system: str
    data: str
    size: str = "small"
    image_size: int | None = None  # None: that of the pictures
    channels: int | None = None
    budget: Budget | None = None  # None: the recipe's number of pictures
    seed: int = 0
    precision: str = "auto"
    changes: dict[str, str] | None = None  # --set key=value, for recipe and model config
    save_every: int | None = None  # pictures between two checkpoints; None: every two minutes


def train(
    settings: RunSettings,
    directory: str | os.PathLike[str],
    *,
    resume: bool = False,
    accelerator: Accelerator | None = None,
) -> Outcome:
    """Train every stage of a system in order; the last one's run directory is `directory`.

    Earlier stages are trained in `directory/<stage>`, each with an equal share of the budget.
    Raises `ConfigError`, `DataError`, `CheckpointError` or `TrainingError`.
    """
    directory = Path(directory)
    system = find(settings.system)
    settings = _reconcile(settings, directory, resume)
    accelerator = accelerator or Accelerator()
    pictures = _open(settings, "train")
    recipe_changes, model_changes = _sort_changes(settings.changes or {})
    configs = configure(system, pictures.spec, settings.size, model_changes)
    if accelerator.is_main_process:
        _write_settings(settings, directory)
    accelerator.wait_for_everyone()

    finished: dict[str, Model] = {}
    for stage in system.stages:
        last = stage is system.stages[-1]
        place = directory if last else directory / stage.name
        if not last and resume and _is_finished(place):
            finished[stage.name] = load(place)
            continue
        recipe = stage.recipes[settings.size].updated(recipe_changes)
        if settings.budget and settings.budget.pictures:  # a short run warms up in a tenth of it
            recipe = replace(recipe, warmup=min(recipe.warmup, settings.budget.pictures // 10))
        identity = Identity(system.name, stage.name, settings.size, pictures.spec)
        torch.manual_seed(settings.seed)
        model = build_stage(system, stage.name, configs, identity, finished)
        trainer = Trainer(
            model, pictures, place, recipe, _share(settings.budget, recipe, len(system.stages)),
            seed=settings.seed, precision=settings.precision, save_every=settings.save_every,
            preview=_preview(settings, place, recipe), accelerator=accelerator,
        )  # fmt: skip
        if resume and _has_checkpoint(place):
            trainer.resume()
        outcome = trainer.run()
        if outcome.interrupted or last:
            return outcome
        (place / "finished").touch()
        finished[stage.name] = load(place)
    raise ConfigError(f"{system.name} has no stages")


def read_settings(directory: Path) -> RunSettings:
    """`run.json` of a run directory. Raises `CheckpointError` if it is missing or damaged."""
    try:
        return RunSettings.from_dict(json.loads((directory / "run.json").read_text()))
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"{directory / 'run.json'} is damaged ({error}); train again into a new directory"
        ) from None


def _reconcile(settings: RunSettings, directory: Path, resume: bool) -> RunSettings:
    """The settings to use: those of the run to resume, of which only the budget may be changed."""
    if not resume:
        if _has_checkpoint(directory):
            raise ConfigError(
                f"{directory} already holds a run; add --resume to go on with it, or choose another --out"
            )
        return settings
    if not (directory / "run.json").exists():
        logger.info("%s holds no run yet; starting one", directory)
        return settings
    before = read_settings(directory)
    for name in ("system", "data", "size", "image_size", "channels", "seed", "precision", "changes"):
        asked, was = getattr(settings, name), getattr(before, name)
        if asked != getattr(RunSettings, name, None) and asked != was:
            option = name.replace("_", "-")
            raise ConfigError(
                f"this run was started with {option} {was!r}, not {asked!r}; resume with that, or train anew"
            )
    return replace(before, budget=settings.budget or before.budget, save_every=settings.save_every or before.save_every)


def _write_settings(settings: RunSettings, directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        scratch = directory / ".run.json.tmp"
        scratch.write_text(json.dumps(settings.to_dict(), indent=1))
        os.replace(scratch, directory / "run.json")
    except OSError as error:
        raise ConfigError(f"cannot write to {directory}: {error.strerror}; choose another --out") from None


def _sort_changes(changes: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the recipe, and settings of the model."""
    names = {name.split(".")[0] for name in Recipe.settings()}
    recipe = {key: value for key, value in changes.items() if key.split(".")[0] in names}
    return recipe, {key: value for key, value in changes.items() if key not in recipe}


def _share(budget: Budget | None, recipe: Recipe, stages: int) -> Budget:
    if budget is None:
        return Budget(pictures=recipe.pictures)
    if budget.pictures is not None:
        return Budget(pictures=max(budget.pictures // stages, 1))
    return Budget(minutes=(budget.minutes or 0.0) / stages)


def _has_checkpoint(place: Path) -> bool:
    return any((place / "checkpoints").glob("step_*"))


def _is_finished(place: Path) -> bool:
    return (place / "finished").exists()


def _preview(settings: RunSettings, place: Path, recipe: Recipe) -> Callable[[Model, int], dict[str, float]]:
    """A look at the averaged model: a grid of samples, and the loss on pictures that it does not train on."""
    held_out: Batch | None = None
    try:
        held_out = _held_out(_open(settings, "test"))
    except DataError as error:
        logger.info("no held-out loss: %s", error)

    @torch.no_grad()
    def look(model: Model, step: int) -> dict[str, float]:
        numbers: dict[str, float] = {}
        if held_out is not None:
            losses = model(held_out.to(model.device), next(iter(model.players())))
            numbers["held_out_loss"] = losses.total.item()
            if isinstance(model, Classifies) and held_out.labels is not None:
                guesses = model.classify(held_out.images.to(model.device)).argmax(1).cpu()
                numbers["held_out_accuracy"] = (guesses == held_out.labels).float().mean().item()
        if isinstance(model, Samples):
            classes = len(model.identity.data.classes) if model.identity else 0
            columns = classes if 2 <= classes <= 16 else 8  # one class a column
            labels = torch.arange(PREVIEW_ROWS * columns) % classes if classes else None
            images = model.sample(PREVIEW_ROWS * columns, labels=labels, seeds=settings.seed)
            path = place / "samples" / f"step_{step:06d}.png"
            path.parent.mkdir(exist_ok=True)
            grid(images.float().cpu(), columns=columns).save(path)
        return numbers

    return look


def _open(settings: RunSettings, split: str) -> Pictures:
    return open_pictures(settings.data, split=split, image_size=settings.image_size, channels=settings.channels)


def _held_out(test: Pictures) -> Batch:
    batch = test.batch(range(min(HELD_OUT, len(test))))
    batch.seeds = list(range(len(batch)))
    return batch
