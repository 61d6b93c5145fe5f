"""A training step and guided sampling beside diffusers: same UNet, same weights, same batch, in turn in one run.

    python benchmarks/diffusion.py [--repeats 3] [--json]

diffusers runs as it comes: float32, AdamW with its defaults, `DDPMScheduler.add_noise`, `DDIMScheduler` with a doubled
batch for guidance. Ours runs in the precision "auto" (bf16 where the CPU multiplies it), and once more in float32, its
weights in the memory layout that the Trainer gives them. About three minutes on two cores that nobody else uses.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator

import diffusers
import torch
from diffusers.utils import import_utils
from harness import Row, alternate, arguments, report, setting

from mezzotint.core.batch import Batch
from mezzotint.core.precision import autocast, resolve_precision
from mezzotint.diffusion.model import DenoisingConfig, DenoisingModel
from mezzotint.nn.published import load_unet
from mezzotint.training.trainer import _laid_out

CPU = torch.device("cpu")
SIZE, CLASSES, BATCH, DRAWN, STEPS, W = 32, 10, 32, 4, 50, 1.0
BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D")


def same_network() -> tuple[torch.nn.Module, DenoisingModel]:
    """The CIFAR-10 UNet of DDPM at half its width, 9 M parameters, in both libraries, with the same weights."""
    import_utils._torchvision_available = False  # it would be imported for models that are not compared here
    theirs = diffusers.UNet2DModel(
        sample_size=SIZE, block_out_channels=(64, 128, 128, 128), down_block_types=BLOCKS, num_class_embeds=CLASSES + 1,
        up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(BLOCKS)), attention_head_dim=None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        network = load_unet(directory)
    config = DenoisingConfig(image_size=SIZE, channels=3, classes=CLASSES, network=network.config, label_dropout=0.1)
    ours = DenoisingModel(config)
    ours.network = network
    return theirs, _laid_out(ours)


def their_step(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """The training loop of diffusers' unconditional example, with labels."""
    scheduler, optimizer = diffusers.DDPMScheduler(), torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        noise = torch.randn_like(images)
        t = torch.randint(0, 1000, (len(images),))
        predicted = model(scheduler.add_noise(images, noise, t), t, labels).sample
        torch.nn.functional.mse_loss(predicted, noise).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def our_step(model: DenoisingModel, images: torch.Tensor, labels: torch.Tensor, precision: str) -> Callable[[], None]:
    """The same with this library."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with autocast(precision, CPU):
            loss = model(Batch(images, labels)).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


@torch.no_grad()
def their_sampling(model: torch.nn.Module, labels: torch.Tensor) -> torch.Tensor:
    """DDIM with guidance, as in diffusers' pipelines: a loop over the scheduler with a doubled batch."""
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(STEPS)
    x = torch.randn(len(labels), 3, SIZE, SIZE)
    both = torch.cat([labels, torch.full_like(labels, CLASSES)])
    for t in scheduler.timesteps:
        conditional, unconditional = model(torch.cat([x, x]), t, both).sample.chunk(2)
        x = scheduler.step((1 + W) * conditional - W * unconditional, t, x).prev_sample
    return x


def rows(repeats: int) -> Iterator[Row]:
    theirs, ours = same_network()
    images, labels = torch.rand(BATCH, 3, SIZE, SIZE) * 2 - 1, torch.arange(BATCH) % CLASSES
    auto = resolve_precision("auto", CPU)
    for name, precision in ((f"training step, {auto} against fp32", auto), ("training step, fp32 both", "fp32")):
        step, their = our_step(ours, images, labels, precision), their_step(theirs, images, labels)
        yield row(name, BATCH, alternate(step, their, repeats), precision)
    wanted = labels[:DRAWN]
    theirs.eval()
    for name, precision in ((f"guided DDIM, {auto} against fp32", auto), ("guided DDIM, fp32 both", "fp32")):

        def sample(precision: str = precision) -> None:
            with autocast(precision, CPU):
                ours.sample(DRAWN, labels=wanted, solver="ddim", steps=STEPS, guidance=W)

        taken = alternate(sample, lambda: their_sampling(theirs, wanted), repeats)
        yield row(f"{name}, {STEPS} steps", DRAWN, taken, precision)


def row(name: str, pictures: int, seconds: tuple[float, float], precision: str) -> Row:
    """Pictures per second of both sides."""
    ours, peer = (pictures / s for s in seconds)
    return Row(name, ours, peer, "pictures/s", setting("diffusers", precision=f"ours {precision}, peer fp32"))


if __name__ == "__main__":
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="how often each side is timed")
    options = parser.parse_args()
    report(list(rows(options.repeats)), options.json)
