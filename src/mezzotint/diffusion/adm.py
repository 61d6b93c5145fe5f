"""Dhariwal and Nichol 2021: the ablated diffusion model (ADM), its networks, and the classifier that guides it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from torch import Tensor

from ..core.batch import PictureSpec
from ..core.errors import ConfigError
from ..core.labels import refuse
from ..core.model import Model
from ..nn.unet import UNetConfig
from .chain import ChainConfig, ChainModel
from .classifier_guidance import NoisyClassifier, NoisyClassifierConfig, classifier_guided
from .grids import Grid
from .guidance import Guidance
from .model import choose_solver
from .networks import small_unet
from .predictions import Denoiser
from .solvers import Callback, Solver
from .teacher import agree

ATTENDING = (32, 16, 8)  # pixels across the levels that attend

# What ADM changes in DDPM's blocks: time scales and shifts the normalised features, residual blocks as in BigGAN change
# the resolution, and the time's sinusoids are in another order
BLOCKS: dict[str, Any] = {
    "time_norm": "scale_shift", "resample": "resnet", "cosine_first": True, "freq_shift": 0.0,
}  # fmt: skip


def adm_unet(image_size: int) -> UNetConfig:
    """ADM's network for ImageNet at 64 (296 M parameters), 128 (422 M) and 256 pixels (554 M), with 1000 classes and
    learned variance.

    Pictures of another size get the network of the next larger published size, attending at 32, 16 and 8 pixels too.
    Source: Dhariwal and Nichol 2021 (arXiv 2105.05233), section 3.1 and the hyperparameters in appendix I.
    """
    if image_size <= 64:
        return _published(image_size, 192, (1, 2, 3, 4), blocks=3, head_dim=64, dropout=0.1)
    if image_size <= 128:
        return _published(image_size, 256, (1, 1, 2, 3, 4), blocks=2, heads=4)
    return _published(image_size, 256, (1, 1, 2, 2, 4, 4), blocks=2, head_dim=64)


def small_adm(data: PictureSpec) -> UNetConfig:
    """The small network with ADM's blocks."""
    return replace(small_unet(data), **BLOCKS)


def noisy_classifier_config(
    image_size: int, channels: int, classes: int, size: Literal["small", "paper"]
) -> NoisyClassifierConfig:
    """The classifier of noisy pictures: half of a UNet.

    paper  for ImageNet at 64 (65 M parameters), 128 (43 M) and 256 pixels (54 M), on ADM's path at that size; pictures
           of another size get that of the next larger published one
    small  0.1 M parameters for 28 or 32 pixels: the way down of the small network that it guides, at half its width

    Raises `ConfigError` if the network cannot halve such pictures often enough.
    Source: Dhariwal and Nichol 2021 (arXiv 2105.05233), section 4 and the hyperparameters in appendix I.
    """
    path = "linear"
    if size == "small":
        guided = small_adm(PictureSpec(image_size, channels))
        network = replace(guided, channels=guided.channels // 2, head_dim=None, blocks=1)
    elif image_size <= 64:
        network, path = _published(image_size, 128, (1, 2, 3, 4), blocks=4, head_dim=64), "cosine"
    elif image_size <= 128:
        network = _published(image_size, 128, (1, 1, 2, 3, 4), blocks=2, head_dim=64)
    else:
        network = _published(image_size, 128, (1, 1, 2, 2, 4, 4), blocks=2, head_dim=64)
    return NoisyClassifierConfig(image_size, channels, classes, network, path)


def _published(image_size: int, channels: int, multipliers: tuple[int, ...], **options: Any) -> UNetConfig:
    attention = tuple(image_size // 2**level in ATTENDING for level in range(len(multipliers)))
    return UNetConfig(channels, multipliers, attention=attention, **BLOCKS, **options)


@dataclass(frozen=True)
class ADMConfig(ChainConfig):
    """A chain that a classifier guides."""

    classifier_guidance: float = 1.0  # s of the survey's eq. 91; 0: none

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_strength(self.classifier_guidance)
        if not self.classes:
            raise ConfigError("a classifier guides towards a class, and these pictures have none; use ddpm for them")


class ADM(ChainModel):
    """A chain whose samples are pushed towards what a classifier of noisy pictures takes for their class.

        x_s ~ N(mu + s Sigma grad ln p(y | x_t), Sigma)        ancestral solvers (survey, eq. 91)
        n^ = n - s sigma_t grad ln p(y | x_t)                  all others (Dhariwal and Nichol 2021, algorithm 2)

    classifier  a finished `NoisyClassifier` of the same path and classes; a frozen copy is a part of the model

    Raises `ConfigError` for a classifier that does not fit.
    """

    config: ADMConfig

    def __init__(self, config: ADMConfig, classifier: Model) -> None:
        super().__init__(config)
        if not isinstance(classifier, NoisyClassifier):
            raise ConfigError(f"a {type(classifier).__name__} cannot guide; use a classifier of noisy pictures")
        agree(config, classifier.config, "image_size", "channels", "classes", "path")
        self.classifier = NoisyClassifier(classifier.config)
        self.classifier.load_state_dict(classifier.state_dict())
        self.classifier.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ADM:
        """The classifier stays as it is."""
        super().train(mode)
        self.classifier.eval()
        return self

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | Sequence[int] | None = None,
        captions: list[str] | None = None,
        source: Tensor | None = None,
        mask: Tensor | None = None,
        seeds: int | Sequence[int] = 0,
        steps: int | None = None,
        solver: str | Solver | None = None,
        grid: str | Grid | None = None,
        eta: float | None = None,
        guidance: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float | None = None,
        callback: Callback | None = None,
        classifier_guidance: float | None = None,
    ) -> Tensor:
        """n pictures in [-1, 1]; all as in `DenoisingModel.sample`, and besides

        classifier_guidance  s, at least 0; None: as in the config. It may be combined with classifier-free guidance
        """
        refuse(captions=captions, source=source, mask=mask)
        free = self.sampling_guidance(guidance, guidance_interval, guidance_rescale)
        s = self.config.classifier_guidance if classifier_guidance is None else classifier_guidance
        _check_strength(s)
        name = self.config.solver if solver is None else solver
        ancestral = isinstance(name, str) and name.startswith("ancestral")
        guided = partial(self._guided, guidance=free, strength=s, way="mean" if ancestral else "score")
        return self.solved(n, labels, seeds, choose_solver(name, eta), guided, steps, grid, callback)

    def _guided(
        self, labels: Tensor | None, guidance: Guidance, strength: float, way: Literal["mean", "score"]
    ) -> Denoiser:
        denoiser = self.denoiser(labels, guidance)
        if not strength or labels is None:
            return denoiser
        return classifier_guided(denoiser, self.classifier.log_prob_of, labels, strength, way)


def _check_strength(strength: float) -> None:
    if not (math.isfinite(strength) and strength >= 0):
        raise ConfigError(f"classifier_guidance is a strength of 0 or more, not {strength}")
