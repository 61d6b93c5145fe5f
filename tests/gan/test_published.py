"""A generator that others have trained draws the same pictures here; what is no such generator is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import mezzotint as mz
from mezzotint.core.checkpoint import save_tensors
from mezzotint.core.model import HasCode
from mezzotint.gan.published import STATE, convert_dcgan, dcgan_of, load_dcgan


def tutorial(latent: int, width: int, channels: int, levels: int) -> nn.Sequential:
    """The generator of PyTorch's DCGAN tutorial, as its text describes it, for any number of levels."""
    layers: list[nn.Module] = []
    before = latent
    for level in range(levels):
        after = width * 2 ** (levels - 1 - level)
        stride, padding = (2, 1) if level else (1, 0)
        layers += [nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        before = after
    return nn.Sequential(*layers, nn.ConvTranspose2d(before, channels, 4, 2, 1, bias=False), nn.Tanh()).eval()


def named(network: nn.Sequential) -> dict[str, torch.Tensor]:
    for module in network:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return {f"main.{name}": value for name, value in network.state_dict().items()}


@pytest.mark.parametrize(("channels", "levels"), [(3, 2), (1, 3)])
def test_the_shapes_say_what_the_generator_is(channels, levels, tmp_path, truth):
    theirs = tutorial(10, 4, channels, levels)
    save_tensors(named(theirs), tmp_path / "faces.safetensors")
    model = load_dcgan(tmp_path / "faces.safetensors")
    z = torch.randn(5, 10)
    found = model.from_codes(z)
    assert found.shape == (5, channels, 4 * 2**levels, 4 * 2**levels)
    error = (found - theirs(z[:, :, None, None])).abs().max().detach()
    truth("dcgan", "pictures of published weights", "the layers as published", error, 1e-6)


def test_what_was_loaded_is_a_model_like_any_other(tmp_path):
    model = dcgan_of(named(tutorial(10, 4, 3, 2)))
    model.save(tmp_path / "faces")
    again = mz.load(tmp_path / "faces")
    assert isinstance(again, HasCode)
    assert torch.equal(again.sample(3, seeds=1), model.sample(3, seeds=1))


def test_a_pickle_is_refused_and_converted_without_running_it(tmp_path):
    theirs = tutorial(6, 4, 3, 2)
    torch.save({STATE: named(theirs), "epoch": 3}, tmp_path / "weights.tar")
    with pytest.raises(mz.CheckpointError, match="convert_dcgan"):
        load_dcgan(tmp_path / "weights.tar")
    convert_dcgan(tmp_path / "weights.tar", tmp_path / "weights.safetensors")
    z = torch.randn(2, 6)
    assert torch.allclose(load_dcgan(tmp_path / "weights.safetensors").from_codes(z), theirs(z[..., None, None]))
    torch.save(theirs, tmp_path / "whole.tar")  # a pickled module, of whose class code would run
    with pytest.raises(mz.CheckpointError, match="tensors alone"):
        convert_dcgan(tmp_path / "whole.tar", tmp_path / "x.safetensors")
    torch.save([1, 2], tmp_path / "list.tar")
    with pytest.raises(mz.CheckpointError, match="no state dict"):
        convert_dcgan(tmp_path / "list.tar", tmp_path / "x.safetensors")
    with pytest.raises(mz.CheckpointError, match="cannot be read"):
        convert_dcgan(tmp_path / "none.tar", tmp_path / "x.safetensors")


@pytest.mark.parametrize("spoil", ["missing", "extra", "shape", "foreign", "nothing"])
def test_names_and_shapes_must_be_exactly_those_of_a_generator(spoil):
    state = named(tutorial(6, 4, 3, 2))
    if spoil == "missing":
        del state["main.1.running_var"]
    elif spoil == "extra":
        state["main.0.bias"] = torch.zeros(8)
    elif spoil == "shape":
        state["main.3.weight"] = torch.zeros(7, 4, 4, 4)
    elif spoil == "foreign":
        state["layers.0.weight"] = torch.zeros(1)
    else:
        state = {"main.0.weight": torch.zeros(6, 4)}
    with pytest.raises(mz.CheckpointError, match="generator"):
        dcgan_of(state)


@pytest.mark.oracles
def test_the_faces_of_gan_face_generate_are_the_same_faces(tmp_path, truth):
    models = pytest.importorskip("gan_face_generate.models")
    file = Path(models.__file__).with_name("weights.tar")
    theirs = models.Generator(0, 3, 100, 64).eval()
    theirs.load_state_dict(torch.load(file, map_location="cpu", weights_only=True)[STATE], strict=True)
    convert_dcgan(file, tmp_path / "faces.safetensors")
    ours = load_dcgan(tmp_path / "faces.safetensors")
    assert sum(p.numel() for p in ours.generator.parameters()) == sum(p.numel() for p in theirs.parameters())
    z = ours.codes(range(8))
    with torch.no_grad():
        error = (ours.from_codes(z) - theirs(z[:, :, None, None])).abs().max()
    truth("dcgan", "faces of 64 x 64, published weights", "gan-face-generate 1.1.1", error, 1e-6)
    assert torch.equal(ours.sample(8), ours.from_codes(z))
