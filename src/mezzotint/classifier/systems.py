"""The judge as code: a wide residual network, small and as published."""

from __future__ import annotations

from ..core.system import Optimizer, Paper, Recipe, Stage, System
from .model import Classifier, ClassifierConfig

SYSTEMS = (
    System(
        name="classifier",
        title="Wide residual network",
        paper=Paper("Wide Residual Networks", "Zagoruyko, Komodakis", 2016, "1605.07146"),
        family="judge",
        survey="sections 3.1 and 3.3: what Inception Score and FID take their features from",
        summary=(
            "No generator: a judge. It learns to name the class of a picture, and then says how many of a generator's "
            "pictures show what they should. What its last layer sees describes a picture for Fréchet distance, "
            "precision and recall."
        ),
        needs=frozenset({"labels"}),
        stages=(
            Stage(
                name="model",
                model=Classifier,
                sizes={
                    # without statistics of the batch, so that several processes train the very same network as one
                    "small": lambda data: ClassifierConfig(
                        data.channels, len(data.classes), depth=10, width=2, norm="weight", stride=2, max_shift=2
                    ),
                    "paper": lambda data: ClassifierConfig(
                        data.channels, len(data.classes), depth=28, width=10, norm="batch", max_shift=4
                    ),
                },
                recipes={
                    "small": Recipe(
                        batch_size=64, pictures=150_000, warmup=3_000, ema_half_life=0,
                        optimizers={"model": Optimizer("adamw", lr=5e-3, weight_decay=0.05)},
                    ),
                    # section 3: SGD with momentum, 200 epochs, shifts by 4 px, flips; here a cosine for three drops
                    "paper": Recipe(
                        batch_size=128, pictures=10_000_000, warmup=0, ema_half_life=0, flip=True,
                        optimizers={"model": Optimizer("sgd", lr=0.1, betas=(0.9, 0.0), weight_decay=5e-4, clip=None)},
                    ),
                },
            ),
        ),
    ),
)  # fmt: skip
