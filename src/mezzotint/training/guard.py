"""Which gradients to use: a run survives a bad batch, and a run that cannot recover stops and says so."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..core.errors import TrainingError

MEMORY = 0.98  # of the usual norm's logarithm and of the share of skips, per gradient
SETTLING = 50  # accepted gradients before any can be called an outlier
MOST_SKIPPED = 0.8  # share of skips, over the last fifty or so, beyond which a run learns nothing


@dataclass
class GradientGuard:
    """Decides turn by turn, from the gradient's norm alone, whether one player's gradient is used.

    Skipped are norms that are not finite, and norms above `factor` times the usual one (the geometric moving average
    of the accepted ones). After `max_skips` in a row, or where four of five are skipped, the guard raises
    `TrainingError`: a run is never frozen silently.

    player   whose gradients these are
    setting  the optimizer's name in the recipe, for the remedy
    """

    player: str
    setting: str
    factor: float
    max_skips: int
    log_usual: float = 0.0
    accepted: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    skip_share: float = 0.0

    def accepts(self, norm: float) -> bool:
        """Whether to use a gradient of this norm. Raises `TrainingError` after too many refusals in a row."""
        if self._sane(norm):
            self._remember(norm)
            return True
        self.skipped += 1
        self.skipped_in_a_row += 1
        self.skip_share += (1.0 - MEMORY) * (1.0 - self.skip_share)
        if self.skipped_in_a_row >= self.max_skips or self.skip_share > MOST_SKIPPED:
            raise TrainingError(self._explain(norm))
        return False

    def _remember(self, norm: float) -> None:
        """Move the usual norm towards this one; a critic that is satisfied has norm 0, which says nothing of scale."""
        self.skipped_in_a_row = 0
        self.skip_share *= MEMORY
        if norm > 0.0:
            log_norm = math.log(norm)
            if self.accepted >= SETTLING:
                log_norm = max(log_norm, self.log_usual - math.log(self.factor))
            self.log_usual += max(1.0 - MEMORY, 1.0 / (self.accepted + 1)) * (log_norm - self.log_usual)
            self.accepted += 1

    def _sane(self, norm: float) -> bool:
        if not math.isfinite(norm):
            return False
        return self.accepted < SETTLING or norm <= self.factor * math.exp(self.log_usual)

    def _explain(self, norm: float) -> str:
        what = "not finite" if not math.isfinite(norm) else f"{norm:.3g}, usually {math.exp(self.log_usual):.3g}"
        return (
            f"{self.skipped_in_a_row} gradients of the player {self.player!r} in a row, {self.skip_share:.0%} of the"
            f" latest, could not be used (norm {what}); go on from the last checkpoint with a lower learning rate"
            f" (--resume --set optimizers.{self.setting}.lr=...), or with --resume --precision fp32"
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint must remember."""
        state = asdict(self)
        return {key: state[key] for key in ("log_usual", "accepted", "skipped", "skipped_in_a_row", "skip_share")}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        for key, value in state.items():
            setattr(self, key, value)
