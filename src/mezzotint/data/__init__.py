"""Pictures in: sets of them, and batches for training."""

from .loader import Loader
from .pictures import Pictures, spread_over
from .sources import open_pictures

__all__ = ["Loader", "Pictures", "open_pictures", "spread_over"]
