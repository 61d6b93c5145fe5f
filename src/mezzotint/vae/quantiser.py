"""Vector quantisation: continuous vectors become numbers of entries in a learned codebook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.config import Config
from ..core.errors import ConfigError
from ..core.precision import at_least_float32

SCORES = 2**20  # numbers in the part of the distance matrix that is looked at together
START_VECTORS = 16  # for each code, among which k-means finds where the codes begin


@dataclass(frozen=True)
class CodebookConfig(Config):
    """A codebook, and how it is learned. The defaults are the recipe that keeps most codes in use.

    Raises `ConfigError` for what cannot be.
    """

    codes: int = 512  # K
    width: int = 64  # D, of a code
    beta: float = 0.25  # of the commitment
    positions: Literal["sum", "mean"] = "sum"  # over those of a picture; "mean": as van den Oord et al. 2017 have it
    update: Literal["average", "gradient"] = "average"  # of encoder outputs (their appendix A.1), or their eq. 3
    decay: float = 0.99  # gamma of the averages
    smoothing: float = 1e-5  # epsilon of the averages: vectors that each code is given for nothing
    kmeans: int = 10  # iterations on the first batch, from which the codes begin; 0: they begin at random
    revive_below: float = 0.03  # a code chosen less than so often, in units of the mean of all, moves; 0: none does

    def __post_init__(self) -> None:
        for name in ("codes", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("beta", "smoothing", "kmeans"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, but it is {getattr(self, name)}")
        for name in ("decay", "revive_below"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is a share of at least 0 and below 1, not {getattr(self, name)}")


class Quantised(NamedTuple):
    """What became of a map of vectors."""

    vectors: Tensor  # z_q, (B, D, h, w); the gradient that reaches it goes to z_e unaltered
    codes: Tensor  # (B, h, w) int64
    commitment: Tensor  # beta |z_e - sg[z_q]|^2 of each picture, (B,)
    codebook: Tensor  # |sg[z_e] - z_q|^2 of each picture, (B,); 0 where the codes are averages
    usage: Tensor  # share of the codes that were chosen, ()
    perplexity: Tensor  # exp of the entropy of the choices: so many codes, chosen equally often, say as much; ()


@dataclass
class Seen:
    """What training has chosen since the codebook last moved: what it needs to move by, of any number of parts."""

    counts: Tensor  # n_i, how many vectors chose each code, (K,)
    sums: Tensor  # of those vectors, (K, D)
    lots: Tensor  # of the vectors that may become codes: the M smallest, rising, (M,)
    vectors: Tensor  # which those are, (M, D)


class VectorQuantiser(nn.Module):
    """Each vector becomes the nearest of K codes.

        k = argmin_i |z_e - e_i|^2,    z_q = e_k,    d z_q / d z_e = I (straight through)

        commitment  beta |z_e - sg[z_q]|^2          codebook  |sg[z_e] - z_q|^2

    Squares are summed over D, and over the positions of a picture or averaged, as the config says. Codes that are
    learned by gradient follow the second term. Codes that are averages follow, at each step of training (eq. 6-8),

        N_i <- gamma N_i + (1 - gamma) n_i,   m_i <- gamma m_i + (1 - gamma) sum_j z_ij,   e_i = m_i / N'_i

    with N'_i = (N_i + epsilon) N / (N + K epsilon), N the sum of all N_i. `after_step` is that step; it sees the
    vectors of all parts of the batch, and of all processes, so that neither changes what is learned. The first of them
    instead moves the codes to where k-means finds the vectors of the first batch; later ones move codes that are hardly
    ever chosen to vectors of the batch. Which vectors those are, lots decide that come from each picture's seed, the
    farther a vector is from its code the likelier; so no code moves to where there is one.

    Source: van den Oord et al. 2017 (arXiv 1711.00937), section 3.2, eq. 1-3, appendix A.1; survey, Box 2. Codes that
    move: Dhariwal et al. 2020 (arXiv 2005.00341), section 3.1.
    """

    counts: Tensor
    sums: Tensor
    updates: Tensor

    def __init__(self, config: CodebookConfig) -> None:
        super().__init__()
        self.config = config
        codebook = torch.randn(config.codes, config.width) * config.width**-0.5  # of a length near 1
        self.codebook: Tensor
        if config.update == "gradient":
            self.codebook = nn.Parameter(codebook)  # (K, D)
        else:
            self.register_buffer("codebook", codebook)
        self.register_buffer("counts", torch.ones(config.codes))  # N, (K,)
        self.register_buffer("sums", codebook.clone())  # m, (K, D)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))  # steps made
        self.seen: Seen | None = None  # within one step; no state of a run

    def forward(self, z: Tensor, chance: Tensor | None = None) -> Quantised:
        """Quantise z_e (B, D, h, w), which autocast does not make any coarser.

        chance  uniform on [0, 1), (B, h, w), from each picture's seed; needed while training, which also remembers
                what was chosen until `after_step`

        Raises `ValueError` where it is missing.
        """
        with torch.autocast(z.device.type, enabled=False):
            # (B, h, w, D); not a view, at which torch.compile fails
            vectors = at_least_float32(z).permute(0, 2, 3, 1).contiguous()
            codes = self.nearest(vectors)
            found = F.embedding(codes, self.codebook)  # z_q, (B, h, w, D)
            commitment = self._over_positions((vectors - found.detach()).square().sum(-1))
            codebook = self._over_positions((vectors.detach() - found).square().sum(-1))
        if self.training and torch.is_grad_enabled():
            if chance is None:
                raise ValueError("a codebook that learns needs a number of chance for each vector")
            self._see(vectors.detach(), codes, chance)
        chosen = torch.bincount(codes.flatten(), minlength=self.config.codes)
        through = found.detach() + (vectors - vectors.detach())  # z_q to the last bit: the bracket is 0
        return Quantised(
            through.permute(0, 3, 1, 2).contiguous(),
            codes,
            self.config.beta * commitment,
            codebook if self.config.update == "gradient" else torch.zeros_like(codebook),
            (chosen > 0).float().mean(),
            torch.exp(torch.special.entr(chosen / max(codes.numel(), 1)).sum()),
        )

    def nearest(self, vectors: Tensor) -> Tensor:
        """Which code is nearest to each of (..., D): (...) int64."""
        return nearest(vectors.flatten(0, -2), self.codebook).view(vectors.shape[:-1])

    def lookup(self, codes: Tensor) -> Tensor:
        """z_q of codes (B, h, w): (B, D, h, w)."""
        return F.embedding(codes, self.codebook).permute(0, 3, 1, 2)

    def _over_positions(self, squares: Tensor) -> Tensor:
        """(B, h, w) -> (B,)."""
        return squares.flatten(1).sum(1) if self.config.positions == "sum" else squares.flatten(1).mean(1)

    def _begins(self) -> bool:
        """Whether this step is the one at which k-means says where the codes are."""
        return self.config.kmeans > 0 and int(self.updates) == 0

    def _most(self) -> int:
        """How many vectors may be needed as codes at the end of this step."""
        return self.config.codes * START_VECTORS if self._begins() else self.config.codes

    @torch.no_grad()
    def _see(self, vectors: Tensor, codes: Tensor, chance: Tensor) -> None:
        """Keep what `after_step` needs, in memory that does not grow with the batch."""
        flat, chosen = vectors.flatten(0, 2), codes.flatten()  # (B h w, D), (B h w,)
        lots = -torch.log1p(-chance.flatten().to(flat))
        if not self._begins():  # the smallest lot is then a vector's as often as its distance is in all distances
            distances = (flat - F.embedding(chosen, self.codebook)).square().sum(1)
            lots = (lots / distances).nan_to_num(torch.inf, torch.inf)
        counts = torch.bincount(chosen, minlength=self.config.codes).to(flat)
        sums = flat.new_zeros(self.sums.shape).index_add_(0, chosen, flat)
        new, most = Seen(counts, sums, lots, flat), self._most()
        self.seen = _together([new] if self.seen is None else [self.seen, new], most)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the codebook by what training has chosen since the last call, in all processes.

        By nothing, or by vectors that are no numbers, it stays.
        """
        if self.seen is None:
            return
        most = self._most()
        seen, self.seen = _of_all_processes(self.seen, most), None
        if not seen.sums.isfinite().all():
            return
        if self._begins():
            self._begin(seen)
        else:
            self.counts.lerp_(seen.counts.to(self.counts), 1 - self.config.decay)
            self.sums.lerp_(seen.sums.to(self.sums), 1 - self.config.decay)
            if self.config.update == "average":
                self.codebook.copy_(self._averages())
            if self.config.revive_below:
                self._revive(seen)
        self.updates += 1

    def _averages(self) -> Tensor:
        """e_i = m_i / N'_i, (K, D); of a code that was never chosen there is nothing to average: as it was."""
        total, epsilon = self.counts.sum(), self.config.smoothing
        smoothed = (self.counts + epsilon) * (total / (total + self.config.codes * epsilon))
        return torch.where(self.counts[:, None] > 0, self.sums / smoothed[:, None], self.codebook)

    def _begin(self, seen: Seen) -> None:
        """The codes are the means of k-means; those for which there are no vectors stay where they are."""
        means, counts = kmeans(seen.vectors, spread(seen.vectors, seen.lots, self.config.codes), self.config.kmeans)
        some = len(means)
        self.codebook[:some] = means.to(self.codebook)
        self.counts.zero_()
        self.counts[:some] = (counts * (seen.counts.sum() / len(seen.vectors))).to(self.counts)
        self.sums.copy_(self.codebook * self.counts[:, None])

    def _revive(self, seen: Seen) -> None:
        """Codes that are hardly ever chosen move to vectors of the batch, and count as often chosen as the mean."""
        mean, free = self.counts.mean(), seen.vectors[seen.lots.isfinite()]
        dead = (self.counts < self.config.revive_below * mean).nonzero().flatten()[: len(free)]
        vectors = free[: len(dead)].to(self.codebook)
        self.codebook[dead], self.counts[dead], self.sums[dead] = vectors, mean, vectors * mean


@torch.no_grad()
def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """argmin_i |x - e_i|^2 for each x of (N, D) among codes e (K, D): (N,) int64.

    That is argmax_i x.e_i - |e_i|^2 / 2, a matrix product of so many rows at a time that its answer fits a cache; the
    N x K distances are never there together.
    """
    lengths, columns = -0.5 * codebook.square().sum(1), codebook.T.contiguous()
    rows = max(SCORES // len(codebook), 1)
    codes = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    scores = codebook.new_empty(min(rows, len(vectors)), len(codebook))
    for first in range(0, len(vectors), rows):
        part = vectors[first : first + rows].to(codebook.dtype)
        torch.addmm(lengths, part, columns, out=scores[: len(part)])
        torch.argmax(scores[: len(part)], 1, out=codes[first : first + rows])
    return codes


@torch.no_grad()
def spread(vectors: Tensor, lots: Tensor, most: int) -> Tensor:
    """Up to so many of the vectors (N, D) that lie apart from each other: where k-means begins, (K, D).

    Each next one is that of the smallest lot over squared distance from those before, as k-means++ draws them (Arthur
    and Vassilvitskii 2007), but with the same lots (N,) for each. Fewer, if fewer differ.
    """
    distances, chosen, is_new = torch.full_like(lots, torch.inf), [], []
    scores = lots
    for _ in range(most):
        score, index = scores.min(0)
        chosen.append(index)
        is_new.append(score.isfinite())
        distances = torch.minimum(distances, (vectors - vectors[index]).square().sum(1))
        scores = (lots / distances).nan_to_num(torch.inf, torch.inf)
    return vectors[torch.stack(chosen)[torch.stack(is_new)]]


@torch.no_grad()
def kmeans(vectors: Tensor, means: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm on (N, D) from K means (K, D): the means, (K, D), and how many vectors each has, (K,).

    A mean without vectors stays. Source: Lloyd 1982, "Least squares quantization in PCM".
    """
    counts = torch.zeros_like(means[:, 0])
    for _ in range(iterations):
        codes = nearest(vectors, means)
        counts = torch.bincount(codes, minlength=len(means)).to(means)
        sums = torch.zeros_like(means).index_add_(0, codes, vectors)
        means = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), means)
    return means, counts


def _together(parts: list[Seen], most: int) -> Seen:
    """The same as if all had been seen at once, whatever their order."""
    lots, vectors = torch.cat([part.lots for part in parts]), torch.cat([part.vectors for part in parts])
    order = lots.sort().indices[:most]
    counts, sums = parts[0].counts, parts[0].sums
    for part in parts[1:]:
        counts, sums = counts + part.counts, sums + part.sums
    return Seen(counts, sums, lots[order], vectors[order])


def _of_all_processes(seen: Seen, most: int) -> Seen:
    """What all processes have seen; each of them gets the same, to the last bit."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return seen
    rows = torch.cat([seen.lots[:, None], seen.vectors], 1)  # (M, 1 + D)
    rows = F.pad(rows, (0, 0, 0, most - len(rows)), value=torch.inf)  # as many in each process
    gathered = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, rows)
    totals = torch.cat([seen.counts[:, None], seen.sums], 1)  # (K, 1 + D)
    distributed.all_reduce(totals)
    rows = torch.cat([part[part[:, 1].isfinite()] for part in gathered])
    order = rows[:, 0].sort().indices[:most]
    return Seen(totals[:, 0], totals[:, 1:], rows[order, 0], rows[order, 1:])
