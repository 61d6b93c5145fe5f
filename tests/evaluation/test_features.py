"""Resizing and feature networks against the implementations that published numbers come from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import oracle, pytorch_fid_inception
from PIL import Image
from safetensors.torch import save_file

import mezzotint as mz
from mezzotint.core.checkpoint import sha256
from mezzotint.core.errors import CheckpointError, ConfigError
from mezzotint.evaluation.features import (
    ClassifierFeatures,
    InceptionFeatures,
    ModuleFeatures,
    open_features,
    to_levels,
)
from mezzotint.evaluation.inception import InceptionV3
from mezzotint.evaluation.resize import clean, tf1_bilinear


def photograph(height: int, width: int, channels: int = 3) -> torch.Tensor:
    """Grey levels (1, C, H, W) of a picture with a natural spectrum: amplitudes fall as 1 / frequency."""
    generator = torch.Generator().manual_seed(height)
    spectrum = torch.fft.rfft2(torch.randn(channels, height, width, generator=generator))
    y, x = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)
    picture = torch.fft.irfft2(spectrum / (x.square() + y.square()).sqrt().clamp_min(1 / height), s=(height, width))
    low, high = picture.min(), picture.max()
    return ((picture - low) / (high - low) * 255).round()[None]


# ---- resizing


@pytest.mark.oracles
@pytest.mark.parametrize(("height", "width"), [(28, 28), (32, 48), (299, 299), (400, 350)])
def test_tf1_bilinear_is_that_of_torch_fidelity(height, width, truth):
    levels = photograph(height, width)
    interpolate = oracle("torch_fidelity.interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    error = (tf1_bilinear(levels, 299) - interpolate(levels, (299, 299), align_corners=False)).abs().max()
    truth("resize", f"TensorFlow-1 bilinear, {height} x {width} to 299, grey levels", "torch-fidelity 0.4.0", error, 0)


def test_tf1_bilinear_reads_a_ramp_without_centring(truth):
    """On a ramp of slope 1, output pixel i is i H / size until the last input pixel is passed."""
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    expected = (torch.arange(40) * 16 / 40).clamp_max(15)
    error = (tf1_bilinear(ramp, 40)[0, 0, 5] - expected).abs().max()
    truth("resize", "TensorFlow-1 bilinear on a ramp", "i H / size", error, 2e-6)


@pytest.mark.parametrize(("size", "target"), [(28, 299), (64, 224), (400, 224), (512, 299)])
def test_clean_resize_is_that_of_pillow(size, target, truth):
    levels = photograph(size, size)
    pillow = [
        np.asarray(Image.fromarray(channel.numpy(), mode="F").resize((target, target), Image.Resampling.BICUBIC))
        for channel in levels[0]
    ]
    error = np.abs(clean(levels, target)[0].numpy() - np.stack(pillow).clip(0, 255)).max()
    truth("resize", f"bicubic, antialiased, {size} to {target} px, grey levels", "Pillow on floats", error, 1e-3)


@pytest.mark.oracles
def test_clean_resize_is_that_of_clean_fid(truth):
    levels = photograph(128, 128)
    resizer = oracle("cleanfid.resize").make_resizer("PIL", False, "bicubic", (299, 299))
    theirs = resizer(levels[0].permute(1, 2, 0).numpy().astype(np.uint8))
    error = np.abs(clean(levels, 299)[0].permute(1, 2, 0).numpy() - theirs).max()
    truth("resize", "clean, 128 to 299 px, grey levels", "clean-fid 0.1.35", error, 1e-3)


# ---- the Inception graph


@pytest.fixture(scope="module")
def inception() -> InceptionV3:
    """The graph with random weights and random running statistics, scaled so that features are of order one."""
    torch.manual_seed(0)
    network = InceptionV3().eval().requires_grad_(False)
    for name, tensor in network.state_dict().items():
        if name.endswith("bn.weight"):
            tensor.uniform_(1.5, 2.5)
        elif name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    return network


@pytest.mark.oracles
def test_inception_is_the_graph_of_pytorch_fid(inception, truth):
    pictures = photograph(299, 299) / 128 - 1
    features, _ = inception(pictures)
    theirs = pytorch_fid_inception(inception.state_dict())(pictures)[0].flatten(1)
    assert features.std() > 0.01
    error = (features - theirs).abs().max() / theirs.abs().max()
    truth(
        "Inception-v3 of FID",
        "2048 features, random weights, relative to the largest",
        "pytorch-fid 0.3.0",
        error,
        1e-6,
    )


@pytest.mark.oracles
def test_inception_with_its_resize_is_that_of_torch_fidelity(inception, truth, tmp_path):
    """From 8-bit pictures of 40 x 48 to features and logits, through the published format of the weights."""
    torch.save(inception.state_dict(), tmp_path / "weights.pth")
    save_file(inception.state_dict(), tmp_path / "weights.safetensors")
    extractor = oracle("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    theirs = extractor("i", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(tmp_path / "weights.pth"))
    levels = photograph(40, 48)
    network = InceptionFeatures(tmp_path / "weights.safetensors")
    ours = network.describe(levels / 127.5 - 1)
    for what, mine, other in zip(("2048 features", "1008 logits"), ours, theirs(levels.to(torch.uint8))):
        error = (mine - other).abs().max() / other.abs().max()
        truth("Inception-v3 of FID", f"{what} with resize, random weights", "torch-fidelity 0.4.0", error, 1e-6)


def test_only_the_published_file_gives_an_fid(inception, tmp_path, monkeypatch):
    """Its SHA-256 begins with the digits in its name; the same tensors in a file that nothing vouches for do not do."""
    torch.save(inception.state_dict(), tmp_path / "published.pth")
    save_file(inception.state_dict(), tmp_path / "copy.safetensors")
    monkeypatch.setattr("mezzotint.evaluation.features.INCEPTION_SHA256", sha256(tmp_path / "published.pth")[:8])
    names = {
        "published.pth": ("fid", "kid", "inception_score"),
        "copy.safetensors": ("fd_inception", "kd_inception", "is_inception"),
    }
    for file, expected in names.items():
        network = InceptionFeatures(tmp_path / file)
        assert (network.frechet_name, network.kernel_name, network.score_name) == expected
        assert network.weights == f"{file}, sha256 {sha256(tmp_path / file)[:8]}"


def test_inception_weights_must_be_the_published_ones(inception, tmp_path, monkeypatch):
    monkeypatch.delenv("MEZZOTINT_INCEPTION", raising=False)
    with pytest.raises(ConfigError, match="MEZZOTINT_INCEPTION"):
        open_features("inception")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "pt_inception-2015-12-05-6726825d.pth")
    with pytest.raises(CheckpointError, match="checksum"):
        open_features("inception", tmp_path / "pt_inception-2015-12-05-6726825d.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "mine.pth")
    with pytest.raises(CheckpointError, match="pickle"):
        open_features(f"inception:{tmp_path / 'mine.pth'}")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="does not hold the Inception network"):
        open_features("inception", tmp_path / "other.safetensors")


def test_inception_weights_may_come_from_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *a: asked.append(a) or tmp_path / "other.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"other\.safetensors does not hold"):
        open_features("inception:hf:someone/weights/folder/inception.safetensors")
    assert asked == [("someone/weights", "folder/inception.safetensors")]


def test_an_unreachable_hub_is_answered(monkeypatch):
    import huggingface_hub

    def unreachable(*_):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(CheckpointError, match=r"no connection.*give a local file"):
        open_features("inception:hf:someone/weights/inception.safetensors")


# ---- other networks


def test_a_distance_over_other_features_is_never_called_fid():
    pixels = ModuleFeatures(lambda images: images, "pixels")
    assert (pixels.frechet_name, pixels.kernel_name, pixels.score_name) == ("fd_pixels", "kd_pixels", "is_pixels")
    with pytest.raises(ConfigError, match="cannot be called"):
        ModuleFeatures(lambda images: images, "inception")


def test_features_see_8_bit_pictures():
    pixels = ModuleFeatures(lambda images: images, "pixels")
    levels = torch.arange(256.0).view(1, 1, 16, 16)
    images = levels / 127.5 - 1
    assert torch.equal(to_levels(images), levels)
    assert torch.equal(pixels(images + 0.4 / 127.5), pixels(images))
    assert torch.equal(pixels(images * 9), pixels((images * 9).clamp(-1, 1)))


def test_features_do_not_depend_on_the_batch_nor_on_autocast(truth):
    network = ClassifierFeatures(mz.create("classifier", classes=10))
    images = torch.rand(7, 1, 28, 28) * 2 - 1
    together = network(images)
    with torch.autocast("cpu", torch.bfloat16):
        alone = torch.cat([network(image[None]) for image in images])
    assert together.shape == (7, 128) == (7, network.dims)
    error = (together - alone).abs().max() / together.abs().max()
    truth("feature networks", "classifier, seven pictures one by one under autocast", "all at once", error, 1e-6)


@pytest.mark.oracles
def test_efficientnet_knows_a_cat():
    """Class 285 of ImageNet is the Egyptian cat; grey pictures are shown to it as RGB."""
    oracle("efficientnet_lite_pytorch")
    photo = pytest.importorskip("skimage.data").chelsea()
    levels = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float()
    network = open_features("efficientnet_lite0")
    features, logits = network.describe(levels / 127.5 - 1)
    assert features.shape == (1, 1280)
    assert logits.argmax() == 285
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 1280)
    assert network.frechet_name == "fd_efficientnet_lite0"


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ConfigError, match="pip install efficientnet-lite-pytorch"):
        open_features("efficientnet_lite0")


def test_wrong_names_are_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'inception'"):
        open_features("inseption")
    with pytest.raises(ConfigError, match="mezzotint train classifier"):
        open_features("classifier")


def test_a_classifier_of_other_pictures_is_refused():
    with pytest.raises(ConfigError, match=r"1 channel\(s\), and these have 3"):
        ClassifierFeatures(mz.create("classifier", classes=10))(torch.zeros(1, 3, 28, 28))
