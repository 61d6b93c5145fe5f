"""Stochastic solvers against the exact distribution of Gaussian data, without sampling where they are linear."""

import math
from functools import partial

import pytest
import torch
from gaussian import Gaussian

from mezzotint.core.errors import ConfigError
from mezzotint.diffusion import grids
from mezzotint.diffusion.multistep import dpm_2m
from mezzotint.diffusion.paths import PATHS
from mezzotint.diffusion.predictions import Denoised, Denoiser
from mezzotint.diffusion.solvers import SOLVERS, ancestral, ddim, edm, posterior, predictor_corrector
from mezzotint.diffusion.stochastic import langevin

DATA = Gaussian()
X = torch.linspace(-2, 2, 9, dtype=torch.float64).view(9, 1, 1, 1)
FINITE = [path for path in PATHS if path not in ("straight", "zero-snr", "ot")]  # whose alpha never is 0
LINEAR = {
    "ancestral": ancestral,
    "ancestral-large": partial(ancestral, variance="large"),
    "ddim, eta 0.5": partial(ddim, eta=0.5),
    "euler-maruyama": SOLVERS["euler-maruyama"],
    "reverse-diffusion": partial(predictor_corrector, corrections=0),
    "ancestral predictor": partial(predictor_corrector, predictor="ancestral", corrections=0),
    "dpm++2m-sde": SOLVERS["dpm++2m-sde"],
    "edm, churn": partial(edm, S_churn=20),
}


def seeded(like=X, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(like.shape, generator=generator, dtype=like.dtype)


def probes(steps, spread):
    """A batch and a noise source that lay a sampler bare, without sampling.

    For Gaussian data the perfect denoiser is affine, so every state is a x + sum_i b_i z_i + c. The rows of the batch
    hold the answers to 0, to x = spread, and to each z_i = 1: the first row is the mean, the squared distances of the
    others from it add up to the variance.
    """
    x = torch.zeros(steps + 2, 1, dtype=torch.float64)
    x[1] = spread
    calls = iter(range(steps))

    def noise():
        z = torch.zeros_like(x)
        z[2 + next(calls)] = 1
        return z

    return x, noise


def moments(x):
    """Mean and variance of a state that began as `probes`."""
    return float(x[0]), float((x[1:] - x[0]).square().sum())


def final_variance(solver, path, grid, data=DATA):
    """Of the last state, begun from the exact distribution (around 0)."""
    x, noise = probes(len(grid) - 1, data.spread(path.at(grid[0])))
    return moments(solver(data.denoiser(path, "clean"), x, grid, noise))[1]


@pytest.mark.parametrize("solver", ["ancestral", "ancestral-large", "ancestral-learned"])
def test_the_ancestral_sampler_draws_gaussian_data_with_the_right_moments(truth, solver):
    path = PATHS["linear"]
    grid, network = grids.leading(1000, path), DATA.denoiser(path, "clean").network
    x, noise = probes(1000, 1.0)
    if solver == "ancestral-learned":
        denoiser = Denoiser(lambda x, t: torch.cat([network(x, t), 0 * x], 1), path, "clean", learned_variance=True)
    else:
        denoiser = Denoiser(network, path, "clean")
    mean, variance = moments(SOLVERS[solver](denoiser, x, grid, noise))
    truth(f"solver {solver}", "mean of Gaussian data, 1000 steps", "0.3", abs(mean - 0.3), 1e-5)
    truth(f"solver {solver}", "std of Gaussian data, 1000 steps", "0.5", abs(variance**0.5 - 0.5), 1e-2)


@pytest.mark.parametrize(
    ("name", "path"),
    [("ancestral", "straight"), ("ancestral", "edm"), ("ancestral-large", "edm"), ("ddim, eta 0.5", "cosine"),
     ("euler-maruyama", "vp"), ("euler-maruyama", "straight"), ("euler-maruyama", "edm"), ("euler-maruyama", "subvp"),
     ("reverse-diffusion", "vp"), ("reverse-diffusion", "edm"), ("reverse-diffusion", "straight"),
     ("ancestral predictor", "vp")],
)  # fmt: skip
def test_the_variance_converges_with_order_one(truth, name, path):
    """From the exact distribution at sigma / alpha = 10 to 0.1, where the state still has noise in it."""
    errors = []
    for steps in (256, 512):
        grid = PATHS[path].time_of(10 * 0.01 ** torch.linspace(0, 1, steps + 1, dtype=torch.float64))
        exact = float(DATA.spread(PATHS[path].at(grid[-1]))) ** 2
        errors.append(abs(final_variance(LINEAR[name], PATHS[path], grid) / exact - 1))
    order = math.log2(errors[0] / errors[1])
    truth(f"solver {name}, {path} path", "order of the variance, N = 256 to 512", "1", abs(order - 1), 0.03)
    truth(f"solver {name}, {path} path", "variance after 512 steps, relative", "exact", errors[1], 0.02)


@pytest.mark.parametrize(("name", "path"), [("edm, churn", "edm"), ("dpm++2m-sde", "vp"), ("dpm++2m-sde", "straight")])
def test_the_variance_converges_with_order_two(truth, name, path):
    """Churn adds its noise exactly, so that only Heun's steps err; the SDE form of 2M adds the exact variance too."""
    errors = []
    for steps in (128, 256):
        grid = PATHS[path].time_of(10 * 0.01 ** torch.linspace(0, 1, steps + 1, dtype=torch.float64))
        exact = float(DATA.spread(PATHS[path].at(grid[-1]))) ** 2
        errors.append(abs(final_variance(LINEAR[name], PATHS[path], grid) / exact - 1))
    order = math.log2(errors[0] / errors[1])
    truth(f"solver {name}, {path} path", "order of the variance, N = 128 to 256", "2", abs(order - 2), 0.06)


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("ancestral", 0.0),
        ("ancestral predictor", 0.0),
        ("ddim, eta 0.5", 0.0),
        ("dpm++2m-sde", 0.0),
        ("edm, churn", 0.0),
    ],
)
def test_the_variance_is_exact_for_data_at_one_point(truth, name, std):
    """The clean picture is then known, and every step that keeps the variance of x_s given it is exact: Ho et al.
    2020, section 3.2; Lu et al. 2022, proposition 4.1, for a constant."""
    worst, data = 0.0, Gaussian(0.0, std)
    for path in FINITE:
        if name == "edm, churn" and path not in ("edm", "vp"):
            continue  # discrete paths end at t = 1, where less noise is added than asked
        for steps in (2, 10):
            grid = PATHS[path].time_of(5 * 0.02 ** torch.linspace(0, 1, steps + 1, dtype=torch.float64))
            exact = float(PATHS[path].at(grid[-1]).sigma) ** 2
            worst = max(worst, abs(final_variance(LINEAR[name], PATHS[path], grid, data) / exact - 1))
    truth(f"solver {name}", "variance for data at one point, 2 and 10 steps, relative", "exact", worst, 3e-15)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_any_share_of_the_noise_keeps_data_at_one_point_there(truth, eta):
    """The SDE form of 2M, whatever its eta: x_s is normal of mean alpha_s c and deviation sigma_s after every step."""
    path, data = PATHS["vp"], Gaussian(0.3, 0.0)
    grid = path.time_of(5 * 0.02 ** torch.linspace(0, 1, 7, dtype=torch.float64))
    at, at_end = path.at(grid[0]), path.at(grid[-1])
    x, noise = probes(6, at.sigma)
    mean, variance = moments(dpm_2m(data.denoiser(path, "clean"), x + at.alpha * 0.3, grid, noise, eta=eta))
    error = max(abs(mean - 0.3 * at_end.alpha), abs(variance / at_end.sigma**2 - 1))
    truth("solver dpm++2m-sde", f"mean and variance for data at one point, eta = {eta:g}", "exact", error, 3e-15)


@pytest.mark.parametrize("steps", [2, 10, 1000])
def test_the_large_variance_is_exact_for_standard_normal_data(truth, steps):
    """Ho et al. 2020, section 3.2."""
    data, path = Gaussian(0.0, 1.0), PATHS["linear"]
    grid = grids.leading(steps, path)
    x, noise = probes(steps, data.spread(path.at(grid[0])))
    worst = 0.0

    def compare(step):
        nonlocal worst
        _, variance = moments(step.denoised.x)
        worst = max(worst, abs(variance - float(data.spread(step.denoised.at)) ** 2))

    SOLVERS["ancestral-large"](data.denoiser(path, "clean"), x, grid, noise, compare)
    truth("solver ancestral-large", f"variance at each of {steps} steps, data of std 1", "exact", worst, 2e-14)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "karras"])
@pytest.mark.parametrize("path", ["linear", "edm", "straight"])
def test_ddim_with_eta_one_is_the_ancestral_sampler(truth, spacing, path):
    grid, denoiser = grids.GRIDS[spacing](13, PATHS[path]), DATA.denoiser(PATHS[path], "clean")
    x = PATHS[path].at(grid[0]).sigma * X
    error = (ddim(denoiser, x, grid, seeded(), eta=1.0) - ancestral(denoiser, x, grid, seeded())).abs().max()
    truth(f"solver ddim, {path} path", f"eta = 1, 13 steps, {spacing}", "ancestral, small variance", error, 5e-15)


def sharing(share, path="linear"):
    network = DATA.denoiser(PATHS[path], "noise").network
    return Denoiser(lambda x, t: torch.cat([network(x, t), 2 * share - 1 + 0 * x], 1), PATHS[path], "noise",
                    learned_variance=True)  # fmt: skip


@pytest.mark.parametrize(("share", "name"), [(0.0, "small"), (1.0, "large")])
def test_a_learned_variance_lies_between_the_small_and_the_large(truth, share, name):
    """Survey, eq. 87: at its ends it is one or the other."""
    grid = grids.leading(13, PATHS["linear"])
    learned = ancestral(sharing(share), X, grid, seeded(), variance="learned")
    error = (learned - ancestral(DATA.denoiser(PATHS["linear"], "noise"), X, grid, seeded(), variance=name)).abs().max()
    truth("solver ancestral-learned", f"v = {share:g} everywhere, 13 steps", f"{name} variance", error, 1e-15)


def test_a_learned_variance_is_equation_87_in_each_number(truth):
    share, path = torch.rand(X.shape, dtype=torch.float64), PATHS["linear"]
    times, z = torch.tensor([0.6, 0.3], dtype=torch.float64), torch.randn_like(X)
    q = posterior(path.at(times[0]), path.at(times[1]))
    drawn = ancestral(sharing(share), X, times, lambda: z, variance="learned")
    mean = ancestral(sharing(share), X, times, lambda: 0 * z, variance="learned")
    variance = torch.exp(share * q.large_variance.log() + (1 - share) * q.small_variance.log())
    truth(
        "solver ancestral-learned", "one step", "survey eq. 87", (drawn - mean - variance.sqrt() * z).abs().max(), 1e-15
    )


def test_without_a_learned_variance_there_is_none():
    with pytest.raises(ConfigError, match="not learned its variance"):
        ancestral(DATA.denoiser(PATHS["linear"]), X, grids.leading(2, PATHS["linear"]), seeded(), variance="learned")


class Guided:
    """A denoiser with a shift: what it is told of each step's gradient."""

    def __init__(self, shift, share=None):
        self.plain, self.shift, self.share, self.path = (
            DATA.denoiser(PATHS["linear"], "noise"),
            shift,
            share,
            PATHS["linear"],
        )

    def __call__(self, x, t):
        d = self.plain(x, t)
        return Denoised(d.x, d.y, d.kind, d.at, self.share, self.shift)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_a_shift_moves_the_mean_by_the_variance(truth, variance):
    """Survey, eq. 91: mu + Sigma g, in every step, also the last, in which Sigma is not the noise that is added.

    There the small variance is 0, the large one sigma^2, and the learned one goes from the small one of the step before
    (Nichol and Dhariwal 2021) to the large one."""
    path, g, v = PATHS["linear"], torch.randn_like(X), torch.rand(X.shape, dtype=torch.float64)
    times = torch.tensor([0.6, 0.3, 0.0], dtype=torch.float64)
    before, last = posterior(path.at(times[0]), path.at(times[1])), posterior(path.at(times[1]), path.at(times[2]))

    def sigma(q, small):
        return {"small": q.small_variance, "large": q.large_variance,
                "learned": small ** (1 - v) * q.large_variance**v}[variance]  # fmt: skip

    x, worst = X, 0.0
    for i, q in enumerate((before, last)):
        part = times if i else times[:2]
        ours = ancestral(Guided(g, v), X, part, lambda: 0 * X, variance=variance)
        plain = ancestral(DATA.denoiser(path, "noise"), x, times[i : i + 2], lambda: 0 * X)
        expected = plain + sigma(q, before.small_variance) * g
        worst = max(worst, float((ours - expected).abs().max()))
        x = expected
    truth(f"solver ancestral, {variance} variance", "two guided steps", "survey eq. 91", worst, 1e-15)


def test_a_single_step_with_a_learned_variance_moves_by_the_large_one(truth):
    times, g = torch.tensor([0.3, 0.0], dtype=torch.float64), torch.randn_like(X)
    ours = ancestral(Guided(g, torch.rand_like(X)), X, times, seeded(), variance="learned")
    plain = ancestral(DATA.denoiser(PATHS["linear"], "noise"), X, times, seeded())
    error = (ours - plain - PATHS["linear"].at(times[0]).sigma ** 2 * g).abs().max()
    truth("solver ancestral, learned variance", "one guided step", "sigma^2 g", error, 1e-15)


def test_euler_maruyama_is_the_reverse_sde(truth):
    """Song et al. 2021, eq. 6, for the variance-preserving SDE: dx = -beta / 2 x dt - beta score dt + sqrt(beta) dw."""
    times, z, path = torch.tensor([0.5, 0.45], dtype=torch.float64), torch.randn_like(X), PATHS["vp"]
    beta, dt, denoiser = 0.1 + 19.9 * 0.5, -0.05, DATA.denoiser(PATHS["vp"], "clean")
    score = -DATA.noise(X, path.at(times[0])) / path.at(times[0]).sigma
    expected = X + dt * (-beta / 2 * X - beta * score) + math.sqrt(-dt * beta) * z
    error = (SOLVERS["euler-maruyama"](denoiser, X, times, lambda: z) - expected).abs().max()
    truth("solver euler-maruyama, vp path", "one step", "Song et al. 2021, eq. 6 and 11", error, 1e-15)


def test_the_predictor_is_reverse_diffusion(truth):
    """Song et al. 2021, algorithm 3: x <- (2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z, on the discrete path."""
    path, z = PATHS["linear"], torch.randn_like(X)
    times, beta = torch.tensor([500, 499], dtype=torch.float64) / 1000, float(path.betas(1000)[499])
    score = -DATA.noise(X, path.at(times[0])) / path.at(times[0]).sigma
    expected = (2 - math.sqrt(1 - beta)) * X + beta * score + math.sqrt(beta) * z
    ours = predictor_corrector(DATA.denoiser(path, "clean"), X, times, lambda: z, corrections=0)
    truth("solver predictor-corrector", "one prediction", "algorithm 3", (ours - expected).abs().max(), 1e-14)


def test_the_corrector_follows_the_norms_of_each_picture(truth):
    """Song et al. 2021, algorithm 5: e = 2 a (r |z| / |g|)^2, for each picture by itself."""
    x, g, z = (torch.randn(3, 1, 4, 4, dtype=torch.float64) for _ in range(3))
    worst = 0.0
    for k, moved in enumerate(langevin(x, g, z, 0.16, 0.9)):
        e = 2 * 0.9 * (0.16 * z[k].norm() / g[k].norm()) ** 2
        worst = max(worst, float((moved - (x[k] + e * g[k] + torch.sqrt(2 * e) * z[k])).abs().max()))
    truth("Langevin corrector", "three pictures at once", "algorithm 5, one by one", worst, 1e-15)


def test_a_correction_is_langevins_step_at_the_new_time(truth):
    """Song et al. 2021, algorithm 5: e = 2 (1 - beta) (r |z| / |score|)^2 with r = 0.16, after one prediction."""
    path, z = PATHS["linear"], torch.randn(X.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times, beta = torch.tensor([900, 899], dtype=torch.float64) / 1000, float(path.betas(1000)[899])
    uncorrected, corrected = (
        predictor_corrector(DATA.denoiser(path, "clean"), X, times, lambda: z, **options)
        for options in ({"corrections": 0}, {})
    )
    score = -DATA.noise(uncorrected, path.at(times[1])) / path.at(times[1]).sigma
    e = 2 * (1 - beta) * (0.16 * z / score) ** 2  # of one number the norm is its size
    expected = uncorrected + e * score + torch.sqrt(2 * e) * z
    truth("solver predictor-corrector", "one correction", "algorithm 5", (corrected - expected).abs().max(), 1e-14)


@pytest.mark.parametrize("r", [0.1, 0.3])
@pytest.mark.parametrize("variance", [0.5, 2.0])
def test_the_corrector_brings_the_variance_nearer(truth, r, variance):
    """In a large picture the norms are what they are on average: for a score -x / S and numbers of variance V,
    e = 2 r^2 S^2 / V, and a step makes V into (1 - e / S)^2 V + 2 e. It is on the way to S."""
    S, V, x = 1.0, variance, torch.randn(1, 1, 1000, 1000) * variance**0.5
    draw = seeded(x)
    for _ in range(3):
        x, e = langevin(x, -x / S, draw(), r), 2 * r**2 * S**2 / V
        V = (1 - e / S) ** 2 * V + 2 * e
    truth("Langevin corrector", f"variance from {variance:g} towards 1, r = {r:g}, a million numbers",
          "closed form", abs(float(x.var()) / V - 1), 2 * math.sqrt(2 / 1e6))  # fmt: skip
    assert abs(V - S) < abs(variance - S)


def test_corrections_mend_what_coarse_predictions_leave(truth):
    """One large picture stands for many numbers: with Langevin's steps its variance is nearer to that of the data."""
    path, data, n = PATHS["vp"], Gaussian(0.0, 0.5), 300
    grid = torch.cat([grids.uniform(40, path)[:-1], torch.tensor([1e-3], dtype=torch.float64)])
    x, errors = torch.randn(1, 1, n, n, dtype=torch.float64), []
    for corrections in (0, 2):
        end = predictor_corrector(data.denoiser(path, "clean"), x, grid, seeded(x), corrections=corrections, r=0.2)
        errors.append(abs(float(end.var() / data.spread(path.at(grid[-1])) ** 2) - 1))
    truth("solver predictor-corrector, vp path", "variance, 40 steps with two corrections, by that without", "1",
          errors[1] / errors[0], 0.5)  # fmt: skip


@pytest.mark.parametrize(
    ("solver", "name", "tolerance"), [("predictor-corrector", "vp", 0.02), ("predictor-corrector", "ve", 0.02),
                                      ("edm-stochastic", "edm", 0.01), ("edm-stochastic", "vp", 0.01)]
)  # fmt: skip
def test_the_moments_of_solvers_as_they_are_registered(truth, solver, name, tolerance):
    """From the exact distribution at sigma / alpha = 10 to 0.1 in 200 steps; a large picture stands for many numbers,
    as Langevin's norms are those of a picture. The extra noise of "edm-stochastic" (S_noise 1.003) is meant to stay."""
    path, n = PATHS[name], 200
    grid = path.time_of(10 * 0.01 ** torch.linspace(0, 1, 201, dtype=torch.float64))
    begin, after = path.at(grid[0]), path.at(grid[-1])
    draw = seeded(torch.empty(1, 1, n, n, dtype=torch.float64))
    x = begin.alpha * DATA.mean + DATA.spread(begin) * draw()
    end = SOLVERS[solver](DATA.denoiser(path, "clean"), x, grid, draw)
    mean = float((end.mean() - after.alpha * DATA.mean) / DATA.spread(after))
    truth(f"solver {solver}, {name} path", "mean after 200 steps, in deviations", "exact", abs(mean), tolerance)
    spread = float(end.std() / DATA.spread(after)) - 1
    truth(f"solver {solver}, {name} path", "deviation after 200 steps, relative", "exact", abs(spread), tolerance)


@pytest.mark.parametrize("solver", ["euler-maruyama", "predictor-corrector"])
def test_two_steps_written_out(truth, solver):
    """On EDM's path, where the drift is 0 and sigma 80 t: from 80 to 8, and the expected picture there."""
    path, z = PATHS["edm"], [seeded(seed=k)() for k in range(2)]
    x, draws = 80 * X, iter(z)
    grid = torch.tensor([1.0, 0.1, 0.0], dtype=torch.float64)
    end = SOLVERS[solver](DATA.denoiser(path, "clean"), x, grid, lambda: next(draws))

    def score(x, sigma):
        return -(x - DATA.mean) / (DATA.std**2 + sigma**2)

    if solver == "euler-maruyama":  # g^2 dt = 2 sigma (80 - 8)
        x = x + 2 * 80 * 72 * score(x, 80.0) + math.sqrt(2 * 80 * 72) * z[0]
    else:
        b = 80**2 - 8**2
        x = x + b * score(x, 80.0) + math.sqrt(b) * z[0]
        e = 2 * (0.16 * z[1].abs() / score(x, 8.0).abs()) ** 2
        x = x + e * score(x, 8.0) + torch.sqrt(2 * e) * z[1]
    expected = x + 8**2 * score(x, 8.0)  # Tweedie
    error = ((end - expected) / expected).abs().max()
    truth(f"solver {solver}", "two steps on the edm path, relative", "written out", error, 1e-12)


def test_corrections_do_not_mix_pictures():
    path, x = PATHS["ve"], 100 * torch.randn(3, 1, 4, 4, dtype=torch.float64)
    grid = grids.exponential(6, path)
    together = predictor_corrector(DATA.denoiser(path, "clean"), x, grid, seeded(x))
    for k in range(3):
        draw = seeded(x)
        rows = iter([draw()[k : k + 1] for _ in range(12)])
        alone = predictor_corrector(DATA.denoiser(path, "clean"), x[k : k + 1], grid, partial(next, rows))
        assert (alone[0] - together[k]).abs().max() < 1e-12


def test_churn_adds_noise_only_between_its_bounds():
    grid, calls = grids.karras(18, PATHS["edm"]), []

    def noise():
        calls.append(1)
        return torch.randn_like(X)

    SOLVERS["edm-stochastic"](DATA.denoiser(PATHS["edm"], "clean"), 80 * X, grid, noise)
    levels = 80 * grid[:-1]
    assert len(calls) == int(((levels >= 0.05) & (levels <= 50)).sum())
    assert 0 < len(calls) < 18


@pytest.mark.parametrize(("churn", "gamma"), [(5.0, 0.1), (20.0, 0.4), (40.0, 2**0.5 - 1)])
def test_churn_raises_the_noise_level_by_its_share_of_each_step(churn, gamma):
    """Karras et al. 2022, algorithm 2: sigma^ = sigma + gamma sigma, gamma = min(S_churn / N, sqrt(2) - 1), N = 50."""
    path, levels = PATHS["edm"], []
    grid = grids.karras(50, path)
    look = lambda step: levels.append(step.denoised.at.ratio)  # noqa: E731
    edm(DATA.denoiser(path, "clean"), 80 * X, grid, seeded(), look, S_churn=churn)
    grown = torch.stack(levels) / path.at(grid[:-1]).ratio
    assert (grown - 1 - gamma).abs().max() < 1e-14
