"""Which gradients to use: a run survives a bad batch, and a run that cannot recover stops and says so."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..core.errors import TrainingError

MEMORY = 0.98  # of the usual norm's logarithm, per accepted gradient
SETTLING = 50  # accepted gradients before any can be called an outlier


@dataclass
class GradientGuard:
    """Decides turn by turn, from the gradient's norm alone, whether one player's gradient is used.

    Skipped are norms that are not finite, and norms above `factor` times the usual one (the geometric moving average
    of the accepted ones). After `max_skips` in a row the guard raises `TrainingError`: a run is never frozen silently.
    """

    player: str
    factor: float
    max_skips: int
    log_usual: float = 0.0
    accepted: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0

    def accepts(self, norm: float) -> bool:
        """Whether to use a gradient of this norm. Raises `TrainingError` after too many refusals in a row."""
        if self._sane(norm):
            log_norm = math.log(max(norm, 1e-30))
            weight = max(1.0 - MEMORY, 1.0 / (self.accepted + 1))
            self.log_usual += weight * (log_norm - self.log_usual)
            self.accepted += 1
            self.skipped_in_a_row = 0
            return True
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self.max_skips:
            raise TrainingError(self._explain(norm))
        return False

    def _sane(self, norm: float) -> bool:
        if not math.isfinite(norm):
            return False
        return self.accepted < SETTLING or norm <= self.factor * math.exp(self.log_usual)

    def _explain(self, norm: float) -> str:
        what = "not finite" if not math.isfinite(norm) else f"{norm:.3g}, usually {math.exp(self.log_usual):.3g}"
        return (
            f"{self.skipped_in_a_row} gradients of the player {self.player!r} in a row could not be used (norm {what});"
            f" resume from the last checkpoint with a lower learning rate (--set optimizers.{self.player}.lr=...),"
            " or with --precision fp32"
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint must remember."""
        state = asdict(self)
        return {key: state[key] for key in ("log_usual", "accepted", "skipped", "skipped_in_a_row")}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        for key, value in state.items():
            setattr(self, key, value)
