"""Training steps of VAE, IWAE and VQ-VAE beside pythae, and nearest codes beside vector-quantize-pytorch.

Last, how many codes a prior draws in a second with its cache, beside the same prior without.

    python benchmarks/vae.py [--repeats 5] [--only WORD ...] [--json]

Both sides have networks of the same layers, pictures and batches, and take their steps in turn in one run. Ours runs in
the precision "auto" (bf16 where the CPU multiplies it), and once more in float32, where that is another. pythae runs as
its trainer runs it: float32, its losses, torch's Adam with its defaults, and, where a row has data, its loader.
Ours draws its noise from a seed of each picture, so that a run can be split over processes, which pythae does not.
About five minutes on a core that nobody else uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from harness import Row, alternate, asked_rows, report, setting
from pythae.data.datasets import BaseDataset, collate_dataset_output
from pythae.models import IWAE, VAE, VQVAE, IWAEConfig, VAEConfig, VQVAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import Tensor, nn
from torch.nn import functional as F
from vector_quantize_pytorch import VectorQuantize

import mezzotint.vae.vae as our_vae
import mezzotint.vae.vq_vae as our_vq
from mezzotint.autoregressive.pixelcnn import PixelCNNConfig
from mezzotint.autoregressive.tokens import PixelCNNPriorConfig, TransformerPriorConfig
from mezzotint.core.batch import Batch, PictureRandom
from mezzotint.core.model import Model
from mezzotint.core.precision import autocast, resolve_precision
from mezzotint.data import Loader, Pictures, open_pictures
from mezzotint.vae.likelihoods import BernoulliConfig, GaussianPixelsConfig
from mezzotint.vae.networks import MLPConfig
from mezzotint.vae.objectives import ELBO, ImportanceWeighted
from mezzotint.vae.quantiser import CodebookConfig, nearest

BATCH, HIDDEN, LATENT = 100, 500, 20
CODES, WIDTH, FEATURES = 512, 64, 64  # of the VQ-VAE
VECTORS, ENTRIES = 65_536, 1_024  # of the lookup
STEPS = {1: 10, 5: 5, 50: 1}  # training steps between two looks at the clock, by draws of a picture
CPU = torch.device("cpu")
PRECISIONS = tuple(dict.fromkeys((resolve_precision("auto", CPU), "fp32")))
MAPS, DRAWN = (8, 16, 24), 2  # sizes of maps of codes, and how many maps are drawn

Step = Callable[[], None]


class MLPEncoder(BaseEncoder):
    """784-500-500-20."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU()
        )
        self.embedding, self.log_var = nn.Linear(HIDDEN, LATENT), nn.Linear(HIDDEN, LATENT)

    def forward(self, x: Tensor) -> ModelOutput:
        hidden = self.layers(x)
        return ModelOutput(embedding=self.embedding(hidden), log_covariance=self.log_var(hidden))


class MLPDecoder(BaseDecoder):
    """20-500-500-784."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, 784), nn.Sigmoid(), nn.Unflatten(1, (1, 28, 28)),
        )  # fmt: skip

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.layers(z))


class Around(BaseEncoder):
    """A network of ours as pythae calls an encoder or a decoder."""

    def __init__(self, network: nn.Module, answer: str) -> None:
        super().__init__()
        self.network, self.answer = network, answer

    def forward(self, x: Tensor) -> ModelOutput:
        return ModelOutput(**{self.answer: self.network(x)})


class AroundDecoder(Around, BaseDecoder):
    """The same; pythae asks whether a decoder is one."""


def our_step(model: Model, batches: Callable[[], Batch], precision: str) -> Step:
    """Loss, gradient, Adam, codebook."""
    optimizer = torch.optim.Adam(model.train().parameters(), 1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(precision, CPU):
            loss = model(batches()).total
        loss.backward()
        optimizer.step()
        model.after_step(0)

    return step


def their_step(model: nn.Module, batches: Callable[[], dict[str, Tensor]]) -> Step:
    """What pythae's BaseTrainer does with a batch."""
    optimizer = torch.optim.Adam(model.train().parameters(), 1e-3)

    def step() -> None:
        output = model(batches())
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        output.loss.item()

    return step


def timed(name: str, ours: Step, peer: Step, repeats: int, precision: str, draws: int = 1) -> Row:
    """Pictures per second."""
    steps = STEPS[draws]

    def many(step: Step) -> Step:
        return lambda: [step() for _ in range(steps)] and None

    ours(), peer()  # the first allocates, and begins codebooks
    mine, theirs = (BATCH * steps / s for s in alternate(many(ours), many(peer), repeats))
    return Row(name, mine, theirs, "pictures/s", setting("pythae", precision=f"ours {precision}, peer fp32"))


def vaes(pictures: Pictures, repeats: int, wanted: Callable[[str], bool], precision: str) -> Iterator[Row]:
    loader = Loader(pictures, BATCH, pixels="binary")
    batch = loader.next()
    given = {"data": (batch.images + 1) / 2}
    for draws in (1, 5, 50):
        system = "VAE" if draws == 1 else f"IWAE, K = {draws}"
        settings = {"input_dim": (1, 28, 28), "latent_dim": LATENT, "reconstruction_loss": "bce"}
        name = f"{system}, 784-500-500-20: training step, {precision} against fp32"
        if wanted(name):
            peer_config = VAEConfig(**settings) if draws == 1 else IWAEConfig(number_samples=draws, **settings)
            peer = (VAE if draws == 1 else IWAE)(peer_config, encoder=MLPEncoder(), decoder=MLPDecoder())
            sides = our_step(plain(draws), lambda: batch, precision), their_step(peer, lambda: given)
            yield timed(name, *sides, repeats, precision, draws)
    name = f"VAE, 784-500-500-20: training step with its data, {precision} against fp32"
    if wanted(name):
        levels = (pictures.batch(range(10_000)).images + 1) / 2
        data = torch.utils.data.DataLoader(
            BaseDataset(levels, torch.ones(len(levels))), BATCH, shuffle=True, collate_fn=collate_dataset_output
        )
        endless = (part for _ in iter(int, 1) for part in data)
        peer = VAE(VAEConfig(**settings), encoder=MLPEncoder(), decoder=MLPDecoder())
        sides = our_step(plain(1), loader.next, precision), their_step(peer, lambda: next(endless))
        yield timed(name, *sides, repeats, precision)


def plain(draws: int) -> Model:
    """Our VAE or IWAE of these layers."""
    objective = ELBO() if draws == 1 else ImportanceWeighted(draws)
    config = our_vae.VAEConfig(28, 1, LATENT, MLPConfig((HIDDEN, HIDDEN)), BernoulliConfig(), objective)
    return our_vae.VAE(config)


def vq_vaes(pictures: Pictures, repeats: int, wanted: Callable[[str], bool], precision: str) -> Iterator[Row]:
    """Codes as averages, of Gaussian pixels with sigma 1, as pythae has it."""
    images = Loader(pictures, BATCH).next()
    name = f"VQ-VAE, {FEATURES} features, {CODES} codes: training step, {precision} against fp32"
    if not wanted(name):
        return
    codebook = CodebookConfig(CODES, WIDTH)
    config = our_vq.VQVAEConfig(28, 1, FEATURES, codebook=codebook, likelihood=GaussianPixelsConfig(1.0))
    ours = our_vq.VQVAE(config)
    settings = {"input_dim": (1, 28, 28), "latent_dim": WIDTH, "num_embeddings": CODES, "use_ema": True}
    peer = VQVAE(
        VQVAEConfig(**settings),
        encoder=Around(config.encoder(), "embedding"),
        decoder=AroundDecoder(config.decoder(1), "reconstruction"),
    )
    given = {"data": images.images}
    yield timed(name, our_step(ours, lambda: images, precision), their_step(peer, lambda: given), repeats, precision)


@torch.no_grad()
def lookup(repeats: int, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """Nearest codes and their vectors."""
    name = f"nearest of {ENTRIES:,} codes for {VECTORS:,} vectors of {WIDTH}"
    if not wanted(name):
        return
    peer = VectorQuantize(dim=WIDTH, codebook_size=ENTRIES).eval()
    codebook, vectors = peer.codebook.clone(), torch.randn(VECTORS, WIDTH)

    def ours() -> Tensor:
        return F.embedding(nearest(vectors, codebook), codebook)

    def theirs() -> Tensor:
        return peer(vectors[None])[0]

    differ = (ours() != theirs()[0]).any(1).float().mean()  # where two codes are as near as rounding can tell
    if differ > 1e-3:
        raise SystemExit(f"the two find other codes for {differ:.1%} of the vectors")
    mine, others = alternate(ours, theirs, repeats)
    yield Row(name, VECTORS / mine, VECTORS / others, "vectors/s", setting("vector-quantize-pytorch"))


@torch.no_grad()
def drawing(repeats: int, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """Codes per second of priors of maps of several sizes; that of a PixelCNN with its cache does not fall."""
    pixelcnn = PixelCNNPriorConfig(PixelCNNConfig(layers=6, first_kernel=5))
    priors = {"PixelCNN": pixelcnn, "transformer": TransformerPriorConfig()}
    for kind, config in priors.items():
        for size in MAPS:
            name = f"{kind} prior, {size} x {size} codes: cached against not"
            if not wanted(name):
                continue
            prior = config.build(CODES, size, size).eval()

            def draw(cached: bool, prior=prior) -> None:
                prior.sample(DRAWN, random=PictureRandom(range(DRAWN)), cached=cached)

            sides = partial(draw, True), partial(draw, False)
            draw(True)  # the first allocates
            mine, others = (DRAWN * size**2 / taken for taken in alternate(*sides, min(repeats, 3)))
            yield Row(name, mine, others, "codes/s", setting())


if __name__ == "__main__":
    options, asked = asked_rows(__doc__.splitlines()[0])
    data = open_pictures("fashion")
    found = [row for kind in (vaes, vq_vaes) for each in PRECISIONS for row in kind(data, options.repeats, asked, each)]
    found += [*lookup(options.repeats, asked), *drawing(options.repeats, asked)]
    report(found, options.json)
