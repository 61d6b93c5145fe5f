"""The chapter as code: a paper is a pair of networks, a loss, a penalty and a way to tell the class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..core.batch import PictureSpec
from ..core.config import Config
from ..core.model import Model
from ..core.system import Optimizer, Paper, Recipe, Stage, System
from .augment import AugmentationConfig
from .improved import ClassifyingConfig, ClassifyingGAN, ImprovedConfig, ImprovedGAN
from .model import GAN, GANConfig
from .networks import DCGANConfig, MLPConfig
from .penalties import Clipping, GradientPenalty, Roth, ZeroCentred
from .progan import Growing, ProGAN, ProGANConfig, ProGANNetworks
from .resnet import ResNetConfig, ResNetGAN, ResNetGANConfig
from .stylegan import StyleGAN, StyleGANConfig, StyleGANNetworks
from .stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Networks
from .stylegan3 import StyleGAN3, StyleGAN3Config, StyleGAN3Networks

# Nearly all GANs learn at a constant rate. A player's gradients grow a hundredfold as the other one learns: that is no
# fault to be skipped
ADVERSARIES: dict[str, Any] = {"warmup": 0, "decay": "constant", "skip_factor": 1000.0}


def _recipe(lr: float, betas: tuple[float, float], batch_size: int = 64, **choices: Any) -> Recipe:
    """Adam for both players, and an average of the generator."""
    optimizers = {"model": Optimizer("adam", lr=lr, betas=betas, clip=None)}
    return Recipe(batch_size=batch_size, optimizers=optimizers, **{**ADVERSARIES, "ema_half_life": 10_000, **choices})


# Of few pictures many steps, 3,125 of both players for 100,000. From weights of N(0, 0.02^2), 40,000 pictures, r1-gan:
# Frechet distance 56 with lr 1e-3 and beta_1 0.5, 41 without momentum, 36 at 2e-3 and 44 at 4e-3
SMALL_RECIPE = _recipe(2e-3, (0.0, 0.99), 16)
# Of neurons, 400,000 pictures: Frechet distance 27; 33 at 2e-4; 37 in batches of 32; 48 with SMALL_RECIPE after 200,000
SMALL_NEURONS_RECIPE = _recipe(4e-4, (0.5, 0.99), 16)
# Budgets count the pictures of both players, as everywhere.
# Radford et al. 2015, section 4: batches of 128, Adam at 2e-4 with beta_1 0.5, no average; 25 passes over 350,000 faces
# in the authors' script, whose kernels have five pixels where these have four
DCGAN_RECIPE = _recipe(2e-4, (0.5, 0.999), 128, ema_half_life=0, pictures=17_500_000)
# Gulrajani et al. 2017, algorithm 1, and the authors' script for 64 pixels: batches of 64, Adam at 1e-4 with beta 0 and
# 0.9, 200 k steps of the generator
WGAN_GP_RECIPE = _recipe(1e-4, (0.0, 0.9), 64, ema_half_life=0, pictures=200_000 * 6 * 64)
# Arjovsky et al. 2017, algorithm 1: RMSProp at 5e-5, which is Adam without its first moment; how long is ours
WGAN_RECIPE = _recipe(5e-5, (0.0, 0.99), 64, ema_half_life=0, pictures=200_000 * 6 * 64)
# The script of Roth et al. 2017: batches of 64, Adam at 2e-4 with beta_1 0.5, 100 k steps of either player
ROTH_RECIPE = _recipe(2e-4, (0.5, 0.999), 64, ema_half_life=0, pictures=100_000 * 2 * 64)
# The configuration that the authors of Goodfellow et al. 2014 published for MNIST: batches of 100, gradient descent at
# 0.1 with momentum 0.5; there the rate falls in the course of the training, momentum rises to 0.7, the discriminator
# does without a fifth of the pixels and has half the loss, and first weights are uniform. 100 passes are ours
NEURONS_RECIPE = Recipe(
    pictures=100 * 2 * 60_000,
    batch_size=100, ema_half_life=0, optimizers={"model": Optimizer("sgd", lr=0.1, betas=(0.5, 0.0), clip=None)},
    **ADVERSARIES,
)  # fmt: skip


def _one_stage(
    model: type[Model], sizes: Mapping[str, Callable[[PictureSpec], Config]], paper: Recipe = DCGAN_RECIPE,
    small: Recipe = SMALL_RECIPE,
) -> tuple[Stage, ...]:  # fmt: skip
    """The stages of a system that is one model."""
    return (Stage("model", model, sizes, {"small": small, "paper": paper}),)


def halvings(image_size: int, largest: int) -> int:
    """How often a picture is halved until it has no more than so many pixels, or an odd number; at least once."""
    times = 0
    while image_size % 2 == 0 and image_size > largest:
        times, image_size = times + 1, image_size // 2
    return max(times, 1)


def small_networks(data: PictureSpec, **choices: Any) -> DCGANConfig:
    """Convolutions down to a map of 7 or 8 pixels, or as far as the size can be halved; the generator's normalised."""
    same: dict[str, Any] = {"norm": "batch", "critic_norm": "none", "std": 0.02}
    return DCGANConfig(channels=32, levels=halvings(data.image_size, 8), **{**same, **choices})


def published_networks(data: PictureSpec, most: int = 1024, **choices: Any) -> DCGANConfig:
    """Radford et al. 2015, figure 1: from 4 x 4 x 1024 (at 64 pixels) to the picture.

    most  in place of 1024: 512 in the scripts of the Wasserstein GANs and of Roth et al.
    """
    levels = halvings(data.image_size, 7)
    return DCGANConfig(channels=max(most >> (levels - 1), 64), levels=levels, **choices)


def _gan(data: PictureSpec, network: Any, **choices: Any) -> GANConfig:
    return GANConfig(data.image_size, data.channels, network=network, **choices)


# 3: two players ------------------------------------------------------------------------------------------------------

gan = System(
    name="gan",
    title="Generative adversarial network",
    paper=Paper(
        "Generative Adversarial Networks",
        "Goodfellow, Pouget-Abadie, Mirza, Xu, Warde-Farley, Ozair, Courville, Bengio", 2014, "1406.2661",
    ),
    family="gan",
    survey="section 3, eq. 32-36 and Box 3",
    summary=(
        "One network draws pictures out of noise, another one tells them from real ones, and each learns from the "
        "other: a counterfeiter and a policeman. Here both are layers of neurons, as at first."
    ),
    stages=_one_stage(GAN, {
        "small": lambda data: _gan(data, MLPConfig((256, 512))),
        "paper": lambda data: _gan(
            data, MLPConfig((1200, 1200), (240, 240), pieces=(5, 5), dropout=0.5), latent=100, prior="uniform"
        ),
    }, NEURONS_RECIPE, SMALL_NEURONS_RECIPE),
)  # fmt: skip

dcgan = System(
    name="dcgan",
    title="Deep convolutional GAN",
    paper=Paper(
        "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks",
        "Radford, Metz, Chintala", 2015, "1511.06434",
    ),
    family="gan",
    survey="section 3, eq. 37, figures 14 and 15",
    summary=(
        "Strided convolutions in place of neurons, and batch normalisation in both networks: the architecture by which "
        "GANs began to draw. Sums and differences of codes mean something."
    ),
    stages=_one_stage(GAN, {
        "small": lambda data: _gan(data, small_networks(data, critic_norm="batch")),
        "paper": lambda data: _gan(data, published_networks(data), latent=100, prior="uniform"),
    }),
)  # fmt: skip

# 3.1: how they are trained --------------------------------------------------------------------------------------------

# `paper` sizes have networks and recipe of DCGAN; the authors' own scripts differ for each of their data sets
SALIMANS = Paper(
    "Improved Techniques for Training GANs", "Salimans, Goodfellow, Zaremba, Cheung, Radford, Chen", 2016, "1606.03498"
)  # fmt: skip


def _improved(data: PictureSpec, network: Any, **choices: Any) -> ImprovedConfig:
    same: dict[str, Any] = {"label_smoothing": 0.1, "historical": 1e-3}
    return ImprovedConfig(data.image_size, data.channels, network=network, **{**same, **choices})


def _classifying(data: PictureSpec, network: Any, **choices: Any) -> ClassifyingConfig:
    return ClassifyingConfig(
        data.image_size, data.channels, network=network, feature_matching=True, named=len(data.classes), **choices
    )  # fmt: skip


improved_gan = System(
    name="improved-gan",
    title="GAN with improved techniques",
    paper=SALIMANS,
    family="gan",
    survey="section 3.1, reference [27]",
    summary=(
        "A discriminator that sees how near the pictures of a batch are to each other notices when all look alike; "
        "real ones are called real with nine in ten; both players remember what they were; and the generator is "
        "normalised by pictures that were chosen once."
    ),
    stages=_one_stage(ImprovedGAN, {
        "small": lambda data: _improved(data, small_networks(data), kernels=16),
        "paper": lambda data: _improved(
            data, published_networks(data, critic_norm="none"), kernels=100, reference=128, latent=100,
            prior="uniform",
        ),
    }),
)  # fmt: skip

semi_supervised_gan = System(
    name="semi-supervised-gan",
    title="Semi-supervised GAN",
    paper=SALIMANS,
    family="gan",
    survey="section 3.1, reference [27]",
    summary=(
        "The discriminator names the class of real pictures, and takes for generated what it cannot name. So it learns "
        "to classify from few labels and many pictures, while the generator matches what it sees on average: good for "
        "the classifier, and for pictures that do not look appealing, as the paper has it (section 6.1)."
    ),
    needs=frozenset({"labels"}),
    stages=_one_stage(ClassifyingGAN, {
        "small": lambda data: _classifying(data, small_networks(data)),
        "paper": lambda data: _classifying(
            data, published_networks(data, critic_norm="none"), reference=128, latent=100, prior="uniform"
        ),
    }, small=_recipe(1e-3, (0.0, 0.99), 64)),  # of means over a batch, which a few pictures do not tell
)  # fmt: skip

instance_noise = System(
    name="instance-noise",
    title="GAN with instance noise",
    paper=Paper(
        "Towards Principled Methods for Training Generative Adversarial Networks", "Arjovsky, Bottou", 2017,
        "1701.04862",
    ),
    family="gan",
    survey="section 3.1, references [29, 33]",
    summary=(
        "Noise on all pictures that the discriminator sees, real or not, and less of it as training goes on: without "
        "it the two kinds of pictures hardly meet anywhere, so that they can be told apart without learning anything."
    ),
    stages=_one_stage(GAN, {
        "small": lambda data: _gan(data, small_networks(data), noise=0.5, annealing_steps=1_000),
        "paper": lambda data: _gan(
            data, published_networks(data), latent=100, noise=0.1, annealing_steps=60_000  # both ours
        ),
    }),
)  # fmt: skip

roth_gan = System(
    name="roth-gan",
    title="GAN with the regulariser of Roth et al.",
    paper=Paper(
        "Stabilizing Training of Generative Adversarial Networks through Regularization",
        "Roth, Lucchi, Nowozin, Hofmann", 2017, "1705.09367",
    ),
    family="gan",
    survey="section 3.1, reference [34]",
    summary=(
        "What noise on all pictures does to the discriminator, worked out on paper: a penalty on its slope, strongest "
        "where it is unsure. Nothing needs to be drawn, and the pictures stay sharp."
    ),
    stages=_one_stage(GAN, {
        "small": lambda data: _gan(data, small_networks(data), penalty=Roth(gamma=0.5), annealing_steps=1_000),
        "paper": lambda data: _gan(
            data, published_networks(data, 512), latent=128, penalty=Roth(gamma=2.0), annealing_steps=100_000
        ),
    }, ROTH_RECIPE),
)  # fmt: skip

wgan = System(
    name="wgan",
    title="Wasserstein GAN",
    paper=Paper("Wasserstein GAN", "Arjovsky, Chintala, Bottou", 2017, "1701.07875"),
    family="gan",
    survey="section 3.1, eq. 38 and figure 16",
    summary=(
        "A critic in place of a discriminator: its score may not change quickly, and the difference between real and "
        "generated pictures estimates how far the generator is from the data. Its weights are clipped to hold it."
    ),
    stages=_one_stage(GAN, {
        "small": lambda data: _gan(
            data, small_networks(data, critic_norm="batch"), loss="wasserstein", penalty=Clipping(0.03), critic_steps=5
        ),
        "paper": lambda data: _gan(
            data, published_networks(data, 512), latent=100, loss="wasserstein", penalty=Clipping(0.01), critic_steps=5
        ),
    }, WGAN_RECIPE, _recipe(1e-3, (0.0, 0.9), 16)),
)  # fmt: skip

wgan_gp = System(
    name="wgan-gp",
    title="Wasserstein GAN with gradient penalty",
    paper=Paper(
        "Improved Training of Wasserstein GANs", "Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville", 2017, "1704.00028"
    ),
    family="gan",
    survey="section 3.1, Box 4",
    summary=(
        "The critic's slope is held near one by a penalty, between real and generated pictures, where it matters. "
        "Nearly any pair of networks can be trained so."
    ),
    stages=_one_stage(GAN, {
        "small": lambda data: _gan(
            data, small_networks(data), loss="wasserstein", penalty=GradientPenalty(), critic_steps=5
        ),
        "paper": lambda data: _gan(  # whose critic is normalised by layers in the authors' script
            data, published_networks(data, 512, critic_norm="none"), latent=128, loss="wasserstein",
            penalty=GradientPenalty(), critic_steps=5,
        ),
    }, WGAN_GP_RECIPE, _recipe(2e-3, (0.0, 0.9), 16)),
)  # fmt: skip

r1_gan = System(
    name="r1-gan",
    title="GAN with zero-centred gradient penalties",
    paper=Paper(
        "Which Training Methods for GANs do actually Converge?", "Mescheder, Geiger, Nowozin", 2018, "1801.04406"
    ),
    family="gan",
    survey="section 3.1, eq. 39-41",
    summary=(
        "Where the pictures are right already, the discriminator should not push any more. So its slope at real "
        "pictures costs something, and the two players come to rest instead of circling each other. `paper` has the "
        "networks of DCGAN, without normalisation, in place of residual ones."
    ),
    stages=_one_stage(GAN, {
        "small": lambda data: _gan(data, small_networks(data), penalty=ZeroCentred(gamma=0.1)),
        "paper": lambda data: _gan(
            data, published_networks(data, norm="none", critic_norm="none"), latent=256, penalty=ZeroCentred(gamma=10.0)
        ),
    # How long is ours. In the authors' code the penalty has no half before it, so that their 10 is a gamma of 20
    }, _recipe(1e-4, (0.0, 0.99), 64, ema_half_life=44_300, pictures=300_000 * 2 * 64)),
)  # fmt: skip

# 3.2: telling the class -----------------------------------------------------------------------------------------------


def _conditional(data: PictureSpec, network: Any, conditioning: Any, **choices: Any) -> GANConfig:
    return _gan(data, network, classes=len(data.classes), conditioning=conditioning, **choices)


cgan = System(
    name="cgan",
    title="Conditional GAN",
    paper=Paper("Conditional Generative Adversarial Nets", "Mirza, Osindero", 2014, "1411.1784"),
    family="gan",
    survey="section 3.2, eq. 42 and figure 18",
    summary="Both players are told the class: the generator beside its noise, the discriminator beside the picture.",
    needs=frozenset({"labels"}),
    stages=_one_stage(GAN, {
        "small": lambda data: _conditional(data, small_networks(data), "concat", penalty=ZeroCentred(gamma=0.1)),
        "paper": lambda data: _conditional(  # Mirza and Osindero 2014, section 4.1
            data, MLPConfig((200, 1200), (240, 240), pieces=(5, 4), dropout=0.5, generator_dropout=0.5, apart=1000,
                            critic_apart=50), "concat", latent=100, prior="uniform",
        ),
    }, NEURONS_RECIPE),
)  # fmt: skip

ac_gan = System(
    name="ac-gan",
    title="Auxiliary classifier GAN",
    paper=Paper(
        "Conditional Image Synthesis with Auxiliary Classifier GANs", "Odena, Olah, Shlens", 2016, "1610.09585"
    ),
    family="gan",
    survey="section 3.2, eq. 43-45 and table I",
    summary=(
        "The discriminator is not told the class but names it, of real and of generated pictures, and the generator is "
        "paid for pictures whose class is recognised. `paper` has the networks of DCGAN in place of its own."
    ),
    needs=frozenset({"labels"}),
    stages=_one_stage(GAN, {
        "small": lambda data: _conditional(data, small_networks(data), "auxiliary", penalty=ZeroCentred(gamma=0.1)),
        "paper": lambda data: _conditional(data, published_networks(data), "auxiliary", latent=100),
    }),
)  # fmt: skip

# Miyato and Koyama 2018, section 4 and appendix: batches of 64, Adam at 2e-4 with beta 0 and 0.9, five critic steps;
# for CIFAR-10, 50 k steps of the generator, whose batches have 128 there. ImageNet takes 450 k, of which the last 50 k
# slow down
PROJECTION_RECIPE = _recipe(2e-4, (0.0, 0.9), 64, ema_half_life=0, decay="linear", pictures=50_000 * 6 * 64)
SMALL_RESNET_RECIPE = _recipe(1e-3, (0.0, 0.99), 16)  # at 2e-4, BigGAN's generator had learned no class by 20,000


def _resnet(data: PictureSpec, network: ResNetConfig, **choices: Any) -> ResNetGANConfig:
    return ResNetGANConfig(
        data.image_size, data.channels, len(data.classes), network=network, loss="hinge",
        conditioning="projection" if data.classes else "none", **choices,
    )  # fmt: skip


def small_resnet(data: PictureSpec, **choices: Any) -> ResNetConfig:
    """A block for each halving down to 7 or 8 pixels, or as far as the size can be halved."""
    blocks = halvings(data.image_size, 8)
    return ResNetConfig(
        (64,) * (blocks + 1), (*(32 * 2**k for k in range(blocks)), 64), critic_downs=blocks, **choices
    )  # fmt: skip


def projection_network(image_size: int) -> ResNetConfig:
    """The networks of Miyato et al. 2018, appendix B.4: for CIFAR-10, or, from 64 pixels on, for ImageNet."""
    if image_size < 64:
        return ResNetConfig()
    blocks = halvings(image_size, 7)
    widths = tuple(64 * m for m in (1, 2, 4, 8, 16, 16)[: blocks + 1])
    return ResNetConfig(widths[::-1], widths, critic_downs=blocks)


projection_gan = System(
    name="projection-gan",
    title="cGAN with projection discriminator",
    paper=Paper("cGANs with Projection Discriminator", "Miyato, Koyama", 2018, "1802.05637"),
    family="gan",
    survey="section 3.2, eq. 46, figure 19 and table I",
    summary=(
        "The discriminator compares the class with what it sees in the picture, by an inner product, and nothing else "
        "of it is told. Its weights are normalised by their largest singular values, and the generator's normalisation "
        "is told the class. Without labels it is the unconditional SNGAN."
    ),
    stages=_one_stage(ResNetGAN, {
        "small": lambda data: _resnet(data, small_resnet(data, norm="group")),
        "paper": lambda data: _resnet(data, projection_network(data.image_size), latent=128, critic_steps=5),
    }, PROJECTION_RECIPE, SMALL_RESNET_RECIPE),
)  # fmt: skip

# Brock et al. 2018, appendix C: batches of 2048, Adam with beta 0 and 0.999, two critic steps, EMA 0.9999; eps is that
# of the authors' scripts
BIGGAN_RECIPE = Recipe(
    batch_size=2048, pictures=1_000_000_000, ema_half_life=14_195_000,
    optimizers={
        "generator": Optimizer("adam", lr=5e-5, betas=(0.0, 0.999), eps=1e-6, clip=None),
        "discriminator": Optimizer("adam", lr=2e-4, betas=(0.0, 0.999), eps=1e-6, clip=None),
    },
    **ADVERSARIES,
)  # fmt: skip


def biggan_network(image_size: int, width: int = 96) -> ResNetConfig:
    """The networks of Brock et al. 2018, appendix B, for 128, 256 and 512 pixels; fewer blocks for smaller pictures."""
    blocks = halvings(image_size, 7)
    drawing, seeing = {
        6: ((16, 16, 8, 8, 4, 2, 1), (1, 2, 4, 8, 8, 16, 16)),
        7: ((16, 16, 8, 8, 4, 2, 1, 1), (1, 1, 2, 4, 8, 8, 16, 16)),
    }.get(blocks, ((16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16)))
    return ResNetConfig(
        tuple(width * m for m in drawing[: blocks + 1]), tuple(width * m for m in seeing[: blocks + 1]),
        critic_downs=blocks, spectral_generator=True, shared=128, hierarchical=True,
        attention={128: 64, 256: 128, 512: 64}.get(image_size, 0),
        critic_attention={128: 64, 256: 64, 512: 64}.get(image_size, 0),
    )  # fmt: skip


biggan = System(
    name="biggan",
    title="BigGAN",
    paper=Paper(
        "Large Scale GAN Training for High Fidelity Natural Image Synthesis", "Brock, Donahue, Simonyan", 2018,
        "1809.11096",
    ),
    family="gan",
    survey="section 3.3, and the comparison of figure 54",
    summary=(
        "The projection GAN made large: one embedding of the class for all layers, a part of the noise for each, "
        "weights that are kept from doing the same thing twice, huge batches. A threshold on the noise trades variety "
        "for quality."
    ),
    stages=_one_stage(ResNetGAN, {
        "small": lambda data: _resnet(
            data, small_resnet(data, norm="group", spectral_generator=True, shared=32, hierarchical=True),
            latent=20 * (halvings(data.image_size, 8) + 1), orthogonal=1e-4,
        ),
        "paper": lambda data: _resnet(
            data, biggan_network(data.image_size), latent=20 * len(biggan_network(data.image_size).widths),
            orthogonal=1e-4, critic_steps=2,
        ),
    }, BIGGAN_RECIPE, SMALL_RESNET_RECIPE),
)  # fmt: skip

# Karras et al. 2017 (1710.10196), appendix A: batches of 16, Adam at 1e-3 with beta 0 and 0.99, an average of decay
# 0.999 a step. At 1024 pixels each player sees 12.8 million pictures until all is there, and 19 million in all; theirs
# are mirrored at random, and in batches of 14, 6 and 3 from 256 pixels on.
PROGAN_RECIPE = _recipe(1e-3, (0.0, 0.99), 16, ema_half_life=11_000, ema_ramp=0.0, pictures=38_000_000, flip=True)
# Where all weights are N(0, 1), a step of the published rates changes them by a four-hundredth, too little for a few
# thousand steps. 48,000 pictures, stylegan2: Frechet distance 40; at 2.5e-3 in batches of 32 it is 58 after 120,000
SMALL_EQUALISED_RECIPE = _recipe(1e-2, (0.0, 0.99), 16)

progan = System(
    name="progan",
    title="Progressive growing of GANs",
    paper=Paper(
        "Progressive Growing of GANs for Improved Quality, Stability, and Variation", "Karras, Aila, Laine, Lehtinen",
        2017, "1710.10196",
    ),
    family="gan",
    survey="section 3.3 and figure 20",
    summary=(
        "Both networks begin with pictures of a few pixels, and finer maps are faded in one after the other: first the "
        "composition is learned, then details. Weights are scaled so that all learn equally fast, and the critic sees "
        "how different the pictures of a batch are."
    ),
    stages=_one_stage(ProGAN, {
        "small": lambda data: ProGANConfig(
            data.image_size, data.channels, latent=64, growing=Growing(75, 75),
            network=ProGANNetworks(16 * data.image_size, 64, min(7, data.image_size // 2), fused=True),
        ),
        "paper": lambda data: ProGANConfig(data.image_size, data.channels, network=ProGANNetworks(group=16)),
    }, PROGAN_RECIPE, SMALL_EQUALISED_RECIPE),
)  # fmt: skip

# Karras et al. 2018 (1812.04948), appendix C: as ProGAN, from 8 pixels on, and 25 million pictures for each player. The
# rate and the batches are those from 512 pixels on; below, theirs are 1e-3 to 2e-3, and at first of 64 to 256
STYLEGAN_RECIPE = _recipe(3e-3, (0.0, 0.99), 32, ema_half_life=10_000, ema_ramp=0.0, pictures=50_000_000, flip=True)

stylegan = System(
    name="stylegan",
    title="StyleGAN",
    paper=Paper(
        "A Style-Based Generator Architecture for Generative Adversarial Networks", "Karras, Laine, Aila", 2018,
        "1812.04948",
    ),
    family="gan",
    survey="section 3.3, Box 5, figures 21 and 22",
    summary=(
        "The code is mapped to a style first, which sets mean and deviation of every map of a generator that begins "
        "with a constant; noise makes the details. Coarse styles of one picture go with the fine styles of another. "
        "`small` does not grow."
    ),
    stages=_one_stage(StyleGAN, {
        "small": lambda data: StyleGANConfig(
            data.image_size, data.channels, latent=64, growing=Growing(0, 0), penalty=ZeroCentred(gamma=1.0, every=8),
            network=StyleGANNetworks(
                24 * data.image_size, 64, min(7, data.image_size // 2), group=0, width=64, mapping_layers=3,
                mapping_lr=0.1,
            ),
            mixing=0.5,
        ),
        "paper": lambda data: StyleGANConfig(data.image_size, data.channels, growing=Growing(18_750, 18_750, first=1)),
    }, STYLEGAN_RECIPE, SMALL_EQUALISED_RECIPE),
)  # fmt: skip


def small_styles(data: PictureSpec) -> StyleGAN2Networks:
    """Maps from 7 or 8 pixels on, 24 channels at the picture's size, a short mapping that learns faster.

    At the small recipe's rate, noise would drown colours before they are learned; so its strengths learn more slowly.
    """
    return StyleGAN2Networks(
        channel_base=24 * data.image_size, channel_max=64, coarsest=7, width=64, mapping_layers=3, mapping_lr=0.1,
        noise_lr=0.1, group=0,
    )  # fmt: skip


def _stylegan2(data: PictureSpec, **choices: Any) -> StyleGAN2Config:
    return StyleGAN2Config(data.image_size, data.channels, **choices)


def _small_stylegan2(data: PictureSpec, **choices: Any) -> StyleGAN2Config:
    same: dict[str, Any] = {"penalty": ZeroCentred(gamma=1.0, every=16), "mixing": 0.5, "path_decay": 0.9}
    return _stylegan2(data, latent=64, network=small_styles(data), **{**same, **choices})


# Karras et al. 2019 (1912.04958), appendix B: batches of 32, 25 million real pictures (and as many batches again for
# the generator), an average of 10,000 pictures. There a penalty is a step of its own, so that k + 1 steps stand for k,
# and rates and betas are corrected by c = k / (k + 1): c lr, beta^c. Here it is part of the step, so that k steps are
# k, and rates and betas are those without lazy penalties: in k steps Adam goes as far, and forgets as much. Lengths of
# paths are measured at every 8th step as the paper says; the authors' code does so at every 4th. Faces are mirrored.
STYLEGAN2_RECIPE = _recipe(2e-3, (0.0, 0.99), 32, ema_half_life=10_000, ema_ramp=0.0, pictures=50_000_000, flip=True)
# Karras et al. 2020 (2006.06676), appendix C, at 256 and 512 pixels: batches of 64; at 1024 pixels they are of 32, the
# rate is 2e-3, and the average one of 10,000 pictures
ADA_RECIPE = replace(
    STYLEGAN2_RECIPE, batch_size=64, ema_half_life=20_000,
    optimizers={"model": Optimizer("adam", lr=2.5e-3, betas=(0.0, 0.99), clip=None)},
)  # fmt: skip


def published_base(data: PictureSpec) -> int:
    """Channels times pixels of ADA and StyleGAN 3: up to 256 pixels half of those of StyleGAN 2."""
    return 16384 if data.image_size <= 256 else 32768


stylegan2 = System(
    name="stylegan2",
    title="StyleGAN 2",
    paper=Paper(
        "Analyzing and Improving the Image Quality of StyleGAN",
        "Karras, Laine, Aittala, Hellsten, Lehtinen, Aila", 2019, "1912.04958",
    ),
    family="gan",
    survey="section 3.3, figure 23",
    summary=(
        "Styles scale the weights of convolutions in place of the maps, which cures the blobs of the first StyleGAN, "
        "all sizes are learned at once, and equally long steps of w change the picture by equally much."
    ),
    stages=_one_stage(StyleGAN2, {
        "small": lambda data: _small_stylegan2(data),
        "paper": lambda data: _stylegan2(data),
    }, STYLEGAN2_RECIPE, SMALL_EQUALISED_RECIPE),
)  # fmt: skip

stylegan2_ada = System(
    name="stylegan2-ada",
    title="StyleGAN 2 with adaptive discriminator augmentation",
    paper=Paper(
        "Training Generative Adversarial Networks with Limited Data",
        "Karras, Aittala, Hellsten, Laine, Lehtinen, Aila", 2020, "2006.06676",
    ),
    family="gan",
    survey="section 3.3",
    summary=(
        "For a few thousand pictures, which a discriminator would learn by heart: all that it sees is mirrored, "
        "turned, stretched and recoloured, real or generated, as often as it needs to stay unsure."
    ),
    stages=_one_stage(StyleGAN2, {
        "small": lambda data: _small_stylegan2(data, augmentation=AugmentationConfig(pictures=30_000, most=0.8)),
        "paper": lambda data: _stylegan2(
            data, network=StyleGAN2Networks(published_base(data), group=8 if data.image_size <= 512 else 4),
            penalty=ZeroCentred(gamma={512: 0.5, 1024: 2.0}.get(data.image_size, 1.0), every=16),
            augmentation=AugmentationConfig(),
        ),
    }, ADA_RECIPE, SMALL_EQUALISED_RECIPE),
)  # fmt: skip


def small_waves(data: PictureSpec, **choices: Any) -> StyleGAN3Networks:
    """Four layers, two of them critical, short filters, narrow margins, a short mapping."""
    same: dict[str, Any] = {"channel_base": 16 * data.image_size, "channel_max": 32}
    return StyleGAN3Networks(
        layers=4, margin=3, filter_size=4, width=64, mapping_lr=0.1, critic_base=16 * data.image_size, critic_max=64,
        coarsest=7, group=0, **{**same, **choices},
    )  # fmt: skip


def _stylegan3(data: PictureSpec, network: StyleGAN3Networks, **choices: Any) -> StyleGAN3Config:
    return StyleGAN3Config(data.image_size, data.channels, network=network, **choices)


def _small_stylegan3(data: PictureSpec, **network: Any) -> StyleGAN3Config:
    return _stylegan3(
        data, small_waves(data, **network), latent=64, penalty=ZeroCentred(gamma=1.0, every=16),
        magnitude_half_life=2000,
    )  # fmt: skip


# Karras et al. 2021, figure 16: batches of 32, 25 million real pictures (and as many batches again for the generator),
# the generator learns a little faster. All of their pictures are mirrored at random, being as likely either way. At 256
# pixels batches are of 64, and both players learn at 2.5e-3.
STYLEGAN3_RECIPE = replace(
    STYLEGAN2_RECIPE, ema_ramp=0.05, optimizers={
        "generator": Optimizer("adam", lr=2.5e-3, betas=(0.0, 0.99), clip=None),
        "discriminator": Optimizer("adam", lr=2e-3, betas=(0.0, 0.99), clip=None),
    },
)  # fmt: skip


def _published_stylegan3(data: PictureSpec, rotates: bool = False, **choices: Any) -> StyleGAN3Config:
    """Karras et al. 2021, figure 16; R1 as in appendix F.2: 0.001 times pixels over pictures of a batch.

    At 256 and 512 pixels, as in the authors' commands: 1, and 8.2 (T) or 16.4 (R).
    """
    base, times = published_base(data), 2 if rotates else 1
    network = StyleGAN3Networks(
        times * base, times * 512, kernel=1 if rotates else 3, radial=rotates, critic_base=base
    )  # fmt: skip
    rule = 0.001 * data.image_size**2 / STYLEGAN3_RECIPE.batch_size
    gamma = {256: 1.0, 512: 16.4 if rotates else 8.2}.get(data.image_size, rule)
    return _stylegan3(data, network, penalty=ZeroCentred(gamma=gamma, every=16), **choices)


ALIAS_FREE = Paper(
    "Alias-Free Generative Adversarial Networks",
    "Karras, Aittala, Laine, Härkönen, Hellsten, Lehtinen, Aila", 2021, "2106.12423",
)  # fmt: skip

stylegan3_t = System(
    name="stylegan3-t",
    title="StyleGAN 3, equivariant to translations",
    paper=ALIAS_FREE,
    family="gan",
    survey="section 3.3, table II and figure 24",
    summary=(
        "Details that stick to the screen while a face moves are aliases. So each layer is a signal of limited "
        "frequencies, made of waves, resampled through filters made to measure, even around each nonlinearity; and "
        "pictures can be shifted by any part of a pixel."
    ),
    stages=_one_stage(StyleGAN3, {
        "small": lambda data: _small_stylegan3(data),
        "paper": lambda data: _published_stylegan3(data),
    }, STYLEGAN3_RECIPE, SMALL_EQUALISED_RECIPE),
)  # fmt: skip

stylegan3_r = System(
    name="stylegan3-r",
    title="StyleGAN 3, equivariant to translations and rotations",
    paper=ALIAS_FREE,
    family="gan",
    survey="section 3.3, table II",
    summary=(
        "No layer knows a direction: convolutions of one pixel, twice as many channels, and filters that are alike "
        "all around. So pictures can be turned as well as shifted, and their details turn with them."
    ),
    stages=_one_stage(StyleGAN3, {
        "small": lambda data: _small_stylegan3(
            data, kernel=1, radial=True, channel_base=24 * data.image_size, channel_max=48
        ),
        "paper": lambda data: _published_stylegan3(data, rotates=True, blur=10.0, blur_steps=6250),
    }, STYLEGAN3_RECIPE, SMALL_EQUALISED_RECIPE),
)  # fmt: skip

SYSTEMS: tuple[System, ...] = (
    gan, dcgan, improved_gan, semi_supervised_gan, instance_noise, roth_gan, wgan, wgan_gp, r1_gan, cgan, ac_gan,
    projection_gan, biggan, progan, stylegan, stylegan2, stylegan2_ada, stylegan3_t, stylegan3_r,
)  # fmt: skip
