"""Very deep VAEs: exact bounds of a tiny one, the published sizes, streams that do not grow with depth."""

from __future__ import annotations

import pytest
import torch
from vae.quadrature import Nodes, binary_pictures

import mezzotint as mz
from mezzotint.core.batch import Batch, PictureRandom
from mezzotint.core.errors import ConfigError, TrainingError
from mezzotint.systems import find
from mezzotint.training.guard import GradientGuard
from mezzotint.vae.gaussian import Gaussian
from mezzotint.vae.groups import enlarged, halved
from mezzotint.vae.likelihoods import BernoulliConfig
from mezzotint.vae.model import Draws
from mezzotint.vae.vdvae import CIFAR10, IMAGENET32, IMAGENET64, VDVAE, VDVAEConfig, fitted, parse_blocks


def model(size: int, encoder: str, decoder: str, noise: float = 0.0, **options) -> VDVAE:
    """A small one of binary pictures, its weights moved off their zeros."""
    options = {"width": 8, "bottleneck": 0.5, "latent": 1, "likelihood": BernoulliConfig(), **options}
    made = VDVAE(VDVAEConfig(size, 1, encoder, decoder, **options))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return made


def tiny() -> VDVAE:
    """Of 2 x 2 pictures: one number that is drawn at 1 x 1, and four at 2 x 2 given it."""
    return model(2, "2x1,2d2,1x1", "1x1,2m1", 0.15, width=4).double()


def test_the_probabilities_of_all_pictures_sum_to_one_and_the_bound_lies_below(truth):
    made, pictures = tiny(), binary_pictures(2)
    nodes = Nodes(5, 5, len(pictures))
    rows = pictures.repeat_interleave(len(nodes), 0)
    with torch.no_grad():
        numbers = made.generate(len(nodes), Nodes(5, 5))
        log_probs = torch.stack([made.likelihood.log_prob(numbers, x[None]) for x in pictures])  # (16, nodes)
        seen = tuple(part.repeat_interleave(len(nodes), 0) for part in made.recognise(Batch(pictures)))
        inferred = made.infer(Batch(rows), seen, nodes)
    p = log_probs.exp() @ nodes.weights
    weighted = nodes.mean(inferred.log_weight.exp())  # E_q[p(x, z) / q(z | x)] = p(x)
    truth("vdvae", "sum over 2x2 pictures of E_q[p(x, z) / q(z | x)]", "1", abs(weighted.sum() - 1), 3e-4)
    truth("vdvae", "E_q[p(x, z) / q(z | x)]", "quadrature over the prior", (weighted / p - 1).abs().max(), 5e-3)
    bound, sampled = nodes.mean(inferred.elbo), nodes.mean(inferred.log_weight)
    truth("vdvae", "KL of groups in closed form", "E_q[ln q - ln p]", (bound - sampled).abs().max(), 1e-13)
    assert (bound < p.log() - 0.1).all()
    many = made.float().elbo(pictures[:4].float(), samples=2500)
    truth("vdvae", "ln p(x) by 2,500 weighted samples", "quadrature", (many - p[:4].log()).abs().max(), 0.13)


def test_with_the_prior_as_posterior_inference_is_generation():
    made = model(4, "4x2,4d2,2x1,2d2,1x1", "1x2,2m1,4m2,4x1", 0.3, latent=2)
    for block in made.decoder:
        for layer, (to, of) in enumerate(zip(block.posterior_net.convs, block.prior_net.convs)):
            with torch.no_grad():
                rows = slice(0, 4) if layer == 3 else slice(None)
                to.weight.zero_()[:, : of.weight.shape[1]] = of.weight[rows]
                to.bias.copy_(of.bias[rows])
    images = binary_pictures(2).float()[:5].repeat(1, 1, 2, 2)

    def draws() -> Draws:
        return Draws(PictureRandom(range(5)))

    with torch.no_grad():
        inferred = made.infer(Batch(images), made.recognise(Batch(images)), draws())
        numbers = made.generate(5, draws())
        again = made.likelihood.log_prob(numbers, images)
    assert torch.allclose(inferred.log_likelihood, again, atol=1e-4)
    assert inferred.kl.abs().max() < 1e-5
    assert inferred.log_ratio.abs().max() < 1e-4


@pytest.mark.parametrize(
    ("ladder", "size", "width", "published"),
    [(CIFAR10, 32, 384, 39e6), (IMAGENET32, 32, 512, 119e6), (IMAGENET64, 64, 512, 125e6)],
    ids=["cifar10", "imagenet32", "imagenet64"],
)
def test_the_published_ladders_have_the_published_sizes(truth, ladder, size, width, published):
    with torch.device("meta"):
        made = VDVAE(VDVAEConfig(size, 3, *ladder, width=width))
    count = sum(p.numel() for p in made.parameters())
    truth("vdvae", f"parameters at {size} pixels", f"{published / 1e6:.0f} M", abs(count - published), 0.5e6)


def stream(blocks: int) -> float:
    """Variance of what a decoder of so many blocks ends with, at its first weights."""
    made = model(8, f"8x{blocks}", f"8x{blocks}", width=32, latent=4)
    ends: list[torch.Tensor] = []
    made.decoder[-1].register_forward_hook(lambda block, given, answer: ends.append(answer))
    with torch.no_grad():
        made.generate(16, Draws(PictureRandom(range(16))))
    return ends[0].var().item()


def test_the_stream_of_sixty_blocks_is_no_larger_than_that_of_four(truth):
    four, sixty = stream(4), stream(60)
    truth("vdvae", "variance of the stream after 60 blocks", "after 4", abs(sixty / four - 1), 0.15)


def test_what_the_encoder_knows_grows_no_more_with_depth(truth):
    """With branches whose own gain is near one, so that without scaling the variance would grow exponentially."""
    seen = []
    for blocks in (4, 60):
        made = model(8, f"8x{blocks}", "8x1", width=32)
        with torch.no_grad():
            for block in made.encoder:
                for layer in block.convs:
                    layer.weight.mul_(6**0.5)  # from a variance of 1 / (3 inputs) to that of He et al. 2015
            x = torch.randn(16, 1, 8, 8)
            seen.append(made.recognise(Batch(x))[0].var() / made.stem(x).var())
    truth("vdvae", "growth of the encoder's variance in 60 blocks", "in 4", abs(seen[1] / seen[0] - 1), 0.12)


def test_sixty_blocks_begin_with_a_finite_loss_and_gradients_everywhere():
    made = model(4, "4x20,4d2,2x20", "2x30,4m2,4x29", 0.02)
    total = made(Batch(torch.randn(2, 1, 4, 4).sign(), seeds=[0, 1])).total
    total.backward()
    assert total < 2 * 16
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in made.parameters())


def test_of_fewer_layers_only_those_are_drawn():
    made = model(4, "4x1,4d2,2x1,2d2,1x1", "1x1,2m1,4m2,4x1", 0.3)
    none, all_of_them = made.sample(3, layers=0), made.sample(3)
    assert torch.equal(none[0], none[2])  # nothing is left to chance
    assert torch.allclose(none, made.sample(3, temperature=0.0), atol=1e-6)
    assert torch.equal(made.sample(3, layers=4), all_of_them)
    noise = made._split(PictureRandom(range(3)).normal(1 + 4 + 16 + 16))

    def two(group: int, prior: Gaussian, posterior: Gaussian | None) -> torch.Tensor:
        return prior.mean + prior.log_std.exp() * noise[group] if group < 2 else prior.mean

    with torch.no_grad():
        expected = made.likelihood.mean(made.descend(3, None, two))
    assert torch.allclose(made.sample(3, layers=2), expected, atol=1e-6)
    assert not torch.allclose(expected, all_of_them, atol=1e-3)
    for wrong in (-1, 5):
        with pytest.raises(ConfigError, match="4 groups"):
            made.sample(1, layers=wrong)


def test_codes_are_what_the_posterior_expects():
    made = model(4, "4x1,4d2,2x1,2d2,1x1", "1x1,2m1,4m2,4x1", 0.3, latent=2)
    images = torch.randn(3, 1, 4, 4).sign()
    codes = made.encode(images)
    assert codes.shape == (3, 2 * (1 + 4 + 16 + 16))

    class Still:
        def normal(self, *shape: int) -> torch.Tensor:
            return torch.zeros(3, *shape)

    with torch.no_grad():
        inferred = made.infer(Batch(images), made.recognise(Batch(images)), Still())
        latents = made.latents(images)
    assert latents.kl.shape == (3, 8)
    assert torch.allclose(latents.means, codes)
    places = [1, 1, 4, 4, 16, 16, 16, 16]  # of each channel, from the top
    assert latents.dimension.bincount().tolist() == places
    assert latents.dimension.diff().min() == 0
    assert torch.equal(made.reconstruct(images), made.decode(codes))
    with pytest.raises(ConfigError, match=r"\(B, 74\), not \(3, 73\)"):
        made.decode(codes[:, 1:])
    p = (1 + images * made.reconstruct(images)) / 2  # of each pixel
    assert torch.allclose(p.log().sum((1, 2, 3)), inferred.log_likelihood, rtol=1e-4)


def test_what_is_diagnosed_is_the_divergence_of_the_bound():
    """Of groups that are drawn, not at their means; a picture's depends on its seed, not on its batch."""
    made = model(4, "4x1,4d2,2x1,2d2,1x1", "1x1,2m1,4m2,4x1", 0.3, latent=2)
    images = torch.randn(3, 1, 4, 4).sign()
    with torch.no_grad():
        inferred = made.infer(Batch(images), made.recognise(Batch(images)), Draws(PictureRandom(range(5, 8))))
    found = made.latents(images, seeds=5)
    assert torch.allclose(found.kl.unflatten(1, (4, 2)).sum(2), inferred.kl, rtol=1e-4)
    assert torch.allclose(made.latents(images[2:], seeds=7).kl, found.kl[2:], rtol=1e-4)
    assert not torch.allclose(made.latents(images).kl, found.kl, rtol=1e-2)


def test_large_maps_may_begin_without_learned_biases():
    made = model(4, "4x1,4d2,2x1,2d2,1x1", "1x1,2m1,4m2,4x1", 0.3, biases_up_to=2)
    assert sorted(made.biases) == ["1", "2"]
    made(Batch(torch.randn(2, 1, 4, 4).sign(), seeds=[0, 1])).total.backward()
    assert all(p.grad.any() for p in made.parameters())


def test_sizes_that_are_odd_are_pooled_and_come_back():
    assert [halved(size) for size in (28, 7, 4)] == [14, 4, 2]
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(enlarged(x, 7)[0, 0, ::2, ::2], x[0, 0])
    assert torch.equal(torch.nn.functional.avg_pool2d(enlarged(x, 7), 2, ceil_mode=True), x)
    made = model(28, *(fitted(line, 32, 28) for line in ("32d2,16d2,8d2,4d4,1x1", "1x1,4m1,8m4,16m8,32m16")))
    assert [shape[1] for shape in made.shapes] == [1, 4, 7, 14, 28]
    assert made.sample(1).shape == (1, 1, 28, 28)


def test_ladders_are_read_as_they_are_written():
    assert parse_blocks("1x2, 4m1", "m") == [(1, None), (1, None), (4, 1)]
    assert fitted(CIFAR10[0], 32, 32) == CIFAR10[0]
    assert fitted(CIFAR10[1], 32, 64) == "1x1,8m1,8x2,16m8,16x5,32m16,32x10,64m32,64x21"
    assert fitted(CIFAR10[0], 32, 28) == "28x11,28d2,14x6,14d2,7x6,7d2,4x3,4d4,1x3"


@pytest.mark.parametrize(
    ("encoder", "decoder", "cause"),
    [
        ("4y1", "4x1", "written as"),
        ("4x1", "4m", "written as"),
        ("8x1", "4x1", "is at size 8, but 4 is next"),
        ("4d1", "4x1", "smaller"),
        ("4x1", "2x1,4m2", "nothing to say"),
        ("4d2", "4x1", "has no block"),
        ("4d2", "2x1,4x1", "but 2 is before"),
        ("4x1", "4m2", "begins with nothing"),
        ("4d2", "2x1", "ends at size 2"),
    ],
)
def test_ladders_whose_rungs_do_not_meet_are_refused(encoder, decoder, cause):
    with pytest.raises(ConfigError, match=cause):
        VDVAEConfig(4, 1, encoder, decoder)


def test_other_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="leaves no channel"):
        VDVAEConfig(4, 1, "4x1", "4x1", width=3)
    with pytest.raises(ConfigError, match="widths are written"):
        VDVAEConfig(4, 1, "4x1", "4x1", widths="4=3")
    with pytest.raises(ConfigError, match="cannot be halved as often"):
        fitted(CIFAR10[0], 32, 5)


def test_widths_may_differ_between_sizes():
    made = model(4, "4x1,4d2,2x1,2d2,1x1", "1x1,2m1,4m2", 0.3, widths="4:4,1:16")
    assert [part.shape[1] for part in made.recognise(Batch(torch.zeros(1, 1, 4, 4)))] == [16, 8, 4]
    assert made.sample(2).shape == (2, 1, 4, 4)


def test_where_widths_differ_the_first_channels_go_on_and_further_ones_begin_at_zero():
    """Of blocks that add nothing: the way up is a pyramid of means, the way down a sum of the learned biases."""
    made = model(4, "4d2,2d2,1x1", "1x1,2m1,4m2", widths="4:12,2:6,1:8")
    with torch.no_grad():
        for parameter in (*made.encoder.parameters(), *made.decoder.parameters()):
            parameter.zero_()
        for parameter in made.biases.values():
            parameter.normal_()
        images, heads = torch.randn(3, 1, 4, 4), []
        seen = made.recognise(Batch(images))
        made.head.register_forward_pre_hook(lambda head, given: heads.append(given[0]))
        made.generate(1, Draws(PictureRandom([0])))
        at_4 = made.stem(images)
        at_2 = at_4[:, :6].unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))
        at_1 = torch.cat([at_2.mean((2, 3), keepdim=True), torch.zeros(3, 2, 1, 1)], 1)
        for found, expected in zip(seen, (at_1, at_2, at_4), strict=True):
            torch.testing.assert_close(found, expected)
        down = made.biases["2"] + made.biases["1"][:, :6]
        below = made.biases["4"].clone()
        below[:, :6] += down[:, :, [0, 0, 1, 1]][..., [0, 0, 1, 1]]
    torch.testing.assert_close(heads[0], below)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_inside_a_block_there_is_a_share_of_its_width(share):
    made = model(4, "4x1,4d2,2x1", "2x1,4m2", width=8, widths="2:16", bottleneck=share)
    ways = [[block] for block in made.encoder]
    ways += [[block.prior_net, block.posterior_net, block.residual] for block in made.decoder]
    for (size, _), blocks in zip([*made.up, *made.down], ways, strict=True):
        inner = share * {4: 8, 2: 16}[size]
        for block in blocks:
            assert [layer.out_channels for layer in block.convs[:3]] == [inner] * 3
            assert [layer.in_channels for layer in block.convs[1:]] == [inner] * 3


@pytest.mark.parametrize("size", find("vdvae").stages[0].recipes)
def test_gradients_above_any_fixed_threshold_do_not_freeze_a_run(size):
    """The paper skips norms above 400 or so: where all are, nothing would be learned any more, and nothing said."""
    recipe = find("vdvae").stages[0].recipes[size]
    guard = GradientGuard("model", "model", recipe.skip_factor, recipe.max_skips)
    assert all(guard.accepts(1000.0 * 1.003**step) for step in range(2000))
    assert guard.accepts(0.3 * 1000.0 * 1.003**2000)
    refused = [guard.accepts(1e9) for _ in range(recipe.max_skips - 1)]
    assert not any(refused)
    with pytest.raises(TrainingError):  # a jump that stays is not passed over in silence either
        guard.accepts(1e9)


def test_small_draws_different_pictures():
    made = mz.create("vdvae")
    images = made.sample(2)
    assert images.shape == (2, 1, 28, 28)
    assert (images[0] - images[1]).abs().max() > 0.02
