"""Which network draws pictures of a given size: small ones for a laptop, and those of the papers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..core.batch import PictureSpec
from ..core.errors import ConfigError
from ..nn.dit import DiTConfig
from ..nn.ncsnpp import NCSNppConfig
from ..nn.resampling import SMOOTH
from ..nn.unet import UNetConfig

COARSEST = 16  # positions across the level at which the small network attends, at the most


def small_unet(data: PictureSpec) -> UNetConfig:
    """About 0.9 M parameters: patches of 2, then halved while the size is even and above 8; attention at the coarsest.

    Patches make the first level, where a UNet spends most of its time, four times as quick; pictures whose size is odd
    or below 16 pixels are seen pixel by pixel.

    Raises `ConfigError`, naming the nearest size that can, for pictures that cannot be halved to 16 positions or fewer:
    attention over more, and a coarsest level so fine, would take more time than a laptop has.
    """
    return UNetConfig(channels=48, blocks=2, head_dim=24, groups=8, **_small_shape(data.image_size))


def small_ddpmpp(image_size: int) -> NCSNppConfig:
    """DDPM++ with 1.2 M parameters, of the shape of `small_unet`, which see also for what it refuses."""
    return NCSNppConfig(channels=64, blocks=1, dropout=0.0, **_small_shape(image_size))


def small_ncsnpp(image_size: int) -> NCSNppConfig:
    """NCSN++ with 1.3 M parameters: 107 million multiplications for a picture of 28 x 28; see `small_ddpmpp`."""
    return replace(
        small_ddpmpp(image_size), taps=SMOOTH, progressive_input="residual", embedding="fourier",
        fourier_scale=1.0,  # 16 tells noise levels apart that a short training never sees
    )  # fmt: skip


def _small_shape(image_size: int) -> dict[str, Any]:
    """Levels, attention and patch of every small network; wider from the third level on."""
    patch, levels, coarsest = _halvings(image_size)
    if coarsest > COARSEST:
        sizes = range(1, 2 * image_size)
        workable = (size for size in sizes if _halvings(size)[2] <= COARSEST)
        nearest = min(workable, key=lambda size: abs(size - image_size))
        raise ConfigError(
            f"the small network halves pictures until {COARSEST} pixels or fewer are left, which pictures of"
            f" {image_size} pixels do not allow; use --image-size {nearest}"
        )
    return {
        "multipliers": (1,) * min(levels, 2) + (2,) * (levels - 2),
        "attention": tuple(level == levels - 1 for level in range(levels)),
        "patch": patch,
    }


def _halvings(size: int) -> tuple[int, int, int]:
    """Patch, number of levels, and positions across the coarsest, of the small network for pictures of this size."""
    patch = 2 if size % 2 == 0 and size >= 16 else 1
    levels, size = 1, size // patch
    while size % 2 == 0 and size > 8:
        levels, size = levels + 1, size // 2
    return patch, levels, size


def ddpm_unet(data: PictureSpec) -> UNetConfig:
    """The CIFAR-10 network of Ho et al. 2020, appendix B: 35.7 M parameters, attention at 16 x 16, dropout 0.1."""
    attention = tuple(data.image_size // 2**level == 16 for level in range(4))
    return UNetConfig(128, (1, 2, 2, 2), blocks=2, attention=attention, dropout=0.1, eps=1e-6, down_padding=0)


def improved_ddpm_unet(data: PictureSpec) -> UNetConfig:
    """The CIFAR-10 network of Nichol and Dhariwal 2021, section 2.3 and appendix A.

    Three blocks a level, four heads at 16 x 16 and 8 x 8, the time by scale and shift, dropout 0.3 as in their runs
    with the cosine schedule.
    """
    attention = tuple(data.image_size // 2**level in (16, 8) for level in range(4))
    return UNetConfig(
        128, (1, 2, 2, 2), blocks=3, attention=attention, heads=4, dropout=0.3, time_norm="scale_shift",
        cosine_first=True, freq_shift=0.0,
    )  # fmt: skip


def small_dit(data: PictureSpec) -> DiTConfig:
    """1.1 M parameters over the smallest patches of 1, 2, 4 or 8 pixels of which a picture has at most 256.

    After equal computation, pictures of 28 pixels in patches of 2 are sharp where those in patches of 4, by networks
    twice as wide, still show the patches.
    """
    patches = [p for p in (1, 2, 4, 8) if data.image_size % p == 0]
    patch = next((p for p in patches if (data.image_size // p) ** 2 <= 256), patches[-1])
    return DiTConfig(depth=6, width=96, heads=3, patch=patch)
