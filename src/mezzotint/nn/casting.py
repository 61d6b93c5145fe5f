"""Weights in the number format of the present autocast context."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

Network = TypeVar("Network", bound=nn.Module)


def cast_once(network: Network) -> Network:
    """The network with the weights that autocast would cast at every call already cast; the answers are the same bits.

    Autocast keeps the casts of a context for its next call, but not under `torch.inference_mode`, where samplers call
    the same network many times. There this is a copy of the network; everywhere else, the network itself.
    """
    device = next((parameter.device.type for parameter in network.parameters()), "cpu")
    if not (torch.is_inference_mode_enabled() and torch.amp.is_autocast_available(device)):
        return network
    if not torch.is_autocast_enabled(device):
        return network
    copied = deepcopy(network)
    for module in copied.modules():
        if isinstance(module, (nn.Linear, _ConvNd)):
            module.to(torch.get_autocast_dtype(device))
    return copied
