"""What the two players want: adversarial losses as functions of the discriminator's scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]


class AdversarialLoss(NamedTuple):
    """Two losses, each a function (real, fake) -> (B,) of the scores of a real and of a generated picture, (B,) each.

    A score is a logit wherever there is a probability: D(x) = sigmoid(score).
    """

    discriminator: Loss
    generator: Loss


def _logistic(real: Tensor, fake: Tensor) -> Tensor:
    """-ln D(x) - ln(1 - D(G(z))); survey, eq. 35."""
    return F.softplus(-real) + F.softplus(fake)


def _critic(real: Tensor, fake: Tensor) -> Tensor:
    """D(G(z)) - D(x), whose negative is an estimate of W_1 where D is 1-Lipschitz."""
    return fake - real


def _raise(real: Tensor, fake: Tensor) -> Tensor:
    """-D(G(z))."""
    return -fake


LOSSES: dict[str, AdversarialLoss] = {
    # Goodfellow et al. 2014: ln(1 - D(G(z))), survey, eq. 34; and -ln D(G(z)), eq. 36
    "saturating": AdversarialLoss(_logistic, lambda real, fake: -F.softplus(fake)),
    "non-saturating": AdversarialLoss(_logistic, lambda real, fake: F.softplus(-fake)),
    # Arjovsky et al. 2017, eq. 2-3; survey, eq. 38
    "wasserstein": AdversarialLoss(_critic, _raise),
    # Lim and Ye 2017; Miyato et al. 2018, eq. 16-17
    "hinge": AdversarialLoss(lambda real, fake: F.relu(1 - real) + F.relu(1 + fake), _raise),
    # Mao et al. 2017, eq. 9: a = 0, b = c = 1
    "least-squares": AdversarialLoss(
        lambda real, fake: ((real - 1) ** 2 + fake**2) / 2, lambda real, fake: (fake - 1) ** 2 / 2
    ),
    # Jolicoeur-Martineau 2018 (arXiv 1807.00734), eq. 11-12: the pictures of a pair are told apart
    "relativistic": AdversarialLoss(
        lambda real, fake: F.softplus(fake - real), lambda real, fake: F.softplus(real - fake)
    ),
}  # fmt: skip


LOGISTIC = ("saturating", "non-saturating")  # whose scores are logits of a probability for each picture
CENTRED = (*LOGISTIC, "hinge")  # where a score of 0 says that the discriminator cannot tell
UNANCHORED = ("wasserstein", "relativistic")  # where only differences of scores matter: a bias would learn nothing


def smoothed(real: Tensor, smoothing: float) -> Tensor:
    """What one-sided label smoothing adds to -ln D(x): the target of a real picture is 1 - s, (B,).

        -(1 - s) ln D(x) - s ln(1 - D(x)) = -ln D(x) + s score

    Source: Salimans et al. 2016 (arXiv 1606.03498), section 3.4.
    """
    return smoothing * real


def told_apart(real: Tensor, fake: Tensor) -> Tensor:
    """The share of real (B,) and generated pictures (B,) whose score lies on their side of the middle, ().

    The middle is that of both means, because the scores of a critic have no zero, and those of least squares have
    their middle elsewhere. A half: the discriminator cannot tell them apart.
    """
    middle = (real.mean() + fake.mean()) / 2
    return ((real >= middle).float().mean() + (fake < middle).float().mean()) / 2


def optimal_score(p: Tensor, q: Tensor) -> Tensor:
    """The logit of the optimal discriminator D = p / (p + q), of densities of any shape: ln p - ln q.

    Source: Goodfellow et al. 2014, proposition 1.
    """
    return torch.log(p) - torch.log(q)
