"""Mezzotint: the canon of image generation, verified.

In short:

    import mezzotint as mz

    model = mz.create("rectified-flow", image_size=28, classes=10)  # a new model
    model = mz.load("runs/clothes")  # a trained one
    pictures = model.sample(16, seeds=0)  # (16, C, H, W) in [-1, 1]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .core.batch import Batch, PictureSpec
    from .core.config import Config
    from .core.errors import CheckpointError, ConfigError, DataError, MezzotintError, TrainingError
    from .core.model import Losses, Model
    from .core.system import Stage, System
    from .systems import catalogue, create, load

_HOMES = {
    "core.batch": ("Batch", "PictureSpec"),
    "core.config": ("Config",),
    "core.errors": ("CheckpointError", "ConfigError", "DataError", "MezzotintError", "TrainingError"),
    "core.model": ("Losses", "Model"),
    "core.system": ("Stage", "System"),
    "systems": ("catalogue", "create", "load"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Batch", "CheckpointError", "Config", "ConfigError", "DataError", "Losses", "MezzotintError", "Model",
    "PictureSpec", "Stage", "System", "TrainingError", "catalogue", "create", "load",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for: torch is not loaded before it is needed."""
    if name not in _HOME:
        raise AttributeError(f"module 'mezzotint' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
