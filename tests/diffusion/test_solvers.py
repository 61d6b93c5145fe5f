"""Solvers against closed forms: order of convergence, one and two steps, identities, encoding. See also
test_multistep.py, test_stochastic.py and test_ode.py."""

import itertools
import math
from functools import partial

import pytest
import torch
from gaussian import Gaussian

from mezzotint.core.errors import ConfigError
from mezzotint.diffusion import grids
from mezzotint.diffusion.paths import PATHS
from mezzotint.diffusion.predictions import Denoiser
from mezzotint.diffusion.solvers import (
    DETERMINISTIC,
    SOLVERS,
    STOCHASTIC,
    ddim,
    edm,
    euler,
    heun,
    posterior,
    probability_flow,
    rk45,
)
from mezzotint.diffusion.stepping import ask

DATA = Gaussian()
X = torch.linspace(-2, 2, 9, dtype=torch.float64).view(9, 1, 1, 1)
RISING = ("ddim", "euler", "heun", "edm", "rk45")  # those that encode
LOST = ("straight", "zero-snr", "ot")  # paths with alpha = 0 at t = 1


def no_noise():
    raise AssertionError("a deterministic solver asked for noise")


def fresh_noise():
    return torch.randn_like(X)


def denoiser(path, kind="clean", solver=""):
    """The perfect denoiser; also with a variance, if the solver needs one."""
    perfect = DATA.denoiser(PATHS[path], kind)
    if solver != "ancestral-learned":
        return perfect
    network = perfect.network
    return Denoiser(lambda x, t: torch.cat([network(x, t), 0.4 + 0 * x], 1), PATHS[path], kind, learned_variance=True)


def first(path, grid):
    """The state at the beginning of a grid, for the nine numbers of X as noise."""
    return PATHS[path].at(grid[0]).sigma * X


def flowed_error(solver, path, grid, kind="clean"):
    at, at_end = PATHS[path].at(grid[0]), PATHS[path].at(grid[-1])
    end = solver(denoiser(path, kind), at.sigma * X, grid, no_noise)
    return float((end - DATA.flowed(at.sigma * X, at, at_end)).abs().max())


@pytest.mark.parametrize(
    ("name", "solver", "order", "paths"),
    [
        ("ddim", ddim, 1, PATHS),
        ("edm", edm, 2, PATHS),
        # in t, the velocity of the discrete paths jumps from step to step, and that of others is steep at the ends
        ("euler", euler, 1, ("straight", "ot", "vp", "edm")),
        ("heun", heun, 2, ("straight", "ot", "vp", "subvp", "edm")),
    ],
)
def test_the_order_of_convergence(truth, name, solver, order, paths):
    """From sigma / alpha = 10 to 0.1 in equal steps of its logarithm, compared with the exact solution of the ODE."""
    worst = 0.0
    for path in paths:
        errors = []
        for steps in (64, 128):
            levels = 10 * 0.01 ** torch.linspace(0, 1, steps + 1, dtype=torch.float64)
            errors.append(flowed_error(solver, path, PATHS[path].time_of(levels)))
        worst = max(worst, abs(math.log2(errors[0] / errors[1]) - order))
    what = f"order of convergence, N = 64 to 128, worst of {len(paths)} paths"
    truth(f"solver {name}", what, str(order), worst, 0.05)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_few_steps_on_every_path_and_grid(solver):
    few = (1, 2, 3) if solver != "rk45" else (1,)  # which does not look at what is in between
    for path, steps, grid, kind in itertools.product(PATHS, few, ("uniform", "karras"), ("clean", "velocity")):
        times = grids.GRIDS[grid](steps, PATHS[path])
        end = SOLVERS[solver](denoiser(path, kind, solver), first(path, times), times, fresh_noise)
        assert end.isfinite().all(), (path, steps, grid, kind)


@pytest.mark.parametrize("solver", [solver for solver in SOLVERS if solver not in ("rk45", "edm-stochastic")])
def test_one_step_is_the_expected_picture(truth, solver):
    """On every path that ends at sigma = 0."""
    worst = 0.0
    for path in [path for path in PATHS if path != "ot"]:
        grid = grids.uniform(1, PATHS[path])
        x, at = first(path, grid), PATHS[path].at(grid[0])
        end = SOLVERS[solver](denoiser(path, "clean", solver), x, grid, no_noise)
        worst = max(worst, float((end - DATA.clean(x, at)).abs().max()))
    truth(f"solver {solver}", "one step on every path", "E[clean | x]", worst, 1e-15)


@pytest.mark.parametrize("solver", ["ddim", "euler", "edm", "dpm++2m", "dpm++3m", "unipc", "lms"])
def test_one_step_keeps_the_noise_that_a_path_ends_with(truth, solver):
    """The optimal-transport path ends at sigma_min, and one step there at alpha c + sigma_min n."""
    path = PATHS["ot"]
    grid = grids.uniform(1, path)
    expected = DATA.clean(X, path.at(grid[0])) + 1e-4 * DATA.noise(X, path.at(grid[0]))
    end = SOLVERS[solver](denoiser("ot"), X, grid, no_noise)
    truth(f"solver {solver}, ot path", "one step", "c + sigma_min n", (end - expected).abs().max(), 1e-15)


def test_one_step_with_churn_is_the_expected_picture(truth):
    """Algorithm 2 of Karras et al. 2022 first makes x noisier, by gamma = sqrt(2) - 1 at the most."""
    path, z = PATHS["edm"], torch.randn_like(X)
    grid = torch.tensor([0.5, 0.0], dtype=torch.float64)  # sigma = 40, below S_max
    at, at_hat = path.at(grid[0]), path.at(grid[0] * 2**0.5)
    x_hat = 40 * X + 1.003 * (at_hat.sigma**2 - at.sigma**2).sqrt() * z
    end = SOLVERS["edm-stochastic"](denoiser("edm"), 40 * X, grid, lambda: z)
    error = (end - DATA.clean(x_hat, at_hat)).abs().max()
    truth("solver edm-stochastic", "one step", "E[clean | noisier x]", error, 1e-15)


@pytest.mark.parametrize(
    "solver", ["edm", "dpm++2m", "dpm++3m", "unipc", "lms", "euler-maruyama", "predictor-corrector"]
)
def test_the_first_step_from_pure_noise_is_that_of_ddim(truth, solver):
    times, worst = torch.tensor([1.0, 0.6], dtype=torch.float64), 0.0
    for path in LOST:
        assert PATHS[path].at(times[0]).alpha == 0
        end = SOLVERS[solver](denoiser(path), X, times, no_noise)
        worst = max(worst, float((end - ddim(denoiser(path), X, times, no_noise)).abs().max()))
    truth(f"solver {solver}", "a step from alpha = 0", "ddim", worst, 1e-15)


@pytest.mark.parametrize("solver", ["ddim", "edm", "dpm++2m", "dpm++3m", "unipc", "lms"])
def test_those_that_count_in_noise_levels_do_not_see_the_path(truth, solver):
    """At the same noise levels sigma / alpha, x / alpha is the same on every path (Karras et al. 2022, section 2)."""
    levels, ends = torch.tensor([12.0, 5.0, 2.0, 0.9, 0.3, 0.1], dtype=torch.float64), []
    for path in PATHS.values():
        times = path.time_of(levels)
        x = path.at(times[0]).alpha * 12 * X
        ends.append(SOLVERS[solver](DATA.denoiser(path, "clean"), x, times, no_noise) / path.at(times[-1]).alpha)
    worst = max(float((end - ends[0]).abs().max()) for end in ends)
    truth(f"solver {solver}", "x / alpha at the same sigma / alpha", "on every other path", worst, 1e-14)


@pytest.mark.parametrize(
    ("solver", "tolerance"),
    [("euler", 0.1), ("ddim", 0.1), ("heun", 0.01), ("edm", 0.02), ("dpm++2m", 0.02), ("dpm++3m", 5e-3),
     ("unipc", 0.01), ("lms", 0.01), ("rk45", 4e-3)],
)  # fmt: skip
def test_fifty_steps_arrive(truth, solver, tolerance):
    """Every deterministic solver follows the ODE on every path down to the smallest noise that is trained, and on to
    the picture. In t, sigma of the variance-exploding path falls by a factor of 5000: Euler needs far more steps."""
    worst = 0.0
    for path in PATHS:
        if path == "ve" and solver in ("euler", "heun"):
            continue
        grid = grids.karras(50, PATHS[path])
        worst = max(worst, flowed_error(SOLVERS[solver], path, grid))
    truth(f"solver {solver}", "50 Karras steps, worst of all paths", "the ODE's solution", worst, tolerance)


def test_on_the_straight_path_ddim_is_euler(truth):
    perfect, grid = denoiser("straight", "velocity"), grids.uniform(13, PATHS["straight"])
    for name, times in (("falling", grid), ("rising", grid.flip(0)[:-1])):
        error = (ddim(perfect, X, times, no_noise) - euler(perfect, X, times, no_noise)).abs().max()
        truth("solver ddim", f"on the straight path, {name}", "euler", error, 3e-15)


def test_the_posterior_is_bayes_rule(truth):
    """q(x_s | x_t, c) = q(x_t | x_s) q(x_s | c) / q(x_t | c), by completing the square."""
    worst = 0.0
    for path in PATHS.values():
        at_t, at_s = path.at(torch.tensor(0.7)), path.at(torch.tensor(0.4))
        q = posterior(at_t, at_s)
        a = at_t.alpha / at_s.alpha
        precision = 1 / at_s.sigma**2 + a**2 / q.large_variance
        clean, x = 0.37, -0.81
        mean = (at_s.alpha * clean / at_s.sigma**2 + a * x / q.large_variance) / precision
        worst = max(worst, abs(float(q.small_variance * precision - 1)))
        worst = max(worst, abs(float(q.of_clean * clean + q.of_x * x - mean)))
    truth("posterior", "mean and variance on every path", "Bayes' rule", worst, 3e-15)


def test_a_picture_is_encoded_and_comes_back(truth):
    """DDIM's inversion: both ways are of order 1, and so is the round trip; the code is where the exact ODE ends."""
    codes, round_trips, halvings = [], [], []
    for path in PATHS:
        errors, kind = [], "velocity" if path == "straight" else "clean"
        start, perfect = PATHS[path].at(torch.tensor(PATHS[path].start)), denoiser(path, kind)
        for steps in (60, 120):
            grid = grids.karras(steps, PATHS[path])
            code, end = ddim(perfect, X, grid.flip(0), no_noise), PATHS[path].at(grid[0])
            errors.append(float((ddim(perfect, code, grid, no_noise) - X).abs().max()))
        # the first step asks the network about a clean picture at the smallest noise, which more steps do not mend
        codes.append(float((code - DATA.flowed(X, start, end)).abs().max() / DATA.spread(end)))
        round_trips.append(errors[-1])
        halvings.append(abs(errors[0] / errors[1] - 2))
    truth("ddim", "codes from 120 steps on every path, in deviations", "the ODE's solution", max(codes), 0.25)
    truth("ddim", "round trip of 120 steps on every path", "the picture", max(round_trips), 0.25)
    truth("ddim", "round trip, N = 60 to 120, every path", "half the error", max(halvings), 0.1)


@pytest.mark.parametrize("solver", RISING)
@pytest.mark.parametrize("path", PATHS)
def test_every_encoder_knows_every_path_and_prediction(solver, path):
    times = grids.uniform(20, PATHS[path]).flip(0)
    kinds = ["clean", "v", "edm"]
    if path in ("straight", "ot", "edm"):
        kinds.append("velocity")  # elsewhere the network itself has none to predict at t = 0
    if path not in LOST:
        kinds.append("noise")  # elsewhere it does not tell the picture at t = 1
    for kind in kinds:
        code = SOLVERS[solver](denoiser(path, kind), X, times, no_noise)
        assert code.isfinite().all()
        assert (code.flatten().diff() > 0).all()  # the flow keeps the order of its points


@pytest.mark.parametrize("solver", [solver for solver in SOLVERS if solver not in RISING])
def test_the_others_refuse_to_rise(solver):
    times = grids.uniform(4, PATHS["vp"]).flip(0)
    with pytest.raises(ConfigError, match="use ddim, euler, heun, edm or rk45"):
        SOLVERS[solver](denoiser("vp", "clean", solver), X, times, fresh_noise)


def test_a_random_ddim_refuses_to_rise():
    with pytest.raises(ConfigError, match="times that fall"):
        ddim(denoiser("vp"), X, grids.uniform(4, PATHS["vp"]).flip(0), fresh_noise, eta=0.5)


@pytest.mark.parametrize(
    ("path", "kind"), [("straight", "velocity"), ("vp", "noise"), ("edm", "clean"), ("ot", "velocity")]
)
def test_the_adaptive_solver_is_as_good_as_its_tolerance(truth, path, kind):
    grid, costs = grids.uniform(1, PATHS[path]), []
    x = first(path, grid)
    early = PATHS[path].start or (0.0 if path == "ot" else 1e-3)
    at_early = PATHS[path].at(torch.tensor(early, dtype=torch.float64))
    there = DATA.flowed(x, PATHS[path].at(grid[0]), at_early)
    exact = there if path == "ot" else DATA.clean(there, at_early)
    for tolerance in (1e-4, 1e-6, 1e-8):
        end = rk45(denoiser(path, kind), x, grid, no_noise, rtol=tolerance, atol=tolerance)
        size = (end - exact).abs().max() / tolerance
        truth(f"solver rk45, {path} path", f"error by tolerance {tolerance:g}", "the ODE's solution", size, 10)
        costs.append(probability_flow(denoiser(path, kind), x, 1.0, early, tolerance, tolerance).evaluations)
    assert costs[0].sum() < costs[1].sum() < costs[2].sum()


def test_the_adaptive_solver_encodes_from_the_picture_itself(truth):
    """Also the way from t = 0 to 0.001, where no velocity is asked for, is gone: it is worth 2e-3 here."""
    path, times = PATHS["straight"], torch.tensor([0.0, 0.5], dtype=torch.float64)
    end = rk45(denoiser("straight", "clean"), X, times, no_noise, rtol=1e-9, atol=1e-9)
    error = (end - DATA.flowed(X, path.at(times[0]), path.at(times[1]))).abs().max()
    truth("solver rk45, straight path", "from a picture at t = 0 to t = 0.5", "the ODE's solution", error, 1e-5)


@pytest.mark.parametrize(("path", "early"), [("straight", 1e-3), ("edm", 0.002 / 80), ("linear", 1e-3)])
def test_the_noise_of_a_clean_picture_is_what_the_network_says_of_the_least_noise(path, early):
    """A clean picture tells none; a network that knows the clean picture is asked at the start, or at t = 0.001."""
    told = ask(denoiser(path), X, torch.tensor(0.0, dtype=torch.float64))
    assert torch.equal(told.clean, X)
    expected = DATA.noise(X, PATHS[path].at(torch.tensor(early, dtype=torch.float64)))
    assert (told.noise - expected).abs().max() < 1e-11


def test_the_adaptive_solver_does_not_mix_pictures():
    grid = grids.uniform(1, PATHS["straight"])
    together = rk45(denoiser("straight", "velocity"), X, grid, no_noise)
    for row in range(len(X)):
        assert torch.equal(rk45(denoiser("straight", "velocity"), X[row : row + 1], grid, no_noise)[0], together[row])


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_callback_sees_every_step(solver):
    seen, path = [], PATHS["linear"]
    grid = grids.trailing(5, path)
    SOLVERS[solver](denoiser("linear", "noise", solver), X, grid, fresh_noise, seen.append)
    steps = 1 if solver == "rk45" else 5  # whose steps are each picture's own
    assert [step.number for step in seen] == list(range(steps))
    assert [step.t for step in seen] == grid[:steps].tolist()
    assert all(step.total == steps and step.denoised.clean.shape == X.shape for step in seen)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_leaves_its_arguments_alone(solver):
    x, grid = X.clone(), grids.leading(4, PATHS["linear"])
    SOLVERS[solver](denoiser("linear", "clean", solver), x, grid, fresh_noise)
    assert torch.equal(x, X)
    assert torch.equal(grid, grids.leading(4, PATHS["linear"]))


@pytest.mark.parametrize("solver", [solver for solver in SOLVERS if solver != "rk45"])
def test_the_number_of_evaluations(solver):
    twice = {"heun": 19, "edm": 19, "edm-stochastic": 19, "predictor-corrector": 19}  # once in the last step
    perfect, calls = denoiser("vp", "clean", solver), []

    def network(x, t):
        calls.append(1)
        return perfect.network(x, t)

    counting = Denoiser(network, perfect.path, perfect.kind, learned_variance=perfect.learned_variance)
    SOLVERS[solver](counting, X, grids.uniform(10, PATHS["vp"]), fresh_noise)
    assert len(calls) == twice.get(solver, 10)


@pytest.mark.parametrize("solver", [solver for solver in SOLVERS if solver not in ("rk45", "predictor-corrector")])
def test_float32_is_kept_and_is_enough(truth, solver):
    """The same steps in float32 and float64: coefficients are float64, only the pictures are rounded. At the noisy end
    of the cosine path x / alpha is 20000, and nothing may be the difference of two such numbers."""
    grid, drawn = grids.trailing(20, PATHS["cosine"]), torch.randn(60, *X.shape, dtype=torch.float64)
    ends = []
    for dtype in (torch.float32, torch.float64):
        noises = iter(drawn.to(dtype))
        perfect = denoiser("cosine", "clean", solver)
        ends.append(SOLVERS[solver](perfect, first("cosine", grid).to(dtype), grid, partial(next, noises)))
        assert ends[-1].dtype == dtype
    truth(f"solver {solver}", "float32, 20 steps on the cosine path", "float64", (ends[0] - ends[1]).abs().max(), 1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_deterministic_solvers_are_those_that_ask_for_no_noise(name):
    asked = []

    def noise():
        asked.append(1)
        return torch.zeros_like(X)

    path = PATHS["linear"]
    denoiser = DATA.denoiser(path, "clean")
    if name != "ancestral-learned":  # which needs a variance besides
        SOLVERS[name](denoiser, X, grids.GRIDS["leading"](4, path), noise)
        assert bool(asked) == (name in STOCHASTIC)
    assert (name in DETERMINISTIC) != (name in STOCHASTIC)
