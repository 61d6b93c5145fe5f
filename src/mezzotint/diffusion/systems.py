"""The chapter as code: each paper is one choice along each axis of `DenoisingConfig`."""

from __future__ import annotations

from typing import Literal

from ..core.batch import PictureSpec
from ..core.system import Optimizer, Paper, Recipe, Stage, System
from ..nn.unet import UNetConfig
from .model import DenoisingConfig, DenoisingModel
from .networks import ddpm_unet, small_unet


def _ddpm(
    data: PictureSpec, network: UNetConfig, solver: Literal["ancestral", "ddim"], steps: int, guidance: float
) -> DenoisingConfig:
    return DenoisingConfig(
        image_size=data.image_size, channels=data.channels, classes=len(data.classes), network=network,
        path="linear", prediction="noise", times="discrete", weighting="simple",
        solver=solver, grid="leading", steps=steps, clip=True, guidance=guidance if data.classes else 0.0,
    )  # fmt: skip


def _rectified_flow(
    data: PictureSpec, network: UNetConfig, times: Literal["uniform", "logit-normal"], guidance: float
) -> DenoisingConfig:
    return DenoisingConfig(
        image_size=data.image_size, channels=data.channels, classes=len(data.classes), network=network,
        path="straight", prediction="velocity", times=times, weighting="simple",
        solver="euler", grid="uniform", steps=20, clip=False, guidance=guidance if data.classes else 0.0,
    )  # fmt: skip


SMALL_RECIPE = Recipe(
    batch_size=64,
    optimizers={"model": Optimizer("adamw", lr=1.5e-3, betas=(0.9, 0.99), weight_decay=0.01)},
    warmup=5_000,
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
    stages=(
        Stage(
            name="model",
            model=DenoisingModel,
            sizes={
                "small": lambda data: _ddpm(data, small_unet(data), "ddim", steps=50, guidance=1.0),
                "paper": lambda data: _ddpm(data, ddpm_unet(data), "ancestral", steps=1000, guidance=0.0),
            },
            recipes={"small": SMALL_RECIPE, "paper": PAPER_RECIPE},
        ),
    ),
)  # fmt: skip

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
    stages=(
        Stage(
            name="model",
            model=DenoisingModel,
            sizes={
                "small": lambda data: _rectified_flow(data, small_unet(data), times="logit-normal", guidance=1.0),
                # The paper trains DDPM++ (Song et al. 2021); with DDPM's UNet both systems differ in the path alone.
                "paper": lambda data: _rectified_flow(data, ddpm_unet(data), times="uniform", guidance=0.0),
            },
            recipes={"small": SMALL_RECIPE, "paper": PAPER_RECIPE},
        ),
    ),
)  # fmt: skip

SYSTEMS = (ddpm, rectified_flow)
