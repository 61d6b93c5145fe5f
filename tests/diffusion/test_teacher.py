"""A teacher within its student: the same denoiser as before, and nothing of it ever moves."""

import copy

import pytest
import torch

from mezzotint.core.batch import Batch
from mezzotint.core.errors import ConfigError
from mezzotint.diffusion.boundary import BoundaryConfig, BoundaryModel
from mezzotint.diffusion.model import DenoisingConfig, DenoisingModel
from mezzotint.diffusion.progressive import ProgressiveStudent
from mezzotint.diffusion.teacher import Teacher, agree, begin_with, newest
from mezzotint.nn.unet import UNetConfig

TINY = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention=(False, True), groups=4)
CHOICES = {"path": "cosine", "prediction": "v", "solver": "ddim", "grid": "uniform", "weighting": "truncated-snr"}


def config(steps, network=TINY, **choices):
    return DenoisingConfig(8, 1, classes=3, network=network, steps=steps, **{**CHOICES, **choices})


def shaken(model):
    """Large random weights, so that nothing in the answers is nearly zero."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def batch(n=4):
    return Batch(torch.rand(n, 1, 8, 8) * 2 - 1, torch.arange(n) % 3, seeds=list(range(n)))


class TwoAnswers(DenoisingModel):
    learned_variance = True


@torch.no_grad()
@pytest.mark.parametrize("kind", [DenoisingModel, TwoAnswers])
def test_a_teacher_draws_what_the_model_drew(kind):
    model = shaken(kind(config(4, guidance=1.0)))
    teacher = Teacher(model)
    assert torch.equal(teacher.sample(3, seeds=5), model.sample(3, seeds=5))
    x, t, labels = torch.randn(2, 1, 8, 8), torch.tensor(0.6).double(), torch.tensor([0, 2])
    assert torch.equal(
        teacher.guided(labels)(x, t).clean, model.denoiser(labels, model.sampling_guidance(1.0))(x, t).clean
    )
    assert torch.equal(teacher.guided()(x, t).clean, model.denoiser()(x, t).clean)


def test_a_teacher_is_a_copy_that_never_moves():
    """Whatever its student does: its mode, its dropout and its optimizer."""
    model = shaken(DenoisingModel(config(4, UNetConfig(**{**vars(TINY), "dropout": 0.5}))))
    student = ProgressiveStudent(config(2, label_dropout=0.0), model=model)
    before = copy.deepcopy(student.teacher.state_dict())
    student.train()
    assert student.training
    assert not any(module.training for module in student.teacher.modules())
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    for _ in range(2):
        student(batch()).total.backward()
        optimizer.step()
    assert not any(p.requires_grad or p.grad is not None for p in student.teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in student.teacher.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(student.network.conv_in.weight, model.network.conv_in.weight)
    with torch.no_grad():
        model.network.conv_in.weight.zero_()
    assert torch.equal(student.teacher.network.conv_in.weight, before["network.conv_in.weight"])


def test_a_student_begins_with_its_teachers_weights_and_keeps_no_teachers_teacher():
    first = shaken(DenoisingModel(config(4)))
    second = ProgressiveStudent(config(2, label_dropout=0.0), first=first)
    third = ProgressiveStudent(config(1, label_dropout=0.0), first=first, second=shaken(second))
    for name, weight in second.network.state_dict().items():
        assert torch.equal(third.network.state_dict()[name], weight)
        assert torch.equal(third.teacher.network.state_dict()[name], weight)
    assert {name.partition(".network.")[0] for name in third.state_dict() if not name.startswith("network.")} == {
        "teacher"
    }
    assert third.teacher.config == second.config


def test_what_cannot_teach_is_refused():
    model = DenoisingModel(config(4))
    with pytest.raises(ConfigError, match="no denoising model"):
        Teacher(torch.nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="more than what its network says"):  # masks and a mean besides
        Teacher(BoundaryModel(BoundaryConfig(8, 1, network=TINY, times="uniform", grid="uniform", clip=False)))
    with pytest.raises(ConfigError, match="needs a teacher"):
        newest({})
    with pytest.raises(ConfigError, match="the path of its teacher, 'cosine', not 'linear'"):
        agree(config(4, path="linear"), model.config, "steps", "path")
    wider = DenoisingModel(config(4, UNetConfig(**{**vars(TINY), "channels": 16})))
    with pytest.raises(ConfigError, match="same settings"):
        begin_with(wider.network, Teacher(model))
