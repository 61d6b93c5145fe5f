"""The way down, level by level: what is above comes as one state, and each level draws its group and passes it on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn

from ..core.batch import Batch
from .gaussian import Gaussian
from .groups import Choose, GroupedModel, Posterior
from .likelihoods import Likelihood
from .objectives import ObjectiveConfig


class Level(nn.Module, ABC):
    """One group of latents: p(z_l | z_<l), q(z_l | z_<l, x), and what the groups below are told of it.

    What is above comes as one tensor, the state. A level looks at it, and when z_l is drawn makes the state that goes
    on; only where z_l comes from differs between inference and generation.
    """

    @abstractmethod
    def look(self, state: Tensor) -> tuple[Gaussian, tuple[Tensor, ...]]:
        """p(z_l | z_<l), and whatever else the level needs of what is above."""

    @abstractmethod
    def posterior(self, prior: Gaussian, rest: tuple[Tensor, ...], seen: tuple[Tensor, ...]) -> Posterior:
        """q(z_l | z_<l, x).

        prior, rest  the answer of `look`
        seen         what the bottom-up pass found in the picture for this level
        """

    @abstractmethod
    def onward(self, state: Tensor, rest: tuple[Tensor, ...], z: Tensor) -> Tensor:
        """The state of the level below."""


class TopDownModel(GroupedModel):
    """A hierarchy whose groups are levels, each of which knows those above it by one state.

    A column of the KL is a dimension of a group of vectors, or a channel of a group of maps, summed over the map: what
    free bits are given to.

    levels  from the top
    shapes  of their groups
    """

    by_channel = True
    levels: nn.ModuleList

    def __init__(
        self, likelihood: Likelihood, objective: ObjectiveConfig, levels: list[Level], shapes: list[tuple[int, ...]]
    ) -> None:  # fmt: skip
        super().__init__(likelihood, objective)
        self.levels, self.shapes = nn.ModuleList(levels), shapes

    @abstractmethod
    def bottom_up(self, images: Tensor) -> list[tuple[Tensor, ...]]:
        """What is seen in pictures for each level, from the top; as many tensors for one level as for another."""

    @abstractmethod
    def start(self, n: int) -> Tensor:
        """The state above the top level, n rows."""

    @abstractmethod
    def finish(self, state: Tensor) -> Tensor:
        """Numbers for the pixels, of the state below the lowest level: (B, outputs, H, W)."""

    def recognise(self, batch: Batch) -> tuple[Tensor, ...]:
        """The bottom-up pass."""
        return tuple(part for parts in self.bottom_up(batch.images) for part in parts)

    def descend(self, rows: int, seen: tuple[Tensor, ...] | None, choose: Choose) -> Tensor:
        """See `GroupedModel.descend`."""
        state, each = self.start(rows), len(seen or ()) // len(self.levels)
        for group, level in enumerate(self._levels()):
            prior, rest = level.look(state)
            its = seen[group * each : (group + 1) * each] if seen is not None else None
            posterior = level.posterior(prior, rest, its) if its is not None else None
            state = level.onward(state, rest, choose(group, prior, posterior))
        return self.finish(state)

    def _levels(self) -> Iterator[Level]:
        return (cast("Level", level) for level in self.levels)
