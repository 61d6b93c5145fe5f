"""The collapse watch: does a generator still draw all kinds of pictures?"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.model import Watched

NEIGHBOURS = 5  # whose distance is the radius around a real picture
LEAST_DIVERSITY = 0.5  # of generated pictures, in units of that of real ones
LEAST_COVERAGE = 0.5  # one kind of ten covers 0.2 to 0.6 of clothes, GANs that have learned them 0.7 to 1.0
MOST_RIGHT = 0.98  # share of pictures that a discriminator may tell apart while the generator still learns


def diversity(images: Tensor) -> float:
    """Mean Euclidean distance between two of the pictures (B, ...), over all pairs, per root of their numbers."""
    flat = images.flatten(1)
    return float(torch.pdist(flat).mean() / flat.shape[1] ** 0.5)


def coverage(real: Tensor, fake: Tensor, k: int = NEIGHBOURS) -> float:
    """Share of the real pictures (B, ...) with a generated one nearer than their k-th real neighbour.

    Of generated pictures that are distributed as the real ones, as many of them, it is 1 - 2^-k on average, nearly.
    Source: Naeem et al. 2020 (arXiv 2002.09797), eq. 8, on pixels.
    """
    x, y = real.flatten(1), fake.flatten(1)
    radius = torch.cdist(x, x).kthvalue(min(k + 1, len(x)), 1).values  # the first is the picture itself
    return float((torch.cdist(x, y).amin(1) <= radius).float().mean())


def watch(real: Tensor, fake: Tensor, right: float) -> Watched:
    """How diverse generated pictures are beside real ones, how many real ones they are near, and what that means.

    real, fake  (B, C, H, W), as many of both
    right       share of both that the discriminator tells apart
    """
    of_real = diversity(real)
    numbers = {
        "diversity": diversity(fake) / of_real if of_real else 1.0,
        "coverage": coverage(real, fake),
        "right": right,
    }
    warnings = []
    if numbers["diversity"] < LEAST_DIVERSITY:
        warnings.append(
            f"generated pictures differ from each other {numbers['diversity']:.0%} as much as real ones: the generator"
            " collapses to few pictures; go back to an earlier checkpoint, and train with a penalty on the"
            " discriminator's slope, or a lower learning rate"
        )
    if numbers["coverage"] < LEAST_COVERAGE:
        warnings.append(
            f"only {numbers['coverage']:.0%} of real pictures have a generated one near them: kinds of pictures are"
            " missing, or, early in training, the pictures are not like real ones yet; if it stays so, or falls, go"
            " back to an earlier checkpoint, and train with a stronger penalty or a lower learning rate"
        )
    if right > MOST_RIGHT:
        warnings.append(
            f"the discriminator tells {right:.1%} of all pictures apart: the generator learns little from it; a penalty"
            " on its slope, noise on its input, or a lower learning rate for it hold it back"
        )
    return Watched(numbers, warnings)
