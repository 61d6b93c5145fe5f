"""In which number format a judgement is made: sampling in the caller's, measuring always in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

FORMATS = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Within it no operation on the device is cast down, whatever the context around it asks for."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def current_precision(device: torch.device) -> str:
    """ "bf16" or "fp16" where the context around casts the device's matrix products down, else "fp32"."""
    if not (torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)):
        return "fp32"
    return FORMATS[torch.get_autocast_dtype(device.type)]
