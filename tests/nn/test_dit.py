"""The diffusion transformer against its formulas, its published sizes, and diffusers' implementation of it."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from mezzotint.core.errors import CheckpointError, ConfigError
from mezzotint.core.precision import autocast
from mezzotint.nn.dit import DiTBlock, DiTConfig, dit_config, grid_waves
from mezzotint.nn.published_dit import dit_from_config, load_dit

TINY = DiTConfig(depth=2, width=16, heads=2, patch=2)

# Peebles and Xie 2022, table 4: millions of parameters; the paper counts neither positions, which are no parameters,
# nor the autoencoder
PUBLISHED = {
    "S/8": 33, "S/4": 33, "S/2": 33, "B/8": 131, "B/4": 130, "B/2": 130,
    "L/8": 459, "L/4": 458, "L/2": 458, "XL/8": 676, "XL/4": 675, "XL/2": 675,
}  # fmt: skip


def randomised(network, std=0.3):
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return network


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_their_number_of_parameters(truth, name):
    """Latents of 32 x 32 x 4, learned variances, 1000 classes and the null class."""
    with torch.device("meta"):
        network = dit_config(name).build(4, 8, 1001, 32)
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    truth(f"DiT-{name}", "parameters, millions", "Peebles and Xie 2022, table 4", abs(millions - PUBLISHED[name]), 0.5)


def test_a_new_network_answers_zero_and_its_blocks_do_nothing():
    network = TINY.build(3, 3, 5, 8)
    x, t, labels = torch.randn(2, 3, 8, 8), torch.tensor([10.0, 700.0]), torch.tensor([0, 4])
    assert not network(x, t, labels).any()
    torch.nn.init.normal_(network.last.weight)
    before = network(x, t, labels)
    for parameter in network.blocks.parameters():
        torch.nn.init.normal_(parameter)
    assert torch.equal(network(x, t, labels), before)


def test_a_block_is_its_formula(truth):
    """Figure 3 of the paper, head by head and token by token."""
    block = randomised(DiTBlock(8, 2, 32, 1e-6, 1e-6)).double()
    x, modulation = torch.randn(1, 5, 8, dtype=torch.float64), torch.randn(6, 1, 1, 8, dtype=torch.float64)

    def norm(z):
        return (z - z.mean(-1, keepdim=True)) / (z.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()

    shift1, scale1, gate1, shift2, scale2, gate2 = (vector[0, 0] for vector in modulation)
    z = norm(x[0]) * scale1 + shift1
    q, k, v = (F.linear(z, w, b) for w, b in zip(block.qkv.weight.chunk(3), block.qkv.bias.chunk(3)))
    heads = []
    for columns in (slice(0, 4), slice(4, 8)):
        weights = torch.stack([torch.stack([a @ b / 2 for b in k[:, columns]]).softmax(0) for a in q[:, columns]])
        heads.append(weights @ v[:, columns])
    y = x[0] + gate1 * block.out(torch.cat(heads, dim=1))
    h = block.linear1(norm(y) * scale2 + shift2)
    h = h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))) / 2
    y = y + gate2 * block.linear2(h)
    error = (block(x, list(modulation))[0] - y).abs().max() / y.abs().max()
    truth("DiT", "a block, float64, relative to its largest", "figure 3, token by token", error.item(), 1e-15)


def test_positions_are_sines_and_cosines_of_column_and_row(truth):
    waves, worst = grid_waves(5, 16), 0.0
    for place in range(25):
        row, column = divmod(place, 5)
        for axis, p in ((0, column), (8, row)):
            for k in range(4):
                phase = p * 10_000 ** (-k / 4)
                worst = max(worst, abs(waves[place, axis + k].item() - math.sin(phase)))
                worst = max(worst, abs(waves[place, axis + 4 + k].item() - math.cos(phase)))
    truth("DiT", "positions, float32", "math.sin and math.cos", worst, 2e-7)


def test_patches_come_back_to_their_places():
    """Where blocks do nothing, the answer in a patch depends on the picture in that patch and nowhere else."""
    network = TINY.build(2, 3, 0, 6).double()
    torch.nn.init.normal_(network.last.weight)
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x, torch.tensor(1.0)), x)
    moved = jacobian.abs().sum((0, 1, 4, 5)) > 0  # (H, W of the answer, H, W of the picture)
    patch = torch.arange(6) // 2
    same = (patch[:, None, None, None] == patch[None, None, :, None]) & (
        patch[None, :, None, None] == patch[None, None, None, :]
    )
    assert torch.equal(moved, same)


def test_a_patch_is_a_convolution(truth):
    network = randomised(TINY.build(3, 3, 0, 8)).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    seen = []
    network.patch.register_forward_hook(lambda module, inputs, output: seen.append(output))
    network(x, torch.tensor(1.0))
    weight = network.patch.weight.view(16, 3, 2, 2)
    expected = F.conv2d(x, weight, network.patch.bias, stride=2).flatten(2).transpose(1, 2)
    truth("DiT", "patches, float64", "a strided convolution", (seen[0] - expected).abs().max().item(), 5e-15)


def test_without_positions_the_order_of_patches_does_not_matter(truth):
    network = randomised(TINY.build(1, 1, 0, 8)).double()
    network.positions.zero_()
    order = torch.randperm(16)

    def shuffled(x):
        patches = F.unfold(x, 2, stride=2)[:, :, order]
        return F.fold(patches, (8, 8), 2, stride=2)

    x, t = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([3.0, 900.0])
    expected = shuffled(network(x, t))
    error = (network(shuffled(x), t) - expected).abs().max() / expected.abs().max()
    truth("DiT", "shuffled patches without positions, float64", "shuffled answers", error.item(), 5e-15)


def test_the_time_and_the_class_are_heard_and_neighbours_are_not():
    network = randomised(TINY.build(1, 1, 3, 8), std=0.1)
    x, t, labels = torch.randn(3, 1, 8, 8), torch.tensor([5.0, 300.0, 800.0]), torch.tensor([0, 1, 2])
    answer = network(x, t, labels)
    assert not torch.allclose(network(x, t + 10, labels), answer, atol=1e-3)
    assert not torch.allclose(network(x, t, labels.flip(0))[0], answer[0], atol=1e-3)
    torch.testing.assert_close(network(x[1:2], t[1:2], labels[1:2])[0], answer[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("classes", [0, 3])
def test_one_time_for_all_is_that_time_for_each(truth, classes):
    network = randomised(TINY.build(1, 1, classes, 8), std=0.1).double()
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    labels = (torch.tensor([0, 1, 2]),) if classes else ()
    error = network(x, torch.tensor(321.5), *labels) - network(x, torch.full((3,), 321.5), *labels)
    what = f"one time for the whole batch, {classes} classes, float64"
    truth("DiT", what, "the same time for each picture", error.detach().abs().max().item(), 2e-15)


def test_labels_are_given_if_and_only_if_there_are_classes():
    x, t = torch.zeros(1, 1, 8, 8), torch.zeros(1)
    with pytest.raises(ValueError, match="no classes"):
        TINY.build(1, 1, 0, 8)(x, t, torch.tensor([0]))
    with pytest.raises(ValueError, match="labels"):
        TINY.build(1, 1, 2, 8)(x, t)


def test_gradient_reaches_every_parameter():
    network = randomised(TINY.build(1, 2, 3, 8), std=0.1)
    x, t, labels = torch.randn(3, 1, 8, 8), torch.tensor([1.0, 400.0, 999.0]), torch.tensor([0, 1, 2])
    network(x, t, labels).square().sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not still


def test_low_precision_stays_near(truth):
    """bf16 keeps 8 bits: the answers of the whole network differ by about one part in a hundred."""
    network = randomised(DiTConfig(depth=2, width=32, heads=2).build(1, 1, 3, 8), std=0.1)
    x, t, labels = torch.randn(4, 1, 8, 8), torch.rand(4) * 1000, torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        expected = network(x, t, labels)
        with autocast("bf16", torch.device("cpu")):
            error = (network(x, t, labels).float() - expected).abs().max() / expected.abs().max()
    truth("DiT", "bf16, relative to the largest output", "float32", error.item(), 2e-2)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"depth": 0}, "depth"),
        ({"width": 18}, "multiple of 4"),
        ({"heads": 3}, "heads"),
        ({"heads": 0}, "heads must be at least 1"),
        ({"patch": 0}, "patch"),
        ({"mlp_ratio": 0}, "mlp_ratio"),
        ({"eps": 0.0}, "eps"),
        ({"mlp_eps": -1.0}, "mlp_eps"),
        ({"freq_shift": 128.0}, "freq_shift"),
    ],
)
def test_architectures_that_cannot_be_are_refused(changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        DiTConfig(**{"width": 16, "heads": 2, **changes})


def test_pictures_that_patches_do_not_tile_are_refused():
    with pytest.raises(ConfigError, match="--image-size 28"):
        dit_config("S/4").build(1, 1, 0, 30)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'S/2'"):
        dit_config("s/2")


# What follows compares with diffusers 0.42.1.

THEIR_TINY = {
    "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 3,
    "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 10,
}  # fmt: skip
CONFIGS = {
    "latents, learned variance": {},
    "one channel, patches of 4": {"in_channels": 1, "out_channels": None, "sample_size": 12, "patch_size": 4},
    "one block": {"num_layers": 1},
    "another eps": {"norm_eps": 1e-2},
}


@pytest.fixture
def published(diffusers, tmp_path):
    """A function that writes a DiTTransformer2DModel with random weights, returning it and its directory.

    All of its blocks embed time and class alike, as those of the published weights do.
    """

    def write(tied=True, **fields):
        theirs = randomised(diffusers.DiTTransformer2DModel(**{**THEIR_TINY, **fields}).eval(), std=0.1)
        if tied:
            embedder = theirs.transformer_blocks[0].norm1.emb.state_dict()
            for block in theirs.transformer_blocks[1:]:
                block.norm1.emb.load_state_dict(embedder)
        theirs.save_pretrained(tmp_path)
        return theirs, tmp_path

    return write


def answers(theirs, *ours):
    """What their network and ours say, theirs first."""
    size = theirs.config.sample_size
    x, t = torch.randn(3, theirs.config.in_channels, size, size), torch.tensor([0, 500, 999])
    labels = torch.tensor([0, 3, 10])
    with torch.no_grad():
        return [theirs(x, t, labels).sample, *(network(x, t, labels) for network in ours)]


@pytest.mark.oracles
@pytest.mark.parametrize("name", CONFIGS)
def test_published_weights_load_and_agree(published, truth, name):
    theirs, directory = published(**CONFIGS[name])
    expected, ours = answers(theirs, load_dit(directory, freq_shift=1.0).eval())
    error = ((ours - expected).abs().max() / expected.abs().max()).item()
    truth("DiT", f"output, {name}, relative to its largest", "diffusers 0.42.1 DiTTransformer2DModel", error, 2e-6)


@pytest.mark.oracles
def test_diffusers_divides_by_127_where_the_paper_divides_by_128(published, truth):
    """omega_k = 10000^(-k / 128) in the networks that were trained (Peebles and Xie follow Dhariwal and Nichol there);
    diffusers 0.42.1 computes 10000^(-k / 127), which its own later transformers do not. Where its divisor is put right,
    the networks agree; where not, the answers differ by far more than rounding.
    """
    theirs, directory = published()
    projections = [block.norm1.emb.time_proj for block in theirs.transformer_blocks]
    k, t = torch.arange(128, dtype=torch.float64), 700
    for divisor, shift in ((127, 1), (128, 0)):
        for projection in projections:
            projection.downscale_freq_shift = shift
        cosines = projections[0](torch.tensor([t]))[0, :128].double()
        error = (cosines - torch.cos(t * 10_000 ** (-k / divisor))).abs().max()
        truth("DiT", f"diffusers' cosines of t, freq_shift {shift}", f"cos(t 10000^(-k/{divisor}))", error, 1e-4)
    expected, right, wrong = answers(theirs, load_dit(directory).eval(), load_dit(directory, freq_shift=1.0).eval())
    error = (right - expected).abs().max() / expected.abs().max()
    truth("DiT", "output, relative to its largest", "diffusers 0.42.1 with the divisor 128", error, 2e-6)
    assert (wrong - expected).abs().max() / expected.abs().max() > 1e-2


@pytest.mark.oracles
def test_every_number_of_the_file_is_used(published):
    theirs, directory = published()
    ours = sum(p.numel() for p in load_dit(directory).parameters())
    copies = sum(p.numel() for p in theirs.transformer_blocks[0].norm1.emb.parameters())
    assert ours + 2 * copies == sum(p.numel() for p in theirs.parameters())


@pytest.mark.oracles
def test_a_network_with_an_embedder_for_every_block_is_refused(published):
    _, directory = published(tied=False)
    with pytest.raises(CheckpointError, match=r"transformer_blocks\.1\.norm1\.emb\..*is not"):
        load_dit(directory)


@pytest.mark.oracles
def test_missing_extra_and_misshapen_weights_are_refused(published):
    _, directory = published()
    file = directory / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    repeated = "transformer_blocks.2.norm1.emb.class_embedder.embedding_table.weight"
    for change, complaint in (
        ({"proj_out_2.weight": None}, r"lack 'proj_out_2\.weight'"),
        ({repeated: None}, "lack 'transformer_blocks.2"),
        ({"surplus.weight": torch.ones(1)}, r"hold 'surplus\.weight'"),
        ({"proj_out_2.bias": torch.ones(7)}, "shape"),
    ):
        save_file({name: w for name, w in {**weights, **change}.items() if w is not None}, file)
        with pytest.raises(CheckpointError, match=complaint):
            load_dit(directory)


def test_the_published_config_is_that_of_xl_2():
    """As the weights of DiT-XL/2 for 256 x 256 pixels state it, in the words of an older diffusers."""
    published = {
        "_class_name": "Transformer2DModel", "_diffusers_version": "0.12.0.dev0", "activation_fn": "gelu-approximate",
        "attention_bias": True, "attention_head_dim": 72, "cross_attention_dim": None, "dropout": 0.0, "in_channels": 4,
        "norm_elementwise_affine": False, "norm_num_groups": 32, "norm_type": "ada_norm_zero",
        "num_attention_heads": 16, "num_embeds_ada_norm": 1000, "num_layers": 28, "num_vector_embeds": None,
        "only_cross_attention": False, "out_channels": 8, "patch_size": 2, "sample_size": 32,
        "upcast_attention": False, "use_linear_projection": False,
    }  # fmt: skip
    with torch.device("meta"):
        network, expected = dit_from_config(published), dit_config("XL/2").build(4, 8, 1001, 32)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in expected.state_dict().items()}
    assert network.config.updated({"mlp_eps": 1e-6}) == expected.config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("norm_type", "ada_norm_single"),
        ("activation_fn", "geglu"),
        ("attention_bias", False),
        ("norm_elementwise_affine", True),
        ("upcast_attention", True),
        ("dropout", 0.1),
        ("cross_attention_dim", 768),
        ("num_embeds_ada_norm", None),
        ("no_such_field", 1),
    ],
)
def test_what_is_not_supported_is_named(field, value):
    with pytest.raises(ConfigError, match=field):
        dit_from_config({**THEIR_TINY, field: value})


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_dit(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(THEIR_TINY))
    with pytest.raises(CheckpointError, match="safetensors"):
        load_dit(tmp_path)
