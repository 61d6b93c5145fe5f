"""The chapter as code: a paper is an order, a causal network and a head."""

from __future__ import annotations

from ..core.system import Optimizer, Paper, Recipe, Stage, System
from .fvsbn import FVSBN, FVSBNConfig
from .made import MADE, MADEConfig

# A few minutes on two cores of a laptop
SMALL_RECIPE = Recipe(
    batch_size=100,
    optimizers={"model": Optimizer("adam", lr=3e-3)},
    warmup=0,
    ema_half_life=20_000,
    pixels="binary",
)

# Germain et al. 2015: batches of 100, until 30 passes bring nothing more, Adagrad at 0.01; here 100 passes with Adam
MADE_RECIPE = Recipe(
    batch_size=100,
    pictures=100 * 60_000,
    optimizers={"model": Optimizer("adam", lr=1e-3, clip=None)},
    warmup=0,
    ema_half_life=0,
    pixels="binary",
)

# 5.1: pixel by pixel -------------------------------------------------------------------------------------------------

fvsbn = System(
    name="fvsbn",
    title="Fully visible sigmoid belief net",
    paper=Paper("Graphical Models for Machine Learning and Digital Communication", "Frey", 1998),
    family="autoregressive",
    survey="section 5.1, eq. 65",
    summary=(
        "Each pixel is black or white by a logistic regression on the pixels before it. No hidden layers, a convex "
        "loss and an exact likelihood: what any deeper model of binary pictures should do better than."
    ),
    stages=(
        Stage(
            "model", FVSBN,
            {size: lambda data: FVSBNConfig(data.image_size, data.channels) for size in ("small", "paper")},
            {"small": SMALL_RECIPE, "paper": MADE_RECIPE},
        ),
    ),
)  # fmt: skip

made = System(
    name="made",
    title="Masked autoencoder for distribution estimation",
    paper=Paper(
        "MADE: Masked Autoencoder for Distribution Estimation", "Germain, Gregor, Murray, Larochelle", 2015,
        "1502.03509",
    ),
    family="autoregressive",
    survey="section 5.1, eq. 65",
    summary=(
        "An autoencoder with connections cut so that each pixel is told by the pixels before it alone: one pass gives "
        "the exact likelihood of a binary picture. With several sets of masks it is an ensemble over orders."
    ),
    stages=(
        Stage(
            "model", MADE,
            {
                "small": lambda data: MADEConfig(data.image_size, data.channels, widths=(1000,), direct=True),
                "paper": lambda data: MADEConfig(
                    data.image_size, data.channels, widths=(8000, 8000), direct=True, masks=32, orders="random"
                ),
            },
            {"small": SMALL_RECIPE, "paper": MADE_RECIPE},
        ),
    ),
)  # fmt: skip

SYSTEMS: tuple[System, ...] = (fvsbn, made)
