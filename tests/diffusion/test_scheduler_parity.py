"""Whole trajectories beside diffusers 0.42.1's schedulers, and where those are wrong.

Both sides are given the same x, the same network outputs and the same noise, in float64. diffusers keeps alpha_bar in
float32 (see test_paths.py), so its table is replaced by ours: what is compared is the arithmetic of the steps.
"""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from gaussian import Gaussian

from mezzotint.diffusion import grids
from mezzotint.diffusion.paths import PATHS
from mezzotint.diffusion.predictions import Denoiser
from mezzotint.diffusion.solvers import ancestral, ddim, euler

pytestmark = pytest.mark.oracles
diffusers = pytest.importorskip("diffusers")

STEPS = [1, 2, 10, 13, 50]
X = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def network(x, t):
    """Some smooth function of the picture and the time index."""
    t = torch.as_tensor(t, dtype=torch.float64)  # diffusers counts in integers
    return torch.tanh(0.8 * x + 0.1) * (0.9 + 1e-4 * t) + 0.05 * torch.sin(t / 100)


def seeded():
    generator = torch.Generator().manual_seed(7)
    return lambda: torch.randn(X.shape, generator=generator, dtype=X.dtype)


def scheduler(kind, **config):
    made = kind(clip_sample=False, **config)
    made.alphas_cumprod = PATHS["linear"].at(torch.arange(1, 1001).double() / 1000).alpha ** 2
    return made


def their_trajectory(made, steps, function=network, **options):
    """x before each step, and at the end."""
    made.set_timesteps(steps)
    generator, x, states = torch.Generator().manual_seed(7), X, [X]
    for t in made.timesteps:
        x = made.step(function(x, t), t, x, generator=generator, **options).prev_sample
        states.append(x)
    return states


def our_trajectory(solver, grid, kind="noise", function=network):
    states = []
    denoiser = Denoiser(function, PATHS["linear"], kind)
    end = solver(denoiser, X, grid, seeded(), lambda step: states.append(step.denoised.x))
    return [*states, end]


def largest(ours, theirs):
    assert len(ours) == len(theirs)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ancestral(truth, variance, spacing, steps):
    made = scheduler(diffusers.DDPMScheduler, variance_type=f"fixed_{variance}", timestep_spacing=spacing)
    ours = our_trajectory(partial(ancestral, variance=variance), grids.GRIDS[spacing](steps))
    theirs = their_trajectory(made, steps)
    if spacing == "trailing":  # diffusers adds noise to the finished picture, see the next test
        ours, theirs = ours[:-1], theirs[:-1]
    error = largest(ours, theirs)
    truth(
        f"ancestral, {variance} variance", f"{steps} steps, {spacing}", "diffusers 0.42.1 DDPMScheduler", error, 5e-14
    )


def test_diffusers_leaves_noise_in_the_finished_picture(truth):
    """The last step has no noise (Ho et al. 2020, algorithm 2). diffusers 0.42.1 leaves it out only at index 0, where
    trailing grids do not end: its pictures carry noise of the whole variance 1 - alpha_bar of that last time."""
    made = scheduler(diffusers.DDPMScheduler, variance_type="fixed_large", timestep_spacing="trailing")
    grid = grids.trailing(10)
    ours = our_trajectory(partial(ancestral, variance="large"), grid)[-1]
    theirs = their_trajectory(made, 10)[-1]
    draw = seeded()
    z = [draw() for _ in range(10)][-1]
    left = PATHS["linear"].at(grid[-2]).sigma * z
    truth("ancestral, large variance", "10 steps, trailing, plus sigma z", "diffusers 0.42.1 DDPMScheduler",
          (ours + left - theirs).abs().max(), 1e-12)  # fmt: skip


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(truth, eta, steps):
    made = scheduler(diffusers.DDIMScheduler, timestep_spacing="leading")
    # Where T / N is no whole number, diffusers steps by floor(T / N), which is right for this spacing alone.
    error = largest(
        our_trajectory(partial(ddim, eta=eta), grids.leading(steps)), their_trajectory(made, steps, eta=eta)
    )
    truth(f"ddim, eta {eta}", f"{steps} steps, leading", "diffusers 0.42.1 DDIMScheduler", error, 1e-14)


@pytest.mark.parametrize(("kind", "name"), [("clean", "sample"), ("v", "v_prediction")])
def test_ddim_with_other_predictions(truth, kind, name):
    made = scheduler(diffusers.DDIMScheduler, timestep_spacing="leading", prediction_type=name)
    error = largest(our_trajectory(ddim, grids.leading(13), kind), their_trajectory(made, 13))
    truth(f"ddim, {kind} prediction", "13 steps, leading", "diffusers 0.42.1 DDIMScheduler", error, 1e-14)


def test_ddim_with_clipping(truth):
    made = diffusers.DDIMScheduler(timestep_spacing="leading", clip_sample=True)
    made.alphas_cumprod = scheduler(diffusers.DDIMScheduler).alphas_cumprod
    states = []
    denoiser = Denoiser(network, PATHS["linear"], "noise", clip=True)
    end = ddim(denoiser, X, grids.leading(13), seeded(), lambda step: states.append(step.denoised.x))
    error = largest([*states, end], their_trajectory(made, 13, use_clipped_model_output=True))
    truth("ddim, clipped", "13 steps, leading", "diffusers 0.42.1 DDIMScheduler", error, 1e-14)


@pytest.mark.parametrize("steps", STEPS)
def test_euler(truth, steps):
    made = diffusers.FlowMatchEulerDiscreteScheduler()
    made.set_timesteps(steps)
    x, theirs = X.float(), [X.float()]
    for t in made.timesteps:
        x = made.step(network(x, t), t, x).prev_sample
        theirs.append(x)
    ours = []
    denoiser = Denoiser(network, PATHS["straight"], "velocity")
    end = euler(denoiser, X.float(), made.sigmas.double(), seeded(), lambda step: ours.append(step.denoised.x))
    error = largest([*ours, end], theirs)
    truth("euler", f"{steps} steps, float32", "diffusers 0.42.1 FlowMatchEulerDiscreteScheduler", error, 1e-6)


@pytest.mark.parametrize(("spacing", "wrong"), [("leading", 0), ("trailing", 11), ("linspace", 12)])
def test_diffusers_ddim_steps_to_the_wrong_time(truth, spacing, wrong):
    """DDIM's eq. 12 goes from alpha_bar[t_i] to alpha_bar[t_{i+1}], the next time of the grid.

    diffusers 0.42.1 goes to alpha_bar[t_i - T // N] instead, whatever the grid: with N = 13, 11 of the 12 inner steps
    of the trailing spacing and all 12 of linspace arrive at a time where the next step does not start.
    """
    made = scheduler(diffusers.DDIMScheduler, timestep_spacing=spacing)
    made.set_timesteps(13)
    times = made.timesteps.tolist()
    assert [round(float(t) * 1000 - 1) for t in grids.GRIDS[spacing](13)[:-1]] == times  # the grids are the same
    assert sum(t - 1000 // 13 != following for t, following in itertools.pairwise(times)) == wrong
    denoiser, worst = Denoiser(network, PATHS["linear"], "noise"), 0.0
    for t in times[:-1]:
        theirs = made.step(network(X, t), t, X).prev_sample
        step = torch.tensor([t + 1, t - 1000 // 13 + 1]).double() / 1000
        worst = max(worst, float((ddim(denoiser, X, step, seeded()) - theirs).abs().max()))
    truth(f"ddim, {spacing}", "one step of ours to t - T // N", "diffusers 0.42.1 DDIMScheduler", worst, 1e-14)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_with_the_right_time_ddim_converges(truth, spacing):
    """On Gaussian data the ODE has a closed form. T / 600 is 1.67 but T // 600 is 1: theirs never arrives."""
    data, path, grid = Gaussian(), PATHS["linear"], grids.GRIDS[spacing](600)
    solution = data.flowed(X, path.at(grid[0]), path.at(grid[-1]))
    perfect = data.denoiser(path, "noise").network
    made = scheduler(diffusers.DDIMScheduler, timestep_spacing=spacing)
    theirs = their_trajectory(made, 600, lambda x, t: perfect(x, torch.as_tensor(t).double()))[-1]
    ours = ddim(data.denoiser(path, "noise"), X, grid, seeded())
    error = (ours - solution).abs().max()
    truth(f"ddim, {spacing}", "600 steps on Gaussian data", "the closed-form solution", error, 2e-2)
    assert (theirs - solution).abs().max() > 5 * error


def test_grids_are_those_of_diffusers():
    for spacing, steps in ((s, n) for s in ("leading", "trailing", "linspace") for n in STEPS):
        made = diffusers.DDPMScheduler(timestep_spacing=spacing)
        made.set_timesteps(steps)
        ours = (grids.GRIDS[spacing](steps)[:-1] * 1000 - 1).round().numpy()
        assert np.array_equal(ours, made.timesteps.numpy()), (spacing, steps)
