"""The exponential moving average of a model's parameters."""

from __future__ import annotations

import copy

import torch

from ..core.model import Model


class MovingAverage:
    """A frozen copy of the model whose parameters follow it: theta' <- decay theta' + (1 - decay) theta.

    Buffers and integer tensors are copied as they are.
    """

    def __init__(self, model: Model) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: Model, decay: float) -> None:
        """Move the average one step towards the model."""
        torch._foreach_lerp_(list(self.model.parameters()), [p.detach() for p in model.parameters()], 1.0 - decay)
        for average, present in zip(self.model.buffers(), model.buffers()):
            average.copy_(present)
