"""A whole run: its settings, its data, its stages one after another, and its pictures on the way."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..core.batch import Batch, PictureSpec
from ..core.checkpoint import checkpoints
from ..core.config import Config
from ..core.errors import CheckpointError, ConfigError, DataError
from ..core.model import Classifies, Model, Samples, Watches
from ..core.system import Identity, Recipe, Stage, System, build_stage
from ..data import Pictures, open_pictures, spread_over
from ..data.grid import grid
from ..data.loader import PIXELS, augmenting
from ..data.pictures import PartlyLabelled
from ..systems import configure, find, load
from .schedule import Budget
from .trainer import Outcome, Trainer

logger = logging.getLogger("mezzotint.training")
PREVIEW_ROWS = 6
PREVIEW_SECONDS = 20.0  # fewer pictures are drawn where these would take longer
HELD_OUT = 256  # pictures of the test split on which the loss is watched


@dataclass(frozen=True)
class RunSettings(Config):
    """What `mezzotint train` was asked for; `run.json` of the run directory."""

    system: str
    data: str
    source: str | None = None  # a second set, from which pictures are transported to those of `data`
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

    Earlier stages are trained in `directory/<stage>`, each with its stage's share of the budget.
    Raises `ConfigError`, `DataError`, `CheckpointError` or `TrainingError`.
    """
    directory = Path(directory)
    system = find(settings.system)
    settings = _reconcile(settings, system, directory, resume)
    accelerator = accelerator or Accelerator()
    pictures = open_pictures(settings.data, split="train", image_size=settings.image_size,
                             channels=settings.channels, beside=settings.source)  # fmt: skip
    recipe_changes, model_changes = _sort_changes(settings.changes or {})
    configs = configure(system, pictures.spec, settings.size, model_changes)
    recipes = {stage.name: stage.recipes[settings.size].updated(recipe_changes) for stage in system.stages}
    if len(recipes) > 1:  # what a later stage cannot be built of is said before the first is trained
        end = system.stages[-1].name
        with torch.device("meta"):
            built = build_stage(system, end, configs, Identity(system.name, end, settings.size, pictures.spec))
        if built.few_labels is not None:  # nor what these pictures do not have
            PartlyLabelled(pictures, built.few_labels, settings.seed)
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
        recipe = recipes[stage.name]
        budget = _share(settings.budget, recipe, system, stage)
        if budget.pictures:  # a short run warms up in a tenth of it
            recipe = replace(recipe, warmup=min(recipe.warmup, budget.pictures // 10))
        identity = Identity(system.name, stage.name, settings.size, pictures.spec)
        torch.manual_seed(settings.seed)
        model = build_stage(system, stage.name, configs, identity, finished)
        recipe = _shown_as_it_asks(recipe, model, recipe_changes)
        trainer = Trainer(
            model, pictures, place, recipe, budget,
            seed=settings.seed, precision=settings.precision, save_every=settings.save_every,
            preview=_preview(settings, pictures.spec, place, recipe) if accelerator.is_main_process else None,
            accelerator=accelerator,
        )  # fmt: skip
        if resume and checkpoints(place):
            trainer.resume()
        outcome = trainer.run()
        if outcome.interrupted or last:
            return outcome
        (place / "finished").touch()
        finished[stage.name] = load(place)
    raise ConfigError(f"{system.name} has no stages")


def read_settings(directory: Path) -> RunSettings:
    """`run.json` of a run directory. Raises `CheckpointError` if it is damaged."""
    try:
        found = json.loads((directory / "run.json").read_text())
        if found.pop("sha256") != _digest(found):
            raise ValueError("it is not what was saved")
        return RunSettings.from_dict(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{directory / 'run.json'} is damaged ({error}); train into a new directory") from None


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _reconcile(settings: RunSettings, system: System, directory: Path, resume: bool) -> RunSettings:
    """The settings to use: those of the run to resume, of which budget, precision and recipe may be changed."""
    if not resume:
        places = [directory, *(directory / stage.name for stage in system.stages)]
        if any(checkpoints(place) for place in places):
            raise ConfigError(
                f"{directory} already holds a run; add --resume to go on with it, or choose another --out"
            )
        return settings
    if not (directory / "run.json").exists():
        logger.info("%s holds no run yet; starting one", directory)
        return settings
    before = read_settings(directory)
    for name in ("system", "data", "source", "size", "image_size", "channels", "seed"):
        asked, was = getattr(settings, name), getattr(before, name)
        if asked != getattr(RunSettings, name, None) and asked != was:
            option = name.replace("_", "-")
            raise ConfigError(
                f"this run was started with {option} {was!r}, not {asked!r}; resume with that, or train anew"
            )
    old, new = before.changes or {}, settings.changes or {}
    for key in _sort_changes(new)[1]:
        if new[key] != old.get(key):
            raise ConfigError(f"{key} is part of the model, which a resumed run keeps; train anew to change it")
    return replace(
        before,
        budget=settings.budget or before.budget,
        save_every=settings.save_every or before.save_every,
        precision=settings.precision if settings.precision != "auto" else before.precision,
        changes={**old, **new} or None,
    )


def _write_settings(settings: RunSettings, directory: Path) -> None:
    values = settings.to_dict()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        scratch = directory / ".run.json.tmp"
        scratch.write_text(json.dumps({**values, "sha256": _digest(values)}, indent=1))
        os.replace(scratch, directory / "run.json")
    except OSError as error:
        raise ConfigError(f"cannot write to {directory}: {error.strerror}; choose another --out") from None


def _sort_changes(changes: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the recipe, and settings of the model."""
    names = {name.split(".")[0] for name in Recipe.settings()}
    recipe = {key: value for key, value in changes.items() if key.split(".")[0] in names}
    return recipe, {key: value for key, value in changes.items() if key not in recipe}


def _share(budget: Budget | None, recipe: Recipe, system: System, stage: Stage) -> Budget:
    if budget is None:
        return Budget(pictures=recipe.pictures)
    share = stage.share / sum(other.share for other in system.stages)
    if budget.pictures is not None:
        return Budget(pictures=max(int(budget.pictures * share), 1))
    return Budget(minutes=(budget.minutes or 0.0) * share)


def _shown_as_it_asks(recipe: Recipe, model: Model, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with the pixels that the model is a likelihood of, if it is of one kind only."""
    if model.pixels is None or model.pixels == recipe.pixels:
        return recipe
    if "pixels" in changes:
        raise ConfigError(
            f"the likelihood of this model is of {model.pixels} pixels, not of {recipe.pixels}; leave pixels away, or"
            " choose another likelihood"
        )
    return replace(recipe, pixels=model.pixels)


def _is_finished(place: Path) -> bool:
    return (place / "finished").exists()


def _preview(
    settings: RunSettings, spec: PictureSpec, place: Path, recipe: Recipe
) -> Callable[[Model, int], dict[str, float]]:
    """A look at the averaged model: a grid of samples, and the loss on pictures that it does not train on."""
    held_out: Batch | None = None
    try:
        test = open_pictures(settings.data, split="test", image_size=spec.image_size,
                             channels=spec.channels, beside=settings.source)  # fmt: skip
        held_out = _held_out(test, recipe)
    except DataError as error:
        logger.info("no held-out loss: %s", error)
    seconds_each: list[float] = []  # of one picture, measured once

    @torch.no_grad()
    def look(model: Model, step: int) -> dict[str, float]:
        numbers: dict[str, float] = {}
        if held_out is not None:
            batch = held_out.to(model.device)
            numbers["held_out_loss"] = model(batch, next(iter(model.players()))).total.item()
            if isinstance(model, Classifies) and batch.labels is not None:
                hits = model.classify(batch.images).argmax(1) == batch.labels
                numbers["held_out_accuracy"] = hits.float().mean().item()
            if isinstance(model, Watches):
                watched = model.watch(batch.images, batch.labels)
                numbers |= {f"watch/{name}": value for name, value in watched.numbers.items()}
                for warning in watched.warnings:
                    logger.warning("step %s: %s", f"{step:,}", warning)
        begins = spec.source or model.completes
        if isinstance(model, Samples) and not (begins and held_out is None):
            begin = None
            if begins and held_out is not None:
                begin = held_out.images if model.completes else held_out.source
            if not seconds_each:
                began = time.monotonic()
                model.sample(1, seeds=settings.seed, **_from(begin, 1))
                seconds_each.append(time.monotonic() - began)
            columns = len(model.classes) if 2 <= len(model.classes) <= 16 else 8  # one class a column
            n = max(1, min(PREVIEW_ROWS * columns, int(PREVIEW_SECONDS / seconds_each[0])))
            n = n if begin is None else min(n, len(begin))
            labels = torch.arange(n) % len(model.classes) if model.classes else None
            images = model.sample(n, labels=labels, seeds=settings.seed, **_from(begin, n))
            path = place / "samples" / f"step_{step:06d}.png"
            path.parent.mkdir(exist_ok=True)
            grid(images.float().cpu(), columns=columns).save(path)
        return numbers

    return look


def _held_out(test: Pictures, recipe: Recipe) -> Batch:
    """Some test pictures, spread over the set, shown as the recipe shows pictures to the model."""
    rows = test.rows(spread_over(len(test), HELD_OUT))
    seeds = list(range(len(rows.levels)))
    random = augmenting(seeds)
    images = PIXELS[recipe.pixels](rows.levels, random)
    source = None if rows.source is None else PIXELS[recipe.pixels](rows.source, random)
    return Batch(images, rows.labels, rows.captions, source, seeds=seeds)


def _from(begin: Tensor | None, n: int) -> dict[str, Any]:
    """What n samples begin from, for a model that begins from pictures."""
    return {} if begin is None else {"source": begin[:n]}
