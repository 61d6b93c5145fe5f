"""Which number format a device should compute in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .errors import ConfigError, suggest

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def resolve_precision(precision: str, device: torch.device) -> str:
    """ "auto" becomes "bf16" where the hardware multiplies it, else "fp32"; the others stand.

    Raises `ConfigError` for an unknown name and for fp16 without a GPU.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"no precision is called {precision!r}{suggest(precision, PRECISIONS)}")
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("fp16 needs a GPU; on a CPU use --precision bf16, fp32 or auto")
    if precision != "auto":
        return precision
    return "bf16" if _multiplies_bf16(device) else "fp32"


def at_least_float32(tensor: Tensor) -> Tensor:
    """float32 in place of half precision, in which a thousand nats are off by whole ones; what is finer stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which matrix products run in a resolved precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)
