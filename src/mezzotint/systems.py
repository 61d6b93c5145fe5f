"""The catalogue: every paper is one entry; `create` builds one, `load` brings a trained one back."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from .core.batch import PictureSpec
from .core.checkpoint import PICKLES, latest, load_tensors, read_description, verify
from .core.config import Config
from .core.errors import CheckpointError, ConfigError, suggest
from .core.model import Model
from .core.system import Identity, System, build_stage

_registered: dict[str, System] = {}


def catalogue() -> dict[str, System]:
    """Every system by name, in the order of the survey."""
    from .autoregressive.systems import SYSTEMS as autoregressive
    from .classifier.systems import SYSTEMS as classifiers
    from .diffusion.systems import SYSTEMS as diffusion
    from .gan.systems import SYSTEMS as gan
    from .vae.systems import SYSTEMS as vae

    chapters = (vae, gan, autoregressive, diffusion, classifiers)
    return {system.name: system for system in (*chain.from_iterable(chapters), *_registered.values())}


def register(system: System) -> None:
    """Add a system of your own to the catalogue of this process. Raises `ConfigError` if the name is taken."""
    if system.name in catalogue():
        raise ConfigError(f"there is already a system called {system.name!r}; give yours another name")
    _registered[system.name] = system


def find(name: str) -> System:
    """The system of this name. Raises `ConfigError` that names the nearest one."""
    known = catalogue()
    if name not in known:
        raise ConfigError(f"no system is called {name!r}{suggest(name, known)}")
    return known[name]


def configure(
    system: System, data: PictureSpec, size: str = "small", overrides: Mapping[str, Any] | None = None
) -> dict[str, Config]:
    """The config of every stage at this size for such pictures.

    `overrides` change settings by dotted name; "stage:key" means one stage, a bare key every stage that has it.
    Raises `ConfigError` for a size or a key that does not exist, and if the data lack what the system needs.
    """
    given = {"labels": bool(data.classes), "captions": data.captions, "source": data.source}
    given |= {"pairs": True, "video": True}
    for need in sorted(system.needs):
        if not given[need] and need == "source":
            raise ConfigError(f"{system.name} begins from pictures of a second set; name it with --source")
        if not given[need]:
            raise ConfigError(f"{system.name} needs {need}, and these pictures have none")
    if data.source and "source" not in system.needs:
        raise ConfigError(f"{system.name} has no use for a second set of pictures; leave --source away")
    configs: dict[str, Config] = {}
    used: set[str] = set()
    for stage in system.stages:
        if size not in stage.sizes:
            raise ConfigError(f"{system.name} has no size {size!r}{suggest(size, stage.sizes)}")
        config = stage.sizes[size](data)
        changes = {}
        for key, value in (overrides or {}).items():
            owner, _, name = key.rpartition(":")
            if owner == stage.name or (not owner and (name.split(".")[0] in config.to_dict())):
                changes[name] = value
                used.add(key)
        configs[stage.name] = config.updated(changes) if changes else config
        told = getattr(configs[stage.name], "classes", 0)
        if told not in (0, len(data.classes)):
            raise ConfigError(f"these pictures have {len(data.classes)} classes, not {told}; classes=0 ignores them")
    for key in overrides or {}:
        if key not in used:
            known = [name for config in configs.values() for name in config.settings()]
            raise ConfigError(f"no setting of {system.name} is called {key!r}{suggest(key, known)}")
    return configs


def create(
    name: str,
    *,
    size: str = "small",
    stage: str | None = None,
    image_size: int = 28,
    channels: int = 1,
    classes: int | tuple[str, ...] = 0,
    captions: bool = False,
    **overrides: Any,
) -> Model:
    """A new, untrained model of the system `name`.

    size        "small" trains on a laptop; "paper" is the published architecture
    stage       which of the system's models; the last where none is named
    classes     how many there are, or their names
    overrides   settings of its config; a dot is written as two underscores: network__channels=64
    """
    system = find(name)
    labels = tuple(str(k) for k in range(classes)) if isinstance(classes, int) else tuple(classes)
    source = "source" in system.needs
    data = PictureSpec(image_size=image_size, channels=channels, classes=labels, captions=captions, source=source)
    settings = {key.replace("__", "."): value for key, value in overrides.items()}
    stage = stage or system.stages[-1].name
    configs = configure(system, data, size, settings)
    return build_stage(system, stage, configs, Identity(system.name, stage, size, data))


def load(place: str | os.PathLike[str], *, weights: str = "best") -> Model:
    """The trained model of a run directory, of one checkpoint, of a directory made by `save`, or of a hub repository.

    weights  "ema", "model" (the raw weights), or "best": the moving average where there is one

    Every byte is compared with its checksum first. Raises `CheckpointError`.
    """
    if weights not in ("best", "ema", "model"):
        raise ConfigError(f"weights are 'best', 'ema' or 'model', not {weights!r}")
    directory = latest(_local(place))
    files = verify(directory)
    averaged = "ema.safetensors" in files
    if not {"config.json", "model.safetensors"} <= files:
        raise CheckpointError(f"{directory} holds no model; copy it again from where it was made")
    if weights == "ema" and not averaged:
        raise CheckpointError(f"{directory} holds no moving average; load its weights with weights='model'")
    model = rebuild(read_description(directory), directory)
    file = "ema.safetensors" if averaged and weights != "model" else "model.safetensors"
    load_weights(model, directory / file)
    return model.eval()


def rebuild(description: Mapping[str, Any], directory: Path) -> Model:
    """The untrained model that a `config.json` describes."""
    try:
        identity = Identity.from_dict({key: description[key] for key in ("system", "stage", "size", "data")})
        system = find(identity.system)
        sizes = {stage.name: stage.sizes[identity.size](identity.data) for stage in system.stages}
        configs = {name: type(sizes[name]).from_dict(values) for name, values in description["stages"].items()}
        return build_stage(system, identity.stage, configs, identity)
    except (ConfigError, KeyError) as error:
        raise CheckpointError(f"{directory / 'config.json'} describes a model that cannot be built: {error}") from None


def load_weights(model: Model, path: Path) -> None:
    """Load a safetensors file into the model. Raises `CheckpointError` unless names and shapes agree exactly."""
    try:
        model.load_state_dict(load_tensors(path), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the model that its config.json describes: {error}") from None


def _local(place: str | os.PathLike[str]) -> Path:
    """The folder itself, or that into which a hub repository called owner/name was downloaded."""
    path, text = Path(place).expanduser(), os.fspath(place)
    if path.exists() or path.suffix in PICKLES or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text):
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(text, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # whatever the hub's client raises: no such name, no access, no network
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"there is no folder {text}, and the hub has no such model either ({first})") from None


def parameter_counts(system: System) -> dict[str, dict[str, int]]:
    """The number of trainable parameters of each stage at each size, for pictures of 32 x 32 in colour, of 10 classes.

    Built on the meta device: nothing is allocated.
    """
    import torch

    counts: dict[str, dict[str, int]] = {stage.name: {} for stage in system.stages}
    sizes = set.intersection(*(set(stage.sizes) for stage in system.stages))
    for size in sorted(sizes, reverse=True):
        classes, source = tuple(map(str, range(10))), "source" in system.needs
        data = PictureSpec(image_size=32, channels=3, classes=classes, captions=True, source=source)
        configs = configure(system, data, size)
        built: dict[str, Model] = {}
        with torch.device("meta"):
            for stage in system.stages:
                model = build_stage(system, stage.name, configs, Identity(system.name, stage.name, size, data), built)
                counts[stage.name][size] = sum(p.numel() for p in model.parameters() if p.requires_grad)
                built[stage.name] = model
    return counts
