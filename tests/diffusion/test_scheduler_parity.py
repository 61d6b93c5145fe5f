"""Whole trajectories beside diffusers 0.42.1's schedulers, and where those are wrong.

Both sides are given the same x, the same network outputs and the same noise. diffusers keeps alpha_bar and its noise
levels in float32 (see test_paths.py), so its tables are replaced by ours: what is compared is the arithmetic of the
steps. Those of its schedulers that also round each state to float32 are compared to within that.
"""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from gaussian import Gaussian

from mezzotint.diffusion import grids
from mezzotint.diffusion.paths import PATHS
from mezzotint.diffusion.predictions import Denoiser, unit
from mezzotint.diffusion.solvers import SOLVERS, ancestral, ddim, euler, heun, predictor_corrector
from mezzotint.diffusion.stepping import half_log_snr

pytestmark = [
    pytest.mark.oracles,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # between diffusers and numpy
]
diffusers = pytest.importorskip("diffusers")

STEPS = [1, 2, 10, 13, 50]
SPACINGS = ["leading", "trailing", "linspace"]
LINEAR = PATHS["linear"]
X = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
THEIRS = "diffusers 0.42.1 "


def network(x, index):
    """Some smooth function of the picture and the time index."""
    index = torch.as_tensor(index, dtype=torch.float64)  # diffusers counts in integers
    return torch.tanh(0.8 * x + 0.1) * (0.9 + 1e-4 * index) + 0.05 * torch.sin(index / 100)


def ours_on(path, kind="noise", function=network, **options):
    """The same function as a denoiser."""
    return Denoiser(lambda x, t: function(x, path.network_time(t)), path, kind, **options)


def seeded(dtype=torch.float64, seed=7):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(X.shape, generator=generator, dtype=dtype).double()


def scheduler(kind, path=LINEAR, **config):
    made = kind(**config)
    made.alphas_cumprod = path.at(torch.arange(1, 1001).double() / 1000).alpha ** 2
    return made


def their_trajectory(made, steps, function=network, **options):
    """x before each step, and at the end."""
    made.set_timesteps(steps)
    generator, x, states = torch.Generator().manual_seed(7), X, [X]
    for t in made.timesteps:
        x = made.step(function(x, t), t, x, generator=generator, **options).prev_sample
        states.append(x)
    return states


def our_trajectory(solver, grid, denoiser=None, x=X, noise=None):
    states = []
    denoiser = denoiser or ours_on(LINEAR)
    end = solver(denoiser, x, grid, noise or seeded(), lambda step: states.append(step.denoised.x))
    return [*states, end]


def largest(ours, theirs):
    assert len(ours) == len(theirs)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs))


def worst_of_all_steps(compare):
    """The largest error of `compare(N)` for every N."""
    return max(compare(steps) for steps in STEPS)


def at_indices(timesteps):
    """Our grid of their training indices."""
    unique = torch.as_tensor(timesteps).double().unique_consecutive()
    return torch.cat([(unique + 1) / 1000, unique.new_zeros(1)])


def with_levels(made, steps, path=LINEAR):
    """Their scheduler with our float64 noise levels at its own times, and our grid of those times."""
    made.set_timesteps(steps)
    grid = at_indices(made.timesteps)
    r = path.at(grid).ratio
    made.sigmas = torch.cat([r[:1], r[1:-1].repeat_interleave(2), r[-1:]]) if len(made.sigmas) > len(grid) else r
    return made, grid


# --- Schedulers that count in alpha_bar, all in float64 --------------------------------------------------------------


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ancestral(truth, variance, spacing):
    def compare(steps):
        made = scheduler(diffusers.DDPMScheduler, clip_sample=False, variance_type=f"fixed_{variance}",
                         timestep_spacing=spacing)  # fmt: skip
        ours = our_trajectory(partial(ancestral, variance=variance), grids.GRIDS[spacing](steps, LINEAR))
        theirs = their_trajectory(made, steps)
        if spacing == "trailing":  # diffusers adds noise to the finished picture, see below
            ours, theirs = ours[:-1], theirs[:-1]
        return largest(ours, theirs)

    truth(f"ancestral, {variance} variance", f"N in {STEPS}, {spacing}", THEIRS + "DDPMScheduler",
          worst_of_all_steps(compare), 2e-14)  # fmt: skip


def test_ancestral_with_a_learned_variance(truth):
    def twice(x, index):
        y = network(x, index)
        return torch.cat([y, torch.tanh(2 * y - x)], 1)

    def compare(steps):
        made = scheduler(diffusers.DDPMScheduler, clip_sample=False, variance_type="learned_range",
                         timestep_spacing="leading")  # fmt: skip
        denoiser = ours_on(LINEAR, "noise", twice, learned_variance=True)
        ours = our_trajectory(SOLVERS["ancestral-learned"], grids.leading(steps, LINEAR), denoiser)
        return largest(ours, their_trajectory(made, steps, twice))

    truth("ancestral, learned variance", f"N in {STEPS}, leading", THEIRS + "DDPMScheduler, learned_range",
          worst_of_all_steps(compare), 5e-14)  # fmt: skip


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(truth, eta):
    def compare(steps):
        made = scheduler(diffusers.DDIMScheduler, clip_sample=False, timestep_spacing="leading")
        # Where T / N is no whole number, diffusers steps by floor(T / N), which is right for this spacing alone.
        ours = our_trajectory(partial(ddim, eta=eta), grids.leading(steps, LINEAR))
        return largest(ours, their_trajectory(made, steps, eta=eta))

    truth(f"ddim, eta {eta}", f"N in {STEPS}, leading", THEIRS + "DDIMScheduler", worst_of_all_steps(compare), 5e-15)


@pytest.mark.parametrize(("kind", "name"), [("clean", "sample"), ("v", "v_prediction")])
def test_ddim_with_other_predictions(truth, kind, name):
    def compare(steps):
        made = scheduler(diffusers.DDIMScheduler, clip_sample=False, timestep_spacing="leading", prediction_type=name)
        ours = our_trajectory(ddim, grids.leading(steps, LINEAR), ours_on(LINEAR, kind))
        return largest(ours, their_trajectory(made, steps))

    truth(f"ddim, {kind} prediction", f"N in {STEPS}, leading", THEIRS + "DDIMScheduler", worst_of_all_steps(compare),
          2e-14)  # fmt: skip


def test_ddim_with_clipping(truth):
    def compare(steps):
        made = scheduler(diffusers.DDIMScheduler, clip_sample=True, timestep_spacing="leading")
        ours = our_trajectory(ddim, grids.leading(steps, LINEAR), ours_on(LINEAR, clip=True))
        return largest(ours, their_trajectory(made, steps, use_clipped_model_output=True))

    truth("ddim, clipped", f"N in {STEPS}, leading", THEIRS + "DDIMScheduler", worst_of_all_steps(compare), 2e-14)


def test_ddim_from_pure_noise(truth):
    """Zero terminal SNR (Lin et al. 2024): alpha is 0 at the first of the trailing times, and v is predicted."""
    path = PATHS["zero-snr"]

    def compare(steps):
        made = scheduler(diffusers.DDIMScheduler, path, clip_sample=False, timestep_spacing="trailing",
                         prediction_type="v_prediction")  # fmt: skip
        ours = our_trajectory(ddim, grids.trailing(steps, path), ours_on(path, "v"))
        theirs = their_trajectory(made, steps)
        return largest(ours[:-1], theirs[:-1])  # at N = 1, 2, 10, 50 its steps are right but for the last

    error = max(compare(steps) for steps in STEPS if 1000 % steps == 0)
    truth("ddim, zero-snr path", "N in [1, 2, 10, 50], trailing", THEIRS + "DDIMScheduler", error, 1e-14)


def test_the_inverse_of_ddim(truth):
    """Encoding, with a network that is not told the time (see below for one that is)."""

    def timeless(x, index):
        return network(x, 0)

    def compare(steps):
        made = scheduler(diffusers.DDIMInverseScheduler, clip_sample=False, timestep_spacing="leading")
        made.set_timesteps(steps)
        x, theirs = X, [X]
        for t in made.timesteps:
            x = made.step(timeless(x, t), int(t), x).prev_sample
            theirs.append(x)
        rising = torch.cat([torch.zeros(1), (made.timesteps + 1) / 1000]).double()
        rising[1:] = (made.timesteps.double() + 1) / 1000
        return largest(our_trajectory(ddim, rising, ours_on(LINEAR, "noise", timeless)), theirs)

    truth("ddim, rising", f"N in {STEPS}, leading", THEIRS + "DDIMInverseScheduler", worst_of_all_steps(compare), 5e-15)


def test_grids_are_those_of_diffusers():
    for spacing, steps in itertools.product(SPACINGS, STEPS):
        made = diffusers.DDPMScheduler(timestep_spacing=spacing)
        made.set_timesteps(steps)
        ours = (grids.GRIDS[spacing](steps, LINEAR)[:-1] * 1000 - 1).round().numpy()
        assert np.array_equal(ours, made.timesteps.numpy()), (spacing, steps)


# --- Schedulers that count in sigma / alpha --------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    ("name", "solver", "tolerance"),
    [("EulerDiscreteScheduler", "ddim", 5e-7), ("HeunDiscreteScheduler", "edm", 2e-12),
     ("LMSDiscreteScheduler", "lms", 1e-14)],
)  # fmt: skip
def test_solvers_in_noise_levels(truth, name, solver, tolerance, spacing):
    """Their state is x / alpha. In that coordinate Euler's step is DDIM's."""

    def compare(steps):
        made, grid = with_levels(getattr(diffusers, name)(timestep_spacing=spacing), steps)
        x, theirs = X / LINEAR.at(grid[0]).alpha, []
        for i, t in enumerate(made.timesteps):
            if name != "HeunDiscreteScheduler" or i % 2 == 0:
                theirs.append(x)
            x = made.step(network(made.scale_model_input(x, t), t), t, x).prev_sample
        ours = our_trajectory(SOLVERS[solver], grid)
        return largest([a / LINEAR.at(t).alpha for a, t in zip(ours, grid)], [*theirs, x])

    truth(f"solver {solver}", f"N in {STEPS}, {spacing}", THEIRS + name, worst_of_all_steps(compare), tolerance)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_ancestral_steps_in_noise_levels(truth, spacing):
    """What k-diffusion calls Euler's ancestral sampler is the posterior's, with its small variance, in x / alpha."""

    def compare(steps):
        made, grid = with_levels(diffusers.EulerAncestralDiscreteScheduler(timestep_spacing=spacing), steps)
        generator, x, theirs = torch.Generator().manual_seed(7), X / LINEAR.at(grid[0]).alpha, []
        for t in made.timesteps:
            theirs.append(x)
            x = made.step(network(made.scale_model_input(x, t), t), t, x, generator=generator).prev_sample
        ours = our_trajectory(ancestral, grid, noise=seeded())
        return largest([a / LINEAR.at(t).alpha for a, t in zip(ours, grid)], [*theirs, x])

    truth("ancestral, small variance", f"N in {STEPS}, {spacing}, float32 states",
          THEIRS + "EulerAncestralDiscreteScheduler", worst_of_all_steps(compare), 5e-7)  # fmt: skip


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
def test_dpm_solver_of_second_order(truth, algorithm, spacing):
    solver = {"dpmsolver++": "dpm++2m", "sde-dpmsolver++": "dpm++2m-sde"}[algorithm]

    def compare(steps):
        kind = partial(diffusers.DPMSolverMultistepScheduler, timestep_spacing=spacing, algorithm_type=algorithm)
        made, grid = with_levels(kind(), steps)
        generator, x, theirs = torch.Generator().manual_seed(7), X, [X]
        for t in made.timesteps:
            x = made.step(network(x, t), t, x, generator=generator).prev_sample
            theirs.append(x)
        return largest(our_trajectory(SOLVERS[solver], grid, noise=seeded(torch.float32)), theirs)

    truth(f"solver {solver}", f"N in {STEPS}, {spacing}", THEIRS + "DPMSolverMultistepScheduler",
          worst_of_all_steps(compare), 1e-6)  # fmt: skip


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(truth, order, spacing):
    def compare(steps):
        kind = partial(diffusers.UniPCMultistepScheduler, timestep_spacing=spacing, solver_order=order)
        made, grid = with_levels(kind(), steps)
        x, theirs = X, [X]
        for t in made.timesteps:
            x = made.step(network(x, t), t, x).prev_sample
            theirs.append(x)
        return largest(our_trajectory(partial(SOLVERS["unipc"], order=order), grid), theirs)

    truth(f"solver unipc-{order}", f"N in {STEPS}, {spacing}", THEIRS + "UniPCMultistepScheduler",
          worst_of_all_steps(compare), 5e-15)  # fmt: skip


def edm_network(x, c_noise):
    """On the scale of c_in x, told ln(sigma) / 4."""
    c_noise = torch.as_tensor(c_noise, dtype=torch.float64)
    return torch.tanh(0.8 * x + 0.1) * (0.9 + 0.1 * c_noise)


def edm_denoiser():
    path = PATHS["edm"]
    return Denoiser(lambda x, t: edm_network(unit(x, path.at(t)), path.network_time(t)), path, "edm")


@pytest.mark.parametrize(
    ("name", "solver", "options", "tolerance"),
    [("EDMEulerScheduler", "ddim", {}, 1e-6), ("EDMDPMSolverMultistepScheduler", "dpm++2m", {}, 5e-15),
     ("EDMDPMSolverMultistepScheduler", "dpm++2m-sde", {"algorithm_type": "sde-dpmsolver++"}, 5e-15)],
)  # fmt: skip
@pytest.mark.parametrize("schedule", ["karras", "exponential"])
def test_preconditioned_networks(truth, name, solver, options, tolerance, schedule):
    """EDM's F prediction and c_in, c_skip, c_out, on both grids of noise levels."""
    path = PATHS["edm"]

    def compare(steps):
        made = getattr(diffusers, name)(sigma_schedule=schedule, **options)
        made.set_timesteps(steps)
        grid = grids.GRIDS[schedule](steps, path)
        if (schedule, steps) != ("exponential", 1):  # see below
            assert torch.allclose(made.sigmas.double(), path.at(grid).ratio, rtol=2e-6)
        made.sigmas = path.at(grid).ratio
        made.timesteps = path.network_time(grid[:-1])
        generator, x, theirs = torch.Generator().manual_seed(7), 80 * X, [80 * X]
        for t in made.timesteps:
            y = edm_network(made.scale_model_input(x, t), t)
            x = made.step(y, t, x, generator=generator).prev_sample
            theirs.append(x)
        return largest(our_trajectory(SOLVERS[solver], grid, edm_denoiser(), 80 * X), theirs)

    truth(f"solver {solver}, edm path and prediction", f"N in {STEPS}, {schedule}", THEIRS + name,
          worst_of_all_steps(compare), tolerance)  # fmt: skip


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    ("name", "solver", "tolerance"),
    [("FlowMatchEulerDiscreteScheduler", euler, 5e-7), ("FlowMatchHeunDiscreteScheduler", heun, 5e-5)],
)
def test_flow_matching(truth, name, solver, tolerance, shift):
    """On the straight path, and on grids that are bent towards noise by `shift`. Their Heun takes the velocity to the
    clean picture and back, and loses digits where it divides by a sigma of 0.001."""
    path = PATHS["straight"]

    def compare(steps):
        made = getattr(diffusers, name)(shift=shift)
        made.set_timesteps(steps)
        grid = made.sigmas.double().unique_consecutive()
        x, theirs = X.float(), []
        for i, t in enumerate(made.timesteps):
            if solver is euler or i % 2 == 0:
                theirs.append(x)
            x = made.step(network(x, t).float(), t, x).prev_sample
        return largest(our_trajectory(solver, grid, ours_on(path, "velocity"), X.float()), [*theirs, x])

    truth(
        solver.__name__,
        f"N in {STEPS}, shift {shift:g}, float32",
        THEIRS + name,
        worst_of_all_steps(compare),
        tolerance,
    )


def test_the_variance_exploding_predictor_and_corrector(truth):
    """Song et al. 2021, algorithms 2 and 4. Their norms are means over the batch: one picture here."""
    path, x = PATHS["ve"], 30 * X[:1]

    def compare(steps):
        made = diffusers.ScoreSdeVeScheduler(sigma_min=0.04, sigma_max=100.0, snr=0.16)
        made.set_timesteps(steps)
        made.set_sigmas(steps)
        made.discrete_sigmas = made.discrete_sigmas.double()
        levels = made.discrete_sigmas.flip(0)  # from noise; theirs go on to a level of 0, ours stop before it
        ask = ours_on(path, "score", lambda x, c: -network(x / c.exp(), 0) / c.exp())
        z = [  # as they draw
            torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).double()
            for seed, dtype in enumerate((torch.float64, torch.float32))
        ]
        worst, state = 0.0, x
        for t, (now, after) in zip(made.timesteps, itertools.pairwise(levels)):
            score = ask.network(state, path.time_of(now))
            theirs = made.step_pred(score, t, state, generator=torch.Generator().manual_seed(0)).prev_sample
            there = ask.network(theirs, path.time_of(after))
            theirs = made.step_correct(there, theirs, generator=torch.Generator().manual_seed(1)).prev_sample
            draws = iter(z)
            ours = predictor_corrector(ask, state, path.time_of(torch.stack([now, after])), lambda d=draws: next(d))
            worst, state = max(worst, float((ours - theirs).abs().max() / theirs.abs().max())), ours
        return worst

    truth("solver predictor-corrector, ve path", "every step of N in [2, 10, 13, 50]", THEIRS + "ScoreSdeVeScheduler",
          max(compare(steps) for steps in STEPS[1:]), 1e-7)  # fmt: skip


def test_the_variance_preserving_sde(truth):
    """Euler and Maruyama's steps. Theirs are 1 / N long, on times that are 0.999 / (N - 1) apart: here each is asked
    alone, and ours goes as far as theirs."""
    from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler

    path, z = PATHS["vp"], torch.randn(X.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def compare(steps):
        made, worst = ScoreSdeVpScheduler(), 0.0
        made.set_timesteps(steps)
        for t in made.timesteps.double()[:-1]:
            times = torch.stack([t, t - 1 / steps])
            if times[1] <= 0:
                break
            theirs, _ = made.step_pred(network(X, t), X, t, generator=torch.Generator().manual_seed(0))
            asked = ours_on(path, function=lambda x, _, t=t: network(x, t))
            ours = SOLVERS["euler-maruyama"](asked, X, times, lambda: z)
            worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
        return worst

    truth("solver euler-maruyama, vp path", "every step of N in [10, 13, 50]", THEIRS + "ScoreSdeVpScheduler",
          max(compare(steps) for steps in STEPS[2:]), 1e-13)  # fmt: skip


@pytest.mark.parametrize("steps", [2, 10, 50])
def test_karras_levels_of_a_discrete_path(truth, steps):
    made = scheduler(diffusers.EulerDiscreteScheduler, use_karras_sigmas=True)
    made.set_timesteps(steps)
    r = LINEAR.at(grids.karras(steps, LINEAR)).ratio
    error = (made.sigmas.double()[:-1] / r[:-1] - 1).abs().max()
    truth("grid karras, linear path", f"{steps} steps, relative, float32", THEIRS + "use_karras_sigmas", error, 2e-7)


# --- Where diffusers 0.42.1 is wrong, or different -------------------------------------------------------------------


def test_diffusers_leaves_noise_in_the_finished_picture(truth):
    """The last step has no noise (Ho et al. 2020, algorithm 2). diffusers 0.42.1 leaves it out only at index 0, where
    trailing grids do not end: its pictures carry noise of the whole variance 1 - alpha_bar of that last time."""
    made = scheduler(
        diffusers.DDPMScheduler, clip_sample=False, variance_type="fixed_large", timestep_spacing="trailing"
    )
    grid = grids.trailing(10, LINEAR)
    ours = our_trajectory(partial(ancestral, variance="large"), grid)[-1]
    theirs = their_trajectory(made, 10)[-1]
    draw = seeded()
    z = [draw() for _ in range(10)][-1]
    left = LINEAR.at(grid[-2]).sigma * z
    truth("ancestral, large variance", "10 steps, trailing, plus sigma z", THEIRS + "DDPMScheduler",
          (ours + left - theirs).abs().max(), 1e-12)  # fmt: skip


@pytest.mark.parametrize(("spacing", "wrong"), [("leading", 0), ("trailing", 11), ("linspace", 12)])
def test_diffusers_ddim_steps_to_the_wrong_time(truth, spacing, wrong):
    """DDIM's eq. 12 goes from alpha_bar[t_i] to alpha_bar[t_{i+1}], the next time of the grid.

    diffusers 0.42.1 goes to alpha_bar[t_i - T // N] instead, whatever the grid: with N = 13, 11 of the 12 inner steps
    of the trailing spacing and all 12 of linspace arrive at a time where the next step does not start.
    """
    made = scheduler(diffusers.DDIMScheduler, clip_sample=False, timestep_spacing=spacing)
    made.set_timesteps(13)
    times = made.timesteps.tolist()
    ours = grids.GRIDS[spacing](13, LINEAR)[:-1]
    assert [round(float(t) * 1000 - 1) for t in ours] == times  # the grids are the same
    assert sum(t - 1000 // 13 != following for t, following in itertools.pairwise(times)) == wrong
    worst = 0.0
    for t in times[:-1]:
        theirs = made.step(network(X, t), t, X).prev_sample
        step = torch.tensor([t + 1, t - 1000 // 13 + 1]).double() / 1000
        worst = max(worst, float((ddim(ours_on(LINEAR), X, step, seeded()) - theirs).abs().max()))
    truth(f"ddim, {spacing}", "one step of ours to t - T // N", THEIRS + "DDIMScheduler", worst, 1e-14)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_with_the_right_time_ddim_converges(truth, spacing):
    """On Gaussian data the ODE has a closed form. T / 600 is 1.67 but T // 600 is 1: theirs never arrives."""
    data, grid = Gaussian(), grids.GRIDS[spacing](600, LINEAR)
    solution = data.flowed(X, LINEAR.at(grid[0]), LINEAR.at(grid[-1]))
    perfect = data.denoiser(LINEAR, "noise")
    made = scheduler(diffusers.DDIMScheduler, clip_sample=False, timestep_spacing=spacing)
    theirs = their_trajectory(made, 600, lambda x, k: perfect.network(x, (torch.as_tensor(k).double() + 1) / 1000))[-1]
    error = (ddim(perfect, X, grid, seeded()) - solution).abs().max()
    truth(f"ddim, {spacing}", "600 steps on Gaussian data", "the closed-form solution", error, 2e-2)
    assert (theirs - solution).abs().max() > 5 * error


def third_order(denoiser, x, grid, noise, callback=None, *, curvature):
    """DPM-Solver++(3M) as diffusers 0.42.1, k-diffusion and the authors' code write it, with D_2 times `curvature`:

        sigma_s / sigma_t x - alpha_s (e^-h - 1) D_0 + alpha_s ((e^-h - 1) / h + 1) D_1
                            - alpha_s ((e^-h - 1 + h) / h^2 - 1/2) curvature D_2

    Their differences D_1 and D_2 stand for h c' and h^2 c'' / 2, and
    int_0^h e^(u - h) c'' u^2 / 2 du = -2 ((e^-h - 1 + h) / h^2 - 1/2) h^2 c'' / 2: the right curvature is 2."""
    path, known = denoiser.path, []
    for i in range(len(grid) - 1):
        d = denoiser(x, grid[i])
        if callback is not None:
            callback(type("Step", (), {"denoised": d}))
        at_s = path.at(grid[i + 1])
        l, h = half_log_snr(d.at), half_log_snr(at_s) - half_log_snr(d.at)  # noqa: E741
        known = [(l, d.clean), *known][:3]
        moved = at_s.sigma / d.at.sigma * x - at_s.alpha * torch.expm1(-h) * d.clean
        if len(known) > 1 and h.isfinite():
            (l0, m0), (l1, m1), *rest = known
            D = h / (l0 - l1) * (m0 - m1)
            if rest:
                r0, r1 = (l0 - l1) / h, (l1 - rest[0][0]) / h
                D_last = (m1 - rest[0][1]) / r1
                moved = moved + at_s.alpha * (torch.expm1(-h) / h + 1) * (D + r0 / (r0 + r1) * (D - D_last))
                moved = moved - at_s.alpha * ((torch.expm1(-h) + h) / h**2 - 0.5) * curvature * (D - D_last) / (r0 + r1)
            else:
                moved = moved - at_s.alpha * torch.expm1(-h) / 2 * D
        x = moved
    return x


@pytest.mark.parametrize("spacing", SPACINGS)
def test_diffusers_halves_the_curvature_of_the_third_order(truth, spacing):
    """Written as in `third_order`, theirs is that of curvature 1, and ours that of curvature 2."""

    def theirs(steps):
        kind = partial(diffusers.DPMSolverMultistepScheduler, timestep_spacing=spacing, solver_order=3)
        made, grid = with_levels(kind(lower_order_final=False), steps)
        x, states = X, [X]
        for t in made.timesteps:
            x = made.step(network(x, t), t, x).prev_sample
            states.append(x)
        return largest(our_trajectory(partial(third_order, curvature=1), grid), states)

    def ours(steps):
        grid = grids.GRIDS[spacing](steps, LINEAR)
        right = our_trajectory(partial(third_order, curvature=2), grid)
        return largest(our_trajectory(SOLVERS["dpm++3m"], grid), right)

    truth("dpm++3m with half the curvature", f"N in {STEPS}, {spacing}", THEIRS + "DPMSolverMultistepScheduler",
          worst_of_all_steps(theirs), 1e-6)  # fmt: skip
    truth("solver dpm++3m", f"N in {STEPS}, {spacing}", "the formula with the whole curvature",
          worst_of_all_steps(ours), 2e-14)  # fmt: skip


@pytest.mark.parametrize(("curvature", "order", "tolerance"), [(1, 2, 0.05), (2, 3, 0.35)])
def test_with_half_the_curvature_the_third_order_is_the_second(truth, curvature, order, tolerance):
    data, path, errors = Gaussian(), PATHS["edm"], []
    for steps in (256, 512):
        grid = path.time_of(80 * (0.05 / 80) ** torch.linspace(0, 1, steps + 1, dtype=torch.float64))
        end = third_order(data.denoiser(path, "clean"), 80 * X, grid, None, curvature=curvature)
        errors.append(float((end - data.flowed(80 * X, path.at(grid[0]), path.at(grid[-1]))).abs().max()))
    measured = math.log2(errors[0] / errors[1])
    truth(f"dpm++3m with {curvature} / 2 of the curvature", "order of convergence, N = 256 to 512", str(order),
          abs(measured - order), tolerance)  # fmt: skip


def test_diffusers_does_not_see_the_noise_that_it_adds(truth):
    """Algorithm 2 of Karras et al. 2022 asks the network at the noisier x^ and its level. diffusers 0.42.1 adds the
    noise after the network has answered, about x and its level: where it is told to churn, its picture is not that."""
    path, data = PATHS["edm"], Gaussian(0.3, 0.8)
    grid = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64) / 80
    made = diffusers.EDMEulerScheduler()
    made.set_timesteps(2)
    made.sigmas, made.timesteps = path.at(grid).ratio, path.network_time(grid[:-1])
    generator = torch.Generator().manual_seed(7)
    F = data.denoiser(path, "edm").network(X, grid[0])
    made.scale_model_input(X, made.timesteps[0])
    theirs = made.step(F, made.timesteps[0], X, s_churn=1.0, generator=generator).prev_sample
    r_hat = 2**0.5
    x_hat = X + seeded()() * (r_hat**2 - 1) ** 0.5
    right = x_hat + (0.5 - r_hat) * data.noise(x_hat, path.at(grid[0] * r_hat))
    c_skip, c_out = 0.25 / (r_hat**2 + 0.25), r_hat * 0.5 / (r_hat**2 + 0.25) ** 0.5
    stale = x_hat + (0.5 - r_hat) * (x_hat - (c_skip * x_hat + c_out * F)) / r_hat
    truth("diffusers, churn", "one step", "with the answer from before the noise", (theirs - stale).abs().max(), 2e-7)
    assert (theirs - right).abs().max() > 0.01


def test_diffusers_inverts_with_the_answer_of_the_next_time(truth):
    """An ODE's step from t to s asks at (x_t, t). DDIMInverseScheduler's times are those of s, so that whoever calls
    the network with them, as its pipelines do, asks about x_t as if it were as noisy as x_s."""
    made = scheduler(diffusers.DDIMInverseScheduler, clip_sample=False, timestep_spacing="leading")
    made.set_timesteps(10)
    x, ours, worst = X, X, 0.0
    rising = torch.cat([torch.zeros(1).double(), (made.timesteps.double() + 1) / 1000])
    for i, t in enumerate(made.timesteps):
        x = made.step(network(x, t), int(t), x).prev_sample
        asked = Denoiser(lambda x, _, k=t: network(x, k), LINEAR, "noise")
        ours = ddim(asked, ours, rising[i : i + 2], seeded())
        worst = max(worst, float((x - ours).abs().max() / x.abs().max()))
    truth("ddim, rising", "10 steps that ask about the next time", THEIRS + "DDIMInverseScheduler", worst, 1e-14)


def test_diffusers_begins_edm_with_too_much_noise():
    """Karras et al. 2022, algorithm 2 begins with sigma_max n; diffusers with sqrt(sigma_max^2 + 1) n."""
    assert diffusers.EDMEulerScheduler().init_noise_sigma == math.sqrt(80**2 + 1)
    assert PATHS["edm"].at(torch.tensor(1.0)).sigma == 80


def test_one_exponential_step_of_diffusers_begins_at_the_end():
    """Its levels are made from the least to the largest and then turned round: the only one of a single step is the
    least, so that the network is told that pure noise is nearly clean."""
    made = diffusers.EDMEulerScheduler(sigma_schedule="exponential")
    made.set_timesteps(1)
    assert float(made.sigmas[0]) == pytest.approx(0.002)
    assert PATHS["edm"].at(grids.exponential(1, PATHS["edm"])).ratio[0] == 80


def test_two_variances_of_diffusers_are_not_numbers():
    """`fixed_large_log` takes the square root of a logarithm, and `learned` that of what the network says."""
    made = diffusers.DDPMScheduler(variance_type="fixed_large_log", clip_sample=False)
    made.set_timesteps(10)
    assert made.step(X, 900, X).prev_sample.isnan().all()
    made = diffusers.DDPMScheduler(variance_type="learned", clip_sample=False)
    made.set_timesteps(10)
    drawn = made.step(torch.cat([X, X], 1), 900, X).prev_sample
    assert torch.equal(drawn.isnan(), X < 0)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_one_step_with_a_shifted_end_is_not_a_number_in_diffusers():
    """`shift_terminal` divides by 1 - sigma of the last time but one, which for one step is 1 - 1."""
    made = diffusers.FlowMatchEulerDiscreteScheduler(shift_terminal=0.1)
    made.set_timesteps(1)
    assert made.sigmas.isnan().any()


def test_diffusers_shifts_flow_matching_twice(truth):
    """`shift` s bends a time t into s t / (1 + (s - 1) t). diffusers 0.42.1 does so with the 1000 training times, and
    again with a grid that begins and ends at the bent ones, of which the last therefore is not the least."""
    s, steps = 3.0, 10

    def bent(t):
        return s * t / (1 + (s - 1) * t)

    made = diffusers.FlowMatchEulerDiscreteScheduler(shift=s)
    made.set_timesteps(steps)
    twice = bent(torch.linspace(1, float(bent(torch.tensor(1e-3, dtype=torch.float64))), steps, dtype=torch.float64))
    error = (made.sigmas[:-1].double() - twice).abs().max()
    truth("diffusers, flow-matching grid", "shift 3, 10 steps", "bent twice", error, 1e-7)
