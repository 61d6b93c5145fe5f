"""Independent implementations of the metrics, importable even where torchvision was built for another torch."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import sys
from types import ModuleType
from unittest import mock

import pytest
import torch

_library = torch.library.Library("torchvision", "FRAGMENT")  # a definition lives as long as its library


def oracle(name: str) -> ModuleType:
    """The module of this name, or the test is skipped where its package is not installed."""
    _torchvision()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")


def _torchvision() -> None:
    """Import torchvision; where its library does not fit this torch, declare the operators that it then misses."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for module in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
            del sys.modules[module]
        for operator in ("nms", "qnms"):
            _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def pytorch_fid_inception(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """pytorch-fid's network with these weights instead of the downloaded ones, without its resizing."""
    inception = oracle("pytorch_fid.inception")
    with mock.patch.object(inception, "load_state_dict_from_url", return_value=state):
        return inception.InceptionV3(resize_input=False, normalize_input=False).eval()


def quietly(function, *arguments, **named):
    """The result of a function that prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments, **named)
