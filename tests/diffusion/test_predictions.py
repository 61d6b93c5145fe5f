"""Predictions: every conversion is exact, both ways."""

import itertools

import pytest
import torch
from gaussian import Gaussian

from mezzotint.diffusion import grids
from mezzotint.diffusion.paths import PATHS
from mezzotint.diffusion.predictions import (
    DATA_STD,
    PREDICTIONS,
    Denoised,
    Denoiser,
    carried,
    components,
    convert,
    rows,
    target,
    unit,
)
from mezzotint.diffusion.solvers import ddim

t = torch.tensor([0.01, 0.2, 0.5, 0.8, 0.95], dtype=torch.float64)


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def setting(path, dtype=torch.float64):
    """Known clean pictures and noise at five times."""
    at = PATHS[path].at(t)
    clean, noise = torch.rand(5, 1, 4, 4, dtype=dtype) * 2 - 1, torch.randn(5, 1, 4, 4, dtype=dtype)
    alpha, sigma = (c.to(dtype).view(5, 1, 1, 1) for c in at[:2])
    return alpha * clean + sigma * noise, clean, noise, at


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("source", "wanted"), list(itertools.product(PREDICTIONS, PREDICTIONS)))
def test_each_prediction_becomes_each_other(path, source, wanted):
    x, clean, noise, at = setting(path)
    answer = convert(target(source, clean, noise, at), x, at, source, wanted)
    expected = target(wanted, clean, noise, at)
    assert (answer - expected).abs().max() < 2e-11 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("path", PATHS)
def test_conversion_there_and_back_is_the_identity(truth, path):
    """Of an answer which no x has: a network's, wrong as it may be, is kept whole."""
    x, _, _, at = setting(path)
    y, worst = torch.randn_like(x), 0.0
    for source, wanted in itertools.product(PREDICTIONS, PREDICTIONS):
        back = convert(convert(y, x, at, source, wanted), x, at, wanted, source)
        worst = max(worst, float((back - y).abs().max()))
    # where sigma is small, as that of sub-VP is, the noise is a small difference of large numbers
    tolerance = {"subvp": 2e-10, "ve": 5e-12, "edm": 5e-12, "straight": 3e-12, "ot": 3e-12}.get(path, 1e-12)
    truth(f"path {path}", "every conversion there and back", "identity, float64", worst, tolerance)


def test_targets_are_those_of_the_papers():
    x, clean, noise, at = setting("straight")
    torch.testing.assert_close(target("velocity", clean, noise, at), noise - clean)  # Liu et al. 2022, with 1 - t for t
    x, clean, noise, at = setting("ot")
    torch.testing.assert_close(target("velocity", clean, noise, at), (1 - 1e-4) * noise - clean)  # Lipman, eq. 23
    x, clean, noise, at = setting("linear")
    alpha, sigma = (c.view(5, 1, 1, 1) for c in at[:2])
    torch.testing.assert_close(target("v", clean, noise, at), alpha * noise - sigma * clean)
    density = torch.distributions.Normal(alpha * clean, sigma)
    x = x.requires_grad_()
    (score,) = torch.autograd.grad(density.log_prob(x).sum(), x)
    torch.testing.assert_close(target("score", clean, noise, at), score)


@pytest.mark.parametrize("path", PATHS)
def test_the_f_of_edm_is_that_of_table_1(truth, path):
    """Karras et al. 2022, eq. 7: D(x) = c_skip x + c_out F for x = c + s n; other paths look at x / alpha."""
    x, clean, noise, at = setting(path)
    s, d = at.ratio.view(5, 1, 1, 1), DATA_STD
    c_skip, c_out = d**2 / (s**2 + d**2), s * d / (s**2 + d**2).sqrt()
    stretched = x / at.alpha.view(5, 1, 1, 1)
    F = (clean - c_skip * stretched) / c_out
    error = ((target("edm", clean, noise, at) - F).abs() / F.abs().clamp(min=1)).max()
    truth(
        f"path {path}",
        "EDM's F",
        "(c - c_skip x / alpha) / c_out, Karras et al. 2022, table 1",
        error,
        2e-13 if path == "subvp" else 4e-14,
    )
    answer = torch.randn_like(x)
    D = c_skip * stretched + c_out * answer
    truth(f"path {path}", "clean picture of EDM's F", "c_skip x / alpha + c_out F",
          (Denoised(x, answer, "edm", at).clean - D).abs().max(), 2e-15)  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_inputs_and_targets_of_edm_have_unit_variance(truth, path):
    """For pictures of standard deviation 0.5, at every time: c_in, and the variance of F."""
    path_t = torch.linspace(0, 1, 101, dtype=torch.float64)[1:]
    at = PATHS[path].at(path_t)
    a, b = components("edm", at)
    truth(f"path {path}", "variance of EDM's F", "1", (a**2 * DATA_STD**2 + b**2 - 1).abs().max(), 1e-15)
    stretch = unit(torch.ones(100, dtype=torch.float64), at)
    variance = stretch**2 * (at.alpha**2 * DATA_STD**2 + at.sigma**2)
    truth(f"path {path}", "variance of a network's unit input", "1", (variance - 1).abs().max(), 1e-15)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_denoised_picture_offers_every_form(path, kind):
    x, clean, noise, at = setting(path)
    d = Denoised(x, target(kind, clean, noise, at), kind, at)
    for form in PREDICTIONS:
        answer = d.as_kind(form) if form == "edm" else getattr(d, form)
        torch.testing.assert_close(answer, target(form, clean, noise, at), rtol=1e-9, atol=1e-9)


def test_coefficients_are_applied_in_the_dtype_of_the_pictures(truth):
    x, clean, noise, at = setting("linear", torch.float32)
    answer = convert(target("v", clean, noise, at), x, at, "v", "noise")
    assert answer.dtype == torch.float32
    error = (answer - noise).abs().max()
    truth("predictions", "v to noise in float32", "the noise", error, 1e-6)


def test_rows_meet_their_pictures():
    x = torch.zeros(2, 1, 3, 3)
    assert torch.equal(rows(number([2.0, 3.0]), x + 1), torch.tensor([2.0, 3.0]).view(2, 1, 1, 1))
    assert rows(number(2.0), x).shape == ()
    assert rows(number(2.0), x).dtype == torch.float32
    with pytest.raises(ValueError, match="no prediction is called 'epsilon'"):
        components("epsilon", PATHS["linear"].at(t))


@pytest.mark.parametrize("name", PATHS)
def test_the_velocity_is_the_time_derivative_of_the_path(truth, name):
    time = number(0.4321)
    clean, noise = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    path = PATHS[name]
    _, derivative = torch.autograd.functional.jvp(
        lambda s: path.at(s).alpha * clean + path.at(s).sigma * noise, time, torch.ones_like(time)
    )
    error = ((target("velocity", clean, noise, path.at(time)) - derivative).abs() / derivative.abs().clamp(min=1)).max()
    truth(f"path {name}", "velocity, relative", "d x_t / dt by autograd, float64", error, 1e-15)


# Where the determinant vanishes ---------------------------------------------------------------------------------------


def test_where_nothing_is_left_of_the_picture_the_noise_does_not_tell_it():
    """alpha = 0: x is the noise. What is not finite cannot be mistaken for an answer."""
    for name in ("zero-snr", "straight", "ot"):
        at = PATHS[name].at(number(1.0))
        clean, noise = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
        x = at.sigma * noise
        for kind in PREDICTIONS:
            answer = convert(target(kind, clean, noise, at), x, at, kind, "clean")
            if kind in ("noise", "score"):
                assert not answer.isfinite().any()
            else:
                assert (answer - clean).abs().max() < 1e-12
                known = convert(target(kind, clean, noise, at), x, at, kind, "noise")
                assert (known - noise).abs().max() < 1e-12


def test_where_there_is_no_noise_the_picture_does_not_tell_it():
    """sigma = 0: x is the picture, whatever a network of the noise says."""
    at = PATHS["edm"].at(number(0.0))
    clean, noise = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    for kind in ("noise", "velocity", "v", "edm"):
        y = target(kind, clean, noise, at)
        assert (convert(y, clean, at, kind, "clean") - clean).abs().max() < 1e-15
        assert (convert(y, clean, at, kind, "noise") - noise).abs().max() < 1e-15
    assert not convert(clean, clean, at, "clean", "noise").isfinite().any()


# The denoiser ---------------------------------------------------------------------------------------------------------


def test_clipping_holds_the_picture_in_range_and_lets_the_noise_follow():
    path = PATHS["linear"]
    x, time = torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.tensor(0.9)
    d = Denoiser(lambda x, _: torch.zeros_like(x), path, "noise", clip=True)(x, time)
    assert d.clean.abs().max() == 1
    torch.testing.assert_close(d.at.alpha * d.clean + d.at.sigma * d.noise, x)


@pytest.mark.parametrize("clip", [False, True])
def test_the_second_half_of_a_learned_variance_is_where_it_lies(clip):
    """Nichol and Dhariwal 2021, section 3.1: the network's -1 is the small variance, 1 the large one."""
    x, time = torch.randn(2, 3, 4, 4), torch.tensor(0.4)
    answer, raw = torch.randn(2, 3, 4, 4), torch.linspace(-1, 1, 96).view(2, 3, 4, 4)
    network = lambda x, t: torch.cat([answer, raw], dim=1)  # noqa: E731
    d = Denoiser(network, PATHS["cosine"], "noise", clip, learned_variance=True)(x, time)
    plain = Denoiser(lambda x, t: answer, PATHS["cosine"], "noise", clip)(x, time)
    assert torch.equal(d.clean, plain.clean)
    torch.testing.assert_close(d.share, (raw + 1) / 2, rtol=0, atol=0)
    assert plain.share is None


def test_answers_in_low_precision_become_those_of_the_pictures():
    d = Denoiser(lambda x, t: x.bfloat16(), PATHS["vp"], "v")(torch.randn(2, 1, 2, 2), torch.tensor(0.5))
    assert d.y.dtype == d.clean.dtype == torch.float32


# Other paths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("there", "here"), list(itertools.permutations(PATHS, 2)))
def test_a_picture_carried_to_another_path_is_the_same_picture(there, here):
    """The same clean picture and noise, in the ratio and with the length that are the other path's."""
    there, here = PATHS[there], PATHS[here]
    time = torch.tensor([0.05, 0.3, 0.6], dtype=torch.float64)
    at, clean, noise = there.at(time), torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    x_here, time_here = carried(rows(at.alpha, clean) * clean + rows(at.sigma, noise) * noise, time, there, here)
    at_here = here.at(time_here)
    known = at_here.ratio / at.ratio
    possible = (time_here > 0) & (time_here < 1)  # the others are beyond what the path here ever does to a picture
    assert possible.any()
    assert (known[possible] - 1).abs().max() < 1e-10
    expected = rows(at_here.alpha, clean) * clean + rows(at_here.sigma, noise) * noise
    assert ((x_here - expected).abs().amax(1) / at_here.sigma)[possible].max() < 1e-9


@pytest.mark.parametrize("here", PATHS)
def test_pure_noise_is_carried_to_the_noise_at_the_end_of_any_path(here):
    noise = torch.randn(3, 4, dtype=torch.float64)
    x, time = carried(noise, number(1.0), PATHS["straight"], PATHS[here])
    at = PATHS[here].at(number(1.0))
    assert time == 1
    torch.testing.assert_close(x, noise * at.alpha.hypot(at.sigma), rtol=1e-12, atol=0)


@pytest.mark.parametrize("there", PATHS)
def test_no_noise_is_carried_to_the_beginning_of_any_path(there):
    picture = torch.randn(3, 4, dtype=torch.float64)
    for name in ("straight", "edm", "vp"):
        x, time = carried(picture, number(0.0), PATHS[name], PATHS[there])
        assert time == 0
        torch.testing.assert_close(x, picture, rtol=1e-7, atol=0)


@pytest.mark.parametrize("path", [path for path in PATHS if path != "vp"])
def test_a_denoiser_seen_on_another_path_is_that_of_the_same_data_there(truth, path):
    """The perfect denoiser of Gaussian data is known on both."""
    data, model = Gaussian(), PATHS["vp"]
    seen, own = data.denoiser(model, "v").on(PATHS[path]), data.denoiser(PATHS[path], "clean")
    x = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    level = torch.tensor([0.05, 0.4, 2.0, 9.0], dtype=torch.float64)
    time = PATHS[path].time_of(level)
    x = x * rows(PATHS[path].at(time).sigma, x)
    error = (seen(x, time).clean - own(x, time).clean).abs().max()
    truth(f"path {path}", "clean picture of a VP denoiser seen there", "the closed form there", error, 5e-16)


@pytest.mark.parametrize("path", [path for path in PATHS if path != "edm"])
@pytest.mark.parametrize("clip", [False, True])
def test_ddim_takes_the_same_way_on_every_path(truth, path, clip):
    """It is Euler's method in x / alpha and sigma / alpha (Song et al. 2020, eq. 14), which no path has a part in."""
    data, model = Gaussian(), PATHS["edm"]
    network = data.denoiser(model, "edm").network
    denoiser = Denoiser(lambda x, t: network(x, t) + 0.1 * torch.sin(5 * x), model, "edm", clip)  # any denoiser
    levels = torch.tensor([12.0, 5.0, 1.0, 0.3, 0.1, 0.0], dtype=torch.float64)
    start = 12 * torch.randn(2, 1, 4, 4, dtype=torch.float64)
    ways = []

    def remember(step):
        way.append(step.denoised.x / step.denoised.at.alpha)

    for there in (model, PATHS[path]):
        way, grid = [], there.time_of(levels)
        x = start * there.at(grid[0]).alpha
        seen = denoiser if there is model else denoiser.on(there)
        end = ddim(seen, x, grid, lambda: None, remember)
        ways.append(torch.stack(way if path == "ot" else [*way, end]))  # whose end is at sigma_min
    error = (ways[0] - ways[1]).abs().max()
    truth(f"path {path}", f"DDIM there with an EDM denoiser, clip={clip}", "DDIM on its own path", error, 4e-14)


def test_a_denoiser_of_another_path_starts_from_pure_noise():
    """A VP model followed along the straight path, whose start has no ratio: all of a grid, and finite pictures."""
    data = Gaussian()
    for model in ("vp", "subvp", "ve", "edm", "linear", "zero-snr"):
        seen = data.denoiser(PATHS[model], "clean").on(PATHS["straight"])
        grid = grids.uniform(100, PATHS["straight"])
        x = torch.randn(1, 1, 2, 2, dtype=torch.float64)
        end = ddim(seen, x, grid, lambda: None)
        assert (end - (data.mean + data.std * x)).abs().max() < 0.03
