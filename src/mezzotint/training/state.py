"""Everything that a run needs in order to go on exactly as if it had never stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..core.checkpoint import checkpoints, describe_model, load_tensors, read_description, save_tensors, writing
from ..core.errors import CheckpointError
from ..core.model import Model
from .ema import MovingAverage

KEPT = 2  # checkpoints of a run: the newest, and the one before it in case a disk damages the newest


@dataclass
class Position:
    """Where a run stands. Random numbers need no state: every step seeds itself from (seed, step, rank)."""

    step: int = 0
    pictures: int = 0  # seen, over all processes
    batches: int = 0  # drawn from the loader; more than steps where several players move
    seconds: float = 0.0  # spent in the loop, over all sessions
    seed: int = 0  # of the run
    guards: dict[str, dict[str, Any]] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)  # of fp16 gradients


def save_state(
    directory: Path,
    model: Model,
    average: MovingAverage | None,
    optimizers: Mapping[str, Optimizer],
    position: Position,
) -> Path:
    """Write `directory/checkpoints/step_...`, whole or not at all, then remove all but the newest ones."""
    target = directory / "checkpoints" / f"step_{position.step:08d}"
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for player, optimizer in optimizers.items():
        for index, entries in optimizer.state_dict()["state"].items():
            for name, value in entries.items():
                key = f"{player}/{index}/{name}"
                if isinstance(value, Tensor):
                    tensors[key] = value
                else:
                    numbers[key] = value
    for unfinished in target.parent.glob(".step_*"):  # left by a kill
        shutil.rmtree(unfinished, ignore_errors=True)
    with writing(target) as scratch:
        (scratch / "config.json").write_text(json.dumps(describe_model(model), indent=1))
        save_tensors(model.state_dict(), scratch / "model.safetensors")
        if average is not None:
            save_tensors(average.model.state_dict(), scratch / "ema.safetensors")
        save_tensors(tensors, scratch / "state.safetensors")
        (scratch / "state.json").write_text(json.dumps({"position": asdict(position), "numbers": numbers}, indent=1))
    for old in [path for path in checkpoints(directory) if path != target][: 1 - KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def restore_state(
    checkpoint: Path, model: Model, average: MovingAverage | None, optimizers: Mapping[str, Optimizer]
) -> Position:
    """Load a verified checkpoint into model, average and optimizers. Raises `CheckpointError` where it does not fit."""
    if read_description(checkpoint) != json.loads(json.dumps(describe_model(model))):
        raise CheckpointError(f"{checkpoint} holds another model than the one to train; choose another --out")
    try:
        model.load_state_dict(load_tensors(checkpoint / "model.safetensors"))
        if average is not None:
            average.model.load_state_dict(load_tensors(checkpoint / "ema.safetensors"))
        saved = json.loads((checkpoint / "state.json").read_text())
        tensors = load_tensors(checkpoint / "state.safetensors")
        for player, optimizer in optimizers.items():
            _restore_optimizer(optimizer, player, {**tensors, **saved["numbers"]})
        return Position(**saved["position"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint} does not belong to this run: {error}") from None


def _restore_optimizer(optimizer: Optimizer, player: str, values: Mapping[str, Any]) -> None:
    """Fill the state of each parameter, in the parameter's own memory layout (fused kernels rely on it)."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in values.items():
        owner, index, name = key.split("/")
        if owner != player:
            continue
        parameter = parameters[int(index)]
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value = torch.empty_like(parameter).copy_(value)
        elif isinstance(value, Tensor):
            value = value.to(parameter.device)
        optimizer.state[parameter][name] = value
