"""Training steps of VAE, IWAE and VQ-VAE beside pythae, and nearest codes beside vector-quantize-pytorch.

    python benchmarks/vae.py [--repeats 5] [--only WORD ...] [--json]

Both sides have networks of the same layers, pictures and batches, float32, and take their steps in turn in one run.
pythae runs as its trainer runs it: its losses, torch's Adam with its defaults, and, where a row has data, its loader.
Ours draws its noise from a seed of each picture, so that a run can be split over processes, which pythae does not.
About three minutes on a core that nobody else uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
from mezzotint.core.batch import Batch
from mezzotint.core.model import Model
from mezzotint.data import Loader, Pictures, open_pictures
from mezzotint.vae.likelihoods import BernoulliConfig, GaussianPixelsConfig
from mezzotint.vae.networks import MLPConfig
from mezzotint.vae.objectives import ELBO, ImportanceWeighted
from mezzotint.vae.quantiser import CodebookConfig, nearest

BATCH, HIDDEN, LATENT = 100, 500, 20
CODES, WIDTH, FEATURES = 512, 64, 64  # of the VQ-VAE
VECTORS, ENTRIES = 65_536, 1_024  # of the lookup
STEPS = {1: 10, 5: 5, 50: 1}  # training steps between two looks at the clock, by draws of a picture

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


def our_step(model: Model, batches: Callable[[], Batch]) -> Step:
    """Loss, gradient, Adam, codebook."""
    optimizer = torch.optim.Adam(model.train().parameters(), 1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        model(batches()).total.backward()
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


def timed(name: str, ours: Step, peer: Step, repeats: int, draws: int = 1, package: str = "pythae") -> Row:
    """Pictures per second."""
    steps = STEPS[draws]

    def many(step: Step) -> Step:
        return lambda: [step() for _ in range(steps)] and None

    ours(), peer()  # the first allocates, and begins codebooks
    mine, theirs = (BATCH * steps / s for s in alternate(many(ours), many(peer), repeats))
    return Row(name, mine, theirs, "pictures/s", setting(package))


def vaes(pictures: Pictures, repeats: int, wanted: Callable[[str], bool]) -> Iterator[Row]:
    loader = Loader(pictures, BATCH, pixels="binary")
    batch = loader.next()
    given = {"data": (batch.images + 1) / 2}
    for draws in (1, 5, 50):
        system = "VAE" if draws == 1 else f"IWAE, K = {draws}"
        settings = {"input_dim": (1, 28, 28), "latent_dim": LATENT, "reconstruction_loss": "bce"}
        name = f"{system}, 784-500-500-20: training step"
        if wanted(name):
            peer_config = VAEConfig(**settings) if draws == 1 else IWAEConfig(number_samples=draws, **settings)
            peer = (VAE if draws == 1 else IWAE)(peer_config, encoder=MLPEncoder(), decoder=MLPDecoder())
            yield timed(name, our_step(plain(draws), lambda: batch), their_step(peer, lambda: given), repeats, draws)
    name = "VAE, 784-500-500-20: training step with its data"
    if wanted(name):
        levels = (pictures.batch(range(10_000)).images + 1) / 2
        data = torch.utils.data.DataLoader(
            BaseDataset(levels, torch.ones(len(levels))), BATCH, shuffle=True, collate_fn=collate_dataset_output
        )
        endless = (part for _ in iter(int, 1) for part in data)
        peer = VAE(VAEConfig(**settings), encoder=MLPEncoder(), decoder=MLPDecoder())
        yield timed(name, our_step(plain(1), loader.next), their_step(peer, lambda: next(endless)), repeats)


def plain(draws: int) -> Model:
    """Our VAE or IWAE of these layers."""
    objective = ELBO() if draws == 1 else ImportanceWeighted(draws)
    config = our_vae.VAEConfig(28, 1, LATENT, MLPConfig((HIDDEN, HIDDEN)), BernoulliConfig(), objective)
    return our_vae.VAE(config)


def vq_vaes(pictures: Pictures, repeats: int, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """Codes as averages, of Gaussian pixels with sigma 1, as pythae has it."""
    images = Loader(pictures, BATCH).next()
    name = f"VQ-VAE, {FEATURES} features, {CODES} codes: training step"
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
    yield timed(name, our_step(ours, lambda: images), their_step(peer, lambda: given), repeats)


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


if __name__ == "__main__":
    options, asked = asked_rows(__doc__.splitlines()[0])
    data = open_pictures("fashion")
    found = [
        *vaes(data, options.repeats, asked), *vq_vaes(data, options.repeats, asked), *lookup(options.repeats, asked)
    ]  # fmt: skip
    report(found, options.json)
