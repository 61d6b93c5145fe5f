"""The networks of Dhariwal and Nichol 2021: the ablated diffusion model (ADM) and the classifier that guides it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from ..core.batch import PictureSpec
from ..nn.unet import UNetConfig
from .classifier_guidance import NoisyClassifierConfig
from .networks import small_unet

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


def noisy_classifier_config(
    image_size: int, channels: int, classes: int, size: Literal["small", "paper"]
) -> NoisyClassifierConfig:
    """The classifier of noisy pictures: half of a UNet.

    paper  for ImageNet at 64 (65 M parameters), 128 (43 M) and 256 pixels (54 M), on ADM's path at that size; pictures
           of another size get that of the next larger published one
    small  0.2 M parameters for 28 or 32 pixels: the way down of the small network that it guides, at half its width

    Raises `ConfigError` if the network cannot halve such pictures often enough.
    Source: Dhariwal and Nichol 2021 (arXiv 2105.05233), section 4 and the hyperparameters in appendix I.
    """
    path = "linear"
    if size == "small":
        guided = small_unet(PictureSpec(image_size, channels))
        network = replace(guided, channels=guided.channels // 2, blocks=1, **BLOCKS)
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
