"""What is made of the two terms of the bound: all that beta-VAE, capacity, free bits, IWAE and a constraint change."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..core.config import Config
from ..core.errors import ConfigError
from ..core.model import Losses


class Inferred(NamedTuple):
    """What one draw of z from the posterior says of each picture."""

    log_likelihood: Tensor  # ln p(x | z), nats, (B,)
    kl: Tensor  # KL(q || p) of each of G dimensions or groups of z, given those above, nats, (B, G)
    log_ratio: Tensor  # ln p(z) - ln q(z | x) at the z that was drawn, nats, (B,)

    @property
    def elbo(self) -> Tensor:
        """ln p(x | z) - KL(q || p), whose mean over z is the bound: (B,); survey, eq. 11."""
        return self.log_likelihood - self.kl.sum(1)

    @property
    def log_weight(self) -> Tensor:
        """ln w = ln p(x, z) - ln q(z | x), (B,); survey, eq. 24."""
        return self.log_likelihood + self.log_ratio


def elbo_losses(inferred: Inferred, penalty: Tensor | None = None, weights: Tensor | None = None) -> Losses:
    """-ln p(x | z) + penalty, the mean over pictures; logged: both terms of the bound, the bound, and the penalty.

    penalty  (B,), what stands in place of the KL; None: the KL itself, which is then not logged twice
    weights  (B,), how much each picture counts; None: 1
    """

    def mean(values: Tensor) -> Tensor:
        return values.mean() if weights is None else (weights * values).mean()

    instead = {} if penalty is None else {"penalty": mean(penalty)}
    penalty = inferred.kl.sum(1) if penalty is None else penalty
    parts = {
        "reconstruction": -mean(inferred.log_likelihood),
        "kl": mean(inferred.kl.sum(1)),
        "negative_elbo": -mean(inferred.elbo),
        **instead,
    }
    return Losses(mean(penalty - inferred.log_likelihood), {name: value.detach() for name, value in parts.items()})


@dataclass(frozen=True)
class ELBO(Config):
    """-ln p(x | z) + beta KL(q || p).

    beta          1: the bound itself (survey, eq. 12); above: beta-VAE (Higgins et al. 2017, eq. 4; survey, eq. 16)
    warmup_steps  beta rises from 0 in so many steps (Bowman et al. 2016, arXiv 1511.06349; Sonderby et al. 2016)
    free_bits     nats that each group of z has for nothing: max(free_bits, KL) in place of its KL (Kingma et al. 2016,
                  arXiv 1606.04934, eq. 15, where KL is the mean over the batch; here it is of each picture, so that a
                  batch may be split over processes)

    Raises `ConfigError` for what is negative.
    """

    beta: float = 1.0
    warmup_steps: int = 0
    free_bits: float = 0.0
    kind: Literal["elbo"] = "elbo"
    samples: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _not_negative(self, "beta", "warmup_steps", "free_bits")

    def penalty(self, inferred: Inferred, step: Tensor) -> Tensor | None:
        """What stands in place of the KL of each picture, (B,); None: nothing.

        step  how many steps were made before, ()
        """
        if self == ELBO():
            return None
        kl = inferred.kl.clamp_min(self.free_bits) if self.free_bits else inferred.kl
        warm = ((step + 1) / self.warmup_steps).clamp(max=1.0) if self.warmup_steps else 1.0
        return self.beta * warm * kl.sum(1)

    def losses(self, inferred: Inferred, step: Tensor, weights: Tensor | None = None) -> Losses:
        """The loss of `Inferred` with B rows, which count by weights (B,); see `penalty`."""
        return elbo_losses(inferred, self.penalty(inferred, step), weights)


@dataclass(frozen=True)
class Capacity(Config):
    """-ln p(x | z) + gamma |KL(q || p) - C|, C rising from 0 to `most` nats.

    The distance is that of each picture's KL. Source: Burgess et al. 2018 (arXiv 1804.03599), eq. 8; survey, eq. 17.
    Raises `ConfigError` for what is negative.
    """

    gamma: float = 1000.0
    most: float = 25.0  # C_max, nats
    steps: int = 100_000  # in which C rises, in a line
    kind: Literal["capacity"] = "capacity"
    samples: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _not_negative(self, "gamma", "most", "steps")

    def capacity(self, step: Tensor) -> Tensor:
        """C after so many steps, nats, ()."""
        return self.most * (step / max(self.steps, 1)).clamp(max=1.0)

    def penalty(self, inferred: Inferred, step: Tensor) -> Tensor:
        """See `ELBO.penalty`."""
        return self.gamma * (inferred.kl.sum(1) - self.capacity(step)).abs()

    def losses(self, inferred: Inferred, step: Tensor, weights: Tensor | None = None) -> Losses:
        """See `ELBO.losses`; C is logged beside."""
        total, parts = elbo_losses(inferred, self.penalty(inferred, step), weights)
        return Losses(total, {**parts, "capacity": self.capacity(step).float()})


@dataclass(frozen=True)
class ImportanceWeighted(Config):
    """-ln (1/K) sum_k w_k over K draws of z, w_k = p(x, z_k) / q(z_k | x).

    gradient  "reparameterised": that of the bound (Burda et al. 2016, arXiv 1509.00519, eq. 14)
              "doubly": the encoder's, without the part that is zero on average and drowns the rest as K grows
              (Tucker et al. 2019, arXiv 1810.04152, eq. 8)

    Survey, eq. 23-25. Raises `ConfigError` for K below 1.
    """

    samples: int = 5  # K
    gradient: Literal["reparameterised", "doubly"] = "reparameterised"
    kind: Literal["importance"] = "importance"

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"a bound takes at least 1 sample of z, not {self.samples}")

    def losses(self, inferred: Inferred, step: Tensor) -> Losses:
        """See `ELBO.losses`; `inferred` has B K rows, the K draws of a picture one after the other.

        With "doubly", ln q(z | x) must be that of a detached posterior, and z treated with `weigh_again`.
        """
        log_weights = inferred.log_weight.unflatten(0, (-1, self.samples))  # (B, K)
        bound = importance_bound(log_weights).mean()
        if self.gradient == "doubly":
            weights = log_weights.softmax(1).detach()
            inner = (weights * log_weights).sum(1).mean()  # the gradient of the bound, but for q's own parameters
            total = -(inner + (bound - inner).detach())
        else:
            total = -bound
        parts = elbo_losses(inferred).parts
        return Losses(total, {**parts, "negative_bound": -bound.detach()})


@dataclass(frozen=True)
class Constrained(Config):
    """-ln p(x | z) + beta KL(q || p), beta such that pictures are explained this well; see `multiplier`.

    Source: Klushyn et al. 2019 (arXiv 1905.04982), section 2.2. Raises `ConfigError` for what cannot be.
    """

    most: float = 2.4  # kappa^2: -ln p(x | z) at most, on average, nats per number that is explained
    begin: float = 0.1  # beta at the first step
    least: float = 0.01  # of beta, above 0: a constraint that cannot be met is not to leave codes without a prior
    rate: float = 1.0  # nu
    slope: float = 3.0  # tau
    memory: float = 0.99  # alpha: share of the moving average of -ln p(x | z) that survives a step
    # Beta, and a prior that is a piece of its own and learns, stay as they are until the constraint is met once
    wait: bool = True
    kind: Literal["constrained"] = "constrained"
    samples: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.begin:
            raise ConfigError(
                f"beta begins at {self.begin} and stays above {self.least}, which must be above 0 and not more"
            )
        if not 0 <= self.memory < 1:
            raise ConfigError(f"memory is the share of an average that survives a step, not {self.memory}")
        _not_negative(self, "rate", "slope")


def multiplier(beta: Tensor, excess: Tensor, rate: float, slope: float) -> Tensor:
    """Beta of the next step: falls where the constraint is broken, and comes to 1 where it is met.

        beta <- beta exp(nu f(beta, e) e),    f = -1 for e > 0, else tanh(tau (beta - 1))

    beta    the weight of the KL, ()
    excess  e: by how much the moving average of the constrained term is above what is allowed, ()

    At beta = 1 the Lagrangian is the evidence lower bound, and no other beta stays while the constraint is met.
    Source: Klushyn et al. 2019 (arXiv 1905.04982), section 2.2 and algorithm 1.
    """
    f = torch.where(excess > 0, -torch.ones_like(beta), torch.tanh(slope * (beta - 1)))
    return beta * torch.exp(rate * f * excess)


class Lagrangian(nn.Module):
    """What `Constrained` remembers from step to step.

    beta     the weight of the KL, ()
    average  the moving average of -ln p(x | z), nats per number that is explained, (); nan before the first step
    met      whether the constraint was met once, or need not be waited for, ()
    """

    beta: Tensor
    average: Tensor
    met: Tensor

    def __init__(self, objective: Constrained) -> None:
        super().__init__()
        self.objective = objective
        self.register_buffer("beta", torch.tensor(objective.begin))
        self.register_buffer("average", torch.tensor(torch.nan))
        self.register_buffer("met", torch.tensor(not objective.wait))
        self._sums: Tensor | None = None  # of this step's pictures: -ln p(x | z), and how many

    @property
    def waits(self) -> bool:
        """Whether a prior that is a piece of its own is not to learn yet."""
        return self.training and not bool(self.met)

    def losses(self, inferred: Inferred, dimensions: int) -> Losses:
        """The Lagrangian of `Inferred` with B rows, of pictures of so many numbers; beta is logged beside."""
        if self.training:
            error = -inferred.log_likelihood.detach() / dimensions
            now = torch.stack([error.sum(), error.new_tensor(float(len(error)))])
            self._sums = now if self._sums is None else self._sums + now
        total, parts = elbo_losses(inferred, self.beta.to(inferred.kl.dtype) * inferred.kl.sum(1))
        return Losses(total, {**parts, "beta": self.beta.clone()})

    @torch.no_grad()
    def after_step(self) -> None:
        """Beta follows the moving average of -ln p(x | z), that of the pictures of all processes."""
        if self._sums is None:
            return
        sums, self._sums = self._sums, None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        now = sums[0] / sums[1]
        if not bool(now.isfinite()):  # of a batch whose step was skipped
            return
        c = self.objective
        kept = now if bool(self.average.isnan()) else self.average
        self.average.copy_(c.memory * kept + (1 - c.memory) * now)
        excess = self.average - c.most
        self.met |= excess < 0
        if bool(self.met):
            self.beta.copy_(multiplier(self.beta, excess, c.rate, c.slope).clamp_min(c.least))


ObjectiveConfig = ELBO | Capacity | ImportanceWeighted | Constrained


def importance_bound(log_weights: Tensor) -> Tensor:
    """L_K = ln (1/K) sum_k w_k, (B,), from ln w (B, K); survey, eq. 25."""
    return torch.logsumexp(log_weights, 1) - math.log(log_weights.shape[1])


def weigh_again(z: Tensor, log_weights: Tensor) -> None:
    """Multiply the gradient that will reach z by the normalised weights of its draws.

    What it has of them already makes it the bound's; the square makes it doubly reparameterised.

    z            the draws, (B K, ...), in whose graph nothing but the posterior lies
    log_weights  ln w, (B, K)
    """
    weights = log_weights.softmax(1).detach().flatten()
    z.register_hook(lambda gradient: gradient * weights.view(-1, *[1] * (gradient.dim() - 1)))


def _not_negative(config: Config, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise ConfigError(f"{name} must not be negative or infinite, but it is {getattr(config, name)}")
