"""The discrete chain from noise to picture: its variational bound, its variances, and the losses that train both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..core.batch import PictureRandom, picture_seeds
from ..core.errors import ConfigError
from ..core.likelihood import bits_per_dim
from ..core.model import Losses, evaluating
from .grids import GRIDS, Grid
from .model import DenoisingConfig, DenoisingModel, by_quarter, choose, known_labels, noisy
from .paths import PATHS, Path
from .predictions import Denoised, rows, target
from .solvers import posterior
from .times import TIMES, TimeSampler, discrete, on_cpu, steps_of
from .weighting import WEIGHTINGS

Variance = Literal["small", "large", "learned"]

LOSS_SECOND_MOMENT = "loss-second-moment"
REMEMBERED = 10  # losses of each time (Nichol and Dhariwal 2021, section 3.3)
UNIFORM = 0.001  # share of the times that are drawn uniformly all the same, so that none is ever given up
HALF_CELL = 1 / 255  # of one of the 256 grey levels in [-1, 1]


@dataclass(frozen=True)
class ChainConfig(DenoisingConfig):
    """A discrete chain: what its variance is, and what it is trained on."""

    variance: Variance = "small"  # of each step from noise towards the picture
    objective: Literal["simple", "vlb", "hybrid"] = "simple"
    vlb_weight: float = 0.001  # lambda of the survey's eq. 88

    time_samplers: ClassVar[Mapping[str, TimeSampler]] = {**TIMES, LOSS_SECOND_MOMENT: discrete}  # see `ChainModel`

    def __post_init__(self) -> None:
        super().__post_init__()
        learned = self.variance == "learned"
        if not hasattr(PATHS[self.path], "steps"):
            chains = ", ".join(name for name, path in PATHS.items() if hasattr(path, "steps"))
            raise ConfigError(f"a chain has steps, which the path {self.path} has not; set path to one of {chains}")
        if self.objective == "simple" and learned:
            raise ConfigError("the simple objective says nothing about a variance; set objective to hybrid or vlb")
        if self.objective == "hybrid" and not learned:
            raise ConfigError("the hybrid objective trains a variance; set variance to learned")
        if self.objective != "simple" and self.times not in ("discrete", LOSS_SECOND_MOMENT):
            raise ConfigError(f"the bound is a sum over the steps; set times to discrete or {LOSS_SECOND_MOMENT}")
        if self.objective == "vlb" and (self.weighting, self.metric) != ("simple", "squared"):
            raise ConfigError("the bound has its own weights; set weighting to simple and metric to squared")
        if not self.vlb_weight > 0:
            raise ConfigError(f"vlb_weight must be above 0, not {self.vlb_weight}")


class Tables(NamedTuple):
    """Numbers of a chain's N steps, (N,) float64; step 0 leaves pure noise, step N - 1 arrives at the picture."""

    of_clean: Tensor  # of the mean of q(x_s | x_t, c)
    small: Tensor  # variance of q(x_s | x_t, c); in the last step, where it is 0, that of the step before
    log_ratio: Tensor  # ln(large / small), large the variance of q(x_t | x_s)


@dataclass(frozen=True)
class Chain:
    """The Markov chain of a denoiser, from each time to the next, and the terms of its bound.

        p(x_s | x_t) = N(mean of q(x_s | x_t, c^), Sigma),    ln Sigma = v ln large + (1 - v) ln small

    c^ is the expected clean picture, q the posterior of the forward process (`solvers.posterior`). v is 0, 1, or what
    the network says (Nichol and Dhariwal 2021, eq. 15; survey, eq. 87). In the last step, where the small variance is
    0, it is that of the step before, and so is the large one unless it is learned: as in the code of both papers, whose
    bits per dimension are computed so.

    times     (N + 1,) falling, float64; the last is 0
    variance  which v

    Source: Ho et al. 2020 (arXiv 2006.11239), eq. 5-13; survey, eq. 79-81.
    """

    path: Path
    times: Tensor
    variance: Variance

    @property
    def steps(self) -> int:
        """N."""
        return len(self.times) - 1

    @cached_property
    def tables(self) -> Tables:
        """The numbers of each step."""
        at = self.path.at(self.times)
        q = posterior(type(at)(*(c[:-1] for c in at)), type(at)(*(c[1:] for c in at)))
        before = q.small_variance[-2:-1] if self.steps > 1 else q.large_variance
        small = torch.cat([q.small_variance[:-1], before])
        return Tables(q.of_clean, small, torch.log(q.large_variance / small))

    def log_variance_gain(self, d: Denoised, i: Tensor) -> Tensor:
        """ln(Sigma / small) of step i, like x or broadcasting with it."""
        log_ratio = self.tables.log_ratio[i]
        if self.variance == "learned":
            if d.share is None:
                raise ConfigError("the chain's variance is learned, and this denoiser tells none")
            return rows(log_ratio, d.x) * d.share
        fixed = torch.where(i == self.steps - 1, 0.0, log_ratio) if self.variance == "large" else 0 * log_ratio
        return rows(fixed, d.x)

    def term(self, d: Denoised, x: Tensor, i: Tensor) -> Tensor:
        """What step i adds to the bound of the pictures x, nats (B,): the divergence, or the decoder in the last step.

        d  the denoiser's answer at times[i];  i  () or (B,) int64 on the CPU
        """
        last = i == self.steps - 1
        if not last.any():  # on the CPU: asking waits for no device
            return self.divergence(d, x, i)
        if last.all():
            return -self.decoder(d, x, d.clean)
        here = last.to(x.device, non_blocking=True)
        # The decoder is far out in its tails at other steps, where it does not count but must be finite.
        clean = torch.where(here.view(-1, *[1] * (x.dim() - 1)), d.clean, x)
        return torch.where(here, -self.decoder(d, x, clean), self.divergence(d, x, i))

    def divergence(self, d: Denoised, x: Tensor, i: Tensor) -> Tensor:
        """KL(q(x_s | x_t, x) || p(x_s | x_t)), nats (B,), between two diagonal Gaussians.

        With u = ln(Sigma / small) it is the sum over the picture of

            (u + exp(-u) - 1 + of_clean^2 / small (x - c^)^2 exp(-u)) / 2
        """
        u = self.log_variance_gain(d, i)
        weight = rows(self.tables.of_clean[i] ** 2 / self.tables.small[i], x)
        # expm1(-u) + u would lose its digits for a small u; both parts are exact where u is 0
        return ((u + torch.expm1(-u) + weight * (x - d.clean).square() * torch.exp(-u)) / 2).flatten(1).sum(1)

    def decoder(self, d: Denoised, x: Tensor, mean: Tensor) -> Tensor:
        """ln p(x | x_t) of the last step, nats (B,): the mass of each grey level's cell."""
        i = torch.tensor(self.steps - 1, device="cpu")
        log_variance = rows(self.tables.small[i].log(), x) + self.log_variance_gain(d, i)
        return level_log_prob(x, mean, log_variance / 2).flatten(1).sum(1)

    def prior(self, x: Tensor) -> Tensor:
        """KL(q(x_T | x) || N(0, sigma_T^2)), nats (B,): from there the chain begins."""
        snr = self.path.at(self.times[0]).snr
        return rows(snr / 2, x) * x.flatten(1).square().sum(1)


def level_log_prob(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """ln of the mass that N(mean, std^2) gives to the cell of each number's grey level, like x.

    The 256 levels are k / 127.5 - 1. A cell reaches 1/255 to both sides, those of black and white to infinity, so that
    the masses add up to one (Ho et al. 2020, eq. 13). It is exact in float32 far out in the tails.
    """
    scale = torch.exp(-log_std)
    away = (x - mean).abs()  # mirrored, so that the cell is on the left, where logarithms of masses are exact
    near, far = (HALF_CELL - away) * scale, (-HALF_CELL - away) * scale
    log_near = torch.special.log_ndtr(near)
    share = torch.special.log_ndtr(far) - log_near
    inner = log_near + torch.log(-torch.expm1(share.clamp(max=-torch.finfo(x.dtype).eps)))
    black = torch.special.log_ndtr((x - mean + HALF_CELL) * scale)
    white = torch.special.log_ndtr((mean - x + HALF_CELL) * scale)
    edge = 1 - HALF_CELL
    return torch.where(x < -edge, black, torch.where(x > edge, white, inner))


class LossSecondMoment(nn.Module):
    """Draws steps in proportion to the root of their mean squared loss, which makes a sum over them least noisy.

        p_k = sqrt(E[L_k^2]) / sum_j sqrt(E[L_j^2]),    E over the last ten losses of step k

    Until each step has ten they are uniform. A loss counts 1 / (T p_k), so that its expectation is what it was. A
    thousandth of the draws is uniform for ever: a step that once had no loss must not be lost.

    Source: Nichol and Dhariwal 2021 (arXiv 2102.09672), section 3.3 and eq. 18.
    """

    losses: Tensor
    counts: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.register_buffer("losses", torch.zeros(steps, REMEMBERED))
        self.register_buffer("counts", torch.zeros(steps, dtype=torch.int64))  # losses of each step so far
        self._seen: list[tuple[Tensor, Tensor]] = []  # since the last `update`

    @property
    def probabilities(self) -> Tensor:
        """p, (T,) float64 on the CPU."""
        steps = len(self.counts)
        uniform = torch.full((steps,), 1 / steps, dtype=torch.float64, device="cpu")
        roots = self.losses.cpu().double().square().mean(1).sqrt()
        if self.counts.min() < REMEMBERED or not roots.any():
            return uniform
        return (1 - UNIFORM) * roots / roots.sum() + UNIFORM * uniform

    def draw(self, random: PictureRandom) -> Tensor:
        """k of each picture, (B,) int64 on the CPU."""
        u = on_cpu(random).integers(0, 2**53).double() / 2**53  # float32 would be too coarse for rare steps
        return torch.searchsorted(self.probabilities.cumsum(0), u, right=True).clamp(max=len(self.counts) - 1)

    def importance(self, k: Tensor) -> Tensor:
        """1 / (T p_k), float64 on the CPU."""
        return 1 / (len(self.counts) * self.probabilities[k])

    def note(self, k: Tensor, loss: Tensor) -> None:
        """Remember the losses of some pictures, (B,) each, for the next `update`: none depends on another's before."""
        self._seen.append((k, loss.detach().float()))

    def update(self) -> None:
        """Take over what was noted, that of all processes in the order in which one process would have seen it."""
        if not self._seen:
            return
        noted, self._seen = self._seen, []
        k = torch.cat([k.to(self.counts.device) for k, _ in noted])
        loss = torch.cat([loss for _, loss in noted])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            k, loss = _gather(k), _gather(loss)
        k, loss = k[loss.isfinite()], loss[loss.isfinite()]
        order = k.argsort(stable=True)
        k, loss = k[order], loss[order]
        added = torch.bincount(k, minlength=len(self.counts))
        rank = torch.arange(len(k), device=k.device) - (added.cumsum(0) - added)[k]  # within the losses of a step
        newest = added[k] - rank <= REMEMBERED
        self.losses[k[newest], ((self.counts[k] + rank) % REMEMBERED)[newest]] = loss[newest]
        self.counts += added


def _gather(mine: Tensor) -> Tensor:
    """The rows of all processes, of which process r has the rows r, r + world, ..."""
    parts = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, mine.contiguous())
    return torch.stack(parts, 1).flatten()


class ChainModel(DenoisingModel):
    """A denoising model as a chain of T Gaussian steps, which has a variational bound and may learn its variance.

    With L_k the k-th term of the bound and k drawn as `times` says, the objectives are

        simple   the loss of `DenoisingModel`, which says nothing about the variance      (survey, eq. 83)
        vlb      L_vlb = sum_k L_k and the prior's term: the bound itself, in bits/dim    (survey, eq. 80-81)
        hybrid   L_simple + lambda L_vlb, where L_vlb moves the variance alone: the mean
                 in it is a constant                                                      (survey, eq. 88)

    A network with a learned variance answers twice the channels; see `predictions.Denoiser`. The time sampler
    "loss-second-moment" draws those steps more often whose losses are large; see `LossSecondMoment`.

    Source: Sohl-Dickstein et al. 2015 (arXiv 1503.03585); Ho et al. 2020 (arXiv 2006.11239); Nichol and Dhariwal 2021
    (arXiv 2102.09672), eq. 15-18.
    """

    config: ChainConfig
    likelihood_n = 100

    def __init__(self, config: ChainConfig) -> None:
        self.learned_variance = config.variance == "learned"
        super().__init__(config)
        self.sampler = LossSecondMoment(steps_of(self.path)) if config.times == LOSS_SECOND_MOMENT else None

    @cached_property
    def chain(self) -> Chain:
        """The chain of all T steps."""
        return self.strided(steps_of(self.path))

    def strided(self, steps: int, grid: str | Grid = "linspace") -> Chain:
        """The chain of fewer steps at times of the same path (Nichol and Dhariwal 2021, section 4)."""
        return Chain(self.path, choose("grid", GRIDS, grid)(steps, self.path), self.config.variance)

    def training_times(self, random: PictureRandom) -> Tensor:
        """Uniform on {1/T, ..., 1}, or as `times` says."""
        if self.sampler is None:
            return super().training_times(random)
        return (self.sampler.draw(random).double() + 1) / steps_of(self.path)

    def regression(self, x: Tensor, n: Tensor, t: Tensor, labels: Tensor | None) -> Losses:
        """The objective of pictures x and noise n (B, C, H, W) at times t (B,).

        `mse` and `vlb`, the bound in bits/dim, are estimated without bias from whatever times are drawn; `mse/1` to
        `vlb/4` are what the times of each quarter of [0, 1] add to them.
        """
        c, at = self.config, self.path.at(t)
        x_t = noisy(x, n, at)
        y, share = self._halves(self.answer(x_t, t, labels).to(x.dtype))
        error = self.distance(y - target(c.prediction, x, n, at))  # (B,)
        loss = rows(WEIGHTINGS[c.weighting](at, c.prediction), error) * error
        parts = {"mse": error}
        if c.objective != "simple":
            mean = y.detach() if c.objective == "hybrid" else y
            parts["vlb"] = self._bits(Denoised(x_t, mean, c.prediction, at, share), x, t)
            loss = parts["vlb"] if c.objective == "vlb" else loss + c.vlb_weight * parts["vlb"]
        if self.sampler is not None:
            k = self._index(t)
            if self.training:
                self.sampler.note(k, loss)
            counts = rows(self.sampler.importance(k), loss)
            loss, parts = counts * loss, {name: counts * value for name, value in parts.items()}
        parts = {name: value.detach() for name, value in parts.items()}
        quarters = [by_quarter(value, t, name) for name, value in parts.items()]
        logged = {name: value.mean() for name, value in parts.items()}
        return Losses(loss.mean(), {name: value for part in (logged, *quarters) for name, value in part.items()})

    def after_step(self, step: int) -> None:
        """Remember the losses of this step, by which the times of the next are drawn."""
        if self.sampler is not None:
            self.sampler.update()

    @torch.no_grad()
    def elbo(
        self,
        images: Tensor,
        *,
        labels: Tensor | Sequence[int] | None = None,
        seeds: int | Sequence[int] = 0,
        terms: int | Literal["all"] = 100,
        steps: int | None = None,
        grid: str | Grid | None = None,
    ) -> Tensor:
        """A lower bound of ln p(x), nats per picture, (B,), for 8-bit pictures x = level / 127.5 - 1.

            -ln p(x) <= KL(q(x_T | x) || p(x_T)) + sum_k KL(q(x_s | x_t, x) || p(x_s | x_t)) - E ln p(x | x_1)

        Each expectation over x_t is estimated from one draw. The chain is that of `sample`: where it holds the clean
        picture within [-1, 1], so does the bound.

        labels  (B,): the bound of ln p(x | label); None: a conditional model goes its unconditional way
        seeds   B integers, or the first of B consecutive ones: all that is random about picture k comes from seed k
        terms   how many terms of the sum are evaluated for each picture: that of the decoder, and one at random of each
                of `terms` - 1 groups of neighbours, which counts for its group. The bound is then right on average
        steps, grid
                of a shorter chain at times of the same path, "linspace" if no grid is named; None: all T steps

        Raises `ConfigError` for labels that do not fit, or are missing where none were ever hidden, for fewer than two
        terms, and for a grid without steps.

        Source: Ho et al. 2020 (arXiv 2006.11239), eq. 5; survey, eq. 80-81.
        """
        known = known_labels(self.config, labels, images)
        if grid is not None and steps is None:
            raise ConfigError("a grid is for a shorter chain; say how many steps it has, or leave grid away")
        chain = self.chain if steps is None else self.strided(steps, "linspace" if grid is None else grid)
        random = PictureRandom(picture_seeds(len(images), seeds), images.device)
        bound = [chain.prior(images)]
        with evaluating(self):
            denoiser = self.denoiser(known)
            for low, high in groups(chain.steps, terms):
                i = torch.tensor(low, device="cpu") if high - low == 1 else on_cpu(random).integers(low, high)
                t = chain.times[i]
                x_t = noisy(images, random.normal(*images.shape[1:]), self.path.at(t))
                bound.append((high - low) * chain.term(denoiser(x_t, t), images, i))
        return -torch.stack(bound).sum(0)

    def _halves(self, answer: Tensor) -> tuple[Tensor, Tensor | None]:
        """The prediction, and v where the variance is learned; see `Denoised.share`."""
        if not self.learned_variance:
            return answer, None
        y, raw = answer.chunk(2, dim=1)
        return y, (raw + 1) / 2

    def _index(self, t: Tensor) -> Tensor:
        """k of t = (k + 1) / T."""
        return (t * self.chain.steps).round().long() - 1

    def _bits(self, d: Denoised, x: Tensor, t: Tensor) -> Tensor:
        """T L_k + L_T, whose mean over uniform k is the bound, bits/dim, (B,)."""
        T = self.chain.steps
        nats = T * self.chain.term(d, x, T - 1 - self._index(t)) + self.chain.prior(x)
        return bits_per_dim(-nats, x[0].numel())


def groups(steps: int, terms: int | Literal["all"]) -> list[tuple[int, int]]:
    """The steps of a chain, from noise to picture, in so many groups [low, high) of neighbours, the last step alone.

    They grow with the square of the distance from the picture, where the terms are small and much alike. Where there
    are no more steps than groups, each is one.

    Raises `ConfigError` for fewer groups than two.
    """
    if terms != "all" and not (isinstance(terms, int) and terms >= 2):
        raise ConfigError(f'a bound needs at least 2 terms, one of them the decoder\'s, or "all", not {terms!r}')
    J = steps if terms == "all" else min(terms, steps)
    M = steps - 1
    ends = [max(j, round(M * (j / max(J - 1, 1)) ** 2)) for j in range(J)]  # steps from the last but one
    return [*((M - far, M - near) for near, far in reversed(list(pairwise(ends)))), (M, steps)]
