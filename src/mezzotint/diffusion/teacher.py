"""A finished model inside the one that learns from it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..core.config import Config
from ..core.errors import ConfigError
from ..core.model import Model
from .guidance import Guidance
from .model import DenoisingModel
from .predictions import Denoiser


class Teacher(DenoisingModel):
    """A frozen copy of a finished denoising model, for its student to hold.

    It has that model's config and its weights, and nothing of what the model itself learned from. Nothing in it is ever
    trained, and it is never in training mode, whatever its student is. As a part of the student it is saved with it.

    model  the finished model; not changed

    Raises `ConfigError` for a model that is no denoising model, or whose answer is not its network's alone.
    """

    def __init__(self, model: Model) -> None:
        if not isinstance(model, DenoisingModel):
            raise ConfigError(
                f"a {type(model).__name__} cannot teach: it is no denoising model; use one as the teacher"
            )
        if type(model).answer is not DenoisingModel.answer:
            raise ConfigError(f"a {type(model).__name__} cannot teach: what it answers is more than what its network"
                              " says; use another as the teacher")  # fmt: skip
        self.learned_variance = model.learned_variance
        super().__init__(model.config)
        self.network.load_state_dict(model.network.state_dict())
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stays as it is."""
        super().train(False)
        return self

    def guided(self, labels: Tensor | None = None) -> Denoiser:
        """The denoiser of labels (B,) with the guidance of the teacher's own config, by which it draws."""
        return self.denoiser(labels, Guidance() if labels is None else self.config.sampling_guidance)


def newest(earlier: Mapping[str, Model]) -> Model:
    """The last of the earlier stages, by name in their order. Raises `ConfigError` if there is none."""
    if not earlier:
        raise ConfigError("a student needs a teacher; build it as a later stage of a system, behind its teacher's")
    return list(earlier.values())[-1]


def agree(student: Config, teacher: Config, *names: str) -> None:
    """Raises `ConfigError` if a setting of this name differs between the two."""
    for name in names:
        if (mine := getattr(student, name)) != (its := getattr(teacher, name)):
            raise ConfigError(f"a student has the {name} of its teacher, {its!r}, not {mine!r}; change both alike")


def begin_with(network: nn.Module, teacher: Teacher) -> None:
    """Give a student's network the weights of its teacher's.

    Raises `ConfigError` if the architectures differ; dropout, which has no weights, may.
    """
    try:
        network.load_state_dict(teacher.network.state_dict())
    except RuntimeError:
        raise ConfigError(
            "a student begins with its teacher's weights, so their networks need the same settings; change both alike"
        ) from None
