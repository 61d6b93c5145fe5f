"""The chapter as code: each paper is one choice along each axis of `DenoisingConfig`, in the order of their years."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..core.batch import PictureSpec
from ..core.config import Config
from ..core.model import Model
from ..core.system import Optimizer, Paper, Recipe, Stage, System
from .model import DenoisingConfig, DenoisingModel
from .networks import ddpm_unet, small_unet

Kind = TypeVar("Kind", bound=DenoisingConfig)

# A few minutes on two cores of a laptop: many small steps, a short memory of the average.
SMALL_RECIPE = Recipe(
    batch_size=32,
    optimizers={"model": Optimizer("adamw", lr=1.5e-3, betas=(0.9, 0.99), weight_decay=0.01)},
    warmup=2_000,
    ema_half_life=20_000,
)

# Ho et al. 2020, appendix B: batch 128, Adam at 2e-4, EMA 0.9999, 800 k steps, random flips
PAPER_RECIPE = Recipe(
    batch_size=128,
    pictures=102_400_000,
    optimizers={"model": Optimizer("adam", lr=2e-4)},
    warmup=640_000,
    decay="constant",
    ema_half_life=887_000,
    flip=True,
)


def _config(kind: type[Kind], data: PictureSpec, network: Any, *, guidance: float = 0.0, **choices: Any) -> Kind:
    """The config of a model of such pictures; guided only where there are classes to be guided towards."""
    return kind(
        image_size=data.image_size, channels=data.channels, classes=len(data.classes), network=network,
        guidance=guidance if data.classes else 0.0, **choices,
    )  # fmt: skip


def _one_stage(
    model: type[Model], sizes: Mapping[str, Callable[[PictureSpec], Config]], paper: Recipe = PAPER_RECIPE,
    small: Recipe = SMALL_RECIPE,
) -> tuple[Stage, ...]:  # fmt: skip
    """The stages of a system that is one model."""
    return (Stage("model", model, sizes, {"small": small, "paper": paper}),)


# Section 6: diffusion -------------------------------------------------------------------------------------------------

DDPM: dict[str, Any] = {
    "path": "linear", "prediction": "noise", "times": "discrete", "weighting": "simple", "grid": "leading", "clip": True,
}  # fmt: skip

ddpm = System(
    name="ddpm",
    title="Denoising diffusion probabilistic model",
    paper=Paper("Denoising Diffusion Probabilistic Models", "Ho, Jain, Abbeel", 2020, "2006.11239"),
    family="diffusion",
    survey="section 6, eq. 82-86 and Box 8; guidance: eq. 92",
    summary=(
        "A picture is buried in noise in a thousand small steps, and a UNet learns to see the noise at every step. "
        "Sampling starts from pure noise and takes the noise away again, step by step or, with DDIM, in a few strides."
    ),
    stages=_one_stage(DenoisingModel, {
        "small": lambda data: _config(
            DenoisingConfig, data, small_unet(data), **DDPM, solver="ddim", steps=50, guidance=1.0
        ),
        "paper": lambda data: _config(DenoisingConfig, data, ddpm_unet(data), **DDPM, solver="ancestral", steps=1000),
    }),
)  # fmt: skip

# Section 7: flows -----------------------------------------------------------------------------------------------------

RECTIFIED: dict[str, Any] = {
    "path": "straight", "prediction": "velocity", "weighting": "simple", "solver": "euler", "grid": "uniform",
    "steps": 20, "clip": False,
}  # fmt: skip

rectified_flow = System(
    name="rectified-flow",
    title="Rectified flow",
    paper=Paper(
        "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
        "Liu, Gong, Liu", 2022, "2209.03003",
    ),
    family="diffusion",
    survey="section 7.1, eq. 103-105 and Box 10; guidance: eq. 92",
    summary=(
        "Noise and picture are joined by a straight line, and a UNet learns the mean direction of all lines through a "
        "point. Following that direction from noise, in twenty steps of Euler's method, arrives at a picture."
    ),
    stages=_one_stage(DenoisingModel, {
        "small": lambda data: _config(
            DenoisingConfig, data, small_unet(data), **RECTIFIED, times="logit-normal", guidance=1.0
        ),
        # The paper trains DDPM++ (Song et al. 2021); with DDPM's UNet both systems differ in the path alone.
        "paper": lambda data: _config(DenoisingConfig, data, ddpm_unet(data), **RECTIFIED, times="uniform"),
    }),
)  # fmt: skip

SYSTEMS = (ddpm, rectified_flow)
