"""Noise, and what a teacher's deterministic solver makes of it: what a student learns from in place of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..core.batch import PictureRandom, fold
from ..core.errors import ConfigError
from .predictions import Denoiser
from .solvers import Solver, Step
from .stepping import no_noise
from .times import on_cpu

Solve = Callable[[Tensor, Tensor | None], Tensor]  # noise (B, C, H, W), labels (B,) -> states (B, K, C, H, W)
PAIR = 7  # sets the noise of pair i apart from that of the sample of seed i, on which a student is judged


class Pairs(NamedTuple):
    """Some pairs.

    number  (B,) int64, on the CPU
    noise   (B, C, H, W), standard normal
    states  (B, K, C, H, W), on the teacher's trajectory; the last is its end
    labels  (B,) int64, or None
    """

    number: Tensor
    noise: Tensor
    states: Tensor
    labels: Tensor | None

    @property
    def end(self) -> Tensor:
        """What the solver made of the noise, (B, C, H, W)."""
        return self.states[:, -1]


class PairPool(nn.Module):
    """A fixed number of pairs of noise and teacher's answer, each made when it is first drawn, and then kept.

    Pair i is a function of i alone: its noise comes from a seed made of i, its label is i mod `classes`. What is kept
    are buffers, saved with the model, so that a resumed run neither solves a pair again nor sees another one. Where
    several processes share a batch, each makes the pairs that it draws, and those of the first are kept.

    pairs    how many there are
    shape    (C, H, W)
    classes  of the teacher; 0: pairs have no labels
    states   K, how many states of a trajectory are kept; 1: its end
    kept     False: nothing is, and a pair is made whenever it is drawn, for more pairs than there is memory

    Raises `ConfigError` for less than one pair or state.
    """

    states: Tensor
    made: Tensor

    def __init__(
        self, pairs: int, shape: tuple[int, int, int], classes: int = 0, *, states: int = 1, kept: bool = True
    ) -> None:
        super().__init__()
        if pairs < 1 or states < 1:
            raise ConfigError(f"a pool needs at least 1 pair and 1 state of each, not {pairs} and {states}")
        self.pairs, self.shape, self.classes, self.kept = pairs, tuple(shape), classes, kept
        rows = pairs if kept else 0
        self.register_buffer("states", torch.zeros(rows, states, *shape))
        self.register_buffer("made", torch.zeros(rows, dtype=torch.bool))

    def draw(self, random: PictureRandom, solve: Solve) -> Pairs:
        """One pair for each row of `random`, any of them with equal chance; see `take`."""
        return self.take(on_cpu(random).integers(0, self.pairs), solve)

    def take(self, index: Tensor, solve: Solve) -> Pairs:
        """The pairs of these numbers, (B,) int64 on the CPU.

        solve  asked once, for all that are missing; it runs without gradients, and never in reduced precision, so that
               a pair does not depend on how the student is trained
        """
        if not self.kept:
            return Pairs(index, self.noise(index), self._solved(index, solve), self.labels(index))
        here = index.to(self.made.device)
        missing = index[~self.made[here].cpu()].unique()
        if len(missing):
            there = missing.to(self.made.device)
            self.states[there] = self._solved(missing, solve).to(self.states.dtype)
            self.made[there] = True
        return Pairs(index, self.noise(index), self.states[here], self.labels(index))

    def noise(self, index: Tensor) -> Tensor:
        """The noise of these pairs, (B, C, H, W), on the pool's device and in its dtype."""
        random = PictureRandom([fold(PAIR, i) for i in index.tolist()], self.made.device)
        return random.normal(*self.shape).to(self.states.dtype)

    def labels(self, index: Tensor) -> Tensor | None:
        """The labels of these pairs, (B,), on the pool's device; None without classes."""
        return (index % self.classes).to(self.made.device) if self.classes else None

    @torch.no_grad()
    def _solved(self, index: Tensor, solve: Solve) -> Tensor:
        with torch.autocast(self.made.device.type, enabled=False):
            return solve(self.noise(index), self.labels(index))


def trajectory(
    solver: Solver, denoiser: Denoiser, x: Tensor, grid: Tensor, kept: Sequence[int] = (-1,)
) -> Tensor:  # (B, K, C, H, W)
    """The states that a deterministic solver passes.

    x     the state at grid[0], (B, C, H, W)
    kept  their places in the grid, rising; -1 is the end

    Raises `ConfigError` for a stochastic solver, one that does not stop at the places, or places outside the grid.
    """
    places = [place % len(grid) for place in kept if -len(grid) <= place < len(grid)]
    if len(places) != len(kept) or places != sorted(set(places)):
        raise ConfigError(f"a grid of {len(grid)} times has no places {tuple(kept)} in this order")
    passed: list[Tensor] = []

    def look(step: Step) -> None:
        if step.number in places:
            passed.append(step.denoised.x)

    end = solver(denoiser, x, grid, no_noise, look)
    if len(grid) - 1 in places:
        passed.append(end)
    if len(passed) != len(places):
        raise ConfigError("this solver chooses its own times, and only its end is known; use another, such as ddim")
    return torch.stack(passed, dim=1)
