"""Training steps and guided sampling beside diffusers: same network, same weights, same batch, in turn in one run.

    python benchmarks/diffusion.py [--repeats 3] [--only WORD ...] [--json]

diffusers runs as it comes: float32, AdamW with its defaults, `DDPMScheduler.add_noise`, its own loop over its own
scheduler with a doubled batch for guidance. Ours runs in the precision "auto" (bf16 where the CPU multiplies it), and
where that is not float32 once more in float32, its weights in the memory layout that the Trainer gives them. About ten
minutes on two cores that nobody else uses.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers.utils import import_utils
from harness import Row, alternate, asked_rows, report, setting
from torch import Tensor, nn

from mezzotint.core.batch import Batch
from mezzotint.core.precision import autocast, resolve_precision
from mezzotint.diffusion.model import DenoisingConfig, DenoisingModel
from mezzotint.nn.published import load_unet
from mezzotint.nn.published_dit import load_dit
from mezzotint.training.trainer import _laid_out

CPU = torch.device("cpu")
SIZE, CLASSES, BATCH, DRAWN, STEPS, W = 32, 10, 16, 4, 10, 1.0


@dataclass(frozen=True)
class Network:
    """One architecture in both libraries, with the same weights."""

    name: str
    theirs: nn.Module
    ours: DenoisingModel
    predict: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]  # (their network, x, t, labels) -> noise


def down_up(*kinds: str) -> dict[str, Any]:
    """Block types of a UNet2DModel whose way up mirrors its way down."""
    return {"down_block_types": kinds, "up_block_types": tuple(k.replace("Down", "Up") for k in reversed(kinds))}


UNETS: dict[str, dict[str, Any]] = {
    # DDPM's network for CIFAR-10 at half its width: 9 M parameters
    "DDPM UNet": {
        "block_out_channels": (64, 128, 128, 128), "attention_head_dim": None, "num_class_embeds": CLASSES + 1,
        **down_up("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    },
    "ADM UNet": {
        "block_out_channels": (64, 128, 192), "attention_head_dim": 64, "num_class_embeds": CLASSES + 1,
        "resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet",
        "attn_norm_num_groups": 32,
        **down_up("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    },
    "NCSN++": {
        "block_out_channels": (128, 128), "attention_head_dim": None, "time_embedding_type": "fourier",
        "num_class_embeds": CLASSES + 1, "layers_per_block": 1, "norm_eps": 1e-6, "mid_block_scale_factor": 2**0.5,
        **down_up("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    },
}  # fmt: skip


def networks() -> Iterator[Network]:
    import_utils._torchvision_available = False  # it would be imported for models that are not compared here
    for name, config in UNETS.items():
        theirs = diffusers.UNet2DModel(sample_size=SIZE, **config)
        yield Network(name, theirs, in_ours(theirs, load_unet), lambda net, x, t, labels: net(x, t, labels).sample)
    dit = diffusers.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=64, in_channels=3, out_channels=3, num_layers=6, sample_size=SIZE,
        patch_size=4, num_embeds_ada_norm=CLASSES,
    )  # fmt: skip
    tie_embedders(dit)
    yield Network(
        "DiT", dit, in_ours(dit, lambda place: load_dit(place, freq_shift=1.0)),
        lambda net, x, t, labels: net(x, torch.as_tensor(t).expand(len(x)), labels).sample,
    )  # fmt: skip


def tie_embedders(dit: nn.Module) -> None:
    """Its blocks each have the timestep and class embedder, which in the published weights are one."""
    first = dit.transformer_blocks[0].norm1.emb.state_dict()
    for block in dit.transformer_blocks:
        block.norm1.emb.load_state_dict(first)


def in_ours(theirs: nn.Module, load: Callable[[str], nn.Module]) -> DenoisingModel:
    """A denoising model around the same network and weights."""
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        network = load(directory)
    config = DenoisingConfig(image_size=SIZE, channels=3, classes=CLASSES, network=network.config, label_dropout=0.1)
    ours = DenoisingModel(config)
    ours.network = network
    return _laid_out(ours)


def their_step(network: Network, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """The training loop of diffusers' unconditional example, with labels."""
    model, scheduler = network.theirs, diffusers.DDPMScheduler()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        noise = torch.randn_like(images)
        t = torch.randint(0, 1000, (len(images),))
        predicted = network.predict(model, scheduler.add_noise(images, noise, t), t, labels)
        nn.functional.mse_loss(predicted, noise).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def our_step(model: DenoisingModel, images: Tensor, labels: Tensor, precision: str) -> Callable[[], None]:
    """The same with this library."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with autocast(precision, CPU):
            loss = model(Batch(images, labels)).total
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


SCHEDULERS: dict[str, tuple[str, Callable[[], Any]]] = {  # name: our grid, and theirs
    "ancestral": ("leading", lambda: diffusers.DDPMScheduler()),
    "ancestral-large": ("leading", lambda: diffusers.DDPMScheduler(variance_type="fixed_large")),
    "ddim": ("leading", lambda: diffusers.DDIMScheduler()),
    "edm": ("linspace", lambda: diffusers.HeunDiscreteScheduler()),  # both are Heun's in sigma / alpha
    "lms": ("linspace", lambda: diffusers.LMSDiscreteScheduler()),
    "dpm++2m": ("linspace", lambda: diffusers.DPMSolverMultistepScheduler()),
    "dpm++3m": ("linspace", lambda: diffusers.DPMSolverMultistepScheduler(solver_order=3)),
    "dpm++2m-sde": ("linspace", lambda: diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")),
    "unipc": ("linspace", lambda: diffusers.UniPCMultistepScheduler()),
}


@torch.no_grad()
def their_sampling(network: Network, scheduler: Any, labels: Tensor) -> Tensor:
    """With guidance, as in diffusers' pipelines: a loop over the scheduler with a doubled batch."""
    scheduler.set_timesteps(STEPS)
    x = torch.randn(len(labels), 3, SIZE, SIZE) * scheduler.init_noise_sigma
    both = torch.cat([labels, torch.full_like(labels, CLASSES)])
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t)
        conditional, unconditional = network.predict(network.theirs, torch.cat([seen, seen]), t, both).chunk(2)
        x = scheduler.step((1 + W) * conditional - W * unconditional, t, x).prev_sample
    return x


def rows(repeats: int, wanted: Callable[[str], bool]) -> Iterator[Row]:
    images, labels = torch.rand(BATCH, 3, SIZE, SIZE) * 2 - 1, torch.arange(BATCH) % CLASSES
    precisions = dict.fromkeys((resolve_precision("auto", CPU), "fp32"))

    for network in networks():
        for precision in precisions:
            name = f"{network.name}: training step, {precision} against fp32"
            if wanted(name):
                network.theirs.train()
                sides = our_step(network.ours, images, labels, precision), their_step(network, images, labels)
                yield row(name, BATCH, alternate(*sides, repeats), precision)
            solvers = SCHEDULERS if network.name == "DDPM UNet" else {"ddim": SCHEDULERS["ddim"]}
            for solver, (grid, scheduler) in solvers.items():
                name = f"{network.name}: guided {solver}, {STEPS} steps, {precision} against fp32"
                if not wanted(name):
                    continue
                network.theirs.eval()

                def sample(ours=network.ours, precision=precision, solver=solver, grid=grid) -> None:
                    with autocast(precision, CPU):
                        ours.sample(DRAWN, labels=labels[:DRAWN], solver=solver, grid=grid, steps=STEPS, guidance=W)

                def theirs(network=network, scheduler=scheduler) -> None:
                    their_sampling(network, scheduler(), labels[:DRAWN])

                yield row(name, DRAWN, alternate(sample, theirs, repeats), precision)


def row(name: str, pictures: int, seconds: tuple[float, float], precision: str) -> Row:
    """Pictures per second of both sides."""
    ours, peer = (pictures / s for s in seconds)
    return Row(name, ours, peer, "pictures/s", setting("diffusers", precision=f"ours {precision}, peer fp32"))


if __name__ == "__main__":
    options, asked = asked_rows(__doc__.splitlines()[0], repeats=3)
    report(list(rows(options.repeats, asked)), options.json)
