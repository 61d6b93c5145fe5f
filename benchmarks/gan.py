"""Training steps of WGAN-GP and StyleGAN 2, synthesis, and modulated convolutions, beside others.

    python benchmarks/gan.py [--repeats 5] [--only WORD ...] [--json]

Both sides have the same layers, pictures and batches, float32, and take their steps in turn in one run.

    a plain script   the layers as the papers write them, in torch's operators, one after the other: weights of each
                     picture's own in one grouped convolution, filters over maps that were spread by zeros. It has our
                     parameters, and must give our pictures and scores, or nothing is timed
    stylegan2-torch  a package of the same networks. Its two operators are CUDA sources, which it compiles when it is
                     imported; those of the plain script stand in for them

Peers train as such scripts do: torch's Adam with its defaults, and a penalty is a step of its own, after the other. Our
steps draw the random numbers of each picture from a seed of its own, so that a run can be split over processes, and
move the mean of w, which peers do not. No side has a moving average of weights. About four minutes on a core
that nobody else uses.
"""

from __future__ import annotations

import copy
import math
import random
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from harness import Row, alternate, asked_rows, report, setting
from torch import Tensor, nn
from torch.nn import functional as F

from mezzotint.core.batch import Batch
from mezzotint.gan.model import GAN, GANConfig
from mezzotint.gan.networks import DCGANConfig
from mezzotint.gan.penalties import GradientPenalty, ZeroCentred
from mezzotint.gan.stylegan2 import (
    ModulatedConv2d,
    StyleGAN2,
    StyleGAN2Config,
    StyleGAN2Networks,
    modulated,
    modulated_grouped,
)
from mezzotint.nn.resampling import SMOOTH, normalised

SIZE = 32
WGAN_BATCH, CODE, WIDTH = 64, 128, 64  # of the Wasserstein GAN: WIDTH, twice and four times as many channels
BATCH, STYLE, MIXING = 8, 128, 0.9  # of StyleGAN 2
NETWORK = StyleGAN2Networks(channel_base=4096, channel_max=128, width=STYLE, mapping_layers=4)
# steps of ours at which nothing is added, at which R1 is, and at which the lengths of paths are
R1_EVERY, PATH_EVERY = 3, 2
KINDS = {"": 1, " with R1": R1_EVERY, " with path lengths": PATH_EVERY}
CONVOLUTIONS = (  # channels in and out, kernel, size of the map, whether it is doubled
    (128, 128, 3, 8, False),
    (128, 128, 3, 16, True),
    (64, 64, 3, 32, False),
    (64, 64, 3, 64, False),
    (24, 24, 3, 64, False),
    (128, 1, 1, 32, False),
)

Step = Callable[[], None]
Wanted = Callable[[str], bool]


def only(moving: nn.Module, still: nn.Module) -> None:
    """Gradients of one player alone, as the trainer and every script have it."""
    moving.requires_grad_(True)
    still.requires_grad_(False)


def adam(player: nn.Module, lr: float, betas: tuple[float, float], **options: bool) -> torch.optim.Optimizer:
    return torch.optim.Adam(player.parameters(), lr, betas, **options)


def our_turn(model: GAN, player: str, optimizer: torch.optim.Optimizer, images: Tensor) -> None:
    """What the trainer does in the turn of a player."""
    players = model.players()
    only(players[player], players["generator" if player == "discriminator" else "discriminator"])
    batch = Batch(images, seeds=torch.randint(2**31, (len(images),)).tolist())
    model(batch, player).total.backward()
    optimizer.step()
    optimizer.zero_grad()


# The Wasserstein GAN ------------------------------------------------------------------------------------------------


def plain_wgan() -> tuple[nn.Module, nn.Module]:
    """DCGAN's generator, and its discriminator without normalisation, as Gulrajani et al. 2017 have it."""
    c = WIDTH
    generator = nn.Sequential(
        nn.Unflatten(1, (CODE, 1, 1)),
        nn.ConvTranspose2d(CODE, 4 * c, 4, bias=False), nn.BatchNorm2d(4 * c), nn.ReLU(),
        nn.ConvTranspose2d(4 * c, 2 * c, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * c), nn.ReLU(),
        nn.ConvTranspose2d(2 * c, c, 4, 2, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU(),
        nn.ConvTranspose2d(c, 3, 4, 2, 1, bias=False), nn.Tanh(),
    )  # fmt: skip
    critic = nn.Sequential(
        nn.Conv2d(3, c, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(c, 2 * c, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(2 * c, 4 * c, 4, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(4 * c * 4 * 4, 1, bias=False),
    )  # fmt: skip
    return generator, critic


def same_weights(theirs: nn.Module, ours: nn.Module) -> None:
    """Parameters and buffers in the order in which both have them; shapes must agree."""
    found, given = theirs.state_dict(), ours.state_dict()
    if [value.shape for value in found.values()] != [value.shape for value in given.values()]:
        raise SystemExit("the two networks differ in their parameters")
    theirs.load_state_dict(dict(zip(found, given.values())))


def agree(what: str, ours: Tensor, theirs: Tensor) -> None:
    """Both sides compute the same, but for rounding."""
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    if not error < 1e-4:
        raise SystemExit(f"{what} differ by {error:.2g}")


def wgans(repeats: int, wanted: Wanted) -> Iterator[Row]:
    names = [f"WGAN-GP, DCGAN of {WIDTH} channels, {SIZE} px: {part} step" for part in ("critic", "generator")]
    if not any(map(wanted, names)):
        return
    network = DCGANConfig(channels=WIDTH, levels=3, norm="batch", critic_norm="none")
    ours = GAN(
        GANConfig(SIZE, 3, latent=CODE, network=network, loss="wasserstein", penalty=GradientPenalty(), critic_steps=5)
    ).train()
    generator, critic = plain_wgan()
    same_weights(generator, ours.generator)
    same_weights(critic, ours.discriminator)
    images, z = torch.rand(WGAN_BATCH, 3, SIZE, SIZE) * 2 - 1, torch.randn(WGAN_BATCH, CODE)
    with torch.no_grad():
        agree("pictures", ours.generator(z), generator(z))
        agree("scores", ours.discriminator(images).score, critic(images)[:, 0])
    settings = 1e-4, (0.0, 0.9)
    mine = {name: adam(player, *settings, fused=True) for name, player in ours.players().items()}
    of_generator, of_critic = adam(generator, *settings), adam(critic, *settings)

    def critic_step() -> None:
        only(critic, generator)
        with torch.no_grad():
            fake = generator(torch.randn(WGAN_BATCH, CODE))
        e = torch.rand(WGAN_BATCH, 1, 1, 1)
        between = (e * images + (1 - e) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        penalty = 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()
        of_critic.zero_grad()
        (critic(fake).mean() - critic(images).mean() + penalty).backward()
        of_critic.step()

    def generator_step() -> None:
        only(generator, critic)
        of_generator.zero_grad()
        (-critic(generator(torch.randn(WGAN_BATCH, CODE))).mean()).backward()
        of_generator.step()

    for name, player, theirs in zip(names, ("discriminator", "generator"), (critic_step, generator_step)):
        if wanted(name):

            def step(player: str = player) -> None:
                our_turn(ours, player, mine[player], images)

            yield timed(name, "plain", step, theirs, WGAN_BATCH, repeats)


# StyleGAN 2 ---------------------------------------------------------------------------------------------------------


def upfirdn2d(x: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """Spread by zeros, padded, convolved with a kernel of the plane, thinned out."""
    B, C, H, W = x.shape
    if up > 1:
        x = F.pad(x.view(B, C, H, 1, W, 1), (0, up - 1, 0, 0, 0, up - 1)).view(B, C, H * up, W * up)
    x = F.pad(x, (*pad, *pad))
    y = F.conv2d(x.reshape(B * C, 1, *x.shape[2:]), kernel.flip(0, 1)[None, None])
    return y.view(B, C, *y.shape[2:])[..., ::down, ::down]


def leaky(x: Tensor, bias: Tensor) -> Tensor:
    """sqrt(2) leaky ReLU(x + bias)."""
    return 2**0.5 * F.leaky_relu(x + bias.view(1, -1, *[1] * (x.dim() - 2)), 0.2)


class PlainGenerator(nn.Module):
    """StyleGAN 2's generator, step by step as the paper has it, on the parameters of a copy of ours."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.parts: Any = copy.deepcopy(ours)
        taps = normalised(SMOOTH)
        self.register_buffer("kernel", 4 * torch.outer(taps, taps))

    def convolve(self, layer: ModulatedConv2d, x: Tensor, w: Tensor) -> Tensor:
        """One convolution in as many groups as there are pictures."""
        affine, k = layer.affine, layer.weight.shape[-1]
        s = F.linear(w, affine.weight * affine.scale, affine.bias)
        weight = layer.weight * layer.scale * s[:, None, :, None, None]  # (B, C_out, C_in, k, k)
        if layer.demodulate:
            weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        B, C_out = weight.shape[:2]
        x = x.reshape(1, -1, *x.shape[2:])
        if layer.taps is None:
            y = F.conv2d(x, weight.flatten(0, 1), padding=k // 2, groups=B)
        else:
            y = F.conv_transpose2d(x, weight.transpose(1, 2).flatten(0, 1).flip(2, 3), stride=2, groups=B)
            y = upfirdn2d(y, self.kernel, pad=(1, 1))
        return y.view(B, C_out, *y.shape[2:])

    def forward(self, codes: list[Tensor], noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pictures, and w, (B, styles, width), of one code or of two, of which the second makes the finer layers."""
        synthesis, mapping = self.parts.synthesis, self.parts.mapping
        ws = []
        for z in codes:
            x = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
            for layer in mapping.layers:
                x = leaky(F.linear(x, layer.weight * layer.scale), layer.bias * layer.lr_multiplier)
            ws.append(x[:, None])
        cut = random.randint(1, synthesis.styles - 1) if len(ws) == 2 else synthesis.styles
        w = torch.cat([ws[0].expand(-1, cut, -1), ws[-1].expand(-1, synthesis.styles - cut, -1)], 1)
        maps = [None] * len(synthesis.layers)
        if noise is not None:
            parts = noise.split([n**2 for n in synthesis.noise_sizes], 1)
            maps = [part.view(-1, 1, n, n) for part, n in zip(parts, synthesis.noise_sizes)]
        x, image = synthesis.constant.repeat(len(w), 1, 1, 1), None
        for l, layer in enumerate(synthesis.layers):  # noqa: E741
            x = self.convolve(layer.conv, x, w[:, l])
            added = torch.randn(len(x), 1, *x.shape[2:]) if maps[l] is None else maps[l]
            x = leaky(x + layer.strength * added, layer.conv.bias)
            if l % 2 == 0:
                to_picture = synthesis.to_picture[l // 2]
                part = self.convolve(to_picture, x, w[:, l + 1]) + to_picture.bias[:, None, None]
                image = part if image is None else part + upfirdn2d(image, self.kernel, up=2, pad=(2, 1))
        return image, w


class PlainDiscriminator(nn.Module):
    """StyleGAN 2's discriminator, likewise."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.parts: Any = copy.deepcopy(ours)
        taps = normalised(SMOOTH)
        self.register_buffer("kernel", torch.outer(taps, taps))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1)."""
        parts = self.parts

        def convolve(layer: Any, x: Tensor, **options: int) -> Tensor:
            return F.conv2d(x, layer.weight * layer.scale, **options)

        def neurons(layer: Any, x: Tensor) -> Tensor:
            return F.linear(x, layer.weight * layer.scale)

        x = leaky(convolve(parts.from_picture, x), parts.from_picture.bias)
        for block in parts.blocks:
            h = leaky(convolve(block.first, x, padding=1), block.first.bias)
            h = leaky(convolve(block.second, upfirdn2d(h, self.kernel, pad=(2, 2)), stride=2), block.second.bias)
            skip = convolve(block.skip, upfirdn2d(x, self.kernel, pad=(1, 1)), stride=2)
            x = (h + skip) / math.sqrt(2)
        B, _, H, W = x.shape
        group = min(B, 4)
        deviation = (x.view(group, B // group, -1, H, W).var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
        x = torch.cat([x, deviation.repeat(group).view(B, 1, 1, 1).expand(B, 1, H, W)], 1)
        x = leaky(convolve(parts.conv, x, padding=1), parts.conv.bias)
        x = leaky(neurons(parts.neurons, x.flatten(1)), parts.neurons.bias)
        return neurons(parts.score, x) + parts.score.bias


class FusedLeakyReLU(nn.Module):
    """What stylegan2-torch wants of its CUDA operator."""

    def __init__(self, channel: int, bias: bool = True) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channel))

    def forward(self, x: Tensor) -> Tensor:
        return leaky(x, self.bias)


def package() -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator of stylegan2-torch, with the plain operators in place of its CUDA sources."""
    filters, activation = types.ModuleType("upfirdn2d"), types.ModuleType("fused_act")
    filters.upfirdn2d = upfirdn2d  # type: ignore[attr-defined]
    activation.fused_leaky_relu, activation.FusedLeakyReLU = leaky, FusedLeakyReLU  # type: ignore[attr-defined]
    sys.modules["stylegan2_torch.op.upfirdn2d"], sys.modules["stylegan2_torch.op.fused_act"] = filters, activation
    from stylegan2_torch import Discriminator, Generator

    channels = {size: NETWORK.channels(size) for size in NETWORK.sizes(SIZE)}
    return Generator(SIZE, latent_dim=STYLE, n_mlp=4, channels=channels), Discriminator(SIZE, channels=channels)


class Package(nn.Module):
    """Its generator, called as the plain one is."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, codes: list[Tensor]) -> tuple[Tensor, Tensor]:
        images, w = self.generator(codes, return_latents=True)
        return images, w


def codes(n: int) -> list[Tensor]:
    """One code of each picture, or two that are mixed."""
    return list(torch.randn(2 if random.random() < MIXING else 1, n, STYLE))


def peer_steps(generator: nn.Module, discriminator: nn.Module, images: Tensor) -> dict[str, Step]:
    """A training step of a script, by kind."""
    lr, betas = 2e-3, (0.0, 0.99)
    of_g, of_d = adam(generator, lr, betas), adam(discriminator, lr, betas)
    average = torch.ones(())

    def move(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def step(r1: bool, path: bool) -> None:
        nonlocal average
        only(discriminator, generator)
        fake, _ = generator(codes(BATCH))
        move(of_d, F.softplus(-discriminator(images)).mean() + F.softplus(discriminator(fake)).mean())
        if r1:
            real = images.clone().requires_grad_()
            (slope,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
            move(of_d, 5 * R1_EVERY * slope.square().sum((1, 2, 3)).mean())
        only(generator, discriminator)
        fake, _ = generator(codes(BATCH))
        move(of_g, F.softplus(-discriminator(fake)).mean())
        if path:
            fake, w = generator(codes(BATCH // 2))
            (slope,) = torch.autograd.grad((fake * torch.randn_like(fake) / SIZE).sum(), w, create_graph=True)
            lengths = slope.square().sum(2).mean(1).sqrt()
            average = average + 0.01 * (lengths.mean().detach() - average)
            move(of_g, 2 * PATH_EVERY * (lengths - average).square().mean())

    return {kind: lambda kind=kind: step(kind == " with R1", kind == " with path lengths") for kind in KINDS}


def our_steps(model: StyleGAN2, images: Tensor) -> dict[str, Step]:
    """The same of ours."""
    optimizers = {name: adam(player, 2e-3, (0.0, 0.99), fused=True) for name, player in model.players().items()}

    def step(moves: int) -> None:
        model.moves.fill_(moves)
        for player in ("discriminator", "generator"):
            our_turn(model, player, optimizers[player], images)
        model.after_step(moves)

    return {kind: lambda moves=moves: step(moves) for kind, moves in KINDS.items()}


def stylegans(repeats: int, wanted: Wanted) -> Iterator[Row]:
    training = {kind: f"StyleGAN 2, {SIZE} px: training step{kind}" for kind in KINDS}
    synthesis = f"StyleGAN 2, {SIZE} px: synthesis"
    if not any(map(wanted, (synthesis, *training.values()))):
        return
    config = StyleGAN2Config(
        SIZE, 1, latent=STYLE, network=NETWORK, penalty=ZeroCentred(gamma=10.0, every=R1_EVERY), mixing=MIXING,
        path_every=PATH_EVERY,
    )  # fmt: skip
    ours = StyleGAN2(config).train()
    plain = PlainGenerator(ours.generator), PlainDiscriminator(ours.discriminator)
    theirs = package()
    images, z = torch.rand(BATCH, 1, SIZE, SIZE) * 2 - 1, torch.randn(BATCH, STYLE)
    noise = torch.randn(BATCH, ours.generator.synthesis.noises)
    with torch.no_grad():
        agree("pictures", ours.synthesise(ours.map(z), noise), plain[0]([z], noise)[0])
        agree("scores", ours.discriminator(images).score, plain[1](images)[:, 0])
    peers = {"plain": plain, "stylegan2-torch": (Package(theirs[0]), theirs[1])}
    mine = our_steps(ours, images)
    for peer, (generator, discriminator) in peers.items():
        if wanted(synthesis):

            def draw(generator: nn.Module = generator) -> None:
                with torch.no_grad():
                    generator([torch.randn(BATCH, STYLE)])

            yield timed(synthesis, peer, lambda: ours.sample(BATCH), draw, BATCH, repeats, rounds=4)
        steps = peer_steps(generator, discriminator, images)
        for kind, name in training.items():
            if wanted(name):
                yield timed(name, peer, mine[kind], steps[kind], BATCH, repeats)


# Modulated convolution ----------------------------------------------------------------------------------------------


def convolutions(repeats: int, wanted: Wanted) -> Iterator[Row]:
    """Scaling what goes in and comes out (ours) beside one grouped convolution (the peer's, and ours too if it is set).

    With a gradient, and with what path lengths and their penalty take: the gradient of the squared gradient by s.
    """
    for before, after, kernel, size, doubled in CONVOLUTIONS:
        name = f"modulated convolution {kernel}x{kernel}, {before} to {after} channels, {size} px"
        name += " doubled" if doubled else ""
        if not (wanted(f"{name}: gradient") or wanted(f"{name}: gradient twice")):
            continue
        x, s = torch.randn(BATCH, before, size, size), torch.rand(BATCH, before) + 0.5
        weight, taps = torch.randn(after, before, kernel, kernel), normalised(SMOOTH) if doubled else None
        demodulate = kernel > 1  # as the layers that make a picture have it
        for each in (x, s, weight):
            each.requires_grad_()

        def once(function: Callable[..., Tensor], x=x, s=s, weight=weight, taps=taps, demodulate=demodulate):
            return torch.autograd.grad(function(x, weight, s, demodulate, taps).square().sum(), (x, weight, s))

        def twice(function: Callable[..., Tensor], x=x, s=s, weight=weight, taps=taps, demodulate=demodulate):
            y = function(x, weight, s, demodulate, taps)
            (slope,) = torch.autograd.grad(y.square().sum(), s, create_graph=True)
            return torch.autograd.grad(slope.square().sum(), (x, weight, s))

        for kind, gradient in (("gradient", once), ("gradient twice", twice)):
            for a, b in zip(gradient(modulated), gradient(modulated_grouped)):
                agree("gradients", a, b)
            sides = [lambda gradient=gradient, f=f: gradient(f) and None for f in (modulated, modulated_grouped)]
            if wanted(f"{name}: {kind}"):
                yield timed(f"{name}: {kind}", "grouped", *sides, BATCH, repeats, rounds=4)


def timed(name: str, peer: str, ours: Step, theirs: Step, pictures: int, repeats: int, rounds: int = 1) -> Row:
    """Pictures per second, of so many rounds between two looks at the clock."""

    def many(step: Step) -> Step:
        return lambda: [step() for _ in range(rounds)] and None

    ours(), theirs()  # the first allocates
    mine, others = (pictures * rounds / s for s in alternate(many(ours), many(theirs), repeats))
    packages = (peer,) if peer == "stylegan2-torch" else ()
    return Row(f"{name}, against {peer}", mine, others, "pictures/s", setting(*packages))


if __name__ == "__main__":
    options, asked = asked_rows(__doc__.splitlines()[0])
    torch.manual_seed(0)
    random.seed(0)
    parts = (wgans, stylegans, convolutions)
    report([row for part in parts for row in part(options.repeats, asked)], options.json)
