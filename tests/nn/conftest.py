"""The oracle of the networks."""

import pytest


@pytest.fixture
def diffusers(monkeypatch):
    """diffusers as it is without torchvision, which it would import for models that are not compared here.

    (The torchvision of PyPI is compiled against the CUDA build of torch and does not load beside the CPU build.)
    """
    module = pytest.importorskip("diffusers")
    from diffusers.utils import import_utils

    monkeypatch.setattr(import_utils, "_torchvision_available", False)
    return module
