"""Progressive distillation on data for which teacher, student and every step between them have closed forms."""

import itertools

import pytest
import torch
from gaussian import Gaussian

from mezzotint.core.batch import Batch, PictureSpec
from mezzotint.core.errors import ConfigError
from mezzotint.core.model import abilities
from mezzotint.diffusion.model import DenoisingConfig, DenoisingModel, noisy
from mezzotint.diffusion.paths import PATHS
from mezzotint.diffusion.predictions import Denoiser, convert
from mezzotint.diffusion.progressive import ProgressiveStudent, between
from mezzotint.diffusion.solvers import ddim
from mezzotint.nn.unet import UNetConfig
from mezzotint.systems import find

TINY = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention=(False, True), groups=4)
CHOICES = {"path": "cosine", "prediction": "v", "solver": "ddim", "grid": "uniform", "weighting": "truncated-snr"}
DATA = Gaussian()
X = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def config(steps, **choices):
    return DenoisingConfig(**{"image_size": 8, "channels": 1, "network": TINY, "steps": steps, **CHOICES, **choices})


def student(steps, teacher=None, **choices):
    """A student with large random weights, of a teacher with others."""
    teacher = teacher or shaken(DenoisingModel(config(2 * steps, label_dropout=0.1, **choices)))
    return shaken(ProgressiveStudent(config(steps, label_dropout=0.0, **choices), teacher=teacher))


def shaken(model):
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def batch(n=6, classes=0):
    labels = torch.arange(n) % classes if classes else None
    return Batch(torch.rand(n, 1, 8, 8, dtype=torch.float64) * 2 - 1, labels, seeds=list(range(n)))


class Perfect(torch.nn.Module):
    """The network that predicts v of Gaussian data without an error."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def forward(self, x, network_time):
        t = network_time / 1000 if self.path == PATHS["straight"] else (network_time + 1) / 1000
        at = self.path.at(t)
        at = type(at)(*(c.view(-1, *[1] * (x.dim() - 1)) for c in at))
        return convert(DATA.clean(x, at), x, at, "clean", "v")


class Learned(torch.nn.Module):
    """The network of a student that has learned its lesson to the last bit."""

    def __init__(self, student):
        super().__init__()
        self.student = [student]  # in a list, so as not to become a part of its own network

    def forward(self, x, network_time):
        student = self.student[0]
        t = ((network_time + 1) / 1000).expand(len(x))
        clean = student.lesson(x, t)
        return convert(clean, x, student.path.at(t), "clean", "v")


def of_gaussian_data(steps, path="cosine"):
    """A student in float64 whose teacher is perfect."""
    model = student(steps, clip=False, path=path).double()
    model.teacher.network = Perfect(model.path)
    return model


@pytest.mark.parametrize("path", ["cosine", "zero-snr", "straight"])
@pytest.mark.parametrize("steps", [32, 3, 1])
def test_one_step_of_the_student_is_two_of_its_teacher(truth, path, steps):
    """x~ is the clean picture with which DDIM goes from t to t - 1/N as the teacher does in two steps, at each of the
    student's times; the last of them ends at the picture itself, where sigma is 0."""
    model, worst = of_gaussian_data(steps, path), 0.0
    teacher = DATA.denoiser(model.path, "v")
    for i in range(1, steps + 1):
        t, half, end = (torch.tensor(k / steps, dtype=torch.float64) for k in (i, i - 0.5, i - 1))
        at = model.path.at(t)
        z = at.alpha * DATA.mean + DATA.spread(at) * X
        clean = model.lesson(z, t.expand(len(z)))
        one = ddim(Denoiser(lambda x, t, c=clean: c, model.path, "clean"), z, torch.stack([t, end]), None)
        two = ddim(teacher, z, torch.stack([t, half, end]), None)
        worst = max(worst, float((one - two).abs().max()))
    truth("progressive distillation", f"one DDIM step of {steps}, {path}", "two of a perfect teacher", worst, 4e-15)


def test_the_rounds_from_64_steps_to_1_lose_nothing(truth):
    """Students that learn without an error go where the first teacher goes in 64 steps, all of them."""
    model, chain = of_gaussian_data(32), []
    grid = torch.linspace(1, 0, 65, dtype=torch.float64)
    passed = []
    end = ddim(model.teacher.denoiser(), X, grid, None, lambda step: passed.append(step.denoised.x))
    passed.append(end)
    for steps in (32, 16, 8, 4, 2, 1):
        if chain:
            model = student(steps, clip=False).double()
            model.teacher.network = chain[-1].network
        model.network = Learned(model)
        chain.append(model)
        seen = []
        arrived = ddim(model.denoiser(), X, grid[:: 64 // steps], None, lambda step, s=seen: s.append(step.denoised.x))
        error = max((a - b).abs().max() for a, b in zip([*seen, arrived], passed[:: 64 // steps], strict=True))
        truth(
            f"progressive distillation, {steps} steps",
            "trajectory after rounds without error",
            "64 steps of the teacher",
            error,
            1.5e-14,
        )
    exact = DATA.flowed(X, model.path.at(grid[0]), model.path.at(grid[-1]))
    assert (end - exact).abs().max() < 0.05  # and that is nearly where the ODE goes


@pytest.mark.parametrize("steps", [4, 1])
def test_the_lesson_is_what_minimises_the_loss(truth, steps):
    """The loss is nothing for a student that knows its lesson, but not for one that expects the training pictures."""
    model = of_gaussian_data(steps)
    model.network = model.teacher.network
    assert model(batch()).total > 1e-4
    model.network = Learned(model)
    loss = model(batch()).total
    truth("progressive distillation", f"loss of a student of {steps} that has learned", "0", loss, 1e-31)


def test_a_one_step_student_of_a_linear_teacher(truth):
    """Two DDIM steps on N(m, s^2) from t = 1 map z to m + S (z - alpha m), S the product of

        alpha_r g + sigma_r (1 - alpha_t g) / sigma_t,    g = alpha_t s^2 / (alpha_t^2 s^2 + sigma_t^2)

    so a student v = a z + b, trained until its loss is nothing, has b and a in closed form."""
    model = of_gaussian_data(1)
    a, b = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    model.answer = lambda z, t, labels=None: a * z + b
    optimizer = torch.optim.LBFGS(
        [a, b], max_iter=100, tolerance_grad=1e-14, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        total = model(batch()).total
        total.backward()
        return total

    optimizer.step(loss)
    ats, slope = [model.path.at(torch.tensor(t, dtype=torch.float64)) for t in (1.0, 0.5, 0.0)], 1.0
    for at, after in itertools.pairwise(ats):
        gain = at.alpha * DATA.std**2 / ((at.alpha * DATA.std) ** 2 + at.sigma**2)
        slope = slope * (after.alpha * gain + after.sigma * (1 - at.alpha * gain) / at.sigma)
    alpha = ats[0].alpha
    closed = Denoiser(lambda x, t: DATA.mean + slope * (x - alpha * DATA.mean), model.path, "clean")(
        X, torch.tensor(1.0).double()
    ).v
    error = (a * X + b - closed).abs().max()
    truth(
        "progressive distillation", "1-step student of a linear teacher, trained", "closed form", error.detach(), 3e-9
    )


@pytest.mark.parametrize("prediction", ["v", "clean", "velocity"])
@pytest.mark.parametrize("path", ["cosine", "straight"])
def test_the_loss_is_that_of_the_paper(truth, prediction, path):
    """max(alpha^2 / sigma^2, 1) |x~ - x^|^2 at z_t, whatever the network predicts (Salimans and Ho 2022, eq. 9)."""
    model = student(4, prediction=prediction, path=path).double()
    seen, lesson = {}, model.lesson
    model.lesson = lambda z, t, labels: seen.setdefault("clean", lesson(*seen.setdefault("asked", (z, t)), labels))
    total = model(batch()).total
    (z, t), clean = seen["asked"], seen["clean"]
    at = model.path.at(t)
    guess = convert(model.answer(z, t), z, at, prediction, "clean")
    error = (clean - guess).square().flatten(1).mean(1)
    expected = (torch.maximum(at.alpha**2 / at.sigma**2, torch.tensor(1.0)) * error).mean()
    truth(
        f"progressive distillation, {prediction}, {path}",
        "loss, relative",
        "truncated SNR on the clean picture",
        (total / expected - 1).abs().detach(),
        2e-15,
    )


def test_a_hidden_label_is_hidden_from_the_teacher_too():
    """Else the student would be shown one of the classes as what is right without a label."""
    teacher = shaken(DenoisingModel(config(8, classes=3, label_dropout=0.1)))
    model, data = shaken(ProgressiveStudent(config(4, classes=3, label_dropout=1.0), teacher=teacher)).double(), batch()
    of_class = [model(Batch(data.images, torch.full((6,), y), seeds=data.seeds)).total for y in range(3)]
    assert of_class[0] == of_class[1] == of_class[2]


def test_students_are_trained_at_the_times_at_which_they_sample():
    model, asked = student(4), []
    answer = model.answer
    model.answer = lambda z, t, labels=None: (asked.append(t), answer(z, t, labels))[1]
    many = Batch(torch.rand(200, 1, 8, 8), seeds=list(range(200)))
    model(many)
    assert set(asked.pop().tolist()) == {0.25, 0.5, 0.75, 1.0}
    model.sample(1)
    assert [float(t) for t in asked] == [1.0, 0.75, 0.5, 0.25]


def test_the_noise_of_the_last_step_is_gone(truth):
    """At t = 1/N the target is where the teacher arrives, z_s itself, for alpha_s = 1 and sigma_s = 0."""
    model = student(4).double()
    at, at_end = (model.path.at(torch.tensor(t, dtype=torch.float64)) for t in (0.25, 0.0))
    end = torch.randn_like(X)
    truth(
        "progressive distillation",
        "target of the step to t = 0",
        "where the teacher arrives",
        (between(X, end, at, at_end) - end).abs().max(),
        0.0,
    )


def test_the_target_lies_between_the_two_pictures_of_the_teacher(truth):
    """With u = alpha / sigma, x~ = ((u' - u) x_1 + (u'' - u') x_2) / (u'' - u): a student needs to say nothing that its
    teacher would not, and clipped teachers have clipped targets."""
    model, z, i = student(4).double(), torch.randn(6, 1, 8, 8).double(), torch.tensor([4, 4, 3, 3, 2, 2])
    t, half, end = (model.path.at(k) for k in (i / 4, (i - 0.5) / 4, (i - 1) / 4))
    denoiser = model.teacher.denoiser()
    first = denoiser(z, i / 4)
    second = denoiser(noisy(first.clean, first.noise, half), (i - 0.5) / 4)
    u, u_half, u_end = ((at.alpha / at.sigma).view(-1, 1, 1, 1) for at in (t, half, end))
    expected = ((u_half - u) * first.clean + (u_end - u_half) * second.clean) / (u_end - u)
    assert first.clean.abs().max() == 1
    error = (model.lesson(z, i / 4) - expected).abs().max()
    truth("progressive distillation", "target", "weighted mean of the teacher's two pictures", error.detach(), 8e-15)


def test_the_first_student_learns_the_guided_teacher(truth):
    """Two DDIM steps of (1 + w) y(z, label) - w y(z, null), with w of the teacher's config; the student has none."""
    teacher = shaken(DenoisingModel(config(8, classes=3, guidance=1.5, clip=False)))
    model = student(4, teacher, classes=3, clip=False).double()
    z, i, labels = torch.randn(4, 1, 8, 8).double(), torch.tensor([4, 3, 2, 1]), torch.tensor([0, 1, 2, 0])

    def guided(x, t):
        conditional, unconditional = (teacher.double().answer(x, t, k) for k in (labels, torch.full_like(labels, 3)))
        return 2.5 * conditional - 1.5 * unconditional

    x, denoiser = z, Denoiser(guided, model.path, "v")
    for k in (0.0, 0.5):
        d = denoiser(x, (i - k) / 4)
        x = noisy(d.clean, d.noise, model.path.at((i - k - 0.5) / 4))
    expected = between(z, x, model.path.at(i / 4), model.path.at((i - 1) / 4))
    error = (model.lesson(z, i / 4, labels) - expected).abs().max()
    truth("progressive distillation", "lesson of a guided teacher", "eq. 92 by hand", error.detach(), 2e-15)
    assert model.config.guidance == 0
    with pytest.raises(ConfigError, match="guided"):
        model.sample(1, guidance=1.0)


def test_a_student_only_samples():
    assert abilities(ProgressiveStudent) == ["sample"]


@pytest.mark.parametrize(
    ("choices", "complaint"),
    [
        ({"steps": 8}, "teacher of 16, not of 8"),
        ({"prediction": "noise"}, "prediction of its teacher"),
        ({"classes": 3}, "classes of its teacher"),
        ({"path": "linear"}, "path of its teacher"),
        ({"times": "uniform"}, "times to discrete"),
        ({"network": UNetConfig(**{**vars(TINY), "channels": 16})}, "same settings"),
    ],
)
def test_students_that_do_not_fit_their_teacher_are_refused(choices, complaint):
    with pytest.raises(ConfigError, match=complaint):
        ProgressiveStudent(config(**{"steps": 4, **choices}), teacher=DenoisingModel(config(8)))


def test_noise_cannot_be_distilled():
    with pytest.raises(ConfigError, match="pure noise"):
        student(4, prediction="noise")


def test_the_system_halves_from_64_to_1():
    system = find("progressive-distillation")
    assert [stage.name for stage in system.stages] == ["teacher", *(f"student-{n}" for n in (32, 16, 8, 4, 2, 1))]
    for size, data in (("small", PictureSpec(28, 1, tuple("abc"))), ("paper", PictureSpec(32, 3))):
        configs = [stage.sizes[size](data) for stage in system.stages]
        assert [c.steps for c in configs] == [64, 32, 16, 8, 4, 2, 1]
        assert all(c.guidance == 0 for c in configs[1:])
