"""Fixtures that every test may use, and the recorder behind docs/truth.md."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

RECORDS = "MEZZOTINT_TRUTH"  # a directory into which each checked error is written, set by `make truth`


def pytest_collection_modifyitems(items):
    """The checks that measure an error can be asked for by `-m truth`."""
    for item in items:
        if "truth" in getattr(item, "fixturenames", ()):
            item.add_marker("truth")


@pytest.fixture(autouse=True)
def _same_seed():
    """Every test starts from the same global seed."""
    torch.manual_seed(0)


@pytest.fixture
def truth(request):
    """`truth(system, what, against, error, tolerance)`: the error is small enough, and goes into docs/truth.md."""

    def check(system: str, what: str, against: str, error: float, tolerance: float) -> None:
        error = float(error)
        if directory := os.environ.get(RECORDS):
            row = {"system": system, "what": what, "against": against, "error": error, "tolerance": tolerance}
            row["test"] = request.node.nodeid
            file = Path(directory) / f"{os.getpid()}.jsonl"
            with file.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
        assert error <= tolerance, f"{system}: {what} against {against}: error {error:.3g} > {tolerance:.3g}"

    return check
