"""The chapter as code, section by section: most papers are one choice along each axis of `DenoisingConfig`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from ..core.batch import PictureSpec
from ..core.config import Config
from ..core.model import Model
from ..core.system import Optimizer, Paper, Recipe, Stage, System
from ..nn.dit import dit_config
from ..nn.ncsnpp import NCSNppConfig, ddpmpp_config, ncsnpp_config
from ..nn.unet import UNetConfig
from .adm import ADM, BLOCKS, ADMConfig, adm_unet, noisy_classifier_config, small_adm
from .boundary import BoundaryConfig, BoundaryModel
from .chain import ChainConfig, ChainModel
from .classifier_guidance import NoisyClassifier
from .consistency import ConsistencyConfig, ConsistencyDistillation, ConsistencyTraining
from .dfno import DFNOConfig, DFNOModel
from .dmd import DMDConfig, DMDModel
from .likelihood import FlowModel
from .model import DenoisingConfig, DenoisingModel
from .networks import ddpm_unet, improved_ddpm_unet, small_ddpmpp, small_dit, small_ncsnpp, small_unet
from .neural_ode import NeuralODE, NeuralODEConfig
from .optimal import OptimalFlowConfig, OptimalFlowModel
from .progressive import ProgressiveStudent, published_unet
from .reflow import ReflowConfig, ReflowModel
from .transport import TransportConfig, TransportModel

Kind = TypeVar("Kind", bound=DenoisingConfig)

# A few minutes on two cores of a laptop: many small steps, a short memory of the average.
SMALL_RECIPE = Recipe(
    batch_size=16,
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

# Training of the chains: any of a thousand steps, the noise as it is seen at that step.
CHAIN: dict[str, Any] = {
    "path": "linear", "prediction": "noise", "times": "discrete", "grid": "leading", "clip": True,
}  # fmt: skip
# How chains of a laptop draw. A network that saw few pictures errs most where a picture is nearly lost in its noise;
# steps that draw fresh noise forget these errors, which DDIM in as many evaluations keeps, as speckles.
QUICK: dict[str, Any] = {"solver": "ancestral", "steps": 50}
QUICK_LEARNED: dict[str, Any] = {"solver": "ancestral-learned", "steps": 50}  # with the variance that was learned

dpm = System(
    name="dpm",
    title="Diffusion probabilistic model",
    paper=Paper(
        "Deep Unsupervised Learning using Nonequilibrium Thermodynamics",
        "Sohl-Dickstein, Weiss, Maheswaranathan, Ganguli", 2015, "1503.03585",
    ),
    family="diffusion",
    survey="section 6, eq. 74-81",
    summary=(
        "A picture diffuses into noise as sugar does into tea, in small Gaussian steps, and a network learns mean and "
        "variance of each step back. It is trained on the bound of the likelihood itself. The network and the form of "
        "its mean are DDPM's, which came later; the chain, the learned variance and the objective are those of 2015."
    ),
    stages=_one_stage(ChainModel, {
        "small": lambda data: _config(
            ChainConfig, data, small_unet(data), **CHAIN, variance="learned", objective="vlb",
            solver="ancestral-learned", steps=100,
        ),
        "paper": lambda data: _config(
            ChainConfig, data, ddpm_unet(data), **CHAIN, variance="learned", objective="vlb",
            solver="ancestral-learned", steps=1000,
        ),
    }),
)  # fmt: skip

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
    stages=_one_stage(ChainModel, {
        "small": lambda data: _config(ChainConfig, data, small_unet(data), **CHAIN, **QUICK, guidance=1.0),
        # The variance is that of their program for CIFAR-10
        "paper": lambda data: _config(
            ChainConfig, data, ddpm_unet(data), **CHAIN, solver="ancestral-large", steps=1000
        ),
    }),
)  # fmt: skip

# The hybrid objective draws all times alike. The paper's best bound, 2.94 bits/dim in the survey's table VI, is that of
# objective=vlb with times=loss-second-moment, which it finds of no help to the hybrid objective (section 3.3).
HYBRID: dict[str, Any] = {**CHAIN, "variance": "learned", "objective": "hybrid"}

improved_ddpm = System(
    name="improved-ddpm",
    title="Improved denoising diffusion probabilistic model",
    paper=Paper("Improved Denoising Diffusion Probabilistic Models", "Nichol, Dhariwal", 2021, "2102.09672"),
    family="diffusion",
    survey="section 6.1, eq. 87-88 and table VI; guidance: eq. 92",
    summary=(
        "DDPM whose network also says how uncertain each step back is, trained by the simple loss with a little of the "
        "bound beside it. Noise grows as a cosine. The bound becomes competitive, most of all where it is the whole "
        "loss and steps of large loss are drawn more often, and few steps suffice for good pictures."
    ),
    stages=_one_stage(
        ChainModel,
        {
            "small": lambda data: _config(
                ChainConfig, data, small_unet(data), **{**HYBRID, "path": "cosine"}, **QUICK_LEARNED, guidance=1.0
            ),
            "paper": lambda data: _config(
                ChainConfig, data, improved_ddpm_unet(data), **{**HYBRID, "path": "cosine-4000"},
                solver="ancestral-learned", steps=4000,
            ),
        },
        # 500 k steps, EMA 0.9999, no flips
        replace(
            PAPER_RECIPE, optimizers={"model": Optimizer("adam", lr=1e-4, clip=None)}, pictures=64_000_000, warmup=0,
            flip=False,
        ),
    ),
)  # fmt: skip

# Score-based models ---------------------------------------------------------------------------------------------------

# What is learned is the score, by predicting the noise, which weights it by sigma^2 as the paper does.
SCORE: dict[str, Any] = {"prediction": "noise", "times": "uniform", "weighting": "simple", "clip": False}
PAPER_SDE: dict[str, Any] = {"grid": "uniform", "steps": 1000}  # and the samplers of their programs for CIFAR-10
# On a laptop, steps that draw fresh noise, few and well placed, for the reason that `QUICK` has; the paper's samplers
# are --solver predictor-corrector and euler-maruyama, in some hundreds.
QUICK_SDE: dict[str, Any] = {"solver": "ancestral", "grid": "karras", "steps": 40}
SMALL_DENSITY = replace(SMALL_RECIPE, pixels="dequantised")  # a density needs pictures that have one
# Song et al. 2021, appendix G: 1.3 M steps of 128, EMA 0.999 (VE) or 0.9999 (VP)
PAPER_SCORE = replace(PAPER_RECIPE, pictures=166_400_000, pixels="dequantised")


def _score_sde(
    kind: str, title: str, summary: str, small: Any, paper: Any, recipe: Recipe = PAPER_SCORE, **choices: Any
) -> System:
    same: dict[str, Any] = {**SCORE, "path": kind}
    return System(
        name=f"score-sde-{kind}",
        title=title,
        paper=Paper(
            "Score-Based Generative Modeling through Stochastic Differential Equations",
            "Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole", 2021, "2011.13456",
        ),
        family="diffusion",
        survey="section 6.1, table VI; guidance: eq. 92",
        summary=summary,
        stages=_one_stage(
            FlowModel,
            {
                "small": lambda data: _config(
                    DenoisingConfig, data, small(data.image_size), **{**same, **QUICK_SDE, **choices}, guidance=1.0
                ),
                "paper": lambda data: _config(
                    DenoisingConfig, data, paper(data.image_size), **same, **PAPER_SDE,
                    solver="predictor-corrector" if kind == "ve" else "euler-maruyama",
                ),
            },
            recipe, SMALL_DENSITY,
        ),
    )  # fmt: skip


score_sde_vp = _score_sde(
    "vp", "Score-based model, variance-preserving SDE",
    "Diffusion without steps: pictures follow a stochastic differential equation into noise, and the score, the "
    "gradient of the log-density, turns it round. DDPM is this one in steps. The same score drives an ordinary "
    "equation, through which every picture has an exact likelihood.",
    small_ddpmpp, ddpmpp_config,
)  # fmt: skip
score_sde_ve = _score_sde(
    "ve", "Score-based model, variance-exploding SDE",
    "The picture stays as it is while noise grows until it drowns it: the continuous form of score matching with "
    "Langevin dynamics. NCSN++ learns the score at every noise level, and a predictor and a corrector take turns. At "
    "the small size it predicts as EDM does, and draws in ancestral steps.",
    small_ncsnpp, ncsnpp_config, replace(PAPER_SCORE, ema_half_life=88_700),
    # Unlike the paper, whose network learns the noise alone, under noise in all sizes: an error in that is fifty times
    # as large in the picture at first, and a laptop has not the time to make it small.
    unit_input=True, prediction="edm", weighting="edm",
)  # fmt: skip
score_sde_subvp = _score_sde(
    "subvp", "Score-based model, sub-VP SDE",
    "A diffusion whose variance is below that of the variance-preserving one at every time, found because it makes "
    "likelihoods better.",
    small_ddpmpp, ddpmpp_config,
)  # fmt: skip

# All choices of Karras et al. 2022; the weight is 1 on what this network predicts.
KARRAS: dict[str, Any] = {
    "path": "edm", "prediction": "edm", "unit_input": True, "times": "log-normal", "weighting": "edm",
    "solver": "edm", "grid": "karras", "clip": False,
}  # fmt: skip


def edm_network(image_size: int) -> NCSNppConfig:
    """The network of Karras et al. 2022 for CIFAR-10, appendix F: DDPM++ of equal widths, dropout 0.13."""
    return replace(ddpmpp_config(image_size, multipliers=(2, 2, 2)), dropout=0.13)


edm = System(
    name="edm",
    title="Elucidated diffusion model",
    paper=Paper(
        "Elucidating the Design Space of Diffusion-Based Generative Models", "Karras, Aittala, Aila, Laine", 2022,
        "2206.00364",
    ),
    family="diffusion",
    survey="section 6.2; guidance: eq. 92",
    summary=(
        "Diffusion taken apart into choices that do not depend on each other, each made well: inputs and targets of "
        "variance one, noise levels drawn where there is something to learn, a curved grid of levels, and Heun's "
        "method, which needs few steps and also serves networks that were trained in other ways."
    ),
    stages=_one_stage(
        FlowModel,
        {
            "small": lambda data: _config(DenoisingConfig, data, small_unet(data), **KARRAS, steps=13, guidance=1.0),
            "paper": lambda data: _config(DenoisingConfig, data, edm_network(data.image_size), **KARRAS, steps=18),
        },
        # CIFAR-10: 200 M pictures in batches of 512, EMA half-life 500,000, rising over the first 10 M. Flips stand for
        # the paper's augmentation, and pictures are dequantised for the sake of the likelihood.
        Recipe(
            batch_size=512, pictures=200_000_000, warmup=10_000_000, decay="constant", ema_half_life=500_000,
            optimizers={"model": Optimizer("adam", lr=1e-3, clip=None)}, flip=True, pixels="dequantised",
        ),
        SMALL_DENSITY,
    ),
)  # fmt: skip

# Guidance -------------------------------------------------------------------------------------------------------------

# Dhariwal and Nichol 2021, section 4: half of a UNet, trained on the noisy pictures of the model that it guides
CLASSIFIER = Stage(
    "classifier", NoisyClassifier,
    {
        "small": lambda data: noisy_classifier_config(data.image_size, data.channels, len(data.classes), "small"),
        "paper": lambda data: noisy_classifier_config(data.image_size, data.channels, len(data.classes), "paper"),
    },
    {
        "small": replace(SMALL_RECIPE, batch_size=32, pictures=500_000),
        # The authors' command for 128 pixels
        "paper": Recipe(
            batch_size=256, pictures=76_800_000, warmup=0, decay="linear", ema_half_life=0, flip=True,
            optimizers={"model": Optimizer("adamw", lr=3e-4, weight_decay=0.05, clip=None)},
        ),
    },
    share=0.25,
)  # fmt: skip
BEATS_GANS = Paper("Diffusion Models Beat GANs on Image Synthesis", "Dhariwal, Nichol", 2021, "2105.05233")

noisy_classifier = System(
    name="noisy-classifier",
    title="Classifier of noisy pictures",
    paper=BEATS_GANS,
    family="diffusion",
    survey="section 6.2, eq. 90-91",
    summary=(
        "No generator, but what can guide one: it names the class of a picture that is still half noise, so that the "
        "gradient of its answer says how the picture must change to become more of that class."
    ),
    needs=frozenset({"labels"}),
    stages=(replace(CLASSIFIER, name="model"),),
)

adm = System(
    name="adm",
    title="Ablated diffusion model with classifier guidance",
    paper=BEATS_GANS,
    family="diffusion",
    survey="section 6.2, eq. 90-91 and figure 54",
    summary=(
        "A UNet that was improved one change at a time: deeper, more heads of attention at more resolutions, the time "
        "by scale and shift, residual blocks that change the resolution. A classifier of noisy pictures pushes each "
        "step of its sampling towards the class that was asked for."
    ),
    needs=frozenset({"labels"}),
    stages=(
        CLASSIFIER,
        Stage(
            "model", ADM,
            {
                "small": lambda data: _config(ADMConfig, data, small_adm(data), **HYBRID, **QUICK_LEARNED),
                "paper": lambda data: _config(
                    ADMConfig, data, adm_unet(data.image_size),
                    **{**HYBRID, "path": "cosine" if data.image_size <= 64 else "linear", "grid": "linspace"},
                    label_dropout=0.0, solver="ancestral-learned", steps=250,
                ),
            },
            {
                "small": SMALL_RECIPE,
                # ImageNet at 64 pixels: 540 k steps of 2048, EMA 0.9999; larger pictures have 256 and 1e-4
                "paper": replace(
                    PAPER_RECIPE, batch_size=2048, pictures=1_105_920_000, warmup=0, ema_half_life=14_195_000,
                    optimizers={"model": Optimizer("adamw", lr=3e-4, clip=None)},
                ),
            },
        ),
    ),
)  # fmt: skip

# Transformers ---------------------------------------------------------------------------------------------------------

dit = System(
    name="dit",
    title="Diffusion transformer",
    paper=Paper("Scalable Diffusion Models with Transformers", "Peebles, Xie", 2022, "2212.09748"),
    family="diffusion",
    survey="section 6.3, figures 58 and 59; guidance: eq. 92",
    summary=(
        "The UNet gives way to a transformer over patches. Time and class scale and shift its layers, each of which "
        "begins as the identity. More computation, by width, depth or smaller patches, means better "
        "pictures. The paper's works on the latents of a picture autoencoder; here it takes what it is given."
    ),
    stages=_one_stage(
        ChainModel,
        {
            "small": lambda data: _config(ChainConfig, data, small_dit(data), **HYBRID, **QUICK_LEARNED, guidance=1.0),
            "paper": lambda data: _config(
                ChainConfig, data, dit_config("XL/2"), **{**HYBRID, "clip": False, "grid": "linspace"},
                solver="ancestral-learned", steps=250,
            ),
        },
        Recipe(
            batch_size=256, pictures=1_792_000_000, warmup=0, decay="constant", ema_half_life=1_774_000,
            optimizers={"model": Optimizer("adamw", lr=1e-4, clip=None)}, flip=True,
        ),
        replace(  # of few pictures many steps
            SMALL_RECIPE, batch_size=8,
            optimizers={"model": Optimizer("adamw", lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0)},
        ),
    ),
)  # fmt: skip

# Distillation ---------------------------------------------------------------------------------------------------------

# A small student is nearly its teacher when it begins: it needs smaller steps, and fewer of them.
SMALL_STUDENT = replace(
    SMALL_RECIPE, pictures=500_000, warmup=1_000,
    optimizers={"model": Optimizer("adamw", lr=5e-4, betas=(0.9, 0.99), weight_decay=0.0)},
)  # fmt: skip

PROGRESSIVE: dict[str, Any] = {
    "path": "cosine", "times": "uniform", "weighting": "truncated-snr", "solver": "ddim", "grid": "uniform",
    "clip": True,
}  # fmt: skip


def _halving(steps: int, share: float) -> Stage:
    """The round whose student takes so many steps. Its teacher's guidance is in what it learns, so it needs none."""
    same: dict[str, Any] = {**PROGRESSIVE, "times": "discrete", "steps": steps, "label_dropout": 0.0}
    sizes = {
        "small": lambda data: _config(DenoisingConfig, data, small_unet(data), **same, prediction="v"),
        "paper": lambda data: _config(
            DenoisingConfig, data, published_unet(data.image_size, dropout=0.0), **same, prediction="clean"
        ),
    }
    # Salimans and Ho 2022: 50 k updates a round, 100 k in the last two, learning rate falling in a line, no average
    paper = Recipe(
        batch_size=128, pictures=6_400_000 if steps > 2 else 12_800_000, warmup=0, decay="linear", ema_half_life=0,
        optimizers={"model": Optimizer("adam", lr=5e-5)}, flip=True,
    )  # fmt: skip
    return Stage(f"student-{steps}", ProgressiveStudent, sizes, {"small": SMALL_STUDENT, "paper": paper}, share)


progressive_distillation = System(
    name="progressive-distillation",
    title="Progressive distillation",
    paper=Paper("Progressive Distillation for Fast Sampling of Diffusion Models", "Salimans, Ho", 2022, "2202.00512"),
    family="diffusion",
    survey="section 6.1, eq. 89; guidance: eq. 92",
    summary=(
        "A student learns to go in one step of DDIM where its teacher goes in two, and then becomes the teacher of the "
        "next. Six rounds turn a sampler of 64 steps into one of a single step, with the guidance built in."
    ),
    stages=(
        Stage(
            "teacher",
            DenoisingModel,
            {
                "small": lambda data: _config(
                    DenoisingConfig, data, small_unet(data), **PROGRESSIVE, prediction="v", steps=64, guidance=1.0
                ),
                # The paper begins at 8192 steps, seven rounds earlier.
                "paper": lambda data: _config(
                    DenoisingConfig, data, published_unet(data.image_size), **PROGRESSIVE, prediction="clean", steps=64
                ),
            },
            {
                "small": SMALL_RECIPE,
                "paper": replace(
                    PAPER_RECIPE, warmup=128_000, optimizers={"model": Optimizer("adamw", lr=2e-4, weight_decay=1e-3)}
                ),
            },
            share=12,
        ),
        *(_halving(steps, share) for steps, share in {32: 2, 16: 1, 8: 1, 4: 1, 2: 2, 1: 3}.items()),
    ),
)  # fmt: skip

dfno = System(
    name="dfno",
    title="Diffusion Fourier neural operator",
    paper=Paper(
        "Fast Sampling of Diffusion Models via Operator Learning",
        "Zheng, Nie, Vahdat, Azizzadenesheli, Anandkumar", 2022, "2211.13449",
    ),
    family="diffusion",
    survey="section 6.1, table VII; guidance: eq. 92",
    summary=(
        "The teacher's way from noise to picture is the solution of an equation, and a network learns the operator "
        "that solves it: one evaluation answers noise with the states at all times of the way. Convolutions along "
        "time, written as products of Fourier coefficients, let the states know each other."
    ),
    stages=(
        replace(progressive_distillation.stages[0], sizes={
            "small": lambda data: _config(
                DenoisingConfig, data, small_unet(data), **PROGRESSIVE, prediction="v", steps=16, guidance=1.0
            ),
            "paper": lambda data: _config(
                DenoisingConfig, data, published_unet(data.image_size), **PROGRESSIVE, prediction="clean", steps=512
            ),
        }, share=4),
        Stage(
            "student",
            DFNOModel,
            {
                # The picture weighs as much again over the last state as that over the one before.
                "small": lambda data: DFNOConfig(
                    data.image_size, data.channels, len(data.classes), small_unet(data), largest_weight=20.0,
                    pairs=1024, teacher_solver="dpm++2m", teacher_steps=16,
                ),
                # A million trajectories are more than a model can keep.
                "paper": lambda data: DFNOConfig(
                    data.image_size, data.channels, len(data.classes), published_unet(data.image_size),
                    pairs=1_000_000, keep_pairs=False, teacher_steps=512,
                ),
            },
            {
                "small": replace(SMALL_STUDENT, optimizers={
                    "model": Optimizer("adamw", lr=1.5e-3, betas=(0.9, 0.99), weight_decay=0.0)
                }),
                # The authors' settings for CIFAR-10, whose rate is halved three times, where here it falls in a line
                "paper": Recipe(
                    batch_size=256, pictures=102_400_000, optimizers={"model": Optimizer("adam", lr=2e-4, clip=None)},
                    warmup=2_560_000, decay="linear", final_lr=0.125, ema_half_life=1_774_000,
                ),
            },
        ),
    ),
)  # fmt: skip


def _consistency(data: PictureSpec, network: Any, **choices: Any) -> ConsistencyConfig:
    return ConsistencyConfig(data.image_size, data.channels, len(data.classes), network, **choices)


# Of which consistency distillation is the student
TEACHER: dict[str, Any] = {**KARRAS, "solver": "heun"}
DISTILLED: dict[str, Any] = {"growth": "none", "weighting": "simple"}  # Song et al. 2023

consistency_distillation = System(
    name="consistency-distillation",
    title="Consistency distillation",
    paper=Paper("Consistency Models", "Song, Dhariwal, Chen, Sutskever", 2023, "2303.01469"),
    family="diffusion",
    survey="section 6.1, fig. 53 and table VII; guidance: eq. 92",
    summary=(
        "One network takes every point of a teacher's trajectory to its end. It is trained to say the same of a noisy "
        "picture and of where the teacher's solver takes it next; one evaluation then draws a picture, a few more a "
        "better one."
    ),
    stages=(
        Stage(
            "teacher",
            DenoisingModel,
            {
                "small": lambda data: _config(
                    DenoisingConfig, data, small_unet(data), **TEACHER, steps=18, guidance=1.0
                ),
                "paper": lambda data: _config(DenoisingConfig, data, adm_unet(data.image_size), **TEACHER, steps=40),
            },
            {
                "small": SMALL_RECIPE,
                # For ImageNet at 64 pixels, as published with the paper: EMA 0.9999432 at a batch of 4096; RAdam there,
                # and how long is not said
                "paper": Recipe(
                    batch_size=4096, pictures=2_457_600_000, warmup=8_192_000, decay="constant",
                    optimizers={"model": Optimizer("adam", lr=1e-4, clip=None)}, ema_half_life=50_000_000, flip=True,
                ),
            },
            share=2,
        ),
        Stage(
            "student",
            ConsistencyDistillation,
            {
                # In so short a training the levels that matter come more often, and the target keeps up.
                "small": lambda data: _consistency(data, small_unet(data), **DISTILLED, s0=18, times="log-normal"),
                # The ablation with the squared metric; the best numbers are with LPIPS, a network of features.
                "paper": lambda data: _consistency(
                    data, replace(adm_unet(data.image_size), dropout=0.0), **DISTILLED, s0=40, times="uniform",
                    target_decay=0.95, metric="squared",
                ),
            },
            {
                "small": SMALL_STUDENT,
                # RAdam in the paper: Adam whose first two thousand steps are warm-up
                "paper": Recipe(
                    batch_size=2048, pictures=1_228_800_000, warmup=4_096_000, decay="constant",
                    optimizers={"model": Optimizer("adam", lr=8e-6, clip=None)}, ema_half_life=25_000_000, flip=True,
                ),
            },
        ),
    ),
)  # fmt: skip

# Song and Dhariwal 2024, CIFAR-10: 400 k steps of RAdam, EMA 0.99993; Adam here, whose first two thousand are warm-up
PAPER_CONSISTENCY = Recipe(
    batch_size=1024, pictures=409_600_000, optimizers={"model": Optimizer("adam", lr=1e-4, clip=None)},
    warmup=2_048_000, decay="constant", ema_half_life=10_140_000, flip=True,
)  # fmt: skip

consistency_training = System(
    name="consistency-training",
    title="Improved consistency training",
    paper=Paper("Improved Techniques for Training Consistency Models", "Song, Dhariwal", 2024, "2310.14189"),
    family="diffusion",
    survey="section 6.1, fig. 53",
    summary=(
        "A consistency model without a teacher: one network is trained to say the same of a picture under some noise "
        "and under a little more of the same noise. The steps between the two grow finer as training goes on."
    ),
    stages=_one_stage(ConsistencyTraining, {
        # The grid grows over total_steps, those of the recipe; a run of another budget needs another number.
        "small": lambda data: _consistency(
            data, small_unet(data), s0=10, s1=80, total_steps=SMALL_RECIPE.pictures // SMALL_RECIPE.batch_size
        ),
        "paper": lambda data: _consistency(
            data, replace(ncsnpp_config(data.image_size, multipliers=(2, 2, 2)), dropout=0.3, fourier_scale=0.02),
            total_steps=PAPER_CONSISTENCY.pictures // PAPER_CONSISTENCY.batch_size,
        ),
    }, PAPER_CONSISTENCY),
)  # fmt: skip

dmd = System(
    name="dmd",
    title="Distribution matching distillation",
    paper=Paper(
        "One-step Diffusion with Distribution Matching Distillation",
        "Yin, Gharbi, Zhang, Shechtman, Durand, Freeman, Park", 2023, "2311.18828",
    ),
    family="diffusion",
    survey="section 6.1; guidance: eq. 92",
    summary=(
        "A generator of one step is pushed from where its own pictures are too dense towards where the teacher's are, "
        "by the difference of two scores: the teacher's, and that of a denoiser which keeps learning what the "
        "generator draws. Pairs of noise and the teacher's picture keep it from forgetting a kind of picture."
    ),
    stages=(
        Stage(
            "teacher",
            DenoisingModel,
            {
                "small": lambda data: _config(
                    DenoisingConfig, data, small_unet(data), **TEACHER, steps=18, guidance=1.0
                ),
                "paper": lambda data: _config(DenoisingConfig, data, edm_network(data.image_size), **TEACHER, steps=18),
            },
            {"small": SMALL_RECIPE, "paper": edm.stages[0].recipes["paper"]},
        ),
        Stage(
            "student",
            DMDModel,
            {
                # Pairs weigh more in a training so short that the two players have hardly met.
                "small": lambda data: DMDConfig(
                    data.image_size, data.channels, len(data.classes), small_unet(data), regression=1.0, pairs=1024,
                    teacher_solver="dpm++2m", teacher_steps=10,
                ),
                # Yin et al. 2023, appendix B.1: CIFAR-10
                "paper": lambda data: DMDConfig(
                    data.image_size, data.channels, len(data.classes),
                    replace(edm_network(data.image_size), dropout=0.0),
                    regression=0.25 if data.classes else 0.5, pairs=100_000 if data.classes else 500_000,
                    keep_pairs=False,
                ),
            },
            {
                # The score must keep up with the generator, or they chase each other in circles.
                "small": replace(SMALL_STUDENT, optimizers={
                    "generator": Optimizer("adamw", lr=5e-4, betas=(0.9, 0.99), weight_decay=0.0),
                    "fake": Optimizer("adamw", lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0),
                }),
                # 300 k steps of two turns each, no average
                "paper": Recipe(
                    batch_size=392, pictures=235_200_000, warmup=392_000, decay="constant", ema_half_life=0,
                    optimizers={"model": Optimizer("adamw", lr=5e-5, weight_decay=0.01, clip=10.0)},
                ),
            },
        ),
    ),
)  # fmt: skip

# Section 7: flows -----------------------------------------------------------------------------------------------------

neural_ode = System(
    name="neural-ode",
    title="Neural ordinary differential equation",
    paper=Paper("Neural Ordinary Differential Equations", "Chen, Rubanova, Bettencourt, Duvenaud", 2018, "1806.07366"),
    family="diffusion",
    survey="section 7, eq. 101-102",
    summary=(
        "A residual network of infinitely many layers is a differential equation, whose flow takes pictures to noise. "
        "How much it stretches space on the way tells the exact likelihood, by which it is trained."
    ),
    stages=_one_stage(NeuralODE, {
        "small": lambda data: NeuralODEConfig(
            # Of two steps a network learns the errors: likelihoods that grow without bound and are none.
            data.image_size, data.channels, patch=2 if data.image_size % 2 == 0 else 1, steps=4
        ),
        # The paper's flows are of points in the plane. These are the layers of Grathwohl et al. 2019 for pictures,
        # whose several scales are one here.
        "paper": lambda data: NeuralODEConfig(
            data.image_size, data.channels, widths=(64, 64, 64), steps=8, gradient="adjoint"
        ),
        # and their batches, rate and warm-up; how long is ours
    }, Recipe(
        batch_size=200, pictures=20_000_000, warmup=200_000, decay="constant", ema_half_life=0, pixels="dequantised",
        optimizers={"model": Optimizer("adam", lr=1e-3, clip=None)},
    ),
        replace(SMALL_DENSITY, optimizers={"model": Optimizer("adam", lr=2e-3, betas=(0.9, 0.99))})),
)  # fmt: skip

RECTIFIED: dict[str, Any] = {
    "path": "straight", "prediction": "velocity", "weighting": "simple", "solver": "euler", "grid": "uniform",
    "steps": 20, "clip": False,
}  # fmt: skip

# Liu et al. 2022, CIFAR-10: batches, rate, warm-up and clipping of Song et al. 2021, EMA 0.999999 and dropout 0.15 for
# the first flow, and 800 k steps, of which the published weights are. Theirs samples with RK45, its steps are ours
RECTIFIED_RECIPE = replace(PAPER_RECIPE, ema_half_life=88_723_000)


def liu_network(image_size: int) -> NCSNppConfig:
    """The network of Liu et al. 2022 for CIFAR-10: DDPM++, dropout 0.15."""
    return replace(ddpmpp_config(image_size), dropout=0.15)


def _first_flow(data: PictureSpec, network: Callable[[int], NCSNppConfig]) -> DenoisingConfig:
    return _config(DenoisingConfig, data, network(data.image_size), **RECTIFIED, times="uniform")


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
        "paper": lambda data: _first_flow(data, liu_network),
    }, RECTIFIED_RECIPE),
)  # fmt: skip


def _rectified(share: float, network: Callable[[int], NCSNppConfig] = liu_network) -> Stage:
    """Rectified flow as the first stage of what is learned from it.

    network  of the `paper` size: the students have the same
    """
    (stage,) = rectified_flow.stages
    sizes = {**stage.sizes, "paper": lambda data: _first_flow(data, network)}
    return replace(stage, name="rectified", sizes=sizes, share=share)


# What later flows learn from: on a laptop, eight Euler steps of the first flow; in the paper, the adaptive solver, and
# millions of pairs, which are more than a model can keep.
SMALL_PAIRS: dict[str, Any] = {"pairs": 1024, "teacher_steps": 8}
PAPER_PAIRS: dict[str, Any] = {"keep_pairs": False, "teacher_solver": "rk45", "teacher_steps": 1}


def _reflow(
    name: str, share: float, steps: int, *, first: bool = True, network: Callable[[int], NCSNppConfig] = ddpmpp_config,
    recipe: Recipe = PAPER_RECIPE, pairs: int = 4_000_000, **choices: Any,
) -> Stage:  # fmt: skip
    """A flow learned from the pairs of the stage before. The guidance of the first flow is in its pairs already."""
    same: dict[str, Any] = {**RECTIFIED, "times": "uniform", "steps": steps, "label_dropout": 0.0, **choices}
    small = SMALL_PAIRS if first else {**SMALL_PAIRS, "teacher_steps": 4}
    return Stage(
        name, ReflowModel,
        {
            "small": lambda data: _config(ReflowConfig, data, small_unet(data), **same, **small),
            "paper": lambda data: _config(
                ReflowConfig, data, network(data.image_size), **same, **PAPER_PAIRS, pairs=pairs
            ),
        },
        {"small": SMALL_STUDENT, "paper": recipe}, share,
    )  # fmt: skip


reflow = System(
    name="reflow",
    title="Rectified flow with reflow and distillation",
    paper=rectified_flow.paper,
    family="diffusion",
    survey="section 7.1, eq. 103-105 and figure 69; guidance: eq. 92",
    summary=(
        "A rectified flow draws pictures from noise, and a second one learns from these pairs in place of independent "
        "ones. Its paths no longer cross, so they are nearly straight, and a third model learns to go them in one step."
    ),
    stages=(_rectified(3), _reflow("reflow", 2, 4), _reflow("one-step", 1, 1, first=False, times="last")),
)


def _transport(data: PictureSpec, network: Any, steps: int) -> TransportConfig:
    return TransportConfig(
        data.image_size, data.channels, network=network, times="uniform", weighting="simple", solver="euler",
        grid="uniform", steps=steps,
    )  # fmt: skip


rectified_transport = System(
    name="rectified-transport",
    title="Rectified flow from picture to picture",
    paper=rectified_flow.paper,
    family="diffusion",
    survey="section 7.1, eq. 103-105 and figure 69",
    summary=(
        "Straight lines join the pictures of one set to those of another, any to any, and the flow of their mean "
        "direction carries one set into the other: a sneaker becomes a boot, a digit a dress. Reflow straightens it."
    ),
    needs=frozenset({"source"}),
    stages=(
        Stage("flow", TransportModel, {
            "small": lambda data: _transport(data, small_unet(data), steps=20),
            "paper": lambda data: _transport(data, ddpmpp_config(data.image_size), steps=20),
        }, {"small": SMALL_RECIPE, "paper": PAPER_RECIPE}, share=2),
        Stage("reflow", TransportModel, {
            "small": lambda data: _transport(data, small_unet(data), steps=4),
            "paper": lambda data: _transport(data, ddpmpp_config(data.image_size), steps=4),
        }, {"small": SMALL_STUDENT, "paper": PAPER_RECIPE}),
    ),
)  # fmt: skip

# Lipman et al. 2022, appendix E, CIFAR-10: batch 256, Adam at 5e-4 falling to 0, 391 k steps, no dropout, no flips
# said; an average that keeps 0.9999 at a step is ours
FLOW_MATCHING_RECIPE = Recipe(
    batch_size=256, pictures=100_096_000, optimizers={"model": Optimizer("adam", lr=5e-4, clip=None)},
    warmup=11_520_000, decay="linear", ema_half_life=1_774_000, pixels="dequantised",
)  # fmt: skip


def _flow_matching(kind: str, path: str, title: str, summary: str) -> System:
    """Flow matching on one of its paths: what a network learns is the velocity, whichever it is."""
    same: dict[str, Any] = {**RECTIFIED, "path": path, "times": "uniform"}
    return System(
        name=f"flow-matching-{kind}",
        title=f"Flow matching with {title} paths",
        paper=Paper("Flow Matching for Generative Modeling", "Lipman, Chen, Ben-Hamu, Nickel, Le", 2022, "2210.02747"),
        family="diffusion",
        survey="section 7.2, eq. 107-112, Box 11 and table XI; guidance: eq. 92",
        summary=summary,
        stages=_one_stage(FlowModel, {
            "small": lambda data: _config(DenoisingConfig, data, small_unet(data), **same, guidance=1.0),
            "paper": lambda data: _config(
                DenoisingConfig, data, _flow_matching_unet(data), **{**same, "solver": "rk45", "steps": 1}
            ),
        }, FLOW_MATCHING_RECIPE, SMALL_DENSITY),
    )  # fmt: skip


def _flow_matching_unet(data: PictureSpec) -> UNetConfig:
    """ADM's network as in the paper's appendix E, CIFAR-10: 256 channels, attention at 16 x 16, heads of 64."""
    attention = tuple(data.image_size // 2**level == 16 for level in range(4))
    return UNetConfig(256, (1, 2, 2, 2), blocks=2, attention=attention, head_dim=64, **BLOCKS)


flow_matching_ot = _flow_matching(
    "ot", "ot", "optimal-transport",
    "A network learns the velocity of a flow from noise to pictures by regression on velocities that each lead to a "
    "single picture. Here they go straight, at constant speed, to a narrow Gaussian around each picture.",
)  # fmt: skip

flow_matching_diffusion = _flow_matching(
    "diffusion", "vp", "diffusion",
    "A network learns the velocity of a flow from noise to pictures by regression on velocities that each lead to a "
    "single picture. Here they follow the variance-preserving diffusion, without its randomness.",
)  # fmt: skip

optimal_flow_matching = System(
    name="optimal-flow-matching",
    title="Optimal flow matching",
    paper=Paper(
        "Optimal Flow Matching: Learning Straight Trajectories in Just One Step",
        "Kornilov, Mokrov, Gasnikov, Korotin", 2024, "2403.13117",
    ),
    family="diffusion",
    survey="section 7.2",
    summary=(
        "The flow is the gradient of one convex function, so its lines are straight and never cross. Flow matching "
        "among such flows has one solution, the optimal transport from noise to pictures, which draws in one step."
    ),
    stages=_one_stage(OptimalFlowModel, {
        "small": lambda data: OptimalFlowConfig(data.image_size, data.channels, widths=(256, 256), rank=128),
        # The paper transports points of benchmarks and codes of 512 numbers, not pixels: there is no size to follow.
        "paper": lambda data: OptimalFlowConfig(data.image_size, data.channels, widths=(1024, 1024), rank=512),
    }, replace(PAPER_RECIPE, pictures=12_800_000, optimizers={"model": Optimizer("adam", lr=1e-3, clip=None)}),
        replace(SMALL_RECIPE, optimizers={"model": Optimizer("adam", lr=2e-3, betas=(0.9, 0.99))})),
)  # fmt: skip


def lee_network(image_size: int) -> NCSNppConfig:
    """The network of Lee et al. 2024 for CIFAR-10: NCSN++ of equal widths, as in EDM, dropout 0.13."""
    return replace(ncsnpp_config(image_size, multipliers=(2, 2, 2)), dropout=0.13)


# The authors' command for CIFAR-10: 800 k steps of 512, Adam at 2e-4 after 5000 steps of warm-up, EMA 0.9999
LEE_RECIPE = Recipe(
    batch_size=512, pictures=409_600_000, warmup=2_560_000, decay="constant", ema_half_life=3_549_000,
    optimizers={"model": Optimizer("adam", lr=2e-4, clip=None)}, flip=True,
)  # fmt: skip

improved_rectified_flow = System(
    name="improved-rectified-flow",
    title="Improved rectified flow",
    paper=Paper("Improving the Training of Rectified Flows", "Lee, Lin, Fanti", 2024, "2405.20320"),
    family="diffusion",
    survey="section 7.1; guidance: eq. 92",
    summary=(
        "One round of reflow is enough if it is trained well: at times near both ends, where a straight flow is hard "
        "to learn, and with the pseudo-Huber metric, which a few bad pairs do not move. One or two steps are enough."
    ),
    # The authors' first flow is EDM, which they take as it was published; here it is learned, by the same network
    stages=(
        _rectified(3, lee_network),
        _reflow(
            "model", 2, 2, network=lee_network, recipe=LEE_RECIPE, pairs=1_000_000, times="u-shaped",
            metric="pseudo-huber",
        ),
    ),
)  # fmt: skip

boundary_rectified_flow = System(
    name="boundary-rectified-flow",
    title="Boundary-enforced rectified flow",
    paper=Paper(
        "Improving Rectified Flow with Boundary Conditions", "Hu, Liao, Xu, Liu, Li, Ie, Fei, Liu", 2025, "2506.15864"
    ),
    family="diffusion",
    survey="section 7.1, eq. 106; guidance: eq. 92",
    summary=(
        "From pure noise all lines lead to the mean picture, and at a picture the velocity is the picture itself. Here "
        "the velocity is written so that both hold whatever the network says, which is left to say the rest."
    ),
    stages=_one_stage(BoundaryModel, {
        "small": lambda data: _config(
            BoundaryConfig, data, small_unet(data), **RECTIFIED, times="logit-normal", guidance=1.0
        ),
        "paper": lambda data: _config(
            BoundaryConfig, data, ddpmpp_config(data.image_size), **RECTIFIED, times="uniform"
        ),
    }),
)  # fmt: skip

SYSTEMS = (
    dpm, ddpm, improved_ddpm, score_sde_vp, score_sde_ve, score_sde_subvp, noisy_classifier, adm, edm, dit,
    progressive_distillation, dfno, consistency_distillation, consistency_training, dmd,
    neural_ode, rectified_flow, reflow, rectified_transport, flow_matching_ot, flow_matching_diffusion,
    optimal_flow_matching, improved_rectified_flow, boundary_rectified_flow,
)  # fmt: skip
