"""Progressive distillation: students that take half as many steps as their teacher, round after round."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.batch import Batch, PictureRandom
from ..core.errors import ConfigError
from ..core.model import Losses, Model
from ..nn.unet import UNetConfig
from .model import DenoisingConfig, DenoisingModel, noisy
from .paths import Coefficients
from .predictions import convert, rows
from .teacher import Teacher, agree, begin_with, newest
from .times import on_cpu


class ProgressiveStudent(DenoisingModel):
    """Learns to go in one step of DDIM where its teacher goes in two.

        Teacher:  tau_2N -> tau_{2N-1} -> tau_{2N-2} -> ... -> tau_0        (survey, eq. 89)
        Student:  t_N = tau_2N     ->     t_{N-1} = tau_{2N-2} -> ... -> t_0 = tau_0

    With t = i/N, i uniform on 1 ... N, and z_t a noisy training picture, the loss is the denoising loss at z_t, but for
    the clean picture x~ that is found by two steps of the teacher (`lesson`) in place of the training picture:

        w_t |x~ - x^(z_t, t)|^2,    w_t that of the config, max(alpha_t^2 / sigma_t^2, 1) in the paper

    x~ is a function of z_t and its label, which is what makes a student of few steps sharp: the training picture is one
    of many that z_t may come from, and the best guess is their mean.

    config   `steps` is N, and `times` "discrete". The prediction must tell the picture from pure noise: not "noise"
    earlier  the earlier stages by name. The last is the teacher, sampled with 2N steps; the student begins with its
             weights. The steps are guided as the config of the teacher says, so the first student of a guided model
             needs no guidance itself, and the later ones learn from it: a w is fixed for all of them

    Source: Salimans and Ho 2022 (arXiv 2202.00512), algorithm 2, sections 3 and 4; survey, section 6.1.
    Raises `ConfigError` without a teacher, or where it does not fit.
    """

    encode = decode = None  # type: ignore[assignment]  # its few steps are trained from noise to picture alone
    from_codes = None  # type: ignore[assignment]

    def __init__(self, config: DenoisingConfig, **earlier: Model) -> None:
        super().__init__(config)
        self.teacher = Teacher(newest(earlier))
        agree(config, self.teacher.config, "image_size", "channels", "classes", "path", "prediction", "unit_input")
        if config.prediction in ("noise", "score"):
            raise ConfigError("the noise does not tell the picture from pure noise; set prediction to v or clean")
        if config.times != "discrete":
            raise ConfigError("a student is trained at the times of its own steps; set times to discrete")
        if (config.solver, config.grid) != ("ddim", "uniform"):
            raise ConfigError("a student goes the steps of DDIM in equal times; set solver to ddim and grid to uniform")
        if self.teacher.config.steps != 2 * config.steps:
            raise ConfigError(
                f"a student of {config.steps} steps needs a teacher of {2 * config.steps}, not of"
                f" {self.teacher.config.steps}; change the steps of all stages together"
            )
        begin_with(self.network, self.teacher)

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """The denoising loss for the picture that the teacher's two steps lead to; see `DenoisingModel.forward`."""
        x, random = batch.images, batch.random()
        t = self.training_times(random)  # (B,)
        labels = self.training_labels(batch, random)
        at = self.path.at(t)
        z = noisy(x, random.normal(*x.shape[1:]), at)
        clean = self.lesson(z, t, labels)
        return self.regression(clean, convert(clean, z, at, "clean", "noise"), t, labels)

    def training_times(self, random: PictureRandom) -> Tensor:
        """Uniform on {1/N, 2/N, ..., 1}, (B,)."""
        return (on_cpu(random).integers(0, self.config.steps).double() + 1) / self.config.steps

    @torch.no_grad()
    def lesson(self, z: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x~ of z_t: the picture with which one step arrives where two of the teacher do, (B, C, H, W).

        z       the states at t, (B, C, H, W)
        t       1/N, 2/N, ... or 1, (B,)
        labels  (B,)
        """
        denoiser, steps = self.teacher.guided(labels), self.config.steps
        i = (t * steps).round()
        middle, end = (i - 0.5) / steps, (i - 1) / steps
        x = z
        for now, then in ((t, middle), (middle, end)):
            d = denoiser(x, now)
            x = noisy(d.clean, d.noise, self.path.at(then))  # DDIM
        return between(z, x, self.path.at(t), self.path.at(end))


def between(z_t: Tensor, z_s: Tensor, at_t: Coefficients, at_s: Coefficients) -> Tensor:
    """The clean picture by which one step of DDIM leads from z_t to z_s.

        x~ = (z_s - (sigma_s / sigma_t) z_t) / (alpha_s - (sigma_s / sigma_t) alpha_t)

    It is z_s itself at s = 0, where sigma_s = 0 and alpha_s = 1.

    Source: Salimans and Ho 2022, algorithm 2 and appendix G.
    """
    ratio = at_s.sigma / at_t.sigma
    gain = 1 / (at_s.alpha - ratio * at_t.alpha)
    return rows(gain, z_s) * z_s - rows(gain * ratio, z_t) * z_t


def published_unet(image_size: int, dropout: float = 0.2) -> UNetConfig:
    """The network for CIFAR-10: three levels of 256 channels, attention at 16 and 8 pixels; students have no dropout.

    Source: Salimans and Ho 2022, section 5, and the settings published with it.
    """
    attention = tuple(image_size // 2**level in (16, 8) for level in range(3))
    return UNetConfig(
        256, (1, 1, 1), blocks=3, attention=attention, dropout=dropout, time_norm="scale_shift", resample="resnet",
        eps=1e-6,
    )  # fmt: skip
