"""How much a network computes for one picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(network: nn.Module, *inputs: Tensor) -> int:
    """Multiplications of all matrix products, convolutions and attentions in one call `network(*inputs)`.

    Each multiplication is counted once, together with the addition that follows it: papers on networks say FLOPs for
    these (Peebles and Xie 2022 among them), while counters of hardware, and torch's, count twice as many. What is done
    number by number (activations, normalisations, sums of branches) is not counted; whatever of it that paper counts
    besides is less than 2 parts in 10000.

    Nothing is computed: weights and inputs are replaced by tensors of the same shapes that hold no numbers, so that
    the largest network takes a moment. The network itself is not changed.
    """
    state = {name: tensor.to("meta") for name, tensor in [*network.named_parameters(), *network.named_buffers()]}
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        functional_call(network, state, tuple(x.to("meta") for x in inputs))
    total: int = counter.get_total_flops()
    return total // 2
