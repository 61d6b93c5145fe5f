"""What a judgement consists of: numbers that carry their protocol, pictures, neighbours and curves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.records import read_metrics

MOST_POINTS = 400  # of a curve
BOOKKEEPING = {"step", "pictures", "seconds", "skipped"}  # of a run: no curves to look at


@dataclass(frozen=True)
class Number:
    """One number and everything that it depends on."""

    name: str
    value: float
    best: str  # "lower", "higher", or the value that is right: "0.5"
    meaning: str
    protocol: dict[str, Any]
    spread: float | None = None  # standard deviation over splits
    real: float | None = None  # the same number for real training pictures in place of the model's
    by_dimension: tuple[float, ...] | None = None  # what each dimension of the code contributes

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        optional = {"spread": self.spread, "real": self.real, "by_dimension": self.by_dimension}
        given = {key: value for key, value in optional.items() if value is not None}
        return {
            "name": self.name, "value": self.value, **given,
            "best": self.best, "meaning": self.meaning, "protocol": self.protocol,
        }  # fmt: skip


@dataclass(frozen=True)
class Neighbours:
    """Samples beside the training pictures that are nearest to them."""

    samples: Tensor  # (K, C, H, W) in [-1, 1]
    training: Tensor  # (K, k, C, H, W), nearest first
    distances: Tensor  # (K, k), root mean square of the differences in grey levels


@dataclass(frozen=True)
class Evaluation:
    """What is known of a model after judging it."""

    model: dict[str, Any]
    data: dict[str, Any]
    numbers: list[Number]
    samples: Tensor | None = None  # (K, C, H, W) in [-1, 1], the first of those that were measured
    labels: list[str] = field(default_factory=list)  # class names of the samples
    neighbours: Neighbours | None = None
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # (step, value)

    def __getitem__(self, name: str) -> Number:
        """The number called `name`. Raises `KeyError`."""
        return {number.name: number for number in self.numbers}[name]

    def to_dict(self) -> dict[str, Any]:
        """Everything but pictures and curves, as JSON can hold it: what is not a finite number is None."""
        numbers = [number.to_dict() for number in self.numbers]
        return {"model": self.model, "data": self.data, "numbers": _finite(numbers)}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_curves(run: Path) -> dict[str, list[tuple[float, float]]]:
    """Losses, rates and norms of a run over its steps, from `metrics.jsonl`, thinned; {} without the file."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in read_metrics(run / "metrics.jsonl"):
        for name, value in row.items():
            if name not in BOOKKEEPING and isinstance(value, (int, float)):
                curves.setdefault(name, []).append((row["step"], float(value)))
    return {name: points[:: -(-len(points) // MOST_POINTS)] for name, points in curves.items() if len(points) > 1}
