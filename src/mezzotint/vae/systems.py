"""The chapter as code: a paper is its networks, a posterior, a prior, a likelihood and an objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from ..autoregressive.pixelcnn import PixelCNNConfig
from ..autoregressive.tokens import PixelCNNPriorConfig
from ..core.batch import PictureSpec
from ..core.config import Config
from ..core.model import Model
from ..core.system import Optimizer, Paper, Recipe, Stage, System
from .autoencoders import (
    Autoencoder,
    AutoencoderConfig,
    DenoisingAutoencoder,
    DenoisingAutoencoderConfig,
    GenerativeDAE,
    GenerativeDAEConfig,
    MaskingCorruption,
    OneLayerConfig,
    SaltAndPepper,
)
from .cvae import CVAE, CVAEConfig
from .draw import DRAW, DRAWConfig
from .groups import halved
from .iaf import IAFVAE, IAFConfig
from .ladder import LadderConfig, LadderVAE
from .likelihoods import BernoulliConfig, GaussianPixelsConfig, LogisticsConfig
from .networks import ConvConfig, MLPConfig
from .nvae import NVAE, NVAEConfig
from .objectives import ELBO, Capacity, Constrained, ImportanceWeighted
from .pixelvae import PairsConfig, PixelVAE, PixelVAEConfig
from .posteriors import AuxiliaryPosteriorConfig
from .priors import HierarchicalPriorConfig
from .quantiser import CodebookConfig
from .semi_supervised import (
    CodeClassifier,
    CodeClassifierConfig,
    SemiSupervisedConfig,
    SemiSupervisedVAE,
    StackedConfig,
    StackedVAE,
)
from .vae import VAE, VAEConfig
from .vdvae import CIFAR10, IMAGENET32, IMAGENET64, VDVAE, VDVAEConfig, fitted
from .vq_vae import VQVAE, VQVAEConfig, VQVAEPrior, VQVAEPriorConfig

# A few minutes on a core of a laptop. Small batches and a high rate: after so few minutes it is the number of steps
# that counts. Gradients grow with the precision of pixels, more than tenfold in the first hundred steps; as all of them
# are clipped to the same norm, a large one does no harm
SMALL_RECIPE = Recipe(
    batch_size=32,
    optimizers={"model": Optimizer("adam", lr=3e-3)},
    warmup=2_000,
    ema_half_life=20_000,
    skip_factor=100.0,
)

# Burda et al. 2016, section 5: batches of 20, Adam with eps 1e-4, 3^i passes at the rate 1e-3 10^(-i/7), i = 0 ... 7,
# 3280 in all, two thirds of them at the last rate; here it falls to that as a cosine
BURDA_RECIPE = Recipe(
    batch_size=20,
    pictures=3_280 * 60_000,
    optimizers={"model": Optimizer("adam", lr=1e-3, eps=1e-4, clip=None)},
    warmup=0,
    final_lr=0.1,
    ema_half_life=0,
)

# Rate, 100 passes and clipping are those of a reimplementation (jbornschein/draw)
GREGOR_RECIPE = Recipe(
    batch_size=100,
    pictures=100 * 60_000,
    optimizers={"model": Optimizer("adam", lr=3e-4, clip=10.0)},
    warmup=0,
    decay="constant",
    ema_half_life=0,
)

# Gradient descent as in the first papers; the rate is ours, for errors that are sums over pixels
FIRST_RECIPE = Recipe(
    batch_size=100,
    pictures=200 * 50_000,
    optimizers={"model": Optimizer("sgd", lr=1e-3, betas=(0.9, 0.0), clip=None)},
    warmup=0,
    decay="constant",
    ema_half_life=0,
)

# The authors' training script for MNIST: batches of 100, Adam, 200,000 steps, the KL let in over the first 10,000.
# There each number of a gradient is held within [-1, 1]; here nothing is
GULRAJANI_RECIPE = Recipe(
    batch_size=100,
    pictures=200_000 * 100,
    optimizers={"model": Optimizer("adam", lr=1e-3, clip=None)},
    warmup=0,
    decay="constant",
    ema_half_life=0,
)

# Ours, all of it: the paper was not at hand
SOHN_RECIPE = Recipe(
    batch_size=100,
    pictures=100 * 60_000,
    optimizers={"model": Optimizer("adam", lr=1e-3, clip=None)},
    warmup=0,
    ema_half_life=0,
)

# The code of Kingma et al. 2014 for 100 labels: Adam, 3000 passes of 100 batches of 500 (for more labels, 200 of 250).
# There a batch has as many labelled pictures as fall to it, here they are half of it, and count less; and weights have
# a Gaussian prior there
KINGMA_RECIPE = Recipe(
    batch_size=500,
    pictures=3_000 * 50_000,
    optimizers={"model": Optimizer("adam", lr=3e-4, clip=None)},
    warmup=0,
    decay="constant",
    ema_half_life=0,
)

# M1 in the same code: batches of 1000, until the bound has not risen for long; 3000 passes are ours
CODES_RECIPE = replace(KINGMA_RECIPE, batch_size=1000)

# Van den Oord et al. 2017, section 4.1, on CIFAR-10: batches of 128, Adam at 2e-4, 250,000 steps. How the prior is
# trained is not said: here as the codec
OORD_RECIPE = Recipe(
    batch_size=128,
    pictures=250_000 * 128,
    optimizers={"model": Optimizer("adam", lr=2e-4, clip=None)},
    warmup=0,
    decay="constant",
    ema_half_life=0,
)

# Sonderby et al. 2016, section 3: batches of 256, 2000 passes; eps and clipping are those of the authors' script
LADDER_RECIPE = Recipe(
    batch_size=256,
    pictures=2_000 * 60_000,
    optimizers={"model": Optimizer("adam", lr=1e-3, eps=1e-4, clip=4.0)},
    warmup=0,
    decay="constant",
    ema_half_life=0,
)

# The command of Kingma et al. 2016 for the weights that they published: Adamax at 2e-3, 8 processes with batches of 32;
# their average of weights keeps 0.999 of itself at a step. How long is not said: 400 passes are ours
IAF_RECIPE = Recipe(
    batch_size=256,
    pictures=400 * 50_000,
    optimizers={"model": Optimizer("adamax", lr=2e-3, clip=None)},
    warmup=0,
    decay="constant",
    ema_half_life=177_000,
)


# Maps of codes take up far more nats than their priors can learn to draw in a few minutes. With the KL counted three
# times, more samples are whole: Frechet distances on `fashion` of 53 in place of 78 (VDVAE), for 0.11 bits/dim more
FEW_NATS = ELBO(beta=3.0, warmup_steps=100)


def _one_stage(
    model: type[Model], sizes: Mapping[str, Callable[[PictureSpec], Config]], paper: Recipe = BURDA_RECIPE,
    small: Recipe = SMALL_RECIPE,
) -> tuple[Stage, ...]:  # fmt: skip
    """The stages of a system that is one model."""
    return (Stage("model", model, sizes, {"small": small, "paper": paper}),)


# 2: autoencoders that are not variational ----------------------------------------------------------------------------

autoencoder = System(
    name="autoencoder",
    title="Autoencoder",
    paper=Paper("Learning representations by back-propagating errors", "Rumelhart, Hinton, Williams", 1986),
    family="vae",
    survey="section 2, eq. 1-2, figure 1",
    summary=(
        "A picture goes through a code of few numbers and is to come out as it was. Nothing says where codes lie, so "
        "that random ones are often the codes of nothing: here they are drawn from the Gaussian nearest to real ones."
    ),
    stages=_one_stage(Autoencoder, {
        "small": lambda data: AutoencoderConfig(data.image_size, data.channels),
        # Their encoder problem, whose N inputs go through log2 N units; of pictures they show none
        "paper": lambda data: AutoencoderConfig(
            data.image_size, data.channels, math.ceil(math.log2(data.channels * data.image_size**2)), OneLayerConfig()
        ),
    }, FIRST_RECIPE),
)  # fmt: skip

denoising_autoencoder = System(
    name="denoising-autoencoder",
    title="Denoising autoencoder",
    paper=Paper(
        "Extracting and Composing Robust Features with Denoising Autoencoders",
        "Vincent, Larochelle, Bengio, Manzagol", 2008,
    ),
    family="vae",
    survey="section 2",
    summary=(
        "An autoencoder that is shown a spoiled picture, with pixels blackened, salt and pepper on it or noise, and is "
        "asked for the clean one. Its code is of what pictures have in common; it repairs, and draws nothing."
    ),
    stages=_one_stage(DenoisingAutoencoder, {
        "small": lambda data: DenoisingAutoencoderConfig(data.image_size, data.channels, latent=128),
        "paper": lambda data: DenoisingAutoencoderConfig(
            data.image_size, data.channels, 2000, OneLayerConfig(), "cross-entropy", MaskingCorruption(0.25)
        ),
    }, FIRST_RECIPE),
)  # fmt: skip

generative_dae = System(
    name="generative-dae",
    title="Generative denoising autoencoder, with walkback",
    paper=Paper(
        "Generalized Denoising Auto-Encoders as Generative Models", "Bengio, Yao, Alain, Vincent", 2013, "1305.6663"
    ),
    family="vae",
    survey="section 2",
    summary=(
        "Spoil a picture, draw a clean one that may have been behind it, and so on: a chain whose pictures come as "
        "often as in the data. In training it is led back to the picture from wherever a few such steps have taken it."
    ),
    stages=_one_stage(GenerativeDAE, {
        # Binary pixels, as in the paper: four times as many steps in a minute as with convolutions
        "small": lambda data: GenerativeDAEConfig(
            data.image_size, data.channels, 256, MLPConfig((1000,)), BernoulliConfig()
        ) if data.channels == 1 else GenerativeDAEConfig(
            data.image_size, data.channels, network=ConvConfig(activation="relu")
        ),
        # Walks of 5 steps, all of them, and salt and pepper. The authors' code, of a better model than the paper's by
        # what it says, spoils 0.4 of the pixels, ties its weights, has sigmoids for tanh and no momentum
        "paper": lambda data: GenerativeDAEConfig(
            data.image_size, data.channels, 2000, OneLayerConfig("tanh"), BernoulliConfig(), SaltAndPepper(0.5),
            walkback=1.0, longest=5,
        ),
    }, FIRST_RECIPE),
)  # fmt: skip

# 2.1-2.2: the variational autoencoder --------------------------------------------------------------------------------


def _burda(data: PictureSpec, objective: ELBO | ImportanceWeighted) -> VAEConfig:
    """Burda et al. 2016, section 5: two layers of 200 tanh, a code of 50, of binary pixels."""
    return VAEConfig(
        data.image_size, data.channels, 50, MLPConfig((200, 200), "tanh", unit=True), BernoulliConfig(), objective
    )  # fmt: skip


KINGMA = Paper("Auto-Encoding Variational Bayes", "Kingma, Welling", 2013, "1312.6114")

vae = System(
    name="vae",
    title="Variational autoencoder",
    paper=KINGMA,
    family="vae",
    survey="sections 2.1, 2.2 and 2.4, eq. 3-14, 18-19",
    summary=(
        "An encoder says where a picture may lie in a space of codes, as a Gaussian; a decoder makes a picture of a "
        "code. Both are trained on a bound of the likelihood: explain the picture, with codes that stay near the prior."
    ),
    stages=_one_stage(VAE, {
        "small": lambda data: VAEConfig(data.image_size, data.channels),
        "paper": lambda data: _burda(data, ELBO()),
    }),
)  # fmt: skip

# 2.3: collapse, and what is done about it ----------------------------------------------------------------------------

beta_vae = System(
    name="beta-vae",
    title="Beta-VAE",
    paper=Paper(
        "beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework",
        "Higgins, Matthey, Pal, Burgess, Glorot, Botvinick, Mohamed, Lerchner", 2017,
    ),
    family="vae",
    survey="section 2.3, eq. 16",
    summary=(
        "The second term of the bound weighs beta times as much: codes carry less, and what they carry is spread over "
        "dimensions that mean something each. Pictures are worse for it."
    ),
    stages=_one_stage(VAE, {
        "small": lambda data: VAEConfig(data.image_size, data.channels, latent=16, objective=ELBO(beta=4.0)),
        # Beta and the number of dimensions are the paper's; network, likelihood and recipe are those of this chapter,
        # which are not theirs
        "paper": lambda data: VAEConfig(data.image_size, data.channels, latent=10, objective=ELBO(beta=4.0)),
    }),
)  # fmt: skip

capacity_vae = System(
    name="capacity-vae",
    title="Beta-VAE with a rising capacity",
    paper=Paper(
        "Understanding disentangling in beta-VAE",
        "Burgess, Higgins, Pal, Matthey, Watters, Desjardins, Lerchner", 2018, "1804.03599",
    ),
    family="vae",
    survey="section 2.3, eq. 17",
    summary=(
        "What codes may carry is held at so many nats, and the number rises while training goes on: first what changes "
        "most of the picture, then the details, each in a dimension of its own."
    ),
    stages=_one_stage(VAE, {
        "small": lambda data: VAEConfig(
            data.image_size, data.channels, latent=16, objective=Capacity(gamma=30.0, most=25.0, steps=4_000)
        ),
        # As above: the schedule and the number of dimensions are the paper's
        "paper": lambda data: VAEConfig(
            data.image_size, data.channels, latent=10, objective=Capacity(gamma=1000.0, most=25.0, steps=100_000)
        ),
    }),
)  # fmt: skip

# 2.4: sharp pictures ------------------------------------------------------------------------------------------------

pixelvae = System(
    name="pixelvae",
    title="PixelVAE",
    paper=Paper(
        "PixelVAE: A Latent Variable Model for Natural Images",
        "Gulrajani, Kumar, Ahmed, Taiga, Visin, Vazquez, Courville", 2016, "1611.05013",
    ),
    family="vae",
    survey="section 2.4, eq. 20-21, figures 3 and 4",
    summary=(
        "A code says what the picture is of, and a PixelCNN that is told the code draws it pixel by pixel, each "
        "knowing those before it. The PixelCNN sees only its neighbourhood, so that the code has something to say."
    ),
    stages=_one_stage(PixelVAE, {
        "small": lambda data: PixelVAEConfig(data.image_size, data.channels, objective=ELBO(warmup_steps=300)),
        # As the authors train it on MNIST: no map, and 12 layers after the first, which see nearly all that is before;
        # without their weight normalisation, and with half-linear units for the gates of the two layers at the end
        "paper": lambda data: PixelVAEConfig(
            data.image_size, data.channels, 16, PairsConfig(),
            BernoulliConfig() if data.channels == 1 else LogisticsConfig(10), ELBO(warmup_steps=10_000), features=0,
            pixelcnn=PixelCNNConfig(width=16, layers=13, first_kernel=7, kernel=5, head=16),
        ),
    }, GULRAJANI_RECIPE),
)  # fmt: skip

# 2.5: conditions, and classes of which few are told -------------------------------------------------------------------

cvae = System(
    name="cvae",
    title="Conditional variational autoencoder",
    paper=Paper(
        "Learning Structured Output Representation using Deep Conditional Generative Models", "Sohn, Lee, Yan", 2015
    ),
    family="vae",
    survey="section 2.5, Box 1, eq. 22",
    summary=(
        "What is not seen of a picture, given what is: a prior of what is seen, a recognition network that sees all, "
        "and a network that draws the rest. It completes a picture from one, two or three of its quadrants, colours a "
        "grey one, or finds the silhouette of a half hidden one: condition.kind says which."
    ),
    stages=_one_stage(CVAE, {
        "small": lambda data: CVAEConfig(data.image_size, data.channels),
        # networks as in Pyro's example of this paper
        "paper": lambda data: CVAEConfig(
            data.image_size, data.channels, latent=200, network=MLPConfig((500, 500)), likelihood=BernoulliConfig()
        ),
    }, paper=SOHN_RECIPE),
)  # fmt: skip

SEMI_SUPERVISED = Paper(
    "Semi-supervised Learning with Deep Generative Models", "Kingma, Rezende, Mohamed, Welling", 2014, "1406.5298"
)
# M1: found without labels, whatever is made of its codes
CODES = {
    "small": lambda data: VAEConfig(data.image_size, data.channels),
    "paper": lambda data: VAEConfig(
        data.image_size, data.channels, 50, MLPConfig((600, 600), "softplus"), BernoulliConfig()
    ),
}  # fmt: skip

semi_supervised_m1 = System(
    name="semi-supervised-m1",
    title="Semi-supervised learning, model M1: codes without labels, and a classifier on them",
    paper=SEMI_SUPERVISED,
    family="vae",
    survey="section 2.5",
    summary=(
        "A VAE learns from all pictures without labels; a linear classifier then learns the classes of its codes from "
        "the few pictures that have one. What the codes keep is chosen before anybody asks for classes."
    ),
    stages=(
        Stage("codes", VAE, CODES, {"small": SMALL_RECIPE, "paper": CODES_RECIPE}, share=9.0),
        Stage("model", CodeClassifier, {
            "small": lambda data: CodeClassifierConfig(len(data.classes)),
            "paper": lambda data: CodeClassifierConfig(len(data.classes)),
        }, {"small": SMALL_RECIPE, "paper": KINGMA_RECIPE}),
    ),
    needs=frozenset({"labels"}),
)  # fmt: skip

semi_supervised_m2 = System(
    name="semi-supervised-m2",
    title="Semi-supervised learning, model M2: the class as a latent variable",
    paper=SEMI_SUPERVISED,
    family="vae",
    survey="section 2.5",
    summary=(
        "A picture is made of its class and of a code for everything else. Where the class is not told, the bound sums "
        "over all of them as the classifier finds them likely, so that pictures without labels teach it too."
    ),
    stages=_one_stage(SemiSupervisedVAE, {
        # alpha: of grey levels the bound is twenty times as many nats as of the paper's black and white
        "small": lambda data: SemiSupervisedConfig(data.image_size, data.channels, len(data.classes), alpha=10.0),
        "paper": lambda data: SemiSupervisedConfig(
            data.image_size, data.channels, len(data.classes), latent=50, network=MLPConfig((500,), "softplus"),
            likelihood=BernoulliConfig(),
        ),
    }, paper=KINGMA_RECIPE),
    needs=frozenset({"labels"}),
)  # fmt: skip

semi_supervised_vae = System(
    name="semi-supervised-vae",
    title="Semi-supervised variational autoencoder, M1 + M2",
    paper=SEMI_SUPERVISED,
    family="vae",
    survey="section 2.5",
    summary=(
        "First a VAE without labels, then on its codes a model of class and style that is told the class of a hundred "
        "pictures or some more. It names the class of a picture, and draws pictures of a chosen class."
    ),
    stages=(
        Stage("codes", VAE, CODES, {"small": SMALL_RECIPE, "paper": CODES_RECIPE}),
        Stage("model", StackedVAE, {
            "small": lambda data: StackedConfig(len(data.classes), alpha=2.0),  # the paper's 0.1 takes its 3000 passes
            "paper": lambda data: StackedConfig(
                len(data.classes), latent=50, network=MLPConfig((300,), "softplus")
            ),  # (500,) for more labels than 100
        }, {"small": SMALL_RECIPE, "paper": KINGMA_RECIPE}),
    ),
    needs=frozenset({"labels"}),
)  # fmt: skip

# 2.6: a tighter bound ------------------------------------------------------------------------------------------------

iwae = System(
    name="iwae",
    title="Importance weighted autoencoder",
    paper=Paper("Importance Weighted Autoencoders", "Burda, Grosse, Salakhutdinov", 2015, "1509.00519"),
    family="vae",
    survey="section 2.6, eq. 23-25",
    summary=(
        "The networks of a VAE, trained on a tighter bound: the mean of several draws of the code, each weighted by "
        "how well it explains the picture, so that the encoder need not be right every time."
    ),
    stages=_one_stage(VAE, {
        "small": lambda data: VAEConfig(data.image_size, data.channels, objective=ImportanceWeighted(5)),
        "paper": lambda data: _burda(data, ImportanceWeighted(50)),
    }),
)  # fmt: skip

# 2.6.1: a picture painted step by step ------------------------------------------------------------------------------

draw = System(
    name="draw",
    title="Deep recurrent attentive writer (DRAW)",
    paper=Paper(
        "DRAW: A Recurrent Neural Network For Image Generation",
        "Gregor, Danihelka, Graves, Rezende, Wierstra", 2015, "1502.04623",
    ),
    family="vae",
    survey="section 2.6.1, eq. 26, figures 6-7",
    summary=(
        "A picture is painted on a canvas in many steps, each with a code of its own: one recurrent network looks at "
        "what is still missing, another adds to the canvas. Filters that move and zoom let both attend to a part of it."
    ),
    stages=_one_stage(DRAW, {
        "small": lambda data: DRAWConfig(
            data.image_size, data.channels, glimpses=12, latent=32, read=7, write=7, likelihood=LogisticsConfig()
        ),
        "paper": lambda data: DRAWConfig(data.image_size, data.channels),
    }, GREGOR_RECIPE),
)  # fmt: skip

# 2.6.2: codes from a codebook ----------------------------------------------------------------------------------------

vq_vae = System(
    name="vq-vae",
    title="Vector quantised VAE (VQ-VAE)",
    paper=Paper("Neural Discrete Representation Learning", "van den Oord, Vinyals, Kavukcuoglu", 2017, "1711.00937"),
    family="vae",
    survey="section 2.6.2, eq. 27-28, Box 2",
    summary=(
        "A picture becomes a small map of numbers, each that of the nearest entry of a learned codebook, and a decoder "
        "makes a picture of the map. A second model, a PixelCNN or a transformer, then learns which maps there are, "
        "number by number, of all pictures or of each class."
    ),
    stages=(
        Stage("codec", VQVAE, {
            "small": lambda data: VQVAEConfig(
                data.image_size, data.channels, width=64,
                codebook=CodebookConfig(codes=128, width=16, decay=0.9),  # a short run needs codes that move soon
            ),
            # One code for each place, as in section 4.2, with the width of networks and the pictures of 4.1, whose
            # places have ten. The codebook is learned by gradient, from where it happens to begin; the width of a code
            # is that of the authors' notebook, and the decoder's deviation is learned where they have the squared error
            "paper": lambda data: VQVAEConfig(
                data.image_size, data.channels, likelihood=GaussianPixelsConfig(),
                codebook=CodebookConfig(positions="mean", update="gradient", kmeans=0, revive_below=0.0),
            ),
        }, {"small": SMALL_RECIPE, "paper": OORD_RECIPE}),
        Stage("prior", VQVAEPrior, {
            "small": lambda data: VQVAEPriorConfig(
                len(data.classes), PixelCNNPriorConfig(PixelCNNConfig(layers=6, first_kernel=5))
            ),
            # section 4.2: as large as that of van den Oord et al. 2016b, but for kernel and head, which are ours
            "paper": lambda data: VQVAEPriorConfig(
                len(data.classes), PixelCNNPriorConfig(PixelCNNConfig(384, 20, 7, 5, 1024), 384)
            ),
        }, {"small": SMALL_RECIPE, "paper": OORD_RECIPE}),
    ),
)  # fmt: skip

# 2.6.3: latents in layers ---------------------------------------------------------------------------------------------

hierarchical_variational_model = System(
    name="hierarchical-variational-model",
    title="Hierarchical variational model",
    paper=Paper("Hierarchical Variational Models", "Ranganath, Tran, Blei", 2016, "1511.02386"),
    family="vae",
    survey="section 2.6.3",
    summary=(
        "The posterior of the code has a latent variable of its own, so that it is a mixture without end and its "
        "dimensions may depend on each other; an auxiliary network that guesses how each was drawn keeps the bound."
    ),
    stages=_one_stage(VAE, {
        "small": lambda data: VAEConfig(data.image_size, data.channels, posterior=AuxiliaryPosteriorConfig()),
        # The paper's models are of counts; its posterior here is of the code of Burda et al.
        "paper": lambda data: VAEConfig(
            data.image_size, data.channels, 50, MLPConfig((200,), "tanh", unit=True), BernoulliConfig(),
            posterior=AuxiliaryPosteriorConfig(50, 200, (200,), "tanh"),
        ),
    }),
)  # fmt: skip

iaf_vae = System(
    name="iaf-vae",
    title="ResNet VAE with inverse autoregressive flow",
    paper=Paper(
        "Improving Variational Inference with Inverse Autoregressive Flow",
        "Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling", 2016, "1606.04934",
    ),
    family="vae",
    survey="section 2.6.3, eq. 29-31",
    summary=(
        "Levels of latent maps on a residual network that is climbed with the picture and descended with the latents. "
        "Masked convolutions bend the Gaussian of each level into a posterior of any shape, drawn in one pass."
    ),
    stages=_one_stage(IAFVAE, {
        "small": lambda data: IAFConfig(
            data.image_size, data.channels, depths=(1, 8), residual=1.0, placed=True, objective=FEW_NATS
        ),
        # The model whose weights they published: 20 levels at one size (appendix C.9, 3.11 bits/dim). There a logistic
        # has one scale for all pixels of a channel; here each has its own, and the channels of a pixel are chained
        "paper": lambda data: IAFConfig(
            data.image_size, data.channels, latent=32, width=160, depths=(20,), flow_layers=2, weight_norm=True,
            likelihood=LogisticsConfig(1), objective=ELBO(free_bits=0.1),
        ),
    }, IAF_RECIPE),
)  # fmt: skip

ladder_vae = System(
    name="ladder-vae",
    title="Ladder variational autoencoder",
    paper=Paper(
        "Ladder Variational Autoencoders", "Sonderby, Raiko, Maaloe, Sonderby, Winther", 2016, "1602.02282"
    ),
    family="vae",
    survey="section 2.6.3, eq. 29-31",
    summary=(
        "Layers of latents, each a Gaussian given the one above. At every layer what the picture says from below and "
        "what is expected from above are weighed by their precisions, so that the upper layers learn something too."
    ),
    stages=_one_stage(LadderVAE, {
        "small": lambda data: LadderConfig(data.image_size, data.channels, objective=ELBO(warmup_steps=100)),
        # Five levels, warmed up in 200 passes; layer normalisation in place of that of batches
        "paper": lambda data: LadderConfig(
            data.image_size, data.channels, (64, 32, 16, 8, 4), (512, 256, 128, 64, 32), MLPConfig((512,), "leaky"),
            "leaky", "layer", BernoulliConfig(), ELBO(warmup_steps=200 * 60_000 // 256),
        ),
    }, LADDER_RECIPE),
)  # fmt: skip

vhp_vae = System(
    name="vhp-vae",
    title="VAE with a learned hierarchical prior",
    paper=Paper(
        "Learning Hierarchical Priors in VAEs", "Klushyn, Chen, Kurle, Cseke, van der Smagt", 2019, "1905.04982"
    ),
    family="vae",
    survey="section 2.6.3",
    summary=(
        "The prior of the code is itself made of a smaller code, and learned, so that codes need not be pressed into a "
        "ball. How well pictures must be explained is a constraint; the weight of the KL follows it, and comes to one."
    ),
    stages=_one_stage(VAE, {
        "small": lambda data: VAEConfig(
            data.image_size, data.channels,
            objective=Constrained(most=2.9, begin=0.2, least=0.1, memory=0.9, wait=False),
            prior=HierarchicalPriorConfig(),
        ),
        # Networks, constraint and recipe are ours
        "paper": lambda data: VAEConfig(
            data.image_size, data.channels, 32, MLPConfig((256, 256), "relu", unit=True), BernoulliConfig(),
            Constrained(most=0.08, begin=0.01), prior=HierarchicalPriorConfig(32, 16, (256, 256), "relu"),
        ),
    }),
)  # fmt: skip

# Groups of codes from the coarsest to the finest map -----------------------------------------------------------------

# A few minutes on two cores; small batches, for there are few steps in that time
GROUPS_SMALL = Recipe(
    batch_size=16,
    optimizers={"model": Optimizer("adamw", lr=3e-3, betas=(0.9, 0.99), weight_decay=0.01, clip=2_000.0)},
    warmup=1_000,
    ema_half_life=5_000,
)

# The authors' command for CIFAR-10: 400 passes in batches of 256, Adamax at 1e-2; mirrored pictures, which are not for
# digits (`flip`). That for MNIST has batches of 400
VAHDAT_RECIPE = Recipe(
    batch_size=256,
    pictures=400 * 50_000,
    optimizers={"model": Optimizer("adamax", lr=1e-2, eps=1e-3, weight_decay=3e-4, clip=None)},
    warmup=5 * 50_000,
    final_lr=0.01,
    ema_half_life=0,
)


def _vahdat(data: PictureSpec) -> NVAEConfig:
    """For grey pictures, which are binarised, the network for MNIST; for others that for CIFAR-10, without its flows.

    Widths, groups, cells and warm-up of the KL, in three tenths of the steps, are those of the authors' commands.
    """
    warm_up = ELBO(warmup_steps=3 * VAHDAT_RECIPE.pictures // (10 * VAHDAT_RECIPE.batch_size))
    if data.channels == 1:
        return NVAEConfig(
            data.image_size, data.channels, halvings=2, stem_cells=3, norm="batch", balance=True,
            likelihood=BernoulliConfig(), objective=warm_up,
        )  # fmt: skip
    return NVAEConfig(
        data.image_size, data.channels, 128, groups=(30,), norm="batch", balance=True, objective=warm_up
    )  # fmt: skip


nvae = System(
    name="nvae",
    title="Nouveau VAE",
    paper=Paper("NVAE: A Deep Hierarchical Variational Autoencoder", "Vahdat, Kautz", 2020, "2007.03898"),
    family="vae",
    survey="section 2.6.3, eq. 29-31, figure 10",
    summary=(
        "Codes in groups, several at each of several sizes, with residual cells between them. A posterior is told "
        "relative to its prior, and convolutions are kept smooth by a penalty on their spectral norms, so that the KL "
        "of so many groups stays in bounds."
    ),
    stages=_one_stage(NVAE, {
        "small": lambda data: NVAEConfig(
            data.image_size, data.channels, 16, stem_cells=1, groups=(5, 2), cells=1, latent=8, expansion=2,
            last_expansion=2, likelihood=LogisticsConfig(), objective=FEW_NATS,
        ),
        "paper": _vahdat,
    }, VAHDAT_RECIPE, GROUPS_SMALL),
)  # fmt: skip


def _child(batch_size: int, steps: int, lr: float, decay: float, dimensions: int, clip: float) -> Recipe:
    """Child 2021: his settings, but that he divides the loss by the number of dimensions, and so clips at less."""
    return Recipe(
        batch_size=batch_size,
        pictures=steps * batch_size,
        optimizers={"model": Optimizer("adamw", lr, (0.9, 0.9), weight_decay=0.01, clip=clip * dimensions)},
        warmup=100 * batch_size,
        decay="constant",
        ema_half_life=round(math.log(2) / (1 - decay) * batch_size),
    )


def _ladder(data: PictureSpec, ladder: tuple[str, str], size: int, width: int) -> VDVAEConfig:
    """A published ladder for pictures of `size` pixels; for others, one whose levels are halved as often."""
    encoder, decoder = (fitted(blocks, size, data.image_size) for blocks in ladder)
    return VDVAEConfig(data.image_size, data.channels, encoder, decoder, width)


def _short_ladder(data: PictureSpec) -> VDVAEConfig:
    """Codes at a size, at a half, at a quarter, and one number of each channel for the whole picture."""
    encoder, decoder = (
        fitted(blocks, 32, data.image_size)
        for blocks in ("32d2,16d2,8x1,8d8,1x1", "1x1,8m1,8x3,16m8,16x1,32m16")
    )  # fmt: skip
    widths = f"{data.image_size}:32,{halved(data.image_size)}:64"
    return VDVAEConfig(
        data.image_size, data.channels, encoder, decoder, 96, widths, latent=8, likelihood=LogisticsConfig(),
        objective=FEW_NATS,
    )  # fmt: skip


def _cifar10(data: PictureSpec) -> VDVAEConfig:
    """The first of the published ladders, which is also the size called `paper`."""
    return _ladder(data, CIFAR10, 32, 384)


CIFAR10_RECIPE = _child(32, 1_000_000, 2e-4, 0.9999, 3 * 32**2, 200.0)

vdvae = System(
    name="vdvae",
    title="Very deep VAE",
    paper=Paper(
        "Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images", "Child", 2020,
        "2011.10650",
    ),
    family="vae",
    survey="section 2.6.3, eq. 29-31, figure 11",
    summary=(
        "A ladder of residual blocks from one pixel to the whole picture, each with a group of codes of its own, as "
        "many as one likes. Deep enough, it can do what an autoregressive model does, in far fewer steps; how many "
        "groups are drawn, and how boldly, is chosen when it samples."
    ),
    stages=(Stage("model", VDVAE, {
        "small": _short_ladder,
        "paper": _cifar10,
        "cifar10": _cifar10,
        "imagenet32": lambda data: _ladder(data, IMAGENET32, 32, 512),
        "imagenet64": lambda data: _ladder(data, IMAGENET64, 64, 512),
    }, {
        "small": GROUPS_SMALL,
        "paper": CIFAR10_RECIPE,
        "cifar10": CIFAR10_RECIPE,
        "imagenet32": _child(256, 1_700_000, 1.5e-4, 0.999, 3 * 32**2, 200.0),
        "imagenet64": _child(128, 1_600_000, 1.5e-4, 0.999, 3 * 64**2, 220.0),
    }),),
)  # fmt: skip

SYSTEMS: tuple[System, ...] = (
    autoencoder,
    denoising_autoencoder,
    generative_dae,
    vae, beta_vae, capacity_vae, pixelvae, cvae, semi_supervised_m1, semi_supervised_m2, semi_supervised_vae, iwae,
    draw, vq_vae, hierarchical_variational_model, iaf_vae, ladder_vae, vhp_vae, nvae, vdvae,
)  # fmt: skip
