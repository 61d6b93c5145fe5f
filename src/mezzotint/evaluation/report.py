"""What a judgement looks like: a page that needs no other file, a JSON document, and a table for the terminal."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from ..data.grid import grid
from .results import Evaluation, Neighbours, Number

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table
    from torch import Tensor

TEMPLATE = "report.html"
COLUMNS = 10  # samples in a row, unless the classes ask for another number
PLOT = (320, 120)  # width and height of a curve, in its own units


def write_report(evaluation: Evaluation, directory: str | os.PathLike[str]) -> Path:
    """Write `report.html` and `report.json` into `directory`, which is made if need be, and return it.

    Raises `ConfigError` if it cannot be written.
    """
    directory = Path(directory)
    pages = {
        "report.html": _page(evaluation),
        "report.json": json.dumps(evaluation.to_dict(), indent=1, allow_nan=False) + "\n",
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in pages.items():
            scratch = directory / f".{name}.tmp"
            scratch.write_text(text, encoding="utf-8")
            os.replace(scratch, directory / name)
    except OSError as error:
        raise ConfigError(f"cannot write a report to {directory}: {error.strerror}; choose another place") from None
    return directory


def table(evaluation: Evaluation) -> Table:
    """Every number for the terminal, and below them everything that they depend on."""
    from rich.table import Table

    shared = shared_protocol(evaluation.numbers)
    facts = evaluation.model
    title = f"{facts.get('system', facts.get('class'))} on {evaluation.data['name']}"
    footer = "\n".join(f"{key}: {value}" for key, value in shared.items())
    with_real = any(number.real is not None for number in evaluation.numbers)
    rich = Table(title=title, caption=footer, caption_justify="left", title_justify="left")
    rich.add_column("number", no_wrap=True)
    rich.add_column("value", justify="right", no_wrap=True)
    if with_real:
        rich.add_column("real pictures", justify="right")
    rich.add_column("best")
    rich.add_column("protocol", overflow="fold")
    for number in evaluation.numbers:
        own = ", ".join(f"{key} {value}" for key, value in number.protocol.items() if key not in shared)
        real = [_written(number.real) if number.real is not None else ""] if with_real else []
        rich.add_row(number.name, _value(number), *real, number.best, own)
    return rich


def shared_protocol(numbers: list[Number]) -> dict[str, Any]:
    """What at least half of the numbers say of their protocol, and none contradicts."""
    said: dict[str, list[Any]] = {}
    for number in numbers:
        for key, value in number.protocol.items():
            said.setdefault(key, []).append(value)
    often = {key: values for key, values in said.items() if len(values) > 1 and 2 * len(values) >= len(numbers)}
    return {key: values[0] for key, values in often.items() if all(value == values[0] for value in values)}


def _page(evaluation: Evaluation) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mezzotint", "evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    shared = shared_protocol(evaluation.numbers)
    return environment.get_template(TEMPLATE).render(
        evaluation=evaluation,
        rows=[_row(number, shared) for number in evaluation.numbers],
        shared=shared,
        samples=None if evaluation.samples is None else _samples(evaluation.samples, evaluation.labels),
        neighbours=_beside(evaluation.neighbours) if evaluation.neighbours else [],
        dimensions=[_dimensions(number) for number in evaluation.numbers if number.by_dimension],
        curves=[_curve(name, points) for name, points in sorted(evaluation.curves.items())],
        made=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        plot=PLOT,
    )


def _row(number: Number, shared: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": number.name,
        "value": _value(number),
        "real": "" if number.real is None else _written(number.real),
        "best": number.best,
        "meaning": number.meaning,
        "protocol": {key: value for key, value in number.protocol.items() if key not in shared},
    }


def _value(number: Number) -> str:
    return _written(number.value) + (f" ± {_written(number.spread)}" if number.spread else "")


def _written(value: float) -> str:
    return f"{value:.4g}"


def _samples(images: Tensor, labels: list[str]) -> dict[str, Any]:
    """Rows of samples; where the classes repeat, one class a column with its name on top."""
    period = next((k for k in range(2, min(len(labels), 17)) if labels[k] == labels[0]), 0)
    repeats = period and all(label == labels[k % period] for k, label in enumerate(labels))
    columns = period if repeats else min(COLUMNS, len(images))
    shown = [
        {"picture": _inline(grid(image[None], padding=0)), "label": label} for image, label in _labelled(images, labels)
    ]
    return {"columns": columns, "heads": labels[:period] if repeats else [], "shown": shown}


def _labelled(images: Tensor, labels: list[str]) -> zip[tuple[Tensor, str]]:
    return zip(images, labels or [""] * len(images))


def _beside(neighbours: Neighbours) -> list[dict[str, Any]]:
    return [
        {
            "sample": _inline(grid(sample[None], padding=0)),
            "training": [
                {"picture": _inline(grid(picture[None], padding=0)), "distance": f"{distance:.1f}"}
                for picture, distance in zip(pictures, distances.tolist())
            ],
        }
        for sample, pictures, distances in zip(neighbours.samples, neighbours.training, neighbours.distances)
    ]


def _inline(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


@dataclass(frozen=True)
class Curve:
    """A line through numbers over steps, in the units of `PLOT`."""

    name: str
    points: str  # of an SVG polyline
    lowest: str
    highest: str
    last: str
    along: str  # how far it goes: "500 steps"


def _dimensions(number: Number) -> Curve:
    """What each dimension of the code contributes, the largest first."""
    falling = sorted(number.by_dimension or (), reverse=True)
    what = {"kl": "KL of each dimension, nats", "active_units": "variance of each dimension's mean"}[number.name]
    return _curve(what, list(enumerate(falling, 1)), "dimensions")


def _curve(name: str, points: Sequence[tuple[float, float]], along: str = "steps") -> Curve:
    finite = [(x, y) for x, y in points if abs(y) != float("inf") and y == y] or [(0.0, 0.0)]
    steps, values = [x for x, _ in finite], [y for _, y in finite]
    (left, right), (low, high) = (min(steps), max(steps)), (min(values), max(values))
    width, height = PLOT
    places = [
        f"{width * (x - left) / ((right - left) or 1):.1f},{height * (1 - (y - low) / ((high - low) or 1)):.1f}"
        for x, y in finite
    ]
    return Curve(name, " ".join(places), _written(low), _written(high), _written(values[-1]), f"{right:,.0f} {along}")
