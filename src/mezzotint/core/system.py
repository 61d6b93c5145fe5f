"""A paper as data: what it is called, what it needs, and the models that it trains, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from .batch import PictureSpec
from .config import Config
from .errors import ConfigError, suggest
from .likelihood import Pixels
from .model import Model


@dataclass(frozen=True)
class Paper:
    """Where a system was published."""

    title: str
    authors: str
    year: int
    arxiv: str = ""  # "2006.11239"; empty where there is none


@dataclass(frozen=True)
class Optimizer(Config):
    """One player's optimizer."""

    name: Literal["adam", "adamw", "adamax", "sgd"] = "adam"
    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = 1.0  # largest gradient norm; None: no clipping


@dataclass(frozen=True)
class Recipe(Config):
    """How a stage is trained. Durations are in pictures seen, so that they survive a change of batch size."""

    batch_size: int = 128  # pictures per step, over all processes
    accumulate: int = 1  # parts in which a batch goes through the model
    pictures: int = 2_000_000  # budget where the user gives none
    optimizers: dict[str, Optimizer] = field(default_factory=lambda: {"model": Optimizer()})
    warmup: int = 10_000  # pictures over which the learning rate rises linearly
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    final_lr: float = 0.0  # share of the learning rate left at the end of the budget
    ema_half_life: int = 100_000  # pictures; 0: no moving average
    ema_ramp: float = 0.05  # early half-life as a share of the pictures seen
    skip_factor: float = 10.0  # a gradient this many times the usual norm is skipped
    max_skips: int = 25  # so many skips in a row stop the run
    compile: bool = False  # torch.compile the loss; needs a C++ compiler on a CPU
    flip: bool = False  # mirror pictures at random
    pixels: Pixels = "levels"  # what the model is shown of a grey level

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "pictures", "max_skips"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("warmup", "final_lr", "ema_half_life", "ema_ramp"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, but it is {getattr(self, name)}")
        if self.skip_factor <= 1:
            raise ConfigError(f"skip_factor must be above 1, not {self.skip_factor}")

    def optimizer_name(self, player: str) -> str:
        """Whose settings a player uses: its own, or those of "model"."""
        return player if player in self.optimizers else "model"

    def optimizer(self, player: str) -> Optimizer:
        """The settings of a player's optimizer."""
        return self.optimizers.get(self.optimizer_name(player), Optimizer())


@dataclass(frozen=True)
class Stage:
    """One model of a system, built from its config and the finished earlier stages."""

    name: str
    model: type[Model]  # called as model(config, **{earlier stage name: its model})
    sizes: Mapping[str, Callable[[PictureSpec], Config]]  # "small", "paper"
    recipes: Mapping[str, Recipe]  # by size
    share: float = 1.0  # of a budget for the whole system, in proportion to the other stages' shares; above 0

    def __post_init__(self) -> None:
        if not self.share > 0:
            raise ConfigError(f"stage {self.name}: the share of the budget must be above 0, not {self.share}")


@dataclass(frozen=True)
class System:
    """One entry of the catalogue."""

    name: str
    title: str
    paper: Paper
    family: str
    survey: str  # "section 6, eq. 82-86, Box 8"
    summary: str  # two or three sentences: the idea
    stages: tuple[Stage, ...]
    needs: frozenset[str] = frozenset()  # of "labels", "captions", "source" (a second set), "pairs", "video"

    def stage(self, name: str) -> Stage:
        """Raises `ConfigError` if there is none of this name."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ConfigError(f"{self.name} has no stage {name!r}{suggest(name, [s.name for s in self.stages])}")


@dataclass(frozen=True)
class Identity(Config):
    """What a saved model must remember to be built again: its place in the catalogue and its data."""

    system: str
    stage: str
    size: str
    data: PictureSpec


def build_stage(
    system: System,
    name: str,
    configs: Mapping[str, Config],
    identity: Identity,
    finished: Mapping[str, Model] | None = None,
) -> Model:
    """The model of stage `name`, handed the earlier stages: those in `finished`, or new ones."""
    last = system.stage(name)
    built: dict[str, Model] = {}
    for stage in system.stages:
        if finished and stage.name in finished and stage is not last:
            built[stage.name] = finished[stage.name]
            continue
        model = stage.model(configs[stage.name], **built)
        model.configs = {earlier: configs[earlier] for earlier in [*built, stage.name]}
        model.identity = Identity(system.name, stage.name, identity.size, identity.data)
        built[stage.name] = model
        if stage is last:
            break
    return built[name]
