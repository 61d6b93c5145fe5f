"""Which number format the hardware is fast in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from ..core.errors import ConfigError, suggest

FORMATS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def best_precision(device: torch.device | str) -> str:
    """What "auto" stands for: "bf16" where the device multiplies matrices in it natively, else "fp32"."""
    device = torch.device(device)
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        native = False
    return "bf16" if native else "fp32"


def autocast(device: torch.device | str, precision: str = "auto") -> AbstractContextManager[None]:
    """A context in which matrix products and convolutions on `device` run in "fp32", "bf16", "fp16" or "auto".

    Raises `ConfigError` for any other name.
    """
    name = best_precision(device) if precision == "auto" else precision
    if name not in FORMATS:
        raise ConfigError(f"no precision is called {precision!r}{suggest(precision, ['auto', *FORMATS])}")
    dtype = FORMATS[name]
    return torch.autocast(torch.device(device).type, dtype) if dtype else nullcontext()
